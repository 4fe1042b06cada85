"""The real broker, started by its own wiring, on the simulation's ports.

What the wiring would open by itself (bucket, WAL directory, sockets) is taken from the process in whose context it runs.
Sizes are replaced as well: small ones, so that rings wrap, memory is short and snapshots are taken within seconds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import broker.cluster
import broker.node
import broker.server
import broker.wiring.outside
import broker.wiring.parts
import wal.salvage
import wal.slot_salvage
from broker.addresses import Listener
from broker.config import BrokerSettings
from broker.node import Node
from broker.server import Server
from broker.shares import controller_settings
from broker.wiring.surroundings import Surroundings
from controller.config import ControllerSettings
from controller.snapshot import digest
from s3stream.config import KIB, MIB, CollectionSettings, CompactionSettings, ReadSettings, StorageSettings
from s3stream.objectstore import ObjectStore
from s3stream.open import OpenedStore
from s3stream.paths import Paths
from s3stream.wal_objects import StoreForWal
from tests.sim.loop import current_process
from tests.sim.peers import SimPeers
from tests.sim.pulse import SimPulse
from tests.sim.scenario import Scenario
from tests.sim.volumes import FileSystem, simulated_files
from wal.arena import Arena
from wal.config import ObjectWalConfig
from wal.disk import Disk
from wal.file_wal import FileWal
from wal.log import WriteAheadLog
from wal.object_wal import ObjectWal
from wal.open import OpenObjects

__all__ = ["Ports", "broker_settings", "metadata_digest", "simulated_ports", "trim"]

_COMMAND_TIMEOUT_MS = 5_000
_RETAINED_ENTRIES = 3
_RUN_BYTES = 16 * KIB
"""Of another node's WAL, read at a time: an eighth of the smallest arena at most, as of one's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What one process reaches of the world."""

    store: ObjectStore
    paths: Paths
    host: str
    """Identity of the computer."""
    files: FileSystem
    """What it sees of volumes."""
    boottime: Callable[[], float]
    disk: Disk
    fenced_epoch: Callable[[], int]
    on_wal_open: Callable[[], None]
    arena_bytes: int
    scenario: Scenario


class SimSocket:
    """A bound address in the simulated network."""

    def __init__(self, port: int) -> None:
        self._port = port

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", self._port)

    def close(self) -> None:
        """Nothing to release."""


def broker_settings(
    *, node_id: int, cluster_id: str, port: int, log_retention_check_interval_ms: int = 2_000, **more: Any
) -> BrokerSettings:
    """The broker's settings, but for what `simulated_ports` replaces."""
    return BrokerSettings(
        node_id=node_id,
        cluster_id=cluster_id,
        listeners=f"PLAINTEXT://localhost:{port}",
        memory_bytes=64 * MIB,
        log_retention_check_interval_ms=log_retention_check_interval_ms,
        log_message_timestamp_after_max_ms=(1 << 63) - 1,  # this computer's clock may be wrong
        **{"shutdown_timeout_ms": 3_000, **more},  # what does not get through in time is to be met with
    )


@contextmanager
def simulated_ports() -> Iterator[None]:
    """Make the wiring take its ports from the process that runs it."""
    with ExitStack() as stack:
        for target, name, replacement in (
            (broker.wiring.outside, "open_object_store", _open_object_store),
            (broker.wiring.outside, "open_wal", _open_wal),
            (broker.wiring.outside, "storage_settings", _storage_settings),
            (broker.wiring.outside, "controller_settings", _controller_settings),
            (broker.wiring.parts, "Server", _server),
            (broker.node, "Surroundings", _surroundings),
            (broker.server, "bind", _bind),
            (broker.cluster, "bind", _bind),
            (broker.cluster, "Pulse", SimPulse),
            (broker.cluster, "TcpPeers", SimPeers),
            (wal.salvage, "RUN_BYTES", _RUN_BYTES),
            (wal.slot_salvage, "RUN_BYTES", _RUN_BYTES),
        ):
            stack.enter_context(mock.patch.object(target, name, replacement))
        stack.enter_context(simulated_files())
        yield


async def trim(node: Node, *, topic: str, partition: int, offset: int) -> None:
    """Raise a log start offset, as retention does. Raises what the storage engine does."""
    found = node.running.broker.topics.by_name.get(topic)
    open_partition = None if found is None else found.partitions[partition]
    if open_partition is not None and open_partition.loaded:
        stream = open_partition.stream
        wanted = min(offset, stream.confirmed_offset)
        await stream.trim(wanted)
        assert stream.log_start_offset >= wanted, "a trim that succeeds goes as far as was asked"


def metadata_digest(node: Node) -> Callable[[], str]:
    """What tells the digest of the metadata as this node believes it, also when the node is closed."""
    state = node.running.broker.controller.image
    return lambda: digest(state.state)


def _ports() -> Ports:
    process = current_process()
    assert process is not None, "a broker runs in a process"
    ports: Ports = process.ports
    return ports


def _open_object_store(uri: str, *, rng: random.Random, settings: object) -> OpenedStore:
    ports = _ports()
    return OpenedStore(ports.store, ports.paths)


async def _open_wal(
    uri: str,
    *,
    arena: Arena,
    cluster_id: str,
    node_id: int,
    rng: random.Random,
    clock: Callable[[], float],
    open_objects: OpenObjects,
) -> WriteAheadLog:
    ports = _ports()
    scenario = ports.scenario
    if scenario.wal_in_bucket:
        return await ObjectWal.open(
            arena=arena,
            objects=StoreForWal(ports.store, ports.paths.prefix),
            cluster_id=cluster_id,
            node_id=node_id,
            config=ObjectWalConfig(
                store_uri="mem://",
                capacity_bytes=scenario.wal_capacity_bytes,
                batch_interval_ms=scenario.wal_batch_interval_ms,
                batch_size_bytes=scenario.wal_capacity_bytes // 16,
                parallelism=4,
                hedge_ms=200,
            ),
            rng=rng,
            clock=clock,
        )
    wal = await FileWal.open(
        arena=arena,
        disk=ports.disk,
        cluster_id=cluster_id,
        node_id=node_id,
        capacity_bytes=ports.scenario.wal_capacity_bytes,
        fenced_epoch=ports.fenced_epoch,
        format_in_background=True,
        clock=clock,
    )
    ports.on_wal_open()
    return wal


def _surroundings(**given: Any) -> Surroundings:
    ports = _ports()
    return Surroundings(**given | {"host": ports.host, "boottime": ports.boottime})


def _server(**settings: Any) -> Server:
    if _ports().scenario.little_memory:
        settings |= {"receive_budget_bytes": 64 * KIB, "send_budget_bytes": 64 * KIB}
    return Server(**settings)


def _controller_settings(settings: BrokerSettings, *, leader_address: str = "") -> ControllerSettings:
    return replace(
        controller_settings(settings, leader_address=leader_address),
        start_timeout_ms=_COMMAND_TIMEOUT_MS,
        command_timeout_ms=_COMMAND_TIMEOUT_MS,
        snapshot_interval_entries=_ports().scenario.snapshot_interval_entries,
        retained_entries=_RETAINED_ENTRIES,
        entry_min_age_ms=_ports().scenario.entry_min_age_ms,
        restore_window_ms=_ports().scenario.restore_window_ms,
    )


def _storage_settings(settings: BrokerSettings) -> StorageSettings:
    ports = _ports()
    scenario = ports.scenario
    return StorageSettings(
        memory_bytes=64 * MIB,
        arena_bytes=ports.arena_bytes,
        upload_interval_ms=scenario.upload_interval_ms,
        upload_size_bytes=min(scenario.upload_size_bytes, ports.arena_bytes // 2),
        block_size_bytes=16 * KIB,
        stream_object_min_bytes=scenario.stream_object_min_bytes,
        read=ReadSettings(
            memory_bytes=1 * MIB,
            index_cache_bytes=64 * KIB,
            max_get_size_bytes=64 * KIB,
            read_ahead_max_bytes=128 * KIB,
            read_ahead_initial_bytes=32 * KIB,
            tail_size_bytes=4 * KIB,
        ),
        compaction=CompactionSettings(
            interval_ms=1_000,
            fan_in=3,
            max_fan_in=3,
            max_sources=16,
            object_size_bytes=128 * KIB,
            stream_object_max_bytes=256 * KIB,
            memory_bytes=4 * MIB,
        ),
        collection=CollectionSettings(
            interval_ms=1_000, grace_ms=2_000, orphan_age_ms=20_000, orphan_scan_interval_ms=5_000, batch_size=50
        ),
    )


async def _bind(loop: asyncio.AbstractEventLoop, listener: Listener) -> list[SimSocket]:
    return [SimSocket(listener.port)]
