"""Every metric that a broker exports: its name, what it means, and where its value is read.

Always true:
- Nothing is counted here. Values are read from plain attributes of the parts when somebody asks; that is the only cost of most of them.
- Reading happens on the event loop that changes the values, in one go: the figures of one scrape belong together. What comes out are
  values of prometheus_client, which another thread may turn into text.
- Names follow Prometheus's conventions: `tidelog_` first, base units, `_total` for what only grows. Labels have few values: topics
  are capped (`metrics.max.topics`), everything else is bounded by this code.
- `docs/metrics.md` is written from this table (`python -m broker.exposition`), and a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.damage import MAX_NAMED_RANGES, DamageReport, NamedRange
from broker.group_lag import Lag
from broker.logs import FIGURES
from broker.metrics import OTHER, Metrics, TopicTraffic
from protocol.apis import API
from protocol.errors import ErrorCode
from wal.histogram import Histogram
from wal.object_wal import ObjectWal

if TYPE_CHECKING:
    from broker.compaction.process import CompactionProcess
    from broker.delayed_fetch import WaitingFetches
    from broker.event_loop import EventLoopWatch
    from broker.fetch_session import FetchSessionCache
    from broker.group_lag import GroupLag
    from broker.groups.coordinator import GroupCoordinator
    from broker.handover import Handover
    from broker.partitions import Partitions
    from broker.retention import Retention
    from broker.server import Server
    from broker.topics import Topics
    from controller.controller import Controller
    from s3stream.collector import Collector as ObjectCollector
    from s3stream.compactor import Compactor
    from s3stream.instrumented import InstrumentedObjectStore
    from s3stream.metered import Usage
    from s3stream.object_reader import ObjectReader
    from s3stream.storage import Storage

__all__ = ["SECTIONS", "BrokerCollector", "Described", "Parts", "as_markdown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a running broker that have figures."""

    metrics: Metrics
    server: Server
    storage: Storage
    store: InstrumentedObjectStore
    usage: Usage
    reader: ObjectReader
    damage: DamageReport
    controller: Controller
    topics: Topics
    partitions: Partitions
    handover: Handover
    fetch_sessions: FetchSessionCache
    waiting_fetches: WaitingFetches
    groups: GroupCoordinator
    group_lag: GroupLag
    retention: Retention
    compactor: Compactor | CompactionProcess
    collector: ObjectCollector
    event_loop: EventLoopWatch
    groups_limit_bytes: int
    memory_limit_bytes: int
    index_cache_limit_bytes: int


Sample = tuple[tuple[str, ...], float | Histogram]
"""Label values and value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One metric."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    help: str
    labels: tuple[str, ...] = ()
    read: Callable[[Parts], Iterable[Sample]]


def _one(read: Callable[[Parts], float | Histogram]) -> Callable[[Parts], Iterable[Sample]]:
    return lambda parts: (((), read(parts)),)


def _counter(name: str, text: str, read: Callable[[Parts], float]) -> Described:
    return Described(name=name, kind="counter", help=text, read=_one(read))


def _gauge(name: str, text: str, read: Callable[[Parts], float]) -> Described:
    return Described(name=name, kind="gauge", help=text, read=_one(read))


def _histogram(name: str, text: str, read: Callable[[Parts], Histogram]) -> Described:
    return Described(name=name, kind="histogram", help=text, read=_one(read))


def _labelled(
    kind: str, name: str, labels: str | tuple[str, ...], text: str, read: Callable[[Parts], Iterable[Sample]]
) -> Described:
    return Described(
        name=name, kind=kind, help=text, labels=(labels,) if isinstance(labels, str) else labels, read=read
    )


def _by_value(values: Callable[[Parts], Mapping[str, float | Histogram]]) -> Callable[[Parts], Iterable[Sample]]:
    return lambda parts: [((value,), number) for value, number in values(parts).items()]


# ---- what is read ---------------------------------------------------------------------------------------------------


def _api_name(api_key: int) -> str:
    return API[api_key].name if api_key in API else str(api_key)


_ERROR_NAMES = {int(code): code.name for code in ErrorCode}


def _error_name(code: int) -> str:
    return _ERROR_NAMES.get(code, str(code))


def _of_process(parts: Parts, name: str) -> float:
    """A figure of the process of compaction; 0 where the broker itself compacts."""
    value: float = getattr(parts.compactor, name, 0)
    return value


def _request_durations(parts: Parts) -> Iterable[Sample]:
    return [((_api_name(key),), found.duration) for key, found in sorted(parts.metrics.apis.items())]


def _request_errors(parts: Parts) -> Iterable[Sample]:
    return [
        ((_api_name(key), _error_name(code)), count)
        for key, found in sorted(parts.metrics.apis.items())
        for code, count in sorted(found.errors.items())
    ]


def _topics(value: Callable[[TopicTraffic], int], parts: Parts) -> Iterable[Sample]:
    metrics = parts.metrics
    yield from (((name,), value(traffic)) for name, traffic in metrics.topics.items())
    yield (OTHER,), value(metrics.other_topics)


def _held_back(parts: Parts) -> Mapping[str, float | Histogram]:
    server = parts.server
    return {
        "large_requests": server.large_requests.waiting_count,
        "log_full": server.waiting_for_room_count,
        "receive_budget": server.budget.waiting_count,
        "send_budget": server.waiting_to_send_count,
    }


def _pools_used(parts: Parts) -> Mapping[str, float | Histogram]:
    server, reader = parts.server, parts.reader
    arena = parts.storage.arena
    return {
        "arena": arena.size_bytes - arena.free_bytes,
        "groups": parts.groups.memory_bytes,
        "index_cache": reader.index_cache_bytes,
        "read": reader.cache.used_bytes,
        "receive": server.budget.size_bytes - server.budget.free_bytes,
        "send": server.unsent_bytes,
    }


def _pool_limits(parts: Parts) -> Mapping[str, float | Histogram]:
    server, reader = parts.server, parts.reader
    return {
        "arena": parts.storage.arena.size_bytes,
        "groups": parts.groups_limit_bytes,
        "index_cache": parts.index_cache_limit_bytes,
        "read": reader.cache.capacity_bytes,
        "receive": server.budget.size_bytes,
        "send": server.send_budget_bytes,
    }


def _lags(value: Callable[[Lag], float], parts: Parts) -> Iterable[Sample]:
    return [(key, value(lag)) for key, lag in parts.group_lag.lags.items()]


def _objects(parts: Parts) -> Mapping[str, float | Histogram]:
    tables = parts.controller.image.state.tables
    return {
        "referenced": len(tables.objects),
        "unreferenced": len(tables.unreferenced),
        "expired": len(tables.expired),
    }


def _unreferenced_bytes(parts: Parts) -> float:
    return sum(value.size_bytes for value in parts.controller.image.state.tables.unreferenced.values())


def _store_errors(parts: Parts) -> Iterable[Sample]:
    return [((operation, error), count) for (operation, error), count in sorted(parts.store.failures.items())]


def _damaged(offset_of: Callable[[NamedRange], float], parts: Parts) -> Iterable[Sample]:
    return [
        ((found.topic, str(found.partition), found.place), offset_of(found))
        for found in islice(parts.damage.ranges(), MAX_NAMED_RANGES)
    ]


def _billed(parts: Parts) -> Iterable[Sample]:
    return [
        ((purpose.value, request), count)
        for purpose, used in sorted(parts.usage.by_purpose.items())
        for request, count in (("put", used.puts), ("list", used.lists), ("get", used.gets), ("delete", used.deletes))
    ]


def _hedged_puts(parts: Parts) -> float:
    wal = parts.storage.wal
    return wal.hedges if isinstance(wal, ObjectWal) else 0


def _product_version() -> str:
    try:
        return version("tidelog")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


SECTIONS: tuple[tuple[str, tuple[Described, ...]], ...] = (
    (
        "Requests",
        (
            _labelled(
                "histogram",
                "tidelog_request_duration_seconds",
                "api",
                "Time from a request's arrival to its answer, by Kafka API; its count is the number of requests. Without the time"
                " that a Fetch waits for data; with the time that Produce waits for the log, and a group's members for each other.",
                _request_durations,
            ),
            _labelled(
                "counter",
                "tidelog_request_errors_total",
                ("api", "error"),
                "Error codes answered, by Kafka API and Kafka's name of the error. An answer may have several, one a partition."
                " Many are part of normal life, such as UNKNOWN_TOPIC_OR_PARTITION before a topic is created.",
                _request_errors,
            ),
            _histogram(
                "tidelog_fetch_wait_seconds",
                "Time that fetches waited for data, or for their time-out (long poll).",
                lambda parts: parts.metrics.fetch_waits,
            ),
            _gauge(
                "tidelog_fetches_waiting",
                "Fetches that wait for data, or for objects to be read.",
                lambda parts: parts.waiting_fetches.fetch_count,
            ),
            _counter(
                "tidelog_fetches_delayed_total",
                "Fetches that could not be answered at once.",
                lambda parts: parts.metrics.fetches_delayed,
            ),
            _counter(
                "tidelog_fetches_late_total",
                "Fetches that were answered after remote.fetch.max.wait.ms, before all that they wanted of objects was there.",
                lambda parts: parts.metrics.fetches_late,
            ),
            _labelled(
                "counter",
                "tidelog_fetch_reads_total",
                "source",
                "Reads of single partitions by fetches: from the log cache (log_cache), or from what objects hold (objects).",
                _by_value(
                    lambda parts: {
                        "log_cache": parts.metrics.fetch_reads_cached,
                        "objects": parts.metrics.fetch_reads_cold,
                    }
                ),
            ),
            _gauge("tidelog_fetch_sessions", "Incremental fetch sessions.", lambda parts: len(parts.fetch_sessions)),
            _gauge(
                "tidelog_fetch_session_partitions",
                "Partitions of all fetch sessions together.",
                lambda parts: parts.fetch_sessions.partition_count,
            ),
        ),
    ),
    (
        "Topics",
        (
            _labelled(
                "counter",
                "tidelog_received_bytes_total",
                "topic",
                "Bytes of record batches appended, by topic. Topics beyond metrics.max.topics are summed as (other).",
                partial(_topics, lambda traffic: traffic.bytes_in),
            ),
            _labelled(
                "counter",
                "tidelog_received_records_total",
                "topic",
                "Records appended, by topic.",
                partial(_topics, lambda traffic: traffic.records_in),
            ),
            _labelled(
                "counter",
                "tidelog_sent_bytes_total",
                "topic",
                "Bytes of record batches sent to consumers, by topic.",
                partial(_topics, lambda traffic: traffic.bytes_out),
            ),
        ),
    ),
    (
        "Consumer groups",
        (
            _labelled(
                "gauge",
                "tidelog_consumer_lag_records",
                ("group", "topic"),
                "Records behind a group's committed offsets, all partitions of a topic together, as of the last quarter of a minute. Pairs"
                " beyond metrics.max.groups, in the order of their names, are summed as (other).",
                partial(_lags, lambda lag: lag.records),
            ),
            _labelled(
                "gauge",
                "tidelog_consumer_lag_seconds",
                ("group", "topic"),
                "Age of the first record that the group has not committed, by its producer's timestamp, in the partition that is furthest"
                " behind. Exact to a batch for recent records; for those that only objects hold, to the time that one object's records of the"
                " partition span. 0 where records carry no time.",
                partial(_lags, lambda lag: lag.seconds),
            ),
            _labelled(
                "gauge",
                "tidelog_consumer_groups",
                "state",
                "Groups that this node coordinates, by Kafka's name of their state.",
                _by_value(lambda parts: dict(parts.group_lag.group_counts)),
            ),
            _labelled(
                "gauge",
                "tidelog_offsets_partitions",
                "state",
                "Partitions of __consumer_offsets that this node leads: ready, loading, or unreadable (their groups are not served).",
                _by_value(lambda parts: dict(parts.groups.place_counts)),
            ),
            _gauge(
                "tidelog_consumer_members",
                "Members of all groups together.",
                lambda parts: parts.group_lag.member_count,
            ),
        ),
    ),
    (
        "Connections and back-pressure",
        (
            _gauge("tidelog_connections", "Connections that are open.", lambda parts: parts.server.connection_count),
            _counter(
                "tidelog_connections_opened_total",
                "Connections accepted.",
                lambda parts: parts.metrics.connections_opened,
            ),
            _labelled(
                "counter",
                "tidelog_connections_closed_total",
                "cause",
                "Connections that the broker ended: request (bad or unsupported), limit (max.connections), idle, stuck (took nothing of"
                " its response), slow (held memory that was needed), memory (held receive or send budget), fault (a mistake of the"
                " broker's).",
                _by_value(lambda parts: parts.metrics.connections_closed),
            ),
            _labelled(
                "gauge",
                "tidelog_connections_held_back",
                "reason",
                "Connections whose requests wait: log_full (WAL or arena), receive_budget (memory for requests that arrive), send_budget"
                " (for responses that were not taken), large_requests (those take turns).",
                _by_value(_held_back),
            ),
            _counter(
                "tidelog_produce_stalls_total",
                "Times that producers began to be held back because the log was full.",
                lambda parts: parts.metrics.produce_stalls,
            ),
            _counter(
                "tidelog_produce_stalled_seconds_total",
                "Time in which producers were held back because the log was full.",
                lambda parts: parts.server.produce_stalled_s,
            ),
        ),
    ),
    (
        "Write-ahead log",
        (
            _histogram(
                "tidelog_wal_commit_duration_seconds",
                "Time of one write of the WAL, from its start to its durability. Each makes durable what gathered meanwhile.",
                lambda parts: parts.storage.wal.commit_durations,
            ),
            _histogram(
                "tidelog_wal_commit_size_bytes",
                "Bytes made durable by one write of the WAL (group commit).",
                lambda parts: parts.storage.wal.commit_sizes,
            ),
            _histogram(
                "tidelog_wal_commit_batches",
                "Record batches made durable by one write of the WAL (group commit).",
                lambda parts: parts.storage.commit_batches,
            ),
            _gauge(
                "tidelog_wal_unuploaded_bytes",
                "Acknowledged record batches that are in the WAL and in no object yet: what the loss of its disk would cost now.",
                lambda parts: parts.storage.unuploaded_bytes,
            ),
            _gauge(
                "tidelog_wal_unuploaded_age_seconds",
                "How long the oldest of them has waited for its upload; counted anew from a restart.",
                lambda parts: parts.storage.unuploaded_age_s,
            ),
            _gauge(
                "tidelog_wal_used_bytes",
                "Of the WAL's capacity: what is not trimmed yet.",
                lambda parts: parts.storage.wal_used_bytes,
            ),
            _gauge(
                "tidelog_wal_capacity_bytes",
                "Capacity of the WAL.",
                lambda parts: parts.storage.wal.capacity_bytes,
            ),
            _counter(
                "tidelog_wal_hedged_puts_total",
                "PUTs of a WAL in a bucket that took so long that a second one was sent beside them (hedge_ms); each costs a request.",
                _hedged_puts,
            ),
            _gauge(
                "tidelog_wal_recovered_bytes",
                "Record batches that the last start recovered from the WAL.",
                lambda parts: parts.storage.recovered_bytes,
            ),
            _gauge(
                "tidelog_wal_fenced",
                "1 when the broker acknowledges nothing more (a failed write, or superseded), and must be restarted; else 0.",
                lambda parts: parts.storage.failed is not None,
            ),
        ),
    ),
    (
        "Uploads",
        (
            _histogram(
                "tidelog_upload_put_duration_seconds",
                "Time in which the objects of one cache block were put, repetitions included.",
                lambda parts: parts.storage.uploads.put_durations,
            ),
            _histogram(
                "tidelog_upload_commit_duration_seconds",
                "Time in which they were committed to the metadata log, repetitions included.",
                lambda parts: parts.storage.uploads.commit_durations,
            ),
            _counter(
                "tidelog_upload_retries_total",
                "Puts and commits that had to be tried again.",
                lambda parts: parts.storage.uploads.failed_attempts,
            ),
            _counter(
                "tidelog_upload_objects_total",
                "Objects put and committed.",
                lambda parts: parts.storage.uploads.uploaded_objects,
            ),
            _counter(
                "tidelog_upload_bytes_total",
                "Their bytes.",
                lambda parts: parts.storage.uploads.uploaded_bytes,
            ),
        ),
    ),
    (
        "Object store",
        (
            _labelled(
                "histogram",
                "tidelog_object_store_request_duration_seconds",
                "operation",
                "Time of requests to the object store as the engine sees them, the store's own retries included, by operation; its count is"
                " the number of requests.",
                _by_value(lambda parts: dict(parts.store.durations)),
            ),
            _labelled(
                "counter",
                "tidelog_object_store_request_errors_total",
                ("operation", "error"),
                "Requests that ended with an error. NotFound, PreconditionFailed and WriteConflict are answers, Unavailable and AccessDenied"
                " are trouble, CancelledError is a request that was given up.",
                _store_errors,
            ),
            _labelled(
                "counter",
                "tidelog_object_store_transferred_bytes_total",
                "operation",
                "Bytes of objects written (put…), read (get…) and copied by the store itself (copy), by operation.",
                _by_value(lambda parts: dict(parts.store.transferred_bytes)),
            ),
            _labelled(
                "counter",
                "tidelog_object_store_billed_requests_total",
                ("purpose", "request"),
                "Requests as a bucket's bill counts them, by what they are for (upload, compaction, collection, metadata, read, probe, and wal"
                " where that is in a bucket) and by price: put (with copies and each part of a multipart upload), list (by page, at the price"
                " of a put), get (and all others), delete (free). Attempts repeated after errors are not in it.",
                _billed,
            ),
            _labelled(
                "counter",
                "tidelog_object_store_sent_bytes_total",
                "purpose",
                "Bytes of objects written, by what they are for.",
                _by_value(lambda parts: {name: used.sent_bytes for name, used in parts.usage.by_purpose.items()}),
            ),
            _labelled(
                "counter",
                "tidelog_object_store_received_bytes_total",
                "purpose",
                "Bytes of objects read, by what they are for.",
                _by_value(lambda parts: {name: used.received_bytes for name, used in parts.usage.by_purpose.items()}),
            ),
        ),
    ),
    (
        "Memory and caches",
        (
            _gauge(
                "tidelog_memory_limit_bytes",
                "The bound of the process's memory (memory.bytes); compare process_resident_memory_bytes.",
                lambda parts: parts.memory_limit_bytes,
            ),
            _labelled(
                "gauge",
                "tidelog_buffer_used_bytes",
                "pool",
                "Memory in use, by pool: arena (WAL image and log cache; full is normal, it is a cache), read (catch-up reads and block cache,"
                " likewise), index_cache (likewise), groups (consumer groups and their offsets), receive (requests that are arriving), send (responses that clients have not taken).",
                _by_value(_pools_used),
            ),
            _labelled(
                "gauge",
                "tidelog_buffer_limit_bytes",
                "pool",
                "The bound of each pool.",
                _by_value(_pool_limits),
            ),
            _labelled(
                "counter",
                "tidelog_block_cache_lookups_total",
                "result",
                "Blocks that catch-up reads wanted: there, or on their way (hit), or to be read from an object (miss).",
                _by_value(lambda parts: {"hit": parts.reader.cached_blocks, "miss": parts.reader.missed_blocks}),
            ),
            _counter(
                "tidelog_block_cache_unused_evictions_total",
                "Blocks that were read ahead and evicted before use.",
                lambda parts: parts.reader.cache.unused_evictions,
            ),
            _counter(
                "tidelog_block_cache_joined_blocks_total",
                "Hits on blocks that were on their way, asked for by another reader or ahead of this one: GETs that were not made twice.",
                lambda parts: parts.reader.joined_blocks,
            ),
            _counter(
                "tidelog_catch_up_merged_blocks_total",
                "Blocks that came in the GET of the block before them in the same object: GETs that were not made.",
                lambda parts: parts.reader.merged_blocks,
            ),
            _counter(
                "tidelog_catch_up_read_ahead_blocks_total",
                "Blocks that were asked for before their reader wanted them.",
                lambda parts: parts.reader.read_ahead_blocks,
            ),
            _gauge(
                "tidelog_catch_up_requests",
                "GETs of catch-up reads that are under way; at most 16.",
                lambda parts: parts.reader.budget.requests_under_way,
            ),
            _gauge(
                "tidelog_catch_up_requests_waiting",
                "GETs of catch-up reads that wait for their turn.",
                lambda parts: parts.reader.budget.waiting_count,
            ),
            _counter(
                "tidelog_catch_up_throttled_seconds_total",
                "Time in which remote.log.manager.fetch.max.bytes.per.second held catch-up reads back.",
                lambda parts: parts.reader.budget.throttled_s,
            ),
        ),
    ),
    (
        "Work in the background",
        (
            _labelled(
                "counter",
                "tidelog_compaction_jobs_total",
                "result",
                "Compaction jobs that were committed, or discarded because something changed or failed meanwhile.",
                _by_value(
                    lambda parts: {"committed": parts.compactor.jobs, "discarded": parts.compactor.discarded_jobs}
                ),
            ),
            _counter(
                "tidelog_compaction_read_bytes_total",
                "Bytes read by compaction.",
                lambda parts: parts.compactor.read_bytes,
            ),
            _counter(
                "tidelog_compaction_written_bytes_total",
                "Bytes written by compaction.",
                lambda parts: parts.compactor.written_bytes,
            ),
            _counter(
                "tidelog_compaction_copied_bytes_total",
                "Bytes that compaction had the object store copy: they were not written by the broker, and not read either where the store tells the CRC of a copy.",
                lambda parts: parts.compactor.copied_bytes,
            ),
            _gauge(
                "tidelog_compaction_damaged_objects",
                "Objects that compaction leaves alone because they do not match their CRCs.",
                lambda parts: parts.compactor.damaged_objects,
            ),
            _gauge(
                "tidelog_compaction_process_memory_bytes",
                "Resident memory of the process of compaction, on top of the broker's; 0 while there is none.",
                lambda parts: _of_process(parts, "memory_bytes"),
            ),
            _counter(
                "tidelog_compaction_process_cpu_seconds_total",
                "Processor time of the process of compaction, on top of the broker's.",
                lambda parts: _of_process(parts, "cpu_seconds"),
            ),
            _counter(
                "tidelog_compaction_process_restarts_total",
                "Times that the process of compaction ended and was started again.",
                lambda parts: _of_process(parts, "restarts"),
            ),
            _counter(
                "tidelog_collection_deleted_objects_total",
                "Objects deleted because nothing refers to them any more.",
                lambda parts: parts.collector.deleted_objects,
            ),
            _counter(
                "tidelog_collection_orphans_total",
                "Of them, objects that were put and never committed.",
                lambda parts: parts.collector.orphans,
            ),
            _counter(
                "tidelog_retention_raised_log_starts_total",
                "Times that retention raised the log start of a partition.",
                lambda parts: parts.retention.raised_log_starts,
            ),
        ),
    ),
    (
        "Metadata",
        (
            _counter(
                "tidelog_metadata_applied_entries_total",
                "Entries of the metadata log up to the last one applied here.",
                lambda parts: parts.controller.applied_index + 1,
            ),
            _gauge(
                "tidelog_metadata_snapshot_size_bytes",
                "Size of the newest snapshot of the metadata that this node loaded or wrote; 0 before the first.",
                lambda parts: parts.controller.snapshot_size_bytes,
            ),
            _gauge(
                "tidelog_metadata_unsnapshotted_bytes",
                "Metadata log entries since then.",
                lambda parts: parts.controller.bytes_since_snapshot,
            ),
            _gauge(
                "tidelog_controller_leader",
                "1 while this node's controller holds the office, as far as it knows; an idle one does not need it.",
                lambda parts: parts.controller.is_leader,
            ),
            _gauge(
                "tidelog_nodes",
                "Nodes that are registered.",
                lambda parts: len(parts.controller.image.state.tables.nodes),
            ),
            _gauge(
                "tidelog_nodes_living",
                "Nodes that this one hears from while it leads; 1 elsewhere, and where there are no others.",
                lambda parts: parts.controller.living_count,
            ),
            _counter(
                "tidelog_partition_reassignments_total",
                "Partitions that this node, while it led, had moved to other nodes: from one that stopped, or to make counts even.",
                lambda parts: parts.controller.moves,
            ),
            _counter(
                "tidelog_partitions_given_total",
                "Partitions that this node gave to others.",
                lambda parts: parts.handover.moved,
            ),
            _gauge(
                "tidelog_topics",
                "Topics of the cluster.",
                lambda parts: len(parts.topics.by_id),
            ),
            _gauge(
                "tidelog_streams",
                "Streams (partitions) of the cluster.",
                lambda parts: parts.controller.image.partition_count,
            ),
            _labelled(
                "gauge",
                "tidelog_objects",
                "state",
                "Data objects in the metadata: referenced, unreferenced (kept for their grace period and the restore window), "
                "expired (about to be deleted).",
                _by_value(_objects),
            ),
            _gauge(
                "tidelog_unreferenced_bytes",
                "Size of the unreferenced data objects: what waits for its deletion.",
                _unreferenced_bytes,
            ),
            _gauge("tidelog_partitions", "Partitions open on this node.", lambda parts: len(parts.partitions)),
            _gauge(
                "tidelog_partitions_loading",
                "Of them, those whose state is not rebuilt yet: they are read, and not written.",
                lambda parts: parts.partitions.loading_count,
            ),
            _gauge(
                "tidelog_offline_partitions",
                "Of them, those that take no records since damage is in the way: producers are answered KAFKA_STORAGE_ERROR.",
                lambda parts: parts.partitions.offline_count,
            ),
        ),
    ),
    (
        "Damage",
        (
            _labelled(
                "gauge",
                "tidelog_damaged_ranges",
                "source",
                "Ranges of offsets that this node found damaged or missing, and that were neither restored nor given up since: records in"
                " objects (object), states of partitions in objects (state), records in a WAL that was set aside (wal).",
                _by_value(lambda parts: dict(parts.damage.counts())),
            ),
            _labelled(
                "gauge",
                "tidelog_damaged_range_first_offset",
                ("topic", "partition", "place"),
                f"First offset of each damaged range of records; the first {MAX_NAMED_RANGES} ranges only.",
                partial(_damaged, lambda found: found.first_offset),
            ),
            _labelled(
                "gauge",
                "tidelog_damaged_range_last_offset",
                ("topic", "partition", "place"),
                "Last offset of each, inclusive; infinite where nobody can tell how many records a damaged WAL held.",
                partial(_damaged, lambda found: found.last_offset),
            ),
        ),
    ),
    (
        "The process",
        (
            _histogram(
                "tidelog_event_loop_lag_seconds",
                "How much later than planned the event loop came to a timer, four times a second.",
                lambda parts: parts.event_loop.lag,
            ),
            _labelled(
                "counter",
                "tidelog_log_lines_total",
                "level",
                "Lines written to the process's log, by level; where the process writes its own (tidelog serve, tidelog dev).",
                _by_value(lambda parts: dict(FIGURES.lines)),
            ),
            _counter(
                "tidelog_log_suppressed_lines_total",
                "Lines left out because the same event was written too often.",
                lambda parts: FIGURES.suppressed_lines,
            ),
            _labelled(
                "gauge",
                "tidelog_build_info",
                ("version", "python"),
                "Always 1; the labels say what runs.",
                lambda parts: (((_product_version(), sys.version.split()[0]), 1),),
            ),
        ),
    ),
)
"""Every metric, in the order of the documentation."""


class BrokerCollector(Collector):
    """Reads all metrics of one broker; what prometheus_client calls a custom collector."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """Read everything, on the event loop of the broker."""
        for _, section in SECTIONS:
            for described in section:
                yield _family(described, described.read(self._parts))


def _family(described: Described, samples: Iterable[Sample]) -> Metric:
    name, text, labels = described.name, described.help, described.labels
    if described.kind == "histogram":
        histograms = HistogramMetricFamily(name, text, labels=labels)
        for values, found in samples:
            assert isinstance(found, Histogram)
            histograms.add_metric(values, _buckets(found), found.total)
        return histograms
    family = (CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for values, number in samples:
        assert not isinstance(number, Histogram)
        family.add_metric(values, number)
    return family


def _buckets(found: Histogram) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(_bound, found.bounds), "+Inf"), found.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _bound(value: float) -> str:
    return repr(float(value))


_INTRODUCTION = """\
# Metrics

Written by `make docs` from the table in `broker/exposition.py`: change that.

`metrics.listeners` says where `/metrics` is served; [operations](operations.md) tells what to watch and what to do. Besides what is
below, there are the usual figures of a process and of Python: `process_resident_memory_bytes`, `process_cpu_seconds_total`,
`process_open_fds`, `process_max_fds`, `process_start_time_seconds`, `process_virtual_memory_bytes`, `python_gc_collections_total`,
`python_gc_objects_collected_total`, `python_gc_objects_uncollectable_total`.

- All counters begin at 0 with the process, but for `tidelog_metadata_applied_entries_total`, which is a position in the metadata log.
- A histogram has `_bucket`, `_sum` and `_count`; the count is what to take rates of.
- Series come into being when something first happens: an error that never occurred has none.
- The first `metrics.max.topics` topics have series of their own, and lose them when they are deleted. A topic that came when there
  was no place is counted as `(other)` until the next start.
- Before the broker serves, during recovery, there are only the figures of process and Python.
"""


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = [_INTRODUCTION]
    for title, section in SECTIONS:
        lines += [f"## {title}", "", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        for described in section:
            labels = ", ".join(f"`{label}`" for label in described.labels)
            lines.append(f"| `{described.name}` | {described.kind} | {labels} | {described.help} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown(), end="")
