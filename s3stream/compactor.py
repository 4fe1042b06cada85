"""Carries compaction plans out: reads the sources, checks them, writes the new objects, commits.

Always true:
- Every block is checked against its CRC before it is rewritten; a source that fails twice is left alone, loudly, for good. So is
  one that is gone time and again, or lies in an archive.
- Large runs of blocks are copied by the store, with the CRCs that they have in their source's index. Nothing is made valid by that: the
  store tells the CRC of its copy, and it must be what those of the blocks come to. Of a store that does not tell it the
  blocks are read and checked first, as if they were rewritten, and only the way back is spared.
- Before the commit names new objects, the store has told the CRC of all that it has of them; what a store does not tell it of is read
  back, as far as the index.
- The commit names its sources. If one of them changed meanwhile it is refused, and the work is lost, nothing else: what was
  written is an orphan, which the collector finds. A job that replaces very many ranges is committed in steps; a source is referenced
  until the last of its ranges was replaced, so each step is as good as a job.
- One job at a time, within `memory_bytes` and at `rate_bytes_per_s`. All it needs is in the bucket and the metadata: it
  can run in any process.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from s3stream.compaction import CompactionPlan, PlannedObject, PlannedRange, choosing, plan_outputs
from s3stream.compaction_source import CompactionSource, DamagedSource
from s3stream.config import CompactionSettings
from s3stream.errors import MetadataUnavailable, ObjectExpired, SourcesChanged
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    NewObject,
    ObjectId,
    ObjectRange,
    StreamId,
    StreamRange,
)
from s3stream.object_format import IndexEntry, ObjectBuilder
from s3stream.objectstore import (
    Buffer,
    CopyUnconfirmed,
    CopyUnsupported,
    NotFound,
    ObjectStore,
    ObjectStoreError,
    StoredRange,
)
from s3stream.paths import Paths
from s3stream.splicing import Copy, Rewrite, Splicer

__all__ = ["CompactionMetadata", "Compactor"]

_T = TypeVar("_T")

_log = logging.getLogger("tidelog.compaction")

_LEAST_BUFFER_BYTES = 64 << 10
_LEAST_PAUSE_S = 0.005
"""Shorter ones cost more than they bring."""
_READ_SHARE = 0.75
"""Of the memory: what is read. The rest is for the part being written."""
_COPY_ATTEMPTS = 3
"""With a CRC, without, and by ourselves."""
_INDEX_PARALLELISM = 8
"""Indexes read at a time: of many small sources nearly all of the time is waiting."""
_COMMIT_RANGES = 10_000
"""Ranges replaced by one commit, or little more: each takes the broker's event loop 1.5 us, which nobody should notice."""
_COMMIT_ATTEMPTS = 5
_FIRST_COMMIT_DELAY_S = 1.0
_MISSING_ATTEMPTS = 5
"""After so many jobs that found an object gone it is left alone, so that all others are compacted."""
_MAX_DAMAGED = 1000
"""Damaged objects that are remembered; more than that, and compaction stops."""


class _Copying(enum.Enum):
    """How far the store's copies go."""

    CONFIRMED = "it tells the CRC of what it copied"
    READ_FIRST = "it does not, so the source is checked by reading it"
    NONE = "it does not copy"


class CompactionMetadata(Protocol):
    """What compaction needs of the metadata log; see `StreamMetadata`."""

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        """Ids never given out before."""

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        """Put objects in the place of their sources."""

    async def catch_up(self) -> None:
        """Read the metadata log to its tail. Raises MetadataUnavailable."""

    def live_objects(self) -> Sequence[NewObject]:
        """Every referenced object with its live ranges, by object id."""

    def newest_state(self, stream_id: StreamId) -> ObjectRange | None:
        """Where a stream's newest state is."""

    def log_start_offset(self, stream_id: StreamId) -> int | None:
        """First offset that may be read; None for a deleted stream."""


class Compactor:
    """Merges objects, in the background or step by step."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        paths: Paths,
        metadata: CompactionMetadata,
        settings: CompactionSettings,
        block_size_bytes: int,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._paths = paths
        self._metadata = metadata
        self._settings = settings
        self._block_size_bytes = block_size_bytes
        self._rng = rng
        self._damaged: set[ObjectId] = set()
        self._suspected: set[ObjectId] = set()
        """Did not match their CRCs once."""
        self._missing: Counter[ObjectId] = Counter()
        """How often an object was not there that is referenced as far as is known here."""
        self._written: set[ObjectId] = set()
        """By this compactor, and still referenced."""
        self.jobs = 0
        """Jobs committed."""
        self.discarded_jobs = 0
        """Jobs whose sources changed, or whose store failed, before the commit."""
        self.read_bytes = 0
        self.written_bytes = 0
        self.copied_bytes = 0
        """By the store; neither read nor written here, or only read."""
        self._copying = _Copying.CONFIRMED
        self._ahead_s = 0.0
        """Of the rate at which may be read."""

    @property
    def damaged_objects(self) -> int:
        """Objects that did not match their CRCs twice, and are left alone."""
        return len(self._damaged)

    async def run(self) -> None:
        """Compact until cancelled."""
        while True:
            await asyncio.sleep(self._settings.interval_ms / 1000 * (0.5 + self._rng.random()))
            try:
                discarded = self.discarded_jobs
                # A discarded job would be planned again at once, in vain where its source is gone: that can wait.
                while await self.run_once() and self.discarded_jobs == discarded:
                    pass
            except (ObjectStoreError, MetadataUnavailable) as error:
                self.discarded_jobs += 1
                _log.warning("compaction put off: %(error)s", {"error": error})

    async def run_once(self) -> bool:
        """Carry out one job; False where there is nothing to do.

        Raises:
            ObjectStoreError, MetadataUnavailable: it could not be done now.
        """
        if len(self._damaged) >= _MAX_DAMAGED:
            return False
        sources = await self._choose()
        if not sources:
            return False
        plan = plan_outputs(
            sources,
            log_start_offset_of=self._metadata.log_start_offset,
            newest_state_of=self._newest_state_of,
            settings=self._settings,
        )
        try:
            await self._carry_out(plan, sources)
        except (SourcesChanged, ObjectExpired, NotFound) as error:
            self.discarded_jobs += 1
            _log.info("compaction discarded: %(error)s", {"error": error})
        except DamagedSource as damaged:
            if self._copying is _Copying.READ_FIRST:
                self._copying = _Copying.CONFIRMED  # so it was not the store that could not confirm
            if damaged.object_id in self._suspected:
                self._damaged.add(damaged.object_id)
                _log.error(
                    "compaction leaves a damaged object alone: %(error)s",
                    {"object_id": damaged.object_id, "error": damaged.__cause__},
                )
            else:
                self._suspected.add(damaged.object_id)  # the network may be at fault: it is read once more
                _log.warning(
                    "compaction reads an object again: %(error)s",
                    {"object_id": damaged.object_id, "error": damaged.__cause__},
                )
        else:
            self.jobs += 1
        return True

    async def _choose(self) -> tuple[NewObject, ...]:
        """Look for something to merge, letting others run. What changes meanwhile, the commit finds out."""
        objects = self._metadata.live_objects()
        live = {each.object_id for each in objects}
        self._written &= live
        self._suspected &= live
        self._missing = Counter({object_id: count for object_id, count in self._missing.items() if object_id in live})
        steps = choosing(objects, self._settings, excluded=self._damaged, whole=self._written)
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                chosen: tuple[NewObject, ...] = stop.value
                return chosen
            await asyncio.sleep(0)

    def _newest_state_of(self, stream_id: StreamId) -> ObjectId | None:
        found = self._metadata.newest_state(stream_id)
        return None if found is None else found.object_id

    async def _commit(self, commit: CommitObjects) -> None:
        """Commit; idempotent, so a lost reply is asked for again."""
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                await self._metadata.commit_objects(commit)
                return
            except MetadataUnavailable:
                if attempt == _COMMIT_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(_FIRST_COMMIT_DELAY_S * 2**attempt * (0.5 + self._rng.random()))

    async def _carry_out(self, plan: CompactionPlan, objects: Sequence[NewObject]) -> None:
        """Open the sources, write and commit, close the sources."""
        buffer_bytes = max(_LEAST_BUFFER_BYTES, int(self._settings.memory_bytes * _READ_SHARE) // len(objects))
        slots = asyncio.Semaphore(_INDEX_PARALLELISM)

        async def opened(source: NewObject) -> CompactionSource:
            async with slots:
                return await self._open_source(source, buffer_bytes)

        sources: dict[ObjectId, CompactionSource] = {}
        for source in await _gathered([opened(each) for each in objects]):
            sources[source.object_id] = source
        try:
            await self._write(plan, sources)
        finally:
            for source in sources.values():
                await source.close()

    async def _write(self, plan: CompactionPlan, sources: dict[ObjectId, CompactionSource]) -> None:
        """Write and commit: all at once, or some outputs at a time where they stand for very many ranges."""
        for output in plan.outputs:
            for planned in output.ranges:
                for object_id, piece in planned.pieces:
                    sources[object_id].will_give(piece)
        object_ids = await self._metadata.new_object_ids(len(plan.outputs))
        written: list[NewObject] = []
        replaced: set[ObjectId] = set()
        ranges = 0
        for number, (object_id, output) in enumerate(zip(object_ids, plan.outputs, strict=True), start=1):
            written.append(await self._write_object(object_id, output, sources))
            for planned in output.ranges:
                replaced.update(source_id for source_id, _ in planned.pieces)
                ranges += len(planned.pieces)
            if ranges >= _COMMIT_RANGES or number == len(plan.outputs):
                await self._commit(CommitObjects(objects=tuple(written), sources=tuple(sorted(replaced))))
                self._written.update(each.object_id for each in written)
                written, replaced, ranges = [], set(), 0

    async def _write_object(
        self, object_id: ObjectId, output: PlannedObject, sources: dict[ObjectId, CompactionSource]
    ) -> NewObject:
        for _ in range(_COPY_ATTEMPTS):
            copying = self._copying
            try:
                return await self._put(object_id, output, sources, copying)
            except (CopyUnsupported, CopyUnconfirmed) as error:
                self._copying = _Copying.NONE if isinstance(error, CopyUnsupported) else _Copying.READ_FIRST
                why = error
            _log.info(
                "compaction copies otherwise: %(copying)s (%(error)s)",
                {"copying": self._copying.value, "error": why, "object_id": object_id},
            )
        raise ObjectStoreError(f"object {object_id} cannot be put together: {why}") from why

    async def _put(
        self, object_id: ObjectId, output: PlannedObject, sources: dict[ObjectId, CompactionSource], copying: _Copying
    ) -> NewObject:
        builder = ObjectBuilder(object_id)
        ranges: list[StreamRange] = []
        layout = self._layout(output, sources, copying)
        copied = sum(step.end - step.start for _, steps, _ in layout for step in steps if isinstance(step, Copy))
        tail = b""

        async def body() -> AsyncIterator[Buffer | StoredRange]:
            nonlocal tail
            for planned, steps, state_entry in layout:
                async for part in self._parts(planned, steps, state_entry, sources, builder, ranges, copying):
                    yield part
            tail = builder.finish().data
            yield tail

        async def buffers() -> AsyncIterator[Buffer]:
            async for part in body():
                assert not isinstance(part, StoredRange), "nothing is copied"
                yield part

        key = self._paths.data_object(object_id)
        put = self._store.put_composed(key, body()) if copied else self._store.put_multipart(key, buffers())
        written = await put
        size = builder.body_size_bytes + len(tail)
        self.copied_bytes += copied
        self.written_bytes += size - copied
        if not written.is_confirmed:
            found, found_size = await self._store.get_tail(key, len(tail))
            if (found, found_size) != (tail, size):
                raise ObjectStoreError(f"object {object_id} does not read back as it was written")
        return NewObject(object_id=object_id, size_bytes=size, ranges=tuple(ranges))

    def _layout(
        self, output: PlannedObject, sources: dict[ObjectId, CompactionSource], copying: _Copying
    ) -> list[tuple[PlannedRange, list[Copy | Rewrite], IndexEntry | None]]:
        """What is to be done for each range, and the state that follows it."""
        splicer = Splicer(self._block_size_bytes, copies=copying is not _Copying.NONE)
        layout: list[tuple[PlannedRange, list[Copy | Rewrite], IndexEntry | None]] = []
        for planned in output.ranges:
            steps: list[Copy | Rewrite] = []
            for object_id, piece in planned.pieces:
                steps += splicer.steps(object_id, sources[object_id].entries(piece, planned.needed_offset))
            state_entry = None
            if planned.state_source is not None:
                state_entry = sources[planned.state_source].state_entry(planned.stream_id)
                splicer.wrote(state_entry.size_bytes)
            layout.append((planned, steps, state_entry))
        reads: dict[ObjectId, list[IndexEntry]] = {object_id: [] for object_id in sources}
        for planned, steps, state_entry in layout:
            for step in steps:
                if isinstance(step, Rewrite) or copying is _Copying.READ_FIRST:
                    reads[step.object_id] += step.blocks
            if planned.state_source is not None and state_entry is not None:
                reads[planned.state_source].append(state_entry)
        for object_id, entries in reads.items():
            sources[object_id].expect(entries, is_copied_from=copying is _Copying.CONFIRMED)
        return layout

    async def _parts(
        self,
        planned: PlannedRange,
        steps: Sequence[Copy | Rewrite],
        state_entry: IndexEntry | None,
        sources: dict[ObjectId, CompactionSource],
        builder: ObjectBuilder,
        ranges: list[StreamRange],
        copying: _Copying,
    ) -> AsyncIterator[Buffer | StoredRange]:
        """Yield a range's blocks, small neighbours joined and large runs left to the store; then its state."""
        stream_id = planned.stream_id
        last = planned.pieces[-1][1]
        size = record_count = 0
        max_timestamp_ms = -1
        group: list[tuple[IndexEntry, Buffer]] = []
        for step in steps:
            source = sources[step.object_id]
            for entry in step.blocks:
                size += entry.size_bytes
                record_count += entry.record_count
                max_timestamp_ms = max(max_timestamp_ms, entry.max_timestamp_ms)
            if isinstance(step, Copy):
                for buffer in _add_block(builder, group, last.leader_epoch):
                    yield buffer
                group = []
                yield await self._copied(step, source, builder, last.leader_epoch, copying)
                continue
            for entry in step.blocks:
                if group and sum(each.size_bytes for each, _ in group) + entry.size_bytes > self._block_size_bytes:
                    for buffer in _add_block(builder, group, last.leader_epoch):
                        yield buffer
                    group = []
                group.append((entry, await source.read(entry)))
        for buffer in _add_block(builder, group, last.leader_epoch):
            yield buffer
        if planned.state_source is not None and state_entry is not None:
            state = bytes(await sources[planned.state_source].read(state_entry))
            builder.add_state(
                stream_id=stream_id, leader_epoch=last.leader_epoch, end_offset=state_entry.end_offset, state=state
            )
            yield state
        ranges.append(
            StreamRange(
                stream_id=stream_id,
                leader_epoch=last.leader_epoch,
                base_offset=planned.pieces[0][1].base_offset,
                end_offset=last.end_offset,
                record_count=record_count,
                size_bytes=size,
                max_timestamp_ms=max_timestamp_ms,
                has_state=planned.state_source is not None,
            )
        )

    async def _copied(
        self, step: Copy, source: CompactionSource, builder: ObjectBuilder, leader_epoch: int, copying: _Copying
    ) -> StoredRange:
        """What the store is to copy, in the index of the new object."""
        for entry in step.blocks:
            if copying is _Copying.READ_FIRST:
                await source.read(entry)
            builder.add_copy(entry, leader_epoch=leader_epoch)
        return StoredRange(
            key=self._paths.data_object(step.object_id),
            start=step.start,
            end=step.end,
            crc32c=step.crc32c if copying is _Copying.CONFIRMED else None,
        )

    async def _open_source(self, source: NewObject, buffer_bytes: int) -> CompactionSource:
        object_id = source.object_id
        try:
            return await CompactionSource.open(
                self._store,
                self._paths.data_object(object_id),
                source,
                buffer_bytes=buffer_bytes,
                block_size_bytes=self._block_size_bytes,
                on_received=self._received,
            )
        except NotFound as error:
            await self._metadata.catch_up()
            if all(each.object_id != object_id for each in self._metadata.live_objects()):
                raise  # it was compacted or trimmed away meanwhile
            self._missing[object_id] += 1
            if self._missing[object_id] < _MISSING_ATTEMPTS:
                raise
            self._suspected.add(object_id)
            raise DamagedSource(object_id) from error

    async def _received(self, size: int) -> None:
        """Read at the configured rate."""
        self.read_bytes += size
        self._ahead_s += size / self._settings.rate_bytes_per_s
        if self._ahead_s >= _LEAST_PAUSE_S:
            pause_s, self._ahead_s = self._ahead_s, 0.0
            await asyncio.sleep(pause_s)


async def _gathered(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Do all of it; the first failure ends the others, and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _add_block(builder: ObjectBuilder, group: Sequence[tuple[IndexEntry, Buffer]], leader_epoch: int) -> list[Buffer]:
    """Make one block of several, if there are any; returns its bytes."""
    if not group:
        return []
    first, last = group[0][0], group[-1][0]
    parts = [buffer for _, buffer in group]
    builder.add_data(
        stream_id=first.stream_id,
        leader_epoch=leader_epoch,
        base_offset=first.base_offset,
        end_offset=last.end_offset,
        record_count=sum(entry.record_count for entry, _ in group),
        max_timestamp_ms=max(entry.max_timestamp_ms for entry, _ in group),
        parts=parts,
    )
    return parts
