"""What the metadata of a large cluster costs: `python -m bench controller`.

10,000 partitions, 100,000 objects of 10 ranges each: rates at which a leader decides and others apply, memory, snapshot, the
start of a node, and for how long the event loop stands still meanwhile. Then what three brokers that have nothing to do ask of the bucket.

Always true:
- The state machine runs in this process, on an object store in memory: figures are of the processor, requests take no time.
- The event loop's longest pause is processor time, as a task sees it that wants to run each millisecond.
- Garbage is collected as rarely as in a broker.
- A start is a process of its own, on a local directory with the snapshot and as many entries as there can be behind it.
- The brokers that idle are processes with default settings but for their memory, with all partitions of a topic spread over them; requests are
  those of `tidelog_object_store_billed_requests_total`, each S3's way of counting.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

from bench.broker import Broker, free_port, running_broker
from bench.cpu import cpu_seconds, resident_bytes
from broker.__main__ import GC_THRESHOLDS
from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.image import Applied
from controller.log import MetadataLog
from controller.node_metadata import NodeMetadata
from controller.replica import Replica
from controller.snapshot import digest
from s3stream.local import LocalObjectStore
from s3stream.memory import MemoryObjectStore
from s3stream.metadata import CommitObjects, NewObject, ObjectId, StreamId, StreamRange
from s3stream.metered import MeteredObjectStore, Purpose, Usage
from s3stream.paths import Paths

__all__ = ["run"]

_PARTITIONS = 10_000
_OBJECTS = 100_000
_RANGES = 10
"""Of each object."""
_RECORDS = 10
"""Of an entry that several commits share."""
_NODES = 3
_IDLE_S = 120.0
_SETTLE_S = 20.0
_TICK_S = 0.001
_TIMEOUT_S = 60.0
_MIB = 1 << 20
_NOW_MS = 1_700_000_000_000
_NO_SNAPSHOTS = ControllerSettings(snapshot_interval_entries=1 << 60, snapshot_interval_bytes=1 << 60)


def run(work_dir: Path) -> None:
    """Prints a line for each figure."""
    gc.set_threshold(*GC_THRESHOLDS)
    asyncio.run(_scale(work_dir / "start", _PARTITIONS, _OBJECTS, _RANGES))
    _start_alone(work_dir / "start")
    _idle(work_dir / "idle", _PARTITIONS, _IDLE_S)


def _report(name: str, value: float, unit: str) -> None:
    print(f"{name:<72} {value:12,.2f} {unit}", flush=True)


# ---- the state machine -----------------------------------------------------------------------------------------------


class _Pauses:
    """What the event loop's thread computed without giving others a turn."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.thread_time()
            self.longest_s = max(self.longest_s, now_s - last_s)
            last_s = now_s


@contextlib.asynccontextmanager
async def _pauses() -> AsyncIterator[_Pauses]:
    pauses = _Pauses()
    task = asyncio.create_task(pauses.watch())
    await asyncio.sleep(0)
    try:
        yield pauses
        await asyncio.sleep(2 * _TICK_S)
    finally:
        task.cancel()


async def _scale(directory: Path, partition_count: int, object_count: int, ranges_per_object: int) -> None:
    store = MemoryObjectStore()
    rng = random.Random(1)
    controller = await _controller(store, _NO_SNAPSHOTS)
    registration = await controller.register_node(1, "wal")
    metadata = controller.bind(1, registration.node_epoch)
    async with _pauses() as pauses:
        begun = time.process_time()
        await controller.create_topics([TopicSpec(name="bench", partition_count=partition_count)])
        _report(f"create a topic of {partition_count:,} partitions", (time.process_time() - begun) * 1e3, "ms CPU")
        topic = controller.image.topic("bench")
        assert topic is not None
        stream_ids = [partition.stream_id for partition in topic.partitions]
        begun = time.process_time()
        opened = await metadata.open_streams(stream_ids)
        _report(f"open {partition_count:,} streams", (time.process_time() - begun) * 1e3, "ms CPU")
    _report("  longest pause of the event loop", pauses.longest_s * 1e3, "ms")
    ends = dict.fromkeys(stream_ids, 0)
    leader_epoch = opened[0].leader_epoch

    gc.collect()
    before_mib = resident_bytes(os.getpid()) / _MIB
    object_ids = list(await metadata.new_object_ids(object_count))

    def new(object_id: ObjectId) -> NewObject:
        return _object(object_id, ends, rng.sample(stream_ids, ranges_per_object), leader_epoch)

    singly, together = object_ids[: object_count // 10], object_ids[object_count // 10 :]
    costs = [await _commit(metadata, [new(object_id)]) for object_id in singly]
    _report(
        f"commit an object of {ranges_per_object} ranges: decide, check, write, apply; p50",
        statistics.median(costs) * 1e6,
        "us CPU",
    )
    _report("  entries of one such record in a second", len(singly) / sum(costs), "")
    took = 0.0
    for first in range(0, len(together), _RECORDS):
        took += await _commit(metadata, [new(object_id) for object_id in together[first : first + _RECORDS]])
    _report(f"  records in a second, {_RECORDS} an entry", len(together) / took, "")
    range_count = object_count * ranges_per_object
    gc.collect()
    _report(
        "  memory of a leader (two states, log in memory not counted) for a range",
        _grown(store, before_mib) / range_count,
        "bytes",
    )
    wide = []
    for object_id in await metadata.new_object_ids(5):
        wide.append(await _commit(metadata, [_object(object_id, ends, stream_ids, leader_epoch)]))
    _report(f"commit an object of {partition_count:,} ranges", statistics.median(wide) * 1e3, "ms CPU")
    begun = time.perf_counter()
    for _ in range(100_000):
        metadata.locate(stream_ids[7], 0, limit=1)
    _report("locate one range", (time.perf_counter() - begun) * 10, "us")
    expected = digest(controller.image.state)
    await controller.close()
    del controller, metadata, topic

    await _apply_all(store, expected)
    await _snapshot(store)
    await _keep(store, directory)


async def _controller(store: MemoryObjectStore, settings: ControllerSettings) -> Controller:
    rng = random.Random(1)
    return await Controller.start(store=store, paths=Paths(), settings=settings, now_ms=lambda: _NOW_MS, rng=rng)


def _grown(store: MemoryObjectStore, before_mib: float) -> float:
    held = sum(len(stored.data) for key, stored in store.bucket.objects.items())
    return (resident_bytes(os.getpid()) / _MIB - before_mib) * _MIB - held


def _object(
    object_id: ObjectId, ends: dict[StreamId, int], stream_ids: Sequence[StreamId], leader_epoch: int
) -> NewObject:
    """An object with 100 records of each stream."""
    ranges = []
    for stream_id in sorted(stream_ids):
        base_offset = ends[stream_id]
        ends[stream_id] = base_offset + 100
        ranges.append(
            StreamRange(
                stream_id=stream_id,
                leader_epoch=leader_epoch,
                base_offset=base_offset,
                end_offset=base_offset + 100,
                record_count=100,
                size_bytes=100_000 + object_id,
                max_timestamp_ms=_NOW_MS + object_id,
                has_state=True,
            )
        )
    return NewObject(object_id=object_id, size_bytes=100_000 * len(ranges), ranges=tuple(ranges))


async def _commit(metadata: NodeMetadata, objects: Sequence[NewObject]) -> float:
    """Commit objects; returns CPU seconds."""
    begun = time.process_time()
    result = await metadata.commit_objects(CommitObjects(objects=tuple(objects)))
    assert not result.skipped
    return time.process_time() - begun


async def _apply_all(store: MemoryObjectStore, expected: str) -> None:
    """As a follower does, which has nothing but the log."""
    log = MetadataLog(store=store, paths=Paths(), settings=ControllerSettings(), rng=random.Random(2))
    replica = Replica(log)
    records = 0

    def count(applied: Applied) -> None:
        nonlocal records
        records += len(applied.records)

    replica.subscribe(count)
    async with _pauses() as pauses:
        begun = time.process_time()
        await replica.start()
        took = time.process_time() - begun
    assert digest(replica.image.state) == expected
    _report(
        f"read and apply {replica.next_index:,} entries, {records:,} records: entries in a second",
        replica.next_index / took,
        "",
    )
    _report("  records in a second", records / took, "")
    _report("  longest pause of the event loop", pauses.longest_s * 1e3, "ms")


async def _snapshot(store: MemoryObjectStore) -> None:
    """Taking office, and the snapshot that the log's length makes due."""
    controller = await _controller(store, ControllerSettings(snapshot_interval_entries=1, retained_entries=0))
    async with _pauses() as pauses:
        await controller.register_node(2, "another wal")
    _report("take office with a large state: longest pause of the event loop", pauses.longest_s * 1e3, "ms")
    async with _pauses() as pauses:
        begun = time.perf_counter()
        while not controller.snapshot_size_bytes or controller.takes_snapshot:  # noqa: ASYNC110 (a benchmark may spin)
            await asyncio.sleep(0)
        took = time.perf_counter() - begun
    _report("take, encode and write a snapshot, entries deleted", took, "s")
    _report("  longest pause of the event loop", pauses.longest_s * 1e3, "ms")
    _report("  its size", controller.snapshot_size_bytes / _MIB, "MiB")
    assert controller.snapshot_size_bytes
    await controller.close()
    controller = await _controller(store, _NO_SNAPSHOTS)
    metadata = controller.bind(1, controller.image.nodes[1].node_epoch)
    for _ in range(ControllerSettings().snapshot_interval_entries - 10):
        await metadata.new_object_ids(1000)  # an entry each
    await controller.close()


async def _keep(store: MemoryObjectStore, directory: Path) -> None:
    """Put what is in the bucket where another process finds it."""
    local = LocalObjectStore(directory)
    for key, stored in store.bucket.objects.items():
        await local.put(key, [stored.data])
    await local.close()


# ---- a start ---------------------------------------------------------------------------------------------------------


def _start_alone(directory: Path) -> None:
    """In a process of its own, so that memory and time are those of a start."""
    outcome = subprocess.run(
        [sys.executable, "-m", "bench.controller", "--start", str(directory)], check=True, capture_output=True
    )
    found = json.loads(outcome.stdout)
    _report("start of a node: snapshot and entries behind it read and applied", found["s"], "s")
    _report("  of the processor", found["cpu_s"], "s")
    _report("  longest pause of the event loop", found["pause_ms"], "ms")
    _report("  entries behind the snapshot", found["entries"], "")
    _report("  GETs", found["gets"], "")
    _report("  memory of the image", found["bytes"] / _MIB, "MiB")
    _report("  at most meanwhile", found["peak_bytes"] / _MIB, "MiB")


async def _start(directory: Path) -> None:
    usage = Usage()
    store = MeteredObjectStore(
        LocalObjectStore(directory), usage=usage, purpose=Purpose.METADATA, part_size_bytes=16 * _MIB
    )
    gc.collect()
    before_bytes = resident_bytes(os.getpid())
    begun, begun_cpu = time.perf_counter(), time.process_time()
    log = MetadataLog(store=store, paths=Paths(), settings=ControllerSettings(), rng=random.Random(3))
    replica = Replica(log)
    async with _pauses() as pauses:
        await replica.start()
    took_s, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    gc.collect()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "s": took_s,
                "cpu_s": cpu_s,
                "pause_ms": pauses.longest_s * 1e3,
                "entries": replica.entries_since_snapshot,
                "gets": usage.total().gets,
                "bytes": resident_bytes(os.getpid()) - before_bytes,
                "peak_bytes": peak_bytes - before_bytes,
            }
        )
    )
    await store.close()


# ---- nothing to do ---------------------------------------------------------------------------------------------------


def _idle(work_dir: Path, partition_count: int, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        nodes: dict[int, tuple[Broker, int]] = {}
        for node_id in range(1, _NODES + 1):
            controller_port, metrics_port = free_port(), free_port()
            settings: Mapping[str, object] = {
                "node.id": node_id,
                "object.store.uri": f"file://{work_dir}/objects",
                "controller.listeners": f"CONTROLLER://127.0.0.1:{controller_port}",
                "metrics.listeners": f"HTTP://127.0.0.1:{metrics_port}",
                "memory.bytes": 512 * _MIB,
            }
            broker = stack.enter_context(running_broker(work_dir / f"node{node_id}", settings))
            nodes[node_id] = broker, metrics_port
        first = nodes[1][0]
        first.create_topic("idle", partition_count)
        time.sleep(_SETTLE_S)
        for broker, _ in nodes.values():
            broker.wait_until_quiet(1.0)
        before = {node_id: (_billed(port), cpu_seconds(broker.pid)) for node_id, (broker, port) in nodes.items()}
        time.sleep(seconds)
        for node_id, (broker, port) in nodes.items():
            asked = _billed(port) - before[node_id][0]
            share = (cpu_seconds(broker.pid) - before[node_id][1]) / seconds
            office = "leads" if _metric(port, "tidelog_controller_leader") else "follows"
            for kind in ("put", "get", "list"):
                named = {purpose: count for (purpose, request), count in sorted(asked.items()) if request == kind}
                per_minute = sum(named.values()) * 60 / seconds
                _report(f"idle, node {node_id} {office}: {kind.upper()} a minute {named or ''}", per_minute, "")
            _report(f"idle, node {node_id} {office}: CPU", share * 100, "% of a core")


def _samples(port: int, name: str) -> Iterator[tuple[str, float]]:
    """Labels and value of each series."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_TIMEOUT_S) as response:
        for line in response.read().decode().splitlines():
            series, _, value = line.rpartition(" ")
            metric, _, labels = series.partition("{")
            if metric == name:
                yield labels, float(value)


def _metric(port: int, name: str) -> float:
    return sum(value for _, value in _samples(port, name))


def _billed(port: int) -> Counter[tuple[str, str]]:
    """Requests by purpose and kind."""
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in _samples(port, "tidelog_object_store_billed_requests_total"):
        named = dict(label.split("=", 1) for label in labels.rstrip("}").split(","))
        found[named["purpose"].strip('"'), named["request"].strip('"')] += int(value)
    return found


def main() -> int:
    """As a program by itself: smaller or larger, or only the start."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--start", type=Path, help="measure a start on this directory, and print JSON")
    arguments = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)
    asyncio.run(_start(arguments.start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
