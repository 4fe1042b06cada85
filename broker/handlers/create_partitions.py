"""CreatePartitions (key 37): give topics more partitions.

Versions: 0–3.
- v2+ is flexible; v3+ quotas may answer error 89 (KIP-599), which there are none of.

Behaviour: each topic succeeds or fails on its own. The answer waits until the new partitions are open; when that outlasts
`timeout_ms` it is error 7, as in Kafka, and they may come into being nevertheless. Records that are there stay where they are.

Deviations: internal topics are refused (17), since groups would move away from their offsets. Assignments are checked for their number only; who leads the cluster decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from broker.handlers.create_topics import wait_until_open
from broker.topics import Topic
from controller.errors import ControllerError
from protocol.errors import ErrorCode
from protocol.messages.create_partitions import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreatePartitionsTopic,
    CreatePartitionsTopicResult,
)
from s3stream.errors import MetadataUnavailable

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 37
MIN_VERSION = 0
MAX_VERSION = 3


def handle(
    broker: Broker, connection: Connection, call: Call, request: CreatePartitionsRequest
) -> Coroutine[Any, Any, CreatePartitionsResponse]:
    """Check, commit, wait until open."""
    return _create(broker, request)


async def _create(broker: Broker, request: CreatePartitionsRequest) -> CreatePartitionsResponse:
    counts = Counter(topic.name for topic in request.topics)
    results: dict[str, CreatePartitionsTopicResult] = {}
    accepted: list[tuple[Topic, int]] = []
    requested_partitions = 0
    for wanted in request.topics:
        result = results[wanted.name] = CreatePartitionsTopicResult(name=wanted.name)
        try:
            if counts[wanted.name] > 1:
                raise KafkaError(ErrorCode.INVALID_REQUEST, f"the request names topic {wanted.name} twice")
            topic = _check(broker, wanted)
            requested_partitions += wanted.count - len(topic.info.partitions)
            if requested_partitions > broker.settings.max_partitions_per_request:
                raise KafkaError(
                    ErrorCode.POLICY_VIOLATION,
                    f"more than max.partitions.per.request = {broker.settings.max_partitions_per_request} partitions",
                )
        except KafkaError as error:
            _fail(result, error)
        else:
            accepted.append((topic, wanted.count))
    if accepted and not request.validate_only:
        await _commit(broker, request.timeout_ms, accepted, results)
    return CreatePartitionsResponse(results=list(results.values()))


def _check(broker: Broker, wanted: CreatePartitionsTopic) -> Topic:
    topic = broker.topics.by_name.get(wanted.name)
    if topic is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"topic {wanted.name} does not exist")
    if topic.is_internal:
        raise KafkaError(
            ErrorCode.INVALID_TOPIC_EXCEPTION,
            f"{wanted.name} is the broker's own: its keys are spread over what it has",
        )
    existing = len(topic.info.partitions)
    if wanted.count <= existing:
        raise KafkaError(
            ErrorCode.INVALID_PARTITIONS,
            f"topic {wanted.name} has {existing} partitions; {wanted.count} is not more than that",
        )
    if wanted.assignments and len(wanted.assignments) != wanted.count - existing:
        raise KafkaError(
            ErrorCode.INVALID_REPLICA_ASSIGNMENT,
            f"{len(wanted.assignments)} assignments for {wanted.count - existing} new partitions",
        )
    return topic


async def _commit(
    broker: Broker,
    timeout_ms: int,
    accepted: list[tuple[Topic, int]],
    results: dict[str, CreatePartitionsTopicResult],
) -> None:
    async def add(topic: Topic, count: int) -> None:
        try:
            await broker.controller.add_partitions(topic.topic_id, count)
        except ControllerError as error:
            _fail(results[topic.name], error)

    try:
        async with asyncio.timeout(max(timeout_ms, 0) / 1000):
            await asyncio.gather(*(add(topic, count) for topic, count in accepted))
            await wait_until_open(broker, [topic.name for topic, _ in accepted])
    except (MetadataUnavailable, TimeoutError):
        late = KafkaError(
            ErrorCode.REQUEST_TIMED_OUT, "the partitions may come into being later: look before trying again"
        )
        for topic, _ in accepted:
            if not results[topic.name].error_code:
                _fail(results[topic.name], late)


def _fail(result: CreatePartitionsTopicResult, error: Exception) -> None:
    result.error_code = code_of(error)
    result.error_message = str(error)
