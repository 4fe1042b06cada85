"""Uploads again, as few large objects, what lies in many small ones and is still in memory: a merge that reads nothing.

Under little load an upload every few seconds makes small objects, and to read each of them again for a merge costs more requests than all
else. But the log cache holds what was uploaded until its memory is needed, which under little load takes long enough.

Always true:
- It is a compaction like any other: planned by `compaction.plan_outputs`, committed with its sources, and discarded where one of them
  changed. Whatever fails, nothing is lost and nothing is tried again: compaction reads what is left.
- The blocks in question are pinned, so their memory stays theirs; where appends need it, they get it, and the work is given up.
- What is put is what was put before: each part of a stream is checked against the CRC with which it was uploaded.
- It is written no more often than if compaction did it, and compaction does not wait for it: it comes a little earlier, or not at all.
- One at a time, an object at a time, at the rate of compaction.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from s3stream.compaction import PlannedObject, PlannedRange, growth, is_large, plan_outputs, rewrites
from s3stream.config import StorageSettings
from s3stream.errors import ObjectCorrupt, StorageError
from s3stream.log_cache import BlockPart, CacheBlock
from s3stream.metadata import CommitObjects, NewObject, ObjectId, StreamId, StreamMetadata, StreamRange
from s3stream.object_writer import DataBlock, assemble_in_turns, is_joined
from s3stream.objectstore import ObjectStore, ObjectStoreError
from s3stream.paths import Paths
from wal.arena import Arena
from wal.checksum import crc32c

__all__ = ["CopyMemory", "SecondUploads"]

_log = logging.getLogger("tidelog.compaction")

_ARENA_SHARE = 0.7
"""Of the arena: what is kept for this at most. Less than a slow reader may keep; the rest is for appends meanwhile."""
_BEFORE_SHARE = 0.9
"""Of the sources that compaction waits for: so that it does not come first."""
_MOST_RANGES = 10_000
"""Of all sources: what one commit replaces, and one plan looks at, without anybody noticing."""
_PAUSE_PAYLOADS = 2048
"""Hashed between two pauses: about a millisecond."""
_WORTHWHILE_SHARE = 0.9
"""Of the bytes that must not be written once more than compaction would."""


class CopyMemory(Protocol):
    """Memory for copies of small payloads, shared with uploads."""

    async def take(self, size: int) -> None:
        """Return when there is room."""

    def give(self, size: int) -> None:
        """Give room back."""


class SecondUploads:
    """Is told of what was uploaded and of what is forgotten, and merges on its own."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        metadata: StreamMetadata,
        paths: Paths,
        arena: Arena,
        settings: StorageSettings,
        copies: CopyMemory,
        may_pin: Callable[[CacheBlock], bool],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        """Take the parts over.

        Args:
            may_pin: whether a block, and all later ones, may be held for longer.
            on_failed: told of a mistake of ours.
        """
        self._store = store
        self._metadata = metadata
        self._paths = paths
        self._arena = arena
        self._block_size_bytes = settings.block_size_bytes
        self._settings = replace(
            settings.compaction,
            # As large as what is put in one request anyway.
            object_size_bytes=min(settings.upload_size_bytes, settings.compaction.object_size_bytes),
        )
        self._copies = copies
        self._may_pin = may_pin
        self._on_failed = on_failed
        self._row: list[CacheBlock] = []
        """Neighbouring blocks, oldest first."""
        self._sizes: Counter[StreamId] = Counter()
        """Of each stream in the row, in objects that hold what has to be merged."""
        self._ranges = 0
        """In those objects."""
        self._largest_bytes = 0
        """Of those sizes."""
        self._task: asyncio.Task[None] | None = None
        self.jobs = 0
        """Merges that were committed."""
        self.discarded_jobs = 0
        """Merges that were given up: something changed or failed, or the memory was needed."""

    @property
    def is_busy(self) -> bool:
        """Whether a merge is under way."""
        return self._task is not None

    def committed(self, block: CacheBlock) -> None:
        """A block is in objects, and still in memory. They are told in order."""
        self._add(block)
        if self._task is not None or not self._is_due():
            return
        if self._is_replaced(self._row[0]):  # compaction came first; what came after that is gathered on
            row = self._row
            self._forget()
            for each in row:
                if not self._is_replaced(each):
                    self._add(each)
            if not self._row or not self._is_due():
                return
        row = self._row
        is_worthwhile = self._is_worthwhile()
        self._forget()
        if is_worthwhile and self._may_pin(row[0]):
            row[0].pin(self)
            self._task = asyncio.get_running_loop().create_task(self._work(row))
            self._task.add_done_callback(self._ended)

    def evicted(self, block: CacheBlock) -> None:
        """The oldest block's memory is given back."""
        if self._row and self._row[0] is block:
            self._forget()  # the rest comes to less, and compaction is about to take it

    def revoke(self) -> None:
        """See `PinHolder`."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Give up what is under way."""
        self._forget()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _add(self, block: CacheBlock) -> None:
        for value in _small_ranges(block):
            self._sizes[value.stream_id] += value.size_bytes
            self._ranges += 1
            self._largest_bytes = max(self._largest_bytes, self._sizes[value.stream_id])
        self._row.append(block)

    def _forget(self) -> None:
        self._row = []
        self._sizes = Counter()
        self._ranges = self._largest_bytes = 0

    def _is_due(self) -> bool:
        """Whether nothing is to be gained by waiting. Asked for each block."""
        count = len(self._row)
        if self._arena.head - self._row[0].start_position >= self._arena.size_bytes * _ARENA_SHARE:
            return True
        if self._ranges + len(self._sizes) > _MOST_RANGES or self._largest_bytes >= self._settings.object_size_bytes:
            return True  # the largest is put in one request, some of it in copies
        mean_bytes = self._sizes.total() // max(1, len(self._sizes) * count)
        wanted = min(growth(max(1, mean_bytes), self._settings), self._settings.max_fan_in)
        return count >= _BEFORE_SHARE * max(wanted, self._settings.fan_in)

    def _is_worthwhile(self) -> bool:
        """Whether there are many sources, and nearly none of their bytes is written once more than if compaction did it."""
        count = len(self._row)
        if count < _BEFORE_SHARE * self._settings.fan_in:
            return False
        spared = 0
        for size in self._sizes.values():
            before = rewrites(max(1, size // count), self._settings)
            spared += size if 1 + rewrites(max(1, size), self._settings) <= before else 0
        return spared > 0 and spared >= self._sizes.total() * _WORTHWHILE_SHARE

    def _is_replaced(self, block: CacheBlock) -> bool:
        """Whether other objects took the place of those that a block was put as."""
        for value in _small_ranges(block):
            found = self._metadata.locate(value.stream_id, value.base_offset, limit=1)
            if found and found[0].range.base_offset <= value.base_offset:  # else it was trimmed away
                return all(found[0].object_id != each.object_id for each in block.objects)
        return False

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_failed(error)

    async def _work(self, row: Sequence[CacheBlock]) -> None:
        try:
            await self._merge(row)
            self.jobs += 1
        except asyncio.CancelledError:
            self.discarded_jobs += 1
            raise
        except (StorageError, ObjectStoreError) as error:
            self.discarded_jobs += 1
            _log.info("a second upload is left to compaction: %(error)s", {"error": error})
        finally:
            row[0].unpin(self)

    async def _merge(self, row: Sequence[CacheBlock]) -> None:
        sources = [each for block in row for each in block.objects if _is_small(each)]
        parts = {
            (each.object_id, value.stream_id): block.parts[value.stream_id][1]
            for block in row
            for each in block.objects
            for value in each.ranges
        }
        plan = plan_outputs(
            self._live(sources),
            log_start_offset_of=self._metadata.log_start_offset,
            newest_state_of=self._newest_state_of,
            settings=self._settings,
        )
        object_ids = await self._metadata.new_object_ids(len(plan.outputs))
        written: list[NewObject] = []
        for object_id, output in zip(object_ids, plan.outputs, strict=True):
            written.append(await self._put(object_id, output, parts))
            await asyncio.sleep(written[-1].size_bytes / self._settings.rate_bytes_per_s)
        live = tuple(each.object_id for each in self._live(sources))
        await self._metadata.commit_objects(CommitObjects(objects=tuple(written), sources=live))

    def _live(self, objects: Sequence[NewObject]) -> list[NewObject]:
        """Without what was deleted or trimmed away meanwhile."""
        found: list[NewObject] = []
        for each in objects:
            ranges = tuple(value for value in each.ranges if self._is_live(each.object_id, value))
            if ranges:
                found.append(replace(each, ranges=ranges))
        return found

    def _is_live(self, object_id: ObjectId, value: StreamRange) -> bool:
        log_start_offset = self._metadata.log_start_offset(value.stream_id)
        return log_start_offset is not None and (
            value.end_offset > log_start_offset or self._newest_state_of(value.stream_id) == object_id
        )

    def _newest_state_of(self, stream_id: StreamId) -> ObjectId | None:
        found = self._metadata.newest_state(stream_id)
        return None if found is None else found.object_id

    async def _put(
        self, object_id: ObjectId, output: PlannedObject, parts: dict[tuple[ObjectId, StreamId], BlockPart]
    ) -> NewObject:
        sources = [
            _Rejoined(self._arena, planned, [parts[held, planned.stream_id] for held, _ in planned.pieces], parts)
            for planned in output.ranges
        ]
        copied_bytes = sum(source.size_bytes for source in sources if source.is_joined)
        await self._copies.take(copied_bytes)
        try:
            for source in sources:
                await source.check()
            built = await assemble_in_turns(object_id, sources, block_size_bytes=self._block_size_bytes)
            await self._store.put(self._paths.data_object(object_id), built.parts, crc32c=built.crc32c)
            return built.new_object
        finally:
            self._copies.give(copied_bytes)


def _is_small(each: NewObject) -> bool:
    """Whether an object holds what has to be merged."""
    return not all(is_large(value.size_bytes) for value in each.ranges)


def _small_ranges(block: CacheBlock) -> Iterator[StreamRange]:
    """What a block has in objects that hold what has to be merged."""
    for each in block.objects:
        if _is_small(each):
            yield from each.ranges


@dataclass(frozen=True, slots=True)
class _Rejoined:
    """Parts of a stream that follow each other, as one (a `StreamSource`)."""

    arena: Arena
    planned: PlannedRange
    parts: Sequence[BlockPart]
    all_parts: dict[tuple[ObjectId, StreamId], BlockPart]

    @property
    def stream_id(self) -> StreamId:
        return self.planned.stream_id

    @property
    def leader_epoch(self) -> int:
        return self.planned.pieces[-1][1].leader_epoch

    @property
    def base_offset(self) -> int:
        return self.planned.pieces[0][1].base_offset

    @property
    def size_bytes(self) -> int:
        return self.planned.size_bytes

    @property
    def state(self) -> bytes | None:
        held = self.planned.state_source
        return None if held is None else self.all_parts[held, self.stream_id].state

    @property
    def is_joined(self) -> bool:
        """Whether payloads are copied."""
        return is_joined(sum(len(part.sizes) for part in self.parts), self.size_bytes)

    async def check(self) -> None:
        """Compare the payloads with what was uploaded, letting others run now and then.

        Raises:
            ObjectCorrupt: they differ.
        """
        looked_at = 0
        for (object_id, piece), part in zip(self.planned.pieces, self.parts, strict=True):
            looked_at += len(part.sizes)
            if looked_at >= _PAUSE_PAYLOADS:
                looked_at = 0
                await asyncio.sleep(0)
            if part.size_bytes != piece.size_bytes or _crc32c(self.arena, part) != part.crc32c:
                raise ObjectCorrupt(
                    f"memory no longer holds what was uploaded as object {object_id}: stream {self.stream_id}, offsets"
                    f" {piece.base_offset} to {piece.end_offset} (exclusive)"
                )

    def blocks(self, block_size_bytes: int) -> Iterator[DataBlock]:
        """See `StreamSource`."""
        return BlockPart.joined(self.parts).blocks(self.arena, block_size_bytes)


def _crc32c(arena: Arena, part: BlockPart) -> int:
    view = arena.view
    crc = 0
    for at, size in zip(part.positions, part.sizes, strict=True):
        crc = crc32c(view[at : at + size], crc)
    return crc
