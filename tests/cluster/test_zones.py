"""Consumers that name their zone read what objects hold from a broker of it, and what is new from the leader (KIP-392)."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.broker.scraping import get_blocking
from tests.cluster.brokers import TIMEOUT_S, Brokers, all_of, create_topic, figures, leaders, led_when, running_brokers
from tests.crash.process import free_port
from tests.interop.clients.base import DEADLINE_S
from tests.interop.clients.driver import Java, java_command
from tests.interop.conftest import installed

pytestmark = pytest.mark.crash

PARTITIONS = 6
RACKS = {1: "a", 2: "b", 3: "c"}
OLD = 1_200
"""Records a partition that only objects hold."""
VALUE_BYTES = 1_000


def value_of(number: int) -> bytes:
    return b"%d" % number + b"." * VALUE_BYTES


def number_in(value: bytes | None) -> int:
    return int((value or b"").rstrip(b"."))


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """Three brokers, each in a zone of its own, that were restarted after old records came: so only objects hold those."""
    directory: Path = tmp_path_factory.mktemp("zones")
    ports = {node_id: free_port() for node_id in RACKS}
    with running_brokers(
        directory,
        of_each=lambda node_id: {
            "broker.rack": RACKS[node_id],
            "metrics.listeners": f"HTTP://127.0.0.1:{ports[node_id]}",
        },
    ) as found:
        create_topic(found, "t", PARTITIONS)
        produce(found, 0, OLD)
        for broker in found.values():
            broker.stop()
        for broker in found.values():
            broker.start()
        for node_id, broker in found.items():
            broker.wait_ready()
            wait_ready(ports[node_id])
        # Those that stopped gave their partitions to the others: each is to have its share again, so that nothing moves any more.
        shares = dict.fromkeys(RACKS, PARTITIONS // len(RACKS))
        led_when(found, "t", lambda led: Counter(led.values()) == shares, "that each has its share")
        yield found


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while get_blocking(port, "/readyz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def produce(brokers: Brokers, start: int, end: int) -> None:
    """Numbers [start, end) to each partition."""
    producer = Producer({"bootstrap.servers": all_of(brokers), "enable.idempotence": True})
    errors: list[object] = []
    for number in range(start, end):
        for partition in range(PARTITIONS):
            producer.produce(
                "t", value_of(number), partition=partition, on_delivery=lambda error, _: errors.append(error)
            )
        producer.poll(0)
    assert producer.flush(TIMEOUT_S) == 0
    assert set(errors) == {None}


def read_in_zone(brokers: Brokers, before: dict[int, float], node_id: int) -> None:
    """Return when the metrics, whose pages are kept for a moment, tell that most old records came from a broker of the reader's zone.

    All of them do, unless that broker was short of its lease for a moment: then the leader goes on for a while.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        in_zone = grown(figures(brokers, "tidelog_fetched_bytes_total", zone="own"), before)
        assert all(value == 0 for other, value in in_zone.items() if other != node_id), "nobody else is in this zone"
        if in_zone[node_id] > OLD * PARTITIONS * VALUE_BYTES / 2:
            return
        assert time.monotonic() < deadline, in_zone
        time.sleep(0.2)


def grown(now: dict[int, float], before: dict[int, float]) -> dict[int, float]:
    return {node_id: value - before[node_id] for node_id, value in now.items()}


def read(consumer: Consumer, end: int, found: dict[int, list[int]], marks: dict[int, list[int]]) -> None:
    """Read each partition up to `end`, and note the high watermarks that the consumer knows."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(len(numbers) < end for numbers in found.values()):
        assert time.monotonic() < deadline, {partition: len(numbers) for partition, numbers in found.items()}
        for message in consumer.consume(500, timeout=1.0):
            assert message.error() is None, message.error()
            found[message.partition() or 0].append(number_in(message.value()))
        for partition, seen in marks.items():
            _, high = consumer.get_watermark_offsets(TopicPartition("t", partition), cached=True)
            if high >= 0 and (not seen or seen[-1] != high):
                seen.append(high)


def test_metadata_names_the_leader_first_and_one_broker_of_each_zone(brokers: Brokers) -> None:
    told = AdminClient({"bootstrap.servers": all_of(brokers)}).list_topics("t", timeout=TIMEOUT_S)
    for partition in told.topics["t"].partitions.values():
        assert partition.replicas[0] == partition.leader
        assert sorted(partition.replicas) == sorted(partition.isrs) == sorted(RACKS)


@pytest.mark.parametrize(
    "named", [{"client.rack": "b"}, {"client.id": "readers,tidelog_az=b"}], ids=["client.rack", "client.id"]
)
def test_librdkafka_reads_old_records_in_its_zone_and_new_ones_from_the_leader(
    brokers: Brokers, named: dict[str, str]
) -> None:
    """I1: each record once, in order, across brokers. I3: no high watermark goes back."""
    elsewhere = [partition for partition, leader in leaders(brokers, "t").items() if leader != 2]
    assert elsewhere, "some are led in other zones"
    own, other = (figures(brokers, "tidelog_fetched_bytes_total", zone=zone) for zone in ("own", "other"))
    to = {name: figures(brokers, "tidelog_fetch_redirects_total", to=name) for name in ("zone", "leader")}
    consumer = Consumer(
        {"bootstrap.servers": all_of(brokers), "group.id": str(named), "isolation.level": "read_uncommitted", **named}
    )
    consumer.assign([TopicPartition("t", partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])
    found: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    marks: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    number = max(_ends(consumer).values())
    read(consumer, OLD, found, marks)
    read_in_zone(brokers, own, 2)
    for _ in range(3):  # what is new is read as it comes
        produce(brokers, number, number + 50)
        number += 50
        read(consumer, number, found, marks)
    consumer.close()
    assert found == {partition: list(range(number)) for partition in range(PARTITIONS)}
    for seen in marks.values():
        assert seen == sorted(seen)
        assert seen[-1] <= number
    time.sleep(1.0)  # pages of metrics are kept for half a second
    sent = grown(figures(brokers, "tidelog_fetch_redirects_total", to="zone"), to["zone"])
    assert sum(sent.values()) >= len(elsewhere)
    assert sent[2] == 0, "who leads in the zone serves it"
    back = grown(figures(brokers, "tidelog_fetch_redirects_total", to="leader"), to["leader"])
    assert back[2] >= len(elsewhere)
    crossed = grown(figures(brokers, "tidelog_fetched_bytes_total", zone="other"), other)
    assert crossed[1] + crossed[3] >= 150 * len(elsewhere) * VALUE_BYTES, "new records come from their leaders"


def _ends(consumer: Consumer) -> dict[int, int]:
    return {
        partition: consumer.get_watermark_offsets(TopicPartition("t", partition), timeout=TIMEOUT_S)[1]
        for partition in range(PARTITIONS)
    }


@pytest.mark.interop
def test_java_reads_old_records_in_its_zone_and_new_ones_from_the_leader(brokers: Brokers) -> None:
    installed(Java(all_of(brokers)))
    own = figures(brokers, "tidelog_fetched_bytes_total", zone="own")
    probe = Consumer({"bootstrap.servers": all_of(brokers), "group.id": "probe"})
    start = max(_ends(probe).values())
    probe.close()
    process = subprocess.Popen(
        [
            *java_command(),
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            *("--bootstrap-server", all_of(brokers), "--topic", "t", "--from-beginning", "--group", "java"),
            *("--command-property", "client.rack=c", "--max-messages", str(PARTITIONS * (start + 50))),
            *("--formatter-property", "print.partition=true"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(process.stdout))
    reading.start()
    try:
        deadline = time.monotonic() + 2 * DEADLINE_S
        while len(lines) < PARTITIONS * start and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        assert len(lines) == PARTITIONS * start, process.poll()
        read_in_zone(brokers, own, 3)
        produce(brokers, start, start + 50)
        assert process.wait(2 * DEADLINE_S) == 0
    finally:
        process.kill()
        reading.join()
        process.wait()
        process.stdout.close()
    found: dict[str, list[int]] = {}
    for line in lines:
        partition, _, value = line.rstrip("\n").partition("\t")
        found.setdefault(partition, []).append(number_in(value.encode()))
    assert Counter(map(tuple, found.values())) == {tuple(range(start + 50)): PARTITIONS}
