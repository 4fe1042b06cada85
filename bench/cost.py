"""What a bucket is billed for: requests and bytes for each gigabyte produced: `python -m bench cost`; of some loads, or for longer:
`python -m bench.cost "40 partitions" --hours 24`.

Always true:
- The real engine does the work: storage, metadata log, compaction and collection with a broker's default settings, but on a virtual
  clock and over a store that keeps zeros as their length, so that hours pass in a minute. Payloads are zeros, appended at a steady rate.
- A state of a partition (that of one idempotent producer) goes with every upload, as it does for Kafka's own clients.
- Requests and bytes are counted by `s3stream.metered`, as metrics do; a gigabyte is 10^9 bytes of record batches.
- "Before compaction" are uploads and all of the metadata log. With a WAL on a disk an upload is at least one PUT, and its entry in the
  metadata log a PUT and a GET: that is the least that an interval of uploads can cost, whatever compaction does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cpu import resident_bytes
from bench.hollow import HollowObjectStore
from broker.config import BrokerSettings
from broker.payload import RecordBatchFormat
from broker.shares import storage_settings
from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from s3stream.collector import Collector
from s3stream.compactor import Compactor
from s3stream.config import StorageSettings
from s3stream.metered import MeteredObjectStore, Purpose, Usage, Used
from s3stream.object_reader import ObjectReader
from s3stream.paths import Paths
from s3stream.storage import Storage
from s3stream.stream import Stream
from s3stream.wal_objects import StoreForWal
from tests.sim.loop import VirtualLoop
from wal.arena import Arena
from wal.config import ObjectWalConfig
from wal.log import WriteAheadLog
from wal.null_wal import NullWal
from wal.object_wal import ObjectWal

__all__ = ["Bill", "Load", "bill_for", "run"]

_GB = 1e9
_DOLLARS_PER_PUT = 0.005 / 1000
_DOLLARS_PER_GET = 0.0004 / 1000
"""S3 standard, us-east-1, list prices of 2025. Bytes into S3, and out of it within a region, are free."""
_STATE_BYTES = 195
"""One idempotent producer with five batches, and one leader epoch."""
_COMPACTION_INTERVAL_MS = 60_000
"""Instead of 10 s: to look takes no requests, but time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A steady rate."""

    title: str
    partitions: int
    bytes_per_s: float
    """Of all partitions together."""
    payload_bytes: int
    """Of one append."""
    hours: float
    tick_s: float = 0.25
    """What is due is appended so often."""
    upload_interval_ms: int = 5_000
    wal: ObjectWalConfig | None = None
    """None: a file, which costs nothing in the bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a load came to."""

    load: Load
    appended_bytes: int
    produced_bytes: int
    """What was committed by the end; what was only put by then counts for the usage."""
    usage: Usage
    objects: int
    ranges: int
    most_ranges: int
    """Of any partition."""
    jobs: int
    second_uploads: int
    uploads: int
    """Commits of blocks of the log cache, each at least one PUT."""
    resident_bytes: int
    took_s: float

    def per_gb(self, count: float) -> float:
        """Of what there is so much of."""
        return count / (self.produced_bytes / _GB)

    def sent(self, *purposes: Purpose) -> float:
        """Bytes sent for each byte produced."""
        return self.usage.total(*purposes).sent_bytes / self.produced_bytes

    def dollars(self) -> float:
        """Of requests, for a gigabyte."""
        used = self.usage.total()
        return self.per_gb((used.puts + used.lists) * _DOLLARS_PER_PUT + used.gets * _DOLLARS_PER_GET)


class _Engine:
    """One node, without network and Kafka."""

    def __init__(
        self, *, storage: Storage, controller: Controller, compactor: Compactor, streams: Sequence[Stream]
    ) -> None:
        self.storage = storage
        self.controller = controller
        self.compactor = compactor
        self._streams = streams
        self._turn = 0

    async def produce(self, load: Load, seconds: float) -> None:
        """Append at the load's rate."""
        loop = asyncio.get_running_loop()
        began, appended = loop.time(), 0
        while loop.time() - began < seconds:
            due = (loop.time() - began) * load.bytes_per_s
            while appended < due:
                await self._append(load.payload_bytes)
                appended += load.payload_bytes
            await asyncio.sleep(load.tick_s)

    async def _append(self, size: int) -> None:
        stream = self._streams[self._turn % len(self._streams)]
        self._turn += 1
        while (self.storage.reserve(size)) is None:
            await self.storage.room()
        self.storage.append(stream, 1, -1, None)


@asynccontextmanager
async def _engine(load: Load, settings: StorageSettings, usage: Usage) -> AsyncIterator[_Engine]:
    loop = asyncio.get_running_loop()
    rng = random.Random(1)
    inner = HollowObjectStore()
    paths = Paths("cost")

    def metered(purpose: Purpose) -> MeteredObjectStore:
        return MeteredObjectStore(
            inner, usage=usage, purpose=purpose, part_size_bytes=settings.object_store.multipart_part_size_bytes
        )

    def now_ms() -> int:
        return int(loop.time() * 1000)

    async with AsyncExitStack() as stack:
        controller = await Controller.start(
            store=metered(Purpose.METADATA), paths=paths, settings=ControllerSettings(), now_ms=now_ms, rng=rng
        )
        stack.push_async_callback(controller.close, timeout_ms=1_000)
        arena = Arena(settings.arena_bytes)
        wal: WriteAheadLog
        if load.wal is None:
            wal = NullWal(arena=arena, wal_id="ab" * 16, cluster_id=controller.cluster_id)
        else:
            wal = await ObjectWal.open(
                arena=arena,
                objects=StoreForWal(metered(Purpose.WAL), "cost"),
                cluster_id=controller.cluster_id,
                node_id=1,
                config=load.wal,
                rng=rng,
            )
        registration = await controller.register_node(1, wal.wal_id)
        metadata = controller.bind(1, registration.node_epoch)
        await controller.create_topics([TopicSpec(name="cost", partition_count=load.partitions)])
        storage = Storage(
            wal=wal,
            arena=arena,
            metadata=metadata,
            store=metered(Purpose.UPLOAD),
            paths=paths,
            reader=ObjectReader(
                store=metered(Purpose.READ),
                paths=paths,
                metadata=metadata,
                payload_format=RecordBatchFormat(),
                settings=settings.read,
            ),
            payload_format=RecordBatchFormat(),
            settings=settings,
            rng=rng,
            on_failed=_raise,
            second_store=metered(Purpose.COMPACTION),
        )
        streams = await storage.start(controller.image.streams_led_by(1))
        for stream in streams.values():
            stream.state_source = lambda: b"\xab" * _STATE_BYTES
        storage.run()
        compactor = Compactor(
            store=metered(Purpose.COMPACTION),
            paths=paths,
            metadata=metadata,
            settings=settings.compaction,
            block_size_bytes=settings.block_size_bytes,
            rng=rng,
        )
        collector = Collector(
            store=metered(Purpose.COLLECTION),
            paths=paths,
            metadata=metadata,
            settings=settings.collection,
            now_ms=now_ms,
            rng=rng,
        )
        background = [loop.create_task(work) for work in (compactor.run(), collector.run())]
        try:
            yield _Engine(storage=storage, controller=controller, compactor=compactor, streams=list(streams.values()))
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await storage.close(timeout_s=60)


def _raise(error: BaseException) -> None:
    raise error


async def _measure(load: Load, settings: StorageSettings) -> Bill:
    usage = Usage()
    began = time.perf_counter()
    async with _engine(load, settings, usage) as engine:
        before = usage.copy()
        await engine.produce(load, load.hours * 3600)
        tables = engine.controller.image.state.tables
        range_counts = [len(stream.ranges) for stream in tables.streams.values()]
        return Bill(
            load=load,
            appended_bytes=engine.storage.appended_bytes,
            produced_bytes=engine.storage.appended_bytes - engine.storage.unuploaded_bytes,
            usage=usage.since(before),
            objects=len(tables.objects),
            ranges=sum(range_counts),
            most_ranges=max(range_counts),
            jobs=engine.compactor.jobs,
            second_uploads=0 if engine.storage.second_uploads is None else engine.storage.second_uploads.jobs,
            uploads=engine.storage.uploads.commit_durations.count,
            resident_bytes=resident_bytes(os.getpid()),
            took_s=time.perf_counter() - began,
        )


def bill_for(load: Load, settings: StorageSettings) -> Bill:
    """Live through a load, on a virtual clock."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_measure(load, settings))
    finally:
        loop.close()


def run(work_dir: Path) -> None:
    """Print a table for each load, and one of the WAL in a bucket."""
    for load in _LOADS:
        _print(bill_for(load, _settings(load)))
    _print_wal(_settings(_LOADS[0]))


def main() -> None:
    """Print a table for each of some loads."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__.splitlines()[0])
    parser.add_argument("load", nargs="*", help="how the titles of loads begin (default: all)")
    parser.add_argument("--hours", type=float, help="of virtual time")
    parser.add_argument("--upload-interval-ms", type=int, help="instead of what is a load's own")
    args = parser.parse_args()
    chosen = [load for load in _LOADS if not args.load or any(load.title.startswith(begin) for begin in args.load)]
    if not chosen:
        parser.error("no such load; there are: " + "; ".join(load.title for load in _LOADS))
    for load in chosen:
        interval_ms = args.upload_interval_ms or load.upload_interval_ms
        load = replace(load, hours=args.hours or load.hours, upload_interval_ms=interval_ms)
        _print(bill_for(load, _settings(load)))


def _settings(load: Load) -> StorageSettings:
    return storage_settings(
        BrokerSettings(compaction_interval_ms=_COMPACTION_INTERVAL_MS, upload_interval_ms=load.upload_interval_ms)
    )


def _print(bill: Bill) -> None:
    load = bill.load
    print(
        f"\n{load.title}: {load.hours:g} h, {bill.produced_bytes / _GB:,.0f} GB, an upload each {load.upload_interval_ms / 1000:g} s at the latest"
        f" ({bill.took_s:.0f} s)\n"
    )
    print("| per GB produced | PUT | LIST | GET | bytes up | bytes down |")
    print("|---|---|---|---|---|---|")
    for purpose in Purpose:
        used = bill.usage.total(purpose)
        if used != Used():
            _print_row(bill, purpose, used)
    _print_row(bill, "all", bill.usage.total())
    _print_row(bill, "least", Used(puts=2 * bill.uploads, gets=bill.uploads, sent_bytes=bill.produced_bytes))
    before = bill.sent(Purpose.UPLOAD, Purpose.METADATA)
    print(
        f"\nbytes up before compaction {before:.3f} (goal 1.15), with it {bill.sent():.2f} (2.2); ${bill.dollars():.5f} a GB for requests, "
        f"${bill.dollars() * bill.produced_bytes / _GB / load.hours:.4f} an hour; {bill.objects:,} objects, {bill.ranges:,} ranges, {bill.most_ranges} at most in a partition; {bill.jobs} jobs, {bill.second_uploads} second uploads; "
        f"{bill.resident_bytes >> 20} MiB resident",
        flush=True,
    )


def _print_row(bill: Bill, title: str, used: Used) -> None:
    print(
        f"| {title} | {bill.per_gb(used.puts):,.1f} | {bill.per_gb(used.lists):,.1f} | {bill.per_gb(used.gets):,.1f}"
        f" | {used.sent_bytes / bill.produced_bytes:.3f} | {used.received_bytes / bill.produced_bytes:.3f} |"
    )


def _print_wal(settings: StorageSettings) -> None:
    print("\nWAL in a bucket, 100 partitions, a minute each; without compaction\n")
    print("| MB/s | batch_interval_ms | PUTs of the WAL a second | for a GB | bytes up, WAL | with uploads |")
    print("|---|---|---|---|---|---|")
    for megabytes, interval_ms in itertools.product(_WAL_MEGABYTES_PER_S, _WAL_INTERVALS_MS):
        load = Load(
            title="",
            partitions=100,
            bytes_per_s=megabytes * 1e6,
            payload_bytes=1000 if megabytes < 1 else 10_000,
            hours=1 / 60,
            tick_s=0.005,
            wal=ObjectWalConfig(store_uri="hollow://", batch_interval_ms=interval_ms),
        )
        bill = bill_for(load, settings)
        log = bill.usage.total(Purpose.WAL)
        log_share = log.sent_bytes / bill.appended_bytes
        print(
            f"| {megabytes:g} | {interval_ms} | {log.puts / (load.hours * 3600):.1f} | {log.puts / (bill.appended_bytes / _GB):,.0f}"
            f" | {log_share:.2f} | {log_share + bill.sent(Purpose.UPLOAD, Purpose.METADATA):.2f} |",
            flush=True,
        )


_LOADS = (
    Load(title="10 partitions, 10 MB/s each", partitions=10, bytes_per_s=100e6, payload_bytes=1_000_000, hours=0.2),
    Load(title="100 partitions, 100 KB/s each", partitions=100, bytes_per_s=10e6, payload_bytes=500_000, hours=0.5),
    Load(title="1,000 partitions, 10 KB/s each", partitions=1000, bytes_per_s=10e6, payload_bytes=50_000, hours=0.6),
    Load(
        title="10,000 partitions, 1 KiB/s each", partitions=10_000, bytes_per_s=10.24e6, payload_bytes=5120, hours=0.1
    ),
    Load(
        title="40 partitions, 10 KB/s each",
        partitions=40,
        bytes_per_s=400e3,
        payload_bytes=50_000,
        hours=24,
        tick_s=1.0,
    ),
    Load(
        title="uploads each 30 s: 40 partitions, 10 KB/s each",
        partitions=40,
        bytes_per_s=400e3,
        payload_bytes=50_000,
        hours=24,
        tick_s=1.0,
        upload_interval_ms=30_000,
    ),
    Load(
        title="100 partitions, 4 KB/s each",
        partitions=100,
        bytes_per_s=400e3,
        payload_bytes=20_000,
        hours=12,
        tick_s=1.0,
    ),
)
"""The last ones for their compaction, which goes through all its levels; so little comes in that the interval of uploads costs most."""
_WAL_INTERVALS_MS = (50, 100, 250, 1000)
_WAL_MEGABYTES_PER_S = (0.1, 1, 10, 50)


if __name__ == "__main__":
    main()
