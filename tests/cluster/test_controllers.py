"""Three brokers in processes of their own on one bucket, and real clients; see `tests/faults` for leaders that are lost."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.cluster.brokers import TIMEOUT_S, Brokers, shared

pytestmark = pytest.mark.crash

RECORDS = 2_000


async def test_partitions_are_spread_and_clients_find_them(brokers: Brokers) -> None:
    admin = AdminClient({"bootstrap.servers": brokers[3].bootstrap_servers})
    admin.create_topics([NewTopic("spread", num_partitions=9, replication_factor=3)])["spread"].result(TIMEOUT_S)
    await shared({2: brokers[2]}, "spread", {1: 3, 2: 3, 3: 3})
    told = AdminClient({"bootstrap.servers": brokers[2].bootstrap_servers}).list_topics("spread", timeout=TIMEOUT_S)
    assert sorted(told.brokers) == [1, 2, 3]
    producer = Producer({"bootstrap.servers": brokers[1].bootstrap_servers, "enable.idempotence": True})
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)

    for number in range(RECORDS):
        producer.produce("spread", f"{number}", partition=number % 9, on_delivery=delivered)
        producer.poll(0)
    assert producer.flush(TIMEOUT_S) == 0
    assert failed == []
    consumer = Consumer(
        {
            "bootstrap.servers": brokers[2].bootstrap_servers,
            "group.id": "readers",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe(["spread"])
    values: set[int] = set()
    deadline = time.monotonic() + TIMEOUT_S
    while len(values) < RECORDS and time.monotonic() < deadline:
        for message in consumer.consume(500, timeout=1.0):
            assert message.error() is None, message.error()
            values.add(int(message.value() or b""))
    assert values == set(range(RECORDS))
    consumer.commit(asynchronous=False)
    committed = consumer.committed([TopicPartition("spread", number) for number in range(9)], timeout=TIMEOUT_S)
    assert sum(each.offset for each in committed) == RECORDS
    consumer.close()
