"""Puts one broker together. The only place that constructs implementations of ports.

The order of a start: object store and its probe, cluster and controller, WAL, registration, recovery, sockets. Each step
that fails undoes those before it; each says what to do. The order of a stop is the reverse, with uploads in between.
"""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from broker.background import Background
from broker.broker import Broker
from broker.config import BrokerSettings, Listener, parse_listeners, parse_overrides
from broker.config_layers import SettingsLayers
from broker.dispatch import Dispatch
from broker.exposition import Parts
from broker.fetch_session import FetchSessionCache
from broker.group_lag import GroupLag
from broker.groups.coordinator import CoordinatorSettings, GroupCoordinator
from broker.groups.membership import GroupLimits
from broker.groups.shard import OffsetLimits
from broker.metrics import Metrics
from broker.monitoring import Monitoring
from broker.partitions import Partitions
from broker.payload import RecordBatchFormat
from broker.producer_ids import ProducerIds
from broker.producer_state import PRODUCER_BYTES, ProducerBudget
from broker.retention import Retention
from broker.server import Server
from broker.topics import Topics
from controller.config import ControllerSettings
from controller.controller import Controller
from controller.image import Applied
from s3stream.collector import Collector
from s3stream.compactor import Compactor
from s3stream.config import CollectionSettings, CompactionSettings, ObjectStoreSettings, ReadSettings, StorageSettings
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import ObjectStore
from s3stream.open import open_object_store
from s3stream.probe import probe
from s3stream.storage import Storage
from s3stream.wal_objects import StoreForWal
from wal.arena import ALIGNMENT_BYTES, Arena
from wal.config import OBJECTS_PREFIX, ObjectWalConfig
from wal.objects import WalObjects
from wal.open import open_wal

__all__ = ["Running", "start_broker", "storage_settings"]

log = logging.getLogger("tidelog.node")

FETCH_SESSION_EVICTION_MS = 120_000
"""A fetch session that was idle for less keeps its place in the cache (`min.incremental.fetch.session.eviction.ms`)."""

CONTROLLER_CLOSE_TIMEOUT_MS = 1_000
"""How long a stop waits for the metadata log's entry in flight, after the streams are closed."""

LOAD_WAIT_S = 0.5
"""How long a start waits for producer state before it serves: clients then see no retriable error at all, as a rule."""

COLLECTION_INTERVAL_MS = 60_000
"""How often objects to be deleted are looked for."""

WAL_REQUEST_TIMEOUT_MS = 10_000
WAL_DEADLINE_MS = 20_000
"""One attempt of a WAL in a bucket, and all of one request; it has its own patience beyond that."""

MIB = 1 << 20


@dataclass(slots=True, kw_only=True)
class Running:
    """A broker that serves."""

    broker: Broker
    server: Server
    storage: Storage
    retention: Retention
    store: InstrumentedObjectStore
    """With counters, and switches for tests."""
    listeners: tuple[Listener, ...]
    """As bound, ports filled in."""
    metrics_listeners: tuple[Listener, ...]
    """Likewise."""
    group_lag: GroupLag
    wal_id: str
    wal_uri: str
    """As opened: relative paths resolved."""


def storage_settings(settings: BrokerSettings) -> StorageSettings:
    """Divide the memory bound: half for the arena, three sixteenths for catch-up reads, a sixteenth each for what else is
    kept, for requests that arrive and for consumer groups; the rest is the interpreter's."""
    memory_bytes = settings.memory_bytes
    arena_bytes = memory_bytes // 2 // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    read_bytes = memory_bytes * 3 // 16
    get_bytes = min(4 * MIB, read_bytes // 4)
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
            read_ahead_max_bytes=get_bytes,
            read_ahead_initial_bytes=min(MIB, get_bytes),
            max_get_size_bytes=get_bytes,
        ),
        compaction=CompactionSettings(memory_bytes=memory_bytes // 32),
        collection=CollectionSettings(
            interval_ms=max(min(COLLECTION_INTERVAL_MS, settings.log_segment_delete_delay_ms), 10),
            grace_ms=max(settings.log_segment_delete_delay_ms, 1),
            restore_window_ms=settings.metadata_restore_window_ms,
        ),
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


def absolute_uri(uri: str) -> str:
    """`file:data/wal?…` and `file://./data/wal?…` → `file:///…`, from the working directory; behind `objects+` as well."""
    if uri.startswith(OBJECTS_PREFIX):
        return OBJECTS_PREFIX + absolute_uri(uri.removeprefix(OBJECTS_PREFIX))
    parts = urlsplit(uri)
    if parts.scheme != "file" or (parts.path.startswith("/") and parts.netloc not in (".", "..")):
        return uri
    path = Path(parts.netloc + parts.path).absolute()
    return path.as_uri() + (f"?{parts.query}" if parts.query else "")


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


def advertised_listeners(settings: BrokerSettings, bound: tuple[Listener, ...]) -> dict[str, Listener]:
    """What clients are told, by listener name. Port 0 in `advertised.listeners` means the bound one."""
    told = {listener.name: listener for listener in parse_listeners(settings.advertised_listeners)}
    result: dict[str, Listener] = {}
    for listener in bound:
        given = told.get(listener.name, listener)
        host = given.host if given.host not in ("", "0.0.0.0", "::") else socket.gethostname()
        result[listener.name] = Listener(name=listener.name, host=host, port=given.port or listener.port)
    return result


@asynccontextmanager
async def start_broker(
    settings: BrokerSettings,
    *,
    now_ms: Callable[[], int],
    rng: random.Random,
    on_failed: Callable[[BaseException], None],
    wrap_store: Callable[[ObjectStore], ObjectStore] = lambda store: store,
    clock: Callable[[], float] = time.perf_counter,
) -> AsyncIterator[Running]:
    """Start a broker, and stop it at the end of the block.

    Args:
        on_failed: Told once when the broker can acknowledge nothing more; stop it then.
        wrap_store: Puts something between the broker and its object store (for tests: faults, counters).
        clock: Seconds, for figures only.

    Raises:
        InvalidSettings, WalError, ControllerError, ObjectStoreError: it cannot start; says what to do.
    """
    async with AsyncExitStack() as stack:
        storage_config = storage_settings(settings)
        monitoring = Monitoring(clock)
        stack.push_async_callback(monitoring.close)
        metrics_bound = await monitoring.listen(parse_listeners(settings.metrics_listeners, what="metrics.listeners"))
        opened = open_object_store(
            absolute_uri(settings.object_store_uri), rng=rng, settings=storage_config.object_store
        )
        store, paths = InstrumentedObjectStore(wrap_store(opened.store), clock=clock), opened.paths
        stack.push_async_callback(store.close)
        await probe(store, paths, f"{rng.getrandbits(64):016x}")
        metrics = Metrics(clock=clock, max_topics=settings.metrics_max_topics)
        controller = await Controller.start(
            store=store,
            paths=paths,
            settings=ControllerSettings(
                cluster_id=settings.cluster_id,
                max_partitions=settings.max_partitions_per_broker,
                snapshot_interval_bytes=settings.metadata_log_max_record_bytes_between_snapshots,
                restore_window_ms=settings.metadata_restore_window_ms,
            ),
            now_ms=now_ms,
            rng=rng,
            on_failure=on_failed,
        )
        stack.push_async_callback(controller.close, timeout_ms=CONTROLLER_CLOSE_TIMEOUT_MS)

        async def open_objects(config: ObjectWalConfig) -> WalObjects:
            opened = open_object_store(config.store_uri, rng=rng, settings=wal_store_settings(config))
            store = InstrumentedObjectStore(wrap_store(opened.store), clock=clock)
            try:
                await probe(store, opened.paths, f"{rng.getrandbits(64):016x}")
            except BaseException:
                await store.close()
                raise
            return StoreForWal(store, opened.paths.prefix)

        arena = Arena(storage_config.arena_bytes)
        wal = await open_wal(
            absolute_uri(settings.wal_uri),
            arena=arena,
            cluster_id=controller.cluster_id,
            node_id=settings.node_id,
            rng=rng,
            clock=clock,
            open_objects=open_objects,
        )
        stack.push_async_callback(wal.close)

        def layers() -> SettingsLayers:
            image = controller.image
            return SettingsLayers(
                given=settings, cluster=image.broker_configs(), own=image.broker_configs(settings.node_id)
            )

        altered = layers().current
        # Bound before the node is registered, since its registration tells its addresses; served when all is ready.
        server = Server(
            metrics=metrics,
            max_request_bytes=settings.socket_request_max_bytes,
            receive_budget_bytes=settings.receive_budget_bytes,
            send_budget_bytes=settings.memory_bytes // 32,
            max_other_bytes_under_way=settings.memory_bytes // 256,  # some fifty times that as objects
            max_connections=altered.max_connections,
            max_connections_per_ip=altered.max_connections_per_ip,
            max_connections_per_ip_overrides=parse_overrides(settings.max_connections_per_ip_overrides),
            max_idle_ms=altered.connections_max_idle_ms,
        )
        stack.push_async_callback(server.close)
        bound = await server.listen(parse_listeners(settings.listeners))
        advertised = advertised_listeners(settings, bound)

        registration = await controller.register_node(
            settings.node_id,
            wal.wal_id,
            wal_epoch=wal.wal_epoch,
            address=",".join(map(str, advertised.values())),
            rack=settings.broker_rack,
        )
        metadata = controller.bind(settings.node_id, registration.node_epoch)
        payload_format = RecordBatchFormat()
        reader = ObjectReader(
            store=store,
            paths=paths,
            metadata=metadata,
            payload_format=payload_format,
            settings=storage_config.read,
        )
        storage = Storage(
            wal=wal,
            arena=arena,
            metadata=metadata,
            store=store,
            paths=paths,
            reader=reader,
            payload_format=payload_format,
            settings=storage_config,
            rng=rng,
            on_failed=on_failed,
            clock=clock,
        )
        topics = Topics(controller.image, altered, metrics)
        partitions = Partitions(
            node_id=settings.node_id,
            storage=storage,
            image=controller.image,
            topics=topics,
            producer_budget=ProducerBudget(settings.memory_bytes // 32 // PRODUCER_BYTES),
            producer_id_expiration_ms=settings.producer_id_expiration_ms,
            now_ms=now_ms,
            on_failed=on_failed,
        )
        groups = GroupCoordinator(
            settings=coordinator_settings(settings),
            topics=topics,
            partitions=partitions,
            storage=storage,
            controller=controller,
            now_ms=now_ms,
        )
        partitions.on_changed = groups.sync
        broker = Broker(
            layers=layers(),
            object_store_uri=store.uri,
            cluster_id=controller.cluster_id,
            controller=controller,
            storage=storage,
            topics=topics,
            partitions=partitions,
            producer_ids=ProducerIds(metadata.allocate_producer_ids),
            fetch_sessions=FetchSessionCache(
                max_slots=settings.max_incremental_fetch_session_cache_slots,
                eviction_ms=FETCH_SESSION_EVICTION_MS,
                rng=rng,
                now_ms=now_ms,
            ),
            groups=groups,
            metrics=metrics,
            now_ms=now_ms,
            rng=rng,
        )
        topics.sync_all()
        streams = await storage.start(controller.image.streams_led_by(settings.node_id))
        log.info(
            "recovered: %(recovered_bytes)d bytes of the WAL, %(partitions)d partitions",
            {"recovered_bytes": storage.recovered_bytes, "partitions": len(streams), "wal_id": wal.wal_id},
        )

        async def close_storage() -> None:
            await storage.close(timeout_s=settings.shutdown_timeout_ms / 1000)

        stack.push_async_callback(close_storage)
        stack.push_async_callback(partitions.close)
        stack.push_async_callback(groups.close)

        def applied(change: Applied) -> None:
            if change.broker_configs:
                broker.layers = layers()
                topics.use(broker.settings)
                server.limit(
                    max_connections=broker.settings.max_connections,
                    max_connections_per_ip=broker.settings.max_connections_per_ip,
                    max_idle_ms=broker.settings.connections_max_idle_ms,
                )
            removed = topics.sync_all() if change.is_reset else topics.sync(sorted(change.topic_ids))
            for topic in removed:
                partitions.drop(topic)
                groups.topic_deleted(topic.name)
            partitions.want(
                list(topics.by_id.values())
                if change.is_reset
                else [topics.by_id[topic_id] for topic_id in sorted(change.topic_ids) if topic_id in topics.by_id]
            )
            topics.changed()

        stack.callback(controller.subscribe(applied))
        topics.sync_all()
        partitions.adopt(streams.values())
        storage.run()
        partitions.run()
        background = Background()
        stack.push_async_callback(background.close)
        compactor = Compactor(
            store=store,
            paths=paths,
            metadata=metadata,
            settings=storage_config.compaction,
            block_size_bytes=storage_config.block_size_bytes,
            rng=rng,
        )
        collector = Collector(
            store=store,
            paths=paths,
            metadata=metadata,
            settings=storage_config.collection,
            now_ms=now_ms,
            rng=rng,
        )
        retention = Retention(
            partitions=partitions.__iter__,
            metadata=metadata,
            store_now_ms=store.now_ms,
            now_ms=now_ms,
            interval_ms=lambda: broker.settings.log_retention_check_interval_ms,
        )
        background.start("retention", retention.run())
        background.start("compaction", compactor.run())
        background.start("collection", collector.run())
        background.start("expiry of offsets", groups.expire())
        group_lag = GroupLag(
            groups=groups, topics=topics, now_ms=now_ms, clock=clock, max_pairs=settings.metrics_max_groups
        )
        if metrics_bound:
            background.start("lag of groups", group_lag.run())
        partitions.want(topics.by_id.values())
        await partitions.wait_loaded(LOAD_WAIT_S)
        await groups.wait_loaded(LOAD_WAIT_S)
        broker.advertised = advertised
        await server.serve(Dispatch(broker))
        stack.callback(server.stop_requests)
        monitoring.serving(
            Parts(
                metrics=metrics,
                server=server,
                storage=storage,
                store=store,
                reader=reader,
                controller=controller,
                topics=topics,
                partitions=partitions,
                fetch_sessions=broker.fetch_sessions,
                waiting_fetches=broker.waiting_fetches,
                retention=retention,
                compactor=compactor,
                collector=collector,
                event_loop=monitoring.event_loop,
                memory_limit_bytes=settings.memory_bytes,
                groups=groups,
                group_lag=group_lag,
                groups_limit_bytes=coordinator_settings(settings).memory_bytes,
                index_cache_limit_bytes=storage_config.read.index_cache_bytes,
            )
        )
        stack.callback(monitoring.stopping)
        log.info(
            "serving: node %(node_id)d on %(listeners)s",
            {
                "node_id": settings.node_id,
                "listeners": ",".join(map(str, bound)),
                "metrics_listeners": ",".join(map(str, metrics_bound)),
                "cluster_id": controller.cluster_id,
                "node_epoch": registration.node_epoch,
            },
        )
        yield Running(
            broker=broker,
            server=server,
            storage=storage,
            retention=retention,
            store=store,
            listeners=bound,
            metrics_listeners=metrics_bound,
            group_lag=group_lag,
            wal_id=wal.wal_id,
            wal_uri=absolute_uri(settings.wal_uri),
        )
