"""Partitions that go from broker to broker under load: no data moves, nothing is lost, doubled or reordered, and no client fails."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from protocol.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)
from protocol.messages.list_partition_reassignments import ListPartitionReassignmentsRequest
from protocol.messages.produce import LeaderIdAndEpoch
from tests.broker.wire import Wire, batch, fetch_request, produce_request
from tests.cluster.brokers import (
    TIMEOUT_S,
    Brokers,
    Load,
    all_of,
    create_topic,
    leaders,
    running_brokers,
    shared,
    values_in,
)
from tests.interop.clients.driver import Java, java_command
from tests.interop.conftest import installed

pytestmark = pytest.mark.crash

PARTITIONS = 6


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Brokers]:
    """Three brokers that leave partitions where they are put."""
    with running_brokers(tmp_path, **{"balance.enable": False}) as found:
        yield found


async def reassign(brokers: Brokers, topic: str, targets: Mapping[int, list[int] | None]) -> dict[int, int]:
    """Ask any broker for a reassignment; returns the error code by partition."""
    request = AlterPartitionReassignmentsRequest(
        topics=[
            ReassignableTopic(
                name=topic,
                partitions=[
                    ReassignablePartition(partition_index=index, replicas=replicas)
                    for index, replicas in targets.items()
                ],
            )
        ]
    )
    async with await Wire.connect(brokers[2].bootstrap_servers) as wire:
        response = await wire.call("AlterPartitionReassignments", 1, request)
    assert response.error_code == 0
    return {each.partition_index: each.error_code for each in response.responses[0].partitions}


async def moved(brokers: Brokers) -> None:
    """Return when no reassignment is under way, as every broker sees it."""
    for broker in brokers.values():
        async with asyncio.timeout(TIMEOUT_S), await Wire.connect(broker.bootstrap_servers) as wire:
            while (await wire.call("ListPartitionReassignments", 0, ListPartitionReassignmentsRequest())).topics:
                await asyncio.sleep(0.02)


async def test_partitions_move_under_load(brokers: Brokers, tmp_path: Path) -> None:
    create_topic(brokers, "t", PARTITIONS)
    with Load(all_of(brokers), "t", PARTITIONS) as load:
        await asyncio.sleep(0.5)
        for round_ in range(6):
            target = round_ % 3 + 1
            errors = await reassign(brokers, "t", {index: [target] for index in range(PARTITIONS)})
            assert set(errors.values()) == {0}
            await moved(brokers)
            await shared(brokers, "t", {target: PARTITIONS})
            await asyncio.sleep(0.5)
    print(f"the longest gap between acknowledgements was {load.longest_gap_s:.2f} s")
    assert load.errors == []
    found = await asyncio.to_thread(values_in, all_of(brokers), "t", PARTITIONS)
    assert found == load.acknowledged, "each record once, in order"
    for broker in brokers.values():
        assert not broker.has_ended(), broker.log_tail()


def committed_offset(consumer: Consumer) -> int:
    """What a group has committed. librdkafka tells of a coordinator that moved just now instead of asking the next one."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            (found,) = consumer.committed([TopicPartition("t", 0)], timeout=TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NOT_COORDINATOR or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return int(found.offset)


async def test_groups_go_on_at_their_new_coordinator(brokers: Brokers) -> None:
    create_topic(brokers, "t", 1)
    with Load(all_of(brokers), "t", 1) as load:
        consumer = Consumer(
            {
                "bootstrap.servers": all_of(brokers),
                "group.id": "g",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe(["t"])
        committed = 0
        for round_ in range(4):
            deadline = time.monotonic() + TIMEOUT_S
            read = 0
            while read < 100 and time.monotonic() < deadline:
                messages = await asyncio.to_thread(consumer.consume, 100, 0.5)
                assert all(message.error() is None for message in messages)
                read += len(messages)
            await asyncio.to_thread(consumer.commit, asynchronous=False)
            offset = await asyncio.to_thread(committed_offset, consumer)
            assert offset >= committed + 100, "no commit is lost"
            committed = offset
            offsets_partitions = await asyncio.to_thread(leaders, brokers, "__consumer_offsets")
            target = round_ % 3 + 1
            errors = await reassign(brokers, "__consumer_offsets", {index: [target] for index in offsets_partitions})
            assert set(errors.values()) == {0}
            await moved(brokers)
        offset = await asyncio.to_thread(committed_offset, consumer)
        assert offset == committed
        await asyncio.to_thread(consumer.close)
    assert load.errors == []


async def test_what_cannot_be_moved_is_told(brokers: Brokers) -> None:
    create_topic(brokers, "t", 3)
    assert await reassign(brokers, "t", {0: [9], 1: [], 2: None, 7: [1]}) == {0: 39, 1: 39, 2: 85, 7: 3}
    assert await reassign(brokers, "nothing", {0: [1]}) == {0: 3}


def test_kafkas_own_tool_moves_partitions(brokers: Brokers, tmp_path: Path) -> None:
    installed(Java(all_of(brokers)))
    create_topic(brokers, "t", 3)
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "version": 1,
                "partitions": [{"topic": "t", "partition": index, "replicas": [3 - index]} for index in range(3)],
            }
        )
    )

    def tool(*arguments: str) -> str:
        command = [*java_command(), "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"]
        command += ["--bootstrap-server", all_of(brokers), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "Successfully started partition reassignments" in tool("--execute", "--reassignment-json-file", str(plan))
    deadline = time.monotonic() + TIMEOUT_S
    while (told := tool("--verify", "--reassignment-json-file", str(plan))).count("is completed") < 3:
        assert time.monotonic() < deadline, told
    assert "No partition reassignments found" in tool("--list")
    assert leaders(brokers, "t") == {0: 3, 1: 2, 2: 1}


async def test_clients_are_told_where_to_go_and_are_awaited_there(brokers: Brokers) -> None:
    """KIP-951: the refusal names the next leader, its epoch and its address, before that one has opened the partition. And a batch that
    was acknowledged by the one before is known there (I11)."""

    def record(sequence: int) -> bytes:
        return batch(b"%d" % sequence, producer_id=7, producer_epoch=0, base_sequence=sequence)

    create_topic(brokers, "t", 1)
    home = (await asyncio.to_thread(leaders, brokers, "t"))[0]
    away = home % 3 + 1
    expected = 0
    for source, target in ((home, away), (away, home)) * 3:
        async with (
            asyncio.timeout(TIMEOUT_S),
            await Wire.connect(brokers[source].bootstrap_servers) as wire,
            await Wire.connect(brokers[target].bootstrap_servers) as next_wire,
        ):
            epoch = (await wire.list_offset("t", -1)).leader_epoch
            assert await reassign(brokers, "t", {0: [target]}) == {0: 0}
            while True:
                response = await wire.call("Produce", 11, produce_request("t", record(expected)))
                answer = response.responses[0].partition_responses[0]
                if answer.error_code:
                    break
                assert answer.base_offset == expected
                expected += 1
            assert answer.error_code == 6
            assert answer.current_leader == LeaderIdAndEpoch(leader_id=target, leader_epoch=epoch + 1)
            (endpoint,) = response.node_endpoints
            assert (endpoint.node_id, f"{endpoint.host}:{endpoint.port}") == (target, brokers[target].bootstrap_servers)
            if expected:
                answer = await next_wire.produce("t", record(expected - 1), version=11)
                assert (answer.error_code, answer.base_offset) == (0, expected - 1), "a retry of what was acknowledged"
            assert (await next_wire.produce("t", record(expected + 1), version=11)).error_code == 45, "one is missing"
            answer = await next_wire.produce("t", record(expected), version=11)
            assert (answer.error_code, answer.base_offset) == (0, expected), "it waited until it was served"
            expected += 1
            # No longer here: consumers are sent there as well.
            topic_id = id_of(brokers, "t")
            fetched = await wire.call("Fetch", 16, fetch_request(topic_id, max_wait_ms=500))
            (data,) = fetched.responses[0].partitions
            assert (data.error_code, data.current_leader.leader_id, data.current_leader.leader_epoch) == (
                6,
                target,
                epoch + 1,
            )
            assert [each.node_id for each in fetched.node_endpoints] == [target]
    assert await asyncio.to_thread(values_in, all_of(brokers), "t", 1) == {0: [*range(expected)]}


def id_of(brokers: Brokers, topic: str) -> bytes:
    """16 bytes."""
    admin = AdminClient({"bootstrap.servers": all_of(brokers)})
    (found,) = admin.describe_topics(TopicCollection([topic])).values()
    topic_id = found.result(TIMEOUT_S).topic_id
    return (topic_id.get_most_significant_bits() % 2**64).to_bytes(8) + (
        topic_id.get_least_significant_bits() % 2**64
    ).to_bytes(8)
