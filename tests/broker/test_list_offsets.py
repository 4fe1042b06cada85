"""ListOffsets: special positions and look-ups by time, in the log cache and in objects."""

from __future__ import annotations

import pytest

from protocol.compression import Codec
from protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from protocol.record_set import Record, build_batch
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch


def stamped(*timestamps: int, codec: Codec = Codec.NONE) -> bytes:
    return build_batch([Record(value=b"v", timestamp_ms=one) for one in timestamps], codec=codec)


async def found(wire: Wire, timestamp: int, version: int = 9) -> tuple[int, int]:
    answer = await wire.list_offset("t", timestamp, version=version)
    assert answer.error_code == 0, answer
    return answer.offset, answer.timestamp


@pytest.mark.parametrize("version", range(1, 12))
async def test_every_version(wire: Wire, version: int) -> None:
    await wire.create_topic("t")
    await wire.produce("t", stamped(10, 20))
    assert await found(wire, -1, version) == (2, -1)
    assert await found(wire, -2, version) == (0, -1)
    assert await found(wire, 15, version) == (1, 20)
    assert await found(wire, 21, version) == (-1, -1)


async def test_an_empty_partition(wire: Wire) -> None:
    await wire.create_topic("t")
    assert [await found(wire, timestamp) for timestamp in (-1, -2, -3, -4, -5, 0)] == [
        (0, -1),
        (0, -1),
        (-1, -1),
        (0, -1),
        (-1, -1),
        (-1, -1),
    ]


@pytest.mark.parametrize("codec", list(Codec))
async def test_timestamps_are_found_inside_batches(wire: Wire, codec: Codec) -> None:
    await wire.create_topic("t")
    await wire.produce("t", stamped(100, 50, 200, codec=codec))  # offsets 0, 1, 2
    await wire.produce("t", stamped(150, 300, codec=codec))  # offsets 3, 4
    # The first record, in offset order, that is at or past the asked time.
    assert await found(wire, 1) == (0, 100)
    assert await found(wire, 101) == (2, 200)
    assert await found(wire, 201) == (4, 300)
    assert await found(wire, 301) == (-1, -1)


async def test_the_largest_timestamp_is_not_the_last(wire: Wire) -> None:
    # KIP-734
    await wire.create_topic("t")
    await wire.produce("t", stamped(10, 500, 20))
    await wire.produce("t", stamped(30))
    assert await found(wire, -3) == (1, 500)


async def test_special_positions_have_a_first_version(wire: Wire) -> None:
    await wire.create_topic("t")
    for timestamp, since in ((-3, 7), (-4, 8), (-5, 9), (-6, 11)):
        assert (await wire.list_offset("t", timestamp, version=since)).error_code == 0
        assert (await wire.list_offset("t", timestamp, version=since - 1)).error_code == 35
    assert (await wire.list_offset("t", -7, version=11)).error_code == 35


async def test_errors(wire: Wire) -> None:
    await wire.create_topic("t")
    assert (await wire.list_offset("missing", -1)).error_code == 3
    assert (await wire.list_offset("t", -1, partition=1)).error_code == 3
    twice = ListOffsetsRequest(
        topics=[
            ListOffsetsTopic(
                name="t",
                partitions=[
                    ListOffsetsPartition(partition_index=0, timestamp=-1),
                    ListOffsetsPartition(partition_index=0, timestamp=-2),
                ],
            )
        ]
    )
    answer = await wire.call("ListOffsets", 9, twice)
    assert [one.error_code for one in answer.topics[0].partitions] == [42, 42]
    stale = ListOffsetsRequest(
        topics=[
            ListOffsetsTopic(
                name="t", partitions=[ListOffsetsPartition(partition_index=0, timestamp=-1, current_leader_epoch=5)]
            )
        ]
    )
    assert (await wire.call("ListOffsets", 9, stale)).topics[0].partitions[0].error_code == 75


async def test_a_batch_that_cannot_be_read_is_answered_by_its_start(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", stamped(10))
    broken = bytearray(stamped(20, 30))
    broken[22] |= Codec.GZIP  # says gzip, holds none; its CRC is right
    from crc32c import crc32c

    broken[17:21] = crc32c(bytes(broken[21:])).to_bytes(4, "big")
    assert (await wire.produce("t", bytes(broken))).error_code == 0
    assert await found(wire, 25) == (1, 30)


async def test_look_ups_in_objects(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for n in range(100):
            await wire.produce("t", stamped(1000 * n, 1000 * n + 500))
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.produce("t", batch(b"tail", timestamp_ms=200_000))
        assert await found(wire, 0) == (0, 0)
        assert await found(wire, 42_001) == (85, 42_500)
        assert await found(wire, 99_501) == (200, 200_000)
        assert await found(wire, -3) == (200, 200_000)
        earliest = await wire.list_offset("t", -2)
        assert (earliest.offset, earliest.leader_epoch) == (0, 0)
        latest = await wire.list_offset("t", -1)
        assert (latest.offset, latest.leader_epoch) == (201, 1)
