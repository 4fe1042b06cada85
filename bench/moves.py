"""Partitions that go from broker to broker under load: `python -m bench moves`.

Always true:
- Three brokers in processes of their own, with default settings but for their memory, on one local directory for objects.
- Where one partition at a time is moved, clients are librdkafka's with default settings, the producer idempotent. Where a broker is drained, the client is one
  that costs little and follows the leader that a refusal names (`bench.following`), as Java's does: librdkafka's takes seconds of processor time to be
  told of a thousand new leaders, whatever the brokers do.
- Producers send 50 MB/s in records of 10 KB all the time. The pause of a partition is the longest time from when a record was due to its
  acknowledgement, from just before the move to a second after it; a consumer's is the longest from produce to delivery.
- A drain is one of `tidelog drain`: its time is from the command's being given to the last partition's being open elsewhere, as that tells it.
- What goes between brokers is counted by them (`tidelog_peer_bytes_total`); what was produced meanwhile is told beside it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from bench.broker import Broker, BrokerFailed, free_port, running_broker
from bench.following import Following
from bench.load import LoadFailed
from protocol.apis import api_named, decode_response, encode_request
from protocol.frames import parse_response_header
from protocol.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)

__all__ = ["run"]

_MIB = 1 << 20
_NODES = 3
_RATE_BYTES = 50_000_000
_RECORD_BYTES = 10_000
_FEW = 12
"""Partitions where one at a time is moved."""
_MOVES = 40
_BETWEEN_MOVES_S = 0.7
_DRAINED = 1_000
"""Partitions of the broker that is drained."""
_IN_A_TOPIC = 100
_WARM_UP_S = 6.0
_AFTER_S = 1.5
_TIMEOUT_S = 60.0
_TICK_S = 0.001


_Partition = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """One broker, and where its figures and settings are."""

    broker: Broker
    metrics_port: int
    config: Path

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


def run(work_dir: Path) -> None:
    """Prints pauses and drain times."""
    with _nodes(work_dir) as nodes:
        _one_at_a_time(nodes)
        _drain(nodes)


@contextlib.contextmanager
def _nodes(work_dir: Path) -> Iterator[Mapping[int, _Node]]:
    with contextlib.ExitStack() as stack:
        found: dict[int, _Node] = {}
        for node_id in range(1, _NODES + 1):
            directory = work_dir / f"node{node_id}"
            controller_port, metrics_port = free_port(), free_port()
            settings: dict[str, object] = {
                "node.id": node_id,
                "object.store.uri": f"file://{work_dir}/objects",
                "controller.listeners": f"CONTROLLER://127.0.0.1:{controller_port}",
                "metrics.listeners": f"HTTP://127.0.0.1:{metrics_port}",
                "memory.bytes": 512 * _MIB,
            }
            broker = stack.enter_context(running_broker(directory, settings))
            found[node_id] = _Node(broker=broker, metrics_port=metrics_port, config=directory / "tidelog.toml")
        yield found


def _all_of(nodes: Mapping[int, _Node]) -> str:
    return ",".join(node.broker.bootstrap for node in nodes.values())


# ---- clients ---------------------------------------------------------------------------------------------------------


class _Load:
    """Records of the time they were produced at, to some partitions in turn, at an even rate."""

    def __init__(self, bootstrap: str, partitions: Sequence[_Partition]) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
        self._partitions = partitions
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies: dict[_Partition, list[tuple[float, float]]] = defaultdict(list)
        """By partition: when a record was produced, and how long its acknowledgement took, in seconds."""
        self.sent_bytes = 0
        self.errors: list[str] = []

    def __enter__(self) -> _Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        padding = bytes(_RECORD_BYTES - 8)
        began = time.perf_counter()
        sent = 0
        while not self._stopping.is_set():
            now = time.perf_counter()
            due = int((now - began) * _RATE_BYTES / _RECORD_BYTES)
            while sent < due:
                topic, partition = self._partitions[sent % len(self._partitions)]
                value = struct.pack(">d", time.perf_counter()) + padding
                try:
                    self._producer.produce(topic, value, partition=partition, on_delivery=self._delivered)
                except BufferError:
                    break  # it holds a hundred thousand records: whoever waits so long is told by their latencies
                sent += 1
            self.sent_bytes = sent * _RECORD_BYTES
            self._producer.poll(_TICK_S)
        if self._producer.flush(_TIMEOUT_S):
            self.errors.append("not everything was delivered in the end")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.errors.append(str(error))
            return
        (at,) = struct.unpack_from(">d", message.value() or b"")
        self.latencies[message.topic() or "", message.partition() or 0].append((at, time.perf_counter() - at))

    def longest(self, partition: _Partition, from_s: float, to_s: float) -> float:
        """The longest latency of records that were produced in a time."""
        return max((latency for at, latency in self.latencies[partition] if from_s <= at <= to_s), default=0.0)


class _Reader:
    """A consumer of one partition, from now on."""

    def __init__(self, bootstrap: str, topic: str, partition: int) -> None:
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "moves"})
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_END)])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies: list[tuple[float, float]] = []

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for message in self._consumer.consume(1_000, 0.05):
                if message.error() is None:
                    (at,) = struct.unpack_from(">d", message.value() or b"")
                    self.latencies.append((at, time.perf_counter() - at))

    def longest(self, from_s: float, to_s: float) -> float:
        return max((latency for at, latency in self.latencies if from_s <= at <= to_s), default=0.0)


def _call(bootstrap: str, name: str, version: int, request: Any) -> Any:
    """Ask one broker."""
    api = api_named(name)
    host, _, port = bootstrap.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as sock, sock.makefile("rb") as responses:
        sock.sendall(b"".join(encode_request(api.key, version, 1, "bench", request)))
        frame = responses.read(int.from_bytes(responses.read(4)))
    _, position = parse_response_header(api.key, version, frame)
    return decode_response(api.key, version, frame, position)


def _leaders(nodes: Mapping[int, _Node], topic: str) -> dict[int, int]:
    told = AdminClient({"bootstrap.servers": _all_of(nodes)}).list_topics(topic, timeout=_TIMEOUT_S)
    return {index: partition.leader for index, partition in told.topics[topic].partitions.items()}


# ---- one partition at a time -------------------------------------------------------------------------------------------


def _one_at_a_time(nodes: Mapping[int, _Node]) -> None:
    topic = "few"
    nodes[1].broker.create_topic(topic, _FEW)
    moved = 0
    before_s: list[float] = []
    produce_s: list[float] = []
    consume_s: list[float] = []
    with (
        _Load(_all_of(nodes), [(topic, index) for index in range(_FEW)]) as load,
        _Reader(_all_of(nodes), topic, moved) as reader,
    ):
        time.sleep(_WARM_UP_S)
        home = _leaders(nodes, topic)[moved]
        away = next(node_id for node_id in nodes if node_id != home)
        windows: list[tuple[float, float]] = []
        peer_bytes, sent_bytes = _peer_bytes(nodes), load.sent_bytes
        for number in range(_MOVES):
            target = away if number % 2 == 0 else home
            at = time.perf_counter()
            partitions = [ReassignablePartition(partition_index=moved, replicas=[target])]
            request = AlterPartitionReassignmentsRequest(topics=[ReassignableTopic(name=topic, partitions=partitions)])
            _call(nodes[2].broker.bootstrap, "AlterPartitionReassignments", 1, request)
            time.sleep(_BETWEEN_MOVES_S)
            windows.append((at - 0.05, time.perf_counter()))
        peer_bytes, sent_bytes = _peer_bytes(nodes) - peer_bytes, load.sent_bytes - sent_bytes
        time.sleep(_AFTER_S)
        for from_s, to_s in windows:
            produce_s.append(load.longest((topic, moved), from_s, to_s))
            consume_s.append(reader.longest(from_s, to_s))
            before_s.extend(load.longest((topic, other), from_s, to_s) for other in range(_FEW) if other != moved)
    _fail_on(load.errors)
    print(f"{_RATE_BYTES // 1_000_000} MB/s into {_FEW} partitions, one of them moved {_MOVES} times:")
    _print("  pause of its producers", produce_s)
    _print("  pause of its consumer", consume_s)
    _print("  longest acknowledgement of each other partition meanwhile", before_s)
    print(f"  between brokers {peer_bytes / 1e3:,.0f} KB, produced {sent_bytes / 1e6:,.0f} MB", flush=True)


# ---- all at once ---------------------------------------------------------------------------------------------------------


def _drain(nodes: Mapping[int, _Node]) -> None:
    topics = [f"many-{number}" for number in range(_DRAINED * _NODES // _IN_A_TOPIC)]
    for topic in topics:
        nodes[1].broker.create_topic(topic, _IN_A_TOPIC)
    leaders = {(topic, index): leader for topic in topics for index, leader in _leaders(nodes, topic).items()}
    own = [each for each, leader in leaders.items() if leader == 1]
    addresses = {node_id: node.broker.bootstrap for node_id, node in nodes.items()}
    with Following(addresses, dict.fromkeys(own, 1), rate_bytes=_RATE_BYTES, record_bytes=_RECORD_BYTES) as load:
        time.sleep(_WARM_UP_S)
        unuploaded = nodes[1].metric("tidelog_wal_unuploaded_bytes")
        peer_bytes, sent_bytes = _peer_bytes(nodes), load.sent_bytes
        at = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "broker", "drain", "1", "--json", "-c", str(nodes[2].config)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerFailed(f"tidelog drain failed: {done.stdout}{done.stderr}")
        ended_at = time.perf_counter()
        peer_bytes, sent_bytes = _peer_bytes(nodes) - peer_bytes, load.sent_bytes - sent_bytes
        time.sleep(_AFTER_S)
    row = json.loads(done.stdout.splitlines()[-1])
    took_s = ended_at - at
    print(
        f"{_RATE_BYTES // 1_000_000} MB/s into the {len(own):,} partitions of one broker, which is drained:\n"
        f"  {row['moved']:,} partitions in {row['seconds']:.2f} s, {unuploaded / _MIB:.0f} MiB were not uploaded when that began"
    )
    _print("  pause of each partition's producer", [load.longest(each, at - 0.2, ended_at + 1.0) for each in own])
    _print("  the same for as long before that", [load.longest(each, at - 1.2 - took_s, at - 0.2) for each in own])
    print(
        f"  between brokers {peer_bytes / 1e3:,.0f} KB, produced {sent_bytes / 1e6:,.0f} MB; {load.refused:,} requests were refused",
        flush=True,
    )


def _peer_bytes(nodes: Mapping[int, _Node]) -> float:
    """What all brokers sent to others."""
    return sum(node.metric("tidelog_peer_bytes_total") for node in nodes.values()) / 2


def _fail_on(errors: Sequence[str]) -> None:
    if errors:
        raise LoadFailed(f"{len(errors)} records were not delivered, the first for {errors[0]}")


def _print(title: str, seconds: Sequence[float]) -> None:
    found = sorted(seconds)
    p99 = found[min(len(found) * 99 // 100, len(found) - 1)]
    print(
        f"{title:<60} p50 {statistics.median(found) * 1e3:6.0f} ms   p99 {p99 * 1e3:6.0f} ms   max {found[-1] * 1e3:6.0f} ms",
        flush=True,
    )
