"""Brokers in processes of their own that have no id and no disk, as pods of a Deployment: they come and go, and what they acknowledged stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from protocol.errors import ErrorCode
from tests.broker.wire import Wire, batch
from tests.cluster.brokers import TIMEOUT_S, Load, values_in
from tests.crash.process import BrokerProcess, free_port
from tests.stores.s3_server import S3Server

pytestmark = pytest.mark.crash

PARTITIONS = 6


class Pods:
    """Processes that are given an id when they start. Each has an address of its own, and nothing else."""

    def __init__(self, directory: Path, uri: str, wal_uri: str, environment: dict[str, str]) -> None:
        self._directory = directory
        self._settings = {
            "node.id": -1,
            "object.store.uri": uri,
            "wal.uri": wal_uri,
            "memory.bytes": 128 << 20,
            "group.initial.rebalance.delay.ms": 0,
        }
        self._environment = environment
        self.all: list[BrokerProcess] = []

    def start(self, count: int) -> list[BrokerProcess]:
        """Start so many at the same instant; returns when they serve."""
        new = [
            BrokerProcess(
                self._directory / f"pod{len(self.all) + number}",
                {"controller.listeners": f"CONTROLLER://127.0.0.1:{free_port()}", **self._settings},
                environment=self._environment,
            )
            for number in range(count)
        ]
        self.all += new
        for pod in new:
            pod.start()
        for pod in new:
            pod.wait_ready()
        return new

    def close(self) -> None:
        for pod in self.all:
            if pod.running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pod.pid, signal.SIGCONT)
                pod.kill()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    uri = (tmp_path / "objects").as_uri()
    found = Pods(tmp_path, uri, f"objects+{uri}?batch_interval_ms=20&capacity=64MiB", {})
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def pods_on_s3(tmp_path: Path, s3_server_named: Callable[[str], S3Server]) -> Iterator[Pods]:
    server = s3_server_named("minio")
    uri = server.uri(server.new_bucket(), "cluster")
    found = Pods(tmp_path, uri, f"{uri}&batch_interval_ms=50&capacity=64MiB", dict(server.environment))
    try:
        yield found
    finally:
        found.close()


def ids_of(pod: BrokerProcess) -> list[int]:
    """Those that it was given, one at each start."""
    said = re.compile(r'is given one" node_id=(\d+)')
    return [int(found[1]) for found in said.finditer(pod.log_path.read_text(errors="replace"))]


def id_of(pod: BrokerProcess) -> int:
    return ids_of(pod)[-1]


def servers(pods: Sequence[BrokerProcess]) -> str:
    return ",".join(pod.bootstrap_servers for pod in pods)


def created(topic: str, pods: Sequence[BrokerProcess], partitions: int = PARTITIONS) -> None:
    """Have a topic made that all of them lead a part of."""
    admin = AdminClient({"bootstrap.servers": servers(pods)})
    admin.create_topics([NewTopic(topic, num_partitions=partitions)])[topic].result(TIMEOUT_S)
    leaders_once(pods, topic, led_by(pods))


def everywhere(load: Load) -> None:
    """Return when something was acknowledged in each partition."""
    deadline = time.monotonic() + TIMEOUT_S
    while not all(load.acknowledged.values()):
        assert time.monotonic() < deadline, load.errors
        time.sleep(0.02)


def leaders_once(pods: Sequence[BrokerProcess], topic: str, wanted: Callable[[set[int]], bool]) -> dict[int, int]:
    """Who leads each partition, once all of them are such."""
    admin = AdminClient({"bootstrap.servers": servers(pods)})
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        told = admin.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        found = {index: partition.leader for index, partition in told.items()}
        if wanted(set(found.values())):
            return found
        assert time.monotonic() < deadline, f"partitions are led by {found}"
        time.sleep(0.05)


def led_by(pods: Sequence[BrokerProcess]) -> Callable[[set[int]], bool]:
    return lambda found: found == {id_of(pod) for pod in pods}


def test_pods_come_and_go_and_nothing_is_lost(pods: Pods) -> None:
    """I1, I2, I11. All at once on a new bucket; then one is killed and replaced at once; then all are replaced, one by one."""
    living = pods.start(3)
    assert sorted(map(id_of, living)) == [1001, 1002, 1003]
    created("t", living)
    with Load(servers(living), "t", PARTITIONS) as load:
        everywhere(load)
        first = living.pop(0)
        killed = id_of(first)
        first.kill()
        living += pods.start(1)
        assert id_of(living[-1]) in (1004, killed), "the other one is dead, as soon as that is known"
        leaders_once(living, "t", led_by(living))

        for old in list(living):  # as a Deployment is updated: one more comes, serves, and an old one goes
            living += pods.start(1)
            living.remove(old)
            old.stop()
        assert set(map(id_of, living)) <= set(range(1001, 1005)), "of brokers that are gone, at once where they said so"
        leaders_once(living, "t", led_by(living))
    print(f"the longest gap between acknowledgements of one partition was {load.longest_gap_of_one_s:.2f} s")
    assert load.errors == []
    assert values_in(servers(living), "t", PARTITIONS) == load.acknowledged, "each record once, in order"


def test_all_pods_are_killed_and_others_find_their_logs_in_the_bucket(pods_on_s3: Pods) -> None:
    """I1. Nobody is left that could say who is dead, and the new ones know nothing but the bucket."""
    first = pods_on_s3.start(3)
    assert sorted(map(id_of, first)) == [1001, 1002, 1003]
    created("t", first)
    with Load(servers(first), "t", PARTITIONS) as load:
        everywhere(load)
    for pod in first:
        pod.kill()
    living = pods_on_s3.start(2)
    assert set(map(id_of, living)) <= set(range(1001, 1006))
    leaders_once(living, "t", led_by(living))
    assert load.errors == []
    assert values_in(servers(living), "t", PARTITIONS) == load.acknowledged


async def test_a_pod_that_slept_takes_nothing_under_the_id_that_is_anothers_by_now(pods: Pods) -> None:
    """I4. It finds out by the bucket, starts again by itself, and is given another id."""
    stays, sleeper = await asyncio.to_thread(pods.start, 2)
    await asyncio.to_thread(created, "t", [stays, sleeper], 2)
    led = await asyncio.to_thread(leaders_once, [stays], "t", led_by([stays, sleeper]))
    slept = id_of(sleeper)
    (partition,) = [index for index, leader in led.items() if leader == slept]
    async with await Wire.connect(sleeper.bootstrap_servers) as wire:
        assert (await wire.produce("t", batch(b"1"), partition=partition)).error_code == 0
        os.kill(sleeper.pid, signal.SIGSTOP)
        late = asyncio.ensure_future(wire.produce("t", batch(b"-1"), partition=partition))
        await asyncio.to_thread(leaders_once, [stays], "t", led_by([stays]))
        (heir,) = await asyncio.to_thread(pods.start, 1)
        assert id_of(heir) == slept
        os.kill(sleeper.pid, signal.SIGCONT)
        await asyncio.wait([late], timeout=TIMEOUT_S)
        assert late.done(), "it answers, or hangs up"
        if late.exception() is None:
            assert late.result().error_code in (
                ErrorCode.NOT_LEADER_OR_FOLLOWER,
                ErrorCode.KAFKA_STORAGE_ERROR,
                ErrorCode.FENCED_LEADER_EPOCH,
            )
    async with asyncio.timeout(TIMEOUT_S):
        while len(ids_of(sleeper)) < 2:
            assert not sleeper.has_ended(), sleeper.log_tail()
            await asyncio.sleep(0.1)
    assert len({id_of(stays), id_of(heir), id_of(sleeper)}) == 3
    assert not heir.has_ended(), heir.log_tail()
    assert ids_of(heir) == [slept], "it was not disturbed"
    found = await asyncio.to_thread(values_in, servers([stays, heir, sleeper]), "t", 2)
    assert found[partition] == [1], "the one that came too late is not there"
