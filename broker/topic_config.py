"""Topic configuration: Kafka's names, types and ranges, what each does here, and what a partition reads from it.

Always true:
- `TOPIC_SETTINGS` has a row for every topic configuration of Kafka (3.x and 4.x, down to those that were removed since), so
  that existing tools and infrastructure code work. A row says honestly what it does here, also where that is nothing.
- The metadata log stores only what a topic overrides, as text, as the client sent it once it was found valid. Unknown names
  and values out of range are refused.
- A resolved `TopicConfig` is typed, complete and frozen; partitions hold a reference and never look a name up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from broker.config import SETTINGS, BrokerSettings
from broker.config_layers import ConfigSource, SettingsLayers, Synonym
from broker.record_walks import Treatment
from broker.setting import INT32_MAX, INT64_MAX, Kind, Setting, Value, nearest
from protocol.compression import Codec

__all__ = [
    "MAX_TOPIC_NAME_LENGTH",
    "TOPIC_SETTINGS",
    "InvalidTopicConfig",
    "TopicConfig",
    "TopicSetting",
    "check_topic_name",
    "colliding_form",
    "is_told",
    "resolve",
    "synonyms",
    "validate",
]

MAX_TOPIC_NAME_LENGTH = 249
"""Kafka's: file names were 255 bytes, less the partition's suffix."""

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]+")


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
    treatment: Treatment | None
    """What is done with batches before they are appended; None: nothing, they are kept as sent."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSetting(Setting):
    """One row of `TOPIC_SETTINGS`."""

    broker_name: str = ""
    """The broker's setting that is its default, as Kafka names it; empty: there is none."""
    has_effect: bool = False
    """A partition goes by it. Otherwise it is kept and told, and that is all."""
    is_removed: bool = False
    """Newer versions of Kafka know it no more: it is told only where it is set."""


def _inherited(name: str, broker_name: str, doc: str = "") -> TopicSetting:
    """A row that has effect; its default is a setting of the broker."""
    row = SETTINGS[broker_name]
    return TopicSetting(
        name=name,
        kind=row.kind,
        default=row.default,
        doc=doc or row.doc,
        unit=row.unit,
        least=row.least,
        most=row.most,
        choices=row.choices,
        broker_name=broker_name,
        has_effect=True,
    )


def _kept(
    name: str,
    default: Value,
    doc: str,
    *,
    unit: str = "",
    least: float | None = None,
    most: float = INT64_MAX,
    choices: tuple[str, ...] = (),
    broker_name: str = "",
    is_list: bool = False,
    is_removed: bool = False,
) -> TopicSetting:
    """A row that is accepted, kept and told, and has no effect here."""
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if isinstance(default, bool):
        kind = Kind.BOOLEAN
    elif isinstance(default, float):
        kind = Kind.DOUBLE
    elif isinstance(default, int):
        kind = Kind.INT if most <= INT32_MAX else Kind.LONG
    else:
        kind = Kind.LIST if is_list else Kind.STRING
    return TopicSetting(
        name=name,
        kind=kind,
        default=default,
        doc=f"No effect here: {doc}",
        unit=unit,
        least=least,
        most=most if numeric else None,
        choices=choices,
        broker_name=broker_name,
        is_removed=is_removed,
    )


_NO_SEGMENTS = (
    "a partition has no segment files. Records are deleted by ranges of objects, which the broker's upload.size.bytes and "
    "upload.interval.ms cut."
)
_NO_COMPACTION = "keys are not compacted yet."
_NO_REPLICAS = "the object store replicates; brokers do not."
_NO_TIERS = "there are no tiers: all data goes to object storage, and retention.ms and retention.bytes are what counts."

_ROWS = (
    _inherited("cleanup.policy", "log.cleanup.policy"),
    _inherited("compression.gzip.level", "compression.gzip.level"),
    _inherited("compression.lz4.level", "compression.lz4.level"),
    _inherited("compression.type", "compression.type"),
    _inherited("compression.zstd.level", "compression.zstd.level"),
    _kept(
        "delete.retention.ms",
        86_400_000,
        _NO_COMPACTION,
        unit="ms",
        least=0,
        broker_name="log.cleaner.delete.retention.ms",
    ),
    _kept(
        "file.delete.delay.ms",
        60_000,
        "the broker's log.segment.delete.delay.ms holds for all topics.",
        unit="ms",
        least=0,
        broker_name="log.segment.delete.delay.ms",
    ),
    _kept(
        "flush.messages",
        INT64_MAX,
        "every batch is flushed to the write-ahead log before it is acknowledged.",
        unit="records",
        least=1,
        broker_name="log.flush.interval.messages",
    ),
    _kept(
        "flush.ms",
        INT64_MAX,
        "every batch is flushed to the write-ahead log before it is acknowledged.",
        unit="ms",
        least=0,
        broker_name="log.flush.interval.ms",
    ),
    _kept("follower.replication.throttled.replicas", "", _NO_REPLICAS, is_list=True),
    _kept(
        "index.interval.bytes",
        4096,
        "an object's index has one entry for each of its blocks.",
        unit="bytes",
        least=0,
        most=INT32_MAX,
        broker_name="log.index.interval.bytes",
    ),
    _kept("leader.replication.throttled.replicas", "", _NO_REPLICAS, is_list=True),
    _kept("local.retention.bytes", -2, _NO_TIERS, unit="bytes", least=-2, broker_name="log.local.retention.bytes"),
    _kept("local.retention.ms", -2, _NO_TIERS, unit="ms", least=-2, broker_name="log.local.retention.ms"),
    _kept(
        "max.compaction.lag.ms",
        INT64_MAX,
        _NO_COMPACTION,
        unit="ms",
        least=1,
        broker_name="log.cleaner.max.compaction.lag.ms",
    ),
    _inherited("max.message.bytes", "message.max.bytes"),
    _kept(
        "message.downconversion.enable",
        True,
        "old formats of records are not served to anybody.",
        broker_name="log.message.downconversion.enable",
        is_removed=True,
    ),
    _kept(
        "message.format.version",
        "3.0-IV1",
        "record batches have format 2, always.",
        broker_name="log.message.format.version",
        is_removed=True,
    ),
    _inherited("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms"),
    _inherited("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms"),
    _kept(
        "message.timestamp.difference.max.ms",
        INT64_MAX,
        "message.timestamp.before.max.ms and message.timestamp.after.max.ms took its place.",
        unit="ms",
        least=0,
        broker_name="log.message.timestamp.difference.max.ms",
        is_removed=True,
    ),
    _inherited("message.timestamp.type", "log.message.timestamp.type"),
    _kept(
        "min.cleanable.dirty.ratio",
        0.5,
        _NO_COMPACTION,
        least=0,
        most=1,
        broker_name="log.cleaner.min.cleanable.ratio",
    ),
    _kept(
        "min.compaction.lag.ms",
        0,
        _NO_COMPACTION,
        unit="ms",
        least=0,
        broker_name="log.cleaner.min.compaction.lag.ms",
    ),
    _kept(
        "min.insync.replicas",
        1,
        f"{_NO_REPLICAS} With any acks but 0 a record is acknowledged when it is durable.",
        unit="replicas",
        least=1,
        most=INT32_MAX,
        broker_name="min.insync.replicas",
    ),
    _kept("preallocate", False, _NO_SEGMENTS, broker_name="log.preallocate"),
    _kept("remote.log.copy.disable", False, _NO_TIERS),
    _kept("remote.log.delete.on.disable", False, _NO_TIERS),
    _kept("remote.storage.enable", False, _NO_TIERS),
    _inherited("retention.bytes", "log.retention.bytes"),
    _inherited("retention.ms", "log.retention.ms"),
    _kept(
        "segment.bytes",
        1 << 30,
        _NO_SEGMENTS,
        unit="bytes",
        least=14,
        most=INT32_MAX,
        broker_name="log.segment.bytes",
    ),
    _kept(
        "segment.index.bytes",
        10 << 20,
        _NO_SEGMENTS,
        unit="bytes",
        least=4,
        most=INT32_MAX,
        broker_name="log.index.size.max.bytes",
    ),
    _kept("segment.jitter.ms", 0, _NO_SEGMENTS, unit="ms", least=0, broker_name="log.roll.jitter.ms"),
    _kept("segment.ms", 604_800_000, _NO_SEGMENTS, unit="ms", least=1, broker_name="log.roll.ms"),
    _kept(
        "unclean.leader.election.enable",
        False,
        f"{_NO_REPLICAS} No leader ever misses a record.",
        broker_name="unclean.leader.election.enable",
    ),
)

TOPIC_SETTINGS: Mapping[str, TopicSetting] = {row.name: row for row in _ROWS}
"""Every topic configuration by its name, in the order of names."""


def validate(configs: Mapping[str, str | None]) -> dict[str, str]:
    """Overrides as they are to be stored; a null value means: the default.

    Raises:
        InvalidTopicConfig: an unknown name, or a value that is not allowed.
    """
    stored: dict[str, str] = {}
    for name, value in configs.items():
        row = TOPIC_SETTINGS.get(name)
        if row is None:
            meant = nearest(name, TOPIC_SETTINGS)
            hint = "" if meant is None else f" (did you mean {meant}?)"
            raise InvalidTopicConfig(f"unknown topic config name: {name}{hint}")
        if value is None:
            continue
        try:
            row.parse(value)
        except ValueError as error:
            raise InvalidTopicConfig(str(error)) from error
        stored[name] = value
    return stored


def is_told(row: TopicSetting, configs: Mapping[str, str]) -> bool:
    """Whether clients are told of a configuration of a topic with these overrides."""
    return row.name in configs or not row.is_removed


def synonyms(row: TopicSetting, configs: Mapping[str, str], layers: SettingsLayers) -> list[Synonym]:
    """What a topic's overrides and the layers below say of a configuration, the one that holds first, the default last."""
    found = [Synonym(row.name, configs[row.name], ConfigSource.TOPIC)] if row.name in configs else []
    if row.has_effect:
        return found + layers.synonyms(row.broker_name)
    return [*found, Synonym(row.broker_name or row.name, row.text(row.default), ConfigSource.DEFAULT)]


def _default(row: TopicSetting, settings: BrokerSettings) -> Value:
    """What a topic goes by that does not override it."""
    value: Value = getattr(settings, row.broker_name.replace(".", "_"))
    return value


def resolve(configs: Mapping[str, str], settings: BrokerSettings) -> TopicConfig:
    """Defaults of the broker under what the topic overrides. The overrides were validated before they were stored."""
    values: dict[str, Value] = {}
    for name, row in TOPIC_SETTINGS.items():
        if row.has_effect:
            values[name] = row.parse(configs[name]) if name in configs else _default(row, settings)
    policies = Setting.words(str(values["cleanup.policy"]))
    compact = "compact" in policies
    codec = _CODECS[str(values["compression.type"])]
    return TopicConfig(
        max_message_bytes=int(values["max.message.bytes"]),
        log_append_time=values["message.timestamp.type"] == "LogAppendTime",
        timestamp_before_max_ms=int(values["message.timestamp.before.max.ms"]),
        timestamp_after_max_ms=int(values["message.timestamp.after.max.ms"]),
        compact=compact,
        delete="delete" in policies,
        retention_ms=int(values["retention.ms"]),
        retention_bytes=int(values["retention.bytes"]),
        treatment=Treatment(needs_keys=compact, codec=codec, codec_level=_level(codec, values))
        if compact or codec is not None
        else None,
    )


_CODECS = {
    "uncompressed": Codec.NONE,
    "gzip": Codec.GZIP,
    "snappy": Codec.SNAPPY,
    "lz4": Codec.LZ4,
    "zstd": Codec.ZSTD,
    "producer": None,
}

_KAFKAS_FAST_LZ4 = 9
"""Kafka's default level, by which it means the compressor that has no levels."""


def _level(codec: Codec | None, values: Mapping[str, Value]) -> int | None:
    if codec in (Codec.GZIP, Codec.ZSTD):
        return int(values[f"compression.{codec.name.lower()}.level"])
    level = int(values["compression.lz4.level"])
    return level if codec is Codec.LZ4 and level != _KAFKAS_FAST_LZ4 else None
