"""What compaction costs producers: `python -m bench compaction`.

Always true:
- Producers send 20 MB/s at fixed times over ten connections, on each of them to a partition of its own.
- Each run begins with the same backlog of small objects, more than compaction gets done meanwhile, and compaction has no pause and no
  bound of its rate: it works as hard as it can all the time.
- What is compared is the same broker without compaction, with it between its requests, and with it in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from bench.broker import Broker, BrokerFailed, running_broker
from bench.load import LoadFailed

__all__ = ["run"]

_PARTITIONS = 10
_TOPIC = "compaction"
_BACKLOG_BYTES = 600 << 20
_SECONDS = 6.0
_ROUNDS = 2
_NEVER_MS = (1 << 31) - 1
_BACKLOG: Mapping[str, object] = {"upload.size.bytes": 512 << 10, "compaction.interval.ms": _NEVER_MS}
_HARD: Mapping[str, object] = {"compaction.interval.ms": 10, "compaction.io.max.bytes.per.second": 1 << 34}
_MODES: Mapping[str, Mapping[str, object]] = {
    "none": {"compaction.interval.ms": _NEVER_MS},
    "in the broker": {**_HARD, "compaction.process.enable": "false"},
    "in its own process": _HARD,
}


def run(work_dir: Path) -> None:
    """Prints a line for each round and each place where compaction may run."""
    full = work_dir / "full"
    with running_broker(full, _BACKLOG) as broker:
        broker.create_topic(_TOPIC, _PARTITIONS)
        _load(
            broker, "produce", "--records", "20", "--record-bytes", "1024", "--total-bytes", str(_BACKLOG_BYTES),
            "--warmup-s", "0", "--window", "4",
        )  # fmt: skip
    for number in range(_ROUNDS):
        for mode, settings in _MODES.items():
            directory = work_dir / "run"
            shutil.copytree(full, directory)
            _measure(directory, number, mode, settings)
            shutil.rmtree(directory)


def _measure(directory: Path, number: int, mode: str, settings: Mapping[str, object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with running_broker(directory, {**settings, "metrics.listeners": f"HTTP://127.0.0.1:{port}"}) as broker:
        broker_cpu = _metric(port, "process_cpu_seconds_total")
        found = _load(
            broker, "steady", "--records", "20", "--record-bytes", "1024", "--warmup-s", "2", "--seconds", str(_SECONDS)
        )  # fmt: skip
        broker_cpu = _metric(port, "process_cpu_seconds_total") - broker_cpu
        compacted = _metric(port, "tidelog_compaction_written_bytes_total")
        print(
            f"round {number + 1}, compaction {mode:<19} produce p50 {found['p50_us'] / 1000:6.2f} ms, p99 {found['p99_us'] / 1000:6.2f} ms, "
            f"p99.9 {found['p999_us'] / 1000:6.2f} ms, longest {found['max_us'] / 1000:6.1f} ms at {found['bytes_per_s'] / 1e6:.1f} MB/s; "
            f"{compacted / 1e6:5.0f} MB rewritten, broker CPU {broker_cpu:.1f} s, its own process "
            f"{_metric(port, 'tidelog_compaction_process_cpu_seconds_total'):.1f} s and "
            f"{_metric(port, 'tidelog_compaction_process_memory_bytes') / 1e6:.0f} MB",
            flush=True,
        )


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
