"""Retention: which records go, and when nothing does."""

from __future__ import annotations

import asyncio

import pytest

from broker.node import Node, wall_clock_ms
from broker.retention import MAX_CLOCK_DIFFERENCE_MS, retained_from
from s3stream.errors import ObjectCorrupt
from s3stream.metadata import ObjectId, ObjectRange, StreamId, StreamRange
from s3stream.stream import Stream
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch


def ranges(*sizes_and_times: tuple[int, int]) -> list[ObjectRange]:
    """Ranges of ten offsets each, from (size, newest timestamp)."""
    return [
        ObjectRange(
            object_id=ObjectId(at),
            size_bytes=size,
            range=StreamRange(
                stream_id=StreamId(1),
                leader_epoch=0,
                base_offset=10 * at,
                end_offset=10 * at + 10,
                record_count=10,
                size_bytes=size,
                max_timestamp_ms=timestamp,
                has_state=False,
            ),
        )
        for at, (size, timestamp) in enumerate(sizes_and_times)
    ]


@pytest.mark.parametrize(
    ("retention_ms", "expected"), [(-1, None), (1000, None), (899, 10), (800, 10), (799, 20), (600, 20), (0, 40)]
)
def test_by_age(retention_ms: int, expected: int | None) -> None:
    found = ranges((5, 100), (5, 200), (5, 900), (5, 400))
    # A younger range holds back an older one behind it: offsets go in order only.
    assert retained_from(found, retention_ms=retention_ms, retention_bytes=-1, now_ms=1000) == expected


@pytest.mark.parametrize(
    ("retention_bytes", "expected"), [(-1, None), (100, None), (16, None), (15, 10), (10, 20), (0, 40)]
)
def test_by_size(retention_bytes: int, expected: int | None) -> None:
    found = ranges((5, 1), (5, 1), (5, 1), (5, 1))
    assert retained_from(found, retention_ms=-1, retention_bytes=retention_bytes, now_ms=1000) == expected


def test_records_without_a_timestamp_have_no_age() -> None:
    assert retained_from(ranges((5, -1), (5, 1)), retention_ms=0, retention_bytes=-1, now_ms=1000) is None


def test_nothing_goes_by_a_clock_that_is_not_trusted() -> None:
    assert retained_from(ranges((5, 1)), retention_ms=0, retention_bytes=-1, now_ms=None) is None


async def upload(node: Node, topic: str = "t") -> None:
    """Bring all of a topic into objects."""
    partition = node.running.broker.topics.by_name[topic].partitions[0]
    assert partition is not None
    await node.running.storage.flush(partition.stream.stream_id, partition.high_watermark)


async def fill(node: Node, wire: Wire) -> None:
    """Two objects for topic t: one of records from 1970, one of records from now."""
    for n in range(2):
        await wire.produce("t", batch(b"old", timestamp_ms=1 + n))
    await upload(node)
    await wire.produce("t", batch(b"new", timestamp_ms=node.running.broker.now_ms()))
    await upload(node)


async def log_start(wire: Wire) -> int:
    offset: int = (await wire.list_offset("t", -2)).offset
    return offset


async def test_old_records_go(start_node: StartNode) -> None:
    async with (
        start_node(log_retention_check_interval_ms=50) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t", retention_ms="3600000")
        await fill(node, wire)
        async with asyncio.timeout(20):
            while await log_start(wire) != 2:
                await asyncio.sleep(0.02)
        assert (await wire.fetch("t", 0)).error_code == 1
        assert await wire.fetch_values("t", 2) == [b"new"]
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await log_start(wire) == 2


async def test_one_partition_that_cannot_be_trimmed_holds_no_other_up(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        for name in ("bad", "good"):
            await wire.create_topic(name, retention_bytes="0")
            await wire.produce(name, batch(b"old"))
            await upload(node, name)
        bad = node.running.broker.topics.by_name["bad"].partitions[0]
        assert bad is not None
        trim = Stream.trim

        async def fails(stream: Stream, offset: int) -> None:
            if stream is bad.stream:
                raise ObjectCorrupt("the state cannot be read")
            await trim(stream, offset)

        monkeypatch.setattr(Stream, "trim", fails)
        assert await node.running.retention.apply() == 1
        assert (await wire.list_offset("good", -2)).offset == 1
        assert (await wire.list_offset("bad", -2)).offset == 0


async def test_compacted_topics_keep_everything(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", retention_ms="0", retention_bytes="0", cleanup_policy="compact")
        for n in range(2):
            await wire.produce("t", batch(b"old", key=b"k%d" % n))
        await upload(node)
        assert await node.running.retention.apply() == 0


async def test_a_wrong_clock_stops_it(start_node: StartNode) -> None:
    shift = [0]

    def now_ms() -> int:
        return wall_clock_ms() + shift[0]

    async with start_node(now_ms=now_ms) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", retention_ms="3600000")
        await fill(node, wire)
        shift[0] = 2 * MAX_CLOCK_DIFFERENCE_MS
        assert await node.running.retention.apply() == 0
        shift[0] = 0
        assert await node.running.retention.apply() == 1
        assert await log_start(wire) == 2


async def test_an_answer_that_takes_long_does_not_make_a_clock_wrong(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = [0]

    def now_ms() -> int:
        return wall_clock_ms() + shift[0]

    async with start_node(now_ms=now_ms) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", retention_ms="3600000")
        await fill(node, wire)
        retention = node.running.retention

        async def answers_late() -> int:
            store_ms = now_ms()
            shift[0] += 2 * MAX_CLOCK_DIFFERENCE_MS  # the machine is put to sleep, and wakes
            return store_ms

        monkeypatch.setattr(retention, "_store_now_ms", answers_late)
        assert await retention.apply() == 1
        assert await log_start(wire) == 2
