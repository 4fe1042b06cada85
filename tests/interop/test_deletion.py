"""What clients have deleted goes from the object store too, in bounded time: records, topics, what retention passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.testing import TidelogServer
from tests.interop.clients.base import DEADLINE_S, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.conftest import installed

pytestmark = pytest.mark.interop


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TidelogServer]:
    """A broker that uploads, applies retention and deletes soon."""
    running = TidelogServer(
        tmp_path,
        upload_interval_ms=50,
        log_segment_delete_delay_ms=50,
        metadata_restore_window_ms=0,
        log_retention_check_interval_ms=50,
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: TidelogServer) -> Confluent:
    found = installed(Confluent(server.bootstrap_servers))
    assert isinstance(found, Confluent)
    return found


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {DEADLINE_S} s"
        time.sleep(0.02)


def objects(directory: Path) -> int:
    """Data objects in the store."""
    return sum(1 for path in (directory / "objects" / "data").rglob("*") if path.is_file())


def fill(client: Confluent, directory: Path, topic: str, count: int = 3) -> None:
    """Records of 1970, each in an object of its own."""
    client.create_topic(topic, 1, {"retention.ms": "-1"})
    for number in range(count):
        client.produce(topic, [Record(value=b"%d" % number, timestamp_ms=1_000 + number)])
        eventually(lambda number=number: objects(directory) > number, "an upload")  # type: ignore[misc]


def test_deleted_records(client: Confluent, server: TidelogServer, tmp_path: Path) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    fill(client, tmp_path, "t")
    admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
    (deleted,) = admin.delete_records([TopicPartition("t", 0, 3)]).values()
    assert deleted.result(DEADLINE_S).low_watermark == 3
    eventually(lambda: objects(tmp_path) <= 1, "deletion of all but what has the newest state")
    server.restart()
    assert client.watermarks("t") == (3, 3)
    client.produce("t", [Record(value=b"next")])
    [found] = client.consume("t", offset=3, count=1)
    assert (found.offset, found.value) == (3, b"next")


def test_what_a_changed_retention_passes(client: Confluent, server: TidelogServer, tmp_path: Path) -> None:
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    fill(client, tmp_path, "t")
    assert client.watermarks("t") == (0, 3)
    admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
    change = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, "t", incremental_configs=[change])
    (altered,) = admin.incremental_alter_configs([resource]).values()
    altered.result(DEADLINE_S)
    eventually(lambda: client.watermarks("t") == (3, 3), "retention")
    eventually(lambda: objects(tmp_path) <= 1, "deletion of all but what has the newest state")


def test_deleted_topics(client: Confluent, server: TidelogServer, tmp_path: Path) -> None:
    fill(client, tmp_path, "t")
    client.delete_topic("t")
    eventually(lambda: objects(tmp_path) == 0, "deletion of all that the topic held")
