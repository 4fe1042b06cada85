"""Metadata (key 3): brokers, topics, partitions and their leaders.

Versions: 0–13.
- v0: an empty list of topics means all; from v1 on null does, and an empty list means none.
- v4+ `allow_auto_topic_creation`; v5+ offline replicas; v7+ leader epochs; v8+ authorized operations (KIP-430).
- v10+ topic ids, by which one may ask from v12 on (KIP-516): an unknown id is error 100. v13+ a top-level error.

Behaviour: every broker is told with its advertised address on the listener that the client came in by. A topic
that does not exist is created where client and `auto.create.topics.enable` allow it, and the answer waits until its
partitions are open; where that takes too long it is error 5, and the client asks again. Replicas and ISR name the leader,
since the object store replicates, and where racks are set one broker of each other rack, from which objects can be read (KIP-392). Any broker can be asked to create topics, so the controller is the one that answers.

Answers are kept encoded until something changes: many clients ask the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.endpoints import brokers_on
from broker.errors import code_of
from broker.handlers.create_topics import wait_until_open
from broker.topic_config import check_topic_name, colliding_form
from broker.topics import INTERNAL_TOPICS, Topic
from broker.zones import Zones
from controller.controller import TopicSpec
from controller.errors import ControllerError, TopicExists
from controller.tables import NodeStatus
from protocol.errors import ErrorCode
from protocol.messages.metadata import (
    MetadataRequest,
    MetadataRequestTopic,
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from protocol.types import NULL_UUID
from s3stream.errors import MetadataUnavailable

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = [
    "ALL_OPERATIONS_ON_CLUSTER",
    "ALL_OPERATIONS_ON_TOPIC",
    "API_KEY",
    "MAX_VERSION",
    "MIN_VERSION",
    "handle",
]

API_KEY = 3
MIN_VERSION = 0
MAX_VERSION = 13

ALL_OPERATIONS_ON_TOPIC = 0b1101_1111_1000
"""READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS, as bits (KIP-430): nothing is forbidden."""

ALL_OPERATIONS_ON_CLUSTER = 0b1_1111_1010_0000
"""CREATE, ALTER, DESCRIBE, CLUSTER_ACTION, DESCRIBE_CONFIGS, ALTER_CONFIGS, IDEMPOTENT_WRITE."""


def handle(
    broker: Broker, connection: Connection, call: Call, request: MetadataRequest
) -> MetadataResponse | Coroutine[Any, Any, MetadataResponse] | None:
    """Answer from memory; only topics that are to be created take longer."""
    wanted = request.topics
    if wanted is not None and not wanted and call.version == 0:
        wanted = None
    if wanted is not None:
        wanted = _once_each(wanted)
    key = (
        call.version,
        call.listener.name,
        None if wanted is None else tuple((topic.name, topic.topic_id) for topic in wanted),
        request.include_topic_authorized_operations,
        request.include_cluster_authorized_operations,
    )
    version = broker.topics.version
    frame = broker.metadata_cache.get(version, key, call.correlation_id)
    if frame is not None:
        call.answered()
        connection.respond([frame])
        return None
    if wanted is not None and request.allow_auto_topic_creation and broker.settings.auto_create_topics_enable:
        missing = [
            topic.name
            for topic in wanted
            if topic.name
            and topic.name not in broker.topics.by_name
            and topic.name not in INTERNAL_TOPICS  # those come into being when somebody needs them, in their own way
            and check_topic_name(topic.name) is None
        ]
        if missing:
            # The rest is unknown for now, so that clients ask again.
            at_once = max(broker.settings.max_partitions_per_request // broker.settings.num_partitions, 1)
            return _create_and_answer(broker, call, request, wanted, list(dict.fromkeys(missing))[:at_once])
    response = _answer(broker, call, request, wanted, {})
    frame = b"".join(call.encode(response))
    if not any(topic.error_code for topic in response.topics):  # the same question may create it the next time
        broker.metadata_cache.put(version, key, frame)
    connection.respond([frame])
    return None


def _once_each(wanted: Iterable[MetadataRequestTopic]) -> list[MetadataRequestTopic]:
    """Answer a topic once, as Kafka does: a name repeated costs two bytes, what is told of it may be a megabyte."""
    return list({(topic.name, topic.topic_id): topic for topic in wanted}.values())


async def _create_and_answer(
    broker: Broker,
    call: Call,
    request: MetadataRequest,
    wanted: Iterable[MetadataRequestTopic],
    missing: Iterable[str],
) -> MetadataResponse:
    errors: dict[str, ErrorCode] = {}
    specs = []
    forms: set[str] = set()
    for name in missing:
        form = colliding_form(name)
        if broker.topics.colliding_name(name) is not None or form in forms:
            errors[name] = ErrorCode.INVALID_TOPIC_EXCEPTION
        else:
            forms.add(form)
            specs.append(TopicSpec(name=name, partition_count=broker.settings.num_partitions))
    try:
        async with asyncio.timeout(broker.settings.request_timeout_ms / 1000):
            for name, made in (await broker.controller.create_topics(specs)).items():
                if isinstance(made, ControllerError) and not isinstance(made, TopicExists):
                    errors[name] = code_of(made)
            await wait_until_open(broker, [spec.name for spec in specs])
    except (MetadataUnavailable, TimeoutError):
        for spec in specs:  # whether they come into being is open: the client asks again
            errors.setdefault(spec.name, ErrorCode.LEADER_NOT_AVAILABLE)
    return _answer(broker, call, request, wanted, errors)


def _answer(
    broker: Broker,
    call: Call,
    request: MetadataRequest,
    wanted: Iterable[MetadataRequestTopic] | None,
    errors: dict[str, ErrorCode],
) -> MetadataResponse:
    operations = ALL_OPERATIONS_ON_TOPIC if request.include_topic_authorized_operations else -(2**31)
    zones = broker.zone_reads.zones(call.listener.name)
    if wanted is None:
        topics = [_topic(broker, topic, operations, zones) for topic in broker.topics.by_name.values()]
    else:
        topics = [_wanted_topic(broker, topic, errors, operations, zones) for topic in wanted]
    response = MetadataResponse(
        brokers=[
            MetadataResponseBroker(node_id=node.node_id, host=address.host, port=address.port, rack=node.rack or None)
            for node, address in brokers_on(broker, call.listener)
        ],
        cluster_id=broker.cluster_id,
        controller_id=broker.settings.node_id,
        topics=topics,
    )
    if request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = ALL_OPERATIONS_ON_CLUSTER
    return response


def _wanted_topic(
    broker: Broker, wanted: MetadataRequestTopic, errors: dict[str, ErrorCode], operations: int, zones: Zones
) -> MetadataResponseTopic:
    by_id = not wanted.name and wanted.topic_id != NULL_UUID
    topic = broker.topics.by_id.get(wanted.topic_id) if by_id else broker.topics.by_name.get(wanted.name or "")
    if topic is not None:
        return _topic(broker, topic, operations, zones)
    if by_id:
        return MetadataResponseTopic(error_code=ErrorCode.UNKNOWN_TOPIC_ID, name=None, topic_id=wanted.topic_id)
    name = wanted.name or ""
    if name in errors:
        code = errors[name]
    elif check_topic_name(name) is not None:
        code = ErrorCode.INVALID_TOPIC_EXCEPTION
    else:
        code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    return MetadataResponseTopic(error_code=code, name=name)


def _topic(broker: Broker, topic: Topic, operations: int, zones: Zones) -> MetadataResponseTopic:
    status_of = broker.controller.image.node_status
    partitions = []
    for state in topic.info.partitions:
        replicas = zones.replicas(state.leader, state.stream_id)
        partition = MetadataResponsePartition(
            partition_index=state.index,
            leader_id=state.leader,
            leader_epoch=state.leader_epoch,
            replica_nodes=replicas,
            isr_nodes=replicas,
        )
        is_dead = status_of(state.leader) is NodeStatus.DEAD
        if is_dead or not state.is_open:
            partition.error_code = ErrorCode.LEADER_NOT_AVAILABLE
            partition.leader_id = -1
            partition.offline_replicas = [state.leader] if is_dead else ()
        partitions.append(partition)
    return MetadataResponseTopic(
        name=topic.name,
        topic_id=topic.topic_id,
        is_internal=topic.is_internal,
        partitions=partitions,
        topic_authorized_operations=operations,
    )
