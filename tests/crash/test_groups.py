"""A real broker, killed by SIGKILL in the middle of a rebalance: the group goes on, and no commit is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupState, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.crash.load import create_topic
from tests.crash.process import BrokerProcess, killed_at_last

pytestmark = [pytest.mark.crash, pytest.mark.slow]

TOPIC = "events"
GROUP = "workers"
PARTITIONS = 4
RECORDS_EACH = 500
WITHIN_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker with a topic full of records."""
    process = BrokerProcess(
        tmp_path,
        {
            "object.store.uri": f"file://{tmp_path}/objects",
            "wal.uri": f"file://{tmp_path}/wal?capacity=64MiB",
            "memory.bytes": 128 << 20,
            "upload.interval.ms": 300,
            "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.num.partitions": 8,
        },
    )
    with killed_at_last(process):
        process.start()
        process.wait_ready()
        create_topic(process.bootstrap_servers, TOPIC, PARTITIONS)
        producer = Producer({"bootstrap.servers": process.bootstrap_servers})
        for number in range(RECORDS_EACH):
            for partition in range(PARTITIONS):
                producer.produce(TOPIC, b"%d" % number, partition=partition)
        assert producer.flush(WITHIN_S) == 0
        yield process


def consumer(broker: BrokerProcess, **settings: object) -> Any:
    """A member of the group that reads in small steps and commits by hand."""
    made = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 6_000,
            "heartbeat.interval.ms": 1_500,
            "reconnect.backoff.ms": 10,
            "reconnect.backoff.max.ms": 200,
            "retry.backoff.ms": 50,
            "log_level": 0,
            **settings,
        }
    )
    made.subscribe([TOPIC])
    return made


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"


def read(member: Any, seen: set[tuple[int, int]], count: int = 20) -> None:
    for message in member.consume(count, timeout=0.1):
        if message.error() is None:
            seen.add((message.partition(), message.offset()))


def commit(member: Any, acknowledged: dict[int, int]) -> None:
    """Commit what was read; what the broker confirmed is in `acknowledged`."""
    try:
        stored = member.commit(asynchronous=False)
    except KafkaException:
        return  # nothing new, or a rebalance or a crash came between: nothing was confirmed
    for found in stored:
        if found.error is None and found.offset >= 0:
            acknowledged[found.partition] = found.offset


def committed(broker: BrokerProcess) -> dict[int, int]:
    """As somebody sees it who is no member."""
    asking = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": GROUP, "log_level": 0})
    found = asking.committed([TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)], WITHIN_S)
    asking.close()
    return {each.partition: each.offset for each in found if each.offset >= 0}


def restart(broker: BrokerProcess) -> None:
    broker.kill()
    broker.start()
    broker.wait_ready()


def test_a_rebalance_that_is_cut_off_starts_over(broker: BrokerProcess) -> None:
    seen: set[tuple[int, int]] = set()
    acknowledged: dict[int, int] = {}
    first = consumer(broker)
    until(lambda: read(first, seen) or len(seen) > 300, "the first records")
    commit(first, acknowledged)
    second = consumer(broker)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

    def rebalancing() -> bool:
        second.poll(0.01)
        described = admin.describe_consumer_groups([GROUP])[GROUP].result(WITHIN_S)
        return bool(described.state == ConsumerGroupState.PREPARING_REBALANCING)

    until(rebalancing, "a rebalance")  # the second waits for the first, which has not sent a heartbeat yet
    restart(broker)
    assert committed(broker) == acknowledged
    until(lambda: read(first, seen) or read(second, seen) or len(seen) == PARTITIONS * RECORDS_EACH, "every record")
    until(
        lambda: read(first, seen) or read(second, seen) or all(len(each.assignment()) == 2 for each in (first, second)),
        "an even assignment",
    )
    for member in (first, second):
        commit(member, acknowledged)
        member.close()
    assert committed(broker) == acknowledged


def test_no_commit_is_lost_whenever_it_dies(broker: BrokerProcess) -> None:
    rng = random.Random(1)
    seen: set[tuple[int, int]] = set()
    acknowledged: dict[int, int] = {}
    members = [consumer(broker), consumer(broker, **{"group.instance.id": "static"})]
    for _ in range(4):
        for _ in range(rng.randrange(2, 12)):
            member = rng.choice(members)
            read(member, seen, rng.randrange(1, 60))
            commit(member, acknowledged)
        if len(members) < 4:
            members.append(consumer(broker))  # a rebalance, as like as not under way when it dies
            members[-1].poll(rng.random() / 5)
        restart(broker)
        now = committed(broker)
        for partition, offset in acknowledged.items():
            assert now.get(partition, -1) >= offset, f"{now} after {acknowledged}"
    until(
        lambda: [read(member, seen, 200) for member in members] and len(seen) == PARTITIONS * RECORDS_EACH,
        "every record",
    )
    for member in members:
        member.close()
