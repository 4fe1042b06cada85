"""The first step of a start: object store and its probe, the cluster in it, the WAL. All that lies outside the process is opened here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from broker.cluster import ControllerEndpoint, leave_cluster
from broker.config import ALLOTTED, BrokerSettings
from broker.shares import controller_settings, storage_settings, wal_store_settings
from broker.uris import absolute_uri
from broker.wiring.surroundings import Surroundings
from controller.allotment import AllotNode
from controller.controller import Controller
from controller.nodes import NodeRegistration
from controller.tcp import PeerTraffic
from s3stream.bucket_rules import RuledBucket
from s3stream.config import ObjectStoreSettings, StorageSettings
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.metered import MeteredObjectStore, Purpose, Usage
from s3stream.objectstore import ObjectStore
from s3stream.open import open_object_store
from s3stream.paths import Paths
from s3stream.probe import probe
from s3stream.wal_objects import StoreForWal
from wal.arena import Arena
from wal.config import ObjectWalConfig, parse_wal_uri
from wal.errors import WalDamaged
from wal.foreign import place_of
from wal.log import WriteAheadLog
from wal.objects import WalObjects
from wal.open import OpenObjects, open_wal, set_wal_aside

__all__ = ["Opened", "open_outside", "open_own_wal", "put_wal_aside"]

log = logging.getLogger("tidelog.node")

CONTROLLER_CLOSE_TIMEOUT_MS = 1_000
"""How long a stop waits for the metadata log's entry in flight, after the streams are closed."""

_CLAIM_BITS = 128

START_PATIENCE_MS = 120_000
"""How long a start waits for an object store that does not answer, at each step until the WAL is recovered; recovery waits for
as long as it takes. Whoever supervises the process starts it again then; until then the log says what it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What lies outside the process, opened; nothing is changed there yet but for what makes a new cluster and a new WAL."""

    settings: BrokerSettings
    """With the id that this node was given, where it had none."""
    allotted: NodeRegistration | None
    """How it was given that; None where an operator gave it."""
    config: StorageSettings
    store: InstrumentedObjectStore
    usage: Usage
    paths: Paths
    controller: Controller
    peer_traffic: PeerTraffic
    arena: Arena
    wal: WriteAheadLog
    open_objects: OpenObjects
    open_foreign: OpenObjects
    """Of a WAL of another node, which has tried the store before."""
    ruled: Sequence[tuple[RuledBucket, Paths]]
    """What may have rules of its own that concern us."""

    def metered(self, purpose: Purpose) -> ObjectStore:
        """The object store, for somebody whose requests are counted under a purpose."""
        return metered(self.store, self.usage, purpose, self.config.object_store)


async def open_outside(stack: AsyncExitStack, settings: BrokerSettings, around: Surroundings) -> Opened:
    """Open the object store, the cluster in it, and the WAL."""
    config, usage = storage_settings(settings), Usage()
    ruled: list[tuple[RuledBucket, Paths]] = []

    async def open_store(uri: str, store_settings: ObjectStoreSettings) -> tuple[InstrumentedObjectStore, Paths]:
        opened = open_object_store(uri, rng=around.rng, settings=store_settings)
        inner = opened.store if around.wrap_store is None else around.wrap_store(opened.store)
        store = InstrumentedObjectStore(inner, clock=around.clock)
        try:
            await probe(
                metered(store, usage, Purpose.PROBE, store_settings),
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

    own_wal_store: dict[str, StoreForWal] = {}
    """By its URI: to make a client of S3 takes longer than to recover a WAL."""

    async def open_foreign(config: ObjectWalConfig) -> WalObjects:
        settings = wal_store_settings(config)
        own = own_wal_store.get(config.store_uri)
        if own is not None and not own.is_closed:
            return own.shared()
        opened = open_object_store(config.store_uri, rng=around.rng, settings=settings)
        inner = opened.store if around.wrap_store is None else around.wrap_store(opened.store)
        return StoreForWal(metered(inner, usage, Purpose.WAL, settings), opened.paths.prefix)

    async def open_objects(config: ObjectWalConfig) -> WalObjects:
        settings = wal_store_settings(config)
        store, paths = await open_store(config.store_uri, settings)
        objects = StoreForWal(metered(store, usage, Purpose.WAL, settings), paths.prefix)
        former = own_wal_store.get(config.store_uri)
        if former is None or former.is_closed:
            own_wal_store[config.store_uri] = objects
        return objects

    store, paths = await open_store(absolute_uri(settings.object_store_uri), config.object_store)
    stack.push_async_callback(store.close)
    endpoint = ControllerEndpoint(stack)
    await endpoint.bind(settings)
    controller = await Controller.start(
        store=metered(store, usage, Purpose.METADATA, config.object_store),
        paths=paths,
        settings=controller_settings(settings, leader_address=endpoint.address),
        now_ms=around.now_ms,
        rng=around.rng,
        on_failure=around.on_failed,
        clock=around.boottime,
    )
    await endpoint.serve(controller)
    allotted = None
    if settings.node_id == ALLOTTED:
        try:
            allotted = await _be_given_an_id(endpoint, controller, settings, around)
        except BaseException:
            await controller.close(timeout_ms=CONTROLLER_CLOSE_TIMEOUT_MS)
            raise
        settings = settings.replace(node_id=allotted.node_id)
    await endpoint.join(controller, settings.node_id)
    stack.push_async_callback(controller.close, timeout_ms=CONTROLLER_CLOSE_TIMEOUT_MS)
    if allotted is not None:
        stack.push_async_callback(_give_back, controller, allotted)
    arena, wal = await open_own_wal(stack, settings, around, config, controller, open_objects)
    return Opened(
        settings=settings,
        allotted=allotted,
        config=config,
        store=store,
        usage=usage,
        paths=paths,
        controller=controller,
        peer_traffic=endpoint.traffic,
        arena=arena,
        wal=wal,
        open_objects=open_objects,
        open_foreign=open_foreign,
        ruled=ruled,
    )


async def _be_given_an_id(
    endpoint: ControllerEndpoint, controller: Controller, settings: BrokerSettings, around: Surroundings
) -> NodeRegistration:
    wal_uri, _ = place_of(parse_wal_uri(absolute_uri(settings.wal_uri)), around.host)
    registration = await endpoint.be_given_an_id(
        controller,
        AllotNode(
            claim=f"{around.rng.getrandbits(_CLAIM_BITS):032x}",
            reserved_max_id=settings.reserved_broker_max_id,
            wal_uri=wal_uri,
            rack=settings.broker_rack,
            lease_ms=settings.broker_lease_ms,
            controller_address=controller.address,
            at_ms=around.now_ms(),
        ),
        around.rng,
    )
    await controller.refresh()
    log.info(
        "this broker has no node.id, and is given one: %(node_id)d",
        {"node_id": registration.node_id, "node_epoch": registration.node_epoch},
    )
    return registration


async def _give_back(controller: Controller, allotted: NodeRegistration) -> None:
    """Let others have the id at once where the start failed before it was made use of."""
    node = controller.image.node(allotted.node_id)
    if node is not None and node.node_epoch == allotted.node_epoch:
        await leave_cluster(controller, controller.bind(allotted.node_id, allotted.node_epoch))


async def open_own_wal(
    stack: AsyncExitStack,
    settings: BrokerSettings,
    around: Surroundings,
    config: StorageSettings,
    controller: Controller,
    open_objects: OpenObjects,
) -> tuple[Arena, WriteAheadLog]:
    """Open this node's WAL, or a new one where it turns out to be damaged; with the memory that is its image."""
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
        await put_wal_aside(settings, around, controller, open_objects, error)
        wal = await open_it()
    stack.push_async_callback(wal.close)
    return arena, wal


async def put_wal_aside(
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


def metered(store: ObjectStore, usage: Usage, purpose: Purpose, settings: ObjectStoreSettings) -> MeteredObjectStore:
    """An object store whose requests are counted under a purpose."""
    return MeteredObjectStore(store, usage=usage, purpose=purpose, part_size_bytes=settings.multipart_part_size_bytes)
