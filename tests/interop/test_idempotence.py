"""Idempotent producers of every kind, over a network that loses answers and a broker that crashes: nothing twice, nothing
lost, nothing out of order (I1, I2, I11).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.process import BrokerProcess, killed_at_last
from tests.interop.breaking_network import BreakingNetwork
from tests.interop.clients.base import DEADLINE_S, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.conftest import CLIENTS, installed, settings_below

pytestmark = pytest.mark.interop

NUMBERS = [Record(key=b"k", value=f"number-{number}-".ljust(200, "x").encode()) for number in range(200)]


@pytest.fixture
def network() -> Iterator[BreakingNetwork]:
    breaking = BreakingNetwork(lose_every=3, lose_at_most=6)
    yield breaking
    breaking.stop()


@pytest.fixture
def broker(tmp_path: Path, network: BreakingNetwork) -> Iterator[BrokerProcess]:
    """A broker that clients know by the address of the breaking network."""
    advertised = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{network.port}"}
    process = BrokerProcess(tmp_path, {**settings_below(tmp_path), **advertised})
    with killed_at_last(process):
        process.start()
        process.wait_ready()
        network.start(process.port)
        yield process
        process.stop()


@pytest.mark.parametrize("name", CLIENTS)
def test_retries_neither_duplicate_nor_reorder(
    name: str, broker: BrokerProcess, network: BreakingNetwork, topic: str
) -> None:
    confluent = Confluent(broker.bootstrap_servers)
    installed(confluent)
    confluent.create_topic(topic, 1)
    producer = installed(CLIENTS[name](f"127.0.0.1:{network.port}"))
    failures: list[BaseException] = []

    def produce() -> None:
        try:
            producer.produce(topic, NUMBERS, idempotent=True, pause_ms=5)
        except BaseException as error:
            failures.append(error)

    producing = threading.Thread(target=produce)
    producing.start()
    wait_for_records(confluent, topic, at_least=50)
    broker.kill()
    broker.start()
    broker.wait_ready()
    producing.join(2 * DEADLINE_S)
    assert not producing.is_alive()
    if failures:
        raise failures[0]

    assert network.lost > 0
    assert confluent.watermarks(topic) == (0, len(NUMBERS))
    found = confluent.consume(topic, count=len(NUMBERS))
    assert [record.value for record in found] == [record.value for record in NUMBERS]


def wait_for_records(client: Confluent, topic: str, *, at_least: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while client.watermarks(topic)[1] < at_least:
        assert time.monotonic() < deadline, f"fewer than {at_least} records after {DEADLINE_S} s"
        time.sleep(0.02)
