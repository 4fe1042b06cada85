"""What metadata costs: memory, CPU on the event loop, size of snapshots, time to start.

    python -m bench.metadata [--partitions 10000] [--objects 100000] [--ranges 10]

Everything runs in this process on the in-memory object store: the figures are CPU, not requests. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.node_metadata import NodeMetadata
from controller.snapshot import capture, digest, encode
from s3stream.memory import MemoryObjectStore
from s3stream.metadata import CommitObjects, NewObject, ObjectId, StreamId, StreamRange
from s3stream.paths import Paths


def upload(
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
                max_timestamp_ms=1_700_000_000_000 + object_id,
                has_state=True,
            )
        )
    return NewObject(object_id=object_id, size_bytes=100_000 * len(ranges), ranges=tuple(ranges))


async def commit(metadata: NodeMetadata, objects: Sequence[NewObject]) -> float:
    """Commit objects; returns CPU seconds."""
    begun = time.process_time()
    result = await metadata.commit_objects(CommitObjects(objects=tuple(objects)))
    assert not result.skipped
    return time.process_time() - begun


def report(name: str, value: float, unit: str) -> None:
    print(f"{name:<58} {value:12,.2f} {unit}", flush=True)


def rss_mib() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


async def run(partition_count: int, object_count: int, ranges_per_object: int) -> None:
    store = MemoryObjectStore()
    rng = random.Random(1)

    async def start() -> Controller:
        return await Controller.start(
            store=store, paths=Paths(), settings=ControllerSettings(), now_ms=lambda: 1_700_000_000_000, rng=rng
        )

    controller = await start()
    registration = await controller.register_node(1, "wal")
    metadata = controller.bind(1, registration.node_epoch)
    before_mib = rss_mib()

    begun = time.process_time()
    await controller.create_topics([TopicSpec(name="bench", partition_count=partition_count)])
    report(f"create a topic of {partition_count:,} partitions", (time.process_time() - begun) * 1e3, "ms CPU")
    topic = controller.image.topic("bench")
    assert topic is not None
    stream_ids = [partition.stream_id for partition in topic.partitions]
    begun = time.process_time()
    opened = await metadata.open_streams(stream_ids)
    report(f"open {partition_count:,} streams", (time.process_time() - begun) * 1e3, "ms CPU")
    ends = dict.fromkeys(stream_ids, 0)
    leader_epoch = opened[0].leader_epoch

    costs = []
    for object_id in await metadata.new_object_ids(object_count):
        chosen = rng.sample(stream_ids, ranges_per_object)
        costs.append(await commit(metadata, [upload(object_id, ends, chosen, leader_epoch)]))
    report(f"commit an object with {ranges_per_object} ranges, p50", statistics.median(costs) * 1e6, "µs CPU")
    report(
        "  the same, p99.9 (snapshots, collections of garbage)", statistics.quantiles(costs, n=1000)[-1] * 1e3, "ms CPU"
    )
    range_count = object_count * ranges_per_object
    gc.collect()
    report("  memory per range, both states included", (rss_mib() - before_mib) * 2**20 / range_count, "bytes")

    wide = []
    for object_id in await metadata.new_object_ids(5):
        wide.append(await commit(metadata, [upload(object_id, ends, stream_ids, leader_epoch)]))
    report(f"commit an object with {partition_count:,} ranges", statistics.median(wide) * 1e3, "ms CPU")

    begun = time.perf_counter()
    for _ in range(100_000):
        metadata.locate(stream_ids[7], 0, limit=1)
    report("locate one range", (time.perf_counter() - begun) * 10, "µs")

    begun = time.process_time()
    taken = capture(controller.image.state, controller.applied_index)
    report("capture for a snapshot (blocks the loop)", (time.process_time() - begun) * 1e3, "ms CPU")
    begun, longest, size_bytes = time.process_time(), 0.0, 0
    for part in encode(taken):
        longest = max(longest, time.process_time() - begun)
        size_bytes += len(part)
        begun = time.process_time()
    report("longest step of encoding it", longest * 1e3, "ms CPU")
    report("snapshot", size_bytes / 2**20, "MiB")

    expected = digest(controller.image.state)
    await controller.close()
    begun = time.process_time()
    restarted = await start()
    report(f"start with {range_count:,} ranges in {object_count:,} objects", time.process_time() - begun, "s CPU")
    assert digest(restarted.image.state) == expected
    await restarted.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=10_000)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--ranges", type=int, default=10, help="ranges per object")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.partitions, arguments.objects, arguments.ranges))
    return 0


if __name__ == "__main__":
    sys.exit(main())
