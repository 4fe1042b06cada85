"""A topic that was deleted by mistake and brought back by `tidelog restore`: every client reads all of it, comes past the offsets that
were left out behind its last record, and goes on with what is new."""

from __future__ import annotations

import asyncio
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.__main__ import main
from broker.inspect.bucket import open_bucket
from broker.testing import TidelogServer
from tests.interop.clients.base import DEADLINE_S, Client, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.kcat import Kcat
from tests.interop.conftest import CLIENTS, installed

pytestmark = pytest.mark.interop

VALUES = [b"%d" % number for number in range(50)]
LEFT_OUT = 1_000_000_000


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TidelogServer]:
    """A broker with a topic for each client, all deleted and brought back."""
    directory = tmp_path_factory.mktemp("restored")
    server = TidelogServer(directory, upload_interval_ms=50)
    server.start()
    client = Confluent(server.bootstrap_servers)
    for name in CLIENTS:
        client.create_topic(name, 1)
        client.produce(name, [Record(value=value) for value in VALUES])
    deadline = time.monotonic() + DEADLINE_S
    while _committed(directory) < len(VALUES) * len(CLIENTS):
        assert time.monotonic() < deadline, "uploads"
        time.sleep(0.1)
    before = _last_entry(directory)
    for name in CLIENTS:
        client.delete_topic(name)
    server.stop()
    bucket = ["--bucket", (directory / "objects").as_uri()]
    assert main(["--log-level", "error", "restore", *bucket, "--at-index", str(before), "--yes"]) == 0
    server.start()
    yield server
    server.stop()
    assert main(["--log-level", "error", "verify", *bucket]) == 0


def _last_entry(directory: Path) -> int:
    return max(int(path.name) for path in (directory / "objects/metadata/log").iterdir())


def _committed(directory: Path) -> int:
    """Records in objects."""

    async def count() -> int:
        async with open_bucket((directory / "objects").as_uri(), random.Random()) as bucket:
            replica = await bucket.replica()
            return sum(stream.committed_end_offset for stream in replica.image.state.tables.streams.values())

    return asyncio.run(count())


def test_whoever_reads_to_the_end_gets_there(restored: TidelogServer) -> None:
    client = installed(Kcat(restored.bootstrap_servers))
    assert isinstance(client, Kcat)
    for name in CLIENTS:
        done = subprocess.run(
            ["kcat", "-b", restored.bootstrap_servers, "-C", "-t", name, "-o", "beginning", "-e", "-q"],
            capture_output=True,
            timeout=DEADLINE_S,
            check=True,
        )
        assert done.stdout.split()[: len(VALUES)] == VALUES


@pytest.mark.parametrize("name", [name for name in CLIENTS if name != "kcat"])  # which stops at the end, see above
def test_every_client_reads_all_and_goes_on(restored: TidelogServer, name: str) -> None:
    client: Client = installed(CLIENTS[name](restored.bootstrap_servers))
    found: list[Record] = []
    reading = threading.Thread(target=lambda: found.extend(client.consume(name, offset=0, count=len(VALUES) + 1)))
    reading.start()
    time.sleep(2)  # it has read what there was, and asked for more
    Confluent(restored.bootstrap_servers).produce(name, [Record(value=b"new")])
    reading.join(DEADLINE_S)
    assert [record.value for record in found] == [*VALUES, b"new"]
    assert found[-1].offset == len(VALUES) + LEFT_OUT
