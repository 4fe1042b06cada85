"""Consumer groups of real clients: they share partitions, hand them over, commit, and resume where they were."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.interop.clients.base import DEADLINE_S, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.driver import Java, java_command
from tests.interop.conftest import installed

ck = pytest.importorskip("confluent_kafka")

PARTITIONS = 4
RECORDS = 200


@pytest.fixture
def filled(confluent: Confluent, topic: str) -> str:
    """A topic with records in every partition."""
    confluent.create_topic(topic, PARTITIONS)
    for partition in range(PARTITIONS):
        values = [Record(value=b"%d/%d" % (partition, number)) for number in range(RECORDS // PARTITIONS)]
        confluent.produce(topic, values, partition=partition)
    return topic


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"


def test_confluent_shares_partitions_and_resumes(bootstrap: str, filled: str) -> None:
    def consumer(**more: object) -> Any:
        made = ck.Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": filled,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "heartbeat.interval.ms": 200,
                **more,
            }
        )
        made.subscribe([filled])
        return made

    seen: list[bytes] = []

    def read(consumer: Any) -> None:
        for message in consumer.consume(20, timeout=0.1):
            assert message.error() is None, message.error()
            seen.append(message.value())

    first = consumer()
    wait_until(lambda: read(first) or len(seen) >= RECORDS // 2, "half of the records")
    first.commit(asynchronous=False)
    second = consumer()

    def both_have_two() -> bool:
        read(first), read(second)
        return [len(each.assignment()) for each in (first, second)] == [2, 2]

    wait_until(both_have_two, "an even assignment")
    everything = [ck.TopicPartition(filled, partition) for partition in range(PARTITIONS)]

    def all_is_committed() -> bool:
        for each in (first, second):
            read(each)
            with contextlib.suppress(ck.KafkaException):  # it read nothing since its last commit
                each.commit(asynchronous=False)
        return [found.offset for found in first.committed(everything, DEADLINE_S)] == [
            RECORDS // PARTITIONS
        ] * PARTITIONS

    wait_until(all_is_committed, "a commit of everything")
    assert set(seen) == _all_values()
    for each in (first, second):
        each.close()
    third = consumer()
    committed = third.committed(everything, DEADLINE_S)
    assert [found.offset for found in committed] == [RECORDS // PARTITIONS] * PARTITIONS
    third.close()


def test_confluent_rebalances_cooperatively(bootstrap: str, filled: str) -> None:
    revoked: list[int] = []

    def consumer(name: str) -> Any:
        made = ck.Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": filled,
                "client.id": name,
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "cooperative-sticky",
                "heartbeat.interval.ms": 200,
            }
        )
        made.subscribe([filled], on_revoke=lambda _, partitions: revoked.append(len(partitions)))
        return made

    first, second = consumer("a"), consumer("b")

    def poll(want: list[int]) -> bool:
        for each in (first, second):
            each.poll(0.05)
        return [len(each.assignment()) for each in (first, second)] == want

    wait_until(lambda: poll([2, 2]), "an even assignment")
    assert all(count <= 2 for count in revoked), "nobody gave up more than it had to"
    second.close()
    wait_until(lambda: first.poll(0.05) is None or len(first.assignment()) == 4, "the whole assignment")
    first.close()


def test_confluent_static_member_comes_back_without_a_rebalance(bootstrap: str, filled: str) -> None:
    assigned: list[str] = []

    def consumer(name: str) -> Any:
        made = ck.Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": filled,
                "group.instance.id": name,
                "auto.offset.reset": "earliest",
                "heartbeat.interval.ms": 200,
            }
        )
        made.subscribe([filled], on_assign=lambda _, partitions: assigned.append(name))
        return made

    first, second = consumer("one"), consumer("two")

    def poll(*consumers: Any) -> bool:
        for each in consumers:
            each.poll(0.05)
        return all(len(each.assignment()) == 2 for each in consumers)

    wait_until(lambda: poll(first, second), "an even assignment")
    before = assigned.count("one")
    second.close()
    again = consumer("two")
    wait_until(lambda: poll(first, again), "the same assignment again")
    assert assigned.count("one") == before, "who stayed heard nothing of it"
    for each in (first, again):
        each.close()


async def test_aiokafka_commits_and_resumes(bootstrap: str, filled: str) -> None:
    aiokafka = pytest.importorskip("aiokafka")
    seen: list[bytes] = []
    for part in (RECORDS // 2, RECORDS // 2):
        consumer = aiokafka.AIOKafkaConsumer(
            filled,
            bootstrap_servers=bootstrap,
            group_id=filled,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            async with asyncio.timeout(DEADLINE_S):
                count = 0
                while count < part:
                    for messages in (await consumer.getmany(timeout_ms=500, max_records=part - count)).values():
                        seen += [message.value for message in messages]
                        count += len(messages)
            await consumer.commit()
        finally:
            await consumer.stop()
    assert sorted(seen) == sorted(_all_values())


def test_kafka_python_commits_and_resumes(bootstrap: str, filled: str) -> None:
    kafka = pytest.importorskip("kafka")
    seen: list[bytes] = []
    for part in (RECORDS // 2, RECORDS // 2):
        consumer = kafka.KafkaConsumer(
            filled,
            bootstrap_servers=bootstrap,
            group_id=filled,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_poll_records=10,
        )
        deadline = time.monotonic() + DEADLINE_S
        count = 0
        while count < part and time.monotonic() < deadline:
            for messages in consumer.poll(timeout_ms=500, max_records=part - count).values():
                seen += [message.value for message in messages]
                count += len(messages)
        consumer.commit()
        consumer.close()
    assert sorted(seen) == sorted(_all_values())


@pytest.fixture
def java(bootstrap: str) -> list[str]:
    """How Kafka's own tools are started."""
    installed(Java(bootstrap))
    return java_command()


def test_kafkas_own_tools_show_groups_and_read_their_log(
    bootstrap: str, confluent: Confluent, filled: str, java: list[str]
) -> None:
    consumer = ck.Consumer({"bootstrap.servers": bootstrap, "group.id": filled, "enable.auto.commit": False})
    consumer.commit(
        offsets=[ck.TopicPartition(filled, partition, 10 + partition) for partition in range(PARTITIONS)],
        asynchronous=False,
    )
    consumer.close()

    def tool(name: str, *arguments: str) -> str:
        command = [*java, f"org.apache.kafka.tools.consumer.{name}", "--bootstrap-server", bootstrap, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=True)
        return done.stdout

    groups = "group.ConsumerGroupCommand"
    described = tool(groups, "--describe", "--group", filled)
    for partition in range(PARTITIONS):
        lag = RECORDS // PARTITIONS - 10 - partition
        assert re.search(
            rf"{filled} +{filled} +{partition} +{10 + partition} +{RECORDS // PARTITIONS} +{lag} ", described
        )
    formatter = "org.apache.kafka.tools.consumer.OffsetsMessageFormatter"
    log = tool(
        "ConsoleConsumer",
        *("--topic", "__consumer_offsets", "--from-beginning", "--timeout-ms", "3000", "--formatter", formatter),
    )
    for partition in range(PARTITIONS):
        assert (
            f'"topic":"{filled}","partition":{partition}}}}},"value":{{"version":3,"data":{{"offset":1{partition},'
            in log
        )
    tool(groups, "--group", filled, "--reset-offsets", "--to-earliest", "--topic", filled, "--execute")
    assert re.search(rf"{filled} +{filled} +0 +0 +", tool(groups, "--describe", "--group", filled))
    tool(groups, "--group", filled, "--delete-offsets", "--topic", filled)
    tool(groups, "--group", filled, "--delete")
    assert filled not in tool(groups, "--list").split()


def _all_values() -> set[bytes]:
    return {b"%d/%d" % (p, number) for p in range(PARTITIONS) for number in range(RECORDS // PARTITIONS)}
