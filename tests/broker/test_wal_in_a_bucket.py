"""A whole broker without any local state: objects, metadata and the write-ahead log are in a bucket, of each S3 server in turn."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.node import Node
from protocol.errors import ErrorCode
from protocol.messages.init_producer_id import InitProducerIdRequest
from s3stream.errors import NodeFenced
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.metered import MeteredObjectStore, Purpose
from s3stream.wal_objects import StoreForWal
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch
from tests.stores.s3_server import S3Server
from wal.errors import WalFenced, WalMismatch
from wal.object_wal import ObjectWal


@pytest.fixture
def bucket_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a prefix in a new bucket of each server, with credentials where AWS's own tools look for them."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.uri(s3_server.new_bucket())


@asynccontextmanager
async def serving(bucket_uri: str, directory: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`tidelog serve` in a process of its own, which is killed at the end; with the address that it serves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker", "serve"),
        *("--set", f"object.store.uri={bucket_uri}", "--set", f"wal.uri={bucket_uri}&batch_interval_ms=5"),
        *("--set", "listeners=PLAINTEXT://127.0.0.1:0", "--set", "upload.interval.ms=3600000"),
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("Tidelog serves Kafka on PLAINTEXT://"), line
        yield process, line.rpartition("//")[2].strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
def empty_disks(tmp_path: Path) -> list[Path]:
    """Where two processes could keep something, and must not."""
    directories = [tmp_path / "first", tmp_path / "second"]
    for directory in directories:
        directory.mkdir()
    return directories


async def test_a_killed_broker_is_recovered_on_a_machine_with_an_empty_disk(
    bucket_uri: str, empty_disks: list[Path]
) -> None:
    first, second = empty_disks
    values = [b"%04d" % n for n in range(50)]
    async with serving(bucket_uri, first) as (process, address):
        async with await Wire.connect(address) as wire:
            await wire.create_topic("t")
            for value in values:
                assert (await wire.produce("t", batch(value))).error_code == 0
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with serving(bucket_uri, second) as (_, address), await Wire.connect(address) as wire:
        assert await wire.fetch_all("t") == values, "nothing was uploaded: it comes from the log in the bucket"
        assert (await wire.produce("t", batch(b"next"))).base_offset == len(values)
    assert [entry for directory in empty_disks for entry in os.listdir(directory)] == [], "nothing is kept on a disk"


async def test_an_orderly_stop_leaves_next_to_nothing_in_the_log(start_node: StartNode, bucket_uri: str) -> None:
    wal_uri = f"{bucket_uri}&batch_interval_ms=0"
    async with (
        start_node(object_store_uri=bucket_uri, wal_uri=wal_uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        for n in range(20):
            assert (await wire.produce("t", batch(b"%d" % n))).error_code == 0
        wal = node.running.usage.of(Purpose.WAL)
        assert wal.puts > 20, "each record waited for a PUT, which the bill of the node has"
        assert wal.sent_bytes > 20 * len(batch(b"0"))
    async with start_node(object_store_uri=bucket_uri, wal_uri=wal_uri) as node:
        assert node.running.storage.recovered_bytes == 0
        left = [found.key async for found in node.running.store.list("some/prefix/wal/log/")]
        assert len(left) <= 4, "two fences, and the batch that says that all others are trimmed"
        async with await Wire.connect(node.bootstrap_servers) as wire:
            assert await wire.fetch_all("t") == [b"%d" % n for n in range(20)]


async def test_a_second_process_of_the_same_node_takes_over_and_the_first_acknowledges_nothing_more(
    start_node: StartNode, bucket_uri: str
) -> None:
    """I4, without any help from clocks or from the first one's good will."""
    wal_uri = f"{bucket_uri}&batch_interval_ms=0"
    async with (
        start_node(object_store_uri=bucket_uri, wal_uri=wal_uri, shutdown_timeout_ms=100) as first,
        await Wire.connect(first.bootstrap_servers) as to_first,
    ):
        await to_first.create_topic("t")
        for n in range(10):
            assert (await to_first.produce("t", batch(b"first %d" % n))).error_code == 0
        async with (
            start_node(object_store_uri=bucket_uri, wal_uri=wal_uri) as second,
            await Wire.connect(second.bootstrap_servers) as to_second,
        ):
            assert (await to_second.produce("t", batch(b"second"))).base_offset == 10
            assert (await to_first.produce("t", batch(b"too late"))).error_code != 0
            failure = await first.wait_failed()
            assert isinstance(failure.__cause__, WalFenced)
            assert "two processes run as this node" in str(failure)
            assert await to_second.fetch_all("t") == [*(b"first %d" % n for n in range(10)), b"second"]
            assert isinstance(second.running.storage.wal, ObjectWal)


async def test_a_superseded_process_stops_as_soon_as_the_metadata_tells_it(
    start_node: StartNode, bucket_uri: str
) -> None:
    """Also where nobody produces to it, so that its log does not find out."""
    wal_uri = f"{bucket_uri}&batch_interval_ms=0"
    async with (
        start_node(object_store_uri=bucket_uri, wal_uri=wal_uri, shutdown_timeout_ms=100) as first,
        await Wire.connect(first.bootstrap_servers) as to_first,
    ):
        await to_first.create_topic("t")
        assert (await to_first.produce("t", batch(b"first"))).error_code == 0
        async with start_node(object_store_uri=bucket_uri, wal_uri=wal_uri):
            answer = await to_first.call("InitProducerId", 4, InitProducerIdRequest(transactional_id=None))
            assert answer.error_code == ErrorCode.NOT_COORDINATOR
            failure = await first.wait_failed()
            assert isinstance(failure.__cause__, NodeFenced)
            assert "two processes run as this node" in str(failure)
            assert (await to_first.fetch("t")).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER


async def test_acknowledgements_wait_while_the_bucket_is_away(start_node: StartNode, bucket_uri: str) -> None:
    async with (
        start_node(object_store_uri=bucket_uri, wal_uri=f"{bucket_uri}&batch_interval_ms=0") as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        _wal_store(node).failing = True
        produced = asyncio.create_task(wire.produce("t", batch(b"patient")))
        await asyncio.sleep(0.05)
        assert not produced.done()
        _wal_store(node).failing = False
        assert (await produced).error_code == 0


async def test_the_log_of_another_cluster_is_left_alone(start_node: StartNode, bucket_uri: str, tmp_path: Path) -> None:
    async with start_node(object_store_uri=bucket_uri, wal_uri=bucket_uri):
        pass
    with pytest.raises(WalMismatch, match="give each cluster a prefix of its own"):
        async with start_node(object_store_uri=(tmp_path / "elsewhere").as_uri(), wal_uri=bucket_uri):
            pass


def _wal_store(node: Node) -> InstrumentedObjectStore:
    wal = node.running.storage.wal
    assert isinstance(wal, ObjectWal)
    assert isinstance(wal._objects, StoreForWal)
    assert isinstance(wal._objects._store, MeteredObjectStore)
    store = wal._objects._store._inner
    assert isinstance(store, InstrumentedObjectStore)
    return store
