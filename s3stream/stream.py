"""One stream as its owner sees it: offsets, tail reads, cold reads, trim.

Always true:
- log_start_offset <= confirmed_offset <= next_offset. `confirmed_offset` (Kafka's high watermark) never goes back (I3)
  and never passes what is durable in the WAL; `next_offset` (Kafka's log end offset) is what the next append gets.
- Only confirmed payloads are read. What the log cache no longer holds is in committed objects.
- Once `closed` is set, nothing more is acknowledged: pending appends end with that error.
- All methods belong to one event loop; nothing here decides anything across an await without looking again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from s3stream.errors import ObjectCorrupt, OffsetOutOfRange, StorageError, StreamClosed
from s3stream.log_cache import MAX_PAYLOADS, BlockPart, CacheBlock, StreamTail, TailRead
from s3stream.metadata import StreamId, past_gaps
from s3stream.objectstore import Buffer

if TYPE_CHECKING:
    from s3stream.storage import Storage

__all__ = ["RecoveredState", "Stream", "StreamRead"]

READ_ATTEMPTS = 3
"""How often a read looks again when the log start moved under it; more often would hide a fault."""

REPLAY_PAYLOADS = 8192
"""How many payloads a replay gives at a time: a few milliseconds' work for the event loop."""

REPLAY_READ_BYTES = 4 << 20
"""How much a replay asks for at a time: large enough to merge range reads, small beside the memory bound."""


class StreamRead(NamedTuple):
    """Whole payloads, in order, from the one that holds the asked offset on."""

    buffers: list[Buffer]
    """Each holds one payload or several in a row."""
    size_bytes: int
    block: CacheBlock | None
    """Set where buffers are views into the arena: pin it while they are out. None: they own their memory."""


class RecoveredState(NamedTuple):
    """The newest state block of a stream."""

    end_offset: int
    """Exclusive: everything below it is accounted for in `data`."""
    data: bytes


class Stream:
    """A stream that is open on this node. Made by `Storage.open_streams` only."""

    __slots__ = (
        "_storage",
        "closed",
        "confirmed_offset",
        "gaps",
        "leader_epoch",
        "least_leader_epoch",
        "listener",
        "log_start_offset",
        "next_offset",
        "part",
        "state_source",
        "stream_id",
        "tail",
        "withheld",
    )

    def __init__(
        self,
        storage: Storage,
        stream_id: StreamId,
        leader_epoch: int,
        log_start: int,
        end_offset: int,
        gaps: tuple[tuple[int, int], ...] = (),
        least_leader_epoch: int = 0,
    ) -> None:
        self._storage = storage
        self.stream_id = stream_id
        self.leader_epoch = leader_epoch
        self.log_start_offset = log_start
        self.confirmed_offset = end_offset
        """High watermark: exclusive end of what is durable."""
        self.gaps = gaps
        """Offsets that were given up, in order: see `OpenedStream`."""
        self.least_leader_epoch = least_leader_epoch
        """For recovery: see `OpenedStream`."""
        self.next_offset = end_offset
        """Log end offset: what the next append gets."""
        self.closed: StreamClosed | None = None
        """Why nothing more is accepted; None while the stream is open."""
        self.withheld: StreamClosed | None = None
        """Why readers are told nothing: it is closed, or its close is on its way and may be committed by now, so that another node goes on."""
        self.listener: Callable[[], None] | None = None
        """Called once per WAL completion that advanced `confirmed_offset`, and when the stream is withheld or closes."""
        self.state_source: Callable[[], bytes | None] | None = None
        """Gives the state as of `next_offset` when a block with data of this stream is sealed.

        Called synchronously, never in the middle of an append. None means: unchanged since the last call.
        """
        self.tail = StreamTail()
        self.part: BlockPart | None = None
        """The part of the open block, or of an older one; the engine's own."""

    def read_cached(self, offset: int, max_bytes: int, max_payloads: int = MAX_PAYLOADS) -> TailRead | None:
        """Read from the log cache without waiting; None where it does not reach back to `offset`.

        Views into the arena: use them within this callback, or pin the block. Empty at the confirmed end.
        """
        confirmed_offset = self.confirmed_offset
        if offset == confirmed_offset:
            return TailRead([], 0, None)
        return self.tail.read(self._storage.arena, offset, confirmed_offset, max_bytes, max_payloads)

    def past_gap(self, offset: int) -> int:
        """The offset itself, or, where it was given up, the first one after it that was not."""
        return past_gaps(self.gaps, offset)

    def confirmed_bytes_from(self, offset: int) -> int:
        """Bytes between an earlier confirmed offset and the one of now, as far as the log cache holds them."""
        return self.tail.size_between(offset, self.confirmed_offset)

    async def read(
        self, offset: int, max_bytes: int, *, wait_for_memory: bool = True, paced: bool = True
    ) -> StreamRead:
        """Read whole payloads from the one that holds `offset` on; at least one where there is any, about `max_bytes`.

        Whoever holds what another read gave must not wait for memory, or readers could wait for each other. What is not `paced` takes
        no part in the budget of catch-up reads.

        Raises:
            OffsetOutOfRange: below the log start or beyond the confirmed end.
            StreamClosed: the stream is closed on this node.
            ObjectCorrupt, Unavailable: the objects that hold it cannot be trusted or reached.
            NoMemory: others hold the memory for reads.
        """
        for _ in range(READ_ATTEMPTS):
            if self.closed is not None:
                raise self.closed
            if not self.log_start_offset <= offset <= self.confirmed_offset:
                raise OffsetOutOfRange(
                    f"offset {offset} of stream {self.stream_id} is outside "
                    f"[{self.log_start_offset}, {self.confirmed_offset}]"
                )
            offset = self.past_gap(offset)
            cached = self.read_cached(offset, max_bytes)
            if cached is not None:
                return StreamRead(list(cached.payloads), cached.size_bytes, cached.block)
            base_offset = self.tail.base_offset
            end_offset = self.confirmed_offset if base_offset is None else base_offset
            buffers = await self._storage.reader.read(
                self.stream_id, offset, end_offset, max_bytes, wait_for_memory=wait_for_memory, paced=paced
            )
            if buffers:
                return StreamRead(buffers, sum(map(len, buffers)), None)
            # Nothing there: a trim passed the offset while we read. Look again.
        raise StorageError(f"offset {offset} of stream {self.stream_id} is neither in an object nor in the log cache")

    async def payload_for_timestamp(self, timestamp_ms: int) -> Buffer | None:
        """The first payload whose largest timestamp is at or past `timestamp_ms`, looking at confirmed data only.

        A payload's records are in the caller's hands: the first of them that matches is in this payload.
        """
        base_offset = self.tail.base_offset
        end_offset = self.confirmed_offset if base_offset is None else base_offset
        if end_offset > self.log_start_offset:
            found = await self._storage.reader.payload_for_timestamp(
                self.stream_id, timestamp_ms, self.log_start_offset, end_offset
            )
            if found is not None:
                return found
        bounds = self._storage.payload_format.bounds
        for part in self.tail.parts:
            if part.max_timestamp_ms < timestamp_ms or part.end_offset <= self.log_start_offset:
                continue
            for payload in self._confirmed_payloads(part):
                found_bounds = bounds(payload, 0)
                if found_bounds.max_timestamp_ms >= timestamp_ms and found_bounds.end_offset > self.log_start_offset:
                    return bytes(payload)
        return None

    async def max_timestamp(self) -> int:
        """Largest timestamp of any confirmed payload past the log start, -1 where there is none (KIP-734)."""
        largest = -1
        for found in self._storage.metadata.ranges(self.stream_id):
            if found.range.end_offset > self.log_start_offset:
                largest = max(largest, found.range.max_timestamp_ms)
        bounds = self._storage.payload_format.bounds
        for part in self.tail.parts:
            if part.max_timestamp_ms > largest:
                for payload in self._confirmed_payloads(part):
                    largest = max(largest, bounds(payload, 0).max_timestamp_ms)
        return largest

    @property
    def size_bytes(self) -> int:
        """Bytes of payloads from the log start on: by whole ranges of objects, then what is not in objects yet."""
        ranges = self._storage.metadata.ranges(self.stream_id)
        committed_end_offset = self._storage.metadata.committed_end_offset(self.stream_id) or 0
        return sum(found.range.size_bytes for found in ranges) + sum(
            part.size_bytes for part in self.tail.parts if part.base_offset >= committed_end_offset
        )

    def estimated_timestamp_ms(self, offset: int) -> int:
        """About when the record at an offset was stamped, from what is in memory alone; -1 where nothing tells.

        In the log cache: the largest timestamp of its payload. In objects: by its place between the largest timestamps of the range
        before and of its own, so off by at most the time that the records of that range span.
        """
        cached = self.tail.timestamp_ms(offset)
        if cached is not None:
            return cached
        located = self._storage.metadata.locate(self.stream_id, offset, limit=1)
        if not located:
            return -1
        own = located[0].range
        before = self._storage.metadata.locate(self.stream_id, own.base_offset - 1, limit=1) if own.base_offset else ()
        newest_ms = own.max_timestamp_ms
        oldest_ms = before[0].range.max_timestamp_ms if before and before[0].object_id != located[0].object_id else -1
        if not 0 <= oldest_ms < newest_ms:
            return newest_ms  # no range before it, or producers' clocks do not agree: not older than that
        return oldest_ms + (newest_ms - oldest_ms) * (offset - own.base_offset) // (own.end_offset - own.base_offset)

    def _confirmed_payloads(self, part: BlockPart) -> list[memoryview]:
        view = self._storage.arena.view
        return [
            view[position : position + size]
            for position, size, end in zip(part.positions, part.sizes, part.ends, strict=True)
            if end <= self.confirmed_offset
        ]

    async def newest_state(self) -> RecoveredState | None:
        """The newest state block in objects, None where there never was one."""
        found = await self._storage.reader.read_state(self.stream_id)
        return None if found is None else RecoveredState(*found)

    async def replay(self, offset: int) -> AsyncIterator[tuple[Buffer, Sequence[int]]]:
        """Every confirmed payload from the one that holds `offset` on: buffers, and where in each of them payloads start.

        A buffer may be the arena, which is not pinned: use it before you wait for anything.
        """
        offset = max(offset, self.log_start_offset)
        bounds = self._storage.payload_format.bounds
        while (offset := self.past_gap(offset)) < self.confirmed_offset:
            cached = self.tail.positions(offset, self.confirmed_offset, REPLAY_PAYLOADS)
            if cached is not None:
                positions, offset = cached
                yield self._storage.arena.view, positions
                await asyncio.sleep(0)
                continue
            found = await self.read(offset, REPLAY_READ_BYTES, paced=False)
            if found.block is not None:
                continue  # in the cache after all
            for buffer in found.buffers:
                starts: list[int] = []
                position = 0
                while position < len(buffer):
                    starts.append(position)
                    payload = bounds(buffer, position)
                    position += payload.size_bytes
                    offset = payload.end_offset
                yield buffer, starts

    async def trim(self, log_start_offset: int) -> None:
        """Raise the log start (retention, DeleteRecords) to exactly this offset; committed when this returns, never lowered.

        What follows the newest state in objects is needed to bring the state up to date at the next open (I11). So a stream
        with state has it written anew first, where it does not account for what is to go.

        Raises:
            OffsetOutOfRange: beyond the confirmed end.
            StreamClosed: the stream is closed on this node; nothing is trimmed.
            ObjectCorrupt: a state that was just put cannot be read back; nothing is trimmed.
            Unavailable, MetadataUnavailable: the bucket cannot be reached now; nothing is trimmed, or it is open whether.
        """
        if log_start_offset > self.confirmed_offset:
            raise OffsetOutOfRange(
                f"cannot trim stream {self.stream_id} to {log_start_offset}: it ends at {self.confirmed_offset}"
            )
        if log_start_offset <= self.log_start_offset:
            return
        if self.closed is not None:
            raise self.closed
        # The metadata knows only of committed offsets: what is trimmed must have passed through an object.
        await self._storage.flush(self.stream_id, log_start_offset)
        if self.state_source is not None:
            state = await self.newest_state()
            if state is None or state.end_offset < log_start_offset:
                await self._storage.flush_state(self)
                state = await self.newest_state()
                if self.closed is not None:
                    raise self.closed
                if state is None or state.end_offset < log_start_offset:
                    raise ObjectCorrupt(
                        f"stream {self.stream_id}: its state was put as of now, and cannot be read back; nothing is trimmed"
                    )
        await self._storage.metadata.trim_streams({self.stream_id: log_start_offset})
        self.log_start_offset = max(self.log_start_offset, log_start_offset)

    def close(self, reason: StreamClosed) -> None:
        """Accept nothing more: the stream moved, was deleted, or the node was fenced."""
        if self.closed is None:
            self.closed = self.withheld = reason
            if self.listener is not None:
                self.listener()

    def withhold(self, reason: StreamClosed) -> None:
        """Its close is sent: from here on nobody knows whether another node goes on with it, and what is known here is the end of it."""
        if self.withheld is None:
            self.withheld = reason
            if self.listener is not None:
                self.listener()
