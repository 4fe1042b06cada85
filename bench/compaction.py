"""What compaction costs producers: `python -m bench compaction`.

Always true:
- Producers send 20 MB/s at fixed times over ten connections, on each of them to a partition of its own.
- Each run begins with the same backlog of small objects, more than compaction gets done meanwhile, and compaction has no pause: it
  works all the time, as hard as its rate allows, or as hard as it can.
- What is compared is the same broker without compaction, with it between its requests, and with it in a process of its own. A round
  has each of them once; the table at the end has medians.
- Objects are in memory where the system has a file system there, since a store elsewhere does not use the disk that the WAL is on.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.broker import Broker, BrokerFailed, free_port, running_broker
from bench.load import LoadFailed

__all__ = ["run"]

_PARTITIONS = 10
_TOPIC = "compaction"
_BACKLOG_BYTES = 600 << 20
_IN_MEMORY = Path("/dev/shm")
_SECONDS = 6.0
_ROUNDS = 5
_NEVER_MS = (1 << 31) - 1
_BACKLOG: Mapping[str, object] = {"upload.size.bytes": 512 << 10, "compaction.interval.ms": _NEVER_MS}
_ALWAYS: Mapping[str, object] = {"compaction.interval.ms": 10}
_HARD: Mapping[str, object] = {**_ALWAYS, "compaction.io.max.bytes.per.second": 1 << 34}
_MODES: Mapping[str, Mapping[str, object]] = {
    "none": {"compaction.interval.ms": _NEVER_MS},
    "at its default rate": _ALWAYS,
    "without a bound": _HARD,
    "in the broker, without a bound": {**_HARD, "compaction.process.enable": "false"},
}


def run(work_dir: Path) -> None:
    """Prints a line for each round and each way of compaction, then their medians."""
    with _elsewhere(work_dir) as objects:
        print(f"objects in {'memory' if objects != work_dir else 'files on the disk of the WAL'}")
        _compare(work_dir, objects)


@contextlib.contextmanager
def _elsewhere(work_dir: Path) -> Iterator[Path]:
    """A directory in memory, where the system has such a file system."""
    if not _IN_MEMORY.is_dir():
        yield work_dir
        return
    with tempfile.TemporaryDirectory(prefix="tidelog-bench-", dir=_IN_MEMORY) as directory:
        yield Path(directory)


def _compare(work_dir: Path, objects: Path) -> None:
    full, full_objects = work_dir / "full", objects / "full-objects"
    with running_broker(full, {**_BACKLOG, "object.store.uri": full_objects.as_uri()}) as broker:
        broker.create_topic(_TOPIC, _PARTITIONS)
        _load(
            broker, "produce", "--records", "20", "--record-bytes", "1024", "--total-bytes", str(_BACKLOG_BYTES),
            "--warmup-s", "0", "--window", "4",
        )  # fmt: skip
    rounds: dict[str, list[dict[str, float]]] = {mode: [] for mode in _MODES}
    for number in range(_ROUNDS):
        for mode, settings in _MODES.items():
            directory, its_objects = work_dir / "run", objects / "run-objects"
            shutil.copytree(full, directory)
            shutil.copytree(full_objects, its_objects, dirs_exist_ok=True)
            found = _measure(directory, {**settings, "object.store.uri": its_objects.as_uri()})
            rounds[mode].append(found)
            print(f"round {number + 1}, compaction {mode:<30} {_line(found)}", flush=True)
            shutil.rmtree(directory)
            shutil.rmtree(its_objects)
    print(f"medians of {_ROUNDS} rounds; p99 against the same round without compaction")
    for mode, figures in rounds.items():
        middle = {name: statistics.median(found[name] for found in figures) for name in figures[0]}
        ratios = [found["p99_us"] / alone["p99_us"] for found, alone in zip(figures, rounds["none"], strict=True)]
        print(
            f"compaction {mode:<30} {_line(middle)}; p99 x {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _line(found: Mapping[str, float]) -> str:
    return (
        f"produce p50 {found['p50_us'] / 1000:5.2f} ms, p99 {found['p99_us'] / 1000:6.2f}, p99.9 {found['p999_us'] / 1000:6.2f}, "
        f"longest {found['max_us'] / 1000:6.1f} at {found['bytes_per_s'] / 1e6:.1f} MB/s; {found['rewritten'] / 1e6:4.0f} MB "
        f"rewritten, CPU of broker {found['broker_cpu_s']:.1f} s, of compaction {found['its_cpu_s']:.1f} s"
    )


def _measure(directory: Path, settings: Mapping[str, object]) -> dict[str, float]:
    port = free_port()
    with running_broker(directory, {**settings, "metrics.listeners": f"HTTP://127.0.0.1:{port}"}) as broker:
        broker_cpu_s = _metric(port, "process_cpu_seconds_total")
        found = _load(
            broker, "steady", "--records", "20", "--record-bytes", "1024", "--warmup-s", "2", "--seconds", str(_SECONDS)
        )  # fmt: skip
        return {
            **found,
            "broker_cpu_s": _metric(port, "process_cpu_seconds_total") - broker_cpu_s,
            "rewritten": _metric(port, "tidelog_compaction_written_bytes_total"),
            "its_cpu_s": _metric(port, "tidelog_compaction_process_cpu_seconds_total"),
        }


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
    raise BrokerFailed(f"/metrics has no {name}")


def _load(broker: Broker, load: str, *options: str) -> dict[str, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", load, "--bootstrap", broker.bootstrap, "--topic", _TOPIC,
         "--partitions", str(_PARTITIONS), "--connections", str(_PARTITIONS), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise LoadFailed(f"{load} after {time.monotonic() - began:.0f} s: {done.stderr.strip()}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
