"""What each part of a broker gets of what the operator gave to the whole: memory, time, connections.

Always true: the shares of `memory.bytes` leave room for the interpreter. Nothing is opened here.
"""

from __future__ import annotations

from dataclasses import replace

from broker.compaction.process import WorkerSettings
from broker.config import BrokerSettings
from broker.groups.coordinator import CoordinatorSettings
from broker.groups.membership import GroupLimits
from broker.groups.shard import OffsetLimits
from broker.producer_state import PRODUCER_BYTES, ProducerBudget
from broker.uris import absolute_uri
from controller.config import ControllerSettings
from s3stream.config import CollectionSettings, CompactionSettings, ObjectStoreSettings, ReadSettings, StorageSettings
from wal.arena import ALIGNMENT_BYTES
from wal.config import ObjectWalConfig

__all__ = [
    "controller_settings",
    "coordinator_settings",
    "producer_budget",
    "recovery_settings",
    "storage_settings",
    "wal_store_settings",
    "worker_settings",
]

COLLECTION_INTERVAL_MS = 60_000
"""How often objects to be deleted are looked for."""

COMPACTION_BASE_BYTES = 256 << 20
"""What the process of compaction may take before it reads anything. Three eighths of the memory on top: for the metadata, which every
process holds whole, and its buffers twice."""

RECOVERY_UPLOAD_BYTES = 16 << 20
"""Of a WAL of another node: so much is put while the next is read. Smaller objects would cost more commits than they save time."""

RECOVERY_RUN_BYTES = 8 << 20
"""Of a WAL: frames that are recovered together take less."""

WAL_REQUEST_TIMEOUT_MS = 10_000
WAL_DEADLINE_MS = 20_000
"""One attempt of a WAL in a bucket, and all of one request; it has its own patience beyond that."""

MIN_FAN_IN = 10
MAX_FAN_IN = 256
SOURCE_BYTES = 512 << 10
"""Of compaction: as many as its memory has room for, with so much for each."""

WAITING_RANGE_BYTES = 2500
"""Of the memory for each range that may wait to be merged: a twelfth of it is taken by them, twice that where they are merged twice."""

LEASE_MARGIN_SHARE = 20
LEAST_LEASE_MARGIN_MS = 100
"""What is waited beyond a lease, for clocks that do not run alike: far more than they may differ by."""

MIB = 1 << 20


def storage_settings(settings: BrokerSettings) -> StorageSettings:
    """Divide the memory bound: half for the arena, three sixteenths for catch-up reads, a sixteenth each for what else is
    kept, for requests that arrive and for consumer groups; the rest is the interpreter's."""
    memory_bytes = settings.memory_bytes
    arena_bytes = memory_bytes // 2 // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    read_bytes = memory_bytes * 3 // 16
    get_bytes = min(8 * MIB, read_bytes // 12)
    compaction_bytes = memory_bytes // (8 if settings.compaction_process_enable else 32)
    return StorageSettings(
        wal_uri=settings.wal_uri,
        object_store_uri=settings.object_store_uri,
        memory_bytes=memory_bytes,
        arena_bytes=arena_bytes,
        upload_interval_ms=settings.upload_interval_ms,
        upload_size_bytes=min(settings.upload_size_bytes, arena_bytes // 4),
        upload_parallelism=settings.upload_parallelism,
        read=ReadSettings(
            memory_bytes=read_bytes,
            index_cache_bytes=memory_bytes // 32,
            read_ahead_max_bytes=min(16 * MIB, read_bytes // 12),
            read_ahead_initial_bytes=min(MIB, get_bytes),
            max_get_size_bytes=get_bytes,
        ),
        compaction=CompactionSettings(
            interval_ms=settings.compaction_interval_ms,
            max_source_bytes=max(MAX_FAN_IN * 64 * MIB, 2 * settings.compaction_partition_object_bytes),
            object_size_bytes=settings.compaction_object_bytes,
            stream_object_max_bytes=max(settings.compaction_partition_object_bytes, settings.compaction_object_bytes),
            max_fan_in=max(MIN_FAN_IN, min(MAX_FAN_IN, compaction_bytes // SOURCE_BYTES)),
            max_waiting_ranges=memory_bytes // WAITING_RANGE_BYTES,
            memory_bytes=compaction_bytes,
            rate_bytes_per_s=settings.compaction_io_max_bytes_per_second,
        ),
        collection=CollectionSettings(
            interval_ms=max(min(COLLECTION_INTERVAL_MS, settings.log_segment_delete_delay_ms), 10),
            grace_ms=max(settings.log_segment_delete_delay_ms, 1),
            restore_window_ms=settings.metadata_restore_window_ms,
        ),
    )


def recovery_settings(storage: StorageSettings) -> StorageSettings:
    """For the WAL of another node. It takes the largest batch that a node with as much memory takes, and no memory that is not needed: as
    a rule what is not uploaded is a fraction of this."""
    arena_bytes = storage.arena_bytes // 2 + RECOVERY_RUN_BYTES
    return replace(
        storage,
        arena_bytes=min(arena_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES, storage.arena_bytes),
        upload_size_bytes=min(storage.upload_size_bytes, storage.arena_bytes // 8, RECOVERY_UPLOAD_BYTES),
    )


def worker_settings(settings: BrokerSettings, storage: StorageSettings) -> WorkerSettings:
    """What the process of compaction is told."""
    return WorkerSettings(
        object_store_uri=absolute_uri(settings.object_store_uri),
        object_store=storage.object_store,
        compaction=storage.compaction,
        block_size_bytes=storage.block_size_bytes,
        memory_limit_bytes=COMPACTION_BASE_BYTES + settings.memory_bytes * 3 // 8,
        logging_format=settings.logging_format,
        logging_level=settings.logging_level,
    )


def coordinator_settings(settings: BrokerSettings) -> CoordinatorSettings:
    """What the operator says of groups; a sixteenth of the memory is theirs."""
    return CoordinatorSettings(
        limits=GroupLimits(
            initial_rebalance_delay_ms=settings.group_initial_rebalance_delay_ms,
            min_session_timeout_ms=settings.group_min_session_timeout_ms,
            max_session_timeout_ms=settings.group_max_session_timeout_ms,
            max_size=settings.group_max_size,
        ),
        offset_limits=OffsetLimits(
            metadata_max_bytes=settings.offset_metadata_max_bytes,
            retention_ms=settings.offsets_retention_minutes * 60_000,
        ),
        partition_count=settings.offsets_topic_num_partitions,
        check_interval_ms=settings.offsets_retention_check_interval_ms,
        memory_bytes=settings.memory_bytes // 16,
        create_timeout_ms=settings.request_timeout_ms,
    )


def wal_store_settings(config: ObjectWalConfig) -> ObjectStoreSettings:
    """How a WAL in a bucket speaks to it: with connections of its own, so that uploads never hold up an acknowledgement, and
    with short attempts, since it tries again and hedges by itself."""
    return ObjectStoreSettings(
        request_timeout_ms=WAL_REQUEST_TIMEOUT_MS,
        deadline_ms=WAL_DEADLINE_MS,
        retry_max_delay_ms=1_000,
        max_connections=2 * config.parallelism + 4,  # every PUT and its hedge, and reads, lists and deletions
        local_threads=min(config.parallelism, 4),
    )


def controller_settings(settings: BrokerSettings, *, leader_address: str = "") -> ControllerSettings:
    """What the operator says of the metadata log; `leader_address` is where other brokers reach this one."""
    return ControllerSettings(
        cluster_id=settings.cluster_id,
        leader_address=leader_address,
        balances=settings.balance_enable,
        session_timeout_ms=settings.broker_session_timeout_ms,
        heartbeat_interval_ms=settings.broker_heartbeat_interval_ms,
        lease_ms=settings.broker_lease_ms,
        lease_margin_ms=max(settings.broker_lease_ms // LEASE_MARGIN_SHARE, LEAST_LEASE_MARGIN_MS),
        max_moves=settings.balance_max_moves,
        load_interval_ms=settings.balance_load_interval_ms,
        load_tolerance_percent=settings.balance_load_tolerance_percent,
        load_tolerance_bytes_per_s=settings.balance_load_tolerance_bytes_per_second,
        max_partitions=settings.max_partitions_per_broker,
        snapshot_interval_bytes=settings.metadata_log_max_record_bytes_between_snapshots,
        restore_window_ms=settings.metadata_restore_window_ms,
    )


def producer_budget(settings: BrokerSettings) -> ProducerBudget:
    """How many idempotent producers are remembered: a thirty-second of the memory."""
    return ProducerBudget(settings.memory_bytes // 32 // PRODUCER_BYTES)
