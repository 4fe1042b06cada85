"""Reading streams from objects: what comes back, and what it costs."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest

from s3stream.memory import Faults
from s3stream.metadata import CommitObjects, ObjectId, StreamId
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import Unavailable
from tests.s3stream.doubles import (
    PATHS,
    DictMetadata,
    PlainPayloads,
    offsets_of,
    payload,
    payloads,
    upload,
)
from tests.s3stream.reading import END, NO_READ_AHEAD, SMALL, STREAM, World


async def test_a_read_spans_blocks_and_objects(world: World) -> None:
    for base in (0, 30, 60):
        await upload(world.store, world.metadata, {1: payloads(base, base + 30), 2: payloads(base, base + 30)})

    assert await world.read(0) == [*range(90)]
    assert await world.read(29) == [*range(29, 90)]
    assert await world.read(45, end_offset=70) == [*range(45, 70)]
    assert await world.read(90) == []
    assert offsets_of(await world.reader.read(StreamId(2), 77, END, 1000)) == [*range(77, 87)]


async def test_at_least_one_payload_and_no_more_than_asked_for(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 30, size=300)})

    assert await world.read(7, max_bytes=1) == [7]
    assert await world.read(7, max_bytes=600) == [7, 8]
    assert await world.read(7, max_bytes=899) == [7, 8]


async def test_any_read_gives_what_a_list_would_give(world: World) -> None:
    rng = random.Random(3)
    expected: list[tuple[int, int, int]] = []  # base, end, size
    at = 0
    for number in range(25):
        batch = []
        for _ in range(rng.randint(1, 12)):
            count = rng.randint(1, 4)
            each = payload(at, count=count, size=rng.choice([30, 200, 900]))
            batch.append(each)
            expected.append((at, at + count, len(each.data)))
            at += count
        await upload(world.store, world.metadata, {1: batch, 2: payloads(number * 3, number * 3 + 3)})

    for _ in range(300):
        offset, limit = rng.randrange(at), rng.choice([1, 500, 3000, 20_000])
        end_offset = rng.choice([at, rng.choice(expected)[1]])
        wanted = [item for item in expected if item[1] > offset and item[1] <= end_offset]
        size, fitting = 0, []
        for base, _, payload_size in wanted:
            if fitting and size + payload_size > limit:
                break
            size += payload_size
            fitting.append(base)
        found = await world.read(offset, limit, end_offset)
        # A read may stop early (memory), never late, and never with nothing.
        assert found == fitting[: len(found)]
        assert bool(found) == bool(fitting)
        if limit < 20_000:
            assert found == fitting


async def test_blocks_are_fetched_once_and_neighbours_together() -> None:
    world = World(NO_READ_AHEAD)
    await upload(world.store, world.metadata, {1: payloads(0, 100)})  # ten blocks of 1,000 bytes

    assert await world.read(0, max_bytes=5000) == [*range(50)]
    assert world.gets() == 1
    assert await world.read(0, max_bytes=5000) == [*range(50)]
    assert world.gets() == 1
    assert await world.read(0) == [*range(100)]
    assert world.gets() == 2
    await world.reader.close()


async def test_requests_are_limited_in_size() -> None:
    world = World(NO_READ_AHEAD)
    await upload(world.store, world.metadata, {1: payloads(0, 200)})
    sizes: list[int] = []
    get_range = world.store.get_range

    async def recorded(key: str, start: int, end: int) -> bytes:
        sizes.append(end - start)
        return await get_range(key, start, end)

    world.store.get_range = recorded  # type: ignore[method-assign]
    assert await world.read(0) == [*range(200)]
    assert sizes == [8000, 8000, 4000]
    await world.reader.close()


async def test_readers_of_the_same_block_share_one_request_and_do_not_disturb_each_other(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 10)})
    world.store.faults = Faults(latency_ms=2)

    readers = [asyncio.create_task(world.read(0)) for _ in range(8)]
    while not world.gets():
        await asyncio.sleep(0)
    readers[0].cancel()
    results = await asyncio.gather(*readers, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [[*range(10)]] * 7
    assert world.gets() == 1
    assert world.store.requests["get_tail"] == 1


async def test_a_partition_that_is_loaded_does_not_wait_for_consumers() -> None:
    world = World()
    await upload(world.store, world.metadata, {1: payloads(0, 1000), 2: payloads(0, 1000)})
    await world.read(0, max_bytes=1)
    world.reader.budget.limit(1)
    assert await world.read(10, max_bytes=1000) == [*range(10, 20)]  # the first is let go, and takes long to pay for
    behind = asyncio.create_task(world.read(500, max_bytes=1000))
    loaded = await asyncio.wait_for(world.reader.read(StreamId(2), 0, END, 1000, paced=False), 10)
    assert offsets_of(loaded) == [*range(10)]
    assert not behind.done()
    behind.cancel()
    await world.reader.close()


async def test_readers_leave_connections_to_others() -> None:
    world = World(dataclasses.replace(NO_READ_AHEAD, max_requests=4))
    for base in range(0, 1000, 50):
        await upload(world.store, world.metadata, {1: payloads(base, base + 50)})
    under_way = most = 0
    get_range = world.store.get_range

    async def slow(key: str, start: int, end: int) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return await get_range(key, start, end)

    world.store.get_range = slow  # type: ignore[method-assign]
    await asyncio.gather(*(world.read(offset, max_bytes=1000) for offset in range(0, 1000, 50)))
    assert most == 4
    await world.reader.close()


async def test_a_long_index_takes_a_second_request(world: World) -> None:
    world.reader = world.new_reader(dataclasses.replace(SMALL, tail_size_bytes=200))
    await upload(world.store, world.metadata, {1: payloads(0, 100)}, block_size_bytes=100)

    assert await world.read(99) == [99]
    assert world.store.requests == {"put": 1, "get_tail": 1, "get_range": 2}


async def test_the_index_cache_is_bounded(world: World) -> None:
    for base in range(0, 1000, 100):  # 1,280 bytes of index each, room for three
        await upload(world.store, world.metadata, {1: payloads(base, base + 100)}, block_size_bytes=500)
    for base in (0, 100, 200, 300, 0):
        await world.read(base, max_bytes=1)
    assert world.store.requests["get_tail"] == 5
    await world.read(300, max_bytes=1)
    assert world.store.requests["get_tail"] == 5


async def replace_objects(world: World, sources: list[ObjectId]) -> ObjectId:
    """A compaction of stream 1, done by hand: the sources are gone from the bucket right after."""
    (target,) = await world.metadata.new_object_ids(1)
    end = world.metadata.committed_end_offset(STREAM)
    assert end is not None
    shadow = DictMetadata()
    shadow.create(1)
    shadow.next_id = target
    await upload(world.store, shadow, {1: payloads(0, end)})
    await world.metadata.commit_objects(CommitObjects(objects=(shadow.objects[target],), sources=tuple(sources)))
    await world.store.delete_many([PATHS.data_object(source) for source in sources])
    return target


async def test_a_reader_follows_a_compaction(world: World) -> None:
    sources = [await upload(world.store, world.metadata, {1: payloads(base, base + 10)}) for base in (0, 10, 20)]
    assert await world.read(0, max_bytes=100) == [0]
    await replace_objects(world, sources)
    assert await world.read(0) == [*range(30)]
    assert await world.read(15) == [*range(15, 30)]


async def test_a_compaction_in_the_middle_of_a_read_is_followed(world: World) -> None:
    sources = [await upload(world.store, world.metadata, {1: payloads(base, base + 10)}) for base in (0, 10, 20)]

    async def hook(operation: str, key: str) -> None:
        if operation == "get_range":
            world.store.hook = None
            await replace_objects(world, sources)

    world.store.hook = hook
    assert await world.read(0) == [*range(30)]


async def test_metadata_that_lags_behind_is_brought_up_to_date() -> None:
    world = World()
    caught_up: list[bool] = []
    sources = [await upload(world.store, world.metadata, {1: payloads(base, base + 10)}) for base in (0, 10, 20)]
    stale = dict(world.metadata.stream_ranges), dict(world.metadata.objects)
    await replace_objects(world, sources)
    fresh = dict(world.metadata.stream_ranges), dict(world.metadata.objects)
    world.metadata.stream_ranges, world.metadata.objects = stale

    async def catch_up() -> None:
        caught_up.append(True)
        world.metadata.stream_ranges, world.metadata.objects = fresh

    reader = ObjectReader(
        store=world.store, paths=PATHS, metadata=world.metadata, payload_format=PlainPayloads(), settings=SMALL,
        catch_up=catch_up,
    )  # fmt: skip
    # The dictionaries share their lists; cut the stale view loose.
    world.metadata.stream_ranges = {STREAM: [(sources[0], stale[0][STREAM][0][1])]}
    world.metadata.objects = dict.fromkeys(sources, next(iter(fresh[1].values())))
    assert offsets_of(await reader.read(STREAM, 0, END, 1 << 20)) == [*range(30)]
    assert caught_up == [True]
    await reader.close()
    await world.reader.close()


async def test_what_was_trimmed_meanwhile_reads_as_nothing(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 10)})
    await upload(world.store, world.metadata, {1: payloads(10, 20)})
    await world.metadata.trim_streams({STREAM: 12})
    assert await world.read(5) == []
    assert await world.read(12) == [*range(12, 20)]
    world.metadata.delete(1)
    assert await world.read(12) == []


async def test_an_outage_is_passed_on_and_passes(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 50)})
    world.store.outage = True
    with pytest.raises(Unavailable):
        await world.read(0)
    world.store.outage = False
    assert await world.read(0, max_bytes=1000) == [*range(10)]
    world.store.outage = True
    assert await world.read(0, max_bytes=1000) == [*range(10)]  # cached
    with pytest.raises(Unavailable):
        await world.read(40)
    world.store.outage = False
    assert await world.read(40) == [*range(40, 50)]


async def test_the_newest_state_and_what_it_accounts_for(world: World) -> None:
    assert await world.reader.read_state(STREAM) is None
    await upload(world.store, world.metadata, {1: payloads(0, 10)}, states={1: b"at ten"})
    await upload(world.store, world.metadata, {1: payloads(10, 20)}, states={1: b"at twenty"})
    await upload(world.store, world.metadata, {1: payloads(20, 30)})
    assert await world.reader.read_state(STREAM) == (20, b"at twenty")
    await world.metadata.trim_streams({STREAM: 30})
    assert await world.reader.read_state(STREAM) == (20, b"at twenty")
    assert await world.reader.read_state(StreamId(2)) is None


async def test_looking_up_a_time(world: World) -> None:
    for base in (0, 30, 60):  # ten milliseconds an offset, five records a payload
        await upload(world.store, world.metadata, {1: payloads(base, base + 30, count=5)})

    async def look_up(timestamp_ms: int, start: int = 0, end: int = END) -> list[int]:
        found = await world.reader.payload_for_timestamp(STREAM, timestamp_ms, start, end)
        return [] if found is None else offsets_of([found])

    assert await look_up(-1) == [0]
    assert await look_up(0) == [0]
    assert await look_up(1) == [5]
    assert await look_up(450) == [45]
    assert await look_up(451) == [50]
    assert await look_up(850) == [85]
    assert await look_up(851) == []
    assert await look_up(0, start=47) == [45]
    assert await look_up(0, start=50) == [50]
    assert await look_up(600, end=60) == []
    assert world.store.requests["get_range"] < 9  # the index tells; other blocks are not read


async def test_times_that_go_back_are_found_all_the_same(world: World) -> None:
    rng = random.Random(5)
    stamps = [rng.randrange(1000) for _ in range(120)]
    for base in range(0, 120, 40):
        await upload(
            world.store,
            world.metadata,
            {1: [payload(offset, timestamp_ms=stamps[offset]) for offset in range(base, base + 40)]},
        )
    for wanted in range(0, 1000, 37):
        found = await world.reader.payload_for_timestamp(STREAM, wanted, 0, END)
        expected = next((offset for offset, stamp in enumerate(stamps) if stamp >= wanted), None)
        assert (None if found is None else offsets_of([found])[0]) == expected
