"""Carries compaction plans out: reads the sources, checks them, writes the new objects, commits.

Always true:
- Every block is checked against its CRC before it is rewritten; a source that fails twice is left alone, loudly, for good. So is
  one that is gone time and again.
- Large runs of blocks are copied by the store, with the CRCs that they have in their source's index. Nothing is made valid by that: the
  store tells the CRC of its copy, and it must be what those of the blocks come to. Of a store that does not tell it the
  blocks are read and checked first, as if they were rewritten, and only the way back is spared.
- New objects are read back as far as their index before the commit names them.
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
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from s3stream.compaction import CompactionPlan, PlannedObject, PlannedRange, choosing, plan_outputs
from s3stream.config import CompactionSettings
from s3stream.errors import (
    MetadataUnavailable,
    ObjectCorrupt,
    ObjectExpired,
    SourcesChanged,
    UnsupportedObjectFormat,
)
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    NewObject,
    ObjectId,
    ObjectRange,
    StreamId,
    StreamRange,
)
from s3stream.object_format import (
    FOOTER_SIZE_BYTES,
    IndexEntry,
    ObjectBuilder,
    ObjectIndex,
    check_block,
    parse_footer,
)
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

_TAIL_SIZE_BYTES = 64 << 10
_LEAST_CHUNK_BYTES = 64 << 10
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
            await self._carry_out(plan)
        except (SourcesChanged, ObjectExpired, NotFound) as error:
            self.discarded_jobs += 1
            _log.info("compaction discarded: %(error)s", {"error": error})
        except _Damaged as damaged:
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

    async def _carry_out(self, plan: CompactionPlan) -> None:
        """Write and commit: all at once, or some outputs at a time where they stand for very many ranges."""
        chunk_size = max(_LEAST_CHUNK_BYTES, int(self._settings.memory_bytes * _READ_SHARE) // len(plan.sources))
        slots = asyncio.Semaphore(_INDEX_PARALLELISM)

        async def opened(object_id: ObjectId) -> _Source:
            async with slots:
                return await self._open_source(object_id, chunk_size)

        sources: dict[ObjectId, _Source] = {}
        for source in await _gathered([opened(object_id) for object_id in plan.sources]):
            sources[source.object_id] = source
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
        self, object_id: ObjectId, output: PlannedObject, sources: dict[ObjectId, _Source]
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
        self, object_id: ObjectId, output: PlannedObject, sources: dict[ObjectId, _Source], copying: _Copying
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
        await (self._store.put_composed(key, body()) if copied else self._store.put_multipart(key, buffers()))
        size = builder.body_size_bytes + len(tail)
        self.copied_bytes += copied
        self.written_bytes += size - copied
        found, found_size = await self._store.get_tail(key, len(tail))
        if (found, found_size) != (tail, size):
            raise ObjectStoreError(f"object {object_id} does not read back as it was written")
        return NewObject(object_id=object_id, size_bytes=size, ranges=tuple(ranges))

    def _layout(
        self, output: PlannedObject, sources: dict[ObjectId, _Source], copying: _Copying
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
        copied_from: dict[ObjectId, list[int]] = {object_id: [] for object_id in sources}
        if copying is _Copying.CONFIRMED:
            for _, steps, _ in layout:
                for step in steps:
                    if isinstance(step, Copy):
                        copied_from[step.object_id].append(step.start)
        for object_id, positions in copied_from.items():
            sources[object_id].copied_from = sorted(positions)
        return layout

    async def _parts(
        self,
        planned: PlannedRange,
        steps: Sequence[Copy | Rewrite],
        state_entry: IndexEntry | None,
        sources: dict[ObjectId, _Source],
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
        self, step: Copy, source: _Source, builder: ObjectBuilder, leader_epoch: int, copying: _Copying
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

    async def _open_source(self, object_id: ObjectId, chunk_size: int) -> _Source:
        """Read a source's index; of a small one the whole is there with it."""
        key = self._paths.data_object(object_id)
        try:
            tail, object_size = await self._store.get_tail(key, _TAIL_SIZE_BYTES)
        except NotFound as error:
            self._missing[object_id] += 1
            if self._missing[object_id] < _MISSING_ATTEMPTS:
                raise  # it was compacted or trimmed away, as a rule, and the metadata here does not know yet
            self._suspected.add(object_id)
            raise _Damaged(object_id) from error
        try:
            footer = parse_footer(tail, object_size, object_id)
            at = len(tail) - FOOTER_SIZE_BYTES - footer.index_size_bytes
            if at >= 0:
                raw = tail[at : at + footer.index_size_bytes]
            else:
                end = footer.index_position + footer.index_size_bytes
                raw = bytes(await self.read_range(object_id, footer.index_position, end))
            source = _Source(self, object_id, ObjectIndex(footer, raw), chunk_size)
            if len(tail) == object_size:
                source.hold(tail)
            return source
        except (ObjectCorrupt, UnsupportedObjectFormat) as error:
            raise _Damaged(object_id) from error

    async def read_range(self, object_id: ObjectId, start: int, end: int) -> bytes | bytearray:
        """Read at the configured rate."""
        data = await self._store.get_range(self._paths.data_object(object_id), start, end)
        self.read_bytes += len(data)
        await asyncio.sleep(len(data) / self._settings.rate_bytes_per_s)
        return data


async def _gathered(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Do all of it; the first failure ends the others, and is raised as it is."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Damaged(Exception):
    """A source cannot be trusted; the cause says why."""

    def __init__(self, object_id: ObjectId) -> None:
        super().__init__(f"object {object_id}")
        self.object_id = object_id


class _Source:
    """Reads the blocks of one source front to back, a chunk at a time, each checked."""

    def __init__(self, compactor: Compactor, object_id: ObjectId, index: ObjectIndex, chunk_size_bytes: int) -> None:
        self._compactor = compactor
        self.object_id = object_id
        self._index = index
        self._chunk_size = chunk_size_bytes
        self._chunk = memoryview(b"")
        self._position = 0
        """Of the chunk."""
        self.copied_from: Sequence[int] = ()
        """Positions, ascending, where begins what need not be read."""

    def hold(self, start: bytes) -> None:
        """Take an object's first bytes for the first chunk."""
        self._chunk = memoryview(start)
        self._position = 0
        self._compactor.read_bytes += len(start)

    def entries(self, piece: StreamRange, needed_offset: int) -> list[IndexEntry]:
        """The data blocks of a range that are still needed."""
        entries = list(self._index.data_entries(piece.stream_id))
        held = sum(entry.record_count for entry in entries)
        outside = entries and not (
            piece.base_offset <= entries[0].base_offset and entries[-1].end_offset <= piece.end_offset
        )
        if held != piece.record_count or outside:
            raise _Damaged(self.object_id) from ObjectCorrupt(
                f"object {self.object_id} does not hold what was committed: stream {piece.stream_id}, offsets"
                f" {piece.base_offset} to {piece.end_offset} (exclusive), {piece.record_count} records, but {held}"
            )
        return [entry for entry in entries if entry.end_offset > needed_offset]

    def state_entry(self, stream_id: StreamId) -> IndexEntry:
        """The state block that the metadata says is here."""
        entry = self._index.state_entry(stream_id)
        if entry is None:
            raise _Damaged(self.object_id) from ObjectCorrupt(
                f"object {self.object_id} does not hold the state of stream {stream_id} that was committed"
            )
        return entry

    async def read(self, entry: IndexEntry) -> Buffer:
        """A block, checked."""
        at = entry.position - self._position
        if not 0 <= at <= at + entry.size_bytes <= len(self._chunk):
            end = max(entry.position + entry.size_bytes, self._last_end(entry.position + self._chunk_size))
            next_copied = bisect_right(self.copied_from, entry.position)
            end = min([end, *self.copied_from[next_copied : next_copied + 1]])
            self._chunk = memoryview(b"")  # freed before the next one comes
            self._chunk = memoryview(await self._compactor.read_range(self.object_id, entry.position, end))
            self._position, at = entry.position, 0
        block = self._chunk[at : at + entry.size_bytes]
        try:
            check_block(self.object_id, entry, block)
        except ObjectCorrupt as error:
            raise _Damaged(self.object_id) from error
        return block

    def _last_end(self, limit: int) -> int:
        """Where the last block ends that ends at or below a position: what is read of a block that is cut is read twice."""
        index = self._index

        def end_of(number: int) -> int:
            entry = index.entry(number)
            return entry.position + entry.size_bytes

        whole = bisect_right(range(index.entry_count), limit, key=end_of)
        return end_of(whole - 1) if whole else 0


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
