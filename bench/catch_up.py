"""Catch-up reads: what they do to producers, and how fast they are: `python -m bench catch_up`.

Always true:
- Objects are in a real S3 server on loopback, MinIO where it is built (`make stores`), else moto's; the WAL is on the local disk.
- Everything is cold: the history has ten times the memory for such reads, the broker was started after it was uploaded, and
  whoever reads it goes through all of it, over and over.
- Producers: 20 MB/s in requests of 20 KB, evenly, on a topic of their own. Their latency is taken alone, beside a reader with a budget, and
  beside one without, in turns.
- The broker's reader is compared with loops that read the same ranges of the same objects, as many at a time, and do nothing
  else: one on aiobotocore with the broker's settings, one on bare sockets. Loops and broker take turns.
- Compaction is put off, so that it runs beside none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from bench.broker import Broker, free_port, running_broker
from bench.cpu import cpu_seconds, peak_resident_bytes
from bench.load import LoadFailed
from broker.config import BrokerSettings
from broker.shares import storage_settings
from s3stream.config import ObjectStoreSettings

__all__ = ["run"]

_MIB = 1 << 20
_MEMORY_BYTES = 1024 * _MIB
_READS = storage_settings(BrokerSettings(memory_bytes=_MEMORY_BYTES)).read
_CACHE_BYTES = _READS.memory_bytes
_PARTITIONS = 8
_RECORD_BYTES = 100_000
_RECORD_OVERHEAD_BYTES = 80
_HISTORY_RECORDS = 10 * _CACHE_BYTES // _RECORD_BYTES // _PARTITIONS * _PARTITIONS
_BUDGET_BYTES_PER_S = 50_000_000
_PHASE_S = 10.0
_WARM_UP_S = 1.5
_ROUNDS = 5
_BUCKET = "bench"
_LOAD_TIMEOUT_S = 300
_RATE_SETTING = "remote.log.manager.fetch.max.bytes.per.second"
_SETTINGS: dict[str, object] = {
    "memory.bytes": _MEMORY_BYTES,
    "compaction.interval.ms": 86_400_000,
    "log.retention.ms": -1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """An S3 server on loopback."""

    title: str
    endpoint_url: str
    pid: int

    @property
    def uri(self) -> str:
        return f"s3://{_BUCKET}/bench?region=us-east-1&path_style=true&endpoint={self.endpoint_url}"


def run(work_dir: Path) -> None:
    """Prints latencies of producers with and without readers, then rates of readers."""
    with _s3_server(work_dir) as server:
        settings = {**_SETTINGS, "object.store.uri": server.uri}
        with running_broker(work_dir / "broker", settings) as broker:
            broker.create_topic("history", _PARTITIONS)
            broker.create_topic("now", _PARTITIONS)
            _finished(
                _load(
                    broker,
                    "produce",
                    *("--topic", "history", "--partitions", str(_PARTITIONS), "--connections", str(_PARTITIONS)),
                    *("--record-bytes", str(_RECORD_BYTES), "--window", "2", "--warmup-s", "0"),
                    *("--total-bytes", str(_HISTORY_RECORDS * (_RECORD_BYTES + _RECORD_OVERHEAD_BYTES))),
                )
            )
            broker.wait_until_quiet(2.0)
        with running_broker(work_dir / "broker", settings) as broker:
            print(
                f"{server.title}; memory for cold reads {_CACHE_BYTES // _MIB} MiB, history"
                f" {_HISTORY_RECORDS * _RECORD_BYTES // _MIB} MiB in {_PARTITIONS} partitions; {_ROUNDS} rounds, medians",
                flush=True,
            )
            _beside_producers(broker, server)
            _beside_loops(broker, server)
            print(f"broker: {peak_resident_bytes(broker.pid) // _MIB} MiB resident at most, of {_MEMORY_BYTES // _MIB}")


# ---- producers beside a reader ----------------------------------------------------------------------------------------


def _beside_producers(broker: Broker, server: _Server) -> None:
    budgets: dict[str, int | None] = {
        "alone": 0,
        f"beside a reader at {_BUDGET_BYTES_PER_S // 1_000_000} MB/s": _BUDGET_BYTES_PER_S,
        "beside one without a bound": None,
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in budgets}
    for _ in range(_ROUNDS):
        for name, budget in budgets.items():
            found[name].append(_produce_beside(broker, server, budget))
    alone = found["alone"]
    print("produce 20 MB/s         p50 ms   p99 ms (÷ alone)   p99.9 ms   read MB/s   broker CPU   S3 server CPU")
    for name, rounds in found.items():
        ratios = [each["p99_us"] / base["p99_us"] for each, base in zip(rounds, alone, strict=True)]
        print(
            f"{name:<30} {_median(rounds, 'p50_us') / 1000:6.2f} {_median(rounds, 'p99_us') / 1000:7.2f}"
            f" ({statistics.median(ratios):.2f}: {min(ratios):.2f} to {max(ratios):.2f})"
            f" {_median(rounds, 'p999_us') / 1000:7.2f} {_median(rounds, 'read') / 1e6:8.1f}"
            f" {_median(rounds, 'broker_cpu'):8.0%} {_median(rounds, 'server_cpu'):8.0%}",
            flush=True,
        )


def _produce_beside(broker: Broker, server: _Server, budget: int | None) -> dict[str, float]:
    """Producers' figures; beside a reader unless the budget is 0."""
    if budget != 0:
        _limit(broker, budget)
    server_cpu = cpu_seconds(server.pid)
    times = ("--warmup-s", str(_WARM_UP_S), "--seconds", str(_PHASE_S))
    reader = None if budget == 0 else _load(broker, "fetch", *_READ, "--may-be-empty", *times)
    figures = _finished(
        _load(
            broker,
            "steady",
            *("--topic", "now", "--partitions", str(_PARTITIONS), "--connections", str(_PARTITIONS)),
            *("--record-bytes", "20000", "--rate-bytes", "20000000", *times),
        )
    )
    read = 0.0 if reader is None else _finished(reader)["bytes_per_s"]
    return {
        **figures,
        "read": read,
        "broker_cpu": figures["broker_cpu_s"] / figures["seconds"],
        "server_cpu": (cpu_seconds(server.pid) - server_cpu) / (_PHASE_S + _WARM_UP_S),
    }


_READ = (
    *("--topic", "history", "--partitions", str(_PARTITIONS), "--connections", str(_PARTITIONS)),
    *("--record-bytes", str(_RECORD_BYTES), "--end-offset", str(_HISTORY_RECORDS // _PARTITIONS)),
)
"""One connection a partition, 1 MiB a response, as consumers ask."""


def _limit(broker: Broker, rate: int | None) -> None:
    operation = AlterConfigOpType.DELETE if rate is None else AlterConfigOpType.SET
    entry = ConfigEntry(_RATE_SETTING, None if rate is None else str(rate), incremental_operation=operation)
    resource = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.incremental_alter_configs([resource])[resource].result(30)


# ---- a reader beside bare loops -----------------------------------------------------------------------------------------


class _Ranges:
    """What a reader of all data objects asks for: ranges of at most one GET's size."""

    def __init__(self, server: _Server, objects: Sequence[tuple[str, int]]) -> None:
        size = _READS.max_get_size_bytes
        self.server = server
        self.all = [
            (key, start, min(start + size, object_size))
            for key, object_size in objects
            for start in range(0, object_size, size)
        ]
        self.size_bytes = sum(end - start for _, start, end in self.all)

    async def read(self, get: Callable[[str, int, int], Awaitable[int]]) -> None:
        """All of them, as many at a time as the broker has under way."""
        waiting = iter(self.all)

        async def some() -> None:
            for key, start, end in waiting:
                size = await get(key, start, end)
                assert size == end - start, f"{key}: {size} bytes of {end - start}"

        await asyncio.gather(*(some() for _ in range(_READS.max_requests)))


@contextlib.asynccontextmanager
async def _client(server: _Server) -> Any:
    """aiobotocore as the broker sets it up (`s3stream/s3.py`)."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(
        region_name="us-east-1",
        signature_version="s3v4",
        s3={"addressing_style": "path", "payload_signing_enabled": False},
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=ObjectStoreSettings().max_connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        parameter_validation=False,
    )
    async with get_session().create_client("s3", endpoint_url=server.endpoint_url, config=config) as client:
        yield client


async def _ranges(server: _Server) -> _Ranges:
    async with _client(server) as client:
        objects = [
            (found["Key"], found["Size"])
            async for page in client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix="bench/data/")
            for found in page.get("Contents", ())
        ]
    largest = sorted(objects, key=lambda found: found[1])
    return _Ranges(server, [found for found in largest if found[1] >= 8 * _MIB])


async def _by_aiobotocore(ranges: _Ranges) -> float:
    async with _client(ranges.server) as client:

        async def get(key: str, start: int, end: int) -> int:
            response = await client.get_object(Bucket=_BUCKET, Key=key, Range=f"bytes={start}-{end - 1}")
            async with response["Body"] as stream:
                return len(await stream.read())

        await get(*ranges.all[0])
        began = time.perf_counter()
        await ranges.read(get)
        return time.perf_counter() - began


async def _by_sockets(ranges: _Ranges) -> float:
    loop = asyncio.get_running_loop()
    server = urlsplit(ranges.server.endpoint_url)
    async with _client(ranges.server) as client:
        targets = {
            key: await client.generate_presigned_url("get_object", {"Bucket": _BUCKET, "Key": key})
            for key in {key for key, _, _ in ranges.all}
        }
    free: list[socket.socket] = []
    buffer = bytearray(1 << 20)

    async def get(key: str, start: int, end: int) -> int:
        connection = free.pop() if free else socket.create_connection((server.hostname, server.port))
        connection.setblocking(False)
        path = targets[key].split(f":{server.port}", 1)[1]
        head = f"GET {path} HTTP/1.1\r\nHost: {server.netloc}\r\nRange: bytes={start}-{end - 1}\r\n\r\n"
        await loop.sock_sendall(connection, head.encode())
        received = b""
        while (at := received.find(b"\r\n\r\n")) < 0:
            received += await loop.sock_recv(connection, 1 << 16)
        if not received.startswith(b"HTTP/1.1 206"):
            raise LoadFailed(f"{path}: {received[:200]!r}")
        got = len(received) - at - 4
        while got < end - start:
            got += await loop.sock_recv_into(connection, buffer)
        free.append(connection)
        return got

    began = time.perf_counter()
    await ranges.read(get)
    took_s = time.perf_counter() - began
    for connection in free:
        connection.close()
    return took_s


def _beside_loops(broker: Broker, server: _Server) -> None:
    _limit(broker, None)
    ranges = uvloop.run(_ranges(server))
    loops = {"aiobotocore loop": _by_aiobotocore, "bare HTTP loop": _by_sockets}
    rates: dict[str, list[float]] = {name: [] for name in ("broker, cold", *loops)}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(_ROUNDS):
        figures = _finished(
            _load(
                broker,
                "fetch",
                *_READ,
                *("--may-be-empty", "--warmup-s", "0", "--total-bytes", str(_HISTORY_RECORDS * _RECORD_BYTES)),
            )
        )
        rates["broker, cold"].append(figures["bytes_per_s"])
        costs["broker, cold"].append(figures["broker_cpu_s"] / figures["payload_bytes"] * 1e9)
        for name, loop in loops.items():
            cpu = time.process_time()
            rates[name].append(ranges.size_bytes / uvloop.run(loop(ranges)))
            costs[name].append((time.process_time() - cpu) / ranges.size_bytes * 1e9)
    base = rates["aiobotocore loop"]
    print("cold reads               MB/s (÷ aiobotocore loop)   CPU s/GB")
    for name, found in rates.items():
        ratios = [each / other for each, other in zip(found, base, strict=True)]
        print(
            f"{name:<24} {statistics.median(found) / 1e6:6.0f} ({statistics.median(ratios):.2f}: {min(ratios):.2f} to"
            f" {max(ratios):.2f}) {statistics.median(costs[name]):6.2f}",
            flush=True,
        )


# ---- helpers ------------------------------------------------------------------------------------------------------------


def _median(rounds: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in rounds)


def _load(broker: Broker, load: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.load", load, "--bootstrap", broker.bootstrap]
    return subprocess.Popen(
        [*command, "--broker-pid", str(broker.pid), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(load: subprocess.Popen[str]) -> dict[str, float]:
    output, errors = load.communicate(timeout=_LOAD_TIMEOUT_S)
    if load.returncode != 0:
        raise LoadFailed(errors.strip())
    figures: dict[str, float] = json.loads(output)
    return figures


@contextlib.contextmanager
def _s3_server(work_dir: Path) -> Iterator[_Server]:
    """MinIO where it is built; else moto, which is slower than anything that is measured here."""
    from tests.stores.process import MinIO, StoreUnavailable, ended_at_last
    from tests.stores.s3_server import S3Server

    minio = MinIO(work_dir / "minio")
    try:
        minio.check()
    except StoreUnavailable as error:
        print(f"moto instead: {error}", file=sys.stderr)
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            server = S3Server(name="moto", endpoint_url=f"http://127.0.0.1:{port}")
            _wait_for(port)
            yield _prepared("moto", server, process.pid)
        finally:
            process.kill()
            process.wait()
        return
    with ended_at_last(minio):
        minio.start()
        minio.wait_ready()
        yield _prepared("MinIO", minio.server, minio.pid)


def _prepared(title: str, server: Any, pid: int) -> _Server:
    os.environ.update(server.environment)
    server.ensure_bucket(_BUCKET)
    return _Server(title=title, endpoint_url=server.endpoint_url, pid=pid)


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise LoadFailed(f"nothing listens on port {port}")
