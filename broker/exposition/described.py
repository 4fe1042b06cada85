"""What a metric is: its name, its meaning, and where its value is read. No metric in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.damage import DamageReport
from broker.metrics import Metrics
from wal.histogram import Histogram

if TYPE_CHECKING:
    from broker.arrivals import Arrivals
    from broker.compaction.process import CompactionProcess
    from broker.delayed_fetch import WaitingFetches
    from broker.event_loop import EventLoopWatch
    from broker.failover import Failover
    from broker.fetch_session import FetchSessionCache
    from broker.group_lag import GroupLag
    from broker.groups.coordinator import GroupCoordinator
    from broker.handover import Handover
    from broker.partitions import Partitions
    from broker.retention import Retention
    from broker.server import Server
    from broker.topics import Topics
    from controller.controller import Controller
    from controller.lease import Lease
    from controller.lookout import Lookout
    from controller.tcp import PeerTraffic
    from s3stream.collector import Collector as ObjectCollector
    from s3stream.compactor import Compactor
    from s3stream.instrumented import InstrumentedObjectStore
    from s3stream.metered import Usage
    from s3stream.object_reader import ObjectReader
    from s3stream.storage import Storage

__all__ = ["Described", "Parts", "Sample", "by_value", "counter", "gauge", "histogram", "labelled"]


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
    lease: Lease | None
    """None where the node is alone."""
    lookout: Lookout | None
    """Likewise, and where no thread looks at the bucket."""
    peer_traffic: PeerTraffic
    topics: Topics
    partitions: Partitions
    handover: Handover
    arrivals: Arrivals
    failover: Failover
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


def one(read: Callable[[Parts], float | Histogram]) -> Callable[[Parts], Iterable[Sample]]:
    return lambda parts: (((), read(parts)),)


def counter(name: str, text: str, read: Callable[[Parts], float]) -> Described:
    return Described(name=name, kind="counter", help=text, read=one(read))


def gauge(name: str, text: str, read: Callable[[Parts], float]) -> Described:
    return Described(name=name, kind="gauge", help=text, read=one(read))


def histogram(name: str, text: str, read: Callable[[Parts], Histogram]) -> Described:
    return Described(name=name, kind="histogram", help=text, read=one(read))


def labelled(
    kind: str, name: str, labels: str | tuple[str, ...], text: str, read: Callable[[Parts], Iterable[Sample]]
) -> Described:
    return Described(
        name=name, kind=kind, help=text, labels=(labels,) if isinstance(labels, str) else labels, read=read
    )


def by_value(values: Callable[[Parts], Mapping[str, float | Histogram]]) -> Callable[[Parts], Iterable[Sample]]:
    return lambda parts: [((value,), number) for value, number in values(parts).items()]
