"""What runs beside the requests of a broker."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from broker.background import Background
from broker.broker import Broker
from broker.cluster import while_leading
from broker.compaction.process import CompactionProcess
from broker.config import BrokerSettings
from broker.failover import Failover
from broker.group_lag import GroupLag
from broker.held_report import HeldReport
from broker.listening import tell_unknown_hosts
from broker.load_meter import LoadMeter
from broker.retention import Retention
from broker.salvage import take_out
from broker.shares import recovery_settings, worker_settings
from broker.wiring.lookout import new_lookout
from broker.wiring.outside import Opened
from broker.wiring.parts import Registered
from broker.wiring.surroundings import Surroundings
from s3stream.bucket_rules import tell_rules
from s3stream.collector import Collector
from s3stream.compactor import Compactor
from s3stream.metered import Purpose
from wal.foreign import find_foreign

__all__ = ["Work"]


def _compactor(
    settings: BrokerSettings, around: Surroundings, opened: Opened, registered: Registered
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


class Work:
    """What runs beside the requests: a later start makes up for whatever of it was not done."""

    def __init__(
        self,
        settings: BrokerSettings,
        around: Surroundings,
        opened: Opened,
        registered: Registered,
        broker: Broker,
    ) -> None:
        self._broker = broker
        self._lease = registered.lease
        self.lookout = new_lookout(settings, around, opened, registered)
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
        self.failover = Failover(
            opened.controller,
            node_id=settings.node_id,
            find=partial(
                find_foreign,
                host=around.host,
                directories=[
                    Path(each.strip()) for each in settings.wal_recovery_directories.split(",") if each.strip()
                ],
                open_objects=opened.open_foreign,
                rng=around.rng,
            ),
            give_back=registered.metadata.give_back_wal,
            take_out=partial(
                take_out,
                metadata=registered.metadata,
                store=opened.metered(Purpose.UPLOAD),
                paths=opened.paths,
                settings=recovery_settings(opened.config),
                rng=around.rng,
            ),
        )
        self._unsubscribe = opened.controller.subscribe(lambda change: self.failover.look())
        self.load_meter = LoadMeter(
            partitions=broker.partitions.__iter__,
            interval_s=settings.balance_load_interval_ms / 1_000,
            report=opened.controller.membership.report_load,
        )
        opened.controller.membership.report = HeldReport(
            broker.storage, node_epoch=registered.node_epoch, clock=around.clock
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
        if self._lease is not None:
            self._background.start("the lease", self._lease.run())
        if self.lookout is not None:
            self._background.start("a lookout for the lease", self.lookout.run())
        self._background.start("partitions that leave", self._broker.handover.run())
        self._background.start("retention", self.retention.run())
        controller = self._broker.controller
        hosts = [each.host for each in self._broker.advertised.values()]
        if controller.address:
            hosts.append(controller.address.rpartition(":")[0])
        self._background.start("a look for the names that others are told", tell_unknown_hosts(hosts))
        self._background.start("compaction", while_leading(controller, self.compactor.run))
        self._background.start("collection", while_leading(controller, self.collector.run))
        self._background.start("recovery of other nodes' WALs", self.failover.run())
        if not controller.is_alone:
            self._background.start("load of partitions", self.load_meter.run())
        self._background.start("expiry of offsets", self._broker.groups.expire())
        if with_lag:
            self._background.start("lag of groups", self.group_lag.run())

    async def close(self) -> None:
        """Cancel and await it."""
        self._unsubscribe()
        await self._background.close()
