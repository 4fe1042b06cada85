"""An outage of the object store as a client sees it: nothing fails, producers wait when the log is full, all recovers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import confluent_kafka as ck

from broker.testing import TidelogServer

PARTITIONS = 4
VALUE_BYTES = 100_000
COUNT = 240
"""24 MB, three times what the log of this test takes."""


def value(n: int) -> bytes:
    return b"%08d" % n + bytes([n % 251]) * VALUE_BYTES


def wait_until(condition: Callable[[], object], what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come about")


def read_back(bootstrap_servers: str) -> dict[int, list[int]]:
    """The numbers in each partition, in order; every byte is compared."""
    consumer = ck.Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "none", "enable.auto.commit": False, "check.crcs": True}
    )
    consumer.assign([ck.TopicPartition("orders", n, ck.OFFSET_BEGINNING) for n in range(PARTITIONS)])
    found: dict[int, list[int]] = {n: [] for n in range(PARTITIONS)}
    expected = {n: hashlib.sha256(value(n)).digest() for n in range(COUNT)}
    for _ in range(COUNT):
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        number = int(message.value()[:8])
        assert hashlib.sha256(message.value()).digest() == expected[number]
        found[message.partition()].append(number)
    consumer.close()
    return found


def test_producers_wait_out_an_outage(tmp_path: Path) -> None:
    tidelog = TidelogServer(tmp_path, wal_uri=f"{(tmp_path / 'wal').as_uri()}?capacity=8MiB", num_partitions=PARTITIONS)
    tidelog.start()
    acknowledged: list[int] = []
    errors: list[object] = []

    def delivered(n: int) -> Callable[[object, object], None]:
        def call(error: object, message: object) -> None:
            acknowledged.append(n) if error is None else errors.append(error)

        return call

    producer = ck.Producer({"bootstrap.servers": tidelog.bootstrap_servers, "enable.idempotence": True, "linger.ms": 0})
    producer.produce("orders", value(0), partition=0, on_delivery=delivered(0))
    assert producer.flush(30) == 0

    tidelog.object_store.failing = True
    for n in range(1, COUNT):
        producer.produce("orders", value(n), partition=n % PARTITIONS, on_delivery=delivered(n))
    server = tidelog.node.running.server

    def log_is_full() -> bool:
        producer.poll(0.01)
        return server.metrics.produce_stalls > 0 and len(acknowledged) * VALUE_BYTES > 4_000_000

    # Until then acknowledgements go on; from then on producers wait, and hear of no error.
    wait_until(log_is_full, "a full log")
    assert len(acknowledged) * VALUE_BYTES < 8 << 20
    assert len(producer) >= COUNT - len(acknowledged)  # it counts librdkafka's own requests that wait, too
    assert errors == []
    assert tidelog.object_store.failures.total() > 0

    tidelog.object_store.failing = False
    assert producer.flush(60) == 0
    assert errors == []
    assert sorted(acknowledged) == list(range(COUNT))
    # Once each and in order, from the log cache, and with empty caches from objects.
    in_order = {at: list(range(at, COUNT, PARTITIONS)) for at in range(PARTITIONS)}
    assert read_back(tidelog.bootstrap_servers) == in_order
    tidelog.restart()
    assert tidelog.node.running.storage.recovered_bytes == 0
    assert read_back(tidelog.bootstrap_servers) == in_order
    tidelog.stop()
