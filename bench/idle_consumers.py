"""How fast a waiting consumer gets a record while 1,000 others wait in vain: `python -m bench idle_consumers`.

Always true:
- One record at a time: the consumer's Fetch waits at the broker before its record is produced, on another connection.
- The idle consumers are a process of their own. Each waits in one long poll on a partition of its own, where nothing comes.
- Once they wait for as long as the run takes, which costs the broker nothing, and once they ask again every 500 ms,
  as clients do by default; and once there are none, for comparison.
"""

from __future__ import annotations

import multiprocessing
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

from bench import wire
from bench.broker import Broker, BrokerFailed, running_broker
from bench.cpu import cpu_seconds
from bench.load import connect

__all__ = ["run"]

_IDLE_CONSUMERS = 1000
_RECORDS = 2000
_RECORD_BYTES = 1024
_PAUSE_S = 0.004
"""Between two records: the Fetch that waits for the next one has arrived by then."""
_WAIT_FOREVER_MS = 240_000
_DEFAULT_WAIT_MS = 500
_ANSWER_TIMEOUT_S = 30.0
_FETCH_BYTES = 1 << 20
_TOPIC = "idle"


def run(work_dir: Path) -> None:
    """Prints, for each kind of company, how long after its acknowledgement a record was delivered."""
    with running_broker(work_dir, {}) as broker:
        broker.create_topic(_TOPIC, _IDLE_CONSUMERS + 1)
        broker.wait_until_quiet(1.0)
        offset = 0
        for idle, max_wait_ms in ((0, 0), (_IDLE_CONSUMERS, _WAIT_FOREVER_MS), (_IDLE_CONSUMERS, _DEFAULT_WAIT_MS)):
            with _idle_consumers(broker, idle, max_wait_ms):
                print(_measure(broker, offset, idle, max_wait_ms), flush=True)
            offset += _RECORDS


def _measure(broker: Broker, offset: int, idle: int, max_wait_ms: int) -> str:
    after_ack_us: list[float] = []
    after_send_us: list[float] = []
    with (
        connect(broker.bootstrap) as producer,
        connect(broker.bootstrap) as consumer,
        selectors.DefaultSelector() as ready,
    ):
        for sock in (producer, consumer):
            ready.register(sock, selectors.EVENT_READ)
        produce = wire.produce_request(
            topic=_TOPIC,
            partition=0,
            batch=wire.record_batch([bytes(_RECORD_BYTES)], timestamp_ms=int(time.time() * 1000)),
            correlation_id=0,
        )
        fetch = wire.fetch_request(
            topic=_TOPIC, partition=0, max_bytes=_FETCH_BYTES, correlation_id=0, max_wait_ms=_WAIT_FOREVER_MS
        )
        cpu, began = cpu_seconds(broker.pid), time.perf_counter()
        for at in range(offset, offset + _RECORDS):
            struct.pack_into(">q", fetch, wire.fetch_offset_position(_TOPIC), at)
            consumer.sendall(fetch)
            time.sleep(_PAUSE_S)
            sent = time.perf_counter()
            producer.sendall(produce)
            arrived = _both_arrived(ready)
            after_ack_us.append((arrived[consumer] - arrived[producer]) * 1e6)
            after_send_us.append((arrived[consumer] - sent) * 1e6)
        cpu_share = (cpu_seconds(broker.pid) - cpu) / (time.perf_counter() - began)
    company = f"beside {idle:,} idle consumers, polls of {max_wait_ms / 1000:g} s" if idle else "alone"
    return (
        f"a waiting consumer {company}: after the acknowledgement p50 {_percentile(after_ack_us, 0.5):.0f} µs, "
        f"p99 {_percentile(after_ack_us, 0.99):.0f} µs; after the record was sent p50 {_percentile(after_send_us, 0.5):.0f} µs, "
        f"p99 {_percentile(after_send_us, 0.99):.0f} µs; broker CPU {cpu_share:.1%} of a core"
    )


def _both_arrived(ready: selectors.BaseSelector) -> dict[socket.socket, float]:
    """When the first bytes of each of the two responses came; both are read to their ends."""
    arrived: dict[socket.socket, float] = {}
    received: dict[socket.socket, bytearray] = {}
    complete = 0
    while complete < 2:
        events = ready.select(_ANSWER_TIMEOUT_S)
        now = time.perf_counter()
        if not events:
            raise BrokerFailed(f"no response within {_ANSWER_TIMEOUT_S} s")
        for key, _ in events:
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            part = sock.recv(_FETCH_BYTES)
            if not part:
                raise BrokerFailed("the broker closed a connection")
            arrived.setdefault(sock, now)
            response = received.setdefault(sock, bytearray())
            response += part
            complete += len(response) >= 4 and len(response) == 4 + int.from_bytes(response[:4])
    return arrived


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


@contextmanager
def _idle_consumers(broker: Broker, count: int, max_wait_ms: int) -> Iterator[None]:
    if not count:
        yield
        return
    spawn = multiprocessing.get_context("spawn")
    waiting, stop = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_wait_in_vain, args=(broker.bootstrap, count, max_wait_ms, waiting, stop))
    process.start()
    try:
        if not waiting.wait(_ANSWER_TIMEOUT_S):
            raise BrokerFailed("the idle consumers cannot connect")
        time.sleep(1.0)  # their requests arrive
        yield
        if process.exitcode is not None:
            raise BrokerFailed("the idle consumers did not stay idle")
    finally:
        stop.set()
        process.join()


def _wait_in_vain(bootstrap: str, count: int, max_wait_ms: int, waiting: Event, stop: Event) -> None:
    requests: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as ready:
        for number in range(count):
            sock = connect(bootstrap)
            requests[sock] = bytes(
                wire.fetch_request(
                    topic=_TOPIC,
                    partition=1 + number,
                    max_bytes=_FETCH_BYTES,
                    correlation_id=0,
                    max_wait_ms=max_wait_ms,
                )
            )
            sock.sendall(requests[sock])
            ready.register(sock, selectors.EVENT_READ)
        waiting.set()
        layout = wire.FetchResponseLayout(_TOPIC)
        while not stop.is_set():
            for key, _ in ready.select(0.2):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                response = sock.recv(4096)  # empty: some fifty bytes
                if response[layout.error_position :][:2] != bytes(2):
                    raise BrokerFailed(f"Fetch answered {response!r}")
                sock.sendall(requests[sock])
    for sock in requests:
        sock.close()
