"""Brokers in processes of their own that die, or sleep for too long, under load: others recover their WALs, nothing is lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from protocol.errors import ErrorCode
from tests.broker.scraping import Page, get_blocking
from tests.broker.wire import Wire, batch
from tests.cluster.brokers import (
    TIMEOUT_S,
    Brokers,
    Load,
    all_of,
    create_topic,
    leaders,
    led_when,
    others,
    run_tool,
    running_brokers,
    until_said,
    values_in,
)
from tests.cluster.test_moves import committed_offset
from tests.crash.process import free_port
from tests.stores.s3_server import S3Server

pytestmark = pytest.mark.crash

PARTITIONS = 6


@pytest.fixture(params=["on disks", "in a bucket"])
def anywhere(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server_named: Callable[[str], S3Server]
) -> Iterator[tuple[Brokers, Sequence[int]]]:
    """Three brokers whose WALs others can reach: on disks of one machine, or in a bucket of MinIO, where everything else is too. And which
    are to die: node 1 leads, as a rule, since it was there first."""
    if request.param == "on disks":
        with running_brokers(tmp_path) as found:
            yield found, (2, 1)
        return
    server = s3_server_named("minio")
    uri = server.uri(server.new_bucket(), "cluster")
    settings: dict[str, Any] = {"object.store.uri": uri, "wal.uri": f"{uri}&batch_interval_ms=5&capacity=64MiB"}
    with running_brokers(tmp_path, environment=server.environment, **settings) as found:
        yield found, (2,)


def all_led_without(node_id: int) -> Callable[[Mapping[int, int]], bool]:
    return lambda found: not {-1, node_id} & set(found.values())


def test_partitions_of_a_killed_broker_go_on_elsewhere(anywhere: tuple[Brokers, Sequence[int]]) -> None:
    """I1, I2, I11; and groups, whose commits are records. It is started again, and gets its share."""
    brokers, victims = anywhere
    create_topic(brokers, "t", PARTITIONS)
    with Load(all_of(brokers), "t", PARTITIONS) as load:
        group = Group(all_of(brokers), "t")
        committed = group.go_on(100)
        for victim in victims:
            began_s = time.monotonic()
            brokers[victim].kill()
            rest = others(brokers, victim)
            led_when(rest, "t", all_led_without(victim), "its partitions go on")
            led_when(rest, "__consumer_offsets", all_led_without(victim), "its groups have coordinators")
            took_s = time.monotonic() - began_s
            line = until_said(rest, "the WAL of a dead node was recovered", f"node_id={victim}")
            took_ms = line.partition("took_ms=")[2].split()[0]
            print(f"node {victim} was killed: led again after {took_s:.2f} s, of which the recovery took {took_ms} ms")
            assert group.committed() == committed, "none is lost with the broker that confirmed it"
            committed = group.go_on(100)
            brokers[victim].start()
            brokers[victim].wait_ready()
            led_when(
                brokers, "__consumer_offsets", lambda found, its=victim: its in found.values(), "it gets its share"
            )
        group.close()
    print(f"the longest gap between acknowledgements of one partition was {load.longest_gap_of_one_s:.2f} s")
    assert load.errors == []
    assert values_in(all_of(brokers), "t", PARTITIONS) == load.acknowledged, "each record once, in order"
    for broker in brokers.values():
        assert not broker.has_ended(), broker.log_tail()


class Group:
    """A group of one consumer, which commits what it has read."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "g",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        self._consumer.subscribe([topic])
        self.close = self._consumer.close

    def go_on(self, count: int) -> int:
        """Read so many records more, and commit; what is committed of partition 0 by then."""
        read = 0
        deadline = time.monotonic() + TIMEOUT_S
        while read < count:
            read += sum(message.error() is None for message in self._consumer.consume(count, 0.5))
            assert time.monotonic() < deadline, f"{read} records were read"
        self._consumer.commit(asynchronous=False)
        return self.committed()

    def committed(self) -> int:
        """What the coordinator says of partition 0."""
        return committed_offset(self._consumer)


async def test_a_broker_that_slept_acknowledges_nothing_more(brokers: Brokers) -> None:
    """I4. What was sent to it while it slept is in its socket when it wakes up, and it still holds its WAL open."""
    create_topic(brokers, "t", PARTITIONS)
    sleeper = 2
    led = await asyncio.to_thread(led_when, brokers, "t", lambda found: sleeper in found.values(), "it has some")
    its = [index for index, leader in led.items() if leader == sleeper]
    with Load(all_of(brokers), "t", PARTITIONS) as load:
        async with await Wire.connect(brokers[sleeper].bootstrap_servers) as wire:
            await asyncio.sleep(0.5)
            os.kill(brokers[sleeper].pid, signal.SIGSTOP)
            late = [asyncio.ensure_future(wire.produce("t", batch(b"-1"), partition=its[0]))]
            rest = others(brokers, sleeper)
            await asyncio.to_thread(led_when, rest, "t", all_led_without(sleeper), "its partitions go on")
            await asyncio.sleep(0.5)
            os.kill(brokers[sleeper].pid, signal.SIGCONT)
            await asyncio.wait(late, timeout=TIMEOUT_S)
            assert late[0].done(), "it answers, or hangs up"
            if late[0].exception() is None:
                assert late[0].result().error_code in (
                    ErrorCode.NOT_LEADER_OR_FOLLOWER,
                    ErrorCode.KAFKA_STORAGE_ERROR,
                    ErrorCode.FENCED_LEADER_EPOCH,
                )
        await asyncio.sleep(1.0)
    print(f"the longest gap between acknowledgements of one partition was {load.longest_gap_of_one_s:.2f} s")
    assert load.errors == []
    found = await asyncio.to_thread(values_in, all_of(rest), "t", PARTITIONS)
    assert found == load.acknowledged, "each record once, in order, and not the one that came too late"


REPORTED_WITHIN_S = 3.0
"""A node reports about once a second: by then the leader, and whoever follows it, knows of what was acknowledged; generous."""


@pytest.mark.parametrize("victim", [2, 1], ids=["one that follows", "the one that leads"])
def test_what_an_unreachable_wal_alone_held_is_told_by_its_last_report(tmp_path: Path, victim: int) -> None:
    """A broker is killed under load: what is said to be lost was acknowledged, and is not less than what was a while before."""
    ports = {node_id: free_port() for node_id in (1, 2, 3)}
    with running_brokers(
        tmp_path,
        of_each=lambda node_id: {"metrics.listeners": f"HTTP://127.0.0.1:{ports[node_id]}"},
        **{"upload.interval.ms": 600_000},
    ) as brokers:
        create_topic(brokers, "t", PARTITIONS)
        led = led_when(brokers, "t", lambda found: set(found.values()) == {1, 2, 3}, "each has some")
        its = [index for index, leader in led.items() if leader == victim]
        with Load(all_of(brokers), "t", PARTITIONS, only=its, size_bytes=100) as load:
            time.sleep(1.0)
            acknowledged_before = sum(map(len, load.acknowledged.values()))
            time.sleep(REPORTED_WITHIN_S)
            brokers[victim].kill()
            (tmp_path / f"node{victim}" / "wal").rename(tmp_path / "burnt")
            load.give_up()
            acknowledged = {index: len(load.acknowledged[index]) for index in its}
        rest = others(brokers, victim)
        line = until_said(rest, "partitions of a dead node are offline", f"node_id={victim} ")
        assert f"node {victim} last reported, " in line
        wal_id = line.partition("tidelog wal abandon ")[2].split()[0]
        code, told = run_tool(rest[3], "wal", "abandon", wal_id, "--json")
        assert code == 2, told
        *partitions, cost, _ = (json.loads(row) for row in told.splitlines() if row.startswith("{"))
        print(cost["cost"])
        assert acknowledged_before <= cost["left_records"] <= sum(acknowledged.values())
        of_topic = {row["partition"]: row for row in partitions if row["partition"].startswith("t-")}
        assert set(of_topic) == {f"t-{index}" for index in its}
        for index in its:
            assert 0 < of_topic[f"t-{index}"]["reported_end_offset"] <= acknowledged[index]
        assert 0 <= cost["before_silence_ms"] <= 1_000 * REPORTED_WITHIN_S
        assert f'"reported_records":{cost["records"]},' in run_tool(rest[3], "inspect", "metadata", "--json")[1]
        pages = [Page(get_blocking(ports[node_id], "/metrics")[2]) for node_id in rest]
        labels = {"node": str(victim), "wal_id": wal_id}
        assert {page("tidelog_lost_wal_reported_records", **labels) for page in pages} == {0, cost["records"]}


def test_what_only_an_unreachable_wal_holds_is_given_up_by_an_operator_alone(brokers: Brokers, tmp_path: Path) -> None:
    create_topic(brokers, "t", PARTITIONS)
    victim = 2
    led = led_when(brokers, "t", lambda found: victim in found.values(), "it has some")
    producer = Producer({"bootstrap.servers": all_of(brokers), "enable.idempotence": True})
    for index in led:
        producer.produce("t", b"before", partition=index)
    assert producer.flush(TIMEOUT_S) == 0
    time.sleep(REPORTED_WITHIN_S)
    _, told = run_tool(brokers[1], "inspect", "metadata", "--json")
    rows = [json.loads(row) for row in told.splitlines()]
    (living_id,) = (row["wal_id"] for row in rows if row["kind"] == "node" and row["node_id"] == victim)
    code, told = run_tool(brokers[1], "wal", "abandon", living_id, "--yes")
    assert (code, f"node {victim} runs, as far as the cluster knows" in told) == (2, True), told
    brokers[victim].kill()
    (tmp_path / "node2" / "wal").rename(tmp_path / "burnt")
    rest = others(brokers, victim)

    led_when(rest, "t", lambda found: -1 in found.values() and victim not in found.values(), "they are offline")
    _, told = run_tool(rest[1], "inspect", "metadata", "--json")
    line = until_said(rest, "partitions of a dead node are offline")
    wal_id = line.partition("tidelog wal abandon ")[2].split()[0]
    assert wal_id == living_id
    assert f" wal_id={wal_id}" in line
    assert wal_id in told
    time.sleep(1.0)
    its = {index for index, leader in leaders(rest, "t").items() if leader == -1}
    assert its, "nobody guesses"
    code, told = run_tool(rest[1], "wal", "abandon", wal_id)
    assert (code, "nothing was done" in told) == (2, True), told
    code, told = run_tool(rest[1], "wal", "abandon", wal_id, "--yes")
    assert (code, "are given up" in told) == (0, True), told

    led_when(rest, "t", all_led_without(victim), "they go on past the gap")
    producer = Producer({"bootstrap.servers": all_of(rest), "enable.idempotence": True})
    for index in led:
        producer.produce("t", b"after", partition=index)
    assert producer.flush(TIMEOUT_S) == 0
    consumer = Consumer({"bootstrap.servers": all_of(rest), "group.id": "any"})
    for index in its:
        low, high = consumer.get_watermark_offsets(TopicPartition("t", index), timeout=TIMEOUT_S)
        assert (low, high) == (0, 1_000_000_002), (
            "past what was reported, and as much again as can have come after that"
        )
    consumer.close()
