"""CPU time, memory and disk writes of another process, from /proc; and which core it runs on.

Always true: a process that was moved to a core of its own may run anywhere again afterwards.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "CLIENT_CORE",
    "SERVER_CORE",
    "cpu_seconds",
    "kept_on",
    "peak_resident_bytes",
    "resident_bytes",
    "written_bytes",
]

_CPUCLOCK_SCHED = 2
"""Linux: the clock of a process is one of what its threads used, to the nanosecond. /proc/PID/stat has it in ticks of 10 ms, 3 % of a burst."""

_CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE = _CORES[0]
"""Where loads run that are compared with a baseline, ..."""
SERVER_CORE = _CORES[-1]
"""... and the broker or the baseline's far end. Left to the scheduler, both share a core in one run and not in the next,
which changes a round trip from 6 to 60 us and a stream's rate by half: more than anything that is measured here."""


@contextlib.contextmanager
def kept_on(core: int, pid: int) -> Iterator[None]:
    """Keep every thread of a process (0: this one), and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    _move(pid, {core})
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            _move(pid, before)


def _move(pid: int, cores: set[int]) -> None:
    if pid == 0:
        os.sched_setaffinity(0, cores)
        return
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # threads come and go
            os.sched_setaffinity(int(thread.name), cores)


def cpu_seconds(pid: int) -> float:
    """User and system CPU seconds that a process has used so far, threads that ended included."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)  # its clock, as clock_getcpuclockid(3) makes it


def written_bytes(pid: int) -> int:
    """Bytes that a process has caused to be written to disks so far."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"process {pid} has ended")


def resident_bytes(pid: int) -> int:
    """Resident set size: what the process holds in memory, shared pages included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes(pid: int) -> int:
    """The largest resident set size since the process began."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")
