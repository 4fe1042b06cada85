"""The second step of a start: the parts of a broker are made and told of each other, registered, and recovered.

Always true: until the registration nothing that others see is changed; from then on an earlier start of this node can commit nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from broker.addresses import Listener, parse_overrides
from broker.arrivals import Arrivals
from broker.broker import Broker
from broker.cluster import leave_cluster
from broker.config import BrokerSettings
from broker.config_layers import SettingsLayers
from broker.damage import DamageReport
from broker.fetch_session import FetchSessionCache
from broker.groups.coordinator import GroupCoordinator
from broker.handover import Handover
from broker.metrics import Metrics
from broker.partitions import Partitions
from broker.payload import RecordBatchFormat
from broker.producer_ids import ProducerIds
from broker.salvage import OfflineStream, salvage, streams_on
from broker.server import Server
from broker.shares import coordinator_settings, producer_budget
from broker.topics import Topics
from broker.uris import absolute_uri
from broker.wiring.outside import Opened
from broker.wiring.surroundings import Surroundings
from broker.zone_reads import ZoneReads
from controller.controller import Controller
from controller.image import Applied, Image
from controller.lease import ALWAYS, Lease, Serving
from controller.node_metadata import NodeMetadata
from controller.tables import NodeStatus
from s3stream.errors import MetadataUnavailable, NodeFenced, TakenForDead
from s3stream.metered import Purpose
from s3stream.object_reader import ObjectReader
from s3stream.storage import Storage
from wal.aside import AsideWal
from wal.config import parse_wal_uri
from wal.errors import WalDamaged
from wal.foreign import place_of
from wal.open import wals_set_aside

__all__ = ["Registered", "Up", "come_up", "layers", "new_server", "stop_where_superseded"]

log = logging.getLogger("tidelog.node")

FETCH_SESSION_EVICTION_MS = 120_000
"""A fetch session that was idle for less keeps its place in the cache (`min.incremental.fetch.session.eviction.ms`)."""


def layers(settings: BrokerSettings, controller: Controller) -> SettingsLayers:
    """What was given, and what was altered since."""
    image = controller.image
    return SettingsLayers(given=settings, cluster=image.broker_configs(), own=image.broker_configs(settings.node_id))


def new_server(settings: BrokerSettings, altered: BrokerSettings, metrics: Metrics) -> Server:
    """The server of a broker, with the bounds that hold now. Not bound yet."""
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
class Registered:
    """This start of the node, as the metadata knows it."""

    node_epoch: int
    metadata: NodeMetadata
    lease: Lease | None
    """None where it is alone."""

    @property
    def serving(self) -> Serving:
        """What is asked before anything is answered."""
        return ALWAYS if self.lease is None else self.lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A broker that has recovered."""

    registered: Registered
    broker: Broker
    reader: ObjectReader
    damage: DamageReport


async def come_up(
    stack: AsyncExitStack,
    settings: BrokerSettings,
    around: Surroundings,
    opened: Opened,
    advertised: dict[str, Listener],
    metrics: Metrics,
    server: Server,
) -> Up:
    """From an opened WAL to one that is recovered.

    Raises:
        WalDamaged: acknowledged frames are missing in it; it is closed, and as it was.
        TakenForDead: the process stood still in the middle of it; the next start begins anew.
    """
    async with wals_set_aside(
        absolute_uri(settings.wal_uri), node_id=settings.node_id, rng=around.rng, open_objects=opened.open_objects
    ) as asides:
        registered = await _register(settings, around, opened, advertised, asides)
        with _told_where_dead(opened.controller.image, registered.metadata):
            offline = await salvage(
                asides,
                image=opened.controller.image,
                metadata=registered.metadata,
                store=opened.store,
                paths=opened.paths,
                settings=opened.config,
                rng=around.rng,
            )
    broker, reader = assemble(settings, around, opened, registered, metrics)
    broker.advertised = advertised
    damage = DamageReport(image=opened.controller.image, paths=opened.paths, objects=reader.damage, offline=offline)
    with _told_where_dead(opened.controller.image, registered.metadata):
        await _recover(stack, settings, opened, registered, broker, reader, server, offline)
    return Up(registered=registered, broker=broker, reader=reader, damage=damage)


@contextmanager
def _told_where_dead(image: Image, metadata: NodeMetadata) -> Iterator[None]:
    """Tell a registration that others took for dead from one that another process has replaced. Raises TakenForDead."""
    try:
        yield
    except NodeFenced as error:
        node = image.node(metadata.node_id)
        if node is not None and node.node_epoch == metadata.node_epoch and node.status is NodeStatus.DEAD:
            raise TakenForDead(str(error)) from error
        raise


async def _register(
    settings: BrokerSettings,
    around: Surroundings,
    opened: Opened,
    advertised: Mapping[str, Listener],
    asides: Sequence[AsideWal],
) -> Registered:
    """Tell the cluster who is here. From now on an earlier start of this node can commit nothing."""
    wal_uri, wal_host = place_of(parse_wal_uri(absolute_uri(settings.wal_uri)), around.host)
    registration = await opened.controller.register_node(
        settings.node_id,
        opened.wal.wal_id,
        wal_epoch=opened.wal.wal_epoch,
        allotted_epoch=_allotted_epoch(opened),
        set_aside=[aside.wal_id for aside in asides],
        address=",".join(map(str, advertised.values())),
        rack=settings.broker_rack,
        wal_uri=wal_uri,
        wal_host=wal_host,
        lease_ms=0 if opened.controller.is_alone else settings.broker_lease_ms,
        controller_address=opened.controller.address,
    )
    _tell_shared_addresses(settings.node_id, opened.controller.image, set(map(str, advertised.values())))
    metadata = opened.controller.bind(settings.node_id, registration.node_epoch)
    if opened.controller.is_alone:
        return Registered(node_epoch=registration.node_epoch, metadata=metadata, lease=None)
    lease = Lease(
        opened.controller,
        metadata,
        settings=opened.controller.settings,
        complete_registration=partial(
            metadata.complete_registration,
            lease_ms=settings.broker_lease_ms,
            controller_address=opened.controller.address,
            wal_uri=wal_uri,
            wal_host=wal_host,
        ),
        clock=around.boottime,
    )
    return Registered(node_epoch=registration.node_epoch, metadata=metadata, lease=lease)


def _allotted_epoch(opened: Opened) -> int:
    """What the registration follows where the id was given to this node: that gift, or what this start registered since, before its WAL
    turned out to be damaged. -1: the id is its own."""
    if opened.allotted is None:
        return -1
    node = opened.controller.image.node(opened.allotted.node_id)
    is_ours = node is not None and node.controller_address == opened.controller.address
    return node.node_epoch if node is not None and is_ours else opened.allotted.node_epoch


def _tell_shared_addresses(node_id: int, image: Image, addresses: set[str]) -> None:
    """Not refused: the other one may be about to be taken for dead, and its address is free."""
    for other in image.nodes.values():
        shared = sorted(addresses & set(other.address.split(",")))
        if other.node_id != node_id and shared and image.node_status(other.node_id) is not NodeStatus.DEAD:
            log.warning(
                "clients are told one address for two nodes: %(address)s is that of node %(other)d as well. Unless that one is gone, "
                "give each its own in advertised.listeners",
                {"address": ",".join(shared), "other": other.node_id},
            )


def assemble(
    settings: BrokerSettings, around: Surroundings, opened: Opened, registered: Registered, metrics: Metrics
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
        second_store=opened.metered(Purpose.COMPACTION) if settings.compaction_log_cache_enable else None,
    )
    said = layers(settings, controller)
    reader.budget.limit(said.current.catch_up_bytes_per_s)
    controller.membership.balance_by_itself(said.current.balance_enable)
    topics = Topics(controller.image, said.current, metrics, registered.serving)
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
        serving=registered.serving,
        now_ms=around.now_ms,
    )
    partitions.on_changed = groups.sync
    arrivals = Arrivals(settings.node_id)
    partitions.on_arrived = arrivals.arrived
    handover = Handover(node_id=settings.node_id, storage=storage, partitions=partitions, topics=topics)
    broker = Broker(
        layers=said,
        object_store_uri=opened.store.uri,
        cluster_id=controller.cluster_id,
        controller=controller,
        storage=storage,
        topics=topics,
        partitions=partitions,
        handover=handover,
        arrivals=arrivals,
        producer_ids=ProducerIds(metadata.allocate_producer_ids),
        fetch_sessions=FetchSessionCache(
            max_slots=settings.max_incremental_fetch_session_cache_slots,
            eviction_ms=FETCH_SESSION_EVICTION_MS,
            rng=around.rng,
            now_ms=around.now_ms,
        ),
        groups=groups,
        zone_reads=ZoneReads(
            node_id=settings.node_id,
            rack=settings.broker_rack,
            image=controller.image,
            topics=topics,
            storage=storage,
            clock=around.clock,
        ),
        serving=registered.serving,
        metrics=metrics,
        now_ms=around.now_ms,
        rng=around.rng,
    )
    return broker, reader


async def _recover(
    stack: AsyncExitStack,
    settings: BrokerSettings,
    opened: Opened,
    registered: Registered,
    broker: Broker,
    reader: ObjectReader,
    server: Server,
    offline: Sequence[OfflineStream],
) -> None:
    """Recover the WAL, then follow the metadata, and begin to upload and to load."""
    broker.topics.sync_all()
    try:
        # Its own, and what is open on its WAL though another node has begun to recover that.
        image = opened.controller.image
        own = {*image.streams_led_by(settings.node_id), *streams_on(image, opened.wal.wal_id)}
        streams = await broker.storage.start(sorted(own))
        # Before anything is acknowledged: what a copy of the WAL from before this start lacks must not be taken for all there is.
        await registered.metadata.tell_wal_epoch(opened.wal.wal_epoch)
    except (WalDamaged, NodeFenced, MetadataUnavailable):
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

    stack.push_async_callback(leave_cluster, opened.controller, registered.metadata)
    stack.push_async_callback(close_storage)
    stack.push_async_callback(broker.partitions.close)
    stack.push_async_callback(broker.groups.close)
    stack.callback(opened.controller.subscribe(partial(_applied, settings, registered, broker, reader, server)))
    broker.topics.sync_all()
    broker.partitions.adopt(streams.values())
    broker.storage.run()
    broker.partitions.run()
    broker.handover.look(broker.topics.by_id.values())


def stop_where_superseded(settings: BrokerSettings, registered: Registered, broker: Broker) -> None:
    """Serve nothing more once the metadata tells that another process runs as this node, or that it is taken for dead, also where
    the WAL is idle."""
    node = broker.controller.image.node(settings.node_id)
    if node is not None and node.node_epoch == registered.node_epoch and node.status is NodeStatus.DEAD:
        broker.storage.supersede(
            NodeFenced(
                f"node {settings.node_id} was not heard from for so long that others took it for dead. It comes back as after a crash"
            )
        )
    if node is not None and node.node_epoch > registered.node_epoch:
        broker.storage.supersede(
            NodeFenced(
                f"node {settings.node_id} was registered again, with node epoch {node.node_epoch}; this process holds "
                f"{registered.node_epoch}. If two processes run as this node, stop one of them"
            )
        )


def _applied(
    settings: BrokerSettings,
    registered: Registered,
    broker: Broker,
    reader: ObjectReader,
    server: Server,
    change: Applied,
) -> None:
    """The metadata changed: every part takes notice, in this order."""
    if registered.lease is not None:
        registered.lease.metadata_changed()
    topics = broker.topics
    if change.broker_configs:
        broker.layers = layers(settings, broker.controller)
        topics.use(broker.settings)
        server.limit(
            max_connections=broker.settings.max_connections,
            max_connections_per_ip=broker.settings.max_connections_per_ip,
            max_idle_ms=broker.settings.connections_max_idle_ms,
        )
        reader.budget.limit(broker.settings.catch_up_bytes_per_s)
        broker.controller.membership.balance_by_itself(broker.settings.balance_enable)
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
