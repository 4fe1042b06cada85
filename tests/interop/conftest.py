"""One broker process for all interop tests, and one client of each kind.

A client that is not installed is skipped with its reason; with CI=true it fails, since there all are installed.
`INTEROP_BOOTSTRAP=host:port` runs the tests that need no broker of their own against any other one, say Kafka's.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.process import BrokerProcess, killed_at_last
from tests.interop.clients.aiokafka import Aiokafka
from tests.interop.clients.base import Client, ClientUnavailable
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.driver import FranzGo, Java, KafkaJs, Platformatic, Sarama
from tests.interop.clients.kafka_python import KafkaPython
from tests.interop.clients.kcat import Kcat

CLIENTS: dict[str, Callable[[str], Client]] = {
    "kcat": Kcat,
    "confluent": Confluent,
    "aiokafka": Aiokafka,
    "kafka_python": KafkaPython,
    "java": Java,
    "franz_go": FranzGo,
    "sarama": Sarama,
    "kafkajs": KafkaJs,
    "platformatic": Platformatic,
}
_run = uuid.uuid4().hex[:8]
_topic_numbers = itertools.count()


def settings_below(directory: Path) -> dict[str, object]:
    """A broker's settings: small and soon, so that much of what is read comes from objects."""
    return {
        "node.id": 1,
        "object.store.uri": f"file://{directory}/objects",
        "wal.uri": f"file://{directory}/wal?capacity=64MiB",
        "memory.bytes": "256MiB",
        "upload.size.bytes": "1MiB",
        "upload.interval.ms": 500,
        "group.initial.rebalance.delay.ms": 0,
    }


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a broker in a process of its own."""
    if other := os.environ.get("INTEROP_BOOTSTRAP"):
        yield other
        return
    directory = tmp_path_factory.mktemp("interop")
    broker = BrokerProcess(directory, settings_below(directory))
    with killed_at_last(broker):
        broker.start()
        broker.wait_ready()
        yield broker.bootstrap_servers
        assert not broker.has_ended(), f"the broker ended during the tests:\n{broker.log_tail()}"
        broker.stop()


def installed(client: Client) -> Client:
    """The client, or a skipped test; with CI=true a failed one."""
    try:
        client.check()
    except ClientUnavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return client


def installed_clients(bootstrap: str) -> list[Client]:
    """All clients that are installed; with CI=true a missing one fails the test."""
    found = []
    for make in CLIENTS.values():
        client = make(bootstrap)
        try:
            client.check()
        except ClientUnavailable as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error))
        else:
            found.append(client)
    return found


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, bootstrap: str) -> Client:
    """Each client in turn."""
    return installed(CLIENTS[request.param](bootstrap))


@pytest.fixture(params=[name for name, make in CLIENTS.items() if make is not Kcat])
def admin_client(request: pytest.FixtureRequest, bootstrap: str) -> Client:
    """Each client that can create topics, in turn."""
    return installed(CLIENTS[request.param](bootstrap))


@pytest.fixture
def confluent(bootstrap: str) -> Confluent:
    """confluent-kafka, for what a test has to prepare or look at."""
    client = installed(Confluent(bootstrap))
    assert isinstance(client, Confluent)
    return client


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return f"interop-{_run}-{next(_topic_numbers)}"
