"""A broker process to be measured: started from a settings file, watched from outside.

Always true:
- It is the program that users run (`tidelog serve -c …`), in a process of its own, under the interpreter of the benchmark.
- It listens on loopback only, on a port that was free a moment before.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from confluent_kafka.admin import AdminClient, NewTopic

from bench.cpu import cpu_seconds, written_bytes

__all__ = ["Broker", "BrokerFailed", "free_port", "run_program", "running_broker"]

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_QUIET_SAMPLE_S = 0.25
_QUIET_CPU_SHARE = 0.04
_QUIET_WRITTEN_BYTES = 64 << 10
_QUIET_TIMEOUT_S = 120.0
_POLL_S = 0.01


class BrokerFailed(Exception):
    """The broker did not start, ended by itself, or did not become quiet; the message holds its output."""


@dataclass(slots=True)
class Broker:
    """A running broker."""

    process: subprocess.Popen[bytes]
    bootstrap: str
    log_path: Path
    start_s: float
    """From the start of the process to the first accepted connection."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def create_topic(self, topic: str, partitions: int) -> None:
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1)
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        admin.create_topics([new])[topic].result(_START_TIMEOUT_S)

    def replace_topic(self, topic: str, partitions: int) -> None:
        """Give a load a new topic, and what the one before produced to be deleted: else compaction merges it in the background."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        admin.delete_topics([topic])[topic].result(_START_TIMEOUT_S)
        self.create_topic(topic, partitions)

    def wait_until_quiet(self, quiet_s: float) -> None:
        """Wait until it has used next to no CPU and written nothing for a while.

        Then its memory is touched, its WAL formatted, and what was produced before is uploaded.
        """
        deadline = time.monotonic() + _QUIET_TIMEOUT_S
        quiet_since = time.monotonic()
        cpu, written = cpu_seconds(self.pid), written_bytes(self.pid)
        while time.monotonic() < deadline:
            time.sleep(_QUIET_SAMPLE_S)
            now_cpu, now_written = cpu_seconds(self.pid), written_bytes(self.pid)
            if now_cpu - cpu > _QUIET_SAMPLE_S * _QUIET_CPU_SHARE or now_written - written > _QUIET_WRITTEN_BYTES:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= quiet_s:
                return
            cpu, written = now_cpu, now_written
        raise BrokerFailed(f"the broker is still busy after {_QUIET_TIMEOUT_S} s:\n{self.log_path.read_text()}")

    def kill(self) -> None:
        """As a power cut would: no orderly end."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_broker(directory: Path, settings: Mapping[str, object], *, module: str = "broker") -> Iterator[Broker]:
    """Start a broker on `directory` and stop it in order at the end. What `settings` does not say is the broker's default."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    everything = {
        "node.id": 1,
        "listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "object.store.uri": f"file://{directory}/objects",
        "wal.uri": f"file://{directory}/wal?capacity=512MiB",
        # What loads leave behind goes at once: some ten gigabytes a round would fill the disk.
        "metadata.restore.window.ms": 0,
        "log.segment.delete.delay.ms": 1_000,
        **settings,
    }
    path = directory / "tidelog.toml"
    path.write_text(
        "".join(
            f'"{name}" = {value if isinstance(value, int) else _quoted(str(value))}\n'
            for name, value in everything.items()
        )
    )
    log_path = directory / "broker.log"
    with log_path.open("ab") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "-c", str(path)], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_accepting(process, port, log_path)
        yield Broker(process, f"127.0.0.1:{port}", log_path, time.perf_counter() - began)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def run_program(name: str, serve: Callable[[Path], Coroutine[Any, Any, None]]) -> int:
    """What a broker of a benchmark's own has for `main`: it is started as `tidelog` is, `python -m NAME serve -c FILE`."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("-c", "--config", type=Path, required=True)
    uvloop.run(serve(parser.parse_args().config))
    return 0


def free_port() -> int:
    """One of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _wait_until_accepting(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(_POLL_S)
    raise BrokerFailed(f"the broker did not start:\n{log_path.read_text()}")
