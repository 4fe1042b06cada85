"""A load generator that costs as little as Python allows: pre-encoded requests over raw sockets, one epoll loop.

`python -m bench.load produce|steady|fetch|latency …` prints one line of JSON. It runs in a process of its own, so that its CPU time
and the broker's are told apart.

Always true:
- At most `window` requests are in flight on a connection; requests that may go are sent with one call.
- Every response is counted and its error code looked at: the first error ends the run.
- Counters and CPU times are taken over the measured interval only, after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench import wire
from bench.cpu import cpu_seconds

_BLOB_REQUESTS_MAX = 4096
"""Requests that are laid out per connection; they are sent round and round."""
BLOB_BYTES = 8 << 20
"""Memory that those of all connections take, or little more: more than a core's cache, since no real producer sends the same bytes all the time."""
RECEIVE_BYTES = 256 << 10
"""Reused receive buffer: small enough to stay in a core's cache."""
_IDLE_TIMEOUT_S = 120.0
"""A broker that stalls its producers on purpose (full WAL) may take this long to answer again."""


class LoadFailed(Exception):
    """The broker answered with an error, or not at all."""


@dataclass(slots=True)
class Meter:
    """Counts over the measured interval."""

    warmup_s: float
    measured_s: float
    broker_pid: int | None
    requests: int = 0
    payload_bytes: int = 0
    _started: float = 0.0
    _base: tuple[int, int, float, float, float] = (0, 0, 0.0, 0.0, 0.0)
    _warm: bool = False

    def start(self) -> None:
        self._started = time.perf_counter()
        if self.warmup_s == 0:
            self._warm = True
            self._base = self._snapshot(self._started)

    def add(self, requests: int, payload_bytes: int) -> None:
        self.requests += requests
        self.payload_bytes += payload_bytes

    def finished(self) -> bool:
        """Whether the interval is over; takes the first snapshot when the warm-up is."""
        now = time.perf_counter()
        if not self._warm:
            if now - self._started >= self.warmup_s:
                self._warm = True
                self._base = self._snapshot(now)
            return False
        return now - self._base[2] >= self.measured_s

    def _snapshot(self, now: float) -> tuple[int, int, float, float, float]:
        broker = cpu_seconds(self.broker_pid) if self.broker_pid is not None else 0.0
        return self.requests, self.payload_bytes, now, broker, time.process_time()

    def result(self) -> dict[str, float]:
        requests, payload_bytes, now, broker_cpu, client_cpu = self._snapshot(time.perf_counter())
        seconds = now - self._base[2]
        return {
            "requests": requests - self._base[0],
            "payload_bytes": payload_bytes - self._base[1],
            "seconds": seconds,
            "requests_per_s": (requests - self._base[0]) / seconds,
            "bytes_per_s": (payload_bytes - self._base[1]) / seconds,
            "broker_cpu_s": broker_cpu - self._base[3],
            "client_cpu_s": client_cpu - self._base[4],
        }


def connect(bootstrap: str) -> socket.socket:
    host, _, port = bootstrap.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@dataclass(slots=True)
class ProduceConnection:
    """One connection that keeps `window` requests in flight."""

    sock: socket.socket
    blob: memoryview
    request_size: int
    window: int
    error_position: int
    response_size: int = 0
    queued: int = 0
    """Bytes that may be sent."""
    sent: int = 0
    acked: int = 0
    received: bytearray = field(default_factory=bytearray)
    wants_write: bool = False

    def allow(self, requests: int) -> None:
        self.queued += requests * self.request_size

    def flush(self) -> bool:
        """Send what may go; whether something is left for later."""
        blob_size = len(self.blob)
        while self.sent < self.queued:
            start = self.sent % blob_size
            end = min(start + self.queued - self.sent, blob_size)
            try:
                self.sent += self.sock.send(self.blob[start:end])
            except BlockingIOError:
                return True
        return False

    def receive(self, buffer: bytearray, view: memoryview) -> int:
        """Read what is there; the number of whole responses in it."""
        size = self.sock.recv_into(buffer)
        if size == 0:
            raise LoadFailed("the broker closed a connection")
        rest = self.received
        rest += view[:size]
        if not self.response_size:
            if len(rest) < 4:
                return 0
            self.response_size = 4 + struct.unpack_from(">i", rest)[0]
        count = len(rest) // self.response_size
        if count:
            whole = count * self.response_size
            at = self.error_position
            high, low = rest[at : whole : self.response_size], rest[at + 1 : whole : self.response_size]
            if high.count(0) != count or low.count(0) != count:
                codes = {h << 8 | low_byte for h, low_byte in zip(high, low, strict=True)} - {0}
                raise LoadFailed(f"Produce answered with error codes {sorted(codes)}")
            del rest[:whole]
            self.acked += count
        return count


def run_produce(args: argparse.Namespace) -> dict[str, float]:
    """Produce `--record-bytes` x `--records` a request over `--connections`, spread over the partitions."""
    batch = wire.record_batch([os.urandom(args.record_bytes)] * args.records, timestamp_ms=int(time.time() * 1000))
    meter = Meter(args.warmup_s, args.seconds, args.broker_pid)
    epoll = select.epoll()
    connections: dict[int, ProduceConnection] = {}
    partitions_each = max(1, args.partitions // args.connections)
    for index in range(args.connections):
        per_round = [
            wire.produce_request(
                topic=args.topic,
                partition=(index * partitions_each + turn) % args.partitions,
                batch=batch,
                correlation_id=turn,
                acks=args.acks,
            )
            for turn in range(partitions_each)
        ]
        one_round = b"".join(per_round)
        requests = min(_BLOB_REQUESTS_MAX, BLOB_BYTES // args.connections // len(per_round[0]))
        rounds = max(1, requests // len(per_round))
        sock = connect(args.bootstrap)
        sock.setblocking(False)
        connections[sock.fileno()] = ProduceConnection(
            sock=sock,
            blob=memoryview(one_round * rounds),
            request_size=len(per_round[0]),
            window=args.window,
            error_position=wire.produce_error_position(args.topic),
        )
        epoll.register(sock, select.EPOLLIN)
    buffer = bytearray(RECEIVE_BYTES)
    view = memoryview(buffer)
    meter.start()
    for connection in connections.values():
        connection.allow(connection.window)
        _flush(epoll, connection)
    limit_requests = args.total_bytes // len(batch) if args.total_bytes else None
    allowed = args.window * args.connections
    while not (meter.finished() if limit_requests is None else meter.requests >= limit_requests):
        events = epoll.poll(_IDLE_TIMEOUT_S)
        if not events:
            raise LoadFailed(f"no response within {_IDLE_TIMEOUT_S} s")
        for fileno, event in events:
            connection = connections[fileno]
            if event & ~select.EPOLLOUT:
                count = connection.receive(buffer, view)
                if count:
                    meter.add(count, count * len(batch))
                    if limit_requests is not None:
                        count = min(count, max(limit_requests - allowed, 0))
                        allowed += count
                    connection.allow(count)
            _flush(epoll, connection)
    return meter.result()


def _flush(epoll: select.epoll, connection: ProduceConnection) -> None:
    wants_write = connection.flush()
    if wants_write != connection.wants_write:
        connection.wants_write = wants_write
        epoll.modify(connection.sock, select.EPOLLIN | (select.EPOLLOUT if wants_write else 0))


def run_latency(args: argparse.Namespace) -> dict[str, float]:
    """One request at a time on one connection: every round trip is timed."""
    batch = wire.record_batch([os.urandom(args.record_bytes)] * args.records, timestamp_ms=int(time.time() * 1000))
    request = wire.produce_request(topic=args.topic, partition=0, batch=batch, correlation_id=0)
    with connect(args.bootstrap) as sock:
        sock.sendall(request)
        first = sock.recv(RECEIVE_BYTES)
        if first[wire.produce_error_position(args.topic) :][:2] != b"\x00\x00":
            raise LoadFailed(f"Produce answered with an error: {first!r}")
        return round_trips(
            sock, request, len(first), warmup_s=args.warmup_s, seconds=args.seconds, broker_pid=args.broker_pid
        )


def round_trips(
    sock: socket.socket, request: bytes, response_size: int, *, warmup_s: float, seconds: float, broker_pid: int | None
) -> dict[str, float]:
    """Send, wait for the response, again: latencies in microseconds. Also the client of the echo baseline."""
    buffer = bytearray(response_size)
    latencies_ns: list[int] = []
    meter = Meter(warmup_s, seconds, broker_pid)
    meter.start()
    while not meter.finished():
        began = time.perf_counter_ns()
        sock.sendall(request)
        got = 0
        while got < response_size:
            size = sock.recv_into(memoryview(buffer)[got:])
            if size == 0:
                raise LoadFailed("the server closed the connection")
            got += size
        latencies_ns.append(time.perf_counter_ns() - began)
        meter.add(1, len(request))
    result = meter.result()
    measured = sorted(latencies_ns[-int(result["requests"]) :])
    for name, share in (("p50_us", 0.5), ("p99_us", 0.99)):
        result[name] = measured[int(share * (len(measured) - 1))] / 1000
    return result


def run_steady(args: argparse.Namespace) -> dict[str, float]:
    """Produce `--rate-bytes` a second, evenly, whatever the broker does: latencies count from when a request was due, so that
    one that had to wait behind a slow one is not left out."""
    batch = wire.record_batch([os.urandom(args.record_bytes)] * args.records, timestamp_ms=int(time.time() * 1000))
    interval_s = len(batch) / args.rate_bytes
    error_position = wire.produce_error_position(args.topic)
    socks = [connect(args.bootstrap) for _ in range(args.connections)]
    requests = [
        wire.produce_request(topic=args.topic, partition=at % args.partitions, batch=batch, correlation_id=at)
        for at in range(args.connections)
    ]
    due: dict[socket.socket, deque[float]] = {sock: deque() for sock in socks}
    received = {sock: bytearray() for sock in socks}
    latencies_s: list[float] = []
    meter = Meter(args.warmup_s, args.seconds, args.broker_pid)
    meter.start()
    next_s = time.perf_counter()
    number = 0
    while not meter.finished():
        # Not epoll: its time-outs are whole milliseconds.
        ready, _, _ = select.select(socks, (), (), max(next_s - time.perf_counter(), 0))
        for sock in ready:
            rest = received[sock]
            part = sock.recv(RECEIVE_BYTES)
            if not part:
                raise LoadFailed("the broker closed a connection")
            rest += part
            while len(rest) >= 4 and len(rest) >= (size := 4 + int.from_bytes(rest[:4])):
                if rest[error_position : error_position + 2] != bytes(2):
                    raise LoadFailed(f"Produce answered with an error: {bytes(rest[:size])!r}")
                latencies_s.append(time.perf_counter() - due[sock].popleft())
                meter.add(1, len(batch))
                del rest[:size]
        while next_s <= time.perf_counter():
            sock = socks[number % len(socks)]
            due[sock].append(next_s)
            sock.sendall(requests[number % len(socks)])
            number += 1
            next_s += interval_s
    result = meter.result()
    measured = sorted(latencies_s[-int(result["requests"]) :])
    for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999), ("max_us", 1.0)):
        result[name] = measured[int(share * (len(measured) - 1))] * 1e6
    return result


@dataclass(slots=True)
class FetchConnection:
    """One connection that reads one partition from its first offset to its last, over and over."""

    sock: socket.socket
    request: bytearray
    offset_position: int
    layout: wire.FetchResponseLayout
    offset: int
    end_offset: int
    batch_size: int
    records_per_batch: int
    remaining: int = 0
    """Bytes of the current response that are still to come."""
    may_be_empty: bool = False
    """Whether the broker may have nothing yet: it is asked again."""

    def ask(self) -> None:
        if self.offset >= self.end_offset:
            self.offset = 0
        struct.pack_into(">q", self.request, self.offset_position, self.offset)
        self.sock.sendall(self.request)

    def receive(self, view: memoryview) -> int:
        """Read what is there, at most to the response's end; the number of bytes."""
        size = self.sock.recv_into(view[: self.remaining]) if self.remaining else self._begin(view)
        if size == 0:
            raise LoadFailed("the broker closed a connection")
        self.remaining -= size
        return size

    def _begin(self, view: memoryview) -> int:
        head_size = self.layout.records_position + 4  # the shortest response: no records, and three bytes of tags
        size = 0
        while size < head_size:
            got = self.sock.recv_into(view[size:head_size])
            if got == 0:
                return 0
            size += got
        [frame_size] = struct.unpack_from(">i", view)
        [error] = struct.unpack_from(">h", view, self.layout.error_position)
        if error:
            raise LoadFailed(f"Fetch answered with error code {error}")
        _, records_size = self.layout.records(view)
        if (records_size == 0 and not self.may_be_empty) or records_size % self.batch_size:
            raise LoadFailed(f"Fetch answered with {records_size} bytes, not whole batches of {self.batch_size}")
        self.offset += records_size // self.batch_size * self.records_per_batch
        self.remaining = 4 + frame_size
        return size


def run_fetch(args: argparse.Namespace) -> dict[str, float]:
    """Fetch `--max-bytes` responses of partitions filled with batches of one known size."""
    meter = Meter(args.warmup_s, args.seconds, args.broker_pid)
    batch_size = len(wire.record_batch([bytes(args.record_bytes)] * args.records, timestamp_ms=int(time.time() * 1000)))
    epoll = select.epoll()
    connections: dict[int, FetchConnection] = {}
    for index in range(args.connections):
        sock = connect(args.bootstrap)
        connections[sock.fileno()] = FetchConnection(
            sock=sock,
            request=wire.fetch_request(
                topic=args.topic, partition=index % args.partitions, max_bytes=args.max_bytes, correlation_id=0
            ),
            offset_position=wire.fetch_offset_position(args.topic),
            layout=wire.FetchResponseLayout(args.topic),
            offset=0,
            end_offset=args.end_offset,
            batch_size=batch_size,
            records_per_batch=args.records,
            may_be_empty=args.may_be_empty,
        )
        epoll.register(sock, select.EPOLLIN)
    view = memoryview(bytearray(RECEIVE_BYTES))
    meter.start()
    for connection in connections.values():
        connection.ask()
    while not (meter.payload_bytes >= args.total_bytes if args.total_bytes else meter.finished()):
        events = epoll.poll(_IDLE_TIMEOUT_S)
        if not events:
            raise LoadFailed(f"no response within {_IDLE_TIMEOUT_S} s")
        for fileno, _ in events:
            connection = connections[fileno]
            size = connection.receive(view)
            meter.add(0 if connection.remaining else 1, size)
            if not connection.remaining:
                connection.ask()
    return meter.result()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("load", choices=sorted(_LOADS))
    parser.add_argument("--bootstrap", required=True, help="host:port")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--window", type=int, default=1, help="requests in flight on a connection")
    parser.add_argument("--record-bytes", type=int, default=100)
    parser.add_argument("--records", type=int, default=1, help="records in a request")
    parser.add_argument("--acks", type=int, default=-1)
    parser.add_argument("--max-bytes", type=int, default=1 << 20, help="of one Fetch response")
    parser.add_argument("--end-offset", type=int, default=0, help="where a reader turns back to the start")
    parser.add_argument("--total-bytes", type=int, default=0, help="stop after that much instead of after a time")
    parser.add_argument("--rate-bytes", type=int, default=20_000_000, help="of a steady load, each second")
    parser.add_argument("--may-be-empty", action="store_true", help="of Fetch responses: ask again")
    parser.add_argument("--warmup-s", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--broker-pid", type=int)
    return parser


_LOADS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "produce": run_produce,
    "steady": run_steady,
    "fetch": run_fetch,
    "latency": run_latency,
}


def main() -> int:
    args = _parser().parse_args()
    try:
        print(json.dumps(_LOADS[args.load](args)))
    except LoadFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
