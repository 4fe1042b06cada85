"""One broker process for all interop tests, and one client of each kind.

A client that is not installed is skipped with its reason; with CI=true it fails, since there all are installed.
`INTEROP_BOOTSTRAP=host:port` runs the tests that need no broker of their own against any other one, say Kafka's.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.clients.aiokafka import Aiokafka
from tests.interop.clients.base import Client, ClientUnavailable
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.driver import FranzGo, Java, Sarama
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
}
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_run = uuid.uuid4().hex[:8]
_topic_numbers = itertools.count()

_SETTINGS = """
"node.id" = 1
listeners = "PLAINTEXT://127.0.0.1:{port}"
"object.store.uri" = "file://{directory}/objects"
"wal.uri" = "file://{directory}/wal?capacity=64MiB"
"memory.bytes" = "256MiB"
"upload.size.bytes" = "1MiB"
"upload.interval.ms" = 500
"group.initial.rebalance.delay.ms" = 0
"""  # small and soon, so that much of what is read comes from objects


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a broker in a process of its own."""
    if other := os.environ.get("INTEROP_BOOTSTRAP"):
        yield other
        return
    directory = tmp_path_factory.mktemp("interop")
    port = _free_port()
    settings = directory / "tidelog.toml"
    settings.write_text(_SETTINGS.format(port=port, directory=directory))
    output = directory / "broker.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "serve", "-c", str(settings)], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_serving(process, port, output)
        yield f"127.0.0.1:{port}"
        assert process.poll() is None, f"the broker ended during the tests:\n{output.read_text()}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(_STOP_TIMEOUT_S) == 0, f"the broker did not stop in order:\n{output.read_text()}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_serving(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the broker did not start:\n{output.read_text()}"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError(f"the broker does not listen after {_START_TIMEOUT_S} s:\n{output.read_text()}")


def installed(client: Client) -> Client:
    """The client, or a skipped test; with CI=true a failed one."""
    try:
        client.check()
    except ClientUnavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return client


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
