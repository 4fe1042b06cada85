"""A producer that follows the leaders that refusals name (KIP-951), and costs little: one connection to each broker, raw sockets.

Always true:
- A partition has at most one request under way, so its records keep their order; each is due at its time, and its latency counts from then.
- A refused record is sent again: at once where the refusal names a leader under a newer epoch than before, else after the back-off that
  clients have by default, as Java's and franz-go's do.
"""

from __future__ import annotations

import heapq
import selectors
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench import wire
from bench.load import LoadFailed, connect
from protocol.apis import decode_response
from protocol.frames import parse_response_header

__all__ = ["Following", "Partition"]

Partition = tuple[str, int]
"""Topic and index."""

_VERSION = 11
_VERSION_POSITION = 6
_BACKOFF_S = 0.1
_TICK_S = 0.001
_FLUSH_S = 30.0
_RECEIVE_BYTES = 1 << 20
_PRODUCE_KEY = 0
_NOT_LEADER = 6


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    unsent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    under_way: deque[_Producer] = field(default_factory=deque)
    """In the order of their requests."""


@dataclass(slots=True)
class _Producer:
    """One partition's."""

    partition: Partition
    request: bytes
    leader: int
    leader_epoch: int = -1
    due: deque[float] = field(default_factory=deque)
    """When records were due that are not acknowledged."""
    is_busy: bool = False


class Following:
    """See the module. It runs in a thread of its own within a `with` block, which raises LoadFailed where a record was not delivered."""

    def __init__(
        self, addresses: Mapping[int, str], leaders: Mapping[Partition, int], *, rate_bytes: int, record_bytes: int
    ) -> None:
        self._connections = {node_id: _Connection(connect(address)) for node_id, address in addresses.items()}
        batch = wire.record_batch([bytes(record_bytes)], timestamp_ms=int(time.time() * 1000))
        self._producers = [
            _Producer(partition=(topic, index), request=_request(topic, index, batch), leader=leader)
            for (topic, index), leader in leaders.items()
        ]
        self._interval_s = record_bytes / rate_bytes
        self._record_bytes = record_bytes
        self._later: list[tuple[float, int, _Producer]] = []
        """Heap of those that wait before they try again."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None
        self._latencies: dict[Partition, list[tuple[float, float]]] = defaultdict(list)
        self.sent_bytes = 0
        self.refused = 0

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for connection in self._connections.values():
            connection.sock.close()
        if self._failure is not None:
            raise LoadFailed(f"records were not delivered: {self._failure}") from self._failure

    def longest(self, partition: Partition, from_s: float, to_s: float) -> float:
        """The longest latency of records that were due in a time, in seconds."""
        return max((latency for at, latency in self._latencies[partition] if from_s <= at <= to_s), default=0.0)

    def _run(self) -> None:
        try:
            self._produce()
        except BaseException as error:
            self._failure = error

    def _produce(self) -> None:
        with selectors.DefaultSelector() as ready:
            for connection in self._connections.values():
                connection.sock.setblocking(False)
                ready.register(connection.sock, selectors.EVENT_READ, connection)
            began, sent, ends = time.perf_counter(), 0, 0.0
            while not ends or any(producer.due for producer in self._producers):
                now = time.perf_counter()
                if self._stopping.is_set() and not ends:
                    ends = now + _FLUSH_S
                if ends and now > ends:
                    raise LoadFailed(
                        f"not all is acknowledged after {_FLUSH_S} s: "
                        + ", ".join(
                            f"node {node_id} owes {len(connection.under_way)} answers, {len(connection.unsent)} bytes are not sent"
                            for node_id, connection in self._connections.items()
                        )
                    )
                while not ends and began + sent * self._interval_s <= now:
                    producer = self._producers[sent % len(self._producers)]
                    producer.due.append(began + sent * self._interval_s)
                    sent += 1
                    if not producer.is_busy:
                        self._send(producer)
                self.sent_bytes = sent * self._record_bytes
                while self._later and self._later[0][0] <= now:
                    self._send(heapq.heappop(self._later)[2])
                for connection in self._connections.values():
                    _flush(connection)
                for key, _ in ready.select(_TICK_S):
                    self._receive(key.data)

    def _send(self, producer: _Producer) -> None:
        producer.is_busy = True
        connection = self._connections[producer.leader]
        connection.unsent += producer.request
        connection.under_way.append(producer)

    def _receive(self, connection: _Connection) -> None:
        part = connection.sock.recv(_RECEIVE_BYTES)
        if not part:
            raise LoadFailed("a broker closed a connection")
        received = connection.received
        received += part
        position, now = 0, time.perf_counter()
        while len(received) - position >= 4:
            end = position + 4 + int.from_bytes(received[position : position + 4])
            if end > len(received):
                break
            producer = connection.under_way.popleft()
            at = position + wire.produce_error_position(producer.partition[0])
            if received[at : at + 2] == bytes(2):
                due = producer.due.popleft()
                self._latencies[producer.partition].append((due, now - due))
                producer.is_busy = False
                if producer.due:
                    self._send(producer)
            else:
                self._refused(producer, bytes(received[position + 4 : end]), now)
            position = end
        del received[:position]

    def _refused(self, producer: _Producer, frame: bytes, now: float) -> None:
        _, position = parse_response_header(_PRODUCE_KEY, _VERSION, frame)
        answer = decode_response(_PRODUCE_KEY, _VERSION, frame, position).responses[0].partition_responses[0]
        if answer.error_code != _NOT_LEADER:
            raise LoadFailed(f"{producer.partition}: error {answer.error_code}, {answer.error_message}")
        self.refused += 1
        leader = answer.current_leader
        if leader is not None and leader.leader_epoch > producer.leader_epoch:
            producer.leader, producer.leader_epoch = leader.leader_id, leader.leader_epoch
            self._send(producer)
        else:
            heapq.heappush(self._later, (now + _BACKOFF_S, id(producer), producer))


def _request(topic: str, index: int, batch: bytes) -> bytes:
    frame = bytearray(wire.produce_request(topic=topic, partition=index, batch=batch, correlation_id=0))
    struct.pack_into(">h", frame, _VERSION_POSITION, _VERSION)
    return bytes(frame)


def _flush(connection: _Connection) -> None:
    if connection.unsent:
        try:
            count = connection.sock.send(connection.unsent)
        except BlockingIOError:
            return
        del connection.unsent[:count]
