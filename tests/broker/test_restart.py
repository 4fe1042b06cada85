"""What outlives the process: records, offsets, producer state, leader epochs."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from broker.config import BrokerSettings
from broker.node import Node
from controller.errors import NodeRefused
from protocol.messages.init_producer_id import InitProducerIdRequest
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch
from wal.errors import WalError


def numbered(pid: int, sequence: int, *values: bytes) -> bytes:
    return batch(*values, producer_id=pid, producer_epoch=0, base_sequence=sequence)


async def test_duplicates_are_known_after_an_orderly_restart(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        pid = (await wire.call("InitProducerId", 4, InitProducerIdRequest(transactional_id=None))).producer_id
        for sequence in range(3):
            await wire.produce("t", numbered(pid, sequence, b"%d" % sequence))
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert (await wire.produce("t", numbered(pid, 1, b"1"))).base_offset == 1
        assert (await wire.produce("t", numbered(pid, 5, b"5"))).error_code == 45
        assert (await wire.produce("t", numbered(pid, 3, b"3"))).base_offset == 3
        assert await wire.fetch_all("t") == [b"0", b"1", b"2", b"3"]
        other = (await wire.call("InitProducerId", 4, InitProducerIdRequest(transactional_id=None))).producer_id
        assert other != pid


async def test_everything_acknowledged_is_known_after_a_crash(node: Node, wire: Wire, tmp_path: Path) -> None:
    """The disk at some moment, as a crash would leave it: some of the state in objects, the rest in the WAL."""
    await wire.create_topic("t")
    pid = (await wire.call("InitProducerId", 4, InitProducerIdRequest(transactional_id=None))).producer_id
    for sequence in range(4):
        await wire.produce("t", numbered(pid, sequence, b"%d" % sequence))
    node.running.storage.seal()
    partition = node.running.broker.topics.by_name["t"].partitions[0]
    assert partition is not None
    await node.running.storage.flush(partition.stream.stream_id, 4)
    for sequence in range(4, 7):
        await wire.produce("t", numbered(pid, sequence, b"%d" % sequence))

    crashed = tmp_path / "crashed"
    await asyncio.to_thread(shutil.copytree, tmp_path / "wal", crashed / "wal")
    await asyncio.to_thread(shutil.copytree, tmp_path / "objects", crashed / "objects")
    settings = BrokerSettings(
        listeners="PLAINTEXT://127.0.0.1:0",
        wal_uri=f"{(crashed / 'wal').as_uri()}?capacity=16MiB",
        object_store_uri=(crashed / "objects").as_uri(),
        memory_bytes=128 << 20,
    )
    async with Node(settings) as again, await Wire.connect(again.bootstrap_servers) as client:
        assert await client.fetch_all("t") == [b"%d" % n for n in range(7)]
        for sequence in (3, 6):  # one from the state block's side, one from the WAL's
            assert (await client.produce("t", numbered(pid, sequence, b"%d" % sequence))).base_offset == sequence
        assert (await client.produce("t", numbered(pid, 7, b"7"))).base_offset == 7
        # The new leadership has a higher epoch, and the old records keep theirs.
        latest = await client.list_offset("t", -1)
        earliest = await client.list_offset("t", -2)
        assert (earliest.leader_epoch, latest.leader_epoch) == (0, 1)


async def test_an_empty_disk_is_refused_where_the_lost_one_may_hold_records(
    start_node: StartNode, tmp_path: Path
) -> None:
    async with start_node(shutdown_timeout_ms=100) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        node.running.store.failing = True  # so the stop cannot upload: what was acknowledged is in the log alone
        await wire.produce("t", batch(b"only in the log"))
    (tmp_path / "wal").rename(tmp_path / "away")
    with pytest.raises(NodeRefused, match="may hold acknowledged records that no object holds"):
        async with start_node():
            pass
    shutil.rmtree(tmp_path / "wal")
    (tmp_path / "away").rename(tmp_path / "wal")
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await wire.fetch_all("t") == [b"only in the log"]


async def test_a_copy_of_the_disk_from_before_the_last_start_is_refused(start_node: StartNode, tmp_path: Path) -> None:
    """I1, I2: what was acknowledged since is not on it, and its offsets would be given out again."""
    async with start_node(shutdown_timeout_ms=100) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        node.running.store.failing = True
        await wire.produce("t", batch(b"before"))
    shutil.copytree(tmp_path / "wal", tmp_path / "copy")
    async with start_node(shutdown_timeout_ms=100) as node, await Wire.connect(node.bootstrap_servers) as wire:
        node.running.store.failing = True
        assert (await wire.produce("t", batch(b"after"))).base_offset == 1
    (tmp_path / "wal").rename(tmp_path / "newest")
    (tmp_path / "copy").rename(tmp_path / "wal")
    with pytest.raises(NodeRefused, match="this is an older copy of the disk"):
        async with start_node():
            pass
    shutil.rmtree(tmp_path / "wal")
    (tmp_path / "newest").rename(tmp_path / "wal")
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await wire.fetch_all("t") == [b"before", b"after"]


async def test_another_nodes_disk_is_refused(start_node: StartNode) -> None:
    async with start_node():
        pass
    with pytest.raises(WalError, match="belongs to node 1, this is node 2"):
        async with start_node(node_id=2):
            pass


async def test_the_high_watermark_is_there_at_once(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=100)
        for partition in range(0, 100, 7):
            await wire.produce("t", batch(b"a", b"b"), partition=partition)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        for partition in range(100):
            expected = 2 if partition % 7 == 0 else 0
            assert (await wire.list_offset("t", -1, partition=partition)).offset == expected


async def test_a_stop_during_an_outage_is_bounded_and_loses_nothing(start_node: StartNode) -> None:
    async with start_node(shutdown_timeout_ms=100) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        node.running.store.failing = True
        for n in range(20):
            await wire.produce("t", batch(b"%d" % n))
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await wire.fetch_all("t") == [b"%d" % n for n in range(20)]
        assert (await wire.produce("t", batch(b"next"))).base_offset == 20
