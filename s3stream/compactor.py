"""Carries compaction plans out: reads the sources, checks them, writes the new objects, commits.

Always true:
- Every block is checked against its CRC before it is rewritten; a source that fails twice is left alone, loudly, for good.
- New objects are read back as far as their index before the commit names them.
- The commit names its sources. If one of them changed meanwhile it is refused, and the work is lost, nothing else: what was
  written is an orphan, which the collector finds.
- One job at a time, within `memory_bytes` and at `rate_bytes_per_s`. All it needs is in the bucket and the metadata: it
  can run in any process.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

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
from s3stream.objectstore import Buffer, NotFound, ObjectStore, ObjectStoreError
from s3stream.paths import Paths

__all__ = ["CompactionMetadata", "Compactor"]

_log = logging.getLogger("tidelog.compaction")

_TAIL_SIZE_BYTES = 64 << 10
_LEAST_CHUNK_BYTES = 64 << 10
_COMMIT_ATTEMPTS = 5
_FIRST_COMMIT_DELAY_S = 1.0
_MAX_DAMAGED = 1000
"""Damaged objects that are remembered; more than that, and compaction stops."""


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
        self._written: set[ObjectId] = set()
        """By this compactor, and still referenced."""
        self.jobs = 0
        """Jobs committed."""
        self.discarded_jobs = 0
        """Jobs whose sources changed, or whose store failed, before the commit."""
        self.read_bytes = 0
        self.written_bytes = 0

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
            new_objects = await self._write(plan)
            await self._commit(CommitObjects(objects=tuple(new_objects), sources=plan.sources))
        except (SourcesChanged, ObjectExpired, NotFound) as error:
            self.discarded_jobs += 1
            _log.info("compaction discarded: %(error)s", {"error": error})
        except _Damaged as damaged:
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
            self._written.update(each.object_id for each in new_objects)
        return True

    async def _choose(self) -> tuple[NewObject, ...]:
        """Look for something to merge, letting others run. What changes meanwhile, the commit finds out."""
        objects = self._metadata.live_objects()
        live = {each.object_id for each in objects}
        self._written &= live
        self._suspected &= live
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

    async def _write(self, plan: CompactionPlan) -> list[NewObject]:
        chunk_size = max(_LEAST_CHUNK_BYTES, self._settings.memory_bytes // 2 // len(plan.sources))
        sources: dict[ObjectId, _Source] = {}
        for object_id in plan.sources:
            sources[object_id] = _Source(self, object_id, await self._read_index(object_id), chunk_size)
        object_ids = await self._metadata.new_object_ids(len(plan.outputs))
        return [
            await self._write_object(object_id, output, sources)
            for object_id, output in zip(object_ids, plan.outputs, strict=True)
        ]

    async def _write_object(
        self, object_id: ObjectId, output: PlannedObject, sources: dict[ObjectId, _Source]
    ) -> NewObject:
        builder = ObjectBuilder(object_id)
        ranges: list[StreamRange] = []
        tail = b""

        async def body() -> AsyncIterator[Buffer]:
            nonlocal tail
            for planned in output.ranges:
                async for buffer in self._copy_range(planned, sources, builder, ranges):
                    yield buffer
            tail = builder.finish().data
            yield tail

        key = self._paths.data_object(object_id)
        await self._store.put_multipart(key, body())
        size = builder.body_size_bytes + len(tail)
        self.written_bytes += size
        found, found_size = await self._store.get_tail(key, len(tail))
        if (found, found_size) != (tail, size):
            raise ObjectStoreError(f"object {object_id} does not read back as it was written")
        return NewObject(object_id=object_id, size_bytes=size, ranges=tuple(ranges))

    async def _copy_range(
        self,
        planned: PlannedRange,
        sources: dict[ObjectId, _Source],
        builder: ObjectBuilder,
        ranges: list[StreamRange],
    ) -> AsyncIterator[Buffer]:
        """Yield a range's blocks, small neighbours joined, then its state."""
        stream_id = planned.stream_id
        last = planned.pieces[-1][1]
        size = record_count = 0
        max_timestamp_ms = -1
        group: list[tuple[IndexEntry, Buffer]] = []
        for object_id, piece in planned.pieces:
            source = sources[object_id]
            for entry in source.entries(piece, planned.needed_offset):
                if group and sum(each.size_bytes for each, _ in group) + entry.size_bytes > self._block_size_bytes:
                    for buffer in _add_block(builder, group, last.leader_epoch):
                        yield buffer
                    group = []
                group.append((entry, await source.read(entry)))
                size += entry.size_bytes
                record_count += entry.record_count
                max_timestamp_ms = max(max_timestamp_ms, entry.max_timestamp_ms)
        if group:
            for buffer in _add_block(builder, group, last.leader_epoch):
                yield buffer
        if planned.state_source is not None:
            state_entry = sources[planned.state_source].state_entry(stream_id)
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

    async def _read_index(self, object_id: ObjectId) -> ObjectIndex:
        key = self._paths.data_object(object_id)
        tail, object_size = await self._store.get_tail(key, _TAIL_SIZE_BYTES)
        try:
            footer = parse_footer(tail, object_size, object_id)
            at = len(tail) - FOOTER_SIZE_BYTES - footer.index_size_bytes
            if at >= 0:
                raw = tail[at : at + footer.index_size_bytes]
            else:
                end = footer.index_position + footer.index_size_bytes
                raw = bytes(await self.read_range(object_id, footer.index_position, end))
            return ObjectIndex(footer, raw)
        except (ObjectCorrupt, UnsupportedObjectFormat) as error:
            raise _Damaged(object_id) from error

    async def read_range(self, object_id: ObjectId, start: int, end: int) -> bytes | bytearray:
        """Read at the configured rate."""
        data = await self._store.get_range(self._paths.data_object(object_id), start, end)
        self.read_bytes += len(data)
        await asyncio.sleep(len(data) / self._settings.rate_bytes_per_s)
        return data


class _Damaged(Exception):
    """A source cannot be trusted; the cause says why."""

    def __init__(self, object_id: ObjectId) -> None:
        super().__init__(f"object {object_id}")
        self.object_id = object_id


class _Source:
    """Reads the blocks of one source front to back, a chunk at a time, each checked."""

    def __init__(self, compactor: Compactor, object_id: ObjectId, index: ObjectIndex, chunk_size_bytes: int) -> None:
        self._compactor = compactor
        self._object_id = object_id
        self._index = index
        self._chunk_size = chunk_size_bytes
        self._chunk = memoryview(b"")
        self._position = 0
        """Of the chunk."""

    def entries(self, piece: StreamRange, needed_offset: int) -> list[IndexEntry]:
        """The data blocks of a range that are still needed."""
        entries = list(self._index.data_entries(piece.stream_id))
        held = sum(entry.record_count for entry in entries)
        outside = entries and not (
            piece.base_offset <= entries[0].base_offset and entries[-1].end_offset <= piece.end_offset
        )
        if held != piece.record_count or outside:
            raise _Damaged(self._object_id) from ObjectCorrupt(
                f"object {self._object_id} does not hold what was committed: stream {piece.stream_id}, offsets"
                f" {piece.base_offset} to {piece.end_offset} (exclusive), {piece.record_count} records, but {held}"
            )
        return [entry for entry in entries if entry.end_offset > needed_offset]

    def state_entry(self, stream_id: StreamId) -> IndexEntry:
        """The state block that the metadata says is here."""
        entry = self._index.state_entry(stream_id)
        if entry is None:
            raise _Damaged(self._object_id) from ObjectCorrupt(
                f"object {self._object_id} does not hold the state of stream {stream_id} that was committed"
            )
        return entry

    async def read(self, entry: IndexEntry) -> Buffer:
        """A block, checked."""
        at = entry.position - self._position
        if not 0 <= at <= at + entry.size_bytes <= len(self._chunk):
            end = max(entry.position + entry.size_bytes, entry.position + self._chunk_size)
            end = min(end, self._index.footer.index_position)
            self._chunk = memoryview(b"")  # freed before the next one comes
            self._chunk = memoryview(await self._compactor.read_range(self._object_id, entry.position, end))
            self._position, at = entry.position, 0
        block = self._chunk[at : at + entry.size_bytes]
        try:
            check_block(self._object_id, entry, block)
        except ObjectCorrupt as error:
            raise _Damaged(self._object_id) from error
        return block


def _add_block(builder: ObjectBuilder, group: Sequence[tuple[IndexEntry, Buffer]], leader_epoch: int) -> list[Buffer]:
    """Make one block of several; returns its bytes."""
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
