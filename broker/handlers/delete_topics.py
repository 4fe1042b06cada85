"""DeleteTopics (key 20): delete topics, by name or by id.

Versions: 1–6.
- v6+ by id as well, unknown ones are error 100 (KIP-516); v5+ error messages.

Behaviour: the name is free at once; a topic created with it has another id and other streams. Consumers that wait on the
deleted topic are answered. What it holds in objects is deleted by the collector, after its grace period.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from broker.topics import Topic
from controller.errors import ControllerError
from protocol.errors import ErrorCode
from protocol.messages.delete_topics import (
    DeletableTopicResult,
    DeleteTopicsRequest,
    DeleteTopicsResponse,
    DeleteTopicState,
)
from protocol.types import NULL_UUID
from s3stream.errors import MetadataUnavailable

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 20
MIN_VERSION = 1
MAX_VERSION = 6

_DISABLED_ERROR_SINCE = 3


def handle(
    broker: Broker, connection: Connection, call: Call, request: DeleteTopicsRequest
) -> Coroutine[Any, Any, DeleteTopicsResponse]:
    """Commit the deletion."""
    return _delete(broker, call, request)


async def _delete(broker: Broker, call: Call, request: DeleteTopicsRequest) -> DeleteTopicsResponse:
    wanted = list(request.topics) or [DeleteTopicState(name=name) for name in request.topic_names]
    counts = Counter((topic.name, topic.topic_id) for topic in wanted)
    results: list[DeletableTopicResult] = []
    doomed: dict[bytes, DeletableTopicResult] = {}
    for item in wanted:
        result = DeletableTopicResult(name=item.name, topic_id=item.topic_id)
        results.append(result)
        try:
            if counts[item.name, item.topic_id] > 1:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "the request names this topic twice")
            topic = _find(broker, call, item)
        except KafkaError as error:
            _fail(result, error)
            continue
        if topic.topic_id in doomed:
            _fail(result, KafkaError(ErrorCode.INVALID_REQUEST, "the request names this topic by name and by id"))
            continue
        result.name, result.topic_id = topic.name, topic.topic_id
        doomed[topic.topic_id] = result
    if doomed:
        outcomes: Mapping[bytes, ControllerError | None] = {}
        try:
            async with asyncio.timeout(max(request.timeout_ms, 0) / 1000):
                outcomes = await broker.controller.delete_topics(list(doomed))
        except (MetadataUnavailable, TimeoutError):
            late = KafkaError(ErrorCode.REQUEST_TIMED_OUT, "the topic may be deleted later: look before trying again")
            for result in doomed.values():
                _fail(result, late)
        for topic_id, refusal in outcomes.items():
            if refusal is not None:
                _fail(doomed[topic_id], refusal)
    return DeleteTopicsResponse(responses=results)


def _find(broker: Broker, call: Call, item: DeleteTopicState) -> Topic:
    if not broker.settings.delete_topic_enable:
        code = ErrorCode.TOPIC_DELETION_DISABLED if call.version >= _DISABLED_ERROR_SINCE else ErrorCode.INVALID_REQUEST
        raise KafkaError(code, "delete.topic.enable is false")
    if item.name is None:
        if item.topic_id == NULL_UUID:
            raise KafkaError(ErrorCode.INVALID_REQUEST, "neither name nor id is given")
        topic = broker.topics.by_id.get(item.topic_id)
        if topic is None:
            raise KafkaError(ErrorCode.UNKNOWN_TOPIC_ID, "no topic has this id")
        return topic
    if item.topic_id != NULL_UUID:
        raise KafkaError(ErrorCode.INVALID_REQUEST, "name and id are both given")
    topic = broker.topics.by_name.get(item.name)
    if topic is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"topic {item.name} does not exist")
    return topic


def _fail(result: DeletableTopicResult, error: Exception) -> None:
    result.error_code = code_of(error)
    result.error_message = str(error)
