"""How long a broker takes to serve again after a kill -9 with 1 GiB of acknowledged data that only its WAL holds.

Always true:
- The time is that from the start of the process to the first acknowledged record, as a producer sees it that asks all the time.
- The object store is away while the WAL is filled, so nothing is uploaded or trimmed; it is back for the next start.
- Bulk data, requests of 1 KB, and of one record of 100 bytes: a gigabyte of those is some four and a half million frames.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import wire
from bench.broker import Broker, BrokerFailed, running_broker
from bench.cpu import cpu_seconds, peak_resident_bytes, resident_bytes
from bench.load import connect

__all__ = ["run"]

_WAL_BYTES = 1 << 30
_PARTITIONS = 100
_FRAME_HEADER_BYTES = 64
_FRAME_ALIGNMENT_BYTES = 8
_FILL_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 120.0
_ASK_AGAIN_S = 0.05
_TOPIC = "recovery"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fill:
    """What the WAL is filled with."""

    name: str
    record_bytes: int
    connections: int
    window: int


_FILLS = (
    _Fill(name="bulk (100 KB)", record_bytes=100_000, connections=4, window=4),
    _Fill(name="1 KB", record_bytes=1_000, connections=10, window=64),
    _Fill(name="100 B", record_bytes=100, connections=10, window=64),
)


def run(work_dir: Path) -> None:
    """Fill, kill, start again, once for each size of request; prints a line each."""
    for number, fill in enumerate(_FILLS):
        directory = work_dir / f"recovery-{number}"
        print(_recover(directory, fill), flush=True)
        shutil.rmtree(directory)


def _recover(directory: Path, fill: _Fill) -> str:
    settings = {
        "wal.uri": f"file://{directory}/wal?capacity=2GiB",  # a write is padded to 4 KiB
        "memory.bytes": 8 << 30,
        "upload.interval.ms": 3_600_000,
    }
    batch = wire.record_batch([bytes(fill.record_bytes)], timestamp_ms=int(time.time() * 1000))
    frame_bytes = -(-(len(batch) + _FRAME_HEADER_BYTES) // _FRAME_ALIGNMENT_BYTES) * _FRAME_ALIGNMENT_BYTES
    frames = _WAL_BYTES // frame_bytes
    with running_broker(directory, settings, module="bench.stalling_broker") as broker:
        broker.create_topic(_TOPIC, _PARTITIONS)
        broker.process.send_signal(signal.SIGUSR1)
        _fill(broker, fill, frames * len(batch))
        broker.kill()
    began = time.perf_counter()
    with running_broker(directory, settings) as broker:
        _first_acknowledgement(broker, batch)
        served_s = time.perf_counter() - began
        cpu_s = cpu_seconds(broker.pid)
        resident, peak = resident_bytes(broker.pid), peak_resident_bytes(broker.pid)
        broker.kill()
    return (
        f"recovery of {_WAL_BYTES >> 20} MiB of WAL, {fill.name}, {frames:,} frames: accepts after {broker.start_s:.2f} s, "
        f"acknowledges after {served_s:.2f} s, {cpu_s:.2f} s of CPU; {resident >> 20} MiB resident then, {peak >> 20} at most"
    )


def _fill(broker: Broker, fill: _Fill, total_bytes: int) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.load", "produce", "--bootstrap", broker.bootstrap, "--topic", _TOPIC),
            *("--partitions", str(_PARTITIONS), "--record-bytes", str(fill.record_bytes), "--warmup-s", "0"),
            *("--connections", str(fill.connections), "--window", str(fill.window), "--total-bytes", str(total_bytes)),
        ],
        capture_output=True,
        text=True,
        timeout=_FILL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BrokerFailed(f"{done.stderr}\n{broker.log_path.read_text()[-2000:]}")


def _first_acknowledgement(broker: Broker, batch: bytes) -> None:
    request = wire.produce_request(topic=_TOPIC, partition=0, batch=batch, correlation_id=0)
    at = wire.produce_error_position(_TOPIC)
    deadline = time.perf_counter() + _ANSWER_TIMEOUT_S
    with connect(broker.bootstrap) as sock:
        while time.perf_counter() < deadline:
            sock.sendall(request)
            if _response(sock)[at : at + 2] == bytes(2):
                return
            time.sleep(_ASK_AGAIN_S)
    raise BrokerFailed(f"nothing was acknowledged in {_ANSWER_TIMEOUT_S} s:\n{broker.log_path.read_text()[-2000:]}")


def _response(sock: socket.socket) -> bytes:
    response = bytearray()
    while len(response) < 4 or len(response) < 4 + int.from_bytes(response[:4]):
        part = sock.recv(4096)
        if not part:
            raise BrokerFailed("the broker closed a connection")
        response += part
    return bytes(response)
