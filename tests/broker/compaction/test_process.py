"""Compaction in a process of its own: it does its work, ends when it should, and may die at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from broker.compaction import process
from broker.compaction.process import CompactionProcess
from broker.node import Node
from s3stream.compactor import Compactor
from s3stream.metered import Purpose
from tests.broker.conftest import StartNode
from tests.broker.scraping import scrape
from tests.broker.test_on_s3 import bucket_uri
from tests.broker.wire import Wire, batch, eventually
from tests.crash.process import BrokerProcess, killed_at_last

__all__ = ["bucket_uri"]

QUICK = {"compaction_interval_ms": 20, "compaction_log_cache_enable": False}
"""Looks often, and nothing is merged before it comes."""


def compaction_of(node: Node) -> CompactionProcess:
    found = node.running.compactor
    assert isinstance(found, CompactionProcess)
    return found


async def fill(node: Node, wire: Wire, uploads: int, *, start: int = 0) -> list[bytes]:
    """Produce to partition 0 of `t`, so that each value is in an object of its own."""
    values = [b"%06d" % number + bytes(2000) for number in range(start, start + uploads)]
    storage = node.running.storage
    for value in values:
        assert (await wire.produce("t", batch(value))).error_code == 0
        storage.seal()
        await eventually(lambda: storage._wal.trim_offset == storage._wal.durable_offset, "an upload and a trim")
    return values


def objects_of(node: Node) -> int:
    return len(node.running.broker.controller.image.state.tables.objects)


async def test_objects_are_merged_elsewhere(start_node: StartNode) -> None:
    async with (
        start_node(**QUICK, metrics_listeners="HTTP://127.0.0.1:0") as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        values = await fill(node, wire, 30)
        compaction = compaction_of(node)
        await eventually(lambda: compaction.jobs > 0 and objects_of(node) < 15, "a merge")
        assert compaction.pid not in (None, os.getpid())
        assert await wire.fetch_all("t") == values
        await eventually(lambda: compaction.written_bytes > 20_000, "news of what was done")
        page = await scrape(node)
        assert page("tidelog_compaction_jobs_total", result="committed") == compaction.jobs
        assert page("tidelog_compaction_process_memory_bytes") > 10 << 20
        assert page("tidelog_compaction_process_cpu_seconds_total") > 0.05
        # Its requests are this node's: the broker itself writes nothing in parts.
        assert page("tidelog_object_store_request_duration_seconds_count", operation="put_multipart") >= 1
        assert node.running.store.transferred_bytes["put_multipart"] == compaction.written_bytes
        assert node.running.usage.of(Purpose.COMPACTION).sent_bytes == compaction.written_bytes
    assert compaction.pid is None


async def test_what_is_still_in_memory_is_merged_by_the_broker_itself(start_node: StartNode) -> None:
    never = {"compaction_interval_ms": 1 << 30}
    async with (
        start_node(**never, metrics_listeners="HTTP://127.0.0.1:0") as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        values = await fill(node, wire, 30)
        second = node.running.storage.second_uploads
        assert second is not None
        await eventually(lambda: second.jobs and not second.is_busy, "a merge")
        assert objects_of(node) < 25
        assert (await scrape(node))("tidelog_second_uploads_total", result="committed") == second.jobs
    async with start_node(**never) as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await wire.fetch_all("t") == values  # from objects


async def test_objects_of_a_bucket_are_merged_elsewhere(start_node: StartNode, bucket_uri: str) -> None:
    async with (
        start_node(**QUICK, object_store_uri=bucket_uri) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        values = await fill(node, wire, 12)
        await eventually(lambda: objects_of(node) < 12, "a merge")
        assert await wire.fetch_all("t") == values


async def test_a_broker_with_nothing_to_merge_has_no_second_process(start_node: StartNode) -> None:
    async with start_node(**QUICK) as node:
        await asyncio.sleep(0.2)
        assert compaction_of(node).pid is None


async def test_where_a_test_looks_at_requests_the_broker_compacts_itself(start_node: StartNode) -> None:
    async with start_node(wrap_store=lambda store: store) as node:
        assert isinstance(node.running.compactor, Compactor)
    async with start_node(compaction_process_enable=False) as node:
        assert isinstance(node.running.compactor, Compactor)


async def test_a_process_that_was_killed_is_started_again(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FIRST_RESTART_DELAY_S", 0.01)
    async with start_node(**QUICK) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        values = await fill(node, wire, 12)
        compaction = compaction_of(node)
        await eventually(lambda: compaction.jobs, "a merge")
        first, jobs = compaction.pid, compaction.jobs
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: compaction.restarts == 1 and compaction.pid not in (None, first), "another process")
        values += await fill(node, wire, 12, start=12)
        await eventually(lambda: compaction.jobs > jobs, "another merge")
        assert await wire.fetch_all("t") == values


async def test_a_process_that_hangs_is_killed(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_SILENCE_S", 5.0)
    async with start_node(**QUICK) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        await fill(node, wire, 2)
        compaction = compaction_of(node)
        await eventually(lambda: compaction.memory_bytes, "a sign of life")
        assert compaction.pid is not None
        os.kill(compaction.pid, signal.SIGSTOP)
        assert (await wire.produce("t", batch(b"x"))).error_code == 0  # nothing waits for it
        while not compaction.restarts:
            await asyncio.sleep(0.05)


async def test_a_process_that_needs_too_much_memory_ends_by_itself(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker.shares.COMPACTION_BASE_BYTES", -(32 << 20) + (1 << 20))
    async with start_node(**QUICK) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        values = await fill(node, wire, 12)
        await eventually(lambda: compaction_of(node).restarts, "its end")
        assert await wire.fetch_all("t") == values
    assert "the process of compaction ended: status 1" in caplog.text


@pytest.mark.crash
def test_it_ends_with_a_broker_that_is_killed(tmp_path: Path) -> None:
    broker = BrokerProcess(
        tmp_path,
        {
            "object.store.uri": (tmp_path / "objects").as_uri(),
            "wal.uri": f"{(tmp_path / 'wal').as_uri()}?capacity=16MiB",
            "memory.bytes": 128 << 20,
            "upload.interval.ms": 20,
            "compaction.interval.ms": 20,
        },
    )
    with killed_at_last(broker):
        for topic, stop in (("t", broker.kill), ("u", broker.stop)):
            broker.start()
            broker.wait_ready()
            asyncio.run(_produce(broker.bootstrap_servers, topic))
            worker = _wait(lambda: _child_of(broker.pid), "its second process")
            _wait(partial(_has_stepped_back, worker), "its low priority")
            stop()
            _wait(partial(_has_ended, worker), "its end")


async def _produce(bootstrap_servers: str, topic: str) -> None:
    async with await Wire.connect(bootstrap_servers) as wire:
        await wire.create_topic(topic)
        for _ in range(5):
            await wire.produce(topic, batch(b"x"))
            await asyncio.sleep(0.05)


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def _has_stepped_back(pid: int) -> bool:
    return os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _wait(condition: Callable[[], int], what: str) -> int:
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.02)
    return int(found)
