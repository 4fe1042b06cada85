"""Objects: which are referenced, by whom, and when they may be deleted.

Always true:
- An upload extends its streams exactly at their committed ends; a compaction puts objects in the place of others without
  changing which offsets can be read (I5).
- An object is referenced while one stream needs one of its ranges: ranges at or past the log start, and the one that
  carries the stream's newest state block. Then it is unreferenced, later expired, deleted, forgotten, in this order,
  and an expired id is refused for ever (I8).
- Commits are idempotent by object id: the answer to a repeated commit is the first one's.
- A range without offsets carries a state and nothing else (`base_offset == end_offset`). It is never one of a stream's
  `ranges`; it is live while it is the newest state.
- How far a state accounts for records is written in its block; the end of a merged range may be past that. So a merge takes the newest state's
  place only where it carries that one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from controller.commands import Command, Decision, NodeCommand, check_node
from controller.records import (
    ObjectCommitted,
    ObjectIdsAllocated,
    ObjectsCompacted,
    ObjectsExpired,
    ObjectsForgotten,
    ProducerIdsAllocated,
    Range,
    Record,
    Skip,
)
from controller.tables import StreamState, StreamStatus, Tables, Touched, Unreferenced
from s3stream.errors import ObjectExpired, SourcesChanged
from s3stream.metadata import CommitObjects, CommitResult, NewObject, ObjectId, SkipReason, StreamId, StreamRange

__all__ = [
    "AllocateObjectIds",
    "AllocateProducerIds",
    "Commit",
    "ExpireObjects",
    "ForgetObjects",
]

_SKIP_OF = {
    SkipReason.DELETED: Skip.DELETED,
    SkipReason.FENCED: Skip.FENCED,
    SkipReason.NOT_CONTIGUOUS: Skip.NOT_CONTIGUOUS,
}
_REASON_OF = {skip: reason for reason, skip in _SKIP_OF.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(NodeCommand[CommitResult]):
    """Reference uploaded objects, or compacted ones in the place of their sources.

    Raises ObjectExpired for an id that was expired, SourcesChanged where a compaction no longer fits.
    """

    commit: CommitObjects
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireObjects(Command[Sequence[ObjectId]]):
    """Make ids unusable for ever, so that their objects can be deleted.

    Referenced objects, and ids that were never given out, are left out of the reply and must not be deleted.
    """

    object_ids: tuple[ObjectId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetObjects(Command[None]):
    """Expired objects that were deleted from the store; others are left alone."""

    object_ids: tuple[ObjectId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateObjectIds(NodeCommand[range]):
    """A block of object ids."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateProducerIds(NodeCommand[range]):
    """A block of producer ids (KIP-730)."""

    count: int


def commit_objects(tables: Tables, command: Commit) -> Decision[CommitResult]:
    check_node(tables, command.node_id, command.node_epoch)
    commit = command.commit
    skipped: dict[StreamId, SkipReason] = {}
    fresh: list[NewObject] = []
    for new in commit.objects:
        _assert_well_formed(new)
        known = _skipped_before(tables, new.object_id)
        if known is not None:
            skipped.update((stream_id, _REASON_OF[skip]) for stream_id, skip in known)
        elif new.object_id in tables.gone:
            raise ObjectExpired(f"object {new.object_id} was expired before it was committed: upload it under a new id")
        else:
            assert new.object_id < tables.next_object_id, f"object id {new.object_id} was never given out"
            fresh.append(new)
    if not fresh:
        return Decision((), CommitResult(skipped=skipped))
    if commit.sources:
        return _compact(tables, command, fresh, skipped)
    return _upload(tables, command, fresh, skipped)


def _assert_well_formed(new: NewObject) -> None:
    previous = -1
    for value in new.ranges:
        assert value.stream_id > previous, "ranges of an object are sorted by stream, one each"
        assert 0 <= value.base_offset <= value.end_offset, "a range begins before it ends"
        assert value.has_state or value.base_offset < value.end_offset, "a range holds offsets, or a state"
        previous = value.stream_id


def _skipped_before(tables: Tables, object_id: ObjectId) -> tuple[tuple[StreamId, Skip], ...] | None:
    entry = tables.objects.get(object_id) or tables.unreferenced.get(object_id)
    return None if entry is None else entry.skipped


def _upload(
    tables: Tables, command: Commit, fresh: Sequence[NewObject], skipped: dict[StreamId, SkipReason]
) -> Decision[CommitResult]:
    ends: dict[StreamId, int] = {}
    records: list[Record] = []
    for new in fresh:
        accepted: list[Range] = []
        left_out: list[tuple[StreamId, Skip]] = []
        for value in new.ranges:
            reason = _why_stale(tables, command.node_id, value, ends)
            if reason is None:
                accepted.append(Range.of(value))
                ends[value.stream_id] = value.end_offset
            else:
                left_out.append((value.stream_id, _SKIP_OF[reason]))
                skipped.setdefault(value.stream_id, reason)
        records.append(_committed(new, accepted, left_out, command.at_ms))
    return Decision(records, CommitResult(skipped=skipped))


def _why_stale(tables: Tables, node_id: int, value: StreamRange, ends: dict[StreamId, int]) -> SkipReason | None:
    stream = tables.streams.get(value.stream_id)
    if stream is None:
        return SkipReason.DELETED
    if stream.status is StreamStatus.CLOSED or stream.node_id != node_id or stream.leader_epoch != value.leader_epoch:
        return SkipReason.FENCED
    if value.base_offset != ends.get(value.stream_id, stream.committed_end_offset):
        return SkipReason.NOT_CONTIGUOUS
    return None


def _committed(
    new: NewObject, ranges: Iterable[Range], skipped: Iterable[tuple[StreamId, Skip]], at_ms: int
) -> ObjectCommitted:
    return ObjectCommitted(
        object_id=new.object_id,
        size_bytes=new.size_bytes,
        ranges=tuple(ranges),
        skipped=tuple(skipped),
        committed_at_ms=at_ms,
    )


def _compact(
    tables: Tables, command: Commit, fresh: Sequence[NewObject], skipped: dict[StreamId, SkipReason]
) -> Decision[CommitResult]:
    """Whole ranges of the sources are replaced, by such that hold nothing else that is live. What is left out stays where it is: a source
    is referenced until the last of its live ranges was replaced."""
    sources = dict.fromkeys(command.commit.sources)
    for source in sources:
        if source not in tables.objects:
            raise SourcesChanged(f"object {source} is not referenced any more: discard this compaction")
    given: set[tuple[ObjectId, StreamId]] = set()
    records: list[ObjectCommitted] = []
    for new in fresh:
        accepted: list[Range] = []
        left_out: list[tuple[StreamId, Skip]] = []
        for value in new.ranges:
            stream = tables.streams.get(value.stream_id)
            if stream is None:
                left_out.append((value.stream_id, Skip.DELETED))
                skipped.setdefault(value.stream_id, SkipReason.DELETED)
                continue
            replaced = _replaced(stream, value, sources)
            for object_id, live in replaced:
                if object_id not in sources or (object_id, live.stream_id) in given:
                    raise SourcesChanged(
                        f"object {new.object_id} would replace offsets {live.base_offset} to {live.end_offset} of stream "
                        f"{live.stream_id}, which are in object {object_id}, not (only) in a source: discard it"
                    )
                given.add((object_id, live.stream_id))
            if replaced:
                accepted.append(Range.of(value))
            newest = stream.newest_state
            if newest in replaced and not (value.has_state and value.end_offset >= newest[1].end_offset):
                raise SourcesChanged(
                    f"object {new.object_id} does not carry the newest state of stream {value.stream_id}, which is in a source"
                )
            if (
                newest is not None
                and newest not in replaced
                and value.has_state
                and value.end_offset == newest[1].end_offset
            ):
                # What it carries may be older than its end, and would take the place of one that is not: a state that was put by itself.
                raise SourcesChanged(
                    f"object {new.object_id} would stand for the newest state of stream {value.stream_id}, which was put meanwhile"
                )
        records.append(_committed(new, accepted, left_out, command.at_ms))
    return Decision((ObjectsCompacted(objects=tuple(records), sources=tuple(sources)),), CommitResult(skipped=skipped))


def _replaced(
    stream: StreamState, value: StreamRange | Range, sources: Collection[ObjectId]
) -> list[tuple[ObjectId, Range]]:
    """Live ranges of a stream that a compacted one stands for. Raises SourcesChanged where it covers one in part only.

    It may begin below the first live range: what retention dropped meanwhile does no harm inside. A newest state that is
    none of the ranges (its data is gone, or it never had any) is stood for by what carries a state on, from a source.
    """
    replaced: list[tuple[ObjectId, Range]] = []
    newest = stream.newest_state
    if (
        newest is not None
        and value.has_state
        and newest[0] in sources
        and value.base_offset <= newest[1].base_offset
        and newest[1].end_offset <= value.end_offset
        and stream.newest_state_is_detached
    ):
        replaced.append(newest)
    first, last = _covered(stream, value)
    if first < last:
        ranges = stream.ranges
        begins = ranges[first].base_offset == value.base_offset or (
            first == 0 and value.base_offset < ranges[0].base_offset
        )
        if not begins or ranges[last - 1].end_offset != value.end_offset:
            raise SourcesChanged(
                f"the range {value.base_offset} to {value.end_offset} of stream {value.stream_id} does not begin and end "
                "where committed ranges do: discard this compaction"
            )
        replaced.extend(zip(stream.object_ids[first:last], ranges[first:last], strict=True))
    return replaced


def _covered(stream: StreamState, value: StreamRange | Range) -> tuple[int, int]:
    """Indexes [first, last) of the ranges that overlap a value."""
    if value.base_offset == value.end_offset:
        return 0, 0
    return stream.index_of(value.base_offset), bisect_left(stream.ranges, value.end_offset, key=_base_offset)


def _base_offset(value: Range) -> int:
    return value.base_offset


def expire_objects(tables: Tables, command: ExpireObjects) -> Decision[Sequence[ObjectId]]:
    usable = [
        object_id
        for object_id in dict.fromkeys(command.object_ids)
        if object_id not in tables.objects and 0 < object_id < tables.next_object_id
    ]
    fresh = tuple(object_id for object_id in usable if object_id not in tables.gone)
    return Decision((ObjectsExpired(object_ids=fresh),) if fresh else (), tuple(usable))


def forget_objects(tables: Tables, command: ForgetObjects) -> Decision[None]:
    known = tuple(object_id for object_id in dict.fromkeys(command.object_ids) if object_id in tables.expired)
    return Decision((ObjectsForgotten(object_ids=known),) if known else (), None)


def allocate_object_ids(tables: Tables, command: AllocateObjectIds) -> Decision[range]:
    check_node(tables, command.node_id, command.node_epoch)
    assert command.count > 0, "a block holds ids"
    block = range(tables.next_object_id, tables.next_object_id + command.count)
    return Decision((ObjectIdsAllocated(node_id=command.node_id, end_object_id=ObjectId(block.stop)),), block)


def allocate_producer_ids(tables: Tables, command: AllocateProducerIds) -> Decision[range]:
    check_node(tables, command.node_id, command.node_epoch)
    assert command.count > 0, "a block holds ids"
    block = range(tables.next_producer_id, tables.next_producer_id + command.count)
    return Decision((ProducerIdsAllocated(node_id=command.node_id, end_producer_id=block.stop),), block)


def apply_object_committed(tables: Tables, record: ObjectCommitted, touched: Touched) -> None:
    object_id = record.object_id
    tables.objects[object_id] = record
    tables.live_counts[object_id] = len(record.ranges)
    touched.objects.add(object_id)
    for value in record.ranges:
        stream = tables.streams[value.stream_id]
        if value.has_state:
            _set_newest_state(tables, stream, object_id, value, record.committed_at_ms, touched)
        if value.base_offset == value.end_offset:
            tables.require_version(2)
            continue
        stream.ranges.append(value)
        stream.object_ids.append(object_id)
        stream.committed_end_offset = value.end_offset
        touched.stream(value.stream_id, value.base_offset, value.end_offset)
    if not record.ranges:
        _retire(tables, object_id, record.committed_at_ms)


def apply_objects_compacted(tables: Tables, record: ObjectsCompacted, touched: Touched) -> None:
    gone: dict[ObjectId, set[StreamId]] = {}
    for new in record.objects:
        tables.objects[new.object_id] = new
        tables.live_counts[new.object_id] = len(new.ranges)
        touched.objects.add(new.object_id)
        for value in new.ranges:
            stream = tables.streams[value.stream_id]
            replaced = _replaced(stream, value, record.sources)
            first, last = _covered(stream, value)
            if first < last:
                stream.ranges[first:last] = [value]
                stream.object_ids[first:last] = [new.object_id]
            if any(stream.newest_state == each for each in replaced):
                stream.newest_state = None
            if value.has_state:
                _set_newest_state(tables, stream, new.object_id, value, new.committed_at_ms, touched)
            for object_id, _ in replaced:
                gone.setdefault(object_id, set()).add(value.stream_id)
                release(tables, object_id, new.committed_at_ms, touched)
            touched.stream(value.stream_id, value.base_offset, value.end_offset)
        if not new.ranges:
            _retire(tables, new.object_id, new.committed_at_ms)
    for object_id, stream_ids in gone.items():
        if object_id in tables.objects:
            tables.replaced[object_id] = tables.replaced.get(object_id, frozenset()) | stream_ids


def _set_newest_state(
    tables: Tables, stream: StreamState, object_id: ObjectId, value: Range, at_ms: int, touched: Touched
) -> None:
    former = stream.newest_state
    if former is not None:
        if former[1].end_offset > value.end_offset:
            return
        if stream.newest_state_is_detached:
            release(tables, former[0], at_ms, touched)
    stream.newest_state = (object_id, value)


def release(tables: Tables, object_id: ObjectId, at_ms: int, touched: Touched) -> None:
    """A stream needs one range of an object no more."""
    touched.objects.add(object_id)
    tables.live_counts[object_id] -= 1
    if tables.live_counts[object_id] == 0:
        _retire(tables, object_id, at_ms)


def release_all(tables: Tables, stream: StreamState, at_ms: int, touched: Touched) -> None:
    """A stream needs nothing any more."""
    if stream.newest_state is not None and stream.newest_state_is_detached:
        release(tables, stream.newest_state[0], at_ms, touched)
    for object_id in stream.object_ids:
        release(tables, object_id, at_ms, touched)


def _retire(tables: Tables, object_id: ObjectId, at_ms: int) -> None:
    del tables.live_counts[object_id]
    tables.replaced.pop(object_id, None)
    entry = tables.objects.pop(object_id)
    tables.unreferenced[object_id] = Unreferenced(
        size_bytes=entry.size_bytes, unreferenced_at_ms=at_ms, skipped=entry.skipped
    )


def apply_objects_expired(tables: Tables, record: ObjectsExpired, touched: Touched) -> None:
    for object_id in record.object_ids:
        tables.unreferenced.pop(object_id, None)
        tables.expired[object_id] = None
        tables.gone.add(object_id)
        touched.objects.add(object_id)


def apply_objects_forgotten(tables: Tables, record: ObjectsForgotten, touched: Touched) -> None:
    for object_id in record.object_ids:
        tables.expired.pop(object_id, None)
        touched.objects.add(object_id)


def apply_object_ids_allocated(tables: Tables, record: ObjectIdsAllocated, touched: Touched) -> None:
    tables.next_object_id = record.end_object_id


def apply_producer_ids_allocated(tables: Tables, record: ProducerIdsAllocated, touched: Touched) -> None:
    tables.next_producer_id = record.end_producer_id
