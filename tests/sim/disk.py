"""A simulated disk under the WAL: it outlives processes, and everything that a real one is permitted to do, it does.

Fault model:
- A write completes after a seeded time, in any order among the writes in flight. Once its completion was announced its
  bytes survive everything (that is what O_DSYNC promises).
- When its process is killed, each write in flight is settled by itself, sector by sector of 512 bytes: the old bytes, the
  new ones, or any mix of them. The new ones may be durable, or in the page cache only: read by the next incarnation, and
  gone after a power loss unless `sync` came before.
- A write may fail with EIO. What it leaves behind is settled in the same way.
- A write may stall for seconds.
- A process that stands still does not keep its writes from landing; it hears of them when it goes on.
- The disk may be a volume that is taken from a process while it lives, and given to another computer. Writes in flight are then
  settled as when a process is killed; these and whatever is tried later fail with EIO.
- Not permitted to it: to lose what it announced, to change a sector that nobody wrote, to tear a sector.

Held against the caller, in `problems`: memory that changed while a write of it was in flight, and calls that are not
aligned to 4096 bytes.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.loop import Process, VirtualLoop, context_of
from wal.disk import OnDone

__all__ = ["DiskFaults", "Platter", "SimDisk"]

_SECTOR_BYTES = 512
_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFaults:
    """How a disk misbehaves, as probabilities per write."""

    mean_latency_s: float = 0.0005
    stall: float = 0.001
    max_stall_s: float = 3.0
    fail: float = 0.0


class Platter:
    """What stays when processes come and go: the bytes of one file."""

    def __init__(self, size_bytes: int, rng: random.Random, faults: DiskFaults) -> None:
        self.size_bytes = size_bytes
        self.faults = faults
        self.rng = rng
        self.content = bytearray(size_bytes)
        """What a read sees."""
        self.problems: list[str] = []
        self.written_bytes = 0
        self.on_write: Callable[[], None] | None = None
        """Called when a write has begun."""
        self._durable_below: dict[int, bytes] = {}
        """By sector: what a power loss would bring back."""

    def copy(self, rng: random.Random) -> Platter:
        """A platter of its own with what a read sees now."""
        other = Platter(self.size_bytes, rng, self.faults)
        other.content[:] = self.content
        other.problems = self.problems
        return other

    def power_loss(self) -> None:
        """Forget what was not durable: all of it, or what the cache had not written back yet."""
        keep = self.rng.choice((0.0, 0.5))
        for sector, durable in self._durable_below.items():
            if self.rng.random() >= keep:
                self.content[sector * _SECTOR_BYTES : (sector + 1) * _SECTOR_BYTES] = durable
        self._durable_below.clear()

    def write_durably(self, position: int, data: bytes | memoryview) -> None:
        """A write that was completed."""
        self.content[position : position + len(data)] = data
        for sector in range(position // _SECTOR_BYTES, (position + len(data)) // _SECTOR_BYTES):
            self._durable_below.pop(sector, None)

    def write_partly(self, position: int, data: bytes | memoryview) -> None:
        """A write that was cut off: any of its sectors may be there, durable or not."""
        rng = self.rng
        arrived, durable = rng.choice(((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.9, 0.5), (0.1, 0.5)))
        count = len(data) // _SECTOR_BYTES
        order = rng.choice(("front to back", "back to front", "any"))
        if order == "front to back":
            taken = [index < count * arrived for index in range(count)]
        elif order == "back to front":
            taken = [count - index <= count * arrived for index in range(count)]
        else:
            taken = [rng.random() < arrived for _ in range(count)]
        for index in range(count):
            if not taken[index]:
                continue
            start = position + index * _SECTOR_BYTES
            sector = start // _SECTOR_BYTES
            new = bytes(data[index * _SECTOR_BYTES : (index + 1) * _SECTOR_BYTES])
            if self.rng.random() < durable:
                self._durable_below.pop(sector, None)
            else:
                self._durable_below.setdefault(sector, bytes(self.content[start : start + _SECTOR_BYTES]))
            self.content[start : start + _SECTOR_BYTES] = new

    def sync(self) -> None:
        """Make durable what a read sees."""
        self._durable_below.clear()


class SimDisk:
    """The disk port of one process."""

    def __init__(self, platter: Platter, process: Process, loop: VirtualLoop) -> None:
        self._platter = platter
        self._detached = False
        self._context = context_of(process)
        self._world = context_of(None)
        self._process = process
        self._loop = loop
        self._in_flight: dict[int, tuple[int, memoryview, bytes, OnDone]] = {}
        self._next = 0
        self._pending = 0
        self._idle: asyncio.Future[None] | None = None
        process.on_death(self._died)

    @property
    def size_bytes(self) -> int:
        return self._platter.size_bytes

    def write(self, position: int, data: memoryview, on_done: OnDone) -> None:
        self._process.check()
        platter = self._platter
        if position % _ALIGNMENT_BYTES or len(data) % _ALIGNMENT_BYTES or not data:
            platter.problems.append(f"a write of {len(data)} bytes at {position} is not aligned")
        if position + len(data) > platter.size_bytes:
            platter.problems.append(f"a write of {len(data)} bytes at {position} goes beyond the end of the file")
        platter.written_bytes += len(data)
        if platter.on_write is not None:
            platter.on_write()
        number = self._next
        self._next += 1
        self._in_flight[number] = (position, data, bytes(data), on_done)
        self._later(self._latency_s(), self._written, number)

    def read(self, position: int, into: memoryview, on_done: OnDone) -> None:
        self._process.check()
        self._later(self._latency_s(), self._read, position, into, on_done)

    def sync(self, on_done: OnDone) -> None:
        self._process.check()
        self._later(self._latency_s(), self._synced, on_done)

    async def close(self) -> None:
        self._process.check()
        if self._pending:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    def detach(self) -> None:
        """Take the volume away."""
        self._detached = True
        for position, _, taken, on_done in self._in_flight.values():
            self._platter.write_partly(position, taken)
            self._tell(on_done, OSError(errno.EIO, "the volume was detached"))
        self._in_flight.clear()

    def _latency_s(self) -> float:
        rng, faults = self._platter.rng, self._platter.faults
        if rng.random() < faults.stall:
            return rng.uniform(0.1, faults.max_stall_s)
        return rng.expovariate(1 / faults.mean_latency_s)

    def _later(self, delay_s: float, work: object, *args: object) -> None:
        """What the disk does, whoever stands still."""
        self._pending += 1
        self._loop.call_at(self._loop.time() + delay_s, work, *args, context=self._world)

    def _tell(self, on_done: OnDone, error: BaseException | None) -> None:
        """Let the process know, if it lives."""
        self._loop.call_soon(self._done, on_done, error, context=self._context)

    def _done(self, on_done: OnDone, error: BaseException | None) -> None:
        self._pending -= 1
        if not self._pending and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None
        on_done(error)

    def _written(self, number: int) -> None:
        if number not in self._in_flight:
            return  # it was settled when its process died, or lost the volume
        platter = self._platter
        position, data, taken, on_done = self._in_flight.pop(number)
        if bytes(data) != taken:  # a memoryview would be compared byte by byte
            platter.problems.append(f"memory changed under a write of {len(data)} bytes at {position}")
        if self._detached or platter.rng.random() < platter.faults.fail:
            if not self._detached:
                platter.write_partly(position, taken)
            self._tell(on_done, OSError(errno.EIO, "simulated I/O error"))
        else:
            platter.write_durably(position, taken)
            self._tell(on_done, None)

    def _read(self, position: int, into: memoryview, on_done: OnDone) -> None:
        if not self._process.alive:
            return  # its memory is gone
        found = self._platter.content[position : position + len(into)]
        if self._detached or len(found) < len(into):
            self._tell(on_done, OSError(errno.EIO, f"the file ends at {position + len(found)}"))
        else:
            into[:] = found
            self._tell(on_done, None)

    def _synced(self, on_done: OnDone) -> None:
        if not self._process.alive:
            return
        if self._detached:
            self._tell(on_done, OSError(errno.EIO, "the volume was detached"))
        else:
            self._platter.sync()
            self._tell(on_done, None)

    def _died(self) -> None:
        for position, _, taken, _ in self._in_flight.values():
            self._platter.write_partly(position, taken)
        self._in_flight.clear()
