"""The broker's settings: Kafka's names where Kafka has one, typed, with defaults, validated as a whole.

Always true:
- A setting's name is its field's with dots for underscores: `num_partitions` is `num.partitions`.
- Sources, the later one wins: defaults, the TOML file, environment variables (`TIDELOG_NUM_PARTITIONS`), then what
  the command line or the embedding program says.
- Unknown names and values out of range are refused, all of them in one message, before anything is opened.
- Sizes take units (`512MiB`, `1GiB`), times are in the unit that the name ends in.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "BrokerSettings",
    "InvalidSettings",
    "Listener",
    "parse_listeners",
    "parse_size",
    "settings_from",
]

ENVIRONMENT_PREFIX = "TIDELOG_"

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
}


class InvalidSettings(Exception):
    """The settings do not make sense; the message names each of them and says what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One `NAME://host:port`; an empty host means every interface."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.name}://{host}:{self.port}"


_LISTENER = re.compile(
    r"^(?P<name>[A-Za-z][A-Za-z0-9_]*)://(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d+)$"
)


def parse_listeners(text: str, *, what: str = "listeners") -> tuple[Listener, ...]:
    """Parse Kafka's `NAME://host:port,NAME2://[::1]:port`.

    Raises:
        InvalidSettings: the syntax is wrong, a name comes twice, or a port is out of range.
    """
    found: list[Listener] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _LISTENER.match(item)
        if match is None:
            raise InvalidSettings(f"{what}: {item!r} is not of the form NAME://host:port (IPv6: NAME://[::1]:port)")
        listener = Listener(
            name=match["name"].upper(),
            host=match["v6"] if match["v6"] is not None else match["host"],
            port=int(match["port"]),
        )
        if listener.port > 65535:
            raise InvalidSettings(f"{what}: port {listener.port} is above 65535")
        if any(listener.name == other.name for other in found):
            raise InvalidSettings(f"{what}: the name {listener.name} is given twice")
        found.append(listener)
    return tuple(found)


def parse_size(text: str) -> int:
    """Bytes from `64KiB`, `1 GiB`, `100MB` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size (examples: 1048576, 64KiB, 1GiB)")
    return (
        int(float(match[1]) * _UNITS[match[2].upper()]) if "." in match[1] else int(match[1]) * _UNITS[match[2].upper()]
    )


def _setting(default: Any, doc: str, *, least: int | None = None, most: int | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "least": least, "most": most})


_INT32_MAX = (1 << 31) - 1
_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Everything that an operator can set on one broker."""

    # -- who and where
    node_id: int = _setting(1, "identity of this broker in the cluster; never change it", least=0, most=_INT32_MAX)
    cluster_id: str = _setting("", "refuse any other cluster's bucket; empty: take the bucket's, or make one up")
    broker_rack: str = _setting("", "rack or availability zone, told to clients")
    listeners: str = _setting("PLAINTEXT://localhost:9092", "addresses to listen on, NAME://host:port, comma separated")
    advertised_listeners: str = _setting("", "addresses told to clients, by listener name; empty: the listeners")

    # -- where data lives
    object_store_uri: str = _setting("file://./data/objects", "file:///dir, s3://bucket/prefix?endpoint=…, or mem://")
    wal_uri: str = _setting(
        "file://./data/wal?capacity=512MiB",
        "file:///dir?capacity=512MiB (null:// for benchmarks only). What was acknowledged and is not uploaded yet is at most "
        "this capacity or half of memory.bytes, whichever is smaller; then producers wait",
    )
    memory_bytes: int = _setting(1 << 30, "bound of everything this broker keeps in memory", least=64 << 20)
    upload_size_bytes: int = _setting(64 << 20, "a cache block of this size is uploaded", least=64 << 10)
    upload_interval_ms: int = _setting(5_000, "a cache block of this age is uploaded", least=10)
    upload_parallelism: int = _setting(4, "objects put at the same time", least=1, most=64)
    metadata_log_max_record_bytes_between_snapshots: int = _setting(
        16 << 20, "the metadata log is snapshotted at the latest after so many bytes", least=1 << 10
    )

    log_segment_delete_delay_ms: int = _setting(
        60_000, "how long an object that nothing refers to is kept, so that reads under way finish", least=0
    )

    # -- topics
    auto_create_topics_enable: bool = _setting(True, "create a topic when a client asks for its metadata")
    num_partitions: int = _setting(1, "partitions of a topic that does not say", least=1, most=100_000)
    default_replication_factor: int = _setting(
        1, "replication factor told where a topic does not say", least=1, most=32767
    )
    max_partitions_per_broker: int = _setting(200_000, "partitions of all topics together", least=1)
    max_partitions_per_request: int = _setting(10_000, "partitions that one CreateTopics may ask for", least=1)
    delete_topic_enable: bool = _setting(True, "serve DeleteTopics")

    # -- topic defaults (a topic's own configuration wins)
    message_max_bytes: int = _setting(1_048_588, "largest record batch, compressed", least=0, most=_INT32_MAX)
    log_message_timestamp_type: str = _setting("CreateTime", "CreateTime or LogAppendTime")
    log_message_timestamp_before_max_ms: int = _setting(
        _INT64_MAX, "how far in the past a record may be stamped", least=0
    )
    log_message_timestamp_after_max_ms: int = _setting(3_600_000, "how far in the future it may be", least=0)
    log_cleanup_policy: str = _setting("delete", "delete, compact, or both")
    log_retention_ms: int = _setting(604_800_000, "age at which records may go; -1: never", least=-1)
    log_retention_check_interval_ms: int = _setting(300_000, "how often retention is applied", least=10)
    log_retention_bytes: int = _setting(-1, "size per partition beyond which old records may go; -1: none", least=-1)

    # -- requests and connections
    socket_request_max_bytes: int = _setting(
        104_857_600, "largest request; a larger one closes its connection", least=1024
    )
    queued_max_request_bytes: int = _setting(
        -1, "receive memory that all connections share for large requests; -1: a sixteenth of memory.bytes", least=-1
    )
    max_connections: int = _setting(10_000, "connections at the same time; more are closed at once", least=1)
    connections_max_idle_ms: int = _setting(600_000, "a connection silent for so long is closed", least=1000)
    max_incremental_fetch_session_cache_slots: int = _setting(1000, "fetch sessions (KIP-227)", least=0)
    fetch_max_bytes: int = _setting(57_671_680, "largest fetch response, first batch aside", least=1024)
    request_timeout_ms: int = _setting(30_000, "how long an administrative request may take on this side", least=100)

    # -- producers
    producer_id_expiration_ms: int = _setting(86_400_000, "an idle producer id is forgotten after", least=1)

    # -- the process
    shutdown_timeout_ms: int = _setting(3_000, "how long an orderly stop may take to upload", least=0)

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InvalidSettings("; ".join(problems))

    def _problems(self) -> Iterable[str]:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            name = kafka_name(item.name)
            if isinstance(value, int) and not isinstance(value, bool):
                least, most = item.metadata["least"], item.metadata["most"]
                if least is not None and value < least:
                    yield f"{name} = {value} is below {least}"
                if most is not None and value > most:
                    yield f"{name} = {value} is above {most}"
        if self.log_message_timestamp_type not in ("CreateTime", "LogAppendTime"):
            yield f"log.message.timestamp.type = {self.log_message_timestamp_type!r}: CreateTime or LogAppendTime"
        try:
            bound = parse_listeners(self.listeners)
            if not bound:
                yield "listeners is empty: at least one NAME://host:port is needed"
            advertised = parse_listeners(self.advertised_listeners, what="advertised.listeners")
            names = {listener.name for listener in bound}
            for listener in advertised:
                if listener.name not in names:
                    yield f"advertised.listeners names {listener.name}, which listeners does not have"
                if listener.host in ("", "0.0.0.0", "::"):
                    yield f"advertised.listeners: {listener} is no address that a client can connect to"
        except InvalidSettings as error:
            yield str(error)
        if self.queued_max_request_bytes > self.memory_bytes // 8:
            yield (
                f"queued.max.request.bytes = {self.queued_max_request_bytes} is more than an eighth of "
                f"memory.bytes = {self.memory_bytes}: the rest is spoken for"
            )
        if 0 <= self.queued_max_request_bytes < 1 << 20:
            yield f"queued.max.request.bytes = {self.queued_max_request_bytes} is below 1 MiB; -1: from memory.bytes"

    @property
    def receive_budget_bytes(self) -> int:
        """`queued.max.request.bytes`, or what it is by default."""
        return self.memory_bytes // 16 if self.queued_max_request_bytes < 0 else self.queued_max_request_bytes

    def replace(self, **changes: Any) -> BrokerSettings:
        """The same with changes, validated again."""
        return dataclasses.replace(self, **changes)


def kafka_name(field_name: str) -> str:
    """`num_partitions` → `num.partitions`."""
    return field_name.replace("_", ".")


_FIELDS = {kafka_name(item.name): item for item in dataclasses.fields(BrokerSettings)}


def settings_from(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> BrokerSettings:
    """Settings from a TOML file, the environment and overrides (Kafka names), validated together.

    In the file `num.partitions = 3`, `"num.partitions" = 3` and a table `[num]` with `partitions = 3` are the same.

    Raises:
        InvalidSettings: names all that is wrong.
    """
    given: dict[str, Any] = {}
    if file is not None:
        try:
            given.update(_flatten(tomllib.loads(file.read_text())))
        except OSError as error:
            raise InvalidSettings(f"cannot read {file}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise InvalidSettings(f"{file} is no valid TOML: {error}") from error
    for variable, text in (os.environ if environment is None else environment).items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("_", ".")
        if variable.startswith(ENVIRONMENT_PREFIX) and name in _FIELDS:
            given[name] = text
    given.update(overrides or {})
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, value in given.items():
        item = _FIELDS.get(name)
        if item is None:
            problems.append(f"unknown setting {name}")
            continue
        try:
            values[item.name] = _coerce(str(item.type), value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise InvalidSettings("; ".join(problems))
    return BrokerSettings(**values)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _coerce(type_name: str, value: Any) -> Any:
    if type_name == "bool":
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ValueError(f"{value!r} is neither true nor false")
    if type_name == "int":
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{value!r} is no whole number")
        if isinstance(value, str) and value.lstrip().startswith("-"):
            return int(value)
        return parse_size(value) if isinstance(value, str) else value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value
