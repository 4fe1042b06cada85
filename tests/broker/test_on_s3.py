"""A whole broker on each S3 server that is to be had here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.__main__ import main
from broker.wiring.lookout import LogReader
from controller.config import ControllerSettings
from controller.entry import EntryHeader, encode_entry
from controller.records import NodeUnregistered, encode_records
from s3stream.config import ObjectStoreSettings
from s3stream.memory import MemoryObjectStore
from s3stream.metered import Purpose, Usage
from s3stream.objectstore import AccessDenied, Buffer, NotFound
from s3stream.open import open_object_store
from s3stream.probe import UnsuitableObjectStore
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually
from tests.stores.process import PROCESSES
from tests.stores.s3_server import S3Server

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def bucket_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a prefix in a new bucket of each server, with credentials where AWS's own tools look for them."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.uri(s3_server.new_bucket())


async def test_what_was_produced_is_read_back_from_the_bucket(start_node: StartNode, bucket_uri: str) -> None:
    values = [b"%04d" % n + bytes(10_000) for n in range(200)]
    async with start_node(object_store_uri=bucket_uri) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=2)
        for value in values:
            assert (await wire.produce("t", batch(value))).error_code == 0
        await wire.produce("t", batch(b"other"), partition=1)
        storage = node.running.storage
        storage.seal()
        await eventually(lambda: storage._wal.trim_offset == storage._wal.durable_offset, "an upload and a trim")
        written = node.running.store.bytes_written
        assert written > 2_000_000
    async with start_node(object_store_uri=bucket_uri) as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert node.running.storage.recovered_bytes == 0, "nothing was left in the WAL: it comes from objects"
        assert await wire.fetch_all("t") == values
        assert await wire.fetch_all("t", partition=1) == [b"other"]
        assert node.running.store.bytes_read > 2_000_000
        assert (await wire.produce("t", batch(b"next"))).base_offset == len(values)


async def test_a_thread_reads_the_metadata_log_with_a_client_of_its_own(bucket_uri: str) -> None:
    """As for the lease, while the event loop is late: here it is blocked the whole time."""
    opened = open_object_store(bucket_uri, rng=random.Random(0))
    record = NodeUnregistered(node_id=7)
    header = EntryHeader(index=3, controller_epoch=1, nonce=bytes(16))
    await opened.store.put(opened.paths.log_entry(3), encode_entry(header, encode_records([record])))
    await opened.store.close()
    usage = Usage()

    async def read(uri: str) -> None:
        settings = ObjectStoreSettings(request_timeout_ms=10_000, deadline_ms=10_000)
        controller_settings = ControllerSettings()
        reader = LogReader(
            uri, settings=settings, controller_settings=controller_settings, usage=usage, rng=random.Random(0)
        )
        try:
            found = await reader.read_entry(3)
            assert found is not None
            assert (found.header, list(found.records)) == (header, [record])
            assert await reader.read_entry(4) is None, "a 404 is an answer"
        finally:
            await reader.close()

    def read_in_a_thread(uri: str) -> None:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(asyncio.run, read(uri)).result()

    read_in_a_thread(bucket_uri)
    assert usage.of(Purpose.LEASE).gets == 2
    with pytest.raises((AccessDenied, NotFound)):  # which extends no lease
        read_in_a_thread(bucket_uri.replace("s3://new-", "s3://no-"))


class WithoutConditions(MemoryObjectStore):
    """As some stores that speak S3: takes If-None-Match, and writes whatever is there."""

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        return await self.put(key, parts)


async def test_a_store_without_conditional_writes_is_refused_at_start(start_node: StartNode) -> None:
    with pytest.raises(UnsuitableObjectStore, match="ignores If-None-Match: without conditional writes two nodes can"):
        async with start_node(wrap_store=lambda _: WithoutConditions()):
            pass


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command that ends by itself, with some credentials; its exit status and what it printed as an error."""

    def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status = main(["--log-level", "error", *arguments])
        return status, capsys.readouterr().err

    return run


def test_a_bucket_that_is_not_there_is_one_line(s3_server: S3Server, run: Run) -> None:
    status, error = run(s3_server.environment, "serve", "--set", f"object.store.uri={s3_server.uri('nowhere')}")
    assert status == 1
    (line,) = error.splitlines()
    assert line.startswith("tidelog: ")
    assert "nowhere" in line


@pytest.mark.parametrize(
    ("wrong", "what_to_do"),
    [("AWS_ACCESS_KEY_ID", "check the access key"), ("AWS_SECRET_ACCESS_KEY", "check the secret key")],
)
@pytest.mark.parametrize("name", PROCESSES)
def test_credentials_that_a_store_refuses_are_one_line(
    name: str, wrong: str, what_to_do: str, s3_server_named: Callable[[str], S3Server], run: Run
) -> None:
    server = s3_server_named(name)
    bucket = server.new_bucket()
    environment = server.environment | {wrong: "wrong"}
    status, error = run(environment, "serve", "--set", f"object.store.uri={server.uri(bucket)}")
    assert status == 1
    (line,) = error.splitlines()
    assert line.startswith("tidelog: ")
    assert what_to_do in line
    assert server.keys(bucket) == []


@pytest.mark.parametrize("name", PROCESSES)
async def test_credentials_that_may_only_read_do_for_tools_and_not_for_a_broker(
    name: str,
    s3_server_named: Callable[[str], S3Server],
    start_node: StartNode,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = s3_server_named(name)
    bucket = server.new_bucket()
    uri = server.uri(bucket)
    for variable, value in server.environment.items():
        monkeypatch.setenv(variable, value)
    async with start_node(object_store_uri=uri) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        assert (await wire.produce("t", batch(b"kept"))).error_code == 0
    before = server.keys(bucket)
    reader = server.reader_environment()

    status, error = await asyncio.to_thread(run, reader, "verify", "--bucket", uri)
    assert (status, error) == (0, "")
    with pytest.raises(AccessDenied, match="put, get, list and delete under 'some/prefix' must be allowed"):
        async with start_node(object_store_uri=uri):
            pass
    assert server.keys(bucket) == before
