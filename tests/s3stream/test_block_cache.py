"""The memory of catch-up reads stays within its bound, whoever holds on to what."""

from __future__ import annotations

import asyncio
import random

import pytest

from s3stream.block_cache import Block, BlockCache, BlockMemory
from s3stream.errors import ObjectCorrupt
from s3stream.metadata import ObjectId, StreamId
from s3stream.object_format import IndexEntry
from tests.s3stream.doubles import PlainPayloads, offsets_of, payloads

BLOCK_SIZE = 1000


def entry(position: int, base_offset: int = 0, count: int = 10) -> IndexEntry:
    return IndexEntry(1, 0, StreamId(1), base_offset, base_offset + count, 0, position, BLOCK_SIZE, count, 0)


def put(cache: BlockCache, number: int, evicted: list[int] | None = None) -> Block | None:
    """Reserve and add block `number`; None where there is no room."""
    if not cache.try_reserve(BLOCK_SIZE):
        return None
    on_unused = None if evicted is None else lambda: evicted.append(number)
    return cache.add(ObjectId(1), entry(number), BlockMemory(BLOCK_SIZE), on_unused)


def read(cache: BlockCache, number: int, offset: int = 0) -> None:
    """A reader finds block `number` and uses it from `offset` on."""
    block = cache.get((ObjectId(1), number))
    if block is not None:
        cache.mark_read(block, offset)


def cached(cache: BlockCache) -> list[int]:
    return [number for number in range(100) if (ObjectId(1), number) in cache]


def test_the_least_recently_used_goes_first() -> None:
    cache = BlockCache(4 * BLOCK_SIZE)
    for number in range(4):
        put(cache, number)
        read(cache, number)
    read(cache, 0, 5)
    put(cache, 4)
    assert cached(cache) == [0, 2, 3, 4]
    assert cache.used_bytes == cache.cached_bytes == 4 * BLOCK_SIZE


def test_a_view_keeps_its_block_counted_after_eviction() -> None:
    cache = BlockCache(2 * BLOCK_SIZE)
    held = put(cache, 0)
    assert held is not None
    view = held.data[10:20]
    del held
    put(cache, 1)
    put(cache, 2)
    assert cached(cache) == [2]
    assert (cache.used_bytes, cache.cached_bytes) == (2 * BLOCK_SIZE, BLOCK_SIZE)
    view.release()
    assert cache.used_bytes == BLOCK_SIZE
    put(cache, 3)
    assert cached(cache) == [2, 3]


def test_one_long_scan_does_not_evict_what_is_read_again_and_again() -> None:
    cache = BlockCache(8 * BLOCK_SIZE)
    for number in range(4):
        put(cache, number)
        for _ in range(2):
            read(cache, number)
    for number in range(10, 90):
        put(cache, number)
        read(cache, number, 0)
    assert cached(cache) == [0, 1, 2, 3, 86, 87, 88, 89]


def test_what_was_popular_once_ages_out() -> None:
    cache = BlockCache(4 * BLOCK_SIZE)
    for number in range(40):
        put(cache, number)
        for _ in range(2):
            read(cache, number, 0)
    assert cached(cache) == [36, 37, 38, 39]


def test_what_was_read_goes_before_what_was_read_ahead_and_waste_is_reported() -> None:
    cache = BlockCache(2 * BLOCK_SIZE)
    evicted: list[int] = []
    put(cache, 0, evicted)
    put(cache, 1, evicted)
    read(cache, 1, 3)
    put(cache, 2, evicted)
    assert (cached(cache), evicted) == ([0, 2], [])
    put(cache, 3)
    assert (cached(cache), evicted) == ([2, 3], [0])
    assert cache.unused_evictions == 1


def test_reading_ahead_pushes_out_only_what_was_read() -> None:
    cache = BlockCache(2 * BLOCK_SIZE)
    put(cache, 0)
    put(cache, 1)
    assert not cache.try_reserve(BLOCK_SIZE, ahead=True)
    read(cache, 1)
    assert cache.try_reserve(BLOCK_SIZE, ahead=True)
    assert cached(cache) == [0]


async def test_reservations_are_granted_in_order() -> None:
    cache = BlockCache(10 * BLOCK_SIZE)
    assert cache.try_reserve(9 * BLOCK_SIZE)
    granted: list[str] = []

    async def reserve(name: str, size: int) -> None:
        await cache.reserve(size)
        granted.append(name)

    tasks = [asyncio.create_task(reserve("large", 5 * BLOCK_SIZE)), asyncio.create_task(reserve("small", BLOCK_SIZE))]
    await asyncio.sleep(0)
    assert not cache.try_reserve(BLOCK_SIZE)  # it would fit, but others were first
    await asyncio.sleep(0)
    assert granted == []
    cache.release(4 * BLOCK_SIZE)
    await tasks[0]
    assert (granted, cache.used_bytes) == (["large"], 10 * BLOCK_SIZE)
    cache.release(5 * BLOCK_SIZE)
    await tasks[1]
    assert cache.used_bytes == 6 * BLOCK_SIZE


async def test_a_waiter_that_gives_up_leaves_nothing_reserved() -> None:
    cache = BlockCache(BLOCK_SIZE)
    assert cache.try_reserve(BLOCK_SIZE)
    waiting = asyncio.create_task(cache.reserve(BLOCK_SIZE))
    other = asyncio.create_task(cache.reserve(BLOCK_SIZE))
    await asyncio.sleep(0)
    waiting.cancel()
    cache.release(BLOCK_SIZE)  # granted in the same moment, to whoever still wants it
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await other
    assert cache.used_bytes == BLOCK_SIZE
    cache.release(BLOCK_SIZE)
    assert cache.used_bytes == 0


async def test_a_grant_that_meets_a_cancellation_is_given_back() -> None:
    cache = BlockCache(BLOCK_SIZE)
    assert cache.try_reserve(BLOCK_SIZE)
    waiting = asyncio.create_task(cache.reserve(BLOCK_SIZE))
    await asyncio.sleep(0)
    cache.release(BLOCK_SIZE)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cache.used_bytes == 0


def test_a_block_larger_than_the_bound_is_let_in_alone() -> None:
    cache = BlockCache(BLOCK_SIZE // 2)
    block = put(cache, 0)
    assert block is not None
    assert put(cache, 1) is None  # as long as the first is held
    del block
    assert put(cache, 1) is not None


async def test_random_use_never_passes_the_bound_and_all_comes_back() -> None:
    rng = random.Random(4)
    cache = BlockCache(20 * BLOCK_SIZE)
    held: list[Block] = []
    for number in range(3000):
        action = rng.random()
        if action < 0.4:
            block = put(cache, number)
            if block is not None and rng.random() < 0.5:
                held.append(block)
        elif action < 0.6 and held:
            held.pop(rng.randrange(len(held)))
        elif action < 0.9:
            read(cache, number - rng.randrange(30), rng.choice([0, 5]))
        elif action < 0.91:
            cache.clear()
        assert cache.used_bytes <= cache.capacity_bytes
        assert cache.cached_bytes <= cache.used_bytes
    del block
    held.clear()
    cache.clear()
    assert (cache.used_bytes, cache.cached_bytes) == (0, 0)


def block_of(base_offset: int, end_offset: int, *, count: int = 1) -> Block:
    data = b"".join(each.data for each in payloads(base_offset, end_offset, count=count))
    described = IndexEntry(1, 0, StreamId(1), base_offset, end_offset, 0, 0, len(data), end_offset - base_offset, 0)
    return Block(object_id=ObjectId(1), entry=described, data=memoryview(data), on_unused=None)


@pytest.mark.parametrize(
    ("offset", "end_offset", "max_bytes", "expected"),
    [
        (10, 99, 9999, [10, 15, 20, 25]),  # all of it
        (10, 99, 250, [10, 15]),
        (10, 99, 200, [10, 15]),
        (10, 99, 1, [10]),  # at least one
        (14, 99, 200, [10, 15]),  # in the middle of a payload: from that payload on
        (15, 99, 9999, [15, 20, 25]),
        (10, 25, 9999, [10, 15, 20]),
        (29, 30, 9999, [25]),
        (0, 99, 9999, [10, 15, 20, 25]),  # below: from the first on
    ],
)
def test_slices_are_whole_payloads(offset: int, end_offset: int, max_bytes: int, expected: list[int]) -> None:
    block = block_of(10, 30, count=5)
    part = block.slice(PlainPayloads(), offset, end_offset, max_bytes, at_least_one=True)
    assert part is not None
    data, next_offset = part
    assert offsets_of([data]) == expected
    assert next_offset == expected[-1] + 5


@pytest.mark.parametrize(("offset", "end_offset", "max_bytes"), [(10, 30, 99), (30, 40, 999), (10, 10, 999)])
def test_no_payload_fits(offset: int, end_offset: int, max_bytes: int) -> None:
    assert block_of(10, 30, count=5).slice(PlainPayloads(), offset, end_offset, max_bytes, at_least_one=False) is None


@pytest.mark.parametrize("cut", [1, 50, 100, 150])
def test_a_block_that_is_no_row_of_payloads_is_corrupt(cut: int) -> None:
    block = block_of(10, 30, count=5)
    block.data = block.data[:-cut]
    with pytest.raises(ObjectCorrupt, match="object 1, stream 1, offsets 10 to 30"):
        block.slice(PlainPayloads(), 15, 30, 9999, at_least_one=True)
