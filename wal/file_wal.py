"""The file WAL: a ring on a disk, written straight from the arena with group commit.

Theory of operation. Frames gather at the arena's head in an *extent*: a run of memory that is contiguous in the
arena and in the log, and starts at a block boundary of both. When the writer is idle the open extent is closed
(padded to a block) and written as it stands; what arrives meanwhile gathers in the next one. An extent also ends
where the arena's ring does, and before it gets larger than `GROUP_WRITE_LIMIT_BYTES`.

Always true:
- One write is in flight at a time, so a crash can tear only the last one, of which nothing was acknowledged.
- A block belongs to exactly one write: what is durable is never rewritten before it was trimmed.
- Memory under a write is not touched; the next frame goes behind the padding.
- The first frame of a write says that everything before the write is durable (see `wal.frame`).
- The log's place on the disk is `log offset % capacity` behind the headers. A write that would cross the ring's
  end is done in two parts, and is durable when both are.
- Space is reused only after the header that gives it up is durable.
- One failed write, of a frame, a header or formatting, fences the log. Nothing is ever retried in place: after
  an error nobody knows what the disk holds (cf. "Can Applications Recover from fsync Failures?", ATC '20).
- Between a write's completion and its acknowledgement the fence is read. So it is before a trim: of a fenced log nothing is given up.
- Only this log takes memory from the arena's head once the first frame was reserved.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

from wal.arena import Arena
from wal.disk import Disk
from wal.errors import PayloadTooLarge, WalCorrupt, WalFenced, WalFencedByRecoverer, WalMismatch
from wal.frame import (
    BLOCK_SIZE_BYTES,
    FRAME_ALIGNMENT_BYTES,
    FRAME_HEADER_SIZE_BYTES,
    align_block,
    crc_seed,
    pack_frame,
    restamp_confirmed,
)
from wal.header import (
    HEADER_SLOT_COUNT,
    RING_START_BYTES,
    WalHeader,
    choose_header,
)
from wal.header_writer import HeaderWriter
from wal.histogram import SIZE_BOUNDS_BYTES, Histogram
from wal.log import RecoveredRun, ignore_durable, ignore_failed
from wal.recovery import RUN_BYTES, FrameScan, Hole, Need, floor_block
from wal.ring_reader import RingReader, complete

__all__ = ["GROUP_WRITE_LIMIT_BYTES", "FileWal"]

GROUP_WRITE_LIMIT_BYTES = 4 << 20
"""Frames stop joining a write at this size: a larger one gains no throughput and makes everybody in it wait."""

FORMAT_STEP_BYTES = 1 << 20
FORMAT_PAUSE_S = 0.002
"""Formatting writes one step, then leaves the disk alone for this long: appends come first."""

_FRAME_ROUND_UP = FRAME_HEADER_SIZE_BYTES + FRAME_ALIGNMENT_BYTES - 1
_ZEROS = bytes(BLOCK_SIZE_BYTES)


def _never_fenced() -> int:
    return -1


class FileWal:
    """`WriteAheadLog` over a `Disk`. Make one with `FileWal.open`, recover it, then append."""

    def __init__(
        self,
        *,
        arena: Arena,
        disk: Disk,
        header: WalHeader,
        fenced_epoch: Callable[[], int],
        format_in_background: bool,
        clock: Callable[[], float] | None,
    ) -> None:
        """Not for callers: see `open`."""
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time if clock is None else clock
        self.commit_durations = Histogram()
        """Seconds from the start of a group commit's write to its durability."""
        self.commit_sizes = Histogram(SIZE_BOUNDS_BYTES)
        """Bytes of log that one group commit made durable."""
        self._arena = arena
        self._view = arena.view
        self._disk = disk
        self._header = header
        self._fenced_epoch = fenced_epoch
        self._fenced_at_open = fenced_epoch()
        self._format_in_background = format_in_background
        self._seed = crc_seed(header.wal_id)

        self.wal_id = header.wal_id
        self.cluster_id = header.cluster_id
        self.wal_epoch = header.wal_epoch
        """Grows by one at each opening."""
        self.capacity_bytes = header.capacity_bytes
        self.max_payload_bytes = (
            min(arena.size_bytes // 4, header.capacity_bytes // 2) - FRAME_HEADER_SIZE_BYTES - BLOCK_SIZE_BYTES
        )
        """Largest payload that `reserve` takes: it must fit beside others both in the arena and in the ring."""
        self.trim_offset = header.trim_offset
        self.durable_offset = header.trim_offset
        self.end_offset = header.trim_offset
        self._ring_limit = floor_block(header.trim_offset) + header.capacity_bytes
        """Exclusive log offset up to which blocks may be written."""

        self._on_durable: Callable[[int], None] = ignore_durable
        self._on_failed: Callable[[BaseException], None] = ignore_failed
        self._recovery_begun = False
        self._ready = False
        self._failure: WalFenced | None = None
        self._closing = False
        self._closed: asyncio.Future[None] | None = None

        # The open reservation: its payload, where its frame lies in memory, where that ends in the log.
        self._reserved: memoryview | None = None
        self._reserved_index = 0
        self._reserved_end = 0

        # The open extent: where it lies in memory (-1: there is none) and in the log, where its next frame goes, and
        # the block boundary up to which frames may join it. Closed ones wait as (memory index, log offset, end offset).
        self._open_index = -1
        self._open_offset = 0
        self._next_offset = 0
        self._open_limit = 0
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._idle = True
        """Neither a write in flight nor one about to start."""
        self._writing_end = 0
        self._writing_since = 0.0
        self._parts_in_flight = 0
        self._drained: list[asyncio.Future[None]] = []

        self._trim_wanted = header.trim_offset
        self._header_writer = HeaderWriter(
            disk=disk,
            generation=header.generation,
            compose=self._compose_header,
            on_written=self._header_written,
            on_failed=self._fail,
        )

        self._formatted_bytes = header.formatted_bytes
        self._formatting_from = -1
        """Ring position of the formatting step in flight, or -1."""
        self._formatted = asyncio.Event()
        self._write_deferred = False
        self._format_task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        *,
        arena: Arena,
        disk: Disk,
        cluster_id: str,
        node_id: int,
        capacity_bytes: int | None = None,
        fenced_epoch: Callable[[], int] = _never_fenced,
        format_in_background: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> FileWal:
        """Read the header of a disk that holds a WAL (see `wal.header.initial_image`) and check whose it is.

        Args:
            arena: Where payloads are laid out; empty, and nobody else's to take from.
            disk: Taken over: closed by `close`.
            cluster_id: What the WAL must be stamped with.
            node_id: Likewise.
            capacity_bytes: What the configuration says; None takes what is there.
            fenced_epoch: The fence word: a log of this epoch or an older one acknowledges nothing more.
            format_in_background: Write zeros through space that was never written, so that later appends recycle it.
            clock: Seconds, for figures only; None takes the event loop's, which may be coarse.

        Raises:
            WalMismatch: another node's, another cluster's, or of another size.
            WalUnsupportedFormat: a newer version wrote it.
            WalCorrupt: neither copy of the header is intact.
        """
        memory = mmap.mmap(-1, RING_START_BYTES)
        # A killed process may have left a header in a cache only. The caller tells others the epoch that is read here, so
        # no power cut may take it back.
        await complete(disk.sync)
        await complete(partial(disk.read, 0, memoryview(memory)))
        header = choose_header(memory[:])
        _check_identity(header, cluster_id=cluster_id, node_id=node_id, capacity_bytes=capacity_bytes)
        if disk.size_bytes < RING_START_BYTES + header.capacity_bytes:
            raise WalCorrupt(
                f"the WAL file has {disk.size_bytes} bytes, its header speaks of a ring of {header.capacity_bytes}: it was "
                "cut short; restore the volume, or abandon this WAL"
            )
        return cls(
            arena=arena,
            disk=disk,
            header=header,
            fenced_epoch=fenced_epoch,
            format_in_background=format_in_background,
            clock=clock,
        )

    def set_listeners(self, on_durable: Callable[[int], None], on_failed: Callable[[BaseException], None]) -> None:
        """See `WriteAheadLog`."""
        self._on_durable = on_durable
        self._on_failed = on_failed

    # -- recovery

    async def recover(self) -> AsyncIterator[RecoveredRun]:
        """See `WriteAheadLog`. The log takes appends once the last frame was asked for.

        Raises:
            WalCorrupt: acknowledged frames are provably missing.
            WalFenced: the log was fenced, or could not be written, while it was recovered.
        """
        assert not self._recovery_begun, "a WAL is recovered once"
        self._recovery_begun = True
        scan = FrameScan(self._header, self._seed)
        reader = RingReader(self._disk, self.capacity_bytes, floor_block(scan.next_offset), scan.limit_offset)
        run_bytes = min(RUN_BYTES, self._arena.size_bytes // 8)
        while not isinstance(found := scan.run(reader.view, reader.start_offset, run_bytes), Hole):
            if isinstance(found, Need):
                await reader.extend(floor_block(scan.next_offset), found.end_offset)
            else:
                yield found
        scan.check_hole(found)
        if not self._header.closed:
            await self._look_beyond(scan, found, reader)
        await self._begin(found.offset)

    async def _look_beyond(self, scan: FrameScan, hole: Hole, reader: RingReader) -> None:
        offset = align_block(hole.offset)
        while offset < scan.limit_offset:
            await reader.extend(offset, offset + BLOCK_SIZE_BYTES)
            end = reader.start_offset + len(reader.view)
            scan.check_beyond(hole, reader.view, reader.start_offset)
            offset = end

    async def _begin(self, end_offset: int) -> None:
        # What the scan saw may lie in a cache only: a write of the last incarnation that never completed. From
        # here on it counts as durable, so it has to be; and the header that says so comes after.
        await complete(self._disk.sync)
        self.end_offset = self.durable_offset = end_offset
        # Past every epoch that was fenced before this opening, also where nobody came to use it.
        self.wal_epoch = max(self.wal_epoch, self._fenced_at_open) + 1
        self._header = replace(self._header, wal_epoch=self.wal_epoch, epoch_start_offset=end_offset, closed=False)
        if end_offset >= self.capacity_bytes:
            self._formatted_bytes = self.capacity_bytes
        for _ in range(HEADER_SLOT_COUNT):  # both: an epoch must not be lost with one damaged block
            await self._header_writer.write()
        if self._fenced_epoch() != self._fenced_at_open:
            # The fence was meant for this log, and its epoch was read before it moved on.
            self._fail(None)
        if self._failure is not None:
            raise self._failure
        self._ready = True
        if self._format_in_background and self._formatted_bytes < self.capacity_bytes:
            self._format_task = self._loop.create_task(self._format())

    # -- appending

    @property
    def reserved_position(self) -> int:
        """See `WriteAheadLog`."""
        assert self._reserved is not None, "nothing is reserved"
        return self._reserved_index + FRAME_HEADER_SIZE_BYTES

    def reserve(self, payload_size: int) -> memoryview | None:
        """See `WriteAheadLog`.

        Raises:
            PayloadTooLarge: it is larger than `max_payload_bytes`.
            WalFenced: the log is fenced.
        """
        assert self._reserved is None, "the last reservation is still open: append or cancel it"
        if payload_size > self.max_payload_bytes:
            raise PayloadTooLarge(payload_size, self.max_payload_bytes)
        frame_size = (payload_size + _FRAME_ROUND_UP) & -FRAME_ALIGNMENT_BYTES
        if self._next_offset + frame_size > self._open_limit and not self._make_room(frame_size):
            return None
        offset = self._next_offset
        self._reserved_index = index = self._open_index + offset - self._open_offset
        self._reserved_end = offset + frame_size
        self._arena.head += frame_size
        payload_at = index + FRAME_HEADER_SIZE_BYTES
        self._reserved = payload = self._view[payload_at : payload_at + payload_size]
        return payload

    def append(
        self,
        *,
        stream_id: int,
        leader_epoch: int,
        base_offset: int,
        record_count: int,
        payload_crc32c: int | None = None,
    ) -> int:
        """See `WriteAheadLog`."""
        payload = self._reserved
        assert payload is not None, "nothing is reserved"
        self._reserved = None
        offset = self._next_offset
        pack_frame(
            self._view,
            self._reserved_index,
            payload,
            self._seed,
            offset,
            self.durable_offset,
            self.wal_epoch,
            offset - self.end_offset,
            stream_id,
            leader_epoch,
            base_offset,
            record_count,
            payload_crc32c,
        )
        self._next_offset = self.end_offset = end = self._reserved_end
        if self._idle:
            self._idle = False
            self._loop.call_soon(self._write_next)
        return end

    def cancel(self) -> None:
        """See `WriteAheadLog`."""
        assert self._reserved is not None, "nothing is reserved"
        self._reserved = None
        self._arena.head -= self._reserved_end - self._next_offset

    def _make_room(self, frame_size: int) -> bool:
        """See to it that the open extent takes the frame: look at its limit again, or open another."""
        if self._failure is not None:
            raise self._failure
        assert self._ready, "recover the WAL before the first append"
        assert not self._closing, "the WAL is closed"
        arena = self._arena
        if self._open_index >= 0:
            start = arena.head - (self._next_offset - self._open_offset)
            self._open_limit = self._extent_limit(start, self._open_offset, GROUP_WRITE_LIMIT_BYTES)
            if self._next_offset + frame_size <= self._open_limit:
                return True
        start = align_block(arena.head)
        if frame_size > arena.size_bytes - start % arena.size_bytes:
            start += arena.size_bytes - start % arena.size_bytes
        offset = align_block(self.end_offset)
        limit = self._extent_limit(start, offset, max(GROUP_WRITE_LIMIT_BYTES, align_block(frame_size)))
        if offset + frame_size > limit:
            return False
        if self._open_index >= 0:
            self._close_extent()
        arena.head = start
        self._open_index = start % arena.size_bytes
        self._open_offset = self._next_offset = offset
        self._open_limit = limit
        return True

    def _extent_limit(self, start: int, offset: int, size_limit: int) -> int:
        """Log offset, a block boundary, up to which an extent at an arena position and a log offset can grow now."""
        arena = self._arena
        to_ring_end = arena.size_bytes - start % arena.size_bytes
        to_tail = floor_block(arena.tail + arena.size_bytes - start)
        return min(offset + min(size_limit, to_ring_end, to_tail), self._ring_limit)

    def _close_extent(self) -> None:
        """Pad the open extent to a block and queue it, unless nothing was appended to it."""
        index = self._open_index
        size = self._next_offset - self._open_offset
        self._open_index = -1
        self._open_limit = 0
        if not size:
            return
        padding = -size % BLOCK_SIZE_BYTES
        if padding:
            end = index + size
            self._view[end : end + padding] = _ZEROS[:padding]
            self._arena.head += padding
        self._waiting.append((index, self._open_offset, self.end_offset))

    # -- writing

    def _write_next(self) -> None:
        """Start the next write, or become idle."""
        if self._failure is not None:
            return
        if not self._waiting:
            assert self._reserved is None, "a reservation stayed open across a turn of the event loop"
            if self._open_index >= 0:
                self._close_extent()
            if not self._waiting:
                self._idle = True
                self._tell_drained()
                return
        index, offset, end = self._waiting[0]
        size = align_block(end) - offset
        if 0 <= self._formatting_from < offset + size:
            self._write_deferred = True
            return
        self._waiting.popleft()
        view = self._view
        restamp_confirmed(view, index, self._seed, self.durable_offset)
        self._writing_end = end
        self._writing_since = self._clock()
        position = offset % self.capacity_bytes
        first = self.capacity_bytes - position
        if size <= first:
            self._parts_in_flight = 1
            self._disk.write(RING_START_BYTES + position, view[index : index + size], self._on_written)
        else:
            self._parts_in_flight = 2
            self._disk.write(RING_START_BYTES + position, view[index : index + first], self._on_written)
            self._disk.write(RING_START_BYTES, view[index + first : index + size], self._on_written)

    def _on_written(self, error: BaseException | None) -> None:
        if error is not None:
            self._fail(error)
            return
        self._parts_in_flight -= 1
        if self._parts_in_flight or self._failure is not None:
            return
        if self._fenced_epoch() >= self.wal_epoch:
            self._fail(None)
            return
        durable = self._writing_end
        self.commit_durations.observe(self._clock() - self._writing_since)
        self.commit_sizes.observe(durable - self.durable_offset)
        self.durable_offset = durable
        self._write_next()  # first: the disk works while the acknowledgements go out
        self._on_durable(durable)

    def _fail(self, error: BaseException | None) -> None:
        if self._failure is not None:
            return
        if error is None:
            failure: WalFenced = WalFencedByRecoverer(
                f"WAL {self.wal_id} of epoch {self.wal_epoch} was fenced: somebody else recovers it; nothing more is "
                "acknowledged, restart this node"
            )
        else:
            failure = WalFenced(
                f"a write to WAL {self.wal_id} failed ({error}): what was not acknowledged is in doubt; "
                "repair the disk, then restart this node to recover"
            )
            failure.__cause__ = error
        self._failure = failure
        self._open_limit = 0  # so that `reserve` looks
        self._waiting.clear()
        self._header_writer.fail(failure)
        self._tell_drained()
        self._on_failed(failure)

    def _tell_drained(self) -> None:
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- trimming

    async def trim(self, offset: int) -> None:
        """See `WriteAheadLog`. `offset` is the end of a frame (or the present trim offset).

        Raises:
            WalFenced: the log is fenced, so the trim may or may not have become durable.
        """
        assert self._ready, "recover the WAL before the first trim"
        if offset > self.durable_offset:
            raise ValueError(f"cannot trim to {offset}: only {self.durable_offset} is durable")
        if offset <= self.trim_offset:
            return
        if self._failure is None and self._fenced_epoch() >= self.wal_epoch:
            # Whoever fenced it may have taken the streams over already, and need what our commits were refused for.
            self._fail(None)
        if self._failure is not None:
            raise self._failure
        self._trim_wanted = max(self._trim_wanted, offset)
        await self._header_writer.write()

    def _compose_header(self) -> WalHeader:
        return replace(
            self._header,
            trim_offset=self._trim_wanted,
            confirmed_offset=self.durable_offset,
            formatted_bytes=self._formatted_bytes,
        )

    def _header_written(self, header: WalHeader) -> None:
        self.trim_offset = header.trim_offset
        self._ring_limit = floor_block(header.trim_offset) + self.capacity_bytes

    # -- formatting

    async def _format(self) -> None:
        """Write zeros ahead of the log through its first lap, a step at a time."""
        memory = mmap.mmap(-1, FORMAT_STEP_BYTES)
        zeros = memoryview(memory)
        while self._failure is None:
            start = max(self._formatted_bytes, align_block(self.end_offset))
            if start >= self.capacity_bytes:
                self._formatted_bytes = self.capacity_bytes
                return
            size = min(FORMAT_STEP_BYTES, self.capacity_bytes - start)
            self._formatting_from = start
            self._formatted = asyncio.Event()
            self._disk.write(RING_START_BYTES + start, zeros[:size], self._on_formatted)
            await self._formatted.wait()
            self._formatted_bytes = start + size
            await asyncio.sleep(FORMAT_PAUSE_S)

    def _on_formatted(self, error: BaseException | None) -> None:
        self._formatting_from = -1
        self._formatted.set()
        if error is not None:
            self._fail(error)
        elif self._write_deferred:
            self._write_deferred = False
            self._write_next()

    # -- closing

    async def close(self) -> None:
        """See `WriteAheadLog`. A fenced log is released as it is."""
        if self._closed is not None:
            await asyncio.shield(self._closed)
            return
        self._closed = self._loop.create_future()
        self._closing = True
        if self._format_task is not None:
            self._format_task.cancel()
            await asyncio.gather(self._format_task, return_exceptions=True)
        try:
            if self._ready and self._failure is None:
                await self._drain()
            if self._ready and self._failure is None:
                self._header = replace(self._header, closed=True)
                with contextlib.suppress(WalFenced):  # the listener was told; the next start recovers
                    await self._header_writer.write()
        finally:
            await self._disk.close()
            self._closed.set_result(None)

    async def _drain(self) -> None:
        while not self._idle and self._failure is None:
            waiter = self._loop.create_future()
            self._drained.append(waiter)
            await waiter


def _check_identity(header: WalHeader, *, cluster_id: str, node_id: int, capacity_bytes: int | None) -> None:
    if header.cluster_id != cluster_id:
        raise WalMismatch(
            f"the WAL belongs to cluster {header.cluster_id!r}, this node to {cluster_id!r}: give each cluster a directory of "
            "its own, or point the object store's URI at the bucket that this WAL was used with"
        )
    if header.node_id != node_id:
        raise WalMismatch(
            f"the WAL belongs to node {header.node_id}, this is node {node_id}: give each node a directory of its own, or set "
            f"node.id = {header.node_id}"
        )
    if capacity_bytes is not None and header.capacity_bytes != capacity_bytes:
        raise WalMismatch(
            f"the WAL has a capacity of {header.capacity_bytes} bytes, the configuration says {capacity_bytes}: set "
            f"capacity={header.capacity_bytes}, or stop the node in order (which uploads everything) and remove the directory"
        )
