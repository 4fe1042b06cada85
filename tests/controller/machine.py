"""A state machine on its own, as tests drive it: short forms of commands, every change checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from controller.allotment import AllotNode
from controller.commands import Command
from controller.errors import ControllerError
from controller.invariants import check_all
from controller.nodes import DeclareDead, DrainNode, NodeRegistration, RegisterNode, SuspectNode, TrustNode
from controller.objects import AllocateObjectIds, Commit, ExpireObjects, ForgetObjects
from controller.records import Record, decode_records, encode_records
from controller.restoration import LastSeen, RestorePlan, RestoreTopics, last_seen_before
from controller.state import FormatCluster, State
from controller.streams import CloseStreams, OpenStreams, ReassignStreams, RecoverWal, TrimStreams
from controller.tables import StreamState
from controller.topics import CreateTopics, DeleteTopics, NewTopic
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    NewObject,
    ObjectId,
    OpenedStream,
    SkipReason,
    StreamId,
    StreamRange,
)

R = TypeVar("R")

T0_MS = 1_700_000_000_000


def stream_range(
    stream_id: int, base_offset: int, end_offset: int, *, leader_epoch: int = 0, has_state: bool = False
) -> StreamRange:
    return StreamRange(
        stream_id=StreamId(stream_id),
        leader_epoch=leader_epoch,
        base_offset=base_offset,
        end_offset=end_offset,
        record_count=end_offset - base_offset,
        size_bytes=100 * (end_offset - base_offset),
        max_timestamp_ms=T0_MS + end_offset,
        has_state=has_state,
    )


def new_object(object_id: int, *ranges: StreamRange) -> NewObject:
    return NewObject(
        object_id=ObjectId(object_id), size_bytes=sum(each.size_bytes for each in ranges) + 64, ranges=ranges
    )


class Machine:
    """One state, and the log of all records that made it."""

    def __init__(self) -> None:
        self.state = State()
        self.log: list[Record] = []
        self.last_seen: dict[StreamId, LastSeen] = {}
        self.now_ms = T0_MS
        self.do(FormatCluster(cluster_id="test"))

    def do(self, command: Command[R]) -> R:
        """Decide a command and apply what follows, as it comes back from the log."""
        decision = self.state.handle(command)
        for record in decode_records(encode_records(decision.records), where="the test"):
            self.last_seen.update(last_seen_before(self.state.tables, record))
            self.state.check_and_apply(record)
            self.log.append(record)
        check_all(self.state.tables)
        return decision.reply

    def register(
        self,
        node_id: int = 1,
        wal_id: str = "wal-1",
        wal_epoch: int = 0,
        *,
        lease_ms: int = 3_000,
        allotted_epoch: int = -1,
        wal_uri: str = "",
    ) -> int:
        """Register a node; returns its node epoch."""
        return self.do(
            RegisterNode(
                node_id=node_id,
                wal_id=wal_id,
                wal_epoch=wal_epoch,
                allotted_epoch=allotted_epoch,
                wal_uri=wal_uri,
                lease_ms=lease_ms,
                at_ms=self.now_ms,
            )
        ).node_epoch

    def allot(self, *, reserved_max_id: int = 0, wal_uri: str = "", address: str = "pod:9093") -> NodeRegistration:
        """Give an id to a node that has none."""
        return self.do(
            AllotNode(
                claim=f"claim-{len(self.log)}",
                reserved_max_id=reserved_max_id,
                wal_uri=wal_uri,
                lease_ms=3_000,
                controller_address=address,
                at_ms=self.now_ms,
            )
        )

    def suspect(self, node_id: int, node_epoch: int | None = None) -> bool:
        """Suspect a node, by default the one that is registered now."""
        node_epoch = self.node_epoch(node_id) if node_epoch is None else node_epoch
        return self.do(SuspectNode(node_id=node_id, node_epoch=node_epoch, at_ms=self.now_ms))

    def declare_dead(self, node_id: int, node_epoch: int | None = None) -> bool:
        """Take a node for dead, likewise."""
        node_epoch = self.node_epoch(node_id) if node_epoch is None else node_epoch
        return self.do(DeclareDead(node_id=node_id, node_epoch=node_epoch, at_ms=self.now_ms))

    def kill(self, node_id: int) -> None:
        """Suspect a node, and take it for dead."""
        assert self.suspect(node_id)
        assert self.declare_dead(node_id)

    def trust(self, node_id: int) -> None:
        """Take a suspicion back."""
        self.do(TrustNode(node_id=node_id, node_epoch=self.node_epoch(node_id)))

    def create(self, name: str = "orders", partitions: int = 1) -> list[StreamId]:
        """Create a topic; returns its streams by partition."""
        topic_id = f"{name}-{len(self.log)}".encode().ljust(16, b".")[:16]
        topic = NewTopic(name=name, topic_id=topic_id, partition_count=partitions)
        made = self.do(CreateTopics(topics=(topic,), max_partitions=1_000, at_ms=self.now_ms))[name]
        if isinstance(made, ControllerError):
            raise made
        return list(self.state.tables.topics[made].stream_ids)

    def delete(self, name: str) -> None:
        topic_id = self.state.tables.topic_ids[name]
        assert self.do(DeleteTopics(topic_ids=(topic_id,), at_ms=self.now_ms)) == {topic_id: None}

    def open(self, node_id: int, stream_ids: Sequence[int]) -> Sequence[OpenedStream]:
        return self.do(self.opening(node_id, stream_ids))

    def opening(self, node_id: int, stream_ids: Sequence[int]) -> OpenStreams:
        """What a node sends that knows them as they are now."""
        streams = tuple(map(StreamId, stream_ids))
        return OpenStreams(
            node_id=node_id,
            node_epoch=self.node_epoch(node_id),
            stream_ids=streams,
            leader_epochs=self._leader_epochs(streams),
        )

    def recovering(self, node_id: int, wal_id: str) -> RecoverWal:
        """What a node sends that knows what is open on a WAL."""
        held = [stream.stream_id for stream in self.state.tables.streams.values() if stream.wal_id == wal_id]
        return RecoverWal(
            node_id=node_id,
            node_epoch=self.node_epoch(node_id),
            wal_id=wal_id,
            leader_epochs=self._leader_epochs(held),
        )

    def close(self, node_id: int, end_offsets: Mapping[int, int]) -> None:
        self.do(self.closing(node_id, end_offsets))

    def closing(self, node_id: int, end_offsets: Mapping[int, int]) -> CloseStreams:
        """What a node sends that holds them as they are held now."""
        ends = {StreamId(stream_id): end for stream_id, end in end_offsets.items()}
        return CloseStreams(
            node_id=node_id,
            node_epoch=self.node_epoch(node_id),
            end_offsets=ends,
            leader_epochs=self._leader_epochs(ends),
        )

    def _leader_epochs(self, stream_ids: Iterable[StreamId]) -> dict[StreamId, int]:
        streams = self.state.tables.streams
        return {stream_id: streams[stream_id].leader_epoch for stream_id in stream_ids if stream_id in streams}

    def reassign(self, targets: Mapping[int, int]) -> None:
        self.do(ReassignStreams(targets={StreamId(stream_id): target for stream_id, target in targets.items()}))

    def drain(self, node_id: int, is_drained: bool = True) -> None:
        self.do(DrainNode(node_id=node_id, is_drained=is_drained))

    def trim(self, node_id: int, log_start_offsets: Mapping[int, int]) -> None:
        offsets = {StreamId(stream_id): offset for stream_id, offset in log_start_offsets.items()}
        self.do(
            TrimStreams(
                node_id=node_id, node_epoch=self.node_epoch(node_id), log_start_offsets=offsets, at_ms=self.now_ms
            )
        )

    def ids(self, node_id: int, count: int = 1) -> list[ObjectId]:
        block = self.do(AllocateObjectIds(node_id=node_id, node_epoch=self.node_epoch(node_id), count=count))
        return [ObjectId(each) for each in block]

    def commit(self, node_id: int, *objects: NewObject, sources: Sequence[int] = ()) -> CommitResult:
        commit = CommitObjects(objects=objects, sources=tuple(map(ObjectId, sources)))
        return self.do(Commit(node_id=node_id, node_epoch=self.node_epoch(node_id), commit=commit, at_ms=self.now_ms))

    def upload(self, node_id: int, *ranges: StreamRange) -> tuple[ObjectId, Mapping[StreamId, SkipReason]]:
        """Commit one object with a fresh id; returns the id and what was skipped."""
        (object_id,) = self.ids(node_id)
        return object_id, self.commit(node_id, new_object(object_id, *ranges)).skipped

    def expire(self, *object_ids: int) -> list[ObjectId]:
        return list(self.do(ExpireObjects(object_ids=tuple(map(ObjectId, object_ids)))))

    def forget(self, *object_ids: int) -> None:
        self.do(ForgetObjects(object_ids=tuple(map(ObjectId, object_ids))))

    def restore(self, target: State, *topics: str, slack_offsets: int = 0) -> RestorePlan:
        """Take topics (by default all) back to what they were in a state; its index is of no account here."""
        return self.do(self.restoring(target, *topics, slack_offsets=slack_offsets))

    def restoring(self, target: State, *topics: str, slack_offsets: int = 0) -> RestoreTopics:
        return RestoreTopics(
            index=7,
            target=target.tables,
            last_seen=self.last_seen,
            topics=frozenset(topics) or None,
            slack_offsets=slack_offsets,
            at_ms=self.now_ms,
        )

    def node_epoch(self, node_id: int) -> int:
        return self.state.tables.nodes[node_id].node_epoch

    def stream(self, stream_id: int) -> StreamState:
        return self.state.tables.streams[StreamId(stream_id)]

    def layout(self, stream_id: int) -> list[tuple[int, int, int]]:
        """(base_offset, end_offset, object_id) of a stream's ranges."""
        stream = self.stream(stream_id)
        return [
            (each.base_offset, each.end_offset, object_id)
            for each, object_id in zip(stream.ranges, stream.object_ids, strict=True)
        ]

    def referenced(self) -> set[int]:
        return set(self.state.tables.objects)

    def unreferenced(self) -> set[int]:
        return set(self.state.tables.unreferenced)


def ready(partitions: int = 1) -> tuple[Machine, list[StreamId]]:
    """Node 1 is registered and has a topic's partitions open under leader epoch 0."""
    machine = Machine()
    machine.register()
    streams = machine.create(partitions=partitions)
    machine.open(1, streams)
    return machine, streams
