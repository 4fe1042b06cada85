"""Three brokers in processes of their own on one bucket, and real clients: whichever of them leads, and whoever of them dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from controller.config import ControllerSettings
from controller.log import MetadataLog
from s3stream.open import open_object_store
from tests.crash.process import BrokerProcess, free_port

pytestmark = pytest.mark.crash

NODES = (1, 2, 3)
RECORDS = 2_000
_TIMEOUT_S = 60.0


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[dict[int, BrokerProcess]]:
    """Three brokers that serve, by node id."""
    with contextlib.ExitStack() as stack:
        found: dict[int, BrokerProcess] = {}
        for node_id in NODES:
            directory = tmp_path / f"node{node_id}"
            broker = found[node_id] = BrokerProcess(
                directory,
                {
                    "node.id": node_id,
                    "controller.listeners": f"CONTROLLER://127.0.0.1:{free_port()}",
                    "object.store.uri": (tmp_path / "objects").as_uri(),
                    "wal.uri": f"{(directory / 'wal').as_uri()}?capacity=64MiB",
                    "memory.bytes": 128 << 20,
                    "group.initial.rebalance.delay.ms": 0,
                },
            )
            stack.callback(_killed, broker)
            broker.start()
        for broker in found.values():
            broker.wait_ready()
        yield found


def _killed(broker: BrokerProcess) -> None:
    if broker.running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(broker.pid, signal.SIGCONT)
        broker.kill()


def all_of(brokers: dict[int, BrokerProcess]) -> str:
    return ",".join(broker.bootstrap_servers for broker in brokers.values())


def test_partitions_are_spread_and_clients_find_them(brokers: dict[int, BrokerProcess]) -> None:
    admin = AdminClient({"bootstrap.servers": brokers[3].bootstrap_servers})
    admin.create_topics([NewTopic("spread", num_partitions=9, replication_factor=3)])["spread"].result(_TIMEOUT_S)
    told = AdminClient({"bootstrap.servers": brokers[2].bootstrap_servers}).list_topics("spread", timeout=_TIMEOUT_S)
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
    assert producer.flush(_TIMEOUT_S) == 0
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
    deadline = time.monotonic() + _TIMEOUT_S
    while len(values) < RECORDS and time.monotonic() < deadline:
        for message in consumer.consume(500, timeout=1.0):
            assert message.error() is None, message.error()
            values.add(int(message.value() or b""))
    assert values == set(range(RECORDS))
    consumer.commit(asynchronous=False)
    committed = consumer.committed([TopicPartition("spread", number) for number in range(9)], timeout=_TIMEOUT_S)
    assert sum(each.offset for each in committed) == RECORDS
    consumer.close()


class Load:
    """An idempotent producer with default settings that goes on whatever happens, and what came of its records."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "enable.idempotence": True, "linger.ms": 5})
        self._topic = topic
        self._partitions = partitions
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.errors: list[str] = []
        self.acknowledged: dict[int, list[int]] = {number: [] for number in range(partitions)}
        """Values by partition, in the order of their acknowledgements."""
        self.longest_gap_s = 0.0
        self._last_s = time.monotonic()

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            self._producer.produce(
                self._topic, b"%d" % number, partition=number % self._partitions, on_delivery=self._delivered
            )
            number += 1
            self._producer.poll(0.002)
        if self._producer.flush(_TIMEOUT_S):
            self.errors.append("not everything was delivered in the end")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s)
        self._last_s = now_s
        if error is not None:
            self.errors.append(str(error))
        else:
            self.acknowledged[message.partition() or 0].append(int(message.value() or b""))


def values_in(bootstrap_servers: str, topic: str, partitions: int) -> dict[int, list[int]]:
    """Everything that a topic holds, by partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "all", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
    found: dict[int, list[int]] = {number: [] for number in range(partitions)}
    ended = 0
    deadline = time.monotonic() + _TIMEOUT_S
    while ended < partitions and time.monotonic() < deadline:
        for message in consumer.consume(500, timeout=1.0):
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                ended += 1
            elif error is None:
                found[message.partition() or 0].append(int(message.value() or b""))
    consumer.close()
    return found


async def leading(objects: Path, brokers: dict[int, BrokerProcess]) -> int:
    """The node that the leader object in the bucket names."""
    opened = open_object_store(objects.as_uri(), rng=random.Random(0), read_only=True)
    log = MetadataLog(store=opened.store, paths=opened.paths, settings=ControllerSettings(), rng=random.Random(0))
    while True:
        leader = await log.read_leader()
        for node_id, broker in brokers.items():
            if leader is not None and leader.leader == broker.settings["controller.listeners"].removeprefix(
                "CONTROLLER://"
            ):
                return node_id
        await asyncio.sleep(0.05)


async def replaced(objects: Path, brokers: dict[int, BrokerProcess], former: int) -> int:
    """Return when another node than the former leader leads."""
    async with asyncio.timeout(_TIMEOUT_S):
        while (found := await leading(objects, brokers)) == former:
            await asyncio.sleep(0.05)
    return found


@pytest.mark.parametrize("how", ["killed", "paused", "stopped"])
async def test_a_leader_is_replaced_and_no_client_notices(
    how: str, brokers: dict[int, BrokerProcess], tmp_path: Path
) -> None:
    objects = tmp_path / "objects"
    admin = AdminClient({"bootstrap.servers": all_of(brokers)})
    admin.create_topics([NewTopic("t", num_partitions=6)])["t"].result(_TIMEOUT_S)
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
            await asyncio.to_thread(made[f"made-{round_}"].result, _TIMEOUT_S)
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
