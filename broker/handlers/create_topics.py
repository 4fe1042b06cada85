"""CreateTopics (key 19): create topics with partitions and configs.

Versions: 2–7.
- v4+ −1 partitions or replication factor mean the broker's default (KIP-464); here at every version.
- v5+ the answer tells the topic's configs (KIP-525); v7+ its id (KIP-516).

Behaviour: each topic succeeds or fails on its own. The answer waits until the partitions are open, so that a producer may
start at once; when that outlasts `timeout_ms` it is error 7, as in Kafka, and the topic may come into being nevertheless.
Any replication factor from 1 on is accepted, on one node as well: the object store replicates.

Deviations: a manual assignment is checked, and gives the number of partitions; who leads them the cluster decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from broker.topic_config import (
    TOPIC_SETTINGS,
    InvalidTopicConfig,
    check_topic_name,
    colliding_form,
    is_told,
    synonyms,
    validate,
)
from controller.controller import TopicSpec
from controller.errors import ControllerError
from protocol.errors import ErrorCode
from protocol.messages.create_topics import (
    CreatableTopic,
    CreatableTopicConfigs,
    CreatableTopicResult,
    CreateTopicsRequest,
    CreateTopicsResponse,
)
from s3stream.errors import MetadataUnavailable

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle", "wait_until_open"]

API_KEY = 19
MIN_VERSION = 2
MAX_VERSION = 7

TOPICS_AT_ONCE = 100
"""Topics that are checked before others get their turn: each takes some 0.1 ms, mostly for its configs."""


def handle(
    broker: Broker, connection: Connection, call: Call, request: CreateTopicsRequest
) -> Coroutine[Any, Any, CreateTopicsResponse]:
    """Check, commit, wait until open."""
    return _create(broker, request)


OPEN_ELSEWHERE_WAIT_S = 2.0
"""How long other nodes may take to open their partitions of a new topic: then the answer goes out all the same, and clients ask again."""


async def wait_until_open(broker: Broker, names: Sequence[str]) -> None:
    """Return when those partitions of topics that are this node's are open, and as a rule the others as well."""
    await broker.topics.wait_open_elsewhere(names, OPEN_ELSEWHERE_WAIT_S)
    for name in names:
        topic = broker.topics.by_name.get(name)
        if topic is not None:
            await broker.partitions.wait_open(topic)


async def _create(broker: Broker, request: CreateTopicsRequest) -> CreateTopicsResponse:
    counts = Counter(topic.name for topic in request.topics)
    results: dict[str, CreatableTopicResult] = {}
    specs: list[TopicSpec] = []
    requested_partitions = 0
    forms: dict[str, str] = {}
    for at, wanted in enumerate(request.topics):
        if at % TOPICS_AT_ONCE == TOPICS_AT_ONCE - 1:
            await asyncio.sleep(0)
        result = results[wanted.name] = CreatableTopicResult(name=wanted.name, error_message=None, configs=[])
        try:
            if counts[wanted.name] > 1:
                raise KafkaError(ErrorCode.INVALID_REQUEST, f"the request names topic {wanted.name} twice")
            spec = _spec(broker, wanted, forms)
            if requested_partitions + spec.partition_count > broker.settings.max_partitions_per_request:
                raise KafkaError(
                    ErrorCode.POLICY_VIOLATION,
                    f"more than max.partitions.per.request = {broker.settings.max_partitions_per_request} partitions",
                )
        except (KafkaError, InvalidTopicConfig) as error:
            _fail(result, error)
            continue
        specs.append(spec)
        requested_partitions += spec.partition_count
        forms[colliding_form(spec.name)] = spec.name
        result.num_partitions = spec.partition_count
        result.replication_factor = _replication_factor(broker, wanted)
        result.configs = [
            CreatableTopicConfigs(name=row.name, value=holds.value, config_source=holds.source)
            for row in TOPIC_SETTINGS.values()
            if is_told(row, spec.configs)
            for holds in synonyms(row, spec.configs, broker.layers)[:1]
        ]
    if specs and not request.validate_only:
        await _commit(broker, request.timeout_ms, specs, results)
    return CreateTopicsResponse(topics=list(results.values()))


async def _commit(
    broker: Broker, timeout_ms: int, specs: list[TopicSpec], results: dict[str, CreatableTopicResult]
) -> None:
    try:
        async with asyncio.timeout(max(timeout_ms, 0) / 1000):
            for name, made in (await broker.controller.create_topics(specs)).items():
                if isinstance(made, ControllerError):
                    _fail(results[name], made)
                else:
                    results[name].topic_id = made.topic_id
            await wait_until_open(broker, [spec.name for spec in specs])
    except (MetadataUnavailable, TimeoutError):
        late = KafkaError(ErrorCode.REQUEST_TIMED_OUT, "the topic may come into being later: look before trying again")
        for spec in specs:
            if not results[spec.name].error_code:
                _fail(results[spec.name], late)


def _spec(broker: Broker, wanted: CreatableTopic, forms: dict[str, str]) -> TopicSpec:
    """Check one topic in the order in which Kafka does. `forms` are those of the request's topics before it."""
    name = wanted.name
    problem = check_topic_name(name)
    if problem is not None:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, problem)
    if name in broker.topics.by_name:
        raise KafkaError(ErrorCode.TOPIC_ALREADY_EXISTS, f"topic {name} exists")
    collides = broker.topics.colliding_name(name) or forms.get(colliding_form(name))
    if collides is not None:
        raise KafkaError(
            ErrorCode.INVALID_TOPIC_EXCEPTION, f"topic {name} would differ from {collides} in '.' and '_' only"
        )
    nulls = [config.name for config in wanted.configs if config.value is None]
    if nulls:
        raise InvalidTopicConfig(f"null values are not supported for topic configs: {', '.join(nulls)}")
    configs = validate({config.name: config.value for config in wanted.configs})
    return TopicSpec(name=name, partition_count=_partition_count(broker, wanted), configs=configs)


def _partition_count(broker: Broker, wanted: CreatableTopic) -> int:
    if wanted.assignments:
        if wanted.num_partitions != -1 or wanted.replication_factor != -1:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST, "with a manual assignment, partitions and replication factor must be -1"
            )
        _check_assignments(broker, wanted)
        return len(wanted.assignments)
    if wanted.num_partitions == 0 or wanted.num_partitions < -1:
        raise KafkaError(ErrorCode.INVALID_PARTITIONS, f"{wanted.num_partitions} partitions: at least 1, or -1")
    if wanted.replication_factor == 0 or wanted.replication_factor < -1:
        raise KafkaError(
            ErrorCode.INVALID_REPLICATION_FACTOR, f"replication factor {wanted.replication_factor}: at least 1, or -1"
        )
    return broker.settings.num_partitions if wanted.num_partitions == -1 else wanted.num_partitions


def _check_assignments(broker: Broker, wanted: CreatableTopic) -> None:
    if sorted(item.partition_index for item in wanted.assignments) != list(range(len(wanted.assignments))):
        raise KafkaError(
            ErrorCode.INVALID_REPLICA_ASSIGNMENT, "the assigned partitions are not numbered from 0 without gaps"
        )
    known = broker.controller.image.nodes.keys()
    for item in wanted.assignments:
        if not item.broker_ids or len(set(item.broker_ids)) != len(item.broker_ids):
            raise KafkaError(
                ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"partition {item.partition_index} has no or repeated replicas"
            )
        unknown = set(item.broker_ids) - known
        if unknown:
            raise KafkaError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"no broker has the id {min(unknown)}")


def _replication_factor(broker: Broker, wanted: CreatableTopic) -> int:
    if wanted.assignments:
        return len(wanted.assignments[0].broker_ids)
    if wanted.replication_factor == -1:
        return broker.settings.default_replication_factor
    return wanted.replication_factor


def _fail(result: CreatableTopicResult, error: Exception) -> None:
    result.error_code = code_of(error)
    result.error_message = str(error)
    result.num_partitions = result.replication_factor = -1
    result.configs = []
