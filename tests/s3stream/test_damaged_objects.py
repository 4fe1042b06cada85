"""Objects that are damaged, missing or others than were committed: what is noticed, and what is read all the same."""

from __future__ import annotations

import dataclasses
import random

import pytest

from s3stream.errors import ObjectCorrupt
from s3stream.memory import Fault
from s3stream.metadata import StreamId
from tests.s3stream.doubles import (
    PATHS,
    payloads,
    upload,
)
from tests.s3stream.reading import END, STREAM, World


async def test_a_bit_flipped_on_the_way_is_read_again(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 50)}, states={1: b"state"})
    flips: list[Fault] = []

    async def hook(operation: str, key: str) -> Fault | None:
        return flips.pop() if flips and operation == "get_range" else None

    world.store.hook = hook
    flips.append(Fault.FLIPPED)
    assert await world.read(0) == [*range(50)]
    flips.append(Fault.FLIPPED)
    assert await world.reader.read_state(STREAM) == (50, b"state")
    assert not flips


async def test_every_flipped_bit_of_a_block_is_refused_by_name() -> None:
    for bit in random.Random(1).sample(range(3000 * 8), 40):
        world = World()
        object_id = await upload(world.store, world.metadata, {1: payloads(0, 30)})
        world.store.bucket.flip_bit(PATHS.data_object(object_id), bit)
        block = bit // 8000 * 10
        with pytest.raises(ObjectCorrupt, match=f"object {object_id}, stream 1, offsets {block} to {block + 10}"):
            await world.read(block)
        # What is sound before and after it can still be read.
        if block:
            assert await world.read(0) == [*range(block)]
        if block < 20:
            assert await world.read(block + 10) == [*range(block + 10, 30)]
        await world.reader.close()


async def test_a_damaged_index_is_refused(world: World) -> None:
    object_id = await upload(world.store, world.metadata, {1: payloads(0, 10)})
    world.store.bucket.flip_bit(PATHS.data_object(object_id), 1000 * 8 + 5)
    with pytest.raises(ObjectCorrupt, match="index does not match its CRC"):
        await world.read(0)


async def test_an_object_that_was_replaced_by_other_bytes_is_refused(world: World) -> None:
    first = await upload(world.store, world.metadata, {1: payloads(0, 10)})
    data = (await world.store.get(PATHS.data_object(first))).data
    await world.store.put(PATHS.data_object(first), [data[:-1]])
    with pytest.raises(ObjectCorrupt):
        await world.read(0)


async def test_an_object_that_lacks_what_was_committed_is_refused(world: World) -> None:
    first = await upload(world.store, world.metadata, {1: payloads(0, 10)})
    object_id, wrong = world.metadata.stream_ranges[STREAM][0]
    world.metadata.stream_ranges[StreamId(3)] = [(object_id, dataclasses.replace(wrong, stream_id=StreamId(3)))]
    with pytest.raises(ObjectCorrupt, match=f"object {first} should hold stream 3, offsets 0 to 10"):
        await world.reader.read(StreamId(3), 0, END, 1000)


async def test_an_object_that_is_missing_and_still_referenced_is_a_loss(world: World) -> None:
    object_id = await upload(world.store, world.metadata, {1: payloads(0, 10)}, states={1: b"s"})
    await world.store.delete_many([PATHS.data_object(object_id)])
    expected = f"object {object_id} is missing from the store .*, and holds stream 1, offsets 0 to 10"
    with pytest.raises(ObjectCorrupt, match=expected):
        await world.read(0)
    assert await world.reader.read_state(STREAM) is None, "all is to be replayed, and cannot be"
    (lost,) = world.reader.damage.ranges()
    assert (lost.object_id, lost.base_offset, lost.end_offset) == (object_id, 0, 10)


async def test_what_lies_around_damage_is_read_and_the_damage_is_known_until_it_is_repaired(world: World) -> None:
    object_ids = [
        await upload(world.store, world.metadata, {1: payloads(base, base + 10), 2: payloads(base, base + 10)})
        for base in (0, 10, 20)
    ]
    key = PATHS.data_object(object_ids[1])
    whole = bytes(await world.store.get_range(key, 0, 1 << 20))
    await world.store.delete_many([key])

    assert await world.read(0) == [*range(10)], "however much is asked for"
    assert await world.read(20) == [*range(20, 30)]
    for offset in (10, 19):
        with pytest.raises(ObjectCorrupt):
            await world.read(offset)
    told = [(each.stream_id, each.base_offset, each.end_offset) for each in world.reader.damage.ranges()]
    assert told == [(1, 10, 20), (2, 10, 20)], "everything that the object held is lost, whoever came for it"

    await world.store.put(key, [whole])
    assert await world.read(10) == [*range(10, 30)]
    assert world.reader.damage.ranges() == []
    assert not world.reader.damage


async def test_damage_that_was_trimmed_away_is_forgotten(world: World) -> None:
    object_id = await upload(world.store, world.metadata, {1: payloads(0, 10)})
    await world.store.delete_many([PATHS.data_object(object_id)])
    with pytest.raises(ObjectCorrupt):
        await world.read(0)
    assert world.reader.damage.ranges()
    await world.metadata.trim_streams({STREAM: 10})
    assert world.reader.damage.ranges() == []


async def test_a_damaged_state_gives_way_to_the_one_before(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 10)}, states={1: b"at ten"})
    newest = await upload(world.store, world.metadata, {1: payloads(10, 20)}, states={1: b"at twenty"})
    await world.store.delete_many([PATHS.data_object(newest)])
    assert await world.reader.read_state(STREAM) == (10, b"at ten")
