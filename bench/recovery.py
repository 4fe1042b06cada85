"""How long a broker takes to serve again after a kill -9 with 1 GiB of acknowledged data that only its WAL holds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.broker import Broker, BrokerFailed, running_broker

__all__ = ["run"]

_WAL_BYTES = 1 << 30
_PARTITIONS = 100
_ANSWER_TIMEOUT_S = 120.0


def run(work_dir: Path) -> None:
    """Fill, kill, start again; prints the seconds from the start of the process to the first acknowledged record."""
    settings = {
        "wal.uri": f"file://{work_dir}/wal?capacity=8GiB",
        "memory.bytes": 8 << 30,
        "upload.size.bytes": 2 << 30,
        "upload.interval.ms": 3_600_000,
    }
    with running_broker(work_dir, settings) as broker:
        broker.create_topic("recovery", _PARTITIONS)
        _produce(broker, "--total-bytes", str(_WAL_BYTES), "--connections", "4", "--window", "4")
        broker.kill()
    began = time.perf_counter()
    with running_broker(work_dir, settings) as broker:
        while True:
            try:
                _produce(broker, "--total-bytes", "1000000", "--window", "1")
                break
            except BrokerFailed:
                if time.perf_counter() - began > _ANSWER_TIMEOUT_S:
                    raise
        served_s = time.perf_counter() - began
        print(
            f"recovery of {_WAL_BYTES >> 20} MiB of WAL: accepts after {broker.start_s:.2f} s, acknowledges after {served_s:.2f} s"
        )
        broker.kill()


def _produce(broker: Broker, *options: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.load", "produce", "--bootstrap", broker.bootstrap, "--topic", "recovery"),
            *("--partitions", str(_PARTITIONS), "--record-bytes", "100000", "--warmup-s", "0", *options),
        ],
        capture_output=True,
        text=True,
        timeout=_ANSWER_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BrokerFailed(f"{done.stderr}\n{broker.log_path.read_text()[-2000:]}")
