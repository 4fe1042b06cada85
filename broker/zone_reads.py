"""Reads of consumers that name their zone (KIP-392): whom the leader sends to a broker of theirs, and what such a broker reads for them.

Always true:
- A consumer is sent to its zone only for what the leader would have to read from objects itself, so that records of just now are served
  by the leader, from memory; at the end of what objects hold it is led back.
- Who is led back is told NOT_LEADER_OR_FOLLOWER: clients then ask the leader at the same offset. OFFSET_OUT_OF_RANGE would have a client that
  took this broker for the leader begin elsewhere.
- Only consumers that name this broker's own zone are read for here. All others learn who leads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.addresses import parse_listeners
from broker.leader_epochs import EpochCheck, check_leader_epoch
from broker.replica import Replica
from broker.zones import Sent, ZoneNode, Zones
from controller.tables import NodeStatus
from s3stream.committed_stream import CommittedStream

if TYPE_CHECKING:
    from broker.partition import Partition
    from broker.topics import Topic, Topics
    from controller.image import Image
    from s3stream.storage import Storage

__all__ = ["ZoneReads"]


class ZoneReads:
    """What one broker knows of zones."""

    def __init__(
        self, *, node_id: int, rack: str, image: Image, topics: Topics, storage: Storage, clock: Callable[[], float]
    ) -> None:
        """Begin.

        Args:
            clock: Seconds from some point on; says only who was sent elsewhere lately.
        """
        self._node_id = node_id
        self.rack = rack
        """This broker's zone; empty: it has none."""
        self._image = image
        self._topics = topics
        self._storage = storage
        self._clock = clock
        self._sent = Sent()
        self._zones: dict[str, Zones] = {}
        self._version = -1

    def zones(self, listener: str) -> Zones:
        """The brokers of each zone that a client reaches which came in by a listener; kept until the metadata change."""
        if self._topics.version != self._version:
            self._zones.clear()
            self._version = self._topics.version
        found = self._zones.get(listener)
        if found is None:
            found = self._zones[listener] = Zones(
                ZoneNode(node_id=node.node_id, rack=node.rack)
                for node in self._image.nodes.values()
                if node.rack
                and node.status is NodeStatus.ALIVE
                and any(one.name == listener for one in parse_listeners(node.address))
            )
        return found

    def preferred(self, partition: Partition, rack: str, offset: int, *, listener: str, client: str) -> int:
        """The broker that a consumer of a zone is to read this partition from next; -1: this one, which leads it."""
        if rack == self.rack:
            return -1
        stream = partition.stream
        node_id = self.zones(listener).nearest(rack, self._node_id, stream.stream_id)
        if node_id == self._node_id or offset < stream.log_start_offset:
            return -1
        cached_from = stream.tail.base_offset
        if cached_from is not None and offset >= cached_from:
            return -1
        committed_end_offset = self._storage.metadata.committed_end_offset(stream.stream_id)
        if committed_end_offset is None or offset >= committed_end_offset:
            return -1
        return node_id if self._sent.may_send(client, stream.stream_id, self._clock()) else -1

    def replica(self, topic: Topic, index: int, rack: str, offset: int, current_leader_epoch: int) -> Replica | None:
        """What this broker can read of a partition that another one leads; None: the leader is to be asked."""
        state = topic.info.partitions[index]
        if not rack or rack != self.rack or state.leader == self._node_id or index in topic.offline:
            return None
        if check_leader_epoch(current_leader_epoch, state.leader_epoch) is not EpochCheck.CURRENT:
            return None  # one of the two has not heard of a new leader yet
        committed = self._image.committed_part(state.stream_id)
        if committed is None or not committed.log_start_offset <= offset < committed.end_offset:
            return None
        stream = CommittedStream(
            stream_id=state.stream_id,
            leader_epoch=state.leader_epoch,
            log_start_offset=committed.log_start_offset,
            committed_end_offset=committed.end_offset,
            gaps=committed.gaps,
            metadata=self._storage.metadata,
            reader=self._storage.reader,
        )
        return Replica(stream, topic.traffic)
