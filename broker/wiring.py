"""Puts one broker together. The only place that constructs implementations of ports.

The order of a start: object store and its probe, cluster and controller, WAL, registration, recovery, sockets. Each step
that fails undoes those before it; each says what to do. The order of a stop is the reverse, with uploads in between.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from broker.background import Background
from broker.broker import Broker
from broker.cluster import ControllerEndpoint, while_leading
from broker.compaction.process import CompactionProcess
from broker.config import BrokerSettings, Listener, parse_listeners, parse_overrides
from broker.config_layers import SettingsLayers
from broker.damage import DamageReport
from broker.dispatch import Dispatch
from broker.exposition import Parts
from broker.fetch_session import FetchSessionCache
from broker.group_lag import GroupLag
from broker.groups.coordinator import GroupCoordinator
from broker.handover import Handover
from broker.listening import advertised_listeners
from broker.metrics import Metrics
from broker.monitoring import Monitoring
from broker.partitions import Partitions
from broker.payload import RecordBatchFormat
from broker.producer_ids import ProducerIds
from broker.retention import Retention
from broker.salvage import OfflineStream, salvage
from broker.server import Server
from broker.shares import (
    controller_settings,
    coordinator_settings,
    producer_budget,
    storage_settings,
    wal_store_settings,
    worker_settings,
)
from broker.topics import Topics
from broker.uris import absolute_uri
from controller.controller import Controller
from controller.image import Applied
from controller.node_metadata import NodeMetadata
from s3stream.bucket_rules import RuledBucket, tell_rules
from s3stream.collector import Collector
from s3stream.compactor import Compactor
from s3stream.config import ObjectStoreSettings, StorageSettings
from s3stream.errors import NodeFenced
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.metered import MeteredObjectStore, Purpose, Usage
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import ObjectStore
from s3stream.open import open_object_store
from s3stream.paths import Paths
from s3stream.probe import probe
from s3stream.storage import Storage
from s3stream.wal_objects import StoreForWal
from wal.arena import Arena
from wal.aside import AsideWal
from wal.config import ObjectWalConfig
from wal.errors import WalDamaged
from wal.log import WriteAheadLog
from wal.objects import WalObjects
from wal.open import OpenObjects, open_wal, set_wal_aside, wals_set_aside

__all__ = ["Running", "Surroundings", "start_broker"]

log = logging.getLogger("tidelog.node")

FETCH_SESSION_EVICTION_MS = 120_000
"""A fetch session that was idle for less keeps its place in the cache (`min.incremental.fetch.session.eviction.ms`)."""

CONTROLLER_CLOSE_TIMEOUT_MS = 1_000
"""How long a stop waits for the metadata log's entry in flight, after the streams are closed."""

START_PATIENCE_MS = 120_000
"""How long a start waits for an object store that does not answer, at each step until the WAL is recovered; recovery waits for
as long as it takes. Whoever supervises the process starts it again then; until then the log says what it waits for."""

LOAD_WAIT_S = 0.5
"""How long a start waits for producer state before it serves: clients then see no retriable error at all, as a rule."""


@dataclass(slots=True, kw_only=True)
class Running:
    """A broker that serves."""

    broker: Broker
    server: Server
    storage: Storage
    retention: Retention
    compactor: Compactor | CompactionProcess
    collector: Collector
    store: InstrumentedObjectStore
    """With counters, and switches for tests."""
    usage: Usage
    """Of the object store, and of the WAL's where that is in a bucket."""
    listeners: tuple[Listener, ...]
    """As bound, ports filled in."""
    metrics_listeners: tuple[Listener, ...]
    """Likewise."""
    group_lag: GroupLag
    wal_id: str
    wal_uri: str
    """As opened: relative paths resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a broker takes from whoever runs it, so that tests can give something else."""

    now_ms: Callable[[], int]
    rng: random.Random
    on_failed: Callable[[BaseException], None]
    """Told once when the broker can acknowledge nothing more; stop it then."""
    wrap_store: Callable[[ObjectStore], ObjectStore] | None = None
    """Puts something between the broker and its object store (faults, counters). Compaction then goes through it as well, and
    stays in this process."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds, for figures only."""

    def nonce(self) -> str:
        """Not used before."""
        return f"{self.rng.getrandbits(64):016x}"


@asynccontextmanager
async def start_broker(settings: BrokerSettings, around: Surroundings) -> AsyncIterator[Running]:
    """Start a broker, and stop it at the end of the block.

    Raises:
        InvalidSettings, WalError, ControllerError, ObjectStoreError: it cannot start; says what to do.
    """
    async with AsyncExitStack() as stack:
        monitoring = Monitoring(around.clock)
        stack.push_async_callback(monitoring.close)
        metrics_bound = await monitoring.listen(parse_listeners(settings.metrics_listeners, what="metrics.listeners"))
        opened = await _open(stack, settings, around)
        # Bound before the node is registered, since its registration tells its addresses; served when all is ready.
        metrics = Metrics(clock=around.clock, max_topics=settings.metrics_max_topics)
        server = _server(settings, _layers(settings, opened.controller).current, metrics)
        stack.push_async_callback(server.close)
        bound = await server.listen(parse_listeners(settings.listeners))
        advertised = advertised_listeners(settings, bound)
        with opened.controller.patience():
            try:
                up = await _come_up(stack, settings, around, opened, advertised, metrics, server)
            except WalDamaged as error:
                await _set_wal_aside(settings, around, opened.controller, opened.open_objects, error)
                arena, wal = await _open_wal(
                    stack, settings, around, opened.config, opened.controller, opened.open_objects
                )
                opened = replace(opened, arena=arena, wal=wal)
                up = await _come_up(stack, settings, around, opened, advertised, metrics, server)
        broker, reader, registered = up.broker, up.reader, up.registered
        stack.callback(opened.controller.subscribe(lambda change: _stop_where_superseded(settings, registered, broker)))
        _stop_where_superseded(settings, registered, broker)
        work = _Work(settings, around, opened, registered, broker)
        stack.push_async_callback(work.close)
        work.start(with_lag=bool(metrics_bound))
        broker.partitions.want(broker.topics.by_id.values())
        await broker.partitions.wait_loaded(LOAD_WAIT_S)
        await broker.groups.wait_loaded(LOAD_WAIT_S)
        await server.serve(Dispatch(broker))
        stack.callback(server.stop_requests)
        monitoring.serving(
            Parts(
                metrics=metrics,
                server=server,
                storage=broker.storage,
                store=opened.store,
                usage=opened.usage,
                reader=reader,
                damage=up.damage,
                controller=opened.controller,
                topics=broker.topics,
                partitions=broker.partitions,
                handover=broker.handover,
                fetch_sessions=broker.fetch_sessions,
                waiting_fetches=broker.waiting_fetches,
                retention=work.retention,
                compactor=work.compactor,
                collector=work.collector,
                event_loop=monitoring.event_loop,
                memory_limit_bytes=settings.memory_bytes,
                groups=broker.groups,
                group_lag=work.group_lag,
                groups_limit_bytes=coordinator_settings(settings).memory_bytes,
                index_cache_limit_bytes=opened.config.read.index_cache_bytes,
            )
        )
        stack.callback(monitoring.stopping)
        # First of all when it stops: while it serves on, others take over.
        stack.push_async_callback(opened.controller.give_away, settings.shutdown_timeout_ms)
        log.info(
            "serving: node %(node_id)d on %(listeners)s",
            {
                "node_id": settings.node_id,
                "listeners": ",".join(map(str, bound)),
                "metrics_listeners": ",".join(map(str, metrics_bound)),
                "cluster_id": opened.controller.cluster_id,
                "node_epoch": registered.node_epoch,
            },
        )
        yield Running(
            broker=broker,
            server=server,
            storage=broker.storage,
            retention=work.retention,
            compactor=work.compactor,
            collector=work.collector,
            store=opened.store,
            usage=opened.usage,
            listeners=bound,
            metrics_listeners=metrics_bound,
            group_lag=work.group_lag,
            wal_id=opened.wal.wal_id,
            wal_uri=absolute_uri(settings.wal_uri),
        )


# ---- the steps of a start, in their order


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What lies outside the process, opened; nothing is changed there yet but for what makes a new cluster and a new WAL."""

    config: StorageSettings
    store: InstrumentedObjectStore
    usage: Usage
    paths: Paths
    controller: Controller
    arena: Arena
    wal: WriteAheadLog
    open_objects: OpenObjects
    ruled: Sequence[tuple[RuledBucket, Paths]]
    """What may have rules of its own that concern us."""

    def metered(self, purpose: Purpose) -> ObjectStore:
        """The object store, for somebody whose requests are counted under a purpose."""
        return _metered(self.store, self.usage, purpose, self.config.object_store)


async def _open(stack: AsyncExitStack, settings: BrokerSettings, around: Surroundings) -> _Opened:
    """Open the object store, the cluster in it, and the WAL."""
    config, usage = storage_settings(settings), Usage()
    ruled: list[tuple[RuledBucket, Paths]] = []

    async def open_store(uri: str, store_settings: ObjectStoreSettings) -> tuple[InstrumentedObjectStore, Paths]:
        opened = open_object_store(uri, rng=around.rng, settings=store_settings)
        inner = opened.store if around.wrap_store is None else around.wrap_store(opened.store)
        store = InstrumentedObjectStore(inner, clock=around.clock)
        try:
            await probe(
                _metered(store, usage, Purpose.PROBE, store_settings),
                opened.paths,
                around.nonce(),
                patience_ms=START_PATIENCE_MS,
            )
        except BaseException:
            await store.close()
            raise
        known = {(bucket.uri, paths.prefix) for bucket, paths in ruled}
        if isinstance(opened.store, RuledBucket) and (opened.store.uri, opened.paths.prefix) not in known:
            ruled.append((opened.store, opened.paths))
        return store, opened.paths

    async def open_objects(config: ObjectWalConfig) -> WalObjects:
        settings = wal_store_settings(config)
        store, paths = await open_store(config.store_uri, settings)
        return StoreForWal(_metered(store, usage, Purpose.WAL, settings), paths.prefix)

    store, paths = await open_store(absolute_uri(settings.object_store_uri), config.object_store)
    stack.push_async_callback(store.close)
    endpoint = ControllerEndpoint(stack)
    await endpoint.bind(settings)
    controller = await Controller.start(
        store=_metered(store, usage, Purpose.METADATA, config.object_store),
        paths=paths,
        settings=controller_settings(settings, leader_address=endpoint.address),
        now_ms=around.now_ms,
        rng=around.rng,
        on_failure=around.on_failed,
    )
    await endpoint.join(controller, settings.node_id)
    stack.push_async_callback(controller.close, timeout_ms=CONTROLLER_CLOSE_TIMEOUT_MS)
    arena, wal = await _open_wal(stack, settings, around, config, controller, open_objects)
    return _Opened(
        config=config,
        store=store,
        usage=usage,
        paths=paths,
        controller=controller,
        arena=arena,
        wal=wal,
        open_objects=open_objects,
        ruled=ruled,
    )


async def _open_wal(
    stack: AsyncExitStack,
    settings: BrokerSettings,
    around: Surroundings,
    config: StorageSettings,
    controller: Controller,
    open_objects: OpenObjects,
) -> tuple[Arena, WriteAheadLog]:
    arena = Arena(config.arena_bytes)
    open_it = partial(
        open_wal,
        absolute_uri(settings.wal_uri),
        arena=arena,
        cluster_id=controller.cluster_id,
        node_id=settings.node_id,
        rng=around.rng,
        clock=around.clock,
        open_objects=open_objects,
    )
    try:
        wal = await open_it()
    except WalDamaged as error:
        await _set_wal_aside(settings, around, controller, open_objects, error)
        wal = await open_it()
    stack.push_async_callback(wal.close)
    return arena, wal


async def _set_wal_aside(
    settings: BrokerSettings, around: Surroundings, controller: Controller, open_objects: OpenObjects, error: WalDamaged
) -> None:
    """Begin another WAL where the one that is there is damaged: only what may be lost in it shall stay offline."""
    log.error(
        "the WAL is damaged, and is set aside: %(error)s",
        {"error": error, "wal_uri": settings.wal_uri.partition("?")[0]},
    )
    await set_wal_aside(
        absolute_uri(settings.wal_uri),
        cluster_id=controller.cluster_id,
        node_id=settings.node_id,
        rng=around.rng,
        open_objects=open_objects,
    )


def _metered(store: ObjectStore, usage: Usage, purpose: Purpose, settings: ObjectStoreSettings) -> MeteredObjectStore:
    return MeteredObjectStore(store, usage=usage, purpose=purpose, part_size_bytes=settings.multipart_part_size_bytes)


def _layers(settings: BrokerSettings, controller: Controller) -> SettingsLayers:
    """What was given, and what was altered since."""
    image = controller.image
    return SettingsLayers(given=settings, cluster=image.broker_configs(), own=image.broker_configs(settings.node_id))


def _server(settings: BrokerSettings, altered: BrokerSettings, metrics: Metrics) -> Server:
    return Server(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registered:
    """This start of the node, as the metadata knows it."""

    node_epoch: int
    metadata: NodeMetadata


@dataclass(frozen=True, slots=True, kw_only=True)
class _Up:
    """A broker that has recovered."""

    registered: _Registered
    broker: Broker
    reader: ObjectReader
    damage: DamageReport


async def _come_up(
    stack: AsyncExitStack,
    settings: BrokerSettings,
    around: Surroundings,
    opened: _Opened,
    advertised: dict[str, Listener],
    metrics: Metrics,
    server: Server,
) -> _Up:
    """From an opened WAL to one that is recovered.

    Raises:
        WalDamaged: acknowledged frames are missing in it; it is closed, and as it was.
    """
    async with wals_set_aside(
        absolute_uri(settings.wal_uri), node_id=settings.node_id, rng=around.rng, open_objects=opened.open_objects
    ) as asides:
        registered = await _register(settings, opened, advertised, asides)
        offline = await salvage(
            asides,
            image=opened.controller.image,
            metadata=registered.metadata,
            store=opened.store,
            paths=opened.paths,
            settings=opened.config,
            rng=around.rng,
        )
    broker, reader = _assemble(settings, around, opened, registered, metrics)
    broker.advertised = advertised
    damage = DamageReport(image=opened.controller.image, objects=reader.damage, offline=offline)
    await _recover(stack, settings, opened, broker, reader, server, offline)
    return _Up(registered=registered, broker=broker, reader=reader, damage=damage)


async def _register(
    settings: BrokerSettings, opened: _Opened, advertised: Mapping[str, Listener], asides: Sequence[AsideWal]
) -> _Registered:
    """Tell the cluster who is here. From now on an earlier start of this node can commit nothing."""
    registration = await opened.controller.register_node(
        settings.node_id,
        opened.wal.wal_id,
        wal_epoch=opened.wal.wal_epoch,
        set_aside=[aside.wal_id for aside in asides],
        address=",".join(map(str, advertised.values())),
        rack=settings.broker_rack,
    )
    return _Registered(
        node_epoch=registration.node_epoch,
        metadata=opened.controller.bind(settings.node_id, registration.node_epoch),
    )


def _assemble(
    settings: BrokerSettings, around: Surroundings, opened: _Opened, registered: _Registered, metrics: Metrics
) -> tuple[Broker, ObjectReader]:
    """Make the parts and tell them of each other. Nothing runs yet."""
    controller, metadata = opened.controller, registered.metadata
    payload_format = RecordBatchFormat()
    reader = ObjectReader(
        store=opened.metered(Purpose.READ),
        paths=opened.paths,
        metadata=metadata,
        payload_format=payload_format,
        settings=opened.config.read,
        catch_up=controller.refresh,
    )
    storage = Storage(
        wal=opened.wal,
        arena=opened.arena,
        metadata=metadata,
        store=opened.metered(Purpose.UPLOAD),
        paths=opened.paths,
        reader=reader,
        payload_format=payload_format,
        settings=opened.config,
        rng=around.rng,
        on_failed=around.on_failed,
        clock=around.clock,
    )
    layers = _layers(settings, controller)
    reader.budget.limit(layers.current.catch_up_bytes_per_s)
    topics = Topics(controller.image, layers.current, metrics)
    partitions = Partitions(
        node_id=settings.node_id,
        storage=storage,
        image=controller.image,
        topics=topics,
        producer_budget=producer_budget(settings),
        producer_id_expiration_ms=settings.producer_id_expiration_ms,
        now_ms=around.now_ms,
        on_failed=around.on_failed,
    )
    groups = GroupCoordinator(
        settings=coordinator_settings(settings),
        topics=topics,
        partitions=partitions,
        storage=storage,
        controller=controller,
        now_ms=around.now_ms,
    )
    partitions.on_changed = groups.sync
    handover = Handover(node_id=settings.node_id, storage=storage, partitions=partitions, topics=topics)
    broker = Broker(
        layers=layers,
        object_store_uri=opened.store.uri,
        cluster_id=controller.cluster_id,
        controller=controller,
        storage=storage,
        topics=topics,
        partitions=partitions,
        handover=handover,
        producer_ids=ProducerIds(metadata.allocate_producer_ids),
        fetch_sessions=FetchSessionCache(
            max_slots=settings.max_incremental_fetch_session_cache_slots,
            eviction_ms=FETCH_SESSION_EVICTION_MS,
            rng=around.rng,
            now_ms=around.now_ms,
        ),
        groups=groups,
        metrics=metrics,
        now_ms=around.now_ms,
        rng=around.rng,
    )
    return broker, reader


async def _recover(
    stack: AsyncExitStack,
    settings: BrokerSettings,
    opened: _Opened,
    broker: Broker,
    reader: ObjectReader,
    server: Server,
    offline: Sequence[OfflineStream],
) -> None:
    """Recover the WAL, then follow the metadata, and begin to upload and to load."""
    broker.topics.sync_all()
    try:
        streams = await broker.storage.start(opened.controller.image.streams_led_by(settings.node_id))
    except WalDamaged:
        await broker.storage.close(timeout_s=0)
        raise
    for each in offline:
        broker.partitions.set_offline(each.stream_id, each.loss.text())
    log.info(
        "recovered: %(recovered_bytes)d bytes of the WAL, %(partitions)d partitions",
        {
            "recovered_bytes": broker.storage.recovered_bytes,
            "partitions": len(streams),
            "wal_id": opened.wal.wal_id,
        },
    )

    async def close_storage() -> None:
        await broker.storage.close(timeout_s=settings.shutdown_timeout_ms / 1000)

    stack.push_async_callback(close_storage)
    stack.push_async_callback(broker.partitions.close)
    stack.push_async_callback(broker.groups.close)
    stack.callback(opened.controller.subscribe(partial(_applied, settings, broker, reader, server)))
    broker.topics.sync_all()
    broker.partitions.adopt(streams.values())
    broker.storage.run()
    broker.partitions.run()
    broker.handover.look(broker.topics.by_id.values())


def _stop_where_superseded(settings: BrokerSettings, registered: _Registered, broker: Broker) -> None:
    """Serve nothing more once the metadata tells that another process runs as this node, also where the WAL is idle."""
    node = broker.controller.image.node(settings.node_id)
    if node is not None and node.node_epoch > registered.node_epoch:
        broker.storage.supersede(
            NodeFenced(
                f"node {settings.node_id} was registered again, with node epoch {node.node_epoch}; this process holds "
                f"{registered.node_epoch}. If two processes run as this node, stop one of them"
            )
        )


def _applied(settings: BrokerSettings, broker: Broker, reader: ObjectReader, server: Server, change: Applied) -> None:
    """The metadata changed: every part takes notice, in this order."""
    topics = broker.topics
    if change.broker_configs:
        broker.layers = _layers(settings, broker.controller)
        topics.use(broker.settings)
        server.limit(
            max_connections=broker.settings.max_connections,
            max_connections_per_ip=broker.settings.max_connections_per_ip,
            max_idle_ms=broker.settings.connections_max_idle_ms,
        )
        reader.budget.limit(broker.settings.catch_up_bytes_per_s)
    removed = topics.sync_all() if change.is_reset else topics.sync(sorted(change.topic_ids))
    for topic in removed:
        broker.partitions.drop(topic)
        broker.groups.topic_deleted(topic.name)
    changed = (
        list(topics.by_id.values())
        if change.is_reset
        else [topics.by_id[topic_id] for topic_id in sorted(change.topic_ids) if topic_id in topics.by_id]
    )
    broker.partitions.want(changed)
    broker.handover.look(changed)
    topics.changed()


def _compactor(
    settings: BrokerSettings, around: Surroundings, opened: _Opened, registered: _Registered
) -> Compactor | CompactionProcess:
    """In a process of its own, where that is wanted and reaches the same store."""
    if settings.compaction_process_enable and around.wrap_store is None and not opened.store.uri.startswith("mem:"):
        return CompactionProcess(
            settings=worker_settings(settings, opened.config),
            metadata=registered.metadata,
            entries=opened.controller,
            store=opened.store,
            usage=opened.usage,
            rng=around.rng,
        )
    return Compactor(
        store=opened.metered(Purpose.COMPACTION),
        paths=opened.paths,
        metadata=registered.metadata,
        settings=opened.config.compaction,
        block_size_bytes=opened.config.block_size_bytes,
        rng=around.rng,
    )


class _Work:
    """What runs beside the requests: a later start makes up for whatever of it was not done."""

    def __init__(
        self,
        settings: BrokerSettings,
        around: Surroundings,
        opened: _Opened,
        registered: _Registered,
        broker: Broker,
    ) -> None:
        self._broker = broker
        self._ruled = opened.ruled
        self._background = Background()
        self.compactor = _compactor(settings, around, opened, registered)
        collection_store = opened.metered(Purpose.COLLECTION)
        self.collector = Collector(
            store=collection_store,
            paths=opened.paths,
            metadata=registered.metadata,
            settings=opened.config.collection,
            now_ms=around.now_ms,
            rng=around.rng,
        )
        self.retention = Retention(
            partitions=broker.partitions.__iter__,
            metadata=registered.metadata,
            store_now_ms=collection_store.now_ms,
            now_ms=around.now_ms,
            interval_ms=lambda: broker.settings.log_retention_check_interval_ms,
        )
        self.group_lag = GroupLag(
            groups=broker.groups,
            topics=broker.topics,
            now_ms=around.now_ms,
            clock=around.clock,
            max_pairs=settings.metrics_max_groups,
        )

    def start(self, *, with_lag: bool) -> None:
        """Start all of it; the lag of groups only where somebody can see it."""
        for bucket, paths in self._ruled:
            self._background.start("a look at the bucket's rules", tell_rules(bucket, paths))
        self._background.start("partitions that leave", self._broker.handover.run())
        self._background.start("retention", self.retention.run())
        controller = self._broker.controller
        self._background.start("compaction", while_leading(controller, self.compactor.run))
        self._background.start("collection", while_leading(controller, self.collector.run))
        self._background.start("expiry of offsets", self._broker.groups.expire())
        if with_lag:
            self._background.start("lag of groups", self.group_lag.run())

    async def close(self) -> None:
        """Cancel and await it."""
        await self._background.close()
