"""Several brokers in processes of their own on one bucket, a load on them, and who leads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from controller.config import ControllerSettings
from controller.log import MetadataLog
from s3stream.open import open_object_store
from tests.broker.scraping import Page, get_blocking
from tests.crash.process import BrokerProcess, free_port

__all__ = [
    "TIMEOUT_S",
    "Brokers",
    "Load",
    "Reader",
    "all_of",
    "create_topic",
    "figures",
    "leaders",
    "leading",
    "led_when",
    "others",
    "run_tool",
    "running_brokers",
    "said",
    "shared",
    "until_said",
    "values_in",
]

Brokers = dict[int, BrokerProcess]
"""By node id."""

TIMEOUT_S = 60.0


@contextlib.contextmanager
def running_brokers(
    directory: Path,
    count: int = 3,
    *,
    started: int | None = None,
    program: str = "broker",
    of_each: Callable[[int], Mapping[str, object]] = lambda node_id: {},
    environment: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[Brokers]:
    """Brokers 1, 2, 3 … that serve, or the first of them only; their objects are in `objects`. `of_each` gives settings by node id."""
    with contextlib.ExitStack() as stack:
        found: Brokers = {}
        for node_id in range(1, count + 1):
            own = directory / f"node{node_id}"
            broker = found[node_id] = BrokerProcess(
                own,
                {
                    "node.id": node_id,
                    "controller.listeners": f"CONTROLLER://127.0.0.1:{free_port()}",
                    "object.store.uri": (directory / "objects").as_uri(),
                    "wal.uri": f"{(own / 'wal').as_uri()}?capacity=64MiB",
                    "memory.bytes": 128 << 20,
                    "group.initial.rebalance.delay.ms": 0,
                    **settings,
                    **of_each(node_id),
                },
                program=program,
                environment=environment,
            )
            stack.callback(_killed, broker)
            if started is None or node_id <= started:
                broker.start()
        for broker in found.values():
            if broker.running:
                broker.wait_ready()
        yield found


def _killed(broker: BrokerProcess) -> None:
    if broker.running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(broker.pid, signal.SIGCONT)
        broker.kill()


def all_of(brokers: Brokers) -> str:
    return ",".join(broker.bootstrap_servers for broker in brokers.values())


def others(brokers: Brokers, node_id: int) -> Brokers:
    """All but one."""
    return {other: broker for other, broker in brokers.items() if other != node_id}


def create_topic(brokers: Brokers, topic: str, partitions: int) -> None:
    """Return when it is there; its partitions may still be on their way to being open."""
    admin = AdminClient({"bootstrap.servers": all_of(brokers)})
    admin.create_topics([NewTopic(topic, num_partitions=partitions)])[topic].result(TIMEOUT_S)


def leaders(brokers: Brokers, topic: str) -> dict[int, int]:
    """Who leads each partition, as clients are told; -1: nobody just now."""
    return _leaders(AdminClient({"bootstrap.servers": all_of(brokers)}), topic)


def _leaders(admin: AdminClient, topic: str) -> dict[int, int]:
    told = admin.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
    return {index: partition.leader for index, partition in told.items()}


def led_when(brokers: Brokers, topic: str, condition: Callable[[Mapping[int, int]], bool], what: str) -> dict[int, int]:
    """Who leads each partition, once that is as it should be."""
    deadline = time.monotonic() + TIMEOUT_S
    admin = AdminClient({"bootstrap.servers": all_of(brokers)})
    while not condition(found := _leaders(admin, topic)):
        assert time.monotonic() < deadline, f"{what} did not come about: {found}"
        time.sleep(0.02)
    return found


async def shared(brokers: Brokers, topic: str, expected: dict[int, int]) -> dict[int, int]:
    """Who leads each partition, once all are open, and each broker leads so many."""

    def as_expected(found: Mapping[int, int]) -> bool:
        return Counter(found.values()) == expected

    return await asyncio.to_thread(led_when, brokers, topic, as_expected, f"that so many are led: {expected}")


def said(brokers: Brokers, *texts: str) -> list[str]:
    """Log lines of any broker that hold all of these."""
    return [
        line
        for broker in brokers.values()
        for line in broker.log_path.read_text(errors="replace").splitlines()
        if all(text in line for text in texts)
    ]


def until_said(brokers: Brokers, *texts: str) -> str:
    """The first such line, once there is one."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := said(brokers, *texts)):
        assert time.monotonic() < deadline, f"nobody says: {texts}"
        time.sleep(0.05)
    return found[0]


def figures(brokers: Brokers, name: str, **labels: str) -> dict[int, float]:
    """A metric of each broker; they need `metrics.listeners`."""
    return {
        node_id: Page(get_blocking(int(str(broker.settings["metrics.listeners"]).rpartition(":")[2]), "/metrics")[2])(
            name, **labels
        )
        for node_id, broker in brokers.items()
    }


def run_tool(broker: BrokerProcess, *arguments: str) -> tuple[int, str]:
    """`tidelog …` with the settings of a broker: exit status and what it prints."""
    command = [sys.executable, "-m", "broker", *arguments, "-c", str(broker.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.returncode, done.stdout + done.stderr


class _Client:
    """Works in a thread of its own for as long as it is open."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.errors: list[str] = []
        """What failed of what it asked for."""

    def _run(self) -> None:
        """Until `_stopping` is set."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


class Load(_Client):
    """A producer with default settings, idempotent as a rule, that goes on whatever happens, and what came of its records."""

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        partitions: int,
        *,
        only: Sequence[int] = (),
        size_bytes: int = 0,
        idempotent: bool = True,
    ) -> None:
        """Produce to all partitions in turn, or `only` to some, in records of at least so many bytes."""
        super().__init__()
        self._only = only or range(partitions)
        self._size_bytes = size_bytes
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "enable.idempotence": idempotent})
        self._topic = topic
        self._partitions = partitions
        self._gives_up = False
        self.acknowledged: dict[int, list[int]] = {number: [] for number in range(partitions)}
        """Values by partition, in the order of their acknowledgements."""
        self.longest_gap_s = 0.0
        self.longest_gap_of_one_s = 0.0
        """Between acknowledgements of the same partition. May be set to zero at any time."""
        self._last_of_s: dict[int, float] = {}
        self._last_s = time.monotonic()

    def give_up(self) -> None:
        """Send nothing more, and do not wait for what is not acknowledged."""
        self._gives_up = True
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            self._producer.produce(
                self._topic,
                b"%d" % number + b" " * self._size_bytes,
                partition=self._only[number % len(self._only)],
                on_delivery=self._delivered,
            )
            number += 1
            self._producer.poll(0.002)
        if self._gives_up:
            self._producer.purge()
        if self._producer.flush(TIMEOUT_S):
            self.errors.append("not everything was delivered in the end")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s)
        self._last_s = now_s
        if error is not None:
            self.errors.append(str(error))
        else:
            partition = message.partition() or 0
            self.longest_gap_of_one_s = max(self.longest_gap_of_one_s, now_s - self._last_of_s.get(partition, now_s))
            self._last_of_s[partition] = now_s
            self.acknowledged[partition].append(int(message.value() or b""))


class Reader(_Client):
    """A member of a group with default settings that reads a topic for as long as it is open."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        super().__init__()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "readers",
                "auto.offset.reset": "earliest",
                "on_commit": self._committed,
            }
        )
        self._consumer.subscribe([topic])
        self.values: dict[int, list[int]] = {number: [] for number in range(partitions)}
        """By partition, in the order that they came in."""

    def _run(self) -> None:
        while not self._stopping.is_set():
            for message in self._consumer.consume(500, timeout=0.1):
                error = message.error()
                if error is not None:
                    self.errors.append(str(error))
                else:
                    self.values[message.partition() or 0].append(int(message.value() or b""))
        self._consumer.close()

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        # Nothing new to commit is told as an error, too.
        if error is not None and error.code() != KafkaError._NO_OFFSET:
            self.errors.append(f"commit: {error}")

    async def read(self, expected: Mapping[int, Sequence[int]]) -> None:
        """Return when all of these were read."""
        async with asyncio.timeout(TIMEOUT_S):
            while any(not set(expected[number]) <= set(self.values[number]) for number in expected):
                await asyncio.sleep(0.1)


def values_in(bootstrap_servers: str, topic: str, partitions: int) -> dict[int, list[int]]:
    """Everything that a topic holds, by partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "all", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
    found: dict[int, list[int]] = {number: [] for number in range(partitions)}
    ended = 0
    deadline = time.monotonic() + TIMEOUT_S
    while ended < partitions and time.monotonic() < deadline:
        for message in consumer.consume(500, timeout=1.0):
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                ended += 1
            elif error is None:
                found[message.partition() or 0].append(int(message.value() or b""))
    consumer.close()
    return found


async def leading(objects: Path, brokers: Brokers) -> int:
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
