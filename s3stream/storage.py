"""The storage engine of one node: append, read, trim on streams, over one WAL, one arena and one object store.

Always true:
- A payload is acknowledged (`on_done(None)`) only after the WAL said it is durable, in WAL order, while its stream is open.
- Memory is bounded by the arena and the block cache. When the arena or the WAL is full, `reserve` gives None and the
  caller stops reading its socket until `room`; nothing is queued here.
- A block of the log cache is sealed on size, on age or by force, never in the middle of an append (`cached_blocks.py`).
- When the WAL fails, or the metadata refuses this node, the engine is fenced: `failed` is set, nothing more is acknowledged.
- Two halves: the hot path is synchronous (reserve, append, durable), all else is a task that `close` cancels and awaits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from s3stream.cached_blocks import CachedBlocks
from s3stream.config import StorageSettings
from s3stream.errors import NodeFenced, StorageError, StorageFenced, StreamClosed, StreamFenced
from s3stream.log_cache import CacheBlock
from s3stream.metadata import CommitResult, OpenedStream, SkipReason, StreamId, StreamMetadata
from s3stream.objectstore import Buffer, ObjectStore
from s3stream.paths import Paths
from s3stream.payload import PayloadFormat
from s3stream.recovery import Recovery
from s3stream.second_upload import SecondUploads
from s3stream.stream import Stream
from s3stream.unuploaded import UnuploadedRange
from s3stream.upload import Uploader
from wal import crashpoint
from wal.arena import Arena
from wal.errors import WalFenced
from wal.histogram import COUNT_BOUNDS, Histogram
from wal.log import WriteAheadLog

__all__ = ["ColdReader", "OnDone", "Storage"]

TOUCH_STEP_BYTES = 2 << 20
TOUCH_PAUSE_S = 0.002
"""One huge page at a time takes about 0.3 ms; 512 MiB are touched in about a second."""

MAX_PENDING = 1 << 15
"""Payloads that wait for the WAL. With what their senders are to be told each takes some 250 bytes, which for the smallest ones is
several times what they hold. A write takes milliseconds, in which nobody sends so many unless they came all at once: then the rest
waits in the socket, and the event loop has time for what the WAL and others have to say."""

SPARE_BYTES = 64 << 10
"""Besides a payload twice, which may not fit before the arena's end: frame headers and padding. With more free, it is the log
that has no room."""

_log = logging.getLogger("tidelog.storage")

OnDone = Callable[[StorageError | None], None]
"""How an append ends: None once it is durable, or why it never will be acknowledged."""


class ColdReader(Protocol):
    """Reads what is in committed objects only."""

    async def read(
        self,
        stream_id: StreamId,
        offset: int,
        end_offset: int,
        max_bytes: int,
        *,
        wait_for_memory: bool = True,
        paced: bool = True,
    ) -> list[Buffer]:
        """Whole payloads from the one that holds `offset` on, below `end_offset`, at least one.

        What is not `paced` takes no part in the budget of catch-up reads.

        Raises:
            NoMemory: others hold the memory for reads, and waiting was not allowed or took too long.
        """

    async def read_state(self, stream_id: StreamId) -> tuple[int, bytes] | None:
        """The newest state block and the (exclusive) end offset that it accounts for."""

    async def payload_for_timestamp(
        self, stream_id: StreamId, timestamp_ms: int, start_offset: int, end_offset: int
    ) -> Buffer | None:
        """The first payload in [start_offset, end_offset) whose largest timestamp is at or past `timestamp_ms`."""

    async def close(self) -> None:
        """Give up what is under way."""


class Storage:
    """Append, read and trim. `start` recovers the WAL, `run` begins uploads, `close` uploads and trims everything."""

    def __init__(
        self,
        *,
        wal: WriteAheadLog,
        arena: Arena,
        metadata: StreamMetadata,
        store: ObjectStore,
        paths: Paths,
        reader: ColdReader,
        payload_format: PayloadFormat,
        settings: StorageSettings,
        rng: random.Random,
        on_failed: Callable[[BaseException], None],
        clock: Callable[[], float] | None = None,
        uploads_at_once: bool = False,
        second_store: ObjectStore | None = None,
    ) -> None:
        """Take the parts over.

        Args:
            clock: Gives seconds, for figures only; None takes the event loop's, which may be coarse.
            uploads_at_once: What is recovered is uploaded while recovery goes on, without state: for a log that takes no appends, so that
                nobody rebuilds states here.
            second_store: What is in many small objects and still in memory is put into large ones through it; None: that is left to
                compaction.
        """
        self.arena = arena
        self.metadata = metadata
        self.reader = reader
        self.payload_format = payload_format
        self.settings = settings
        self.streams: dict[StreamId, Stream] = {}
        self.failed: StorageFenced | None = None
        """Why this engine acknowledges nothing more."""
        self._wal = wal
        self._tell_failed = on_failed
        self._upload_size_bytes = min(
            settings.upload_size_bytes, wal.capacity_bytes // 4, arena.size_bytes // 4
        )  # a quarter: one block fills while others are put and committed
        self._blocks = CachedBlocks(
            arena,
            self.streams,
            wal_offset=wal.trim_offset,
            on_unpinned=self._wake_room,
            on_evicted=self._evicted,
        )
        self.uploads = Uploader(
            store=store,
            metadata=metadata,
            paths=paths,
            describe=self._blocks.sources,
            on_committed=self._committed,
            on_failed=self._fail,
            parallelism=settings.upload_parallelism,
            copy_budget_bytes=settings.memory_bytes // 16,
            block_size_bytes=settings.block_size_bytes,
            stream_object_min_bytes=settings.stream_object_min_bytes,
            rng=rng,
            clock=clock or asyncio.get_running_loop().time,
        )
        self.second_uploads = (
            None
            if second_store is None
            else SecondUploads(
                store=second_store,
                metadata=metadata,
                paths=paths,
                arena=arena,
                settings=settings,
                copies=self.uploads.copies,
                may_pin=self.may_pin,
                on_failed=self._fail,
            )
        )
        """Merges of what is still in memory, where this node does them."""
        self._pending: deque[tuple[int, Stream, int, OnDone | None]] = deque()
        """Appends that are not durable yet: (WAL end offset, stream, stream end offset, callback)."""
        self._room: asyncio.Event | None = None
        self._recovery = Recovery(
            arena=arena,
            blocks=self._blocks,
            streams=self.streams,
            was_created=metadata.was_created,
            payload_format=payload_format,
            upload=self._upload_recovered,
            room=self.room,
            uploads_at_once=uploads_at_once,
            upload_size_bytes=self._upload_size_bytes,
        )
        self._trim_wanted: int = wal.trim_offset
        self._trim_event = asyncio.Event()
        self._reserved_bytes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._recovered = False
        self.appended_bytes = 0
        """Payload bytes appended since start."""
        self.commit_batches = Histogram(COUNT_BOUNDS)
        """Payloads that one group commit of the WAL made durable."""
        wal.set_listeners(self._durable, self._fail)

    # ---- life -------------------------------------------------------------------------------------------------

    async def start(self, stream_ids: Sequence[StreamId]) -> dict[StreamId, Stream]:
        """Open this node's streams and recover the WAL into them; nothing is uploaded before `run`, unless memory runs out.

        The streams are complete when this returns: their producer state can be rebuilt (`newest_state`, `replay`).

        Raises:
            WalCorrupt: acknowledged frames are missing; nothing was changed.
            StorageError: the WAL does not continue what the metadata has committed.
        """
        streams = await self.open_streams(stream_ids)
        recovered_end = self._wal.trim_offset
        async for run in self._wal.recover():
            await self._recovery.take(run)
            recovered_end = run.end_offset
        self._blocks.open.wal_end_offset = max(self._blocks.open.wal_end_offset, recovered_end)
        self.uploads.durable(self._wal.durable_offset)
        if self._blocks.are_empty:
            self._want_trim(recovered_end)
        self._recovered = True
        return streams

    def _upload_recovered(self, wal_offset: int) -> None:
        self.seal()
        self.uploads.durable(wal_offset)

    def run(self) -> None:
        """Begin timed uploads and WAL trims. Call it when the state of recovered streams has been rebuilt."""
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._seal_by_age()))
        self._tasks.append(loop.create_task(self._trim_wal()))
        self._tasks.append(loop.create_task(self._touch_arena()))
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A mistake of ours: better no acknowledgements than a log that nothing uploads or trims any more."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    async def close(self, *, timeout_s: float) -> bool:
        """Upload and trim everything, close the streams and the WAL. The caller has stopped appending.

        Returns False where not everything got through in time: it stays in the WAL for the next start, nothing
        acknowledged is lost.
        """
        if self._closing:
            return True
        self._closing = True
        complete = False
        try:
            # A recovery that was refused must leave the log and the bucket as they are.
            if self.failed is None and self._recovered:
                async with asyncio.timeout(timeout_s):
                    await self._flush_all()
                    await self._stop_tasks()
                    await self._wal.trim(self._wal.durable_offset)
                    ends = {stream.stream_id: stream.confirmed_offset for stream in self.streams.values()}
                    leader_epochs = {stream.stream_id: stream.leader_epoch for stream in self.streams.values()}
                    self._close_streams("the node is shutting down")
                    await self.metadata.close_streams(ends, leader_epochs)
                    complete = True
        except (TimeoutError, StorageError, WalFenced) as error:
            _log.warning("closed before everything was uploaded: the WAL keeps the rest (%(error)r)", {"error": error})
        finally:
            self._close_streams("the node is shutting down")
            await self._stop_tasks()
            if self.second_uploads is not None:
                await self.second_uploads.close()
            await self.uploads.close()
            await self.reader.close()
            await self._wal.close()
        return complete

    def _close_streams(self, why: str) -> None:
        for stream in list(self.streams.values()):
            stream.close(StreamClosed(f"stream {stream.stream_id} is closed: {why}"))

    async def _stop_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fail(self, error: BaseException) -> None:
        """Fence the engine: whatever was not acknowledged never will be by this process."""
        if self.failed is not None:
            return
        self.failed = failed = StorageFenced(f"this node acknowledges nothing more; restart it to recover ({error})")
        failed.__cause__ = error
        pending, self._pending = self._pending, deque()
        for _, _, _, on_done in pending:
            if on_done is not None:
                on_done(failed)
        for stream in list(self.streams.values()):
            closed = StreamClosed(str(failed))
            closed.__cause__ = failed
            stream.close(closed)
        self._wake_room()
        self._tell_failed(failed)

    def supersede(self, error: NodeFenced) -> None:
        """Another process is this node by now: acknowledge nothing more, serve nothing more, and say so."""
        self._fail(error)

    # ---- streams ----------------------------------------------------------------------------------------------

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> dict[StreamId, Stream]:
        """Open streams on this node. Deleted ones are left out of the answer."""
        if not stream_ids:
            return {}
        opened: dict[StreamId, Stream] = {}
        for found in await self.metadata.open_streams(stream_ids):
            opened[found.stream_id] = self._add_stream(found)
        return opened

    def _add_stream(self, found: OpenedStream) -> Stream:
        former = self.streams.get(found.stream_id)
        if former is not None:
            former.close(StreamFenced(f"stream {found.stream_id} was opened again with a newer leader epoch"))
        stream = Stream(
            self,
            found.stream_id,
            found.leader_epoch,
            found.log_start_offset,
            found.committed_end_offset,
            found.gaps,
            found.least_leader_epoch,
        )
        self.streams[found.stream_id] = stream
        return stream

    def forget_stream(self, stream_id: StreamId, reason: StreamClosed) -> None:
        """Close a stream that was deleted or moved. What is cached of it goes with its blocks."""
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            stream.close(reason)

    async def release(self, streams: Sequence[Stream]) -> None:
        """Put streams wholly into objects, close them in the metadata, and forget them here. Their owner takes no appends any more.

        Raises:
            StorageError, ObjectStoreError: they are open here as before; but readers are told nothing any more where the close was sent, which
                may be committed.
        """
        if self._pending:
            durable = asyncio.get_running_loop().create_future()
            _, stream, end_offset, _ = self._pending[-1]
            self._pending.append((self._wal.end_offset, stream, end_offset, lambda error: _settle(durable, error)))
            await durable
        self.seal()
        await self.uploads.drain()
        ends = {stream.stream_id: stream.confirmed_offset for stream in streams if stream.closed is None}
        leader_epochs = {stream.stream_id: stream.leader_epoch for stream in streams if stream.closed is None}
        for stream in streams:
            stream.withhold(StreamClosed(f"stream {stream.stream_id} is on its way to another node"))
        await self.metadata.close_streams(ends, leader_epochs)
        for stream_id in ends:
            self.forget_stream(stream_id, StreamClosed(f"stream {stream_id} moved to another node"))

    # ---- append: the hot path -----------------------------------------------------------------------------------

    def reserve(self, size: int) -> memoryview | None:
        """Room for one payload in the arena, or None: stop reading the socket and wait for `room`.

        Fill the view, check it, stamp it with `stream.next_offset` and `stream.leader_epoch`, then `append` or `cancel`
        within the same callback.

        Raises:
            StorageFenced: the engine has failed.
            PayloadTooLarge: no arena or WAL of this size will ever take it.
        """
        if self.failed is not None:
            raise self.failed
        if len(self._pending) >= MAX_PENDING:
            return None
        if self._blocks.open.size_bytes >= self._upload_size_bytes:
            self.seal()
        view = self._wal.reserve(size)
        if view is None:
            view = self._reserve_after_eviction(size)
            if view is None:
                return None
        self._reserved_bytes = size
        return view

    def _reserve_after_eviction(self, size: int) -> memoryview | None:
        # Memory is given back block by block until the reservation fits. Where there is plenty of it, the log is full: then
        # uploads help, and taking readers' cache or connections from them does not.
        arena = self.arena
        while arena.free_bytes < 2 * size + SPARE_BYTES and self._blocks.evict_oldest():
            view = self._wal.reserve(size)
            if view is not None:
                return view
        if self._blocks.open.size_bytes:
            self.seal()  # else a full WAL whose data sits in the open block would wait for its age
        if arena.free_bytes < 2 * size + SPARE_BYTES:
            self._blocks.revoke_oldest()
        return None

    def append(
        self,
        stream: Stream,
        record_count: int,
        max_timestamp_ms: int,
        on_done: OnDone | None,
        payload_crc32c: int | None = None,
    ) -> int:
        """Append the reserved payload to a stream; returns its base offset.

        `on_done` is called once, later, on the event loop, in append order among all streams. `payload_crc32c` is that of
        the whole payload as it stands, where the caller knows it: large payloads are then not hashed again.

        Raises:
            StreamClosed: the stream is not open here (the reservation is given back).
        """
        if stream.closed is not None:
            self._wal.cancel()
            raise stream.closed
        wal = self._wal
        base_offset = stream.next_offset
        position = wal.reserved_position
        wal_end_offset = wal.append(
            stream_id=stream.stream_id,
            leader_epoch=stream.leader_epoch,
            base_offset=base_offset,
            record_count=record_count,
            payload_crc32c=payload_crc32c,
        )
        end_offset = base_offset + record_count
        stream.next_offset = end_offset
        block = self._blocks.open
        part = stream.part
        if part is None or part.block is not block:
            part = self._blocks.open_part(stream, base_offset)
        size = self._reserved_bytes
        part.add(end_offset, position, size, max_timestamp_ms)
        if payload_crc32c is not None:
            part.crcs[position] = payload_crc32c
        block.size_bytes += size
        block.wal_end_offset = wal_end_offset
        self.appended_bytes += size
        self._pending.append((wal_end_offset, stream, end_offset, on_done))
        return base_offset

    def cancel(self) -> None:
        """Give the reservation back: nothing was appended."""
        self._wal.cancel()

    def _durable(self, wal_offset: int) -> None:
        """The WAL is durable up to here: confirm in order, acknowledge, wake readers once."""
        crashpoint.reach("wal.durable")
        pending = self._pending
        before = len(pending)
        touched: dict[Stream, None] = {}  # in order, so that runs can be repeated
        while pending and pending[0][0] <= wal_offset:
            _, stream, end_offset, on_done = pending.popleft()
            if stream.closed is None:
                stream.confirmed_offset = end_offset
                if stream.listener is not None:
                    touched[stream] = None
                if on_done is not None:
                    on_done(None)
            elif on_done is not None:
                on_done(stream.closed)
        self.commit_batches.observe(before - len(pending))
        if len(pending) <= MAX_PENDING // 2 < before:
            self._wake_room()
        for stream in touched:
            if stream.listener is not None:
                stream.listener()
        self.uploads.durable(wal_offset)

    async def room(self) -> None:
        """Wait until a reservation that got None is worth trying again."""
        if self._room is None:
            self._room = asyncio.Event()
        await self._room.wait()

    def _wake_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    # ---- sealing, upload, eviction ----------------------------------------------------------------------------

    def seal(self) -> None:
        """Seal the open block, if it holds anything, and hand it to the uploader."""
        block = self._blocks.seal()
        if block is not None:
            self.uploads.submit(block)

    async def flush(self, stream_id: StreamId, end_offset: int) -> None:
        """Wait until objects hold a stream up to a confirmed offset."""
        committed = self.metadata.committed_end_offset(stream_id)
        if committed is not None and committed < end_offset:
            self.seal()
            await self.uploads.drain()

    async def flush_state(self, stream: Stream) -> None:
        """Wait until objects hold a state of a stream as of now, whether there is new data or not.

        As a rule a state goes with the data. It is missing where a block was put before the stream's state was rebuilt (a
        recovery of more than memory holds), and then nothing was appended.
        """
        self._blocks.part_of(stream, stream.next_offset)
        self.seal()
        await self.uploads.drain()

    async def _flush_all(self) -> None:
        while self._blocks.open.parts:
            self.seal()
            await self.uploads.drain()
        await self.uploads.drain()

    def may_pin(self, block: CacheBlock) -> bool:
        """Whether a slow reader may hold this block; False: copy what is read of it, its memory will be needed soon."""
        return self._blocks.may_pin(block)

    def _committed(self, block: CacheBlock, result: CommitResult) -> None:
        self._blocks.committed(block)
        for stream_id, reason in result.skipped.items():
            if self._blocks.appended_to(block, stream_id) is not None:
                closed = StreamClosed if reason is SkipReason.DELETED else StreamFenced
                self.forget_stream(stream_id, closed(f"stream {stream_id}: {reason.value}"))
        self._want_trim(block.wal_end_offset)
        self._wake_room()
        if self.second_uploads is not None and self.failed is None and not self._closing:
            self.second_uploads.committed(block)

    def _evicted(self, block: CacheBlock) -> None:
        if self.second_uploads is not None:
            self.second_uploads.evicted(block)

    # ---- figures ------------------------------------------------------------------------------------------------

    @property
    def recovered_bytes(self) -> int:
        """Payload bytes that were in the WAL only when this node started."""
        return self._recovery.recovered_bytes

    @property
    def unuploaded_bytes(self) -> int:
        """Payload bytes that the WAL holds and no committed object does: what is lost with its disk."""
        return self._blocks.unuploaded_bytes

    @property
    def unuploaded_age_s(self) -> float:
        """How long the oldest of `unuploaded_bytes` has been waiting; from the start, where it was recovered."""
        return self._blocks.unuploaded_age_s

    def unuploaded(self) -> list[UnuploadedRange]:
        """By stream, what of `unuploaded_bytes` is acknowledged and belongs to streams that are this node's; walks all that is not uploaded."""
        return self._blocks.unuploaded()

    @property
    def wal_used_bytes(self) -> int:
        """Of the WAL's capacity: what is not trimmed yet."""
        return self._wal.end_offset - self._wal.trim_offset

    @property
    def wal(self) -> WriteAheadLog:
        """The log, for its figures."""
        return self._wal

    def _want_trim(self, wal_offset: int) -> None:
        if wal_offset > self._trim_wanted:
            self._trim_wanted = wal_offset
            self._trim_event.set()

    async def _trim_wal(self) -> None:
        """Trim as commits come in; several of them in one header write."""
        while True:
            await self._trim_event.wait()
            self._trim_event.clear()
            try:
                await self._wal.trim(self._trim_wanted)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._fail(error)
                return
            self._wake_room()

    async def _touch_arena(self) -> None:
        """Touch the arena's fresh pages ahead of the appends, in steps too short to be noticed."""
        at = 0
        while at < self.arena.size_bytes:
            at = self.arena.touch(at, TOUCH_STEP_BYTES)
            await asyncio.sleep(TOUCH_PAUSE_S)

    async def _seal_by_age(self) -> None:
        """Upload what has waited long enough, also under little load."""
        loop = asyncio.get_running_loop()
        max_age_s = self.settings.upload_interval_ms / 1000
        while True:
            opened_at = self._blocks.open.opened_at
            due = max_age_s if opened_at is None else opened_at + max_age_s - loop.time()
            if due <= 0:
                self.seal()
                due = max_age_s
            await asyncio.sleep(due)


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None or isinstance(error, StreamClosed):  # one that was deleted meanwhile does not matter here
        future.set_result(None)
    else:
        future.set_exception(error)
