"""Topic configuration: Kafka's names, types and ranges, and what a partition reads from it.

Always true:
- The metadata log stores only what a topic overrides, as text, as the client sent it once it was found valid.
- A resolved `TopicConfig` is typed, complete and frozen; partitions hold a reference and never look a name up.
- A name that Kafka knows is accepted also where it means nothing here (segment and replica settings of local logs),
  so that existing tools and infrastructure code work. Unknown names and values out of range are refused.
- `compression.type` other than `producer` is kept and told, but batches stay as the producer sent them.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from broker.config import BrokerSettings

__all__ = [
    "MAX_TOPIC_NAME_LENGTH",
    "ConfigSource",
    "EffectiveConfig",
    "InvalidTopicConfig",
    "TopicConfig",
    "check_topic_name",
    "colliding_form",
    "effective",
    "resolve",
    "validate",
]

MAX_TOPIC_NAME_LENGTH = 249
"""Kafka's: file names were 255 bytes, less the partition's suffix."""

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]+")
_INT32_MAX = (1 << 31) - 1
_INT64_MAX = (1 << 63) - 1


class InvalidTopicConfig(Exception):
    """A configuration name is unknown or its value not allowed; says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """What partitions of one topic go by."""

    max_message_bytes: int
    log_append_time: bool
    """`message.timestamp.type` is LogAppendTime: batches carry the broker's time."""
    timestamp_before_max_ms: int
    timestamp_after_max_ms: int
    compact: bool
    """`cleanup.policy` holds `compact`: every record needs a key."""
    delete: bool
    """`cleanup.policy` holds `delete`: retention applies."""
    retention_ms: int
    """-1: for ever."""
    retention_bytes: int
    """-1: without bound."""


def check_topic_name(name: str) -> str | None:
    """Why a topic may not have this name, or None (Kafka's `Topic.validate`)."""
    if not name:
        return "the topic name is empty"
    if name in (".", ".."):
        return "the topic name must not be '.' or '..'"
    if len(name) > MAX_TOPIC_NAME_LENGTH:
        return f"the topic name has {len(name)} characters, more than {MAX_TOPIC_NAME_LENGTH}"
    if _TOPIC_NAME.fullmatch(name) is None:
        return "the topic name has characters other than ASCII letters, digits, '.', '_' and '-'"
    return None


def colliding_form(name: str) -> str:
    """Names with the same form may not live together: metric names cannot tell '.' from '_' (as in Kafka)."""
    return name.replace(".", "_")


def _whole_number(least: int, most: int) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        try:
            value = int(text.strip())
        except ValueError:
            return f"{text!r} is no whole number"
        return None if least <= value <= most else f"{value} is not within {least}..{most}"

    return check


def _fraction(text: str) -> str | None:
    try:
        value = float(text)
    except ValueError:
        return f"{text!r} is no number"
    return None if 0 <= value <= 1 else f"{value} is not within 0..1"


def _one_of(*allowed: str) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        return None if text in allowed else f"{text!r} is none of {', '.join(allowed)}"

    return check


def _cleanup_policy(text: str) -> str | None:
    policies = _policies(text)
    if policies and policies <= {"delete", "compact"}:
        return None
    return f"{text!r} is not delete, compact, or both"


def _policies(text: str) -> set[str]:
    return {part.strip() for part in text.split(",") if part.strip()}


def _anything(text: str) -> str | None:
    return None


_BOOL = _one_of("true", "false")
_MS = _whole_number(0, _INT64_MAX)

_CHECKS: dict[str, Callable[[str], str | None]] = {
    "cleanup.policy": _cleanup_policy,
    "compression.gzip.level": _whole_number(-1, 9),
    "compression.lz4.level": _whole_number(1, 17),
    "compression.type": _one_of("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
    "compression.zstd.level": _whole_number(-131072, 22),
    "delete.retention.ms": _MS,
    "file.delete.delay.ms": _MS,
    "flush.messages": _whole_number(1, _INT64_MAX),
    "flush.ms": _MS,
    "follower.replication.throttled.replicas": _anything,
    "index.interval.bytes": _whole_number(0, _INT32_MAX),
    "leader.replication.throttled.replicas": _anything,
    "local.retention.bytes": _whole_number(-2, _INT64_MAX),
    "local.retention.ms": _whole_number(-2, _INT64_MAX),
    "max.compaction.lag.ms": _whole_number(1, _INT64_MAX),
    "max.message.bytes": _whole_number(0, _INT32_MAX),
    "message.downconversion.enable": _BOOL,
    "message.format.version": _anything,
    "message.timestamp.after.max.ms": _MS,
    "message.timestamp.before.max.ms": _MS,
    "message.timestamp.difference.max.ms": _MS,
    "message.timestamp.type": _one_of("CreateTime", "LogAppendTime"),
    "min.cleanable.dirty.ratio": _fraction,
    "min.compaction.lag.ms": _MS,
    "min.insync.replicas": _whole_number(1, _INT32_MAX),
    "preallocate": _BOOL,
    "remote.log.copy.disable": _BOOL,
    "remote.log.delete.on.disable": _BOOL,
    "remote.storage.enable": _BOOL,
    "retention.bytes": _whole_number(-1, _INT64_MAX),
    "retention.ms": _whole_number(-1, _INT64_MAX),
    "segment.bytes": _whole_number(14, _INT32_MAX),
    "segment.index.bytes": _whole_number(4, _INT32_MAX),
    "segment.jitter.ms": _MS,
    "segment.ms": _whole_number(1, _INT64_MAX),
    "unclean.leader.election.enable": _BOOL,
}
"""Every topic configuration of Kafka (3.x and 4.x, down to those that were removed since), and how to check a value."""


def validate(configs: Mapping[str, str | None]) -> dict[str, str]:
    """Overrides as they are to be stored; a null value means: the default.

    Raises:
        InvalidTopicConfig: an unknown name, or a value that is not allowed.
    """
    stored: dict[str, str] = {}
    for name, value in configs.items():
        check = _CHECKS.get(name)
        if check is None:
            raise InvalidTopicConfig(f"unknown topic config name: {name}")
        if value is None:
            continue
        problem = check(value)
        if problem is not None:
            raise InvalidTopicConfig(f"invalid value for configuration {name}: {problem}")
        stored[name] = value
    return stored


_SETTING_OF = {
    "cleanup.policy": "log_cleanup_policy",
    "max.message.bytes": "message_max_bytes",
    "message.timestamp.after.max.ms": "log_message_timestamp_after_max_ms",
    "message.timestamp.before.max.ms": "log_message_timestamp_before_max_ms",
    "message.timestamp.type": "log_message_timestamp_type",
    "retention.bytes": "log_retention_bytes",
    "retention.ms": "log_retention_ms",
}
"""What a topic goes by, and the broker's setting that is its default."""


class ConfigSource(enum.IntEnum):
    """Where a value comes from, as Kafka numbers it (KIP-226)."""

    TOPIC = 1
    BROKER = 4
    DEFAULT = 5


class EffectiveConfig(NamedTuple):
    """One configuration of a topic as it is told to clients."""

    name: str
    value: str
    source: ConfigSource


def effective(configs: Mapping[str, str], settings: BrokerSettings) -> list[EffectiveConfig]:
    """What a topic overrides, and what it goes by otherwise, in the order of names.

    Names that mean nothing here are told only where they are overridden.
    """
    found = {name: EffectiveConfig(name, value, ConfigSource.TOPIC) for name, value in configs.items()}
    for name, setting in _SETTING_OF.items():
        value = getattr(settings, setting)
        source = ConfigSource.DEFAULT if value == _BUILT_IN[setting] else ConfigSource.BROKER
        found.setdefault(name, EffectiveConfig(name, str(value), source))
    return [found[name] for name in sorted(found)]


_BUILT_IN = {item.name: item.default for item in dataclasses.fields(BrokerSettings)}


def resolve(configs: Mapping[str, str], settings: BrokerSettings) -> TopicConfig:
    """Defaults of the broker under what the topic overrides. The overrides were validated before they were stored."""
    values = {name: configs.get(name, str(getattr(settings, setting))) for name, setting in _SETTING_OF.items()}
    policies = _policies(values["cleanup.policy"])
    return TopicConfig(
        max_message_bytes=int(values["max.message.bytes"]),
        log_append_time=values["message.timestamp.type"] == "LogAppendTime",
        timestamp_before_max_ms=int(values["message.timestamp.before.max.ms"]),
        timestamp_after_max_ms=int(values["message.timestamp.after.max.ms"]),
        compact="compact" in policies,
        delete="delete" in policies,
        retention_ms=int(values["retention.ms"]),
        retention_bytes=int(values["retention.bytes"]),
    )
