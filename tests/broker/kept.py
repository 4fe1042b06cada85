"""What brokers leave behind, for tools that look at it: made by a real node, the same on every run but for times of files."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

from broker.config import BrokerSettings
from broker.node import Node
from protocol.compression import Codec
from tests.broker.wire import Wire, batch, eventually

__all__ = ["NOW_MS", "crashed", "upload_all"]

NOW_MS = 1_750_000_000_000


async def upload_all(node: Node) -> None:
    """Bring everything into objects, and the trim into the WAL's header."""
    storage = node.running.storage
    storage.seal()
    await eventually(lambda: storage._wal.trim_offset == storage._wal.durable_offset, "an upload and a trim")


def crashed(directory: Path) -> Path:
    """`wal` and `objects` as a crash leaves them: three uploads, a snapshot, and a tail that only the WAL holds.

    Topic orders has two partitions; producer 7 is idempotent. Topic notes has one, with configs.
    """
    asyncio.run(_run(directory / "running", directory / "crashed"))
    return directory / "crashed"


async def _run(running: Path, kept: Path) -> None:
    settings = BrokerSettings(
        listeners="PLAINTEXT://127.0.0.1:0",
        advertised_listeners="PLAINTEXT://localhost:9092",
        wal_uri=f"{(running / 'wal').as_uri()}?capacity=1MiB",
        object_store_uri=(running / "objects").as_uri(),
        memory_bytes=128 << 20,
        upload_interval_ms=600_000,
        metadata_log_max_record_bytes_between_snapshots=1 << 10,
    )
    async with Node(settings, rng=random.Random(1), now_ms=lambda: NOW_MS) as node:
        async with await Wire.connect(f"127.0.0.1:{node.listeners[0].port}") as wire:
            await wire.create_topic("orders", partitions=2)
            await wire.create_topic("notes", retention_ms="86400000")
            gone = await wire.create_topic("gone", partitions=200)
            await node.running.broker.controller.delete_topics([gone])
            for upload in range(3):
                for partition in (0, 1):
                    for number in range(2):
                        records = batch(
                            b"order %d" % upload,
                            b"x" * 100,
                            key=b"k%d" % number,
                            timestamp_ms=NOW_MS + upload,
                            codec=(Codec.NONE, Codec.LZ4)[number],
                            producer_id=7,
                            producer_epoch=0,
                            base_sequence=4 * upload + 2 * number,
                        )
                        assert (await wire.produce("orders", records, partition=partition)).error_code == 0
                await wire.produce("notes", batch(b"\xff\x00 %d" % upload))
                await upload_all(node)
            await wire.produce("orders", batch(b"only in the WAL", timestamp_ms=NOW_MS))
        floor = running / "objects/metadata/floor"
        await eventually(floor.exists, "a snapshot")
        await asyncio.to_thread(shutil.copytree, running, kept)
