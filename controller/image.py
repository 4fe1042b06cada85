"""The committed metadata as others see it: topics, partitions, nodes, streams. Read-only.

Always true:
- It shows what is committed, and nothing else; it changes only between two awaits of its readers.
- Values are frozen: one that a reader keeps does not change under it. They are made when first asked for, and kept until
  the topic changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controller.records import ALL_NODES, NodeRegistered, Record
from controller.state import State
from controller.tables import NodeStatus, StreamStatus, TopicState
from s3stream.metadata import StreamId

__all__ = ["Applied", "CommittedPart", "Image", "Node", "PartitionState", "Topic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionState:
    """One partition of a topic."""

    index: int
    stream_id: StreamId
    leader: int
    """Node that has it open; while none has, the node that is to open it."""
    leader_epoch: int
    """-1 before it was ever opened."""
    is_open: bool
    """Its leader serves it, as far as the cluster knows: it is not so where that is dead, though it had it open."""
    target: int = -1
    """Node that it is on its way to; -1: it stays."""
    is_recovering: bool = False
    """The leader is not to open it: it takes its tail out of the WAL of a node that died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as of now."""

    name: str
    topic_id: bytes
    """16 raw bytes."""
    partitions: tuple[PartitionState, ...]
    """By partition index."""
    configs: Mapping[str, str]
    """Those that differ from the defaults."""
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A registered node."""

    node_id: int
    node_epoch: int
    wal_id: str
    address: str
    rack: str
    lease_ms: int
    """0: it takes no lease."""
    controller_address: str
    """Empty: it is alone."""
    status: NodeStatus
    wal_uri: str = ""
    """Where the WAL is, as others may find it; empty: nowhere else."""
    wal_host: str = ""
    """Identity of the machine whose disk it is on; empty where it is on none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedPart:
    """What objects hold of a stream."""

    log_start_offset: int
    end_offset: int
    """Exclusive."""
    gaps: tuple[tuple[int, int], ...]
    """Offsets that were given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What subscribers are told: an entry was applied, or, with `is_reset`, everything may have changed."""

    index: int
    records: Sequence[Record]
    topic_ids: frozenset[bytes]
    """Topics that were created, deleted, configured, or had a partition added, opened or closed."""
    broker_configs: bool = False
    """Settings of brokers were altered."""
    is_reset: bool


class Image:
    """A view of the committed state."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._topics: dict[bytes, Topic] = {}

    @property
    def cluster_id(self) -> str:
        return self.state.tables.cluster_id

    @property
    def controller_epoch(self) -> int:
        return self.state.tables.controller_epoch

    @property
    def nodes(self) -> Mapping[int, Node]:
        """Registered nodes by id."""
        return {node_id: self._node(value) for node_id, value in sorted(self.state.tables.nodes.items())}

    def node(self, node_id: int) -> Node | None:
        value = self.state.tables.nodes.get(node_id)
        return None if value is None else self._node(value)

    def node_status(self, node_id: int) -> NodeStatus:
        """Whether a registered node serves; ALIVE also for one that is not registered."""
        return self.state.tables.node_status(node_id)

    @property
    def metadata_version(self) -> int:
        """The one in force."""
        return self.state.tables.metadata_version

    def is_drained(self, node_id: int) -> bool:
        """Whether an operator wants a node to have no partitions."""
        return node_id in self.state.tables.drained

    def broker_configs(self, node_id: int = ALL_NODES) -> Mapping[str, str]:
        """Settings of a node, or of all, that were altered while it ran."""
        return self.state.tables.broker_configs.get(node_id, {})

    def topic(self, name: str) -> Topic | None:
        topic_id = self.state.tables.topic_ids.get(name)
        return None if topic_id is None else self.topic_by_id(topic_id)

    def topic_by_id(self, topic_id: bytes) -> Topic | None:
        topic = self._topics.get(topic_id)
        if topic is None:
            found = self.state.tables.topics.get(topic_id)
            if found is None:
                return None
            topic = self._topics[topic_id] = self._made(found)
        return topic

    def topics(self) -> Iterator[Topic]:
        """All topics, by name."""
        for name in sorted(self.state.tables.topic_ids):
            topic = self.topic(name)
            assert topic is not None, "the reader awaited while iterating"
            yield topic

    def topic_names(self) -> Sequence[str]:
        return sorted(self.state.tables.topic_ids)

    @property
    def partition_count(self) -> int:
        return len(self.state.tables.streams)

    def partition_of(self, stream_id: StreamId) -> tuple[bytes, int] | None:
        """The topic id and partition index of a stream; None where it was deleted."""
        stream = self.state.tables.streams.get(stream_id)
        return None if stream is None else (stream.topic_id, stream.partition)

    def committed_part(self, stream_id: StreamId) -> CommittedPart | None:
        """What can be read of a stream by any node; None where it was deleted."""
        stream = self.state.tables.streams.get(stream_id)
        if stream is None:
            return None
        return CommittedPart(
            log_start_offset=stream.log_start_offset, end_offset=stream.committed_end_offset, gaps=stream.gaps
        )

    def streams_led_by(self, node_id: int) -> Sequence[StreamId]:
        """Streams that a node has open or is to open."""
        return [stream.stream_id for stream in self.state.tables.streams.values() if stream.node_id == node_id]

    def replace(self, state: State) -> None:
        """Show another state (after a snapshot was loaded)."""
        self.state = state
        self._topics.clear()

    def forget(self, topic_ids: set[bytes]) -> None:
        """Make the values of these topics anew when they are next asked for."""
        for topic_id in topic_ids:
            self._topics.pop(topic_id, None)

    def _made(self, topic: TopicState) -> Topic:
        streams = self.state.tables.streams
        return Topic(
            name=topic.name,
            topic_id=topic.topic_id,
            partitions=tuple(
                PartitionState(
                    index=index,
                    stream_id=stream_id,
                    leader=streams[stream_id].node_id,
                    leader_epoch=streams[stream_id].leader_epoch,
                    is_open=streams[stream_id].status is StreamStatus.OPEN
                    and self.node_status(streams[stream_id].node_id) is not NodeStatus.DEAD,
                    target=streams[stream_id].target_node_id,
                    is_recovering=streams[stream_id].status is StreamStatus.RECOVERING,
                )
                for index, stream_id in enumerate(topic.stream_ids)
            ),
            configs=dict(topic.configs),
            created_at_ms=topic.created_at_ms,
        )

    def _node(self, value: NodeRegistered) -> Node:
        return Node(
            node_id=value.node_id,
            node_epoch=value.node_epoch,
            wal_id=value.wal_id,
            address=value.address,
            rack=value.rack,
            lease_ms=value.lease_ms,
            controller_address=value.controller_address,
            status=self.node_status(value.node_id),
            wal_uri=value.wal_uri,
            wal_host=value.wal_host,
        )
