"""What has configurations, as DescribeConfigs and AlterConfigs name it: topics, brokers, loggers.

Always true:
- A resource is altered as a whole or not at all. Changes are computed from what is committed, and committed only while that is still so;
  a change that came between makes them be computed again.
- Topics and brokers are told and checked by the same tables that everything else goes by (`TOPIC_SETTINGS`, `SETTINGS`).
- Loggers belong to the process: they are not in the metadata, and their levels last as long as it does.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from broker.broker import Broker
from broker.config import SETTINGS, InvalidSettings
from broker.config_layers import ConfigSource, SettingsLayers, Synonym
from broker.errors import KafkaError, code_of
from broker.setting import Kind, Setting, nearest
from broker.topic_config import (
    TOPIC_SETTINGS,
    InvalidTopicConfig,
    check_topic_name,
    is_told,
    synonyms,
    validate,
)
from broker.topics import Topic
from controller.errors import ConfigsChanged, ControllerError
from controller.records import ALL_NODES
from protocol.errors import ErrorCode
from s3stream.errors import MetadataUnavailable

__all__ = ["Alteration", "Change", "ConfigEntry", "Operation", "ResourceType", "alter", "describe"]

REPLICATION_THROTTLES = frozenset(
    {
        "leader.replication.throttled.rate",
        "follower.replication.throttled.rate",
        "replica.alter.log.dirs.io.max.bytes.per.second",
        "leader.replication.throttled.replicas",
        "follower.replication.throttled.replicas",
    }
)
"""Of brokers and of topics. There is no replication to hold back, so none of them can be set; Kafka's tool for reassignments takes
them back all the same when it has finished, and that does nothing."""

_ATTEMPTS = 5
"""How often a change is computed again because another came between; more often would hide a fault."""


class ResourceType(enum.IntEnum):
    """Kinds of resources that are known here, as Kafka numbers them."""

    TOPIC = 2
    BROKER = 4
    BROKER_LOGGER = 8
    CLIENT_METRICS = 16
    GROUP = 32


class Operation(enum.IntEnum):
    """What to do with a configuration (KIP-339)."""

    SET = 0
    DELETE = 1
    """Back to the default."""
    APPEND = 2
    """Add words to a list."""
    SUBTRACT = 3
    """Take words out of a list."""


class Change(NamedTuple):
    """One configuration of a resource to be altered."""

    name: str
    operation: int
    """An `Operation`, if the client knows them."""
    value: str | None


class Alteration(NamedTuple):
    """What is to be altered of one resource."""

    resource_type: int
    name: str
    changes: Sequence[Change]


class ConfigEntry(NamedTuple):
    """One configuration as it is told."""

    name: str
    value: str | None
    """None where it is sensitive."""
    source: ConfigSource
    is_read_only: bool
    is_sensitive: bool
    synonyms: Sequence[Synonym]
    """The one that holds first."""
    kind: int
    documentation: str | None


def describe(broker: Broker, resource_type: int, name: str) -> list[ConfigEntry]:
    """All configurations of a resource.

    Raises:
        KafkaError: there is no such resource.
    """
    match resource_type:
        case ResourceType.TOPIC:
            return _describe_topic(broker, _topic(broker, name))
        case ResourceType.BROKER:
            return _describe_broker(broker, _node_id(broker, name))
        case ResourceType.BROKER_LOGGER:
            _own_loggers(broker, name)
            return _describe_loggers()
        case _:
            raise _unsupported(resource_type)


async def alter(
    broker: Broker, wanted: Sequence[Alteration], *, replace: bool, validate_only: bool
) -> list[tuple[ErrorCode, str | None]]:
    """Alter configurations of resources, each for itself; returns error code and message of each.

    Args:
        replace: Configurations that are not named go back to their defaults.
        validate_only: Check, and leave everything as it is.
    """
    counts = Counter((resource_type, name) for resource_type, name, _ in wanted)

    async def outcome(resource_type: int, name: str, changes: Sequence[Change]) -> tuple[ErrorCode, str | None]:
        try:
            if counts[resource_type, name] > 1:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "each resource may come once only")
            await _alter(broker, resource_type, name, changes, replace, validate_only)
        except (KafkaError, InvalidTopicConfig, ControllerError, MetadataUnavailable) as error:
            return code_of(error), str(error)
        return ErrorCode.NONE, None

    # Together: their changes become few entries of the metadata log.
    return await asyncio.gather(*(outcome(*each) for each in wanted))


async def _alter(
    broker: Broker, resource_type: int, name: str, changes: Sequence[Change], replace: bool, validate_only: bool
) -> None:
    """Alter configurations of one resource.

    Raises:
        KafkaError: there is no such resource, or it cannot be altered like that.
        InvalidTopicConfig: a configuration of a topic is unknown, or its value not allowed.
        ControllerError, MetadataUnavailable: it could not be committed.
    """
    changes = [
        change for change in changes if change.operation != Operation.DELETE or change.name not in REPLICATION_THROTTLES
    ]
    repeated = [name for name, count in Counter(change.name for change in changes).items() if count > 1]
    if repeated:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"configs that come twice: {', '.join(repeated)}")
    nulls = [change.name for change in changes if change.value is None and change.operation != Operation.DELETE]
    if nulls:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"null value not supported for {', '.join(nulls)}")
    match resource_type:
        case ResourceType.TOPIC:
            await _alter_topic(broker, _topic(broker, name), changes, replace, validate_only)
        case ResourceType.BROKER:
            await _alter_broker(broker, _node_id(broker, name), changes, replace, validate_only)
        case ResourceType.BROKER_LOGGER if not replace:
            _own_loggers(broker, name)
            _alter_loggers(changes, validate_only)
        case _:
            raise _unsupported(resource_type)


def _unsupported(resource_type: int) -> KafkaError:
    return KafkaError(ErrorCode.INVALID_REQUEST, f"resources of type {resource_type} have no configurations here")


def _altered(
    present: Mapping[str, str],
    changes: Sequence[Change],
    default_of: Callable[[str], str],
    rows: Mapping[str, Setting],
    replace: bool,
) -> dict[str, str | None]:
    """What is to be set, and, as None, what is to go back to its default."""
    altered: dict[str, str | None] = dict.fromkeys(present) if replace else {}
    for name, operation, value in changes:
        match operation:
            case Operation.SET:
                altered[name] = value
            case Operation.DELETE:
                altered[name] = None
            case Operation.APPEND | Operation.SUBTRACT:
                row = rows.get(name)
                if row is None or row.kind is not Kind.LIST:
                    raise KafkaError(
                        ErrorCode.INVALID_CONFIG, f"can't append to or subtract from {name}: it is no list"
                    )
                old = Setting.words(present.get(name, default_of(name)))
                new = Setting.words(value or "")
                if operation == Operation.APPEND:
                    altered[name] = ",".join(dict.fromkeys(old + new))
                else:
                    altered[name] = ",".join(word for word in old if word not in new)
            case _:
                raise KafkaError(ErrorCode.INVALID_REQUEST, f"there is no operation {operation}")
    return altered


# ---- topics


def _topic(broker: Broker, name: str) -> Topic:
    problem = check_topic_name(name)
    if problem is not None:
        raise KafkaError(ErrorCode.INVALID_TOPIC_EXCEPTION, problem)
    topic = broker.topics.by_name.get(name)
    if topic is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"topic {name} does not exist")
    return topic


def _describe_topic(broker: Broker, topic: Topic) -> list[ConfigEntry]:
    configs = topic.info.configs
    return [
        _entry(row, synonyms(row, configs, broker.layers), is_read_only=False)
        for row in TOPIC_SETTINGS.values()
        if is_told(row, configs)
    ]


def _entry(row: Setting, said: Sequence[Synonym], *, is_read_only: bool) -> ConfigEntry:
    holds = said[0]
    return ConfigEntry(
        name=row.name,
        value=None if row.is_sensitive else holds.value,
        source=holds.source,
        is_read_only=is_read_only,
        is_sensitive=row.is_sensitive,
        synonyms=said,
        kind=row.kind,
        documentation=row.doc,
    )


async def _alter_topic(
    broker: Broker, topic: Topic, changes: Sequence[Change], replace: bool, validate_only: bool
) -> None:
    for attempt in range(_ATTEMPTS):
        present = topic.info.configs
        altered = _altered(present, changes, partial(_default_of_topic, broker.layers), TOPIC_SETTINGS, replace)
        validate({name: altered.get(name) for name in (*altered, *(change.name for change in changes))})
        if validate_only:
            return
        try:
            await broker.controller.configure_topic(topic.topic_id, altered, expected=present)
            return
        except ConfigsChanged:
            if attempt == _ATTEMPTS - 1:
                raise


def _default_of_topic(layers: SettingsLayers, name: str) -> str:
    return synonyms(TOPIC_SETTINGS[name], {}, layers)[0].value


# ---- brokers


def _node_id(broker: Broker, name: str) -> int:
    """The node that a resource names, `ALL_NODES` for an empty name."""
    if not name:
        return ALL_NODES
    own_id = broker.settings.node_id
    if not name.lstrip("-").isdecimal():
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"{name!r} is no broker id")
    if int(name) != own_id:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"this is broker {own_id}; ask broker {name} itself, or all by ''")
    return own_id


def _describe_broker(broker: Broker, node_id: int) -> list[ConfigEntry]:
    layers = broker.layers
    if node_id == ALL_NODES:
        return [
            _entry(SETTINGS[name], [Synonym(name, value, ConfigSource.DYNAMIC_DEFAULT_BROKER)], is_read_only=False)
            for name, value in sorted(layers.cluster.items())
            if name in SETTINGS
        ]
    return [_entry(row, layers.synonyms(name), is_read_only=not row.dynamic) for name, row in sorted(SETTINGS.items())]


async def _alter_broker(
    broker: Broker, node_id: int, changes: Sequence[Change], replace: bool, validate_only: bool
) -> None:
    for attempt in range(_ATTEMPTS):
        layers = broker.layers
        present = layers.cluster if node_id == ALL_NODES else layers.own

        altered = _altered(present, changes, partial(_value_of_broker, layers), SETTINGS, replace)
        _check_dynamic(change.name for change in changes)
        merged = {name: value for name, value in {**present, **altered}.items() if value is not None}
        try:
            layers.given.with_dynamic(*((merged, layers.own) if node_id == ALL_NODES else (layers.cluster, merged)))
        except InvalidSettings as error:
            raise KafkaError(ErrorCode.INVALID_REQUEST, str(error)) from error
        if validate_only:
            return
        try:
            await broker.controller.configure_broker(node_id, altered, expected=present)
            return
        except ConfigsChanged:
            if attempt == _ATTEMPTS - 1:
                raise


def _value_of_broker(layers: SettingsLayers, name: str) -> str:
    return layers.synonyms(name)[0].value


def _check_dynamic(names: Iterable[str]) -> None:
    for name in names:
        row = SETTINGS.get(name)
        if row is None:
            meant = nearest(name, SETTINGS)
            hint = "" if meant is None else f" (did you mean {meant}?)"
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"unknown broker config {name}{hint}")
        if not row.dynamic:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST,
                f"cannot update {name} while the broker runs: set it in its file or environment, and start it again",
            )


# ---- loggers

_ROOT = "root"
_LEVELS = {
    "TRACE": 5,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}
"""Kafka's names (KIP-412)."""


def _own_loggers(broker: Broker, name: str) -> None:
    if not name:
        raise KafkaError(ErrorCode.INVALID_REQUEST, "loggers belong to one broker: name its id")
    _node_id(broker, name)


def _logger_names() -> list[str]:
    known = logging.Logger.manager.loggerDict
    return [_ROOT, *sorted(name for name, found in known.items() if isinstance(found, logging.Logger))]


def _describe_loggers() -> list[ConfigEntry]:
    entries: list[ConfigEntry] = []
    for name in _logger_names():
        number = logging.getLogger(None if name == _ROOT else name).getEffectiveLevel()
        level = next((level for level, least in reversed(_LEVELS.items()) if number >= least), "TRACE")
        entries.append(ConfigEntry(name, level, ConfigSource.DYNAMIC_BROKER_LOGGER, False, False, (), 0, None))
    return entries


def _alter_loggers(changes: Sequence[Change], validate_only: bool) -> None:
    known = _logger_names()
    levels: dict[str, int] = {}
    for name, operation, value in changes:
        if name not in known:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"there is no logger {name}")
        if operation == Operation.DELETE:
            if name == _ROOT:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "the root logger needs a level")
            levels[name] = logging.NOTSET
        elif operation == Operation.SET and value in _LEVELS:
            levels[name] = _LEVELS[value]
        elif operation == Operation.SET:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"{value!r} is no level: one of {', '.join(_LEVELS)}")
        else:
            raise KafkaError(ErrorCode.INVALID_REQUEST, "a level can be set or deleted only")
    if not validate_only:
        for name, number in levels.items():
            logging.getLogger(None if name == _ROOT else name).setLevel(number)
