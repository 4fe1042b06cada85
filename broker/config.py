"""The broker's settings: one table, Kafka's names where Kafka has one, validated as a whole.

Always true:
- A setting is a field of `BrokerSettings`; its name is the field's with dots for underscores: `num_partitions` is
  `num.partitions`. Its row (`SETTINGS`) has type, default, unit, range and meaning; all lists and documents are made of it.
- Sources, the later one wins: defaults, the TOML file, environment variables (`TIDELOG_NUM_PARTITIONS`), what the command
  line or the embedding program says, and at last what AlterConfigs has set (`with_dynamic`), for settings that are dynamic.
- Unknown names and values out of range are refused, all of them in one message, before anything is opened.
- Sizes take units (`512MiB`, `1GiB`), times are in the unit that the name ends in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from broker.addresses import parse_listeners, parse_overrides
from broker.logs import FORMATS, LEVELS
from broker.setting import INT32_MAX, INT64_MAX, InvalidSettings, Kind, Setting, Value, nearest
from broker.uris import absolute_uri
from wal.config import ObjectWalConfig, parse_wal_uri
from wal.errors import WalConfigInvalid

__all__ = [
    "ALLOTTED",
    "ENVIRONMENT_PREFIX",
    "SETTINGS",
    "BrokerSettings",
    "InvalidSettings",
    "kafka_name",
    "settings_from",
]

ENVIRONMENT_PREFIX = "TIDELOG_"


ALLOTTED = -1
"""`node.id` of a broker that is given one at its start; Kafka's `broker.id` has the same value for that."""


def _setting(
    default: Value,
    doc: str,
    *,
    section: str,
    unit: str = "",
    least: int | None = None,
    most: int = INT64_MAX,
    choices: tuple[str, ...] = (),
    is_list: bool = False,
    dynamic: bool = False,
) -> Any:
    """A field of `BrokerSettings` and its row."""
    if isinstance(default, bool):
        kind, numeric = Kind.BOOLEAN, False
    elif isinstance(default, int):
        kind, numeric = Kind.INT if most <= INT32_MAX else Kind.LONG, True
    else:
        kind, numeric = Kind.LIST if is_list else Kind.STRING, False
    row = {
        "kind": kind,
        "default": default,
        "doc": doc,
        "section": section,
        "unit": unit,
        "least": least,
        "most": most if numeric else None,
        "choices": choices,
        "dynamic": dynamic,
    }
    return field(default=default, metadata=row)


_identity = partial(_setting, section="Identity and addresses")
_data = partial(_setting, section="Where data lives, and memory")
_balance = partial(_setting, section="Several brokers")
_compaction = partial(_setting, section="Compaction of objects")
_topic = partial(_setting, section="Topics")
_topic_default = partial(_setting, section="Defaults of topics (a topic's own configuration wins)", dynamic=True)
_retention = partial(_setting, section="Retention and deletion")
_network = partial(_setting, section="Requests and connections")
_producer = partial(_setting, section="Producers")
_monitoring = partial(_setting, section="Monitoring")
_group = partial(_setting, section="Consumer groups")
_process = partial(_setting, section="The process")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Everything that an operator can set on one broker."""

    node_id: int = _identity(
        1,
        "Identity of this broker in the cluster. Never change it. -1: one is given to it at each start, that of a broker which is gone or a new "
        "one above reserved.broker.max.id; for brokers that keep nothing on their machine, so wal.uri is in a bucket, and that are several "
        "(controller.listeners).",
        least=ALLOTTED,
        most=INT32_MAX,
    )
    reserved_broker_max_id: int = _identity(
        1_000,
        "Ids up to this one are not given to brokers whose node.id is -1: they are those of brokers that have one. The same on all brokers.",
        least=0,
        most=INT32_MAX - 1,
    )
    cluster_id: str = _identity("", "Refuse the bucket of any other cluster. Empty: take the bucket's, or make one up.")
    broker_rack: str = _identity(
        "",
        "Rack or availability zone, told to clients. Consumers that name theirs (client.rack, or tidelog_az=… in the client id) read what only "
        "objects hold from a broker of their zone.",
    )
    listeners: str = _identity(
        "PLAINTEXT://localhost:9092",
        "Addresses to listen on, NAME://host:port. An empty host means every interface, port 0 any free one.",
        is_list=True,
    )
    advertised_listeners: str = _identity(
        "", "Addresses told to clients, by listener name. Empty: the listeners.", is_list=True
    )

    controller_listeners: str = _identity(
        "",
        "Where other brokers of the cluster reach this one, CONTROLLER://host:port; they all work on one bucket, and one of them leads. "
        "What others are told may be given in advertised.listeners by this name. Empty: this broker is alone. There is no password and "
        "no TLS on it: bind it to an address that only brokers reach.",
        is_list=True,
    )

    broker_session_timeout_ms: int = _identity(
        2_000,
        "A broker that the one that leads did not hear from for so long is suspected: it may serve no longer than its lease. With "
        "controller.listeners only; the same on all brokers.",
        unit="ms",
        least=500,
        most=600_000,
    )
    broker_heartbeat_interval_ms: int = _identity(
        500,
        "How often a broker shows the one that leads that it lives.",
        unit="ms",
        least=50,
        most=60_000,
    )
    broker_lease_ms: int = _identity(
        3_000,
        "For how long a broker answers readers and groups without having read the metadata log in the bucket to its end, which it does three "
        "times as often. A broker that is suspected is taken for dead after this time and a little more. With controller.listeners "
        "only; the same on all brokers.",
        unit="ms",
        least=500,
        most=600_000,
    )

    object_store_uri: str = _data(
        "file://./data/objects", "Where objects are: file:///dir, s3://bucket/prefix?endpoint=…, or mem:// for tests."
    )
    wal_uri: str = _data(
        "file://./data/wal?capacity=512MiB",
        "The write-ahead log: file:///dir?capacity=512MiB on a local disk; or s3://bucket/prefix?batch_interval_ms=100 in a "
        "bucket, with nothing on the local disk (objects+file:///dir for development); null:// for benchmarks only. In a bucket it "
        "also takes batch_size=4MiB, parallelism=8 (PUTs under way), hedge_ms=500 (a second PUT beside one that takes longer; 0: never) "
        "and the options of object.store.uri. What was acknowledged and is not "
        "uploaded yet is at most this capacity or half of memory.bytes, whichever is smaller; then producers wait.",
    )
    wal_recovery_directories: str = _data(
        "",
        "Where volumes of other brokers are mounted when those have died with their machines: directories, comma separated. A WAL that lies "
        "in one of them, or in a directory there, is recovered by this broker. WALs on the disks of this machine, and in buckets, are "
        "found without.",
        is_list=True,
    )
    memory_bytes: int = _data(
        1 << 30, "Bound of everything that this broker keeps in memory.", unit="bytes", least=64 << 20
    )
    upload_size_bytes: int = _data(
        64 << 20, "What gathered is uploaded when it reaches this size.", unit="bytes", least=64 << 10, most=4 << 30
    )
    upload_interval_ms: int = _data(5_000, "What gathered is uploaded at this age.", unit="ms", least=10)
    upload_parallelism: int = _data(4, "Objects that are put at the same time.", unit="objects", least=1, most=64)
    metadata_log_max_record_bytes_between_snapshots: int = _data(
        16 << 20, "The metadata log is snapshotted at the latest after so many bytes.", unit="bytes", least=1 << 10
    )

    balance_enable: bool = _balance(
        True,
        "Have the broker that leads move partitions to make brokers even. Without it they stay where they are put; what a broker that stops, "
        "is drained or is away gives up goes to others all the same. The same on all brokers: any of them may lead.",
        dynamic=True,
    )
    balance_max_moves: int = _balance(
        1_000, "Partitions that are moved at a time to make brokers even.", unit="partitions", least=1, most=INT32_MAX
    )
    balance_load_interval_ms: int = _balance(
        10_000,
        "How often each broker tells the leader what goes in and out of its partitions. Three reports in a row since partitions last "
        "moved decide, so loads are looked at every four intervals at most.",
        unit="ms",
        least=100,
        most=INT32_MAX,
    )
    balance_load_tolerance_percent: int = _balance(
        20,
        "A broker may have so much more bytes in, or bytes out, than the average, before partitions are moved away from it; then half of "
        "that is aimed at.",
        unit="percent",
        least=1,
        most=10_000,
    )
    balance_load_tolerance_bytes_per_second: int = _balance(
        1 << 20, "And at least so much more.", unit="bytes", least=1
    )

    compaction_process_enable: bool = _compaction(
        True,
        "Compact in a process of its own, which is started when there is something to merge: it takes some 80 MB and what the metadata "
        "take, on top of memory.bytes. Else the broker does it between requests, as it does with mem://.",
    )
    compaction_log_cache_enable: bool = _compaction(
        True,
        "Merge what the broker uploaded in small objects from its log cache, where that spares compaction to read them: under little load "
        "nearly all of its requests.",
    )
    compaction_interval_ms: int = _compaction(
        10_000, "How often it is looked for objects to merge.", unit="ms", least=10, most=INT32_MAX
    )
    compaction_io_max_bytes_per_second: int = _compaction(
        64 << 20, "Bytes that compaction reads in a second.", unit="bytes", least=64 << 10
    )
    compaction_object_bytes: int = _compaction(
        128 << 20, "Target size of objects that partitions share.", unit="bytes", least=64 << 10, most=16 << 30
    )
    compaction_partition_object_bytes: int = _compaction(
        256 << 20,
        "What a partition has in objects of this size and more is not merged any further.",
        unit="bytes",
        least=64 << 10,
        most=64 << 30,
    )

    auto_create_topics_enable: bool = _topic(
        True, "Create a topic when a client that allows it asks for its metadata.", dynamic=True
    )
    num_partitions: int = _topic(
        1, "Partitions of a topic whose creator does not say.", unit="partitions", least=1, most=100_000, dynamic=True
    )
    default_replication_factor: int = _topic(
        1,
        "Replication factor told where a topic's creator does not say. Any is taken: the object store replicates.",
        least=1,
        most=32767,
        dynamic=True,
    )
    max_partitions_per_broker: int = _topic(
        200_000, "Partitions of all topics together.", unit="partitions", least=1, most=INT32_MAX
    )
    max_partitions_per_request: int = _topic(
        10_000,
        "Partitions that one CreateTopics or CreatePartitions may ask for.",
        unit="partitions",
        least=1,
        most=INT32_MAX,
        dynamic=True,
    )
    max_request_partition_size_limit: int = _topic(
        2_000,
        "Partitions in one page of DescribeTopicPartitions.",
        unit="partitions",
        least=1,
        most=INT32_MAX,
        dynamic=True,
    )
    delete_topic_enable: bool = _topic(True, "Serve DeleteTopics.", dynamic=True)

    message_max_bytes: int = _topic_default(
        1_048_588, "Largest record batch, as it is sent (compressed).", unit="bytes", least=0, most=INT32_MAX
    )
    compression_type: str = _topic_default(
        "producer",
        "How batches are compressed. producer: they are kept as sent. Anything else: a batch that comes in another codec is checked "
        "and compressed anew by the broker, which takes processor time; one that comes in this codec is kept "
        "as sent.",
        choices=("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
    )
    compression_gzip_level: int = _topic_default(
        -1, "Level where the broker compresses with gzip. -1: zlib's default.", least=-1, most=9
    )
    compression_lz4_level: int = _topic_default(
        9, "Level where the broker compresses with lz4. 9: the fast compressor.", least=1, most=17
    )
    compression_zstd_level: int = _topic_default(
        3, "Level where the broker compresses with zstd.", least=-131072, most=22
    )
    log_message_timestamp_type: str = _topic_default(
        "CreateTime",
        "Whose time records carry: their producer's (CreateTime), or the broker's (LogAppendTime).",
        choices=("CreateTime", "LogAppendTime"),
    )
    log_message_timestamp_before_max_ms: int = _topic_default(
        INT64_MAX, "How far in the past a record may be stamped by its producer.", unit="ms", least=0
    )
    log_message_timestamp_after_max_ms: int = _topic_default(
        3_600_000, "How far in the future a record may be stamped by its producer.", unit="ms", least=0
    )
    log_cleanup_policy: str = _topic_default(
        "delete",
        "delete: records go by age and size. compact: every record needs a key; nothing is compacted yet.",
        choices=("compact", "delete"),
        is_list=True,
    )
    log_retention_ms: int = _topic_default(
        604_800_000, "Age from which on records may go. -1: never.", unit="ms", least=-1
    )
    log_retention_bytes: int = _topic_default(
        -1, "Size of a partition beyond which its oldest records may go. -1: no bound.", unit="bytes", least=-1
    )

    log_retention_check_interval_ms: int = _retention(
        300_000, "How often retention is applied.", unit="ms", least=10, dynamic=True
    )
    log_segment_delete_delay_ms: int = _retention(
        60_000, "How long an object that nothing refers to is kept, so that reads under way finish.", unit="ms", least=0
    )

    metadata_restore_window_ms: int = _retention(
        21_600_000,
        "How far back `tidelog restore` can go: so long, deleted data and the history of the metadata are kept in the object store. 0: not at all. "
        "The same on all nodes.",
        unit="ms",
        least=0,
    )

    socket_request_max_bytes: int = _network(
        104_857_600, "Largest request. A larger one closes its connection.", unit="bytes", least=1024, most=INT32_MAX
    )
    queued_max_request_bytes: int = _network(
        -1,
        "Memory for large requests that arrive, shared by all connections. -1: a sixteenth of memory.bytes.",
        unit="bytes",
        least=-1,
    )
    max_connections: int = _network(
        10_000,
        "Connections at the same time. More are closed at once.",
        unit="connections",
        least=1,
        most=INT32_MAX,
        dynamic=True,
    )
    max_connections_per_ip: int = _network(
        INT32_MAX,
        "Connections from one address at the same time. More are closed at once. 0: only those that "
        "max.connections.per.ip.overrides names.",
        unit="connections",
        least=0,
        most=INT32_MAX,
        dynamic=True,
    )
    max_connections_per_ip_overrides: str = _network(
        "",
        "Other limits for some addresses or host names: 10.0.0.7:100,[fd00::7]:200,gateway.example.org:50.",
        is_list=True,
    )
    connections_max_idle_ms: int = _network(
        600_000, "A connection that is silent for so long is closed.", unit="ms", least=1000, dynamic=True
    )
    max_incremental_fetch_session_cache_slots: int = _network(
        1000, "Fetch sessions at the same time (KIP-227).", unit="sessions", least=0, most=INT32_MAX
    )
    fetch_max_bytes: int = _network(
        57_671_680,
        "Largest fetch response, but for a first batch that is larger.",
        unit="bytes",
        least=1024,
        most=INT32_MAX,
        dynamic=True,
    )
    remote_log_manager_fetch_max_bytes_per_second: int = _network(
        INT64_MAX,
        "What reads of records that only objects hold may take from the object store, for all partitions together. The default is "
        "no bound. Reads of recent records, and loading a partition, are not counted.",
        unit="bytes/s",
        least=1,
        dynamic=True,
    )
    remote_fetch_max_wait_ms: int = _network(
        500,
        "How long a fetch waits for records that only objects hold. Then it is answered with what else there is, and the next one "
        "finds what came meanwhile.",
        unit="ms",
        least=1,
        most=INT32_MAX,
        dynamic=True,
    )
    request_timeout_ms: int = _network(
        30_000,
        "How long an administrative request that names no time may take on this side.",
        unit="ms",
        least=100,
        most=INT32_MAX,
        dynamic=True,
    )

    producer_id_expiration_ms: int = _producer(
        86_400_000, "A producer id that is idle for so long is forgotten.", unit="ms", least=1, most=INT32_MAX
    )

    metrics_listeners: str = _monitoring(
        "",
        "Addresses that serve /metrics (Prometheus), /healthz and /readyz over HTTP, HTTP://host:port; to everybody who reaches them. "
        "Port 0 takes any free one. Empty: none; `tidelog dev` takes HTTP://localhost:9404.",
        is_list=True,
    )
    metrics_max_topics: int = _monitoring(
        200,
        "Topics with metrics of their own. Those that come after them are summed as (other).",
        unit="topics",
        least=0,
        most=100_000,
    )

    group_initial_rebalance_delay_ms: int = _group(
        3_000,
        "How long an empty group waits for more members after the first one, so that they share one rebalance.",
        unit="ms",
        least=0,
        most=INT32_MAX,
    )
    group_min_session_timeout_ms: int = _group(
        6_000, "Shortest session timeout that a member may ask for.", unit="ms", least=1, most=INT32_MAX
    )
    group_max_session_timeout_ms: int = _group(
        1_800_000, "Longest session timeout that a member may ask for.", unit="ms", least=1, most=INT32_MAX
    )
    group_max_size: int = _group(INT32_MAX, "Members that one group may have.", unit="members", least=1, most=INT32_MAX)
    offsets_topic_num_partitions: int = _group(
        50,
        "Partitions of __consumer_offsets when it is created; never change them later.",
        unit="partitions",
        least=1,
        most=10_000,
    )
    offsets_retention_minutes: int = _group(
        10_080,
        "How long offsets are kept that nobody needs: of an empty group since it is, else since the commit (KIP-211).",
        unit="minutes",
        least=1,
        most=INT32_MAX,
    )
    offsets_retention_check_interval_ms: int = _group(
        600_000, "How often expired offsets and groups are looked for.", unit="ms", least=1, most=INT32_MAX
    )
    offset_metadata_max_bytes: int = _group(
        4_096, "Largest text that a client may keep with an offset.", unit="bytes", least=0, most=32_767
    )

    metrics_max_groups: int = _monitoring(
        500,
        "Pairs of consumer group and topic with metrics of their own. All others are summed as (other).",
        unit="pairs",
        least=0,
        most=100_000,
    )
    logging_format: str = _monitoring(
        "logfmt",
        "How this process writes what happens to standard error, one line an event: as logfmt or JSON.",
        choices=FORMATS,
    )
    logging_level: str = _monitoring("info", "The least level that is written.", choices=LEVELS)

    shutdown_timeout_ms: int = _process(
        10_000,
        "How long an orderly stop may take to give partitions to other brokers, and as long again to upload what is left, which the WAL keeps where that is "
        "not enough. As a rule both take less than a second. Whoever stops the process has to wait for twice as long and some seconds more; "
        "Kubernetes waits for 30 s unless told otherwise.",
        unit="ms",
        least=0,
    )

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InvalidSettings("; ".join(problems))

    def _problems(self) -> Iterable[str]:
        for setting in SETTINGS.values():
            problem = setting.problem(getattr(self, _field_name(setting.name)))
            if problem is not None:
                yield problem
        try:
            bound = parse_listeners(self.listeners)
            if not bound:
                yield "listeners is empty: at least one NAME://host:port is needed"
            among_brokers = parse_listeners(self.controller_listeners, what="controller.listeners")
            for listener in among_brokers:
                if listener.name != "CONTROLLER" or len(among_brokers) > 1:
                    yield "controller.listeners is not of the form CONTROLLER://host:port"
            advertised = parse_listeners(self.advertised_listeners, what="advertised.listeners")
            names = {listener.name for listener in (*bound, *among_brokers)}
            for listener in advertised:
                if listener.name not in names:
                    yield f"advertised.listeners names {listener.name}, which listeners does not have"
                if listener.host in ("", "0.0.0.0", "::"):
                    yield f"advertised.listeners: {listener} is no address that a client can connect to"
        except InvalidSettings as error:
            yield str(error)
        try:
            parse_overrides(self.max_connections_per_ip_overrides)
        except InvalidSettings as error:
            yield str(error)
        try:
            for listener in parse_listeners(self.metrics_listeners, what="metrics.listeners"):
                if listener.name != "HTTP":
                    yield f"metrics.listeners: {listener} is not of the form HTTP://host:port"
        except InvalidSettings as error:
            yield str(error)
        if self.node_id == ALLOTTED:
            yield from self._problems_of_allotted()
        if self.broker_session_timeout_ms < 2 * self.broker_heartbeat_interval_ms:
            yield (
                f"broker.session.timeout.ms = {self.broker_session_timeout_ms} is less than twice "
                f"broker.heartbeat.interval.ms = {self.broker_heartbeat_interval_ms}: one sign of life may be late"
            )
        if self.group_min_session_timeout_ms > self.group_max_session_timeout_ms:
            yield (
                f"group.min.session.timeout.ms = {self.group_min_session_timeout_ms} is more than "
                f"group.max.session.timeout.ms = {self.group_max_session_timeout_ms}"
            )
        if self.queued_max_request_bytes > self.memory_bytes // 8:
            yield (
                f"queued.max.request.bytes = {self.queued_max_request_bytes} is more than an eighth of "
                f"memory.bytes = {self.memory_bytes}: the rest is spoken for"
            )
        if 0 <= self.queued_max_request_bytes < 1 << 20:
            yield f"queued.max.request.bytes = {self.queued_max_request_bytes} is below 1 MiB; -1: from memory.bytes"

    def _problems_of_allotted(self) -> Iterable[str]:
        if not self.controller_listeners:
            yield (
                "node.id = -1 has an id given by the brokers of a cluster, and controller.listeners is empty: say where others reach this "
                "broker, or give it a node.id"
            )
        with contextlib.suppress(WalConfigInvalid):  # said where it is opened
            if not isinstance(parse_wal_uri(absolute_uri(self.wal_uri)), ObjectWalConfig):
                yield (
                    f"node.id = -1 is for brokers that keep nothing on their machine, and wal.uri = {self.wal_uri} does: whoever is given "
                    "the id next would not find that log. Put it into a bucket, or give this broker a node.id"
                )

    @property
    def known_node_id(self) -> int:
        """`node.id`, for tools that look at what one broker keeps. Raises InvalidSettings where it is given at each start."""
        if self.node_id == ALLOTTED:
            raise InvalidSettings(
                "node.id = -1 tells no broker from others: say whose WAL is meant, --set node.id=N, as `tidelog inspect metadata` lists them"
            )
        return self.node_id

    @property
    def receive_budget_bytes(self) -> int:
        """`queued.max.request.bytes`, or what it is by default."""
        return self.memory_bytes // 16 if self.queued_max_request_bytes < 0 else self.queued_max_request_bytes

    @property
    def catch_up_bytes_per_s(self) -> int | None:
        """`remote.log.manager.fetch.max.bytes.per.second`, None where there is no bound."""
        rate = self.remote_log_manager_fetch_max_bytes_per_second
        return None if rate == INT64_MAX else rate

    def replace(self, **changes: Any) -> BrokerSettings:
        """The same with changes, validated again."""
        return dataclasses.replace(self, **changes)

    def with_dynamic(self, *layers: Mapping[str, str]) -> BrokerSettings:
        """The same under what AlterConfigs has set, as Kafka names and texts; later layers win.

        Raises:
            InvalidSettings: names all that is wrong.
        """
        changes = {name: text for layer in layers for name, text in layer.items()}
        return self.replace(**_parsed(changes, size_units=False)) if changes else self


def kafka_name(field_name: str) -> str:
    """`num_partitions` → `num.partitions`."""
    return field_name.replace("_", ".")


def _field_name(name: str) -> str:
    return name.replace(".", "_")


SETTINGS: Mapping[str, Setting] = {
    kafka_name(item.name): Setting(name=kafka_name(item.name), **item.metadata)
    for item in dataclasses.fields(BrokerSettings)
}
"""Every setting of a broker by its name, in the order in which they are listed."""

_SAID_OTHERWISE = {
    "log.dir": "data lives in object.store.uri, and before that in wal.uri",
    "log.dirs": "data lives in object.store.uri, and before that in wal.uri",
    "log.retention.hours": "say it as log.retention.ms",
    "log.retention.minutes": "say it as log.retention.ms",
    "broker.id": "it is node.id",
    "broker.id.generation.enable": "node.id = -1 has an id given to this broker",
    "zookeeper.connect": "the bucket keeps the metadata: object.store.uri",
    "controller.quorum.voters": "the bucket keeps the metadata: object.store.uri",
    "process.roles": "there is only one role",
    "min.insync.replicas": "there are no replicas to wait for: the object store replicates",
}
"""Names that a Kafka server.properties has, and what to say here."""


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
        if variable.startswith(ENVIRONMENT_PREFIX):
            given[variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("_", ".")] = text
    given.update(overrides or {})
    return BrokerSettings(**_parsed(given, size_units=True))


def _parsed(given: Mapping[str, Any], *, size_units: bool) -> dict[str, Any]:
    """Values by field name. Raises InvalidSettings, which names all that is wrong."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, value in given.items():
        setting = SETTINGS.get(name)
        if setting is None:
            problems.append(_unknown(name))
            continue
        try:
            values[_field_name(name)] = setting.parse(value, size_units=size_units)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise InvalidSettings("; ".join(problems))
    return values


def _unknown(name: str) -> str:
    if name in _SAID_OTHERWISE:
        return f"{name} is no setting of this broker: {_SAID_OTHERWISE[name]}"
    meant = nearest(name, SETTINGS)
    hint = f"did you mean {meant}?" if meant is not None else "`tidelog config` lists those that there are"
    return f"unknown setting {name}: {hint}"


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
