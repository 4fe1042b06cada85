"""Readers that want more than they may have: read-ahead, memory and the rate."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest

from s3stream.errors import NoMemory, ObjectCorrupt
from s3stream.memory import Faults
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import Unavailable
from tests.s3stream.doubles import (
    offsets_of,
    payloads,
    upload,
)
from tests.s3stream.reading import END, KIB, NO_READ_AHEAD, SMALL, STREAM, World


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
