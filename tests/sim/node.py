"""A broker without its process: the real parts, wired to the simulation's ports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

from broker.broker import Broker
from broker.config import BrokerSettings, Listener
from broker.connection import Connection
from broker.dispatch import Dispatch
from broker.fetch_session import FetchSessionCache
from broker.metrics import Metrics
from broker.partitions import Partitions
from broker.payload import RecordBatchFormat
from broker.producer_ids import ProducerIds
from broker.server import Server
from broker.topics import Topics
from controller.config import ControllerSettings
from controller.controller import Controller
from controller.image import Applied
from controller.snapshot import digest
from s3stream.config import KIB, MIB, ReadSettings, StorageSettings
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import ObjectStore
from s3stream.paths import Paths
from s3stream.storage import Storage
from tests.sim.scenario import Scenario
from wal.arena import Arena
from wal.disk import Disk
from wal.file_wal import FileWal

__all__ = ["SimNode"]

_SHUTDOWN_TIMEOUT_S = 4.0


class SimNode:
    """Made by `start`, ended by `close`, or by its death."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Why it cannot go on."""
        self.digest: str | None = None
        """Of the metadata, once it was closed."""

    @classmethod
    async def start(
        cls,
        *,
        store: ObjectStore,
        paths: Paths,
        disk: Disk,
        scenario: Scenario,
        cluster_id: str,
        node_id: int,
        port: int,
        now_ms: Callable[[], int],
        rng: random.Random,
    ) -> SimNode:
        """Recover, and serve."""
        self = cls()
        broker_settings = BrokerSettings(node_id=node_id, listeners=f"PLAINTEXT://localhost:{port}")
        settings = StorageSettings(
            memory_bytes=max(64 * MIB, 4 * scenario.arena_bytes),
            arena_bytes=scenario.arena_bytes,
            upload_interval_ms=scenario.upload_interval_ms,
            upload_size_bytes=min(scenario.upload_size_bytes, scenario.arena_bytes // 2),
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
        )
        self.controller = controller = await Controller.start(
            store=store,
            paths=paths,
            settings=ControllerSettings(
                cluster_id=cluster_id,
                command_timeout_ms=5_000,
                snapshot_interval_entries=scenario.snapshot_interval_entries,
                retained_entries=3,
            ),
            now_ms=now_ms,
            rng=rng,
            on_failure=self._on_failed,
        )
        arena = Arena(settings.arena_bytes)
        wal = await FileWal.open(
            arena=arena,
            disk=disk,
            cluster_id=cluster_id,
            node_id=node_id,
            capacity_bytes=scenario.wal_capacity_bytes,
            format_in_background=True,
        )
        registration = await controller.register_node(node_id, wal.wal_id, wal_epoch=wal.wal_epoch)
        metadata = controller.bind(node_id, registration.node_epoch)
        self.storage = storage = Storage(
            wal=wal,
            arena=arena,
            metadata=metadata,
            store=store,
            paths=paths,
            reader=ObjectReader(
                store=store,
                paths=paths,
                metadata=metadata,
                payload_format=RecordBatchFormat(),
                settings=settings.read,
            ),
            payload_format=RecordBatchFormat(),
            settings=settings,
            rng=rng,
            on_failed=self._on_failed,
        )
        self.topics = topics = Topics(controller.image, broker_settings)
        self.partitions = partitions = Partitions(
            node_id=node_id,
            storage=storage,
            image=controller.image,
            topics=topics,
            producer_id_expiration_ms=86_400_000,
            now_ms=now_ms,
        )
        topics.sync_all()
        streams = await storage.start(controller.image.streams_led_by(node_id))
        partitions.adopt(streams.values())

        def applied(change: Applied) -> None:
            for topic in topics.sync(change.topic_ids) if not change.is_reset else topics.sync_all():
                partitions.drop(topic)
            partitions.want(topics.by_id.values())

        controller.subscribe(applied)
        storage.run()
        partitions.run()
        partitions.want(topics.by_id.values())
        metrics = Metrics()
        broker = Broker(
            settings=broker_settings,
            cluster_id=cluster_id,
            controller=controller,
            storage=storage,
            topics=topics,
            partitions=partitions,
            producer_ids=ProducerIds(metadata.allocate_producer_ids),
            fetch_sessions=FetchSessionCache(max_slots=100, eviction_ms=120_000, rng=rng, now_ms=now_ms),
            metrics=metrics,
            now_ms=now_ms,
            rng=rng,
        )
        self.server = server = Server(
            metrics=metrics,
            max_request_bytes=1 * MIB,
            receive_budget_bytes=4 * MIB,
            send_budget_bytes=4 * MIB,
            max_connections=100,
            max_idle_ms=600_000,
        )
        listener = Listener(name="PLAINTEXT", host="localhost", port=port)
        broker.advertised = {listener.name: listener}
        await server.serve(Dispatch(broker))
        self.listening = await asyncio.get_running_loop().create_server(
            partial(Connection, server, listener), "localhost", port
        )
        return self

    async def run_until(self, stop: asyncio.Event) -> None:
        """Serve until asked to stop. Raises what makes it impossible to go on."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({stopped, self.failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if self.failed.done():
            raise self.failed.result()

    async def close(self) -> None:
        """End in good order."""
        self.listening.close()
        self.server.stop_requests()
        await self.partitions.close()
        await self.storage.close(timeout_s=_SHUTDOWN_TIMEOUT_S)
        await self.server.close()
        await self.controller.close()
        self.digest = digest(self.controller.image.state)

    async def trim(self, topic: str, partition: int, offset: int) -> None:
        """Raise a log start offset, as retention does."""
        found = self.topics.by_name.get(topic)
        open_partition = None if found is None else found.partitions[partition]
        if open_partition is not None:
            stream = open_partition.stream
            await stream.trim(min(offset, stream.confirmed_offset))

    def _on_failed(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)
