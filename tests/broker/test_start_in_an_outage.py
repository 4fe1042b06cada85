"""A start waits for a bucket that does not answer, at every step, and serves what was acknowledged when it does."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from s3stream.memory import MemoryObjectStore
from s3stream.objectstore import Unavailable
from s3stream.paths import Paths
from s3stream.probe import probe
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch
from tests.s3stream.faulty_proxy import PASSING, Fault, FaultyProxy, proxied
from tests.s3stream.moto import endpoint_url, new_bucket

VALUES = [b"%04d" % n + bytes(1000) for n in range(50)]


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    with proxied(endpoint_url()) as started:
        yield started


@pytest.fixture
async def uri(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, through the proxy."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    store = await new_bucket()
    await store.close()
    return f"s3://{store._bucket}/tide?region=us-east-1&path_style=true&endpoint={proxy.url}"


def none(method: str, target: str) -> Fault:
    return Fault.NONE


def after(passed: int, failing: int) -> Callable[[str, str], Fault]:
    """So many requests pass, then so many in a row do not."""
    numbers = itertools.count()
    return lambda method, target: Fault.SLOW_DOWN if passed <= next(numbers) < passed + failing else Fault.NONE


def anything(seed: int) -> Callable[[str, str], Fault]:
    rng = random.Random(seed)
    return lambda method, target: rng.choice(PASSING) if rng.random() < 0.3 else Fault.NONE


async def produced(start_node: StartNode, uri: str, changes: dict[str, str], proxy: FaultyProxy) -> None:
    """Values that are acknowledged and lie in the WAL alone, as after a crash."""
    async with start_node(object_store_uri=uri, **changes) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for value in VALUES:
            assert (await wire.produce("t", batch(value))).error_code == 0
        # Whatever the end of this block would upload does not get there: the next start recovers.
        node.running.store.failing = True


@pytest.mark.parametrize(
    ("wal", "faults"),
    [
        ("disk", lambda: after(0, 5)),
        ("disk", lambda: after(14, 5)),
        ("disk", lambda: after(20, 5)),
        ("disk", lambda: anything(1)),
        ("bucket", lambda: after(30, 5)),
        ("bucket", lambda: anything(2)),
    ],
    ids=["from the first request", "in the controller", "at registration", "any fault", "WAL in the bucket", "both"],
)
async def test_a_start_gets_over_it(
    start_node: StartNode, uri: str, proxy: FaultyProxy, wal: str, faults: Callable[[], Callable[[str, str], Fault]]
) -> None:
    changes = {"wal_uri": f"{uri}&batch_interval_ms=10"} if wal == "bucket" else {}
    await produced(start_node, uri, {**changes, "shutdown_timeout_ms": 100}, proxy)
    proxy.seen.clear()
    proxy.fault_of = faults()
    async with start_node(object_store_uri=uri, **changes) as node:
        assert sum(proxy.seen[fault] for fault in PASSING) >= 3
        assert node.running.storage.recovered_bytes > len(VALUES) * 1000
        proxy.fault_of = none
        async with await Wire.connect(node.bootstrap_servers) as wire:
            assert await wire.fetch_all("t") == VALUES
            assert (await wire.produce("t", batch(b"next"))).base_offset == len(VALUES)


async def test_a_broker_works_on_while_every_third_request_fails(
    start_node: StartNode, uri: str, proxy: FaultyProxy
) -> None:
    proxy.fault_of = anything(3)
    async with start_node(object_store_uri=uri) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=2)
        for round_number in range(4):
            for value in VALUES:
                assert (await wire.produce("t", batch(value), partition=round_number % 2)).error_code == 0
            node.running.storage.seal()
    assert sum(proxy.seen[fault] for fault in PASSING) > 5
    async with start_node(object_store_uri=uri) as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await wire.fetch_all("t") == VALUES * 2
        assert await wire.fetch_all("t", partition=1) == VALUES * 2


async def test_a_probe_waits_beyond_the_patience_of_its_store() -> None:
    store = MemoryObjectStore()
    store.outage = True
    asyncio.get_running_loop().call_later(0.1, setattr, store, "outage", False)
    await probe(store, Paths(), "nonce", patience_ms=60_000)
    assert store.bucket.keys == []
    store.outage = True
    with pytest.raises(Unavailable):
        await probe(store, Paths(), "nonce", patience_ms=10)
