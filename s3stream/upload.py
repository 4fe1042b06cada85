"""Upload of sealed cache blocks: PUTs in parallel, commits in order, then the WAL is trimmed.

Always true:
- A block is put only after its last frame is durable in the WAL, and the WAL is trimmed only past what is
  committed (I6).
- Blocks are committed in the order in which they were sealed, so ranges of a stream are contiguous (I5).
- An object store that fails is tried again for ever, with back-off: the WAL keeps what was acknowledged, and a full
  WAL holds producers back. Nothing is given up here.
- A commit whose reply was lost is sent again under the same object ids, which makes it idempotent.
- Small payloads are copied for a PUT: what all PUTs hold in copies is bounded, one block aside, and given up when it is put.
- A stream that was deleted or fenced is skipped by the commit and closed here; it never holds up the others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace

from s3stream.errors import MetadataUnavailable, ObjectExpired, StorageFenced
from s3stream.log_cache import BlockState, CacheBlock
from s3stream.metadata import CommitObjects, CommitResult, NewObject, ObjectId, SkipReason, StreamId, StreamMetadata
from s3stream.object_writer import BuiltObject, StreamSource, assemble_in_turns, plan_objects
from s3stream.objectstore import ObjectStore, ObjectStoreError
from s3stream.paths import Paths
from wal import crashpoint
from wal.histogram import Histogram

__all__ = ["Uploader"]

_log = logging.getLogger("tidelog.uploads")

RETRY_FIRST_DELAY_S = 0.05
RETRY_MAX_DELAY_S = 5.0
"""Back-off between attempts of a PUT or a commit: short enough to recover with the store, long enough not to hammer it."""


class Uploader:
    """Takes sealed blocks in order; calls back for each when it is committed."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        metadata: StreamMetadata,
        paths: Paths,
        describe: Callable[[CacheBlock], list[StreamSource]],
        on_committed: Callable[[CacheBlock, CommitResult], None],
        on_failed: Callable[[BaseException], None],
        parallelism: int,
        copy_budget_bytes: int,
        block_size_bytes: int,
        stream_object_min_bytes: int,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._metadata = metadata
        self._paths = paths
        self._describe = describe
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._slots = asyncio.Semaphore(parallelism)
        self.copies = _CopyBudget(copy_budget_bytes)
        """What all PUTs of this node hold in copies of small payloads."""
        self._block_size_bytes = block_size_bytes
        self._stream_object_min_bytes = stream_object_min_bytes
        self._rng = rng
        self._clock = clock
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._durable_waiters: deque[tuple[int, asyncio.Event]] = deque()
        self._durable_offset = 0
        self._last: asyncio.Future[None] | None = None
        """Done when the block submitted last is committed."""
        self.failed_attempts = 0
        """PUTs and commits that had to be tried again, since start."""
        self.put_durations = Histogram()
        """Seconds in which all objects of a block were put, attempts included."""
        self.commit_durations = Histogram()
        """Seconds in which they were committed, in turn, attempts included."""
        self.uploaded_bytes = 0
        self.uploaded_objects = 0

    def durable(self, wal_offset: int) -> None:
        """The WAL is durable up to here: blocks below may be put."""
        self._durable_offset = wal_offset
        waiters = self._durable_waiters
        while waiters and waiters[0][0] <= wal_offset:
            waiters.popleft()[1].set()

    def submit(self, block: CacheBlock) -> None:
        """Queue a sealed block."""
        assert block.state is BlockState.SEALED
        previous = self._last
        committed = asyncio.get_running_loop().create_future()
        self._last = committed
        task = asyncio.get_running_loop().create_task(self._upload(block, previous, committed))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def drain(self) -> None:
        """Wait until everything submitted so far is committed."""
        if self._last is not None:
            await asyncio.wait([self._last])
            if self._last.cancelled():
                raise StorageFenced("uploads have stopped")

    async def close(self) -> None:
        """Stop without waiting for what is under way: the WAL still holds it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._last is not None:
            self._last.cancel()

    async def _upload(
        self, block: CacheBlock, previous: asyncio.Future[None] | None, committed: asyncio.Future[None]
    ) -> None:
        try:
            await self._wait_durable(block.wal_end_offset)
            async with self._slots:
                began = self._clock()
                objects = await self._put(block)
                self.put_durations.observe(self._clock() - began)
            crashpoint.reach("upload.put")
            if previous is not None:
                await asyncio.shield(previous)
            began = self._clock()
            result = await self._commit(block, objects)
            self.commit_durations.observe(self._clock() - began)
            crashpoint.reach("upload.committed")
            block.state = BlockState.COMMITTED
            self._on_committed(block, result)
            committed.set_result(None)
        except asyncio.CancelledError:
            committed.cancel()
            raise
        except BaseException as error:
            # Ours or the metadata's refusal for good: the node must stop; successors must not wait for ever.
            committed.cancel()
            self._on_failed(error)

    async def _wait_durable(self, wal_offset: int) -> None:
        if self._durable_offset < wal_offset:
            event = asyncio.Event()
            self._durable_waiters.append((wal_offset, event))
            await event.wait()

    async def _put(self, block: CacheBlock) -> list[NewObject]:
        """Put the block's objects under fresh ids; returns what is to be committed once all are there."""
        copied_bytes = block.copied_bytes
        await self.copies.take(copied_bytes)
        try:
            return await self._put_objects(block)
        finally:
            self.copies.give(copied_bytes)

    async def _put_objects(self, block: CacheBlock) -> list[NewObject]:
        data = self._describe(block)
        if not data:
            return []
        delay_s = RETRY_FIRST_DELAY_S
        built: list[BuiltObject] | None = None
        done: set[ObjectId] = set()
        while True:
            try:
                if built is None:
                    built = await self._build(data)
                for item in built:
                    if item.new_object.object_id not in done:
                        # The same bytes under the same key: an attempt whose reply was lost does no harm.
                        key = self._paths.data_object(item.new_object.object_id)
                        await self._store.put(key, item.parts, crc32c=item.crc32c)
                        done.add(item.new_object.object_id)
                        for stream_id, crc in item.data_crcs.items():
                            block.parts[stream_id][1].crc32c = crc
                return [item.new_object for item in built]
            except (ObjectStoreError, MetadataUnavailable) as error:
                delay_s = await self._back_off(delay_s, error)

    async def _build(self, sources: list[StreamSource]) -> list[BuiltObject]:
        """Lay the objects out, letting others run after each data block."""
        groups = plan_objects(sources, stream_object_min_bytes=self._stream_object_min_bytes)
        object_ids = await self._metadata.new_object_ids(len(groups))
        return [
            await assemble_in_turns(object_id, group, block_size_bytes=self._block_size_bytes)
            for object_id, group in zip(object_ids, groups, strict=True)
        ]

    async def _commit(self, block: CacheBlock, objects: list[NewObject]) -> CommitResult:
        delay_s = RETRY_FIRST_DELAY_S
        if not objects:
            return CommitResult(skipped={})
        while True:
            try:
                result = await self._metadata.commit_objects(CommitObjects(objects=tuple(objects)))
            except MetadataUnavailable as error:
                delay_s = await self._back_off(delay_s, error)
            except ObjectExpired:
                objects = await self._put(block)  # we took longer than the collector's patience: new ids
            else:
                self.uploaded_objects += len(objects)
                self.uploaded_bytes += sum(item.size_bytes for item in objects)
                _refuse_gaps(result)
                block.objects = tuple(_accepted(each, result.skipped) for each in objects)
                return result

    async def _back_off(self, delay_s: float, error: Exception) -> float:
        self.failed_attempts += 1
        _log.warning("an upload is tried again: %(error)s", {"error": error})
        await asyncio.sleep(delay_s * (0.5 + self._rng.random()))
        return min(delay_s * 2, RETRY_MAX_DELAY_S)


class _CopyBudget:
    """Memory for copies of payloads. Whoever finds nothing held may take more than there is: blocks may be larger than that."""

    __slots__ = ("_held_bytes", "_most_bytes", "_waiting")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, size: int) -> None:
        """Return when there is room for `size` bytes, which are held from then on."""
        while size and self._held_bytes and self._held_bytes + size > self._most_bytes:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._held_bytes += size

    def give(self, size: int) -> None:
        """So much is held no more."""
        self._held_bytes -= size
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


def _accepted(each: NewObject, skipped: Collection[StreamId]) -> NewObject:
    if not skipped:
        return each
    return replace(each, ranges=tuple(value for value in each.ranges if value.stream_id not in skipped))


def _refuse_gaps(result: CommitResult) -> None:
    """Nobody but us writes a stream under our epoch, so a gap is a fault that must not be trimmed out of the WAL."""
    gaps = sorted(stream for stream, reason in result.skipped.items() if reason is SkipReason.NOT_CONTIGUOUS)
    if gaps:
        raise StorageFenced(
            f"streams {gaps}: objects do not end where this node's data begins; the WAL is kept as it is, inspect it"
        )
