"""DescribeProducers (key 61): the idempotent producers that partitions remember (KIP-664).

Versions: 0.

Behaviour: what is told is what the next batch of a producer is judged by: its epoch and last sequence, and when it last
appended. Idle producers are forgotten after `producer.id.expiration.ms`. There are no transactions yet, so
coordinator epoch and transaction start are always −1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from protocol.errors import ErrorCode
from protocol.messages.describe_producers import (
    DescribeProducersPartitionResult,
    DescribeProducersRequest,
    DescribeProducersResponse,
    DescribeProducersTopicResult,
    ProducerState,
)
from s3stream.errors import StorageError

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 61
MIN_VERSION = 0
MAX_VERSION = 0


def handle(
    broker: Broker, connection: Connection, call: Call, request: DescribeProducersRequest
) -> DescribeProducersResponse:
    """Answer from memory."""
    return DescribeProducersResponse(
        topics=[
            DescribeProducersTopicResult(
                name=topic.name, partitions=[_described(broker, topic.name, index) for index in topic.partition_indexes]
            )
            for topic in request.topics
        ]
    )


def _described(broker: Broker, name: str, index: int) -> DescribeProducersPartitionResult:
    try:
        partition = broker.topics.open_partition(name, index)
        if not partition.loaded:
            raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{partition} is loading")
    except (KafkaError, StorageError) as error:
        return DescribeProducersPartitionResult(
            partition_index=index, error_code=code_of(error), error_message=str(error)
        )
    return DescribeProducersPartitionResult(
        partition_index=index,
        active_producers=[
            ProducerState(
                producer_id=producer.producer_id,
                producer_epoch=producer.producer_epoch,
                last_sequence=producer.last_sequence,
                last_timestamp=producer.last_append_ms,
                coordinator_epoch=-1,
            )
            for producer in partition.producers.entries()
        ],
    )
