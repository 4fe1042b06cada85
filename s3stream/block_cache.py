"""Memory for blocks read from objects: one bound for those on their way, cached, and still in use by responses.

Always true:
- `used_bytes` counts every byte reserved and every block whose memory is alive, wherever the last view of it is held:
  a response that is being sent keeps its block counted. It passes `capacity_bytes` only for one block that is larger by itself.
- Reservations are granted in the order they were asked for. Whoever holds blocks while it waits for one must bound
  that wait, or readers could wait for each other for ever.
- Blocks that were read go first (the least recent of them), then those not read yet, then those read from their start
  a second time: one long scan does not push out what is popular. Reading ahead pushes out only what was read.
- Whoever reads ahead is told when a block it asked for is evicted before use.

One event loop's property; no call blocks.
"""

from __future__ import annotations

import asyncio
import weakref
from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from s3stream.errors import ObjectCorrupt
from s3stream.metadata import ObjectId
from s3stream.object_format import IndexEntry
from s3stream.payload import PayloadBounds, PayloadFormat

__all__ = ["Block", "BlockCache", "BlockKey", "BlockMemory"]

BlockKey = tuple[ObjectId, int]
"""Object and position of a block."""

_PROTECTED_SHARE = 0.75
"""Most of the capacity that blocks read twice may take from those read once."""


class BlockMemory(bytearray):
    """A block's bytes; weakly referable, which `bytes` is not, so that the end of its last view is noticed."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True, kw_only=True, eq=False)
class Block:
    """A checked data block."""

    object_id: ObjectId
    entry: IndexEntry
    data: memoryview
    """Read-only. Whoever holds it, or a part of it, keeps it counted."""
    on_unused: Callable[[], None] | None
    """Called when the block is evicted before it was read; None once it was, and for a block that nobody read ahead."""
    starts_read: int = 0
    _positions: array[int] = field(default_factory=lambda: array("I"))
    """Where payloads start, and where the last one ends; filled when a reader first needs a part of the block."""
    _ends: array[int] = field(default_factory=lambda: array("q"))
    """End offsets of the payloads."""

    @property
    def key(self) -> BlockKey:
        """What the block is cached under."""
        return self.object_id, self.entry.position

    def slice(
        self, payload_format: PayloadFormat, offset: int, end_offset: int, max_bytes: int, *, at_least_one: bool
    ) -> tuple[memoryview, int] | None:
        """Whole payloads from the first that ends past `offset`, up to `end_offset` and `max_bytes`, and where they end."""
        entry = self.entry
        if offset <= entry.base_offset and entry.end_offset <= end_offset and entry.size_bytes <= max_bytes:
            return self.data, entry.end_offset
        positions, ends = self._walked(payload_format)
        first = bisect_right(ends, offset)
        stop = bisect_right(positions, positions[first] + max_bytes) - 1 if first < len(ends) else first
        stop = min(stop, bisect_right(ends, end_offset))
        if stop <= first:
            if not at_least_one or first >= len(ends) or ends[first] > end_offset:
                return None
            stop = first + 1
        return self.data[positions[first] : positions[stop]], ends[stop - 1]

    def first_payload(
        self, payload_format: PayloadFormat, wanted: Callable[[PayloadBounds], bool]
    ) -> memoryview | None:
        """The first payload whose bounds are `wanted`."""
        positions, _ = self._walked(payload_format)
        for number in range(len(positions) - 1):
            bounds = payload_format.bounds(self.data, positions[number])
            if wanted(bounds):
                return self.data[positions[number] : positions[number + 1]]
        return None

    def _walked(self, payload_format: PayloadFormat) -> tuple[array[int], array[int]]:
        positions, ends, entry = self._positions, self._ends, self.entry
        if positions:
            return positions, ends
        found_positions, found_ends = array("I", [0]), array("q")
        position, last_end = 0, entry.base_offset
        while position < entry.size_bytes:
            try:
                bounds = payload_format.bounds(self.data, position)
            except ValueError as error:
                raise ObjectCorrupt(f"{self}: no payload at byte {position} of the block: {error}") from error
            position += bounds.size_bytes
            if bounds.size_bytes <= 0 or bounds.base_offset < last_end or bounds.end_offset <= bounds.base_offset:
                raise ObjectCorrupt(f"{self}: {bounds} does not follow offset {last_end}")
            last_end = bounds.end_offset
            found_positions.append(position)
            found_ends.append(last_end)
        if position != entry.size_bytes or last_end != entry.end_offset:
            raise ObjectCorrupt(f"{self}: payloads end at offset {last_end}, byte {position}")
        positions.extend(found_positions)
        ends.extend(found_ends)
        return positions, ends

    def __str__(self) -> str:
        entry = self.entry
        return f"object {self.object_id}, stream {entry.stream_id}, offsets {entry.base_offset} to {entry.end_offset}"


class BlockCache:
    """Blocks by object and position, within one bound of memory."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.cached_bytes = 0
        """Of the blocks that can be found here."""
        self.unused_evictions = 0
        """Blocks that were read ahead in vain."""
        self._read: OrderedDict[BlockKey, Block] = OrderedDict()
        self._unread: OrderedDict[BlockKey, Block] = OrderedDict()
        self._protected: OrderedDict[BlockKey, Block] = OrderedDict()
        self._protected_bytes = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._granting = False

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._read or key in self._unread or key in self._protected

    def get(self, key: BlockKey) -> Block | None:
        """The block, if it is here."""
        return self._read.get(key) or self._unread.get(key) or self._protected.get(key)

    def mark_read(self, block: Block, offset: int) -> None:
        """A reader at `offset` uses the block (which may have been evicted since)."""
        key = block.key
        block.on_unused = None
        if offset <= block.entry.base_offset:
            block.starts_read += 1
        if self._protected.get(key) is block:
            self._protected.move_to_end(key)
        elif self._read.get(key) is block or self._unread.get(key) is block:
            self._read.pop(key, None)
            self._unread.pop(key, None)
            if block.starts_read < 2:
                self._read[key] = block
            else:
                self._protect(key, block)

    def try_reserve(self, size: int, *, ahead: bool = False) -> bool:
        """Take memory now, evicting what is cached if need be; False where others wait or too much is in use."""
        if self._waiters or not self._make_room(size, ahead=ahead):
            return False
        self.used_bytes += size
        return True

    async def reserve(self, size: int) -> None:
        """Wait for memory."""
        if self.try_reserve(size):
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (size, granted)
        self._waiters.append(waiter)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(size)
            else:
                self._waiters.remove(waiter)
                self._grant()  # the next one may want less
            raise

    def release(self, size: int) -> None:
        """Give memory back: a reservation, or (called by itself) that of a block whose last view is gone."""
        self.used_bytes -= size
        self._grant()

    def add(
        self, object_id: ObjectId, entry: IndexEntry, memory: BlockMemory, on_unused: Callable[[], None] | None
    ) -> Block:
        """Keep a checked block. Its memory was reserved; from now on it is counted until the last view of it is gone.

        Each block has memory of its own: in one for a whole response, a small view would keep all of it alive.
        """
        weakref.finalize(memory, self.release, len(memory)).atexit = False
        view = memoryview(memory).toreadonly()
        block = Block(object_id=object_id, entry=entry, data=view, on_unused=on_unused)
        assert block.key not in self, "a block is read by one request at a time"
        self._unread[block.key] = block
        self.cached_bytes += len(memory)
        return block

    def drop_object(self, object_id: ObjectId) -> None:
        """Forget the blocks of an object that is gone."""
        for key in [key for segment in self._segments() for key in segment if key[0] == object_id]:
            self._remove(key)

    def clear(self) -> None:
        """Forget all blocks."""
        for key in [key for segment in self._segments() for key in segment]:
            self._remove(key)

    def _segments(self) -> tuple[OrderedDict[BlockKey, Block], ...]:
        """In the order in which they are evicted."""
        return self._read, self._unread, self._protected

    def _protect(self, key: BlockKey, block: Block) -> None:
        self._protected[key] = block
        self._protected_bytes += len(block.data)
        while self._protected_bytes > self.capacity_bytes * _PROTECTED_SHARE:
            key, demoted = self._protected.popitem(last=False)
            self._protected_bytes -= len(demoted.data)
            demoted.starts_read = 0
            self._read[key] = demoted

    def _make_room(self, size: int, *, ahead: bool = False) -> bool:
        """Evict until `size` fits; True if it does, or if nothing else is in use."""
        while self.used_bytes and self.used_bytes + size > self.capacity_bytes:
            segment = self._read if ahead else self._read or self._unread or self._protected
            if not segment:
                return False
            block = self._remove(next(iter(segment)))
            if block.on_unused is not None:
                self.unused_evictions += 1
                block.on_unused()
            del block  # frees it, if this was the last reference
        return True

    def _remove(self, key: BlockKey) -> Block:
        block = self._read.pop(key, None) or self._unread.pop(key, None)
        if block is None:
            block = self._protected.pop(key)
            self._protected_bytes -= len(block.data)
        self.cached_bytes -= len(block.data)
        return block

    def _grant(self) -> None:
        if self._granting:
            return  # making room freed memory; the loop below goes on with it
        self._granting = True
        try:
            while self._waiters:
                size, granted = self._waiters[0]
                if granted.done() or not self._make_room(size):
                    return  # cancelled, and about to take itself off; or nothing left to evict
                self._waiters.popleft()
                self.used_bytes += size
                granted.set_result(None)
        finally:
            self._granting = False
