"""DeleteRecords (key 21): raise the log start offsets of partitions.

Versions: 0–2. v2+ is flexible.

Behaviour: −1 means the high watermark. The answer comes when the new log start is committed, and has exactly the offset that
was asked for, or the present one where that is higher already. What nothing else needs is deleted from the object
store by the collector, after its grace period. Without `delete` in cleanup.policy it is error 44, for internal topics 17, as in
Kafka.

Deviations: up to the asked offset everything is uploaded before the answer, since the metadata knows objects only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from protocol.errors import ErrorCode
from protocol.messages.delete_records import (
    DeleteRecordsPartitionResult,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DeleteRecordsTopicResult,
)
from s3stream.errors import StorageError
from s3stream.objectstore import ObjectStoreError

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 21
MIN_VERSION = 0
MAX_VERSION = 2

_HIGH_WATERMARK = -1
_TRIMS_AT_A_TIME = 100
"""Partitions of one request: each has its newest state read. They share entries of the metadata log."""
_INVALID_LOW_WATERMARK = -1


def handle(
    broker: Broker, connection: Connection, call: Call, request: DeleteRecordsRequest
) -> Coroutine[Any, Any, DeleteRecordsResponse]:
    """Trim all partitions together: their new log starts become few entries of the metadata log."""
    return _delete(broker, request)


async def _delete(broker: Broker, request: DeleteRecordsRequest) -> DeleteRecordsResponse:
    timeout_s = max(request.timeout_ms, 0) / 1000
    topics = [
        DeleteRecordsTopicResult(
            name=topic.name,
            partitions=[
                DeleteRecordsPartitionResult(
                    partition_index=wanted.partition_index, low_watermark=_INVALID_LOW_WATERMARK
                )
                for wanted in topic.partitions
            ],
        )
        for topic in request.topics
    ]
    slots = asyncio.Semaphore(_TRIMS_AT_A_TIME)
    await asyncio.gather(
        *(
            _delete_in_time(broker, topic.name, wanted.offset, result, timeout_s, slots)
            for topic, answer in zip(request.topics, topics, strict=True)
            for wanted, result in zip(topic.partitions, answer.partitions, strict=True)
        )
    )
    return DeleteRecordsResponse(topics=topics)


async def _delete_in_time(
    broker: Broker,
    name: str,
    offset: int,
    result: DeleteRecordsPartitionResult,
    timeout_s: float,
    slots: asyncio.Semaphore,
) -> None:
    try:
        async with asyncio.timeout(timeout_s), slots:
            result.low_watermark = await _trim(broker, name, result.partition_index, offset)
    except (KafkaError, StorageError, ObjectStoreError, TimeoutError) as error:
        result.error_code = code_of(error)


async def _trim(broker: Broker, name: str, index: int, offset: int) -> int:
    """Trim one partition; returns its log start offset."""
    partition = broker.topics.open_partition(name, index)
    if broker.topics.by_name[name].is_internal:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, f"records of {name} are the broker's own")
    if not partition.config.delete:
        raise KafkaError(ErrorCode.POLICY_VIOLATION, f"cleanup.policy of {name} has no delete")
    if offset == _HIGH_WATERMARK:
        offset = partition.high_watermark
    if not 0 <= offset <= partition.high_watermark:
        raise KafkaError(
            ErrorCode.OFFSET_OUT_OF_RANGE, f"{offset} is not within 0 and the high watermark {partition.high_watermark}"
        )
    await partition.trim(offset)
    return partition.log_start_offset
