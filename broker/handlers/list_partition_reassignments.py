"""ListPartitionReassignments (key 46): partitions that are on their way to another broker (KIP-455).

Versions: 0.

Behaviour: each with the broker that still has it (removing) and the one that is to have it (adding); partitions that do not exist, or stay
where they are, are left out. Answered from memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from protocol.messages.list_partition_reassignments import (
    ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse,
    OngoingPartitionReassignment,
    OngoingTopicReassignment,
)

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.topics import Topic

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 46
MIN_VERSION = 0
MAX_VERSION = 0


def handle(
    broker: Broker, connection: Connection, call: Call, request: ListPartitionReassignmentsRequest
) -> ListPartitionReassignmentsResponse:
    """Answer from memory."""
    topics: list[OngoingTopicReassignment] = []
    if request.topics is None:
        for topic in broker.topics.by_name.values():
            _add(topics, topic, range(len(topic.info.partitions)))
    else:
        for wanted in request.topics:
            found = broker.topics.by_name.get(wanted.name)
            if found is not None:
                _add(topics, found, wanted.partition_indexes)
    return ListPartitionReassignmentsResponse(error_message=None, topics=topics)


def _add(topics: list[OngoingTopicReassignment], topic: Topic, indexes: Iterable[int]) -> None:
    partitions = [
        OngoingPartitionReassignment(
            partition_index=state.index,
            replicas=[state.leader, state.target],
            adding_replicas=[state.target],
            removing_replicas=[state.leader],
        )
        for index in dict.fromkeys(indexes)
        if 0 <= index < len(topic.info.partitions) and (state := topic.info.partitions[index]).target != -1
    ]
    if partitions:
        topics.append(OngoingTopicReassignment(name=topic.name, partitions=partitions))
