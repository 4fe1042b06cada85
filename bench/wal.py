"""The file WAL by itself, beside the disk: append to durable, throughput, CPU, recovery.

    python -m bench.wal [--directory build/bench-wal] [--seconds 1] [--repeats 5]

Always true:
- The ring was formatted and the arena touched before anything is measured, as both are in a broker that runs.
- Every line is measured beside fio's O_DIRECT|O_DSYNC writes of the same size in the same run, in turns; the figures
  are medians, and what counts is their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.baselines import fio_dsync
from wal.arena import Arena
from wal.file_wal import FileWal
from wal.open import open_wal

_CAPACITY_BYTES = 1 << 30
_ARENA_BYTES = 256 << 20
_TRIM_STEP_BYTES = 256 << 20
_TOUCH_STEP_BYTES = 16 << 20
_APPEND_ROUNDS = 20
_APPENDS_PER_ROUND = 20_000
_MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Payloads of one size, so many of them under way at a time."""

    name: str
    payload_size_bytes: int
    depth: int
    beside_block_bytes: int
    """Block size of the fio run that stands beside it."""


LOADS = (
    Load(name="1 KiB, depth 1", payload_size_bytes=1 << 10, depth=1, beside_block_bytes=4 << 10),
    Load(name="100 B, depth 160", payload_size_bytes=100, depth=160, beside_block_bytes=4 << 10),
    Load(name="100 KB, depth 8", payload_size_bytes=100_000, depth=8, beside_block_bytes=1 << 20),
    Load(name="1 MB, depth 1", payload_size_bytes=1_000_000, depth=1, beside_block_bytes=1 << 20),
    Load(name="1 MB, depth 4", payload_size_bytes=1_000_000, depth=4, beside_block_bytes=1 << 20),
    Load(name="1 MB, depth 8", payload_size_bytes=1_000_000, depth=8, beside_block_bytes=1 << 20),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of a load."""

    payloads_per_s: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    cpu_us_per_payload: float
    """Of the whole process: laying out, framing, the writer thread, this load generator."""


async def opened(
    directory: Path,
    *,
    capacity_bytes: int = _CAPACITY_BYTES,
    recovered: bool = True,
    formatted: bool = True,
    touched: bool = True,
) -> FileWal:
    """A log that is ready: recovered, formatted, its memory touched."""
    arena = Arena(_ARENA_BYTES)
    at = 0 if touched else arena.size_bytes
    while at < arena.size_bytes:
        at = arena.touch(at, _TOUCH_STEP_BYTES)
    wal = await open_wal(
        f"file://{directory}?capacity={capacity_bytes}",
        arena=arena,
        cluster_id="bench",
        node_id=1,
        rng=random.Random(1),
    )
    assert isinstance(wal, FileWal)
    if recovered:
        async for _ in wal.recover():
            pass
    if recovered and formatted and wal._format_task is not None:
        await wal._format_task
    return wal


async def run(directory: Path, load: Load, seconds: float) -> Measured:
    """Keep `depth` payloads under way for so long."""
    wal = await opened(directory)
    loop = asyncio.get_running_loop()
    payload = random.Random(2).randbytes(load.payload_size_bytes)
    under_way: deque[tuple[int, int, float]] = deque()
    """End offset, the arena's head behind it, when it was appended."""
    latencies: list[float] = []
    finished = loop.create_future()
    trims: set[asyncio.Task[None]] = set()
    clock = time.perf_counter
    until = clock() + seconds

    def append() -> bool:
        began = clock()
        view = wal.reserve(load.payload_size_bytes)
        if view is None:
            return False
        view[:] = payload
        end = wal.append(stream_id=1, leader_epoch=1, base_offset=len(latencies), record_count=1)
        under_way.append((end, wal._arena.head, began))
        return True

    def durable(offset: int) -> None:
        now = clock()
        release_to = wal._arena.tail
        while under_way and under_way[0][0] <= offset:
            _, release_to, began = under_way.popleft()
            latencies.append(now - began)
        wal._arena.release_to(release_to)
        if offset - wal.trim_offset > _TRIM_STEP_BYTES and not trims:
            trim = loop.create_task(wal.trim(offset))
            trims.add(trim)
            trim.add_done_callback(trims.discard)
        if now < until:
            while len(under_way) < load.depth and append():
                pass
        elif not under_way and not finished.done():
            finished.set_result(None)

    wal.set_listeners(durable, lambda failure: finished.set_exception(failure))
    cpu = time.process_time()
    began = clock()
    while len(under_way) < load.depth and append():
        pass
    await finished
    elapsed, cpu = clock() - began, time.process_time() - cpu
    await asyncio.gather(*trims)
    await wal.trim(wal.durable_offset)
    await wal.close()
    latencies.sort()
    count = len(latencies)
    return Measured(
        payloads_per_s=count / elapsed,
        bytes_per_s=count * load.payload_size_bytes / elapsed,
        p50_us=latencies[count // 2] * 1e6,
        p99_us=latencies[count * 99 // 100] * 1e6,
        cpu_us_per_payload=cpu / count * 1e6,
    )


async def thread_hop_us() -> float:
    """From the event loop to another thread and back, with nothing done there: the median."""
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        await loop.run_in_executor(None, int)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


async def append_cost_us(payload_size_bytes: int) -> float:
    """Reserve and append alone, nothing written yet: the best of many rounds, as others use the machine too."""
    with tempfile.TemporaryDirectory() as directory:
        wal = await opened(Path(directory), capacity_bytes=64 << 20)
        costs = []
        for _ in range(_APPEND_ROUNDS):
            began = time.perf_counter()
            for number in range(_APPENDS_PER_ROUND):
                wal.reserve(payload_size_bytes)
                wal.append(stream_id=1, leader_epoch=1, base_offset=number, record_count=1)
            costs.append((time.perf_counter() - began) / _APPENDS_PER_ROUND)
            await until_durable(wal)
            await wal.trim(wal.durable_offset)
        await wal.close()
    return min(costs) * 1e6


async def until_durable(wal: FileWal) -> None:
    """Wait for everything appended, and give its memory back."""
    while wal.durable_offset < wal.end_offset:  # noqa: ASYNC110 (a benchmark may spin)
        await asyncio.sleep(0)
    wal._arena.release_to(wal._arena.head)


async def recovery(directory: Path, payload_size_bytes: int) -> tuple[float, int]:
    """Seconds to recover a whole ring after a crash, and how many frames that was."""
    wal = await opened(directory)
    while wal.reserve(payload_size_bytes) is not None:
        wal.append(stream_id=1, leader_epoch=1, base_offset=0, record_count=1)
        if wal._arena.head - wal._arena.tail > _ARENA_BYTES // 2:
            await until_durable(wal)
    await until_durable(wal)
    await wal._disk.close()  # without the mark of an orderly close
    wal = await opened(directory, recovered=False)
    began = time.perf_counter()
    frames = 0
    async for run in wal.recover():
        frames += sum(len(columns.positions) for columns in run.streams.values())
    elapsed = time.perf_counter() - began
    await wal.trim(wal.durable_offset)
    await wal.close()
    return elapsed, frames


async def start_s(directory: Path) -> float:
    """From nothing to the first durable append: a directory is made, a ring of full size set aside."""
    shutil.rmtree(directory, ignore_errors=True)
    began = time.perf_counter()
    wal = await opened(directory, formatted=False, touched=False)
    view = wal.reserve(100)
    assert view is not None
    wal.append(stream_id=1, leader_epoch=1, base_offset=0, record_count=1)
    await until_durable(wal)
    elapsed = time.perf_counter() - began
    await wal.close()
    return elapsed


def measure(directory: Path, seconds: float, repeats: int) -> None:
    """Measure everything, and print it."""
    ring = directory / "ring"
    print(
        f"start to first durable append, {_CAPACITY_BYTES >> 20} MiB ring made anew: {uvloop.run(start_s(ring)) * 1e3:.0f} ms"
    )
    for size in (100, 1000):
        print(f"reserve + append of {size} B: {uvloop.run(append_cost_us(size)):.2f} us")
    hop_us = uvloop.run(thread_hop_us())
    print(f"event loop to a thread and back: {hop_us:.0f} us")
    print(f"medians of {repeats} runs of {seconds} s, in turns with fio's O_DIRECT|O_DSYNC writes at depth 1:")
    for load in LOADS:
        ours: list[Measured] = []
        disk: list[dict[str, float]] = []
        for _ in range(repeats):
            disk.append(fio_dsync(directory, block_size_bytes=load.beside_block_bytes, seconds=seconds))
            ours.append(uvloop.run(run(ring, load, seconds)))
        p50_us = statistics.median(one.p50_us for one in ours)
        bytes_per_s = statistics.median(one.bytes_per_s for one in ours)
        disk_p50_us = statistics.median(one["p50_us"] for one in disk)
        disk_bytes_per_s = statistics.median(one["bytes_per_s"] for one in disk)
        if load.depth == 1 and load.payload_size_bytes < load.beside_block_bytes:
            ratio = f"p50 / (fio p50 {disk_p50_us:.0f} + hop {hop_us:.0f} us) = {p50_us / (disk_p50_us + hop_us):.2f}"
        elif load.payload_size_bytes < load.beside_block_bytes / 16:
            ratio = f"fio {load.beside_block_bytes >> 10} KiB p50 {disk_p50_us:.0f} us"
        else:
            ratio = (
                f"bytes/s / fio {load.beside_block_bytes >> 10} KiB {disk_bytes_per_s / _MB:.0f} MB/s "
                f"= {bytes_per_s / disk_bytes_per_s:.2f}"
            )
        print(
            f"  {load.name:16} {statistics.median(one.payloads_per_s for one in ours):9.0f}/s {bytes_per_s / _MB:6.0f} MB/s"
            f"  p50 {p50_us:6.0f} p99 {statistics.median(one.p99_us for one in ours):6.0f} us"
            f"  CPU {statistics.median(one.cpu_us_per_payload for one in ours):6.1f} us each   {ratio}"
        )
    for size in (1_000, 100_000):
        elapsed, frames = uvloop.run(recovery(ring, size))
        print(f"recovery of a full {_CAPACITY_BYTES >> 20} MiB ring, {frames} frames of {size} B: {elapsed:.2f} s")


def main() -> None:
    """Run it in a directory on the disk that is meant."""
    parser = argparse.ArgumentParser(prog="python -m bench.wal", description="The file WAL by itself, beside the disk.")
    parser.add_argument("--directory", type=Path, default=Path("build/bench-wal"))
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    directory: Path = arguments.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        measure(directory, arguments.seconds, arguments.repeats)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
