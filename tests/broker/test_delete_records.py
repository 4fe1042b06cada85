"""DeleteRecords: the log start is exactly what was asked for, for good, and objects go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.node import Node
from protocol.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from protocol.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsPartitionResult,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from s3stream.metadata import StreamId
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, records_in


async def delete(wire: Wire, offset: int, topic: str = "t", *, partition: int = 0, version: int = 2) -> tuple[int, int]:
    """Delete records; returns (error code, low watermark)."""
    wanted = DeleteRecordsTopic(
        name=topic, partitions=[DeleteRecordsPartition(partition_index=partition, offset=offset)]
    )
    response = await wire.call("DeleteRecords", version, DeleteRecordsRequest(topics=[wanted], timeout_ms=10_000))
    result: DeleteRecordsPartitionResult = response.topics[0].partitions[0]
    return result.error_code, result.low_watermark


def objects(directory: Path) -> int:
    """Data objects in the store."""
    return sum(1 for path in (directory / "objects" / "data").rglob("*") if path.is_file())


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_the_low_watermark_is_what_was_asked(wire: Wire, version: int) -> None:
    await wire.create_topic("t")
    for number in range(10):
        await wire.produce("t", batch(b"%d" % number))
    assert await delete(wire, 4, version=version) == (0, 4)
    assert await delete(wire, 2) == (0, 4), "the log start never goes back"
    assert (await wire.list_offset("t", -2)).offset == 4
    assert (await wire.fetch("t", 3)).error_code == 1
    assert await wire.fetch_values("t", 4) == [b"%d" % number for number in range(4, 10)]
    assert await delete(wire, -1) == (0, 10)
    assert (await wire.list_offset("t", -2)).offset == (await wire.list_offset("t", -1)).offset == 10
    assert (await wire.produce("t", batch(b"next"))).base_offset == 10


async def test_in_the_middle_of_a_batch(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"a", b"b", b"c"))
    assert await delete(wire, 1) == (0, 1)
    assert (await wire.list_offset("t", -2)).offset == 1
    # As in Kafka whole batches are sent; clients leave out what is below the offset that they asked for.
    assert [record.value for record in records_in(await wire.fetch("t", 1))] == [b"a", b"b", b"c"]
    assert (await wire.fetch("t", 0)).error_code == 1


async def test_it_holds_after_a_restart_and_what_is_known_of_producers_too(start_node: StartNode) -> None:
    first, second = (batch(b"x", producer_id=7, producer_epoch=0, base_sequence=number) for number in range(2))
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        assert (await wire.produce("t", first)).base_offset == 0
        assert await delete(wire, 1) == (0, 1)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert (await wire.list_offset("t", -2)).offset == 1
        assert (await wire.produce("t", first)).base_offset == 0, "a duplicate is known (I11)"
        assert (await wire.produce("t", second)).base_offset == 1
        assert await wire.fetch_values("t", 1) == [b"x"]


async def test_where_the_newest_state_is_older_than_what_is_to_go(start_node: StartNode, tmp_path: Path) -> None:
    """A block that was put before the state was rebuilt has none; nothing was appended since."""
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        await wire.produce("t", batch(b"x", producer_id=7, producer_epoch=0, base_sequence=0))
        partition = node.running.broker.topics.by_name["t"].partitions[0]
        assert partition is not None
        source, partition.stream.state_source = partition.stream.state_source, None
        await node.running.storage.flush(partition.stream.stream_id, 1)
        partition.stream.state_source = source
        assert await partition.stream.newest_state() is None
        assert await delete(wire, -1) == (0, 1)
        state = await partition.stream.newest_state()
        assert state is not None
        assert state.end_offset == 1
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert (await wire.list_offset("t", -2)).offset == 1
        again = batch(b"x", producer_id=7, producer_epoch=0, base_sequence=0)
        assert (await wire.produce("t", again)).base_offset == 0, "a duplicate is known (I11)"
        assert (await wire.produce("t", batch(b"y"))).base_offset == 1
        assert await wire.fetch_values("t", 1) == [b"y"]
    verified = await asyncio.to_thread(main, ["verify", "--data", str(tmp_path)])
    assert verified == 0, "a state by itself is in order"


async def test_what_cannot_be_deleted(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.create_topic("keys", cleanup_policy="compact")
    await wire.produce("t", batch(b"x"))
    assert await delete(wire, 2) == (1, -1)
    assert await delete(wire, -2) == (1, -1)
    assert await delete(wire, 0, "missing") == (3, -1)
    assert await delete(wire, 0, partition=1) == (3, -1)
    assert await delete(wire, 0, "keys") == (44, -1)


async def test_a_partition_that_is_loading_keeps_what_its_state_is_rebuilt_from(node: Node, wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"x"))
    partition = node.running.broker.topics.by_name["t"].partitions[0]
    assert partition is not None
    partition.loaded = False
    assert await delete(wire, 1) == (6, -1)
    partition.loaded = True
    assert await delete(wire, 1) == (0, 1)


async def test_objects_go_from_the_store(start_node: StartNode, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(30),
        start_node(log_segment_delete_delay_ms=50, metadata_restore_window_ms=0, upload_interval_ms=50) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        for number in range(3):
            await wire.produce("t", batch(b"x" * 1000))
            while objects(tmp_path) <= number:
                await asyncio.sleep(0.02)
        assert await delete(wire, -1) == (0, 3)
        while objects(tmp_path) > 1:  # the one that is left has the newest state of the partition
            await asyncio.sleep(0.02)


async def test_objects_that_are_too_old_or_too_many_go_from_the_store(start_node: StartNode, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(30),
        start_node(
            log_segment_delete_delay_ms=50,
            metadata_restore_window_ms=0,
            upload_interval_ms=50,
            log_retention_check_interval_ms=50,
        ) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("old", retention_ms="1000")
        await wire.create_topic("many", retention_bytes="0")
        for _ in range(3):
            await wire.produce("old", batch(b"x", timestamp_ms=1))
            await wire.produce("many", batch(b"x" * 400, timestamp_ms=node.running.broker.now_ms()))
            await node.running.storage.flush(_stream_id(node, "many"), 1 << 40)
        for topic in ("old", "many"):
            while (await wire.list_offset(topic, -2)).offset != 3:
                await asyncio.sleep(0.02)
        while objects(tmp_path) > 2:  # those that are left have the newest state of a partition
            await asyncio.sleep(0.02)
        assert (await wire.produce("many", batch(b"next"))).base_offset == 3


def _stream_id(node: Node, topic: str) -> StreamId:
    partition = node.running.broker.topics.by_name[topic].partitions[0]
    assert partition is not None
    return partition.stream.stream_id


async def test_internal_topics_are_the_brokers_own(wire: Wire) -> None:
    await wire.create_topic("__consumer_offsets")
    assert await delete(wire, 0, "__consumer_offsets") == (17, -1)
    wanted = CreatePartitionsTopic(name="__consumer_offsets", count=2, assignments=None)
    response = await wire.call("CreatePartitions", 3, CreatePartitionsRequest(topics=[wanted], timeout_ms=10_000))
    assert response.results[0].error_code == 17
