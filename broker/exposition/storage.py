"""Figures of where records are kept: write-ahead log, uploads, object store, memory, and the work in the background."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker.exposition.described import Described, Parts, Sample, by_value, counter, gauge, histogram, labelled
from wal.histogram import Histogram
from wal.log import WriteAheadLog
from wal.null_wal import NullWal
from wal.object_wal import ObjectWal

__all__ = ["SECTIONS"]


def _of_process(parts: Parts, name: str) -> float:
    """A figure of the process of compaction; 0 where the broker itself compacts."""
    value: float = getattr(parts.compactor, name, 0)
    return value


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


def _store_errors(parts: Parts) -> Iterable[Sample]:
    return [((operation, error), count) for (operation, error), count in sorted(parts.store.failures.items())]


def _billed(parts: Parts) -> Iterable[Sample]:
    return [
        ((purpose.value, request), count)
        for purpose, used in sorted(parts.usage.by_purpose.items())
        for request, count in (("put", used.puts), ("list", used.lists), ("get", used.gets), ("delete", used.deletes))
    ]


def _kind(wal: WriteAheadLog) -> str:
    if isinstance(wal, ObjectWal):
        return "bucket"
    return "none" if isinstance(wal, NullWal) else "disk"


def _hedged_puts(parts: Parts) -> float:
    wal = parts.storage.wal
    return wal.hedges if isinstance(wal, ObjectWal) else 0


SECTIONS: tuple[tuple[str, tuple[Described, ...]], ...] = (
    (
        "Write-ahead log",
        (
            labelled(
                "histogram",
                "tidelog_wal_commit_duration_seconds",
                "kind",
                "Time of one write of the WAL, from its start to its durability, by where it goes: to a file (disk), or by a PUT (bucket). Each makes"
                " durable what gathered meanwhile.",
                by_value(lambda parts: {_kind(parts.storage.wal): parts.storage.wal.commit_durations}),
            ),
            histogram(
                "tidelog_wal_commit_size_bytes",
                "Bytes made durable by one write of the WAL (group commit).",
                lambda parts: parts.storage.wal.commit_sizes,
            ),
            histogram(
                "tidelog_wal_commit_batches",
                "Record batches made durable by one write of the WAL (group commit).",
                lambda parts: parts.storage.commit_batches,
            ),
            gauge(
                "tidelog_wal_unuploaded_bytes",
                "Acknowledged record batches that are in the WAL and in no object yet: what the loss of its disk would cost now.",
                lambda parts: parts.storage.unuploaded_bytes,
            ),
            gauge(
                "tidelog_wal_unuploaded_age_seconds",
                "How long the oldest of them has waited for its upload; counted anew from a restart.",
                lambda parts: parts.storage.unuploaded_age_s,
            ),
            gauge(
                "tidelog_wal_used_bytes",
                "Of the WAL's capacity: what is not trimmed yet.",
                lambda parts: parts.storage.wal_used_bytes,
            ),
            gauge(
                "tidelog_wal_capacity_bytes",
                "Capacity of the WAL.",
                lambda parts: parts.storage.wal.capacity_bytes,
            ),
            counter(
                "tidelog_wal_hedged_puts_total",
                "PUTs of a WAL in a bucket that took so long that a second one was sent beside them (hedge_ms); each costs a request.",
                _hedged_puts,
            ),
            gauge(
                "tidelog_wal_recovered_bytes",
                "Record batches that the last start recovered from the WAL.",
                lambda parts: parts.storage.recovered_bytes,
            ),
            gauge(
                "tidelog_wal_fenced",
                "1 when the broker acknowledges nothing more (a failed write, or superseded), and must be restarted; else 0.",
                lambda parts: parts.storage.failed is not None,
            ),
        ),
    ),
    (
        "Uploads",
        (
            histogram(
                "tidelog_upload_put_duration_seconds",
                "Time in which the objects of one cache block were put, repetitions included.",
                lambda parts: parts.storage.uploads.put_durations,
            ),
            histogram(
                "tidelog_upload_commit_duration_seconds",
                "Time in which they were committed to the metadata log, repetitions included.",
                lambda parts: parts.storage.uploads.commit_durations,
            ),
            counter(
                "tidelog_upload_retries_total",
                "Puts and commits that had to be tried again.",
                lambda parts: parts.storage.uploads.failed_attempts,
            ),
            counter(
                "tidelog_upload_objects_total",
                "Objects put and committed.",
                lambda parts: parts.storage.uploads.uploaded_objects,
            ),
            counter(
                "tidelog_upload_bytes_total",
                "Their bytes.",
                lambda parts: parts.storage.uploads.uploaded_bytes,
            ),
        ),
    ),
    (
        "Object store",
        (
            labelled(
                "histogram",
                "tidelog_object_store_request_duration_seconds",
                "operation",
                "Time of requests to the object store as the engine sees them, the store's own retries included, by operation; its count is"
                " the number of requests.",
                by_value(lambda parts: dict(parts.store.durations)),
            ),
            labelled(
                "counter",
                "tidelog_object_store_request_errors_total",
                ("operation", "error"),
                "Requests that ended with an error. NotFound, PreconditionFailed and WriteConflict are answers, Unavailable and AccessDenied"
                " are trouble, CancelledError is a request that was given up.",
                _store_errors,
            ),
            labelled(
                "counter",
                "tidelog_object_store_transferred_bytes_total",
                "operation",
                "Bytes of objects written (put…), read (get…) and copied by the store itself (copy), by operation.",
                by_value(lambda parts: dict(parts.store.transferred_bytes)),
            ),
            labelled(
                "counter",
                "tidelog_object_store_billed_requests_total",
                ("purpose", "request"),
                "Requests as a bucket's bill counts them, by what they are for (upload, compaction, collection, metadata, lease, read, probe,"
                " and wal where that is in a bucket) and by price: put (with copies and each part of a multipart upload), list (by page, at the price"
                " of a put), get (and all others), delete (free). Attempts repeated after errors are not in it.",
                _billed,
            ),
            labelled(
                "counter",
                "tidelog_object_store_sent_bytes_total",
                "purpose",
                "Bytes of objects written, by what they are for.",
                by_value(lambda parts: {name: used.sent_bytes for name, used in parts.usage.by_purpose.items()}),
            ),
            labelled(
                "counter",
                "tidelog_object_store_received_bytes_total",
                "purpose",
                "Bytes of objects read, by what they are for.",
                by_value(lambda parts: {name: used.received_bytes for name, used in parts.usage.by_purpose.items()}),
            ),
        ),
    ),
    (
        "Memory and caches",
        (
            gauge(
                "tidelog_memory_limit_bytes",
                "The bound of the process's memory (memory.bytes); compare process_resident_memory_bytes.",
                lambda parts: parts.memory_limit_bytes,
            ),
            labelled(
                "gauge",
                "tidelog_buffer_used_bytes",
                "pool",
                "Memory in use, by pool: arena (WAL image and log cache; full is normal, it is a cache), read (catch-up reads and block cache,"
                " likewise), index_cache (likewise), groups (consumer groups and their offsets), receive (requests that are arriving), send (responses that clients have not taken).",
                by_value(_pools_used),
            ),
            labelled(
                "gauge",
                "tidelog_buffer_limit_bytes",
                "pool",
                "The bound of each pool.",
                by_value(_pool_limits),
            ),
            labelled(
                "counter",
                "tidelog_block_cache_lookups_total",
                "result",
                "Blocks that catch-up reads wanted: there, or on their way (hit), or to be read from an object (miss).",
                by_value(lambda parts: {"hit": parts.reader.cached_blocks, "miss": parts.reader.missed_blocks}),
            ),
            counter(
                "tidelog_block_cache_unused_evictions_total",
                "Blocks that were read ahead and evicted before use.",
                lambda parts: parts.reader.cache.unused_evictions,
            ),
            counter(
                "tidelog_block_cache_joined_blocks_total",
                "Hits on blocks that were on their way, asked for by another reader or ahead of this one: GETs that were not made twice.",
                lambda parts: parts.reader.joined_blocks,
            ),
            counter(
                "tidelog_catch_up_merged_blocks_total",
                "Blocks that came in the GET of the block before them in the same object: GETs that were not made.",
                lambda parts: parts.reader.merged_blocks,
            ),
            counter(
                "tidelog_catch_up_read_ahead_blocks_total",
                "Blocks that were asked for before their reader wanted them.",
                lambda parts: parts.reader.read_ahead_blocks,
            ),
            gauge(
                "tidelog_catch_up_requests",
                "GETs of catch-up reads that are under way; at most 16.",
                lambda parts: parts.reader.budget.requests_under_way,
            ),
            gauge(
                "tidelog_catch_up_requests_waiting",
                "GETs of catch-up reads that wait for their turn.",
                lambda parts: parts.reader.budget.waiting_count,
            ),
            counter(
                "tidelog_catch_up_throttled_seconds_total",
                "Time in which remote.log.manager.fetch.max.bytes.per.second held catch-up reads back.",
                lambda parts: parts.reader.budget.throttled_s,
            ),
        ),
    ),
    (
        "Work in the background",
        (
            labelled(
                "counter",
                "tidelog_compaction_jobs_total",
                "result",
                "Compaction jobs that were committed, or discarded because something changed or failed meanwhile.",
                by_value(
                    lambda parts: {"committed": parts.compactor.jobs, "discarded": parts.compactor.discarded_jobs}
                ),
            ),
            labelled(
                "counter",
                "tidelog_second_uploads_total",
                "result",
                "Merges by the broker itself of what it had uploaded in small objects and still had in memory, that were committed, or left to "
                "compaction.",
                by_value(
                    lambda parts: (
                        {}
                        if (second := parts.storage.second_uploads) is None
                        else {"committed": second.jobs, "discarded": second.discarded_jobs}
                    )
                ),
            ),
            counter(
                "tidelog_compaction_read_bytes_total",
                "Bytes read by compaction.",
                lambda parts: parts.compactor.read_bytes,
            ),
            counter(
                "tidelog_compaction_written_bytes_total",
                "Bytes written by compaction.",
                lambda parts: parts.compactor.written_bytes,
            ),
            counter(
                "tidelog_compaction_copied_bytes_total",
                "Bytes that compaction had the object store copy: they were not written by the broker, and not read either where the store tells the CRC of a copy.",
                lambda parts: parts.compactor.copied_bytes,
            ),
            gauge(
                "tidelog_compaction_damaged_objects",
                "Objects that compaction leaves alone because they do not match their CRCs.",
                lambda parts: parts.compactor.damaged_objects,
            ),
            gauge(
                "tidelog_compaction_process_memory_bytes",
                "Resident memory of the process of compaction, on top of the broker's; 0 while there is none.",
                lambda parts: _of_process(parts, "memory_bytes"),
            ),
            counter(
                "tidelog_compaction_process_cpu_seconds_total",
                "Processor time of the process of compaction, on top of the broker's.",
                lambda parts: _of_process(parts, "cpu_seconds"),
            ),
            counter(
                "tidelog_compaction_process_restarts_total",
                "Times that the process of compaction ended and was started again.",
                lambda parts: _of_process(parts, "restarts"),
            ),
            counter(
                "tidelog_collection_deleted_objects_total",
                "Objects deleted because nothing refers to them any more.",
                lambda parts: parts.collector.deleted_objects,
            ),
            counter(
                "tidelog_collection_orphans_total",
                "Of them, objects that were put and never committed.",
                lambda parts: parts.collector.orphans,
            ),
            counter(
                "tidelog_retention_raised_log_starts_total",
                "Times that retention raised the log start of a partition.",
                lambda parts: parts.retention.raised_log_starts,
            ),
        ),
    ),
)
