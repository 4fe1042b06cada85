"""Reading streams from objects: what comes back, what it costs, and what is noticed."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator

import pytest

from s3stream.config import ReadSettings
from s3stream.errors import NoMemory, ObjectCorrupt
from s3stream.memory import Fault, Faults
from s3stream.metadata import CommitObjects, ObjectId, StreamId
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import Unavailable
from tests.s3stream.doubles import (
    PATHS,
    DictMetadata,
    PlainPayloads,
    new_world,
    offsets_of,
    payload,
    payloads,
    upload,
)

KIB = 1 << 10
STREAM = StreamId(1)
END = 1 << 40
SMALL = ReadSettings(
    memory_bytes=256 * KIB,
    index_cache_bytes=4 * KIB,
    read_ahead_initial_bytes=4 * KIB,
    read_ahead_max_bytes=16 * KIB,
    max_get_size_bytes=8 * KIB,
    tail_size_bytes=64 * KIB,
)
NO_READ_AHEAD = dataclasses.replace(SMALL, read_ahead_initial_bytes=1, read_ahead_max_bytes=1)


class World:
    """A bucket, its metadata, and a reader."""

    def __init__(self, settings: ReadSettings = SMALL) -> None:
        self.store, self.metadata = new_world()
        self.metadata.create(1, 2, 3)
        self.reader = self.new_reader(settings)

    def new_reader(self, settings: ReadSettings = SMALL) -> ObjectReader:
        return ObjectReader(
            store=self.store,
            paths=PATHS,
            metadata=self.metadata,
            payload_format=PlainPayloads(),
            settings=settings,
        )

    async def read(self, offset: int, max_bytes: int = 1 << 20, end_offset: int = END) -> list[int]:
        return offsets_of(await self.reader.read(STREAM, offset, end_offset, max_bytes))

    def gets(self) -> int:
        return self.store.requests["get_range"]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.reader.close()
    assert made.reader.cache.used_bytes == 0


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


@pytest.mark.parametrize("stagger_s", [0, 0.0005, 0.003])
async def test_five_readers_from_one_place_cost_the_gets_of_one(stagger_s: float) -> None:
    async def gets_of(readers: int) -> tuple[int, int, ObjectReader]:
        world = World(dataclasses.replace(SMALL, index_cache_bytes=64 * KIB))
        for base in range(0, 1200, 400):  # forty blocks of 1,000 bytes each
            await upload(world.store, world.metadata, {1: payloads(base, base + 400)})
        world.store.faults = Faults(latency_ms=0.5)

        async def follow(number: int) -> None:
            await asyncio.sleep(number * stagger_s)
            offset = 0
            while offset < 1200:
                found = await world.read(offset, max_bytes=3000, end_offset=1200)
                assert found == [*range(offset, found[-1] + 1)]
                offset = found[-1] + 1

        await asyncio.gather(*map(follow, range(readers)))
        await settle(world)
        read_bytes = world.store.bytes_read
        await world.reader.close()
        return world.gets(), read_bytes, world.reader

    one_gets, one_bytes, _ = await gets_of(1)
    gets, read_bytes, reader = await gets_of(5)
    assert read_bytes == one_bytes  # no block came twice
    assert gets <= one_gets + 5  # neighbours are grouped a little differently, who comes first being chance
    assert gets < 40  # of 120 blocks
    assert reader.merged_blocks == 120 - gets
    assert reader.missed_blocks + reader.read_ahead_blocks == 120
    if not stagger_s:
        assert reader.joined_blocks > 100


async def test_readers_in_step_read_ahead_as_far_as_one(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 2000)})
    for offset in range(0, 1000, 10):
        await asyncio.gather(*(world.read(offset, max_bytes=1000) for _ in range(5)))
        await settle(world)
    assert world.gets() < 30  # of up to 8 blocks each; without read-ahead it is 100


async def test_the_rate_bounds_what_readers_take_and_read_ahead_gives_way_to_reads() -> None:
    world = World()
    for base in range(0, 4000, 1000):
        await upload(world.store, world.metadata, {1: payloads(base, base + 1000)})
    await world.read(0, max_bytes=1)
    world.reader.budget.limit(400_000)
    loop = asyncio.get_running_loop()
    began, before = loop.time(), world.store.bytes_read

    async def follow(offset: int) -> None:
        while loop.time() < began + 0.5:
            offset = (await world.read(offset, max_bytes=4000))[-1] + 1

    await asyncio.gather(*(follow(offset) for offset in range(0, 4000, 500)))
    took_s = loop.time() - began
    # A tenth of a second ahead of the rate, and the last GET of each reader, which need not be paid for yet.
    assert world.store.bytes_read - before <= 400_000 * (took_s + 0.1) + 8 * KIB * 9
    assert world.reader.budget.throttled_s > 0
    await world.reader.close()


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


async def settle(world: World) -> None:
    """Let read-ahead come to its end."""
    while world.reader._tasks:
        await asyncio.sleep(0)


async def test_read_ahead_grows_with_sequential_reads_and_saves_requests(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 2000)})
    requests: list[int] = []
    for offset in range(0, 2000, 10):
        assert await world.read(offset, max_bytes=1000) == [*range(offset, offset + 10)]
        await settle(world)
        requests.append(world.gets())
    assert requests[0] == 1
    assert requests[-1] < 50  # of up to 8 blocks each, where 200 had been needed
    assert world.reader.cache.unused_evictions == 0


async def test_readers_that_jump_do_not_read_ahead(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 2000)})
    await world.read(0, max_bytes=1000)
    before = world.store.bytes_read
    for offset in random.Random(2).sample(range(10, 2000, 10), 20):
        await world.read(offset, max_bytes=1000)
        await settle(world)
    assert world.store.bytes_read == before + 20_000


async def test_readers_whose_windows_do_not_fit_together_settle_on_smaller_ones() -> None:
    world = World(dataclasses.replace(SMALL, memory_bytes=32 * KIB))
    await upload(world.store, world.metadata, {1: payloads(0, 4000)})
    await world.read(0, max_bytes=1)
    gets, read_bytes = world.gets(), world.store.bytes_read
    readers = [0, 1000, 2000, 3000]
    for _ in range(60):
        for number, offset in enumerate(readers):
            await world.read(offset, max_bytes=1000)
            readers[number] = offset + 10
            await settle(world)
    assert world.gets() - gets < 160  # fewer than the 240 blocks: they do read ahead
    # And hardly any of it in vain: at the end some lies ahead of them, as much as there is memory.
    assert world.store.bytes_read - read_bytes < 240_000 + 32 * KIB
    await world.reader.close()


async def test_read_ahead_that_is_evicted_before_use_shrinks() -> None:
    world = World(dataclasses.replace(SMALL, memory_bytes=32 * KIB))
    await upload(world.store, world.metadata, {1: payloads(0, 4000)})
    for offset in range(0, 100, 10):
        await world.read(offset, max_bytes=1000)
        await settle(world)
    sequence = world.reader._sequences.at(STREAM, 100)
    window = sequence.window_bytes
    assert window > 0
    held = [await world.reader.read(STREAM, offset, END, 4000) for offset in range(1000, 4000, 500)]
    assert world.reader.cache.unused_evictions > 0
    assert sequence.window_bytes == window // 2
    del held
    await world.reader.close()


async def test_readers_that_hold_their_data_while_they_want_more_do_not_wait_for_ever() -> None:
    world = World(dataclasses.replace(SMALL, memory_bytes=32 * KIB, memory_wait_ms=30))
    await upload(world.store, world.metadata, {1: payloads(0, 1000)})

    async def hoard(offset: int) -> str:
        held = []
        for at in range(offset, offset + 200, 40):
            try:
                held.append(await world.reader.read(STREAM, at, END, 4000))
            except NoMemory as error:
                return str(error)
        return "all"

    results = await asyncio.gather(*(hoard(offset) for offset in range(0, 800, 200)))
    assert any("responses that are being sent hold" in result for result in results)
    assert offsets_of(await world.reader.read(STREAM, 0, END, 4000)) == [*range(40)]
    await world.reader.close()


async def test_who_must_not_wait_for_memory_is_told_at_once() -> None:
    world = World(dataclasses.replace(SMALL, memory_bytes=32 * KIB, memory_wait_ms=600_000))
    await upload(world.store, world.metadata, {1: payloads(0, 1000)})
    held = [await world.reader.read(STREAM, 0, END, 4000)]

    async def hoard() -> None:
        for at in range(100, 1000, 100):
            held.append(await world.reader.read(STREAM, at, END, 4000, wait_for_memory=False))

    with pytest.raises(NoMemory):
        await hoard()
    held.clear()
    assert offsets_of(await world.reader.read(STREAM, 500, END, 100, wait_for_memory=False))[0] == 500
    await world.reader.close()


async def test_memory_stays_bounded_with_many_readers_and_held_responses() -> None:
    settings = dataclasses.replace(SMALL, memory_bytes=64 * KIB, read_ahead_max_bytes=8 * KIB)
    world = World(settings)
    for base in range(0, 3000, 300):
        await upload(world.store, world.metadata, {1: payloads(base, base + 300)})
    world.store.faults = Faults(latency_ms=0.3)
    rng = random.Random(6)
    peak = 0

    async def consume(offset: int) -> None:
        nonlocal peak
        while offset < 3000:
            buffers = await world.reader.read(STREAM, offset, 3000, rng.choice([500, 2000, 8000]))
            found = offsets_of(buffers)
            assert found == [*range(offset, found[-1] + 1)]
            offset = found[-1] + 1
            peak = max(peak, world.reader.cache.used_bytes)
            await asyncio.sleep(rng.random() / 2000)  # the response is being sent: its memory is held
            del buffers

    await asyncio.wait_for(asyncio.gather(*(consume(rng.randrange(0, 2500)) for _ in range(20))), 30)
    assert peak <= settings.memory_bytes
    await world.reader.close()
    assert world.reader.cache.used_bytes == 0


async def test_readers_come_to_an_end_under_faults() -> None:
    world = World()
    for base in range(0, 1000, 100):
        await upload(world.store, world.metadata, {1: payloads(base, base + 100)})
    world.store.faults = Faults(latency_ms=0.1, refused=0.1, lost_reply=0.05, flipped=0.02)
    offset = failures = 0
    while offset < 1000:
        try:
            found = offsets_of(await world.reader.read(STREAM, offset, END, 3000))
        except Unavailable:
            failures += 1
            continue
        except ObjectCorrupt:
            continue  # flipped twice in a row
        assert found == [*range(offset, found[-1] + 1)]
        offset = found[-1] + 1
    assert failures > 0
    await world.reader.close()


async def test_closing_gives_up_what_is_under_way() -> None:
    world = World()
    await upload(world.store, world.metadata, {1: payloads(0, 10)})
    world.store.faults = Faults(latency_ms=10_000)
    reading = asyncio.create_task(world.read(0))
    await asyncio.sleep(0.01)
    await world.reader.close()
    with pytest.raises(Unavailable, match="closed"):
        await reading
    with pytest.raises(Unavailable, match="closed"):
        await world.read(0)


async def test_with_a_rate_gets_are_small_and_do_not_come_in_bursts() -> None:
    world = World(dataclasses.replace(NO_READ_AHEAD, max_get_size_bytes=64 * KIB))
    await upload(world.store, world.metadata, {1: payloads(0, 200)})
    assert await world.read(0, max_bytes=10_000) == [*range(100)]
    assert world.gets() == 1
    world.reader.budget.limit(100_000)  # 4,000 bytes in a 25th of a second
    assert await world.read(100, max_bytes=10_000) == [*range(100, 200)]
    assert world.gets() == 1 + 3
    await world.reader.close()


async def test_nothing_is_read_ahead_while_the_rate_holds_somebody_back(world: World) -> None:
    await upload(world.store, world.metadata, {1: payloads(0, 2000)})
    for offset in range(0, 50, 10):
        await world.read(offset, max_bytes=1000)
        await settle(world)
    ahead = world.reader.read_ahead_blocks
    world.reader.budget.limit(1)
    assert await world.read(1500, max_bytes=1000) == [*range(1500, 1510)]  # the first is let go
    behind = asyncio.create_task(world.read(1700, max_bytes=1000))
    while not world.reader.budget.is_throttled:
        await asyncio.sleep(0)
    for offset in range(50, 130, 10):
        assert await world.read(offset, max_bytes=1000) == [*range(offset, offset + 10)]  # read ahead before
        await asyncio.sleep(0.001)
    assert world.reader.read_ahead_blocks == ahead
    behind.cancel()
