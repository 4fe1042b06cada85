"""A real store that stalls, or dies and comes back, under a real broker with load: nobody is told an error, nothing is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.checker.history import History, check
from tests.crash.load import Load, create_topic, read_topic
from tests.crash.places import InBucket
from tests.crash.process import BrokerProcess, killed_at_last
from tests.stores.fixtures import built
from tests.stores.process import PROCESSES, StoreProcess, ended_at_last

pytestmark = [pytest.mark.crash, pytest.mark.slow]

TOPIC = "events"
PARTITIONS = 3
AWAY_S = 2.0
STEP_BYTES = 128 << 10


Start = Callable[[str, str], tuple[StoreProcess, BrokerProcess]]


@pytest.fixture
def prepare(tmp_path: Path) -> Iterator[Start]:
    """Makes a store of the test's own, since others must not see it fail, and a broker on it that uploads all the time.

    The store runs, the broker is not started.
    """
    with ExitStack() as stack:

        def prepared(name: str, wal: str) -> tuple[StoreProcess, BrokerProcess]:
            store = stack.enter_context(ended_at_last(built(PROCESSES[name](tmp_path / "store"))))
            store.start()
            store.wait_ready()
            place = InBucket(store.server, tmp_path, wal=wal)
            settings = {
                "object.store.uri": place.object_store_uri,
                "wal.uri": place.wal_uri,
                "memory.bytes": 128 << 20,
                "upload.size.bytes": 1 << 20,
                "upload.interval.ms": 300,
            }
            broker = BrokerProcess(tmp_path, settings, environment=place.environment)
            return store, stack.enter_context(killed_at_last(broker))

        yield prepared


@pytest.mark.parametrize(("name", "wal"), [("minio", "file"), ("minio", "s3"), ("seaweedfs", "s3")])
def test_a_store_that_stalls_and_then_dies_and_comes_back(name: str, wal: str, prepare: Start) -> None:
    """I1, I2, I3 and I11: with the log on a disk producers go on until it is full, with the log in the bucket they wait."""
    store, broker = prepare(name, wal)
    history = History()
    broker.start()
    broker.wait_ready()
    create_topic(broker.bootstrap_servers, TOPIC, PARTITIONS)
    load = Load(broker.bootstrap_servers, topic=TOPIC, partitions=PARTITIONS, history=history, rng=random.Random(1))

    def go_on() -> None:
        until = time.monotonic() + AWAY_S
        while time.monotonic() < until:
            load.pump(STEP_BYTES)
            time.sleep(0.05)

    go_on()
    store.pause()
    go_on()
    store.resume()
    go_on()
    store.kill()
    go_on()
    store.start()
    load.finish()
    check(history, read_topic(broker.bootstrap_servers, TOPIC, PARTITIONS))
    assert history.acknowledged_count == history.sent_count > 0
    broker.stop()
    broker.start()
    broker.wait_ready()
    check(history, read_topic(broker.bootstrap_servers, TOPIC, PARTITIONS))
    broker.stop()


def test_a_broker_that_is_started_before_its_store_waits_for_it(prepare: Start) -> None:
    store, broker = prepare("minio", "s3")
    store.kill()
    broker.start()
    time.sleep(AWAY_S)
    assert not broker.has_ended(), broker.log_tail()
    store.start()
    store.wait_ready()
    broker.wait_ready()
    create_topic(broker.bootstrap_servers, TOPIC, PARTITIONS)
    broker.stop()
