"""Consumers that read from objects while those are merged and deleted under them, on every store: nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.node import Node
from tests.broker.compaction.test_process import compaction_of, fill
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, records_in
from tests.stores.process import PROCESSES
from tests.stores.s3_server import S3Server

WITHOUT_GRACE = {"log_segment_delete_delay_ms": 1, "metadata_restore_window_ms": 0}
"""Objects are deleted as soon as they are replaced: what was found a moment ago may be gone."""


@pytest.fixture(params=["file", *PROCESSES])  # moto serves by threads of this very process: too slow for this
def store_uri(
    request: pytest.FixtureRequest,
    s3_server_named: Callable[[str], S3Server],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    if request.param == "file":
        return (tmp_path / "objects").as_uri()
    server = s3_server_named(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.uri(server.new_bucket())


async def test_reads_in_flight_survive(start_node: StartNode, store_uri: str) -> None:
    never = {"compaction_interval_ms": 1 << 30, "compaction_log_cache_enable": False}
    async with (
        start_node(object_store_uri=store_uri, **never) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        values = await fill(node, wire, 40)
    # A new start has nothing in its log cache: all is read from objects.
    async with (
        start_node(object_store_uri=store_uri, compaction_interval_ms=20, **WITHOUT_GRACE) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        stop = asyncio.Event()
        readers = [asyncio.create_task(_read_on(node, values, stop)) for _ in range(3)]
        compaction, collector = compaction_of(node), node.running.collector
        while not compaction.jobs or collector.deleted_objects < 20:
            await asyncio.sleep(0.01)
            assert not any(reader.done() for reader in readers)
        stop.set()
        assert all(await asyncio.gather(*readers)), "each read everything at least once"
        assert await wire.fetch_all("t") == values


async def _read_on(node: Node, values: list[bytes], stop: asyncio.Event) -> int:
    """Read a partition from its start, again and again; returns how often."""
    times = 0
    async with await Wire.connect(node.bootstrap_servers) as wire:
        while not stop.is_set():
            found: list[bytes | None] = []
            while len(found) < len(values):
                data = await wire.fetch("t", len(found))
                assert data.error_code == 0
                # Each record is a batch of its own; none came where the store was slower than the fetch would wait.
                found += [record.value for record in (records_in(data) if data.records else ())]
            assert found[: len(values)] == values
            times += 1
    return times
