"""Starts one broker, and stops it.

The order of a start: object store and its probe, cluster and controller, WAL, registration, recovery, sockets. Each step
that fails undoes those before it; each says what to do. The order of a stop is the reverse, with uploads in between.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from broker.addresses import Listener, parse_listeners
from broker.broker import Broker
from broker.compaction.process import CompactionProcess
from broker.config import BrokerSettings
from broker.dispatch import Dispatch
from broker.exposition.described import Parts
from broker.failover import Failover
from broker.group_lag import GroupLag
from broker.listening import advertised_listeners
from broker.metrics import Metrics
from broker.monitoring import Monitoring
from broker.retention import Retention
from broker.server import Server
from broker.shares import coordinator_settings
from broker.uris import absolute_uri
from broker.wiring.outside import open_outside, open_own_wal, put_wal_aside
from broker.wiring.parts import come_up, layers, new_server, stop_where_superseded
from broker.wiring.surroundings import Surroundings
from broker.wiring.work import Work
from s3stream.collector import Collector
from s3stream.compactor import Compactor
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.metered import Usage
from s3stream.storage import Storage
from wal.errors import WalDamaged

__all__ = ["Running", "start_broker"]

log = logging.getLogger("tidelog.node")

LOAD_WAIT_S = 0.5
"""How long a start waits for producer state before it serves: clients then see no retriable error at all, as a rule."""

LEASE_WAIT_S = 5.0
"""Likewise for its lease, which takes one look at the bucket."""


@dataclass(slots=True, kw_only=True)
class Running:
    """A broker that serves."""

    broker: Broker
    node_epoch: int
    """Of this start's registration."""
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
    failover: Failover
    wal_id: str
    wal_uri: str
    """As opened: relative paths resolved."""


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
        opened = await open_outside(stack, settings, around)
        settings = opened.settings
        # Bound before the node is registered, since its registration tells its addresses; served when all is ready.
        metrics = Metrics(clock=around.clock, max_topics=settings.metrics_max_topics)
        server = new_server(settings, layers(settings, opened.controller).current, metrics)
        stack.push_async_callback(server.close)
        bound = await server.listen(parse_listeners(settings.listeners))
        advertised = advertised_listeners(settings, bound)
        with opened.controller.patience():
            try:
                up = await come_up(stack, settings, around, opened, advertised, metrics, server)
            except WalDamaged as error:
                await put_wal_aside(settings, around, opened.controller, opened.open_objects, error)
                arena, wal = await open_own_wal(
                    stack, settings, around, opened.config, opened.controller, opened.open_objects
                )
                opened = replace(opened, arena=arena, wal=wal)
                up = await come_up(stack, settings, around, opened, advertised, metrics, server)
        broker, reader, registered = up.broker, up.reader, up.registered
        stack.callback(opened.controller.subscribe(lambda change: stop_where_superseded(settings, registered, broker)))
        stop_where_superseded(settings, registered, broker)
        work = Work(settings, around, opened, registered, broker)
        stack.push_async_callback(work.close)
        work.start(with_lag=bool(metrics_bound))
        broker.partitions.want(broker.topics.by_id.values())
        await broker.partitions.wait_loaded(LOAD_WAIT_S)
        await broker.groups.wait_loaded(LOAD_WAIT_S)
        if registered.lease is not None:
            await registered.lease.wait_held(LEASE_WAIT_S)
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
                lease=registered.lease,
                lookout=work.lookout,
                peer_traffic=opened.peer_traffic,
                topics=broker.topics,
                partitions=broker.partitions,
                handover=broker.handover,
                arrivals=broker.arrivals,
                failover=work.failover,
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

        async def hand_over() -> None:
            if around.hands_over():
                await opened.controller.membership.give_away(settings.shutdown_timeout_ms)
            else:
                opened.controller.membership.keep_all()

        # First of all when it stops: while it serves on, others take over.
        stack.push_async_callback(hand_over)
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
            node_epoch=registered.node_epoch,
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
            failover=work.failover,
            wal_id=opened.wal.wal_id,
            wal_uri=absolute_uri(settings.wal_uri),
        )
