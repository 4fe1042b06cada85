"""Partitions that the metadata give to this broker: it opens them, whatever changes while it asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from broker.node import Node
from protocol.errors import ErrorCode
from s3stream.metadata import StreamId
from s3stream.stream import Stream
from tests.broker.wire import Wire, batch, eventually


async def test_what_an_answer_left_out_is_asked_for_again_where_it_changed_meanwhile(
    node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another broker gave a partition up after the answer was decided, and before it was here: the metadata tell of that only once."""
    broker, storage = node.running.broker, node.running.storage
    open_streams = storage.open_streams
    asked: list[Sequence[StreamId]] = []

    async def left_out_once(stream_ids: Sequence[StreamId]) -> Mapping[StreamId, Stream]:
        asked.append(stream_ids)
        if len(asked) > 1:
            return await open_streams(stream_ids)
        broker.partitions.want(broker.topics.by_id.values())
        return {}

    monkeypatch.setattr(storage, "open_streams", left_out_once)
    await wire.create_topic("t")
    await eventually(lambda: broker.topics.by_name["t"].partitions[0] is not None, "an open partition")
    assert (await wire.produce("t", batch(b"a"))).error_code == ErrorCode.NONE
    assert len(asked) == 2
