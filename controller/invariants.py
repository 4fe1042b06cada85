"""Named predicates that every change must satisfy; checked before an entry is written, and over all of the state in tests
and after a snapshot is read.

Always true: a predicate is pure and looks only at what a change touched, so that checking a commit of 10,000 streams
costs about as much as applying it. It answers None, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from controller.errors import InvariantViolated
from controller.records import MetadataRestored, PartitionsAdded, Record, TopicCreated
from controller.tables import NodeStatus, StreamState, StreamStatus, Tables, Touched
from s3stream.metadata import ObjectId, StreamId

__all__ = [
    "NodeFacts",
    "StreamFacts",
    "Violation",
    "check_all",
    "check_change",
    "checking",
    "facts_of",
    "growing_ids",
    "node_facts",
    "violations",
]


_CHECKED_AT_A_TIME: Final = 10_000
"""Ranges or objects: some milliseconds."""


class StreamFacts(NamedTuple):
    """What a stream was before a change."""

    status: StreamStatus
    node_id: int
    wal_id: str
    leader_epoch: int
    log_start_offset: int
    committed_end_offset: int


def facts_of(stream: StreamState) -> StreamFacts:
    return StreamFacts(
        stream.status,
        stream.node_id,
        stream.wal_id,
        stream.leader_epoch,
        stream.log_start_offset,
        stream.committed_end_offset,
    )


StreamPredicate = Callable[[StreamFacts | None, StreamState], str | None]
RangePredicate = Callable[[Tables, StreamState, int, int], str | None]


def offsets_never_go_back(before: StreamFacts | None, after: StreamState) -> str | None:
    """I2, I3, I10: log start and committed end only grow."""
    if before is None:
        return None
    if after.log_start_offset < before.log_start_offset:
        return f"log start went back from {before.log_start_offset} to {after.log_start_offset}"
    if after.committed_end_offset < before.committed_end_offset:
        return f"committed end went back from {before.committed_end_offset} to {after.committed_end_offset}"
    return None


def log_start_is_within_committed(before: StreamFacts | None, after: StreamState) -> str | None:
    """I10: 0 <= log start <= committed end."""
    if not 0 <= after.log_start_offset <= after.committed_end_offset:
        return f"log start {after.log_start_offset} is outside of 0 to {after.committed_end_offset}"
    return None


def holder_changes_with_a_new_epoch(before: StreamFacts | None, after: StreamState) -> str | None:
    """I4: whoever may append holds a leader epoch that nobody else held."""
    if before is None:
        return None
    if after.leader_epoch < before.leader_epoch:
        return f"leader epoch went back from {before.leader_epoch} to {after.leader_epoch}"
    same_holder = (after.node_id, after.wal_id) == (before.node_id, before.wal_id)
    if after.status is not StreamStatus.CLOSED and not same_holder and after.leader_epoch == before.leader_epoch:
        return f"holder changed from node {before.node_id} to {after.node_id} within leader epoch {after.leader_epoch}"
    return None


def open_is_left_in_order(before: StreamFacts | None, after: StreamState) -> str | None:
    """I1, I4: a stream goes from one WAL to another only through CLOSED; recovery names the WAL that it recovers, and the WAL's own
    node may take it back from whoever recovers it."""
    if before is None or before.status is StreamStatus.CLOSED or after.status is StreamStatus.CLOSED:
        return None
    if after.wal_id != before.wal_id:
        return f"went from WAL {before.wal_id} to WAL {after.wal_id} without having been closed"
    if StreamStatus.RECOVERING not in (before.status, after.status) and after.node_id != before.node_id:
        return f"was opened by node {after.node_id} on the WAL of node {before.node_id}"
    return None


def closed_streams_have_no_wal(before: StreamFacts | None, after: StreamState) -> str | None:
    """A WAL is named exactly while its tail matters."""
    if (after.status is StreamStatus.CLOSED) != (after.wal_id == ""):
        return f"is {after.status.name} with WAL {after.wal_id!r}"
    return None


def ranges_are_contiguous(tables: Tables, stream: StreamState, first: int, last: int) -> str | None:
    """I5: each range begins where the one before ends, but for recorded gaps; together they reach the committed end."""
    ranges = stream.ranges
    for index in range(first, last):
        value = ranges[index]
        if value.base_offset >= value.end_offset:
            return f"the range {value.base_offset} to {value.end_offset} is empty"
        following = ranges[index + 1].base_offset if index + 1 < len(ranges) else stream.committed_end_offset
        if value.end_offset != following and not _is_gap(stream, value.end_offset, following):
            return f"a range ends at {value.end_offset} and the next begins at {following}"
    if not ranges:
        if stream.log_start_offset != stream.committed_end_offset and not _is_gap(
            stream, stream.log_start_offset, stream.committed_end_offset
        ):
            return f"no range holds {stream.log_start_offset} to {stream.committed_end_offset}"
        return None
    if ranges[0].end_offset <= stream.log_start_offset:
        return f"a range that ends at {ranges[0].end_offset} is below the log start {stream.log_start_offset}"
    if ranges[0].base_offset > stream.log_start_offset and not _is_gap(
        stream, stream.log_start_offset, ranges[0].base_offset
    ):
        return f"the first range begins at {ranges[0].base_offset}, past the log start {stream.log_start_offset}"
    return None


def ranges_are_in_referenced_objects(tables: Tables, stream: StreamState, first: int, last: int) -> str | None:
    """I8: what can be read is referenced."""
    if len(stream.ranges) != len(stream.object_ids):
        return f"has {len(stream.ranges)} ranges in {len(stream.object_ids)} objects"
    for index in range(first, last):
        if stream.object_ids[index] not in tables.objects:
            return f"offset {stream.ranges[index].base_offset} is in object {stream.object_ids[index]}, which is unreferenced"
    if stream.newest_state is not None and stream.newest_state[0] not in tables.objects:
        return f"its newest state is in object {stream.newest_state[0]}, which is unreferenced"
    return None


def _is_gap(stream: StreamState, start: int, end: int) -> bool:
    """True where [start, end) was given up, by one or several abandons in a row (or lies in one, past a trim)."""
    at = start
    for low, high in stream.gaps:
        if low <= at < high:
            at = high
    return start < end <= at


STREAM_PREDICATES: Final[Sequence[StreamPredicate]] = (
    offsets_never_go_back,
    log_start_is_within_committed,
    holder_changes_with_a_new_epoch,
    open_is_left_in_order,
    closed_streams_have_no_wal,
)
RANGE_PREDICATES: Final[Sequence[RangePredicate]] = (ranges_are_contiguous, ranges_are_in_referenced_objects)


def object_is_in_one_place(tables: Tables, object_id: ObjectId) -> str | None:
    """I8: referenced, unreferenced or gone, and referenced exactly while something is live."""
    places = (object_id in tables.objects) + (object_id in tables.unreferenced) + (object_id in tables.gone)
    if places > 1:
        return f"object {object_id} is in {places} of referenced, unreferenced and expired"
    if (object_id in tables.objects) != (tables.live_counts.get(object_id, 0) > 0):
        return f"object {object_id} has {tables.live_counts.get(object_id, 0)} live ranges"
    if object_id >= tables.next_object_id:
        return f"object {object_id} was never given out"
    return None


def topic_holds_its_streams(tables: Tables, topic_id: bytes) -> str | None:
    """Partitions are numbered without gaps, each with a stream of its own."""
    topic = tables.topics[topic_id]
    for partition, stream_id in enumerate(topic.stream_ids):
        stream = tables.streams.get(stream_id)
        if stream is None or (stream.topic_id, stream.partition) != (topic_id, partition):
            return f"partition {partition} of topic {topic.name} has no stream {stream_id} of its own"
    return None


class NodeFacts(NamedTuple):
    """What a node was before a change."""

    node_epoch: int
    status: NodeStatus


def node_facts(tables: Tables, node_id: int) -> NodeFacts | None:
    """None for one that is not registered."""
    node = tables.nodes.get(node_id)
    return None if node is None else NodeFacts(node.node_epoch, tables.node_status(node_id))


def dead_is_suspected_first_and_for_good(before: NodeFacts | None, after: NodeFacts | None) -> str | None:
    """I4: whoever takes over from a registration that is dead can rely on its lease having been refused before, and on its end."""
    if before is None or after is None:
        return None if after is None or after.status is NodeStatus.ALIVE else f"is {after.status.name} and new"
    if after.node_epoch < before.node_epoch:
        return f"went back from node epoch {before.node_epoch} to {after.node_epoch}"
    if after.node_epoch > before.node_epoch:
        return None if after.status is NodeStatus.ALIVE else f"was registered as {after.status.name}"
    if before.status is NodeStatus.DEAD and after.status is not NodeStatus.DEAD:
        return f"came back to life within node epoch {after.node_epoch}"
    if before.status is NodeStatus.ALIVE and after.status is NodeStatus.DEAD:
        return f"is dead within node epoch {after.node_epoch}, and was not suspected"
    return None


def check_change(
    tables: Tables,
    before: dict[StreamId, StreamFacts],
    ids_before: tuple[int, ...],
    node_before: NodeFacts | None,
    record: Record,
    touched: Touched,
) -> None:
    """Check what one record changed. Raises InvariantViolated."""
    for node_id in touched.nodes:
        wrong = dead_is_suspected_first_and_for_good(node_before, node_facts(tables, node_id))
        if wrong is not None:
            raise InvariantViolated(f"dead_is_suspected_first_and_for_good: node {node_id} {wrong}, by {record!r:.200}")
    if any(now < then for now, then in zip(growing_ids(tables), ids_before, strict=True)):
        raise InvariantViolated(f"ids_only_grow: {ids_before} became {growing_ids(tables)} by {record!r:.200}")
    for topic_id in _new_streams_topics(record):
        wrong = topic_holds_its_streams(tables, topic_id)
        if wrong is not None:
            raise InvariantViolated(f"topic_holds_its_streams: {wrong}, by {record!r:.200}")
    is_restored = isinstance(record, MetadataRestored)
    for stream_id, (low, high) in touched.streams.items():
        stream = tables.streams.get(stream_id)
        if stream is not None:
            facts = before.get(stream_id)
            if is_restored and facts is not None:
                facts = facts._replace(log_start_offset=0)  # nothing else brings back what was trimmed
            for predicate in STREAM_PREDICATES:
                wrong = predicate(facts, stream)
                if wrong is not None:
                    raise InvariantViolated(f"{predicate.__name__}: stream {stream_id} {wrong}, by {record!r:.200}")
            if low != high:
                first, last = stream.index_of(low), stream.index_of(high)
                _check_ranges(tables, stream, max(first - 1, 0), min(last + 1, len(stream.ranges)))
    for object_id in touched.objects:
        wrong = object_is_in_one_place(tables, object_id)
        if wrong is not None:
            raise InvariantViolated(f"object_is_in_one_place: {wrong}, by {record!r:.200}")


def _new_streams_topics(record: Record) -> Sequence[bytes]:
    """Topics that a record gives streams."""
    if isinstance(record, TopicCreated | PartitionsAdded):
        return (record.topic_id,)
    return [topic.topic_id for topic in record.topics] if isinstance(record, MetadataRestored) else ()


def growing_ids(tables: Tables) -> tuple[int, ...]:
    """Counters that only grow (I9)."""
    return (
        tables.controller_epoch,
        tables.next_node_epoch,
        tables.next_stream_id,
        tables.next_object_id,
        tables.next_producer_id,
    )


def _check_ranges(tables: Tables, stream: StreamState, first: int, last: int) -> None:
    for predicate in RANGE_PREDICATES:
        wrong = predicate(tables, stream, first, last)
        if wrong is not None:
            raise InvariantViolated(f"{predicate.__name__}: stream {stream.stream_id} {wrong}")


class Violation(NamedTuple):
    """A state that must not be."""

    predicate: str
    stream_id: StreamId | None
    """Of what stream; None where it is about something else."""
    message: str


def check_all(tables: Tables) -> None:
    """Check all of the state. Raises InvariantViolated."""
    for _ in checking(tables):
        pass


def checking(tables: Tables) -> Iterator[None]:
    """Check all of the state in steps of some milliseconds; nothing may be applied meanwhile. Raises InvariantViolated."""
    for found in _looked_through(tables):
        if found is not None:
            subject = "" if found.stream_id is None else f"stream {found.stream_id} "
            raise InvariantViolated(f"{found.predicate}: {subject}{found.message}")
        yield


def violations(tables: Tables) -> Iterator[Violation]:
    """Everything that is wrong with the state. Of a stream's ranges, each predicate tells the first place only."""
    return (found for found in _looked_through(tables) if found is not None)


def _looked_through(tables: Tables) -> Iterator[Violation | None]:
    """What is wrong, and None now and then."""
    counts: dict[ObjectId, int] = {}
    looked_at = 0
    for stream in tables.streams.values():
        looked_at += 1 + len(stream.ranges)
        if looked_at >= _CHECKED_AT_A_TIME:
            looked_at = 0
            yield None
        for predicate in STREAM_PREDICATES:
            wrong = predicate(None, stream)
            if wrong is not None:
                yield Violation(predicate.__name__, stream.stream_id, wrong)
        for range_predicate in RANGE_PREDICATES:
            wrong = range_predicate(tables, stream, 0, len(stream.ranges))
            if wrong is not None:
                yield Violation(range_predicate.__name__, stream.stream_id, wrong)
        for object_id in stream.object_ids:
            counts[object_id] = counts.get(object_id, 0) + 1
        if stream.newest_state is not None and stream.newest_state_is_detached:
            counts[stream.newest_state[0]] = counts.get(stream.newest_state[0], 0) + 1
        topic = tables.topics.get(stream.topic_id)
        if topic is None or topic.stream_ids[stream.partition] != stream.stream_id:
            yield Violation("streams_belong_to_topics", stream.stream_id, "belongs to none")
    for topic_id in tables.topics:
        wrong = topic_holds_its_streams(tables, topic_id)
        if wrong is not None:
            yield Violation("topic_holds_its_streams", None, wrong)
    if counts != tables.live_counts:
        wrong_ids = [i for i in counts.keys() | tables.live_counts.keys() if counts.get(i) != tables.live_counts.get(i)]
        yield Violation("live_counts_are_exact", None, f"they are not, for objects {sorted(wrong_ids)[:10]}")
    yield None
    for number, object_id in enumerate((*tables.objects, *tables.unreferenced, *tables.expired)):
        if number % _CHECKED_AT_A_TIME == _CHECKED_AT_A_TIME - 1:
            yield None
        wrong = object_is_in_one_place(tables, object_id)
        if wrong is not None:
            yield Violation("object_is_in_one_place", None, wrong)
    for node_id, health in tables.node_health.items():
        if node_id not in tables.nodes or health.status is NodeStatus.ALIVE:
            yield Violation("only_registered_nodes_are_suspected", None, f"node {node_id} is {health.status.name}")
    if {topic.name: topic_id for topic_id, topic in tables.topics.items()} != tables.topic_ids:
        yield Violation("topic_names_are_unique", None, "names and topics differ")
