"""Beside a broker that writes, compacts, retains, deletes and collects: no false finding. And on S3."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.inspect.bucket import Bucket, open_bucket
from broker.node import Node
from broker.verify.findings import Finding, SummaryRow, UncheckedRow
from broker.verify.verify import Progress, Verification
from s3stream.compactor import Compactor
from s3stream.config import CollectionSettings, CompactionSettings
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.paths import Paths
from tests.broker.conftest import StartNode
from tests.broker.kept import upload_all
from tests.broker.test_on_s3 import bucket_uri  # noqa: F401  (a fixture)
from tests.broker.wire import Wire, batch

PASSES = 8


async def load(node: Node, wire: Wire, done: asyncio.Event) -> None:
    """Produce, upload, delete records, and let a topic come and go."""
    number = 0
    while not done.is_set():
        for partition in (0, 1):
            assert (await wire.produce("t", batch(bytes(5_000)), partition=partition)).error_code == 0
        if number % 5 == 0:
            name = f"fleeting-{number}"
            await wire.create_topic(name)
            await wire.produce(name, batch(b"soon gone"))
            node.running.storage.seal()
            topic = node.running.broker.topics.by_name[name]
            await node.running.broker.controller.delete_topics([topic.topic_id])
        if number % 3 == 0:
            partition = node.running.broker.topics.by_name["t"].partitions[0]
            assert partition is not None
            await partition.stream.trim(partition.high_watermark - number % 2)  # as DeleteRecords does
        await upload_all(node)
        number += 1


async def compact(node: Node, paths: Paths, done: asyncio.Event) -> int:
    """Merge as soon as there are two neighbours, far more often than a broker does."""
    controller = node.running.broker.controller
    settings = node.settings
    compactor = Compactor(
        store=node.running.store,
        paths=paths,
        metadata=controller.bind(settings.node_id, controller.image.nodes[settings.node_id].node_epoch),
        settings=CompactionSettings(fan_in=2, max_fan_in=2),
        block_size_bytes=64 << 10,
        rng=random.Random(0),
    )
    count = 0
    while not done.is_set():
        count += await compactor.run_once()
        await asyncio.sleep(0.01)
    return count


async def test_no_false_finding_beside_a_broker_that_compacts_and_collects(
    start_node: StartNode, tmp_path: Path
) -> None:
    done = asyncio.Event()
    async with (
        start_node(
            log_segment_delete_delay_ms=0,
            metadata_restore_window_ms=0,
            metadata_log_max_record_bytes_between_snapshots=1 << 10,
            log_retention_bytes=1 << 20,
        ) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
        open_bucket((tmp_path / "objects").as_uri(), random.Random(0)) as opened,
    ):
        slow = InstrumentedObjectStore(opened.store)
        slow.delay_ms = 3  # so that much happens between any two reads
        opened.log._store = slow
        bucket = Bucket(store=slow, paths=opened.paths, log=opened.log)
        await wire.create_topic("t", partitions=2)
        await wire.produce("t", batch(b"first"))
        await upload_all(node)
        loading = asyncio.create_task(load(node, wire, done))
        compacting = asyncio.create_task(compact(node, bucket.paths, done))
        kinds: Counter[str] = Counter()
        found: list[object] = []
        try:
            for _ in range(PASSES):
                async for row in Verification(bucket=bucket, settings=CollectionSettings(), parallel=2).rows():
                    kinds[type(row).__name__] += 1
                    if isinstance(row, Finding | UncheckedRow):
                        found.append(row)
                    if isinstance(row, SummaryRow):
                        assert row.objects > 0
                    assert not loading.done(), loading.exception()
        finally:
            done.set()
            await asyncio.wait([loading, compacting])
        await loading
        assert found == []
        assert kinds["SummaryRow"] == PASSES
        assert await compacting > 3, "objects were replaced meanwhile"


async def test_a_store_that_goes_away_leaves_things_unchecked_and_finds_nothing(
    start_node: StartNode, tmp_path: Path
) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for _ in range(3):
            await wire.produce("t", batch(b"x"))
            await upload_all(node)
    async with open_bucket((tmp_path / "objects").as_uri(), random.Random(0)) as opened:
        store = InstrumentedObjectStore(opened.store)
        bucket = Bucket(store=store, paths=opened.paths, log=opened.log)

        def away(progress: Progress) -> None:
            store.failing = progress.objects >= 1

        run = Verification(bucket=bucket, settings=CollectionSettings(), parallel=1, on_progress=away)
        rows = [row async for row in run.rows()]

        assert (run.findings, run.unchecked) == (0, 3), "two objects, and what is not referenced"
        assert [type(row) for row in rows] == [UncheckedRow, UncheckedRow, UncheckedRow, SummaryRow]
        assert rows[-1].text().endswith("\nno findings; 3 not checked")


async def test_a_bucket_on_s3(start_node: StartNode, bucket_uri: str, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    async with start_node(object_store_uri=bucket_uri) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for number in range(3):
            await wire.produce("t", batch(b"%d" % number))
            await upload_all(node)
        keys = [summary.key async for summary in node.running.store.list("some/prefix/data/")]
    assert await asyncio.to_thread(main, ["--log-level", "error", "verify", "--bucket", bucket_uri]) == 0
    assert capsys.readouterr().out.endswith("clean: no findings\n")

    async with start_node(object_store_uri=bucket_uri) as node:
        await node.running.store.delete_many(keys[:1])
        assert await asyncio.to_thread(main, ["--log-level", "error", "verify", "--bucket", bucket_uri]) == 1
    assert "FINDING object-missing: object " in capsys.readouterr().out
