"""Several brokers on one directory for objects, and clients of librdkafka that note how long each record took.

Always true:
- Brokers are processes of their own with default settings but for their memory, and listen on loopback.
- Clients have default settings, the producer is idempotent. A record holds the time that it was produced at.
"""

from __future__ import annotations

import contextlib
import statistics
import struct
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import OFFSET_END, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from bench.broker import Broker, free_port, running_broker
from bench.load import LoadFailed

__all__ = [
    "RATE_BYTES",
    "RECORD_BYTES",
    "TIMEOUT_S",
    "Load",
    "Node",
    "Partition",
    "Reader",
    "all_of",
    "fail_on",
    "leaders",
    "print_spread",
    "running_node",
]

RATE_BYTES = 50_000_000
"""What producers send in a second."""
RECORD_BYTES = 10_000
TIMEOUT_S = 60.0
_MEMORY_BYTES = 512 << 20
_TICK_S = 0.001


Partition = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One broker, and where its figures and settings are."""

    broker: Broker
    metrics_port: int
    config: Path

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all labels but those given."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            lines = response.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.partition("{")[0].partition(" ")[0] == name and all(each in line for each in wanted)
        )


@contextlib.contextmanager
def running_node(work_dir: Path, node_id: int) -> Iterator[Node]:
    """One of several that share a directory: its own is kept, so that it may be started again."""
    directory = work_dir / f"node{node_id}"
    controller_port, metrics_port = free_port(), free_port()
    settings: dict[str, object] = {
        "node.id": node_id,
        "object.store.uri": f"file://{work_dir}/objects",
        "controller.listeners": f"CONTROLLER://127.0.0.1:{controller_port}",
        "metrics.listeners": f"HTTP://127.0.0.1:{metrics_port}",
        "memory.bytes": _MEMORY_BYTES,
    }
    with running_broker(directory, settings) as broker:
        yield Node(broker=broker, metrics_port=metrics_port, config=directory / "tidelog.toml")


def all_of(nodes: Mapping[int, Node]) -> str:
    return ",".join(node.broker.bootstrap for node in nodes.values())


def leaders(nodes: Mapping[int, Node], topic: str) -> dict[int, int]:
    """Who leads each partition, as clients are told."""
    told = AdminClient({"bootstrap.servers": all_of(nodes)}).list_topics(topic, timeout=TIMEOUT_S)
    return {index: partition.leader for index, partition in told.topics[topic].partitions.items()}


class Load:
    """Records of the time they were produced at, to some partitions in turn, at an even rate."""

    def __init__(self, bootstrap: str, partitions: Sequence[Partition]) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 0})
        self._partitions = partitions
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies: dict[Partition, list[tuple[float, float]]] = defaultdict(list)
        """By partition: when a record was produced, and how long its acknowledgement took, in seconds."""
        self.sent_bytes = 0
        self.errors: list[str] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        padding = bytes(RECORD_BYTES - 8)
        began = time.perf_counter()
        sent = 0
        while not self._stopping.is_set():
            now = time.perf_counter()
            due = int((now - began) * RATE_BYTES / RECORD_BYTES)
            while sent < due:
                topic, partition = self._partitions[sent % len(self._partitions)]
                value = struct.pack(">d", time.perf_counter()) + padding
                try:
                    self._producer.produce(topic, value, partition=partition, on_delivery=self._delivered)
                except BufferError:
                    break  # it holds a hundred thousand records: whoever waits so long is told by their latencies
                sent += 1
            self.sent_bytes = sent * RECORD_BYTES
            self._producer.poll(_TICK_S)
        if self._producer.flush(TIMEOUT_S):
            self.errors.append("not everything was delivered in the end")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.errors.append(str(error))
            return
        (at,) = struct.unpack_from(">d", message.value() or b"")
        self.latencies[message.topic() or "", message.partition() or 0].append((at, time.perf_counter() - at))

    def longest(self, partition: Partition, from_s: float, to_s: float) -> float:
        """The longest latency of records that were produced in a time."""
        return _longest(self.latencies[partition], from_s, to_s)


class Reader:
    """A consumer of new records: of all partitions of a topic, as the one member of a group, or of one of them."""

    def __init__(self, bootstrap: str, topic: str, partition: int | None = None) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "bench",
                "auto.offset.reset": "latest",
                "on_commit": self._committed,
                "log_level": 0,
            }
        )
        if partition is None:
            self._consumer.subscribe([topic])
        else:
            self._consumer.assign([TopicPartition(topic, partition, OFFSET_END)])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies: dict[int, list[tuple[float, float]]] = defaultdict(list)
        """By partition: when a record was produced, and how long it took to be here, in seconds."""
        self.errors: list[str] = []

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for message in self._consumer.consume(1_000, 0.05):
                error = message.error()
                if error is not None:
                    self.errors.append(str(error))
                    continue
                (at,) = struct.unpack_from(">d", message.value() or b"")
                self.latencies[message.partition() or 0].append((at, time.perf_counter() - at))

    def _committed(self, error: KafkaError | None, _: list[TopicPartition]) -> None:
        # Nothing new to commit is told as an error, too.
        if error is not None and error.code() != KafkaError._NO_OFFSET:
            self.errors.append(f"commit: {error}")

    def longest(self, partition: int, from_s: float, to_s: float) -> float:
        """As of `Load`."""
        return _longest(self.latencies[partition], from_s, to_s)


def _longest(latencies: Sequence[tuple[float, float]], from_s: float, to_s: float) -> float:
    return max((latency for at, latency in latencies if from_s <= at <= to_s), default=0.0)


def fail_on(errors: Sequence[str]) -> None:
    """Raises LoadFailed where a client was told of one."""
    if errors:
        raise LoadFailed(f"{len(errors)} errors surfaced, the first is {errors[0]}")


def print_spread(title: str, seconds: Sequence[float]) -> None:
    """One line of the figures."""
    found = sorted(seconds)
    p99 = found[min(len(found) * 99 // 100, len(found) - 1)]
    print(
        f"{title:<60} p50 {statistics.median(found) * 1e3:6.0f} ms   p99 {p99 * 1e3:6.0f} ms   max {found[-1] * 1e3:6.0f} ms",
        flush=True,
    )
