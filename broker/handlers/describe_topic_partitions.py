"""DescribeTopicPartitions (key 75): topics with their partitions, page by page (KIP-966).

Versions: 0.

Behaviour: topics in the order of their names, all of them where none is named. A page has at most
`response_partition_limit` partitions, and at most `max.request.partition.size.limit`; the cursor says where the next one begins. There are no
replicas to elect from, so eligible leader replicas are empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from broker.handlers.metadata import ALL_OPERATIONS_ON_TOPIC
from broker.topic_config import check_topic_name
from broker.topics import Topic
from broker.zones import Zones
from controller.image import PartitionState
from controller.tables import NodeStatus
from protocol.errors import ErrorCode
from protocol.messages.describe_topic_partitions import (
    Cursor,
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsResponse,
    DescribeTopicPartitionsResponsePartition,
    DescribeTopicPartitionsResponseTopic,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 75
MIN_VERSION = 0
MAX_VERSION = 0


def handle(
    broker: Broker, connection: Connection, call: Call, request: DescribeTopicPartitionsRequest
) -> DescribeTopicPartitionsResponse:
    """Answer one page from memory."""
    cursor = request.cursor
    names: Iterable[str] = sorted({topic.name for topic in request.topics} or broker.topics.by_name)
    if cursor is not None:
        if cursor.partition_index < 0:
            return DescribeTopicPartitionsResponse(
                topics=[
                    DescribeTopicPartitionsResponseTopic(name=name, error_code=ErrorCode.INVALID_REQUEST)
                    for name in names
                ]
            )
        names = [name for name in names if name >= cursor.topic_name]
    left = max(1, min(request.response_partition_limit, broker.settings.max_request_partition_size_limit))
    zones = broker.zone_reads.zones(call.listener.name)
    topics: list[DescribeTopicPartitionsResponseTopic] = []
    response = DescribeTopicPartitionsResponse(topics=topics)
    for name in names:
        topic = broker.topics.by_name.get(name)
        if topic is None:
            topics.append(_missing(name))
            continue
        first = cursor.partition_index if cursor is not None and cursor.topic_name == name else 0
        if not left:
            response.next_cursor = Cursor(topic_name=name, partition_index=first)
            break
        part = topic.info.partitions[first : first + left]
        topics.append(_described(broker, topic, part, zones))
        left -= len(part)
        if first + len(part) < len(topic.info.partitions):
            response.next_cursor = Cursor(topic_name=name, partition_index=first + len(part))
            break
    return response


def _missing(name: str) -> DescribeTopicPartitionsResponseTopic:
    valid = check_topic_name(name) is None
    code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if valid else ErrorCode.INVALID_TOPIC_EXCEPTION
    return DescribeTopicPartitionsResponseTopic(name=name, error_code=code)


def _described(
    broker: Broker, topic: Topic, states: Iterable[PartitionState], zones: Zones
) -> DescribeTopicPartitionsResponseTopic:
    status_of = broker.controller.image.node_status
    return DescribeTopicPartitionsResponseTopic(
        name=topic.name,
        topic_id=topic.topic_id,
        is_internal=topic.is_internal,
        partitions=[_partition(state, zones, status_of(state.leader) is NodeStatus.DEAD) for state in states],
        topic_authorized_operations=ALL_OPERATIONS_ON_TOPIC,
    )


def _partition(state: PartitionState, zones: Zones, is_dead: bool) -> DescribeTopicPartitionsResponsePartition:
    replicas = zones.replicas(state.leader, state.stream_id)
    serves = state.is_open and not is_dead
    return DescribeTopicPartitionsResponsePartition(
        error_code=ErrorCode.NONE if serves else ErrorCode.LEADER_NOT_AVAILABLE,
        partition_index=state.index,
        leader_id=state.leader if serves else -1,
        leader_epoch=state.leader_epoch,
        replica_nodes=replicas,
        isr_nodes=replicas,
        eligible_leader_replicas=[],
        last_known_elr=[],
        offline_replicas=[state.leader] if is_dead else [],
    )
