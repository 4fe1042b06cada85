"""Clients of librdkafka that note how long each record took: to its acknowledgement, and to its delivery.

Always true: they have default settings, and the producer is idempotent. A record holds the time that it was produced at.
"""

from __future__ import annotations

import contextlib
import statistics
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from confluent_kafka import OFFSET_END, Consumer, KafkaError, Message, Producer, TopicPartition

from bench.cluster import TIMEOUT_S
from bench.load import LoadFailed

__all__ = ["RATE_BYTES", "RECORD_BYTES", "Load", "Partition", "Reader", "clients", "print_spread"]

RATE_BYTES = 50_000_000
"""What producers send in a second."""
RECORD_BYTES = 10_000
_TICK_S = 0.001

Partition = tuple[str, int]


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


@contextlib.contextmanager
def clients(
    bootstrap: str, topic: str, partition_count: int, *, read: int | None = None
) -> Iterator[tuple[Load, Reader]]:
    """A producer for all partitions of a topic, and a consumer of all or one of them. Raises LoadFailed in the end where one was told of an error."""
    with (
        Load(bootstrap, [(topic, index) for index in range(partition_count)]) as load,
        Reader(bootstrap, topic, read) as reader,
    ):
        yield load, reader
    errors = load.errors + reader.errors
    if errors:
        raise LoadFailed(f"{len(errors)} errors surfaced, the first is {errors[0]}")


def _longest(latencies: Sequence[tuple[float, float]], from_s: float, to_s: float) -> float:
    return max((latency for at, latency in latencies if from_s <= at <= to_s), default=0.0)


def print_spread(title: str, seconds: Sequence[float]) -> None:
    """One line of the figures."""
    found = sorted(seconds)
    p99 = found[min(len(found) * 99 // 100, len(found) - 1)]
    print(
        f"{title:<60} p50 {statistics.median(found) * 1e3:6.0f} ms   p99 {p99 * 1e3:6.0f} ms   max {found[-1] * 1e3:6.0f} ms",
        flush=True,
    )
