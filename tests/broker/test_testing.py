"""The pytest plugin, used as its documentation says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import confluent_kafka

from broker.testing import TidelogServer
from tests.broker.wire import Wire, batch


def test_a_synchronous_client(tidelog: TidelogServer) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": tidelog.bootstrap_servers})
    errors: list[object] = []
    for n in range(100):
        producer.produce("orders", b"%d" % n, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None] * 100


async def test_an_asynchronous_client_over_a_restart(tidelog: TidelogServer) -> None:
    async with await Wire.connect(tidelog.bootstrap_servers) as wire:
        await wire.create_topic("orders")
        await wire.produce("orders", batch(b"kept"))
    await asyncio.to_thread(tidelog.restart)
    async with await Wire.connect(tidelog.bootstrap_servers) as wire:
        assert await wire.fetch_values("orders") == [b"kept"]


async def test_the_object_store_can_be_switched_off(tidelog: TidelogServer) -> None:
    async with await Wire.connect(tidelog.bootstrap_servers) as wire:
        await wire.create_topic("orders")
        tidelog.object_store.failing = True
        # Acknowledgements need the write-ahead log only.
        assert (await wire.produce("orders", batch(b"during the outage"))).error_code == 0
        tidelog.object_store.failing = False
        assert await wire.fetch_values("orders") == [b"during the outage"]


def test_the_example_in_the_documentation_runs() -> None:
    example = Path(__file__).parents[2] / "examples" / "embedding" / "one_process.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=60, check=True)
    assert "number 9" in done.stdout
