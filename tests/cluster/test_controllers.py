"""Three brokers in processes of their own on one bucket, and real clients: whichever of them leads, and whoever of them dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.cluster.brokers import TIMEOUT_S, Brokers, Load, all_of, leading, replaced, values_in

pytestmark = pytest.mark.crash

RECORDS = 2_000


def test_partitions_are_spread_and_clients_find_them(brokers: Brokers) -> None:
    admin = AdminClient({"bootstrap.servers": brokers[3].bootstrap_servers})
    admin.create_topics([NewTopic("spread", num_partitions=9, replication_factor=3)])["spread"].result(TIMEOUT_S)
    told = AdminClient({"bootstrap.servers": brokers[2].bootstrap_servers}).list_topics("spread", timeout=TIMEOUT_S)
    assert sorted(told.brokers) == [1, 2, 3]
    assert sorted(partition.leader for partition in told.topics["spread"].partitions.values()) == [
        1,
        1,
        1,
        2,
        2,
        2,
        3,
        3,
        3,
    ]
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


@pytest.mark.parametrize("how", ["killed", "paused", "stopped"])
async def test_a_leader_is_replaced_and_no_client_notices(how: str, brokers: Brokers, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    admin = AdminClient({"bootstrap.servers": all_of(brokers)})
    admin.create_topics([NewTopic("t", num_partitions=6)])["t"].result(TIMEOUT_S)
    with Load(all_of(brokers), "t", 6) as load:
        for round_ in range(int(os.environ.get("TIDELOG_CONTROLLER_ROUNDS", "2"))):
            former = await leading(objects, brokers)
            broker = brokers[former]
            if how == "killed":
                broker.kill()
            elif how == "paused":
                os.kill(broker.pid, signal.SIGSTOP)
            else:
                await asyncio.to_thread(broker.stop)
            now = await replaced(objects, brokers, former)
            # The new one decides: a topic comes into being while the former leader is away.
            others = AdminClient({"bootstrap.servers": brokers[now].bootstrap_servers})
            made = others.create_topics([NewTopic(f"made-{round_}", num_partitions=1)])
            await asyncio.to_thread(made[f"made-{round_}"].result, TIMEOUT_S)
            if how == "paused":
                os.kill(broker.pid, signal.SIGCONT)
            else:
                broker.start()
                await asyncio.to_thread(broker.wait_ready)
            await asyncio.sleep(1.0)
    print(f"{how}: the longest gap between acknowledgements was {load.longest_gap_s:.2f} s")
    assert load.errors == []
    found = await asyncio.to_thread(values_in, all_of(brokers), "t", 6)
    assert found == load.acknowledged, "each record once, in order"
    for broker in brokers.values():
        assert not broker.has_ended(), broker.log_tail()
