"""The data of the state machine: what the metadata log says is, in the shape that look-ups want.

Always true (checked by `invariants.py`):
- `ranges` of a stream are sorted, contiguous and do not overlap, but for recorded gaps; the last one ends at
  `committed_end_offset`, the first one holds `log_start_offset` (I5).
- `live_counts[object_id]` is the number of ranges of that object which a stream still needs; an object with none is not
  in `objects` but in `unreferenced`. An id is in at most one of `objects`, `unreferenced` and `gone`.
- Nothing here is changed but by applying a record.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from controller.records import METADATA_VERSION, NodeRegistered, ObjectCommitted, Range, Skip, Unuploaded
from s3stream.metadata import ObjectId, StreamId

__all__ = [
    "IdSet",
    "NodeHealth",
    "NodeStatus",
    "StreamState",
    "StreamStatus",
    "Tables",
    "TopicState",
    "Touched",
    "Unreferenced",
]


_FIRST_STREAM_ID: Final = StreamId(1)
_FIRST_OBJECT_ID: Final = ObjectId(1)


class StreamStatus(enum.IntEnum):
    """A stream leaves OPEN only by an orderly close, by recovery of exactly its WAL, or by an abandon (I4)."""

    CLOSED = 0
    OPEN = 1
    RECOVERING = 2


class NodeStatus(enum.IntEnum):
    """A registration becomes SUSPECT before it becomes DEAD, and is DEAD for good: only another registration of the node is ALIVE."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHealth:
    """What is held against a node."""

    status: NodeStatus
    since_ms: int
    """When the leader of that time said so, by its clock: for people."""
    held: Unuploaded | None = None
    """What it had reported by then that its WAL holds alone; None: nobody knew of a report."""
    held_before_silence_ms: int = -1
    """How long before its last sign of life; -1: not known."""


@dataclass(slots=True, kw_only=True, eq=False)
class StreamState:
    """One stream, that is one partition of one topic."""

    stream_id: StreamId
    topic_id: bytes
    partition: int
    status: StreamStatus = StreamStatus.CLOSED
    node_id: int
    """Who has it open; while it is closed, who should open it next."""
    target_node_id: int = -1
    """Who is to open it when its holder has closed it; -1: it stays. Always -1 while it is closed."""
    wal_id: str = ""
    """The WAL that holds its tail; empty while it is closed."""
    wal_leader_epoch: int = 0
    """Leader epoch under which it was opened on that WAL after it was closed. What the WAL holds of older ones counts for nothing:
    objects held all of the stream by then. Since metadata version 4; 0 before."""
    leader_epoch: int = -1
    """-1 before the first open; grows by one with each."""
    log_start_offset: int = 0
    committed_end_offset: int = 0
    """Exclusive end of what objects hold."""
    gaps: tuple[tuple[int, int], ...] = ()
    """Offsets given up by an operator's abandon, each [start, end)."""
    ranges: list[Range] = field(default_factory=list)
    object_ids: list[ObjectId] = field(default_factory=list)
    """Where each of `ranges` is."""
    newest_state: tuple[ObjectId, Range] | None = None
    """The last range with a state block; kept alive even when retention has passed its data."""

    def index_of(self, offset: int) -> int:
        """Index of the first range that ends past `offset` (the one that holds it, outside gaps)."""
        ranges = self.ranges
        if ranges and ranges[-1].base_offset <= offset:  # as it is with all that was just appended
            return len(ranges) if ranges[-1].end_offset <= offset else len(ranges) - 1
        return bisect_right(ranges, offset, key=_end_offset)

    @property
    def newest_state_is_detached(self) -> bool:
        """True where the newest state's range is no longer one of `ranges`."""
        if self.newest_state is None:
            return False
        object_id, value = self.newest_state
        if self.ranges and self.ranges[-1] is value:
            return False
        index = self.index_of(value.base_offset)
        return index == len(self.ranges) or self.object_ids[index] != object_id

    def sort_ranges(self) -> None:
        """Objects are in id order, which is not offset order once some were compacted, or committed out of turn."""
        if all(a.base_offset < b.base_offset for a, b in pairwise(self.ranges)):
            return
        order = sorted(range(len(self.ranges)), key=lambda index: self.ranges[index].base_offset)
        self.ranges = [self.ranges[index] for index in order]
        self.object_ids = [self.object_ids[index] for index in order]


def _end_offset(value: Range) -> int:
    return value.end_offset


@dataclass(slots=True, kw_only=True, eq=False)
class TopicState:
    """One topic."""

    topic_id: bytes
    name: str
    stream_ids: tuple[StreamId, ...]
    """By partition index."""
    configs: dict[str, str]
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreferenced:
    """An object that no stream needs any more; it may be expired after a grace period."""

    size_bytes: int
    unreferenced_at_ms: int
    skipped: tuple[tuple[StreamId, Skip], ...]
    """For the answer to a repeated commit."""


class IdSet:
    """A set of ids kept as disjoint, sorted intervals.

    Ids are given out in sequence and nearly all of them end up in here, so a set of millions takes a few intervals.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, intervals: tuple[tuple[int, int], ...] = ()) -> None:
        self._starts = [start for start, _ in intervals]
        self._ends = [end for _, end in intervals]

    def __contains__(self, value: int) -> bool:
        index = bisect_right(self._starts, value) - 1
        return index >= 0 and value < self._ends[index]

    def add(self, value: int) -> None:
        index = bisect_right(self._starts, value)
        if index and value < self._ends[index - 1]:
            return
        joins_left = index > 0 and self._ends[index - 1] == value
        joins_right = index < len(self._starts) and self._starts[index] == value + 1
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif joins_left:
            self._ends[index - 1] = value + 1
        elif joins_right:
            self._starts[index] = value
        else:
            self._starts.insert(index, value)
            self._ends.insert(index, value + 1)

    def intervals(self) -> tuple[tuple[int, int], ...]:
        """Disjoint, sorted [start, end) intervals."""
        return tuple(zip(self._starts, self._ends, strict=True))


@dataclass(slots=True, kw_only=True, eq=False)
class Tables:
    """All of the state. `State` wraps it; the parts (topics, nodes, streams, objects) read and change it."""

    cluster_id: str = ""
    metadata_version: int = METADATA_VERSION
    controller_epoch: int = 0
    leader: str = ""
    next_node_epoch: int = 1
    next_stream_id: StreamId = _FIRST_STREAM_ID
    next_object_id: ObjectId = _FIRST_OBJECT_ID
    next_producer_id: int = 0
    nodes: dict[int, NodeRegistered] = field(default_factory=dict)
    node_health: dict[int, NodeHealth] = field(default_factory=dict)
    """Of registered nodes that are not ALIVE."""
    drained: dict[int, None] = field(default_factory=dict)
    """Nodes that are to have no partitions, until they register anew or somebody wants it otherwise."""
    broker_configs: dict[int, dict[str, str]] = field(default_factory=dict)
    """Altered settings by node id, and under `ALL_NODES`; nodes without any are not in it."""
    topics: dict[bytes, TopicState] = field(default_factory=dict)
    topic_ids: dict[str, bytes] = field(default_factory=dict)
    streams: dict[StreamId, StreamState] = field(default_factory=dict)
    objects: dict[ObjectId, ObjectCommitted] = field(default_factory=dict)
    live_counts: dict[ObjectId, int] = field(default_factory=dict)
    replaced: dict[ObjectId, frozenset[StreamId]] = field(default_factory=dict)
    """Of objects that are referenced: streams whose ranges in it were replaced by compaction, and whose other ranges were not yet. A snapshot leaves
    them out, since they lie where the ranges are that took their place."""
    unreferenced: dict[ObjectId, Unreferenced] = field(default_factory=dict)
    expired: dict[ObjectId, None] = field(default_factory=dict)
    """Expired and perhaps not yet deleted from the store, in order of expiry."""
    gone: IdSet = field(default_factory=IdSet)
    """Every id ever expired."""

    def require_version(self, metadata_version: int) -> None:
        """Something was written that only this version and later ones understand: so they must be told from now on."""
        self.metadata_version = max(self.metadata_version, metadata_version)

    def node_status(self, node_id: int) -> NodeStatus:
        """Whether a registered node serves, as far as the cluster knows."""
        health = self.node_health.get(node_id)
        return NodeStatus.ALIVE if health is None else health.status

    def is_live(self, object_id: ObjectId, value: Range) -> bool:
        """True while a stream needs this range of this object."""
        stream = self.streams.get(value.stream_id)
        if stream is None:
            return False
        if stream.newest_state is not None and stream.newest_state[0] == object_id:
            return True
        index = stream.index_of(value.base_offset)
        return index < len(stream.ranges) and stream.object_ids[index] == object_id

    def live_ranges(self, entry: ObjectCommitted) -> Iterator[Range]:
        """The ranges of an object that streams still need."""
        if self.live_counts.get(entry.object_id, 0) == len(entry.ranges):
            yield from entry.ranges
        else:
            yield from (value for value in entry.ranges if self.is_live(entry.object_id, value))


@dataclass(slots=True, kw_only=True)
class Touched:
    """What a record changed: for subscribers and for checking no more than needed."""

    streams: dict[StreamId, tuple[int, int]] = field(default_factory=dict)
    """Per stream, the offsets [low, high) whose ranges changed; (0, 0) where none did."""
    topics: set[bytes] = field(default_factory=set)
    objects: set[ObjectId] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)
    """Registered, suspected, trusted or taken for dead."""
    broker_configs: bool = False

    def stream(self, stream_id: StreamId, low: int = 0, high: int = 0) -> None:
        before = self.streams.get(stream_id)
        if before is None or before[0] == before[1]:
            self.streams[stream_id] = (low, high)
        elif low != high:
            self.streams[stream_id] = (min(low, before[0]), max(high, before[1]))
