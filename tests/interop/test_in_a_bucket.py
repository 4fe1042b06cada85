"""Every client on a broker without any local state, whose objects, metadata and log are in a bucket of a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.places import InBucket
from tests.crash.process import BrokerProcess, killed_at_last
from tests.interop.clients.base import Record
from tests.interop.conftest import installed_clients, settings_below
from tests.stores.process import PROCESSES
from tests.stores.s3_server import S3Server

pytestmark = pytest.mark.interop


@pytest.fixture(params=PROCESSES)
def broker(
    request: pytest.FixtureRequest, s3_server_named: Callable[[str], S3Server], tmp_path: Path
) -> Iterator[BrokerProcess]:
    """A running broker on each store."""
    place = InBucket(s3_server_named(request.param), tmp_path, wal="s3")
    settings = {
        **settings_below(tmp_path),
        "object.store.uri": place.object_store_uri,
        "wal.uri": place.wal_uri,
        "upload.interval.ms": 3_600_000,  # so a kill leaves all of it to the log
    }
    with killed_at_last(BrokerProcess(tmp_path, settings, environment=place.environment)) as process:
        process.start()
        process.wait_ready()
        yield process


def test_every_client_reads_what_every_other_wrote_before_a_crash_and_after_an_orderly_stop(
    broker: BrokerProcess, topic: str
) -> None:
    clients = installed_clients(broker.bootstrap_servers)
    sent: list[Record] = []
    for writer in clients:
        mine = [
            Record(key=writer.name.encode(), value=f"{writer.name}-{number}-".encode() * 50) for number in range(20)
        ]
        writer.produce(topic, mine, compression="gzip")
        sent += mine

    broker.kill()
    broker.start()
    broker.wait_ready()
    for reader in clients:
        found = reader.consume(topic, count=len(sent))
        assert [(record.key, record.value) for record in found] == [(record.key, record.value) for record in sent]

    broker.stop()
    broker.start()
    broker.wait_ready()
    for reader in clients:
        found = reader.consume(topic, count=len(sent))
        assert [record.offset for record in found] == list(range(len(sent)))
        assert [(record.key, record.value) for record in found] == [(record.key, record.value) for record in sent]
    broker.stop()
