"""Does memory stay within its bound? 10 GiB over 1,000 partitions and 200 connections, slow readers, the store away for a minute.

Always true:
- The broker has its default settings, in a process of its own; its object store is the local directory behind a switch.
- Lagging readers begin at the first record and take their answers slowly, so that they hold on to
  memory which the log cache wants back; a reader that the broker gives up connects again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from bench import wire
from bench.broker import Broker, BrokerFailed, running_broker
from bench.cpu import peak_resident_bytes, resident_bytes
from bench.load import FetchConnection, LoadFailed, connect

__all__ = ["run"]

TOTAL_BYTES = 10 << 30
PARTITIONS = 1000
CONNECTIONS = 200
LAGGING_READERS = 20
STALL_S = 60.0

_STALL_AFTER_S = 3.0
_RECORD_BYTES = 100_000
_READER_BYTES = 64 << 10
_READER_PAUSE_S = 0.2
_SAMPLE_S = 0.05
_TOPIC = "memory"
_LOAD_TIMEOUT_S = 1800


def run(work_dir: Path) -> None:
    """Prints the largest resident set size beside the bound."""
    with running_broker(work_dir, {}, module="bench.stalling_broker") as broker:
        broker.create_topic(_TOPIC, PARTITIONS)
        stop = threading.Event()
        readers = [_LaggingReader(broker, partition, stop) for partition in range(LAGGING_READERS)]
        sampler = _Sampler(broker.pid, stop)
        idle_bytes = resident_bytes(broker.pid)
        began = time.perf_counter()
        load = _produce(broker)
        sampler.start()
        try:
            time.sleep(_STALL_AFTER_S)
            for reader in readers:
                reader.start()
            time.sleep(_STALL_AFTER_S)
            broker.process.send_signal(signal.SIGUSR1)
            time.sleep(STALL_S)
            broker.process.send_signal(signal.SIGUSR2)
            _, errors = load.communicate(timeout=_LOAD_TIMEOUT_S)
            took_s = time.perf_counter() - began
        finally:
            stop.set()
            load.kill()
            for thread in (*readers, sampler):
                if thread.is_alive():
                    thread.join()
        if load.returncode != 0:
            raise BrokerFailed(f"{errors}\n{broker.log_path.read_text()[-4000:]}")
        ends = sum((reader.ends for reader in readers), Counter[str]())
        print(
            f"produced {TOTAL_BYTES >> 30} GiB over {PARTITIONS} partitions and {CONNECTIONS} connections in {took_s:.0f} s, "
            f"{STALL_S:.0f} s of it without object store, {LAGGING_READERS} lagging readers "
            f"(they read {sum(reader.read_bytes for reader in readers) >> 20} MiB; their connections ended with {dict(ends)})"
        )
        print(
            f"resident: {idle_bytes >> 20} MiB at the start, {sampler.largest_bytes >> 20} MiB at most "
            f"(the kernel's own mark: {peak_resident_bytes(broker.pid) >> 20} MiB), bound 1024 MiB"
        )


def _produce(broker: Broker) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "bench.load", "produce", "--bootstrap", broker.bootstrap, "--topic", _TOPIC),
            *("--partitions", str(PARTITIONS), "--connections", str(CONNECTIONS), "--record-bytes", str(_RECORD_BYTES)),
            *("--window", "2", "--total-bytes", str(TOTAL_BYTES), "--warmup-s", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class _Sampler(threading.Thread):
    """Watches the resident set size."""

    def __init__(self, pid: int, stop: threading.Event) -> None:
        super().__init__()
        self.largest_bytes = 0
        self._pid = pid
        self._stop_event = stop

    def run(self) -> None:
        while not self._stop_event.wait(_SAMPLE_S):
            self.largest_bytes = max(self.largest_bytes, resident_bytes(self._pid))


class _LaggingReader(threading.Thread):
    """Reads one partition from its first record, far too slowly."""

    def __init__(self, broker: Broker, partition: int, stop: threading.Event) -> None:
        super().__init__()
        self.read_bytes = 0
        self.ends: Counter[str] = Counter()
        """Why connections ended, and how often."""
        self._address = broker.bootstrap
        self._partition = partition
        self._stop_event = stop
        self._offset = 0

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                self._read_until_dropped()
            except (LoadFailed, OSError) as error:
                self.ends[str(error)] += 1
                self._stop_event.wait(1.0)

    def _read_until_dropped(self) -> None:
        batch = wire.record_batch([bytes(_RECORD_BYTES)], timestamp_ms=0)
        view = memoryview(bytearray(_READER_BYTES))
        with connect(self._address) as sock:
            sock.settimeout(120)
            reader = FetchConnection(
                sock=sock,
                request=wire.fetch_request(
                    topic=_TOPIC, partition=self._partition, max_bytes=1 << 20, correlation_id=0
                ),
                offset_position=wire.fetch_offset_position(_TOPIC),
                layout=wire.FetchResponseLayout(_TOPIC),
                may_be_empty=True,  # while the object store is away
                offset=self._offset,
                end_offset=1 << 62,
                batch_size=len(batch),
                records_per_batch=1,
            )
            while not self._stop_event.is_set():
                reader.ask()
                self.read_bytes += reader.receive(view)
                while reader.remaining and not self._stop_event.wait(_READER_PAUSE_S):
                    self.read_bytes += reader.receive(view)
                self._offset = reader.offset
