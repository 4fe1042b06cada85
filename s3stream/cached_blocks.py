"""The blocks of a node's log cache in the order of the arena: one that takes appends, before it those that are sealed, the oldest first.

Always true:
- Blocks follow each other without a gap. They are sealed, committed and given back in that order.
- The state of a stream goes with its data: it is taken when a block is sealed, as of the end of what the block holds of it.
- Memory is given back only of a block that is committed and that nobody pins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from s3stream.errors import StreamFenced
from s3stream.log_cache import BlockPart, BlockState, CacheBlock
from s3stream.metadata import StreamId
from s3stream.object_writer import DataBlock, StreamSource
from s3stream.stream import Stream
from s3stream.unuploaded import UnuploadedRange, unuploaded_ranges
from wal.arena import Arena

__all__ = ["CachedBlocks"]

PINNABLE_SHARE: Final = 0.75
"""Of the arena: what a slow reader may keep from being given back, together with what is not uploaded yet."""


class CachedBlocks:
    """One engine's blocks."""

    def __init__(
        self,
        arena: Arena,
        streams: Mapping[StreamId, Stream],
        *,
        wal_offset: int,
        on_unpinned: Callable[[], None],
        on_evicted: Callable[[CacheBlock], None],
    ) -> None:
        """Begin with an empty block.

        Args:
            streams: Those that are open here, as they are at any time.
            wal_offset: Where the log begins that the blocks hold.
            on_unpinned: A block is held by nobody any more.
            on_evicted: A block is about to be given back.
        """
        self._arena = arena
        self._streams = streams
        self._on_unpinned = on_unpinned
        self._on_evicted = on_evicted
        self.open = CacheBlock(arena.head, wal_offset, on_unpinned)
        """The one that takes appends."""
        self._sealed: deque[CacheBlock] = deque()
        """Sealed and committed blocks that still hold memory, oldest first."""
        self._committed_position = arena.head
        """Everything below it in the arena is in objects."""

    @property
    def are_empty(self) -> bool:
        """Whether nothing was appended that is still here."""
        return not self.open.parts and not self._sealed

    # ---- appends ------------------------------------------------------------------------------------------------

    def part_of(self, stream: Stream, base_offset: int) -> BlockPart:
        """The part of a stream in the open block, begun at an offset if there is none yet."""
        part = stream.part
        return self.open_part(stream, base_offset) if part is None or part.block is not self.open else part

    def open_part(self, stream: Stream, base_offset: int) -> BlockPart:
        """Begin the part of a stream in the open block."""
        block = self.open
        if block.opened_at is None:
            block.opened_at = asyncio.get_running_loop().time()
        part = stream.part = stream.tail.open_part(stream.stream_id, block, base_offset)
        return part

    def seal(self) -> CacheBlock | None:
        """Seal the open block and begin another; None: it holds nothing."""
        block = self.open
        if not block.parts:
            return None
        for stream_id, (_, part) in block.parts.items():
            stream = self._streams.get(stream_id)
            # A stream that was opened anew has a part of its own: this one's state died with its epoch.
            if stream is not None and stream.part is part and stream.state_source is not None:
                part.state = stream.state_source()
        block.state = BlockState.SEALED
        block.end_position = self._arena.head
        self._sealed.append(block)
        self.open = CacheBlock(self._arena.head, block.wal_end_offset, self._on_unpinned)
        return block

    # ---- uploads ------------------------------------------------------------------------------------------------

    def sources(self, block: CacheBlock) -> list[StreamSource]:
        """What is to be put of a block: streams that were deleted or taken over meanwhile are left out."""
        found: list[StreamSource] = []
        for stream_id in sorted(block.parts):
            part = block.parts[stream_id][1]
            stream = self.appended_to(block, stream_id)
            if part.base_offset == part.end_offset and part.state is None:
                continue  # a state was asked for, and is in an object already
            if stream is not None and not isinstance(stream.closed, StreamFenced):
                found.append(_PartSource(self._arena, stream_id, stream.leader_epoch, part))
        return found

    def appended_to(self, block: CacheBlock, stream_id: StreamId) -> Stream | None:
        """The stream that a part of a block belongs to, if it is here still: a deleted one that was restored meanwhile is another."""
        stream = self._streams.get(stream_id)
        found = block.parts.get(stream_id)
        return stream if stream is not None and found is not None and stream.tail is found[0] else None

    def committed(self, block: CacheBlock) -> None:
        """Objects hold a block, and all before it."""
        self._committed_position = block.end_position

    # ---- memory -------------------------------------------------------------------------------------------------

    def may_pin(self, block: CacheBlock) -> bool:
        """Whether a slow reader may hold this block; False: copy what is read of it, its memory will be needed soon.

        Pinning keeps all later blocks as well. A quarter of the arena must remain for appends.
        """
        held_from = min(block.start_position, self._committed_position)
        return self._arena.head - held_from <= self._arena.size_bytes * PINNABLE_SHARE

    def evict_oldest(self) -> bool:
        """Give the oldest block's memory back, if it is committed and nobody holds it."""
        if not self._sealed:
            return False
        block = self._sealed[0]
        if block.state is not BlockState.COMMITTED or block.pins:
            return False
        self._sealed.popleft()
        self._on_evicted(block)
        for tail, part in block.parts.values():
            tail.evict(part)
        block.parts.clear()
        self._arena.release_to(block.end_position)
        return True

    def revoke_oldest(self) -> None:
        """Have those let go who hold the oldest block, if only they keep it."""
        if self._sealed and self._sealed[0].state is BlockState.COMMITTED:
            for holder in list(self._sealed[0].pins):
                holder.revoke()

    # ---- figures ------------------------------------------------------------------------------------------------

    @property
    def unuploaded_bytes(self) -> int:
        """Payload bytes that no committed object holds."""
        return sum(block.size_bytes for block in self._sealed if block.state is not BlockState.COMMITTED) + (
            self.open.size_bytes
        )

    def unuploaded(self) -> list[UnuploadedRange]:
        """By stream, what of that is acknowledged and belongs to streams that are this node's; walks all of it."""
        waiting = [block for block in self._sealed if block.state is not BlockState.COMMITTED]
        return unuploaded_ranges((*waiting, self.open), self._streams)

    @property
    def unuploaded_age_s(self) -> float:
        """How long the oldest of `unuploaded_bytes` has been waiting; from the start, where it was recovered."""
        oldest = next((block for block in self._sealed if block.state is not BlockState.COMMITTED), self.open)
        return 0.0 if oldest.opened_at is None else max(asyncio.get_running_loop().time() - oldest.opened_at, 0.0)


class _PartSource:
    """The part of a stream in a sealed block, as the object writer takes it."""

    __slots__ = ("_arena", "_part", "base_offset", "leader_epoch", "size_bytes", "state", "stream_id")

    def __init__(self, arena: Arena, stream_id: StreamId, leader_epoch: int, part: BlockPart) -> None:
        self._arena = arena
        self._part = part
        self.stream_id = stream_id
        self.leader_epoch = leader_epoch
        self.base_offset = part.base_offset
        self.size_bytes = part.size_bytes
        self.state = part.state

    def blocks(self, block_size_bytes: int) -> Iterator[DataBlock]:
        """See `StreamSource`."""
        return self._part.blocks(self._arena, block_size_bytes)
