"""While the close of a partition is under way nobody knows whether another broker goes on with it: readers are told to look there (I3)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.node import Node
from protocol.errors import ErrorCode
from tests.broker.wire import Wire, batch, eventually, fetch_request, only_partition

LATEST = -1
NOT_LEADER = ErrorCode.NOT_LEADER_OR_FOLLOWER


async def test_readers_are_sent_on_as_soon_as_the_close_is_sent(
    wire: Wire, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"x"))
    storage = node.running.storage
    partition = node.running.broker.topics.by_name["t"].partitions[0]
    assert partition is not None
    is_sent, is_answered = asyncio.Event(), asyncio.Event()
    close_streams = storage.metadata.close_streams

    async def slowly(*arguments: Any) -> None:
        is_sent.set()
        await is_answered.wait()  # it may be committed, and its answer on the way
        await close_streams(*arguments)

    monkeypatch.setattr(storage.metadata, "close_streams", slowly)
    async with await Wire.connect(node.bootstrap_servers) as reader:
        waiting = asyncio.ensure_future(reader.call("Fetch", 12, fetch_request("t", offset=1, max_wait_ms=60_000)))
        await eventually(lambda: partition._waiters, "the wait")
        partition.leave()
        assert (await wire.fetch("t")).error_code == 0, "until then it is served as ever"
        assert (await wire.list_offset("t", LATEST)).offset == 1
        release = asyncio.create_task(storage.release([partition.stream]))
        await is_sent.wait()
        assert only_partition(await asyncio.wait_for(waiting, 10)).error_code == NOT_LEADER
        assert (await wire.fetch("t")).error_code == NOT_LEADER
        assert (await wire.list_offset("t", LATEST)).error_code == NOT_LEADER
        is_answered.set()
        await release
    assert partition.stream.closed is not None
