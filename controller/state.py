"""The state machine: `handle(command)` decides, `apply(record)` changes, nothing else does either.

Always true:
- Both are pure: no clock, no randomness, no I/O; times and random ids come inside commands. Equal records make equal
  states on every node (I9), which `digest` can tell.
- `handle` changes nothing. `check_and_apply` is for a leader, on the state that runs ahead of what is committed: it checks
  the invariants of what a record changed. `apply` is for everybody, on what was committed and hence checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar, cast

from controller import allotment, nodes, objects, records, restoration, streams, topics
from controller.commands import Command, Decision
from controller.invariants import StreamFacts, check_change, facts_of, growing_ids, node_facts
from controller.records import Record
from controller.tables import IdSet, StreamState, Tables, Touched
from s3stream.metadata import StreamId

__all__ = ["FormatCluster", "State"]

R = TypeVar("R")

_COPIED_AT_A_TIME: Final = 100_000
"""Ranges, and what costs as much: some milliseconds."""
_RANGES_FOR_A_STREAM: Final = 200


class State:
    """Tables, and the only ways to ask and to change them."""

    __slots__ = ("tables",)

    def __init__(self, tables: Tables | None = None) -> None:
        self.tables = tables if tables is not None else Tables()

    def handle(self, command: Command[R]) -> Decision[R]:
        """Decide on a command without changing anything. Raises the errors that the command names."""
        return cast("Decision[R]", _HANDLERS[type(command)](self.tables, command))

    def apply(self, record: Record) -> Touched:
        """Make true what a record says."""
        touched = Touched()
        _APPLIERS[type(record)](self.tables, record, touched)
        return touched

    def check_and_apply(self, record: Record) -> Touched:
        """Apply, and check every invariant on what changed.

        Raises:
            InvariantViolated: this state is of no more use; take a fresh copy.
        """
        before: dict[StreamId, StreamFacts] = {}
        for stream_id in _streams_of(record):
            stream = self.tables.streams.get(stream_id)
            if stream is not None:
                before[stream_id] = facts_of(stream)
        ids_before = growing_ids(self.tables)
        node_before = node_facts(self.tables, getattr(record, "node_id", -1))
        touched = self.apply(record)
        check_change(self.tables, before, ids_before, node_before, record, touched)
        return touched

    def copy(self) -> State:
        """A state that can go its own way; immutable parts are shared."""
        for step in self.copying():
            if step is not None:
                return step
        raise AssertionError("copying ends with the copy")

    def copying(self) -> Iterator[State | None]:
        """Copy in steps: yields None after each some milliseconds of work, and the copy at the end. Nothing may be applied meanwhile."""
        old = self.tables
        values: dict[str, Any] = {}
        for field in fields(Tables):
            values[field.name] = _copied(getattr(old, field.name))
            yield None
        new = Tables(**values)
        range_count = 0
        for stream_id, stream in old.streams.items():
            new.streams[stream_id] = _copied_stream(stream)
            range_count += len(stream.ranges) + _RANGES_FOR_A_STREAM
            if range_count >= _COPIED_AT_A_TIME:
                range_count = 0
                yield None
        new.topics = {topic_id: copy.copy(topic) for topic_id, topic in old.topics.items()}
        yield State(new)


def _copied(value: Any) -> Any:
    if isinstance(value, IdSet):
        return IdSet(value.intervals())
    return dict(value) if isinstance(value, dict) else value


def _copied_stream(stream: StreamState) -> StreamState:
    new = copy.copy(stream)
    new.ranges = stream.ranges.copy()
    new.object_ids = stream.object_ids.copy()
    return new


def _streams_of(record: Record) -> list[StreamId]:
    """Streams that a record may change (a deleted one's past does not matter)."""
    match record:
        case records.ObjectCommitted():
            return [value.stream_id for value in record.ranges]
        case records.ObjectsCompacted():
            return [value.stream_id for new in record.objects for value in new.ranges]
        case records.StreamsOpened() | records.StreamsRecovering():
            return [stream_id for stream_id, _ in record.streams]
        case records.StreamsReassigned():
            return [stream_id for stream_id, _ in record.targets]
        case records.StreamsTrimmed():
            return [stream_id for stream_id, _ in record.log_start_offsets]
        case records.StreamsAbandoned():
            return [stream_id for stream_id, _ in record.resume_offsets]
        case records.StreamsClosed():
            return list(record.stream_ids)
        case records.MetadataRestored():
            return [stream.stream_id for stream in record.streams]
        case _:
            return []


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatCluster(Command[None]):
    """The first command of a cluster's life; does nothing later."""

    cluster_id: str


def _format_cluster(tables: Tables, command: FormatCluster) -> Decision[None]:
    if tables.cluster_id:
        return Decision((), None)
    return Decision(
        (records.ClusterFormatted(cluster_id=command.cluster_id, metadata_version=records.METADATA_VERSION),), None
    )


def _apply_cluster_formatted(tables: Tables, record: records.ClusterFormatted, touched: Touched) -> None:
    tables.cluster_id = record.cluster_id
    tables.metadata_version = record.metadata_version


def _apply_leader_changed(tables: Tables, record: records.LeaderChanged, touched: Touched) -> None:
    tables.controller_epoch = record.controller_epoch
    tables.leader = record.leader


_HANDLERS: Final[Mapping[type, Callable[[Tables, Any], Decision[Any]]]] = {
    FormatCluster: _format_cluster,
    nodes.RaiseMetadataVersion: nodes.raise_metadata_version,
    nodes.RegisterNode: nodes.register_node,
    allotment.AllotNode: allotment.allot_node,
    nodes.DescribeNode: nodes.describe_node,
    nodes.SuspectNode: nodes.suspect_node,
    nodes.TrustNode: nodes.trust_node,
    nodes.DeclareDead: nodes.declare_dead,
    nodes.LeaveCluster: nodes.leave_cluster,
    nodes.UnregisterNode: nodes.unregister_node,
    nodes.DrainNode: nodes.drain_node,
    nodes.ConfigureBroker: nodes.configure_broker,
    topics.CreateTopics: topics.create_topics,
    topics.DeleteTopics: topics.delete_topics,
    topics.AddPartitions: topics.add_partitions,
    topics.ConfigureTopic: topics.configure_topic,
    streams.OpenStreams: streams.open_streams,
    streams.CloseStreams: streams.close_streams,
    streams.TrimStreams: streams.trim_streams,
    streams.ReassignStreams: streams.reassign_streams,
    streams.RecoverWal: streams.recover_wal,
    streams.GiveBackWal: streams.give_back_wal,
    streams.AbandonWal: streams.abandon_wal,
    objects.Commit: objects.commit_objects,
    objects.ExpireObjects: objects.expire_objects,
    objects.ForgetObjects: objects.forget_objects,
    objects.AllocateObjectIds: objects.allocate_object_ids,
    objects.AllocateProducerIds: objects.allocate_producer_ids,
    restoration.RestoreTopics: restoration.restore_topics,
}

_APPLIERS: Final[Mapping[type, Callable[[Tables, Any, Touched], None]]] = {
    records.ClusterFormatted: _apply_cluster_formatted,
    records.LeaderChanged: _apply_leader_changed,
    records.NodeRegistered: nodes.apply_node_registered,
    records.NodeUnregistered: nodes.apply_node_unregistered,
    records.NodeSuspected: nodes.apply_node_suspected,
    records.NodeTrusted: nodes.apply_node_trusted,
    records.NodeDead: nodes.apply_node_dead,
    records.MetadataVersionRaised: nodes.apply_metadata_version_raised,
    records.TopicCreated: topics.apply_topic_created,
    records.TopicDeleted: topics.apply_topic_deleted,
    records.TopicConfigsChanged: topics.apply_topic_configs_changed,
    records.StreamsOpened: streams.apply_streams_opened,
    records.StreamsRecovering: streams.apply_streams_recovering,
    records.StreamsClosed: streams.apply_streams_closed,
    records.StreamsTrimmed: streams.apply_streams_trimmed,
    records.StreamsAbandoned: streams.apply_streams_abandoned,
    records.StreamsReassigned: streams.apply_streams_reassigned,
    records.ObjectCommitted: objects.apply_object_committed,
    records.ObjectsCompacted: objects.apply_objects_compacted,
    records.ObjectsExpired: objects.apply_objects_expired,
    records.ObjectsForgotten: objects.apply_objects_forgotten,
    records.ObjectIdsAllocated: objects.apply_object_ids_allocated,
    records.ProducerIdsAllocated: objects.apply_producer_ids_allocated,
    records.PartitionsAdded: topics.apply_partitions_added,
    records.BrokerConfigsChanged: nodes.apply_broker_configs_changed,
    records.MetadataRestored: restoration.apply_metadata_restored,
    records.NodeDrained: nodes.apply_node_drained,
}
