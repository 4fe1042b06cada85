"""The past of the metadata: which points of it can be reached from what the bucket holds, and the state as of one.

Always true:
- A point is an entry: the state after it. When it was is told by the store's clock, as of the entry's object: one clock for
  entries of all nodes. Where it went back, an entry counts as no older than those before it.
- Only what the floor promises is used, so what is read cannot be half of something that is being deleted.
- Nothing is written.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from controller.errors import MetadataCorrupt, PastUnreachable
from controller.log import Behind, MetadataLog
from controller.records import (
    ALL_NODES,
    BrokerConfigsChanged,
    MetadataRestored,
    Record,
    StreamsAbandoned,
    StreamsTrimmed,
    TopicConfigsChanged,
    TopicDeleted,
)
from controller.replica import Replica
from controller.restoration import LastSeen, last_seen_before
from controller.state import State
from controller.tables import Tables
from s3stream.metadata import StreamId
from s3stream.objectstore import ObjectStore
from s3stream.paths import Paths

__all__ = ["Comparison", "Event", "History", "Point", "compare", "read_history"]

_READ_AHEAD: Final = 32
"""Entries asked for at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An entry, and when it was written, in ms by the store's clock."""

    index: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change that deleted something, or may have led to that."""

    index: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A point, and what became of it."""

    then: State
    now: State
    """As of the end of the log."""
    next_index: int
    """Of the entry that is not in `now`."""
    last_seen: Mapping[StreamId, LastSeen]
    """Of every stream that was deleted in between."""
    events: Sequence[Event]
    """What was done in between that one may want to undo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What can be reached."""

    snapshots: Sequence[int]
    """From which the log goes on, oldest first; -1 for the beginning, before entry 0."""
    points: Sequence[Point]
    """Every point that can be reached, in sequence; a snapshot whose entry is gone counts as of when it was written."""

    def at_index(self, index: int) -> Point:
        """A point by its entry. Raises PastUnreachable."""
        first, last = self.points[0], self.points[-1]
        if not first.index <= index <= last.index:
            raise PastUnreachable(
                f"entry {index} cannot be restored: the history that is kept goes from entry {first.index} to {last.index}"
            )
        return self.points[index - first.index]

    def at_time(self, time_ms: int) -> Point:
        """The last point that is not after a time. Raises PastUnreachable."""
        found = bisect_right(self.points, time_ms, key=_at_ms) - 1
        if found < 0:
            raise PastUnreachable(
                f"{_when(time_ms)} cannot be restored: the history that is kept begins with entry {self.points[0].index} of "
                f"{_when(self.points[0].at_ms)} (see the setting metadata.restore.window.ms)"
            )
        return self.points[found]

    def after(self, point: Point) -> Point | None:
        """The first point that a restore would undo; None where there is none."""
        at = point.index - self.points[0].index + 1
        return self.points[at] if at < len(self.points) else None


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _at_ms(point: Point) -> int:
    return point.at_ms


async def read_history(store: ObjectStore, paths: Paths, log: MetadataLog) -> History:
    """List what the bucket holds.

    Raises:
        PastUnreachable: it holds no metadata.
        MetadataCorrupt: entries are missing.
        ObjectStoreError: the store does not answer.
    """
    floor = await log.read_floor()
    written_ms: dict[int, int] = {}
    async for summary in store.list(paths.snapshot_prefix):
        index = paths.snapshot_index(summary.key)
        if index is not None and floor.index - 1 <= index <= floor.snapshot_index:
            written_ms[index] = summary.last_modified_ms
    snapshots = sorted(written_ms)
    if floor.index == 0:
        snapshots.insert(0, -1)
    if not snapshots:
        raise MetadataCorrupt(
            f"the metadata snapshot as of entry {floor.snapshot_index}, which the floor names, is missing "
            "(does something else delete from the bucket?)"
        )
    base = snapshots[0]
    points = [Point(index=base, at_ms=written_ms[base])] if base >= 0 else []
    next_index, newest_ms = base + 1, points[0].at_ms if points else 0
    async for summary in store.list(paths.log_prefix, start_after=paths.log_entry(base) if base >= 0 else ""):
        index = paths.log_index(summary.key)
        if index is None or index < next_index:
            continue
        if index > next_index:
            raise MetadataCorrupt(
                f"{paths.log_entry(next_index)} is missing, later entries exist (does something else delete from the bucket?)"
            )
        newest_ms = max(newest_ms, summary.last_modified_ms)
        points.append(Point(index=index, at_ms=newest_ms))
        next_index += 1
    if not points:
        raise PastUnreachable(f"no cluster lives in {store.uri} below {paths.log_prefix}: is that the right bucket?")
    return History(snapshots=snapshots, points=points)


async def compare(log: MetadataLog, history: History, index: int) -> Comparison:
    """The state as of an entry, and what became of it.

    Raises:
        PastUnreachable: what leads there was deleted meanwhile, because the window moved on.
        MetadataCorrupt, UnsupportedMetadata: it cannot be read.
        ObjectStoreError: the store does not answer.
    """
    replica = Replica(log)
    base = max(each for each in history.snapshots if each <= index)
    if base >= 0:
        loaded = await log.load_snapshot(base)
        if loaded is None:
            raise _moved_on(index)
        replica.show(loaded[0], base)
    then = replica.image.state.copy() if base == index else None
    last_seen: dict[StreamId, LastSeen] = {}
    events: list[Event] = []

    def note(state: State, record: Record) -> None:
        if then is not None:
            last_seen.update(last_seen_before(state.tables, record))
            what = _told(state.tables, record)
            if what:
                events.append(Event(index=replica.next_index, what=what))

    replica.before_record = note
    while True:
        read = await log.read(replica.next_index, min(_READ_AHEAD, history.points[-1].index + 2 - replica.next_index))
        if isinstance(read, Behind):
            raise _moved_on(index)
        for entry in read.entries:
            replica.apply(entry)
            if entry.header.index == index:
                then = replica.image.state.copy()
        if read.at_tail:
            break
    assert then is not None, "the history says that the entry is there"
    return Comparison(
        then=then, now=replica.image.state, next_index=replica.next_index, last_seen=last_seen, events=events
    )


def _moved_on(index: int) -> PastUnreachable:
    return PastUnreachable(f"what leads to entry {index} was deleted just now: take a later point")


def _told(tables: Tables, record: Record) -> str:
    """A change in words, if one may want to undo it; the tables are as of before it."""
    match record:
        case TopicDeleted():
            return f"topic {tables.topics[record.topic_id].name} was deleted"
        case StreamsTrimmed():
            trims = [f"{_partition(tables, stream_id)} to {offset}" for stream_id, offset in record.log_start_offsets]
            return f"log starts were raised, {', '.join(trims)}"
        case TopicConfigsChanged():
            return f"topic {tables.topics[record.topic_id].name} was configured"
        case BrokerConfigsChanged():
            return (
                "settings of all brokers were altered"
                if record.node_id == ALL_NODES
                else (f"settings of broker {record.node_id} were altered")
            )
        case StreamsAbandoned():
            return f"WAL {record.wal_id} was given up, with the tails of {len(record.resume_offsets)} partitions"
        case MetadataRestored():
            return f"a restore to entry {record.index}"
        case _:
            return ""


def _partition(tables: Tables, stream_id: StreamId) -> str:
    stream = tables.streams[stream_id]
    return f"{tables.topics[stream.topic_id].name}-{stream.partition}"
