"""What 10,000 partitions on one node cost: `python -m bench partitions`.

Always true:
- The broker has its default settings, and counts its requests to the object store (`bench.counting_broker`).
- The load is 1 KiB a second for every partition, for a minute, evenly spread: ten producers, one record a request.
- PUTs are those that the broker asked its object store for during that minute: data objects and metadata.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import time
from collections import Counter, deque
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import wire
from bench.broker import Broker, BrokerFailed, running_broker
from bench.cpu import cpu_seconds, peak_resident_bytes, resident_bytes
from bench.load import LoadFailed, connect

__all__ = ["run"]

_PARTITIONS = 10_000
_CONNECTIONS = 10
_RECORD_BYTES = 1024
_SECONDS = 60
_AT_A_TIME = 50
_TICK_S = 0.01
_ANSWER_TIMEOUT_S = 30.0
_TOPIC = "partitions"
_MIB = 1 << 20


def run(work_dir: Path) -> None:
    """Prints start times, memory, requests to the object store and CPU."""
    with _running(work_dir) as broker:
        print(
            f"empty broker: accepts after {broker.start_s:.2f} s, {resident_bytes(broker.pid) // _MIB} MiB resident",
            flush=True,
        )
        began = time.perf_counter()
        broker.create_topic(_TOPIC, _PARTITIONS)
        print(f"a topic of {_PARTITIONS:,} partitions: created in {time.perf_counter() - began:.2f} s", flush=True)
        _take_all(broker)
        broker.wait_until_quiet(1.0)
    began = time.perf_counter()
    with _running(work_dir) as broker:
        _take_all(broker)
        print(
            f"started with {_PARTITIONS:,} partitions: accepts after {broker.start_s:.2f} s, "
            f"takes records for all after {time.perf_counter() - began:.2f} s, {resident_bytes(broker.pid) // _MIB} MiB resident",
            flush=True,
        )
        broker.wait_until_quiet(1.0)
        before, cpu = _requests(broker), cpu_seconds(broker.pid)
        late_s = _produce(broker, _SECONDS)
        asked, cpu = _requests(broker) - before, cpu_seconds(broker.pid) - cpu
        puts = sum(count for operation, count in asked.items() if operation.startswith("put"))
        print(
            f"{_RECORD_BYTES // 1024} KiB/s for each, {_SECONDS} s: broker CPU {cpu / _SECONDS:.0%} of a core, "
            f"{puts} PUTs ({dict(asked)}), {resident_bytes(broker.pid) // _MIB} MiB resident, "
            f"{peak_resident_bytes(broker.pid) // _MIB} at most, slowest answer {late_s * 1000:.0f} ms",
            flush=True,
        )
        began = time.perf_counter()
    print(f"stopped in order after {time.perf_counter() - began:.2f} s", flush=True)


def _running(work_dir: Path) -> AbstractContextManager[Broker]:
    return running_broker(work_dir, {}, module="bench.counting_broker")


def _requests(broker: Broker) -> Counter[str]:
    """What the broker asked its object store for since its start, by operation."""
    told_before = len(_told(broker))
    broker.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        told = _told(broker)
        if len(told) > told_before:
            return Counter(json.loads(told[-1]))
        time.sleep(0.01)
    raise BrokerFailed(f"the broker does not tell its requests:\n{broker.log_path.read_text()[-2000:]}")


def _told(broker: Broker) -> list[str]:
    return [line for line in broker.log_path.read_text().splitlines() if line.startswith("{")]


def _take_all(broker: Broker) -> None:
    """Produce one record to every partition, again where it is still loading."""
    batch = wire.record_batch([bytes(_RECORD_BYTES)], timestamp_ms=int(time.time() * 1000))
    left = list(range(_PARTITIONS))
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    with connect(broker.bootstrap) as sock, sock.makefile("rb") as responses:
        while left and time.monotonic() < deadline:
            refused: list[int] = []
            for first in range(0, len(left), _AT_A_TIME):
                asked = left[first : first + _AT_A_TIME]
                sock.sendall(
                    b"".join(
                        wire.produce_request(topic=_TOPIC, partition=partition, batch=batch, correlation_id=0)
                        for partition in asked
                    )
                )
                for partition in asked:
                    response = responses.read(int.from_bytes(responses.read(4)))
                    if response[wire.produce_error_position(_TOPIC) - 4 :][:2] != bytes(2):
                        refused.append(partition)
            left = refused
    if left:
        raise LoadFailed(f"{len(left)} partitions take no records after {_ANSWER_TIMEOUT_S} s")


@dataclass(slots=True)
class _Producer:
    """One connection that sends to its share of the partitions in turn, as the clock says."""

    sock: socket.socket
    requests: list[bytes]
    sent: int = 0
    answered: int = 0
    sent_at: deque[float] = field(default_factory=deque)
    received: bytearray = field(default_factory=bytearray)

    def send(self, count: int, now: float) -> None:
        batch = [self.requests[(self.sent + turn) % len(self.requests)] for turn in range(count)]
        self.sock.sendall(b"".join(batch))
        self.sent += count
        self.sent_at.extend([now] * count)

    def receive(self) -> float:
        """Read what is there; how long the slowest answer in it took."""
        part = self.sock.recv(1 << 20)
        if not part:
            raise LoadFailed("the broker closed a connection")
        received = self.received
        received += part
        position, slowest_s, now = 0, 0.0, time.perf_counter()
        while len(received) - position >= 4:
            end = position + 4 + int.from_bytes(received[position : position + 4])
            if end > len(received):
                break
            at = position + wire.produce_error_position(_TOPIC)
            if received[at : at + 2] != bytes(2):
                raise LoadFailed(f"Produce answered with an error: {bytes(received[position:end])!r}")
            slowest_s = max(slowest_s, now - self.sent_at.popleft())
            self.answered += 1
            position = end
        del received[:position]
        return slowest_s


def _produce(broker: Broker, seconds: int) -> float:
    """One record a second for each partition; how long the slowest answer took, in seconds."""
    batch = wire.record_batch([bytes(_RECORD_BYTES)], timestamp_ms=int(time.time() * 1000))
    each = _PARTITIONS // _CONNECTIONS
    slowest_s = 0.0
    with selectors.DefaultSelector() as ready, ExitStack() as stack:
        producers = []
        for number in range(_CONNECTIONS):
            requests = [
                wire.produce_request(topic=_TOPIC, partition=number * each + turn, batch=batch, correlation_id=turn)
                for turn in range(each)
            ]
            producers.append(_Producer(stack.enter_context(connect(broker.bootstrap)), requests))
            ready.register(producers[-1].sock, selectors.EVENT_READ, producers[-1])
        began = time.perf_counter()
        while any(producer.answered < seconds * each for producer in producers):
            now = time.perf_counter()
            if now - began > seconds + _ANSWER_TIMEOUT_S:
                raise LoadFailed(f"the broker is {_ANSWER_TIMEOUT_S} s behind")
            due = min(int((now - began) * each), seconds * each)
            for producer in producers:
                if due > producer.sent:
                    producer.send(due - producer.sent, now)
            for key, _ in ready.select(_TICK_S):
                slowest_s = max(slowest_s, key.data.receive())
    return slowest_s
