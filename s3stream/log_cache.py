"""The log cache: what was appended lately, indexed by stream, over memory in the arena.

Always true:
- Blocks are contiguous stretches of the arena in append order; they are uploaded, committed and evicted in that order.
  So pinning one block keeps every later one as well.
- A block is OPEN (takes appends), SEALED (takes none, is being uploaded), then COMMITTED (its data is in objects that the metadata
  references). Only a committed block that nobody pins is evicted, and its memory is given back to the arena.
- The parts of a stream are in offset order without gaps: what the cache holds of a stream is its tail.
- Twenty-eight bytes of index a payload, in arrays: millions of tiny payloads must not cost more than their bytes.
"""

from __future__ import annotations

import enum
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from s3stream.metadata import NewObject, StreamId
from s3stream.object_writer import DataBlock, is_joined, join_small
from s3stream.objectstore import Buffer
from wal.arena import Arena

__all__ = [
    "MAX_PAYLOADS",
    "BlockPart",
    "BlockState",
    "CacheBlock",
    "PinHolder",
    "StreamTail",
    "TailRead",
]


class BlockState(enum.Enum):
    """Life of a block."""

    OPEN = 0
    SEALED = 1
    COMMITTED = 2


class PinHolder(Protocol):
    """Somebody who holds views into the arena for longer than one callback, such as a slow socket."""

    def revoke(self) -> None:
        """The memory is needed: let go of it soon (give up the connection), then unpin. Must not unpin at once."""


class BlockPart:
    """The payloads of one stream within one block."""

    __slots__ = (
        "base_offset",
        "block",
        "crc32c",
        "crcs",
        "end_offset",
        "ends",
        "max_timestamp_ms",
        "positions",
        "size_bytes",
        "sizes",
        "state",
        "timestamps_ms",
    )

    def __init__(self, block: CacheBlock, base_offset: int) -> None:
        self.block = block
        self.base_offset = base_offset
        self.end_offset = base_offset
        """Exclusive."""
        self.ends = array("q")
        """Exclusive end offset of each payload."""
        self.positions = array("q")
        """Where each payload starts in the arena's memory."""
        self.sizes = array("i")
        self.timestamps_ms = array("q")
        """Largest record timestamp of each payload."""
        self.crcs: dict[int, int] = {}
        """CRC-32C of payloads, by position, where it was known when they were appended."""
        self.size_bytes = 0
        self.max_timestamp_ms = -1
        self.state: bytes | None = None
        """State of the stream as of `end_offset`, taken when the block was sealed."""
        self.crc32c: int | None = None
        """Of all payloads, as they were uploaded."""

    def add(self, end_offset: int, position: int, size: int, max_timestamp_ms: int) -> None:
        """Index one more payload."""
        self.ends.append(end_offset)
        self.positions.append(position)
        self.sizes.append(size)
        self.timestamps_ms.append(max_timestamp_ms)
        self.end_offset = end_offset
        self.size_bytes += size
        if max_timestamp_ms > self.max_timestamp_ms:
            self.max_timestamp_ms = max_timestamp_ms

    def extend(
        self, end_offsets: list[int], positions: list[int], sizes: list[int], max_timestamps_ms: list[int]
    ) -> None:
        """Index many payloads, at least one, as `add` does one."""
        self.ends.fromlist(end_offsets)
        self.positions.fromlist(positions)
        self.sizes.fromlist(sizes)
        self.timestamps_ms.fromlist(max_timestamps_ms)
        self.end_offset = end_offsets[-1]
        self.size_bytes += sum(sizes)
        self.max_timestamp_ms = max(self.max_timestamp_ms, max(max_timestamps_ms))

    @classmethod
    def joined(cls, parts: Sequence[BlockPart]) -> BlockPart:
        """Parts of a stream that follow each other, at least one, as one, for reading only."""
        made = cls(parts[0].block, parts[0].base_offset)
        for part in parts:
            made.ends += part.ends
            made.positions += part.positions
            made.sizes += part.sizes
            made.timestamps_ms += part.timestamps_ms
            made.crcs.update(part.crcs)
            made.size_bytes += part.size_bytes
            made.max_timestamp_ms = max(made.max_timestamp_ms, part.max_timestamp_ms)
        made.end_offset = parts[-1].end_offset
        return made

    def blocks(self, arena: Arena, block_size_bytes: int) -> Iterator[DataBlock]:
        """The payloads as data blocks of an object, each made when it is asked for."""
        view = arena.view
        positions, sizes, ends = self.positions, self.sizes, self.ends
        first = 0
        base_offset = self.base_offset
        count = len(ends)
        while first < count:
            size = sizes[first]
            last = first + 1
            while last < count and size + sizes[last] <= block_size_bytes:
                size += sizes[last]
                last += 1
            parts: list[Buffer] = [
                view[at : at + n] for at, n in zip(positions[first:last], sizes[first:last], strict=True)
            ]
            end_offset = ends[last - 1]
            known = [self.crcs.get(at) for at in positions[first:last]] if self.crcs else []
            joined = join_small(parts, size)
            # What was appended here is dense: as many records as offsets.
            yield DataBlock(
                joined,
                size,
                base_offset,
                end_offset,
                end_offset - base_offset,
                max(self.timestamps_ms[first:last]),
                known if len(joined) == len(known) else [],
            )
            first, base_offset = last, end_offset


class CacheBlock:
    """A contiguous stretch of the arena and what lies in it."""

    __slots__ = (
        "_on_unpinned",
        "end_position",
        "objects",
        "opened_at",
        "parts",
        "pins",
        "size_bytes",
        "start_position",
        "state",
        "wal_end_offset",
    )

    def __init__(self, start_position: int, wal_end_offset: int, on_unpinned: Callable[[], None]) -> None:
        self._on_unpinned = on_unpinned
        self.start_position = start_position
        self.end_position = start_position
        """Exclusive; set when the block is sealed."""
        self.wal_end_offset = wal_end_offset
        """Exclusive log offset of its last frame: once that is durable the block may be uploaded."""
        self.opened_at: float | None = None
        """Loop time of its first append."""
        self.size_bytes = 0
        """Payload bytes."""
        self.state = BlockState.OPEN
        self.parts: dict[StreamId, tuple[StreamTail, BlockPart]] = {}
        self.pins: dict[PinHolder, int] = {}
        self.objects: tuple[NewObject, ...] = ()
        """That hold it, as they were committed, once it is; without what the commit skipped."""

    @property
    def copied_bytes(self) -> int:
        """What an upload of this block copies, because it lies in small payloads."""
        return sum(part.size_bytes for _, part in self.parts.values() if is_joined(len(part.sizes), part.size_bytes))

    def pin(self, holder: PinHolder) -> None:
        """Keep this block and every later one in memory until `unpin`."""
        self.pins[holder] = self.pins.get(holder, 0) + 1

    def unpin(self, holder: PinHolder) -> None:
        """Undo one `pin`; with the last one, whoever waits for the memory looks again."""
        count = self.pins[holder] - 1
        if count:
            self.pins[holder] = count
        else:
            del self.pins[holder]
            if not self.pins:
                self._on_unpinned()


MAX_PAYLOADS = 1 << 16
"""Payloads that one read returns at most. Each is a view of some 200 bytes, which for the smallest batches is more than they
hold: 64 MiB of them would take 150 MB more."""


class TailRead(NamedTuple):
    """Payloads found in the log cache."""

    payloads: list[memoryview]
    """Views into the arena: use them within this callback, or pin `block` while they are out."""
    size_bytes: int
    block: CacheBlock | None
    """The oldest block touched; None where nothing was found."""


class StreamTail:
    """What the log cache holds of one stream."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: list[BlockPart] = []

    @property
    def base_offset(self) -> int | None:
        """First offset in the cache; None where it holds nothing of the stream."""
        return self.parts[0].base_offset if self.parts else None

    def open_part(self, stream_id: StreamId, block: CacheBlock, base_offset: int) -> BlockPart:
        """Start the stream's part in the open block."""
        assert not self.parts or self.parts[-1].end_offset == base_offset, "a stream's tail has no gaps"
        part = BlockPart(block, base_offset)
        self.parts.append(part)
        block.parts[stream_id] = (self, part)
        return part

    def timestamp_ms(self, offset: int) -> int | None:
        """Largest timestamp of the payload that holds an offset; None where the cache does not hold it."""
        for part in reversed(self.parts):
            if part.base_offset <= offset:
                at = bisect_right(part.ends, offset)
                return part.timestamps_ms[at] if at < len(part.ends) else None
        return None

    def evict(self, part: BlockPart) -> None:
        """Forget the oldest part."""
        assert self.parts[0] is part, "parts are evicted in order"
        del self.parts[0]

    def read(
        self, arena: Arena, offset: int, end_offset: int, max_bytes: int, max_payloads: int = MAX_PAYLOADS
    ) -> TailRead | None:
        """Whole payloads from the one that holds `offset` on, below `end_offset`, at least one, about `max_bytes`.

        None where the cache does not reach back to `offset`.
        """
        parts = self.parts
        if not parts or offset < parts[0].base_offset:
            return None
        payloads: list[memoryview] = []
        if offset >= end_offset:
            return TailRead(payloads, 0, None)
        at = len(parts) - 1
        while parts[at].base_offset > offset:
            at -= 1
        view = arena.view
        first_block = parts[at].block
        total = 0
        while at < len(parts):
            part = parts[at]
            ends = part.ends
            positions = part.positions
            sizes = part.sizes
            first = bisect_right(ends, offset)
            # Only payloads wholly below `end_offset` (the high watermark) may be seen.
            last = len(ends) if part.end_offset <= end_offset else bisect_right(ends, end_offset)
            room = max_payloads - len(payloads)
            if last - first > room:
                last = first + room
            for i in range(first, last):
                size = sizes[i]
                if total + size > max_bytes and payloads:
                    return TailRead(payloads, total, first_block)
                position = positions[i]
                payloads.append(view[position : position + size])
                total += size
            if last < len(ends):
                break
            offset = part.end_offset
            at += 1
        return TailRead(payloads, total, first_block if payloads else None)

    def positions(self, offset: int, end_offset: int, max_count: int) -> tuple[Sequence[int], int] | None:
        """Where payloads start in the arena's memory, and the offset behind the last of them: from the one that holds `offset`
        on, below `end_offset`, at least one, all of one block.

        None where the cache does not reach back to `offset`, or holds nothing from there on.
        """
        parts = self.parts
        if not parts or not parts[0].base_offset <= offset < parts[-1].end_offset:
            return None
        part = next(part for part in parts if offset < part.end_offset)
        first = bisect_right(part.ends, offset)
        last = min(bisect_right(part.ends, end_offset), first + max_count)
        return (part.positions[first:last], part.ends[last - 1]) if first < last else None

    def size_between(self, offset: int, end_offset: int) -> int:
        """Bytes of the payloads that are cached and end above `offset`, but not above `end_offset`."""
        total = 0
        for part in reversed(self.parts):
            if part.base_offset < end_offset:
                ends = part.ends
                total += sum(part.sizes[bisect_right(ends, offset) : bisect_right(ends, end_offset)])
            if part.base_offset <= offset:
                break
        return total
