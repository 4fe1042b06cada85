"""The log cache: reads of whole payloads across blocks, the high watermark as a wall, eviction in order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3stream.log_cache import BlockState, CacheBlock, StreamTail
from s3stream.metadata import StreamId
from wal.arena import Arena

STREAM = StreamId(7)


class Cache:
    """A tail filled by hand: payload i of `size` bytes holds `count` offsets and repeats one byte."""

    def __init__(self) -> None:
        self.arena = Arena(1 << 16)
        self.tail = StreamTail()
        self.next_offset = 0
        self.model: list[tuple[int, int, bytes]] = []

    def block(self, payloads: list[tuple[int, int]]) -> CacheBlock:
        block = CacheBlock(self.arena.head, 0, lambda: None)
        part = self.tail.open_part(STREAM, block, self.next_offset)
        for size, count in payloads:
            position = self.arena.reserve(size)
            assert position is not None
            content = bytes([len(self.model) % 251]) * size
            self.arena.slice(position, size)[:] = content
            self.model.append((self.next_offset, self.next_offset + count, content))
            self.next_offset += count
            part.add(self.next_offset, position % self.arena.size_bytes, size, -1)
        block.end_position = self.arena.head
        block.state = BlockState.SEALED
        return block

    def read(self, offset: int, end: int, max_bytes: int) -> list[bytes] | None:
        found = self.tail.read(self.arena, offset, end, max_bytes)
        return None if found is None else [bytes(payload) for payload in found.payloads]

    def expected(self, offset: int, end: int, max_bytes: int) -> list[bytes]:
        found: list[bytes] = []
        for _, last, content in self.model:
            if last <= offset:
                continue
            if last > end or (found and sum(map(len, found)) + len(content) > max_bytes):
                break
            found.append(content)
        return found


def test_a_read_starts_with_the_payload_that_holds_the_offset() -> None:
    cache = Cache()
    cache.block([(10, 5), (20, 5)])
    assert cache.read(3, 10, 1000) == [b"\x00" * 10, b"\x01" * 20]
    assert cache.read(5, 10, 1000) == [b"\x01" * 20]


def test_the_first_payload_comes_even_where_it_is_larger_than_asked() -> None:
    cache = Cache()
    cache.block([(500, 1), (500, 1)])
    assert cache.read(0, 2, 1) == [b"\x00" * 500]


def test_nothing_past_the_high_watermark_is_seen() -> None:
    cache = Cache()
    cache.block([(10, 5), (10, 5)])
    assert cache.read(0, 5, 1000) == [b"\x00" * 10]
    assert cache.read(0, 9, 1000) == [b"\x00" * 10]  # half a payload is none
    assert cache.read(5, 5, 1000) == []


def test_below_the_cache_it_says_so() -> None:
    cache = Cache()
    first = cache.block([(10, 5)])
    cache.block([(10, 5)])
    cache.tail.evict(first.parts[STREAM][1])
    assert cache.read(4, 10, 1000) is None
    assert cache.read(5, 10, 1000) == [b"\x01" * 10]
    assert cache.tail.base_offset == 5


def test_parts_leave_in_order_only() -> None:
    cache = Cache()
    cache.block([(10, 5)])
    second = cache.block([(10, 5)])
    with pytest.raises(AssertionError):
        cache.tail.evict(second.parts[STREAM][1])


def test_pins_count_per_holder() -> None:
    class Holder:
        def revoke(self) -> None:
            raise AssertionError("nobody asked for memory")

    freed: list[bool] = []
    block = CacheBlock(0, 0, lambda: freed.append(True))
    holder = Holder()
    block.pin(holder)
    block.pin(holder)
    block.unpin(holder)
    assert block.pins
    assert not freed
    block.unpin(holder)
    assert not block.pins
    assert freed


@given(st.data())
def test_reads_agree_with_a_model(data: Any) -> None:
    cache = Cache()
    sizes = st.tuples(st.integers(1, 300), st.integers(1, 9))
    for payloads in data.draw(st.lists(st.lists(sizes, min_size=1, max_size=8), min_size=1, max_size=5)):
        cache.block(payloads)
    offset = data.draw(st.integers(0, cache.next_offset))
    end = data.draw(st.integers(offset, cache.next_offset))
    max_bytes = data.draw(st.integers(0, 2000))
    assert cache.read(offset, end, max_bytes) == cache.expected(offset, end, max_bytes)


def test_blocks_know_the_crcs_that_were_known_at_the_append() -> None:
    cache = Cache()
    block = cache.block([(20 << 10, 1), (30 << 10, 1)])
    part = block.parts[STREAM][1]
    part.crcs[part.positions[1]] = 0xC0FFEE
    (whole,) = part.blocks(cache.arena, 1 << 20)
    assert list(whole.part_crcs) == [None, 0xC0FFEE]
    first, second = part.blocks(cache.arena, 1)
    assert (list(first.part_crcs), list(second.part_crcs)) == ([None], [0xC0FFEE])


def test_joined_payloads_have_no_crc_of_their_own() -> None:
    cache = Cache()
    part = cache.block([(10, 1), (10, 1)]).parts[STREAM][1]
    part.crcs[part.positions[0]] = 1
    (whole,) = part.blocks(cache.arena, 1 << 20)
    assert len(whole.parts) == 1
    assert list(whole.part_crcs) == []
