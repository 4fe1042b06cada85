"""A lost WAL that was given up: what was uploaded is served, what is new goes on past a gap, and nobody gets stuck in it."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.node import Node
from controller.errors import NodeRefused
from s3stream.compactor import Compactor
from s3stream.config import CompactionSettings
from s3stream.paths import Paths
from tests.broker.conftest import StartNode
from tests.broker.kept import upload_all
from tests.broker.wire import Wire, batch, eventually

GAP = 1000


@pytest.fixture
async def lost(start_node: StartNode, tmp_path: Path) -> str:
    """A bucket whose node lost its disk with one acknowledged record on it; returns the WAL's id."""
    async with start_node(upload_interval_ms=600_000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        await wire.produce("t", batch(b"0", b"1", producer_id=5, producer_epoch=0, base_sequence=0))
        await upload_all(node)
        await wire.produce("t", batch(b"lost", producer_id=5, producer_epoch=0, base_sequence=2))
        await asyncio.to_thread(shutil.copytree, tmp_path / "objects", tmp_path / "bucket")
        return node.running.wal_id


async def abandon(tmp_path: Path, wal_id: str, *arguments: str) -> int:
    """On a machine that does not have the WAL (any more)."""
    places = ["--bucket", (tmp_path / "bucket").as_uri(), "--set", f"wal.uri={(tmp_path / 'new-wal').as_uri()}"]
    command = ["--log-level", "error", "wal", "abandon", wal_id, "--slack-offsets", str(GAP), *places, *arguments]
    return await asyncio.to_thread(main, command)


@pytest.fixture
async def node(start_node: StartNode, lost: str, tmp_path: Path) -> AsyncIterator[Node]:
    """The node again, on a new disk, after the old one was given up."""
    places = {
        "wal_uri": f"{(tmp_path / 'new-wal').as_uri()}?capacity=16MiB",
        "object_store_uri": (tmp_path / "bucket").as_uri(),
    }
    with pytest.raises(NodeRefused, match="give it up with `tidelog wal abandon"):
        async with start_node(**places):
            pass
    assert await abandon(tmp_path, lost, "--yes") == 0
    async with start_node(**places) as running:
        yield running


async def test_the_partition_goes_on_past_the_gap(node: Node) -> None:
    async with await Wire.connect(node.bootstrap_servers) as wire:
        await eventually(lambda: not node.running.broker.partitions.loading_count, "the partition's state")
        assert (await wire.produce("t", batch(b"new"))).base_offset == 2 + GAP
        assert await wire.fetch_all("t") == [b"0", b"1", b"new"]
        for offset in (2, 500, 2 + GAP):
            assert await wire.fetch_values("t", offset) == [b"new"], "as Kafka after compaction: the next that there is"
        await upload_all(node)
        assert await wire.fetch_all("t") == [b"0", b"1", b"new"]
        # What the idempotent producer sent last is known up to the upload; its retry of what was lost is taken.
        again = await wire.produce("t", batch(b"lost", producer_id=5, producer_epoch=0, base_sequence=2))
        assert (again.error_code, again.base_offset) == (0, 3 + GAP)


async def test_whoever_reads_at_the_old_end_is_led_to_the_new_one_and_waits_there(node: Node) -> None:
    async with await Wire.connect(node.bootstrap_servers) as reader, await Wire.connect(node.bootstrap_servers) as wire:
        await eventually(lambda: not node.running.broker.partitions.loading_count, "the partition's state")
        assert await reader.fetch_all("t") == [b"0", b"1"], (
            "it comes to the high watermark, though the last offsets are gone"
        )
        assert await reader.fetch_values("t", 2, max_wait_ms=30_000) == []
        waiting = asyncio.create_task(reader.fetch_values("t", 2 + GAP, max_wait_ms=30_000))
        await eventually(lambda: node.running.broker.waiting_fetches.fetch_count == 1, "a fetch that waits")
        assert not waiting.done()
        await wire.produce("t", batch(b"new"))
        assert await waiting == [b"new"]


async def test_the_bucket_is_sound_afterwards(node: Node, tmp_path: Path) -> None:
    async with await Wire.connect(node.bootstrap_servers) as wire:
        await eventually(lambda: not node.running.broker.partitions.loading_count, "the partition's state")
        await wire.produce("t", batch(b"new"))
        await upload_all(node)
    command = ["--log-level", "error", "verify", "--bucket", (tmp_path / "bucket").as_uri()]
    assert await asyncio.to_thread(main, command) == 0


async def test_compaction_merges_on_either_side_of_the_gap_and_not_over_it(node: Node, tmp_path: Path) -> None:
    async with await Wire.connect(node.bootstrap_servers) as wire:
        await eventually(lambda: not node.running.broker.partitions.loading_count, "the partition's state")
        for number in range(2):
            await wire.produce("t", batch(b"new %d" % number))
            await upload_all(node)
        controller = node.running.broker.controller
        compactor = Compactor(
            store=node.running.store,
            paths=Paths(),
            metadata=controller.bind(1, controller.image.nodes[1].node_epoch),
            settings=CompactionSettings(fan_in=2, max_fan_in=2),
            block_size_bytes=64 << 10,
            rng=random.Random(0),
        )
        while await compactor.run_once():
            pass
        (stream,) = [each for each in controller.image.state.tables.streams.values() if each.ranges]
        assert [(each.base_offset, each.end_offset, each.record_count) for each in stream.ranges] == [
            (0, 2, 2),
            (2 + GAP, 4 + GAP, 2),
        ]
        assert await wire.fetch_all("t") == [b"0", b"1", b"new 0", b"new 1"]
        assert await wire.fetch_values("t", 500) == [b"new 0", b"new 1"]
    command = ["--log-level", "error", "verify", "--bucket", (tmp_path / "bucket").as_uri()]
    assert await asyncio.to_thread(main, command) == 0


async def test_nothing_is_done_before_it_is_confirmed(
    lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in (tmp_path / "bucket/metadata/log").iterdir())

    assert await abandon(tmp_path, lost, "--json") == 2

    partition, cost, note = map(json.loads, capsys.readouterr().out.splitlines())
    assert (partition["partition"], partition["committed_end_offset"], partition["resume_offset"]) == (
        "t-0",
        2,
        2 + GAP,
    )
    assert cost["cost"] == "node 1 worked alone, so nobody else knows what it had acknowledged and not uploaded"
    assert (cost["records"], cost["left_records"]) == (-1, -1)
    assert cost["newest_object_at_ms"] > 0
    assert note["message"].startswith("nothing was done.")
    assert sorted(path.name for path in (tmp_path / "bucket/metadata/log").iterdir()) == before


async def test_a_wal_that_is_here_or_unknown_is_refused(
    lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--set", f"wal.uri={(tmp_path / 'wal').as_uri()}"]
    assert await abandon(tmp_path, lost, "--yes", *here) == 2
    assert "is here, in" in capsys.readouterr().err
    await asyncio.to_thread((tmp_path / "wal/wal").write_bytes, bytes(1 << 16))
    assert await abandon(tmp_path, lost, "--yes", *here) == 2
    assert "neither copy of the WAL header is intact" in capsys.readouterr().err
    assert await abandon(tmp_path, "00" * 16, "--yes") == 2
    assert "there is nothing to abandon" in capsys.readouterr().err


async def test_a_wal_that_is_in_its_bucket_is_refused(
    start_node: StartNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wal_uri = f"objects+{(tmp_path / 'objects').as_uri()}"
    async with start_node(wal_uri=wal_uri, shutdown_timeout_ms=0) as node:
        async with await Wire.connect(node.bootstrap_servers) as wire:
            await wire.create_topic("t")
            await wire.produce("t", batch(b"in the log"))
        wal_id = node.running.wal_id
    places = ["--bucket", (tmp_path / "objects").as_uri(), "--set", f"wal.uri={wal_uri}"]
    command = ["--log-level", "error", "wal", "abandon", wal_id, *places, "--yes"]
    assert await asyncio.to_thread(main, command) != 0
    assert "start the broker, which recovers it" in capsys.readouterr().err
