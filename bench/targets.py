"""What is measured, and beside which baseline: the lines of the table.

Always true:
- A measurement is one run of one load; it returns figures under its own name. A line combines figures of the same round.
- Loads that measure the path up to the WAL are bursts that end before the first upload begins, since an upload
  writes the same bytes once more to the same disk; what producers see in the long run has lines of its own ("sustained").
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import baselines
from bench.broker import Broker
from bench.cpu import CLIENT_CORE, SERVER_CORE, kept_on
from bench.librdkafka import rdkafka_performance

__all__ = ["LINES", "MEASUREMENTS", "PARTITIONS", "Context", "Figures", "Line", "MeasurementFailed"]

Figures = Mapping[str, float]

_GB = 1e9
_QUIET_S = 4.0
"""Longer than the age at which a burst's broker uploads: a shorter quiet may be the one before the upload."""
_BURST_BYTES = 900_000_000
"""Less than the quarter of arena and WAL at which the benchmark's broker begins an upload."""
_LOAD_TIMEOUT_S = 300

PARTITIONS: Mapping[str, int] = {"bulk": 4, "small": 10, "latency": 1, "reread": 4, "librdkafka": 1}
"""The topics of the loads."""


class MeasurementFailed(Exception):
    """A load ended with an error; the message holds its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where things are."""

    build_dir: Path
    work_dir: Path
    durable: Broker
    """With a file WAL; no upload during a burst."""
    without_wal: Broker
    sustained: Broker
    """With default settings."""
    seconds: float

    def fresh(self, broker: Broker, topic: str) -> None:
        """A broker at rest, with an empty topic for the load that comes."""
        broker.replace_topic(topic, PARTITIONS[topic])
        broker.wait_until_quiet(_QUIET_S)

    def load(self, broker: Broker, load: str, *options: str) -> dict[str, float]:
        """Run the load generator against a broker, each on a core of its own, as both ends of a baseline."""
        with kept_on(SERVER_CORE, broker.pid), kept_on(CLIENT_CORE, 0):
            return self.free_load(broker, load, *options)

    def free_load(self, broker: Broker, load: str, *options: str) -> dict[str, float]:
        """The same on whichever cores the scheduler chooses: where uploads run beside the load."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "bench.load",
                load,
                "--bootstrap",
                broker.bootstrap,
                "--broker-pid",
                str(broker.pid),
                *options,
            ],
            capture_output=True,
            text=True,
            timeout=_LOAD_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise MeasurementFailed(
                f"{load} {' '.join(options)}: {done.stderr.strip()}\n{broker.log_path.read_text()[-2000:]}"
            )
        figures: dict[str, float] = json.loads(done.stdout)
        return figures


def _loopback(context: Context) -> Figures:
    return {"bytes_per_s": baselines.loopback_bytes_per_s(seconds=context.seconds)}


def _round_trip(context: Context) -> Figures:
    p50_us = baselines.loopback_round_trip_us(request_bytes=1150, response_bytes=60, seconds=context.seconds)
    return {"p50_us": p50_us}


def _fio(block_size_bytes: int) -> Callable[[Context], Figures]:
    def measure(context: Context) -> Figures:
        return baselines.fio_dsync(context.work_dir, block_size_bytes=block_size_bytes, seconds=context.seconds)

    return measure


def _burst(broker: str, record_bytes: int, connections: int, window: int) -> Callable[[Context], Figures]:
    """Large requests of one record each, as many bytes as one block of the log cache takes."""

    def measure(context: Context) -> Figures:
        target: Broker = getattr(context, broker)
        context.fresh(target, "bulk")
        figures = context.load(
            target,
            "produce",
            *("--topic", "bulk", "--partitions", "4", "--record-bytes", str(record_bytes)),
            *("--connections", str(connections), "--window", str(window)),
            *("--total-bytes", str(_BURST_BYTES), "--warmup-s", "0"),
        )
        return {**figures, "cpu_s_per_gb": figures["broker_cpu_s"] / (figures["payload_bytes"] / _GB)}

    return measure


def _sustained(context: Context) -> Figures:
    context.fresh(context.sustained, "bulk")
    figures = context.free_load(
        context.sustained,
        "produce",
        *("--topic", "bulk", "--partitions", "4", "--record-bytes", "1000000", "--connections", "4", "--window", "2"),
        *("--seconds", str(context.seconds * 4)),
    )
    return {**figures, "cpu_s_per_gb": figures["broker_cpu_s"] / (figures["payload_bytes"] / _GB)}


def _small(context: Context) -> Figures:
    context.fresh(context.durable, "small")
    figures = context.load(
        context.durable,
        "produce",
        *("--topic", "small", "--partitions", "10", "--record-bytes", "100", "--connections", "10", "--window", "16"),
        *("--seconds", str(context.seconds)),
    )
    return {**figures, "requests_per_core_s": figures["requests"] / figures["broker_cpu_s"]}


def _depth_1(context: Context) -> Figures:
    context.fresh(context.durable, "latency")
    return context.load(
        context.durable, "latency", "--topic", "latency", "--record-bytes", "1024", "--seconds", str(context.seconds)
    )


def _fetch(context: Context) -> Figures:
    """1 MiB responses of 100 KB batches, from the log cache."""
    target = context.durable
    context.fresh(target, "reread")
    context.load(
        target,
        "produce",
        *("--topic", "reread", "--partitions", "4", "--record-bytes", "100000", "--connections", "4", "--window", "2"),
        *("--total-bytes", "200000000", "--warmup-s", "0"),
    )
    figures = context.load(
        target,
        "fetch",
        *("--topic", "reread", "--partitions", "4", "--record-bytes", "100000", "--connections", "4"),
        *("--end-offset", "450", "--seconds", str(context.seconds)),
    )
    return {**figures, "cpu_s_per_gb": figures["broker_cpu_s"] / (figures["payload_bytes"] / _GB)}


_RATE = re.compile(r"in \d+ms: (\d+) msgs/s and ([\d.]+) MB/s")


def _librdkafka(broker: str) -> Callable[[Context], Figures]:
    """librdkafka's own performance client with its default batching: 1 KiB messages, acks=all."""

    def measure(context: Context) -> Figures:
        target: Broker = getattr(context, broker)
        context.fresh(target, "librdkafka")
        done = subprocess.run(
            [
                str(rdkafka_performance(context.build_dir)),
                *("-P", "-t", "librdkafka", "-s", "1024", "-c", str(_BURST_BYTES // 1024), "-a", "-1"),
                *("-b", target.bootstrap, "-X", "queue.buffering.max.messages=1000000"),
            ],
            capture_output=True,
            text=True,
            timeout=_LOAD_TIMEOUT_S,
            check=False,
        )
        rates = _RATE.findall(done.stdout + done.stderr)
        if done.returncode != 0 or not rates:
            raise MeasurementFailed(f"rdkafka_performance: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return {"messages_per_s": float(rates[-1][0]), "bytes_per_s": float(rates[-1][1]) * 1e6}

    return measure


_S3_FIGURE = re.compile(r"^(PUT|GET) (bare|S3 store) HTTP +([\d.]+) CPU s/GB", re.MULTILINE)


def _s3(context: Context) -> Figures:
    """CPU of the S3 client against a server that keeps nothing, beside a bare socket; see `bench.s3`."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.s3", "--gigabytes", "1", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=_LOAD_TIMEOUT_S,
        check=False,
    )
    figures = {f"{method} {client}": float(cost) for method, client, cost in _S3_FIGURE.findall(done.stdout)}
    if done.returncode != 0 or len(figures) != 4:
        raise MeasurementFailed(f"bench.s3: {done.stdout}{done.stderr}")
    return figures


MEASUREMENTS: Mapping[str, Callable[[Context], Figures]] = {
    "loopback": _loopback,
    "round_trip": _round_trip,
    "fio_4k": _fio(4 << 10),
    "fio_1m": _fio(1 << 20),
    "null_1m": _burst("without_wal", 1_000_000, connections=4, window=2),
    "wal_1m": _burst("durable", 1_000_000, connections=4, window=2),
    "null_100k": _burst("without_wal", 100_000, connections=4, window=8),
    "wal_100k": _burst("durable", 100_000, connections=4, window=8),
    "small": _small,
    "depth_1": _depth_1,
    "fetch": _fetch,
    "librdkafka_null": _librdkafka("without_wal"),
    "librdkafka_wal": _librdkafka("durable"),
    "sustained": _sustained,
    "s3": _s3,
}
"""In the order in which one round takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table: a value per round, from the figures of that round."""

    title: str
    needs: tuple[str, ...]
    value: Callable[[Mapping[str, Figures]], float]
    unit: str
    goal: float | None = None
    lower_is_better: bool = False


def _ratio(title: str, over: str, under: str, goal: float) -> Line:
    return Line(
        title=title,
        needs=(over, under),
        value=lambda found: found[over]["bytes_per_s"] / found[under]["bytes_per_s"],
        unit="",
        goal=goal,
    )


def _figure(title: str, name: str, figure: str, unit: str, *, scale: float = 1.0, goal: float | None = None) -> Line:
    return Line(
        title=title,
        needs=(name,),
        value=lambda found: found[name][figure] / scale,
        unit=unit,
        goal=goal,
        lower_is_better=unit in ("µs", "s/GB"),
    )


LINES: tuple[Line, ...] = (
    _figure("TCP over loopback, one stream", "loopback", "bytes_per_s", "MB/s", scale=1e6),
    _figure("TCP round trip, p50", "round_trip", "p50_us", "µs"),
    _figure("fio O_DIRECT|O_DSYNC 4 KiB, p50", "fio_4k", "p50_us", "µs"),
    _figure("fio O_DIRECT|O_DSYNC 1 MiB", "fio_1m", "bytes_per_s", "MB/s", scale=1e6),
    _figure("produce 1 MB without WAL", "null_1m", "bytes_per_s", "MB/s", scale=1e6),
    _ratio("  ÷ loopback", "null_1m", "loopback", 0.8),
    _figure("produce 100 KB without WAL", "null_100k", "bytes_per_s", "MB/s", scale=1e6),
    _ratio("  ÷ loopback", "null_100k", "loopback", 0.8),
    _figure("produce 1 MB durable", "wal_1m", "bytes_per_s", "MB/s", scale=1e6),
    _ratio("  ÷ fio 1 MiB", "wal_1m", "fio_1m", 0.8),
    _figure("  broker CPU", "wal_1m", "cpu_s_per_gb", "s/GB", goal=0.25),
    _figure("produce 100 KB durable", "wal_100k", "bytes_per_s", "MB/s", scale=1e6),
    _ratio("  ÷ fio 1 MiB", "wal_100k", "fio_1m", 0.6),
    _figure("  broker CPU", "wal_100k", "cpu_s_per_gb", "s/GB", goal=0.40),
    _figure("librdkafka 1 KiB durable", "librdkafka_wal", "bytes_per_s", "MB/s", scale=1e6),
    _ratio("  ÷ without WAL", "librdkafka_wal", "librdkafka_null", 0.88),
    _figure("one 100 B record a request, durable", "small", "requests_per_s", "1/s"),
    _figure("  per broker core-second", "small", "requests_per_core_s", "1/s", goal=100_000),
    _figure("depth 1, 1 KiB durable, p50", "depth_1", "p50_us", "µs"),
    _figure("  p99", "depth_1", "p99_us", "µs"),
    Line(
        title="  p50 ÷ (fio 4 KiB + TCP round trip)",
        needs=("depth_1", "fio_4k", "round_trip"),
        value=lambda found: found["depth_1"]["p50_us"] / (found["fio_4k"]["p50_us"] + found["round_trip"]["p50_us"]),
        unit="",
        goal=1.4,
        lower_is_better=True,
    ),
    _figure("fetch 1 MiB from the log cache", "fetch", "bytes_per_s", "MB/s", scale=1e6),
    _ratio("  ÷ loopback", "fetch", "loopback", 0.9),
    _figure("  broker CPU", "fetch", "cpu_s_per_gb", "s/GB"),
    _figure("sustained produce 1 MB, uploads included", "sustained", "bytes_per_s", "MB/s", scale=1e6),
    _figure("  broker CPU", "sustained", "cpu_s_per_gb", "s/GB"),
    _figure("S3 PUT of 8 MiB, client CPU", "s3", "PUT S3 store", "s/GB", goal=0.5),
    _figure("  bare socket", "s3", "PUT bare", "s/GB"),
    _figure("S3 GET of 8 MiB, client CPU", "s3", "GET S3 store", "s/GB"),
    _figure("  bare socket", "s3", "GET bare", "s/GB"),
)
