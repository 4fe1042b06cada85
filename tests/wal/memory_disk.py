"""A disk in memory that does everything a real one is permitted to do, decided by a seed.

Fault model. Permitted:
- A write that was not announced as done when the power goes may have reached the medium whole, in part, or not
  at all; what is torn is a sector of 512 or 4096 bytes, each by itself, in any order.
- The same when the process is killed: the kernel finishes what it was given, or not. What arrived then may sit
  in a cache: the next process reads it, a power loss takes it away, unless `sync` was called in between.
- Writes in flight together complete in any order.
- A write fails: the caller is told, and its sectors are left as after a power loss.
- A write takes as long as it likes; until it completes the medium shows old and new sectors mixed.
Not permitted: to lose what was announced as done, to change a sector that nobody wrote, to tear a sector. A disk
that does is what `lies_about_durability` plants, to show that the tests notice.

What a dead process still asks for goes nowhere, and nothing is announced to it.

Checked on the caller: alignment of position, size and memory; memory not touched under a write.
"""

from __future__ import annotations

import asyncio
import ctypes
import random
from collections.abc import Callable
from dataclasses import dataclass

from wal.disk import OnDone
from wal.frame import BLOCK_SIZE_BYTES
from wal.header import RING_START_BYTES, WalHeader, initial_image

__all__ = ["MemoryDisk", "Write"]


@dataclass(eq=False, slots=True)
class Write:
    """One write in flight."""

    position: int
    data: memoryview
    as_queued: bytes
    on_done: OnDone


class MemoryDisk:
    """The disk port over a bytearray that survives its process.

    By default writes complete in the next turns of the event loop. With `hold` they stay in flight until the test
    completes them; `shuffle` completes those in flight in random order.
    """

    def __init__(self, content: bytes, *, rng: random.Random | None = None, sector_bytes: int = 512) -> None:
        self.content = bytearray(content)
        """What a read sees."""
        self._durable = bytearray(content)
        self._rng = rng or random.Random(0)
        self._sector_bytes = sector_bytes
        self.in_flight: list[Write] = []
        self.written: list[tuple[int, bytes]] = []
        """Every write that was announced as done."""
        self.syncs = 0
        self.hold = False
        self.shuffle = False
        self.lies_about_durability = False
        self.fail_read: Callable[[int], bool] = lambda position: False
        self.fail_write: Callable[[int], bool] = lambda position: False
        self._dead = False
        self.closed = False

    @classmethod
    def formatted(
        cls,
        *,
        capacity_bytes: int = 64 << 10,
        wal_id: str = "0123456789abcdef" * 2,
        cluster_id: str = "tide",
        node_id: int = 1,
        rng: random.Random | None = None,
        sector_bytes: int = 512,
    ) -> MemoryDisk:
        """A disk as a new WAL file leaves it."""
        header = WalHeader(wal_id=wal_id, cluster_id=cluster_id, node_id=node_id, capacity_bytes=capacity_bytes)
        return cls(initial_image(header) + bytes(capacity_bytes), rng=rng, sector_bytes=sector_bytes)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    # -- the port

    def write(self, position: int, data: memoryview, on_done: OnDone) -> None:
        assert not self.closed, "the disk is closed"
        if self._dead:
            return
        assert position % BLOCK_SIZE_BYTES == 0, f"write at {position}"
        assert len(data) % BLOCK_SIZE_BYTES == 0, f"write of {len(data)} bytes"
        assert len(data) > 0
        assert ctypes.addressof(ctypes.c_char.from_buffer(data)) % BLOCK_SIZE_BYTES == 0, "memory is not aligned"
        assert position + len(data) <= self.size_bytes, "write past the end of the file"
        write = Write(position, data, bytes(data), on_done)
        self.in_flight.append(write)
        if not self.hold:
            asyncio.get_running_loop().call_soon(self._turn)

    def read(self, position: int, into: memoryview, on_done: OnDone) -> None:
        assert not self.closed, "the disk is closed"
        if self._dead:
            return
        assert position + len(into) <= self.size_bytes, "read past the end of the file"
        into[:] = self.content[position : position + len(into)]
        error = OSError(5, "Input/output error") if self.fail_read(position) else None
        asyncio.get_running_loop().call_soon(self._announce, on_done, error)

    def sync(self, on_done: OnDone) -> None:
        assert not self.closed, "the disk is closed"
        if self._dead:
            return
        self.syncs += 1
        if not self.lies_about_durability:
            self._durable[:] = self.content
        asyncio.get_running_loop().call_soon(self._announce, on_done)

    async def close(self) -> None:
        while self.in_flight and not self._dead:
            await asyncio.sleep(0)
        self.closed = True

    # -- what tests do to it

    def complete(self, write: Write | None = None) -> None:
        """Let a write in flight (the oldest) become durable, and announce it."""
        write = write or self.in_flight[0]
        assert bytes(write.data) == write.as_queued, "memory was touched under a write"
        self.in_flight.remove(write)
        self._put(write, len(write.data))
        if not self.lies_about_durability:
            self._durable[write.position : write.position + len(write.data)] = write.as_queued
        self.written.append((write.position, write.as_queued))
        write.on_done(None)

    def fail(self, write: Write | None = None, error: OSError | None = None) -> None:
        """Let a write in flight (the oldest) fail."""
        write = write or self.in_flight[0]
        self.in_flight.remove(write)
        self._tear(write)
        write.on_done(error or OSError(5, "Input/output error"))

    def let_go(self) -> None:
        """Complete what is held, and hold no more."""
        self.hold = False
        while self.in_flight:
            self.complete()

    def kill(self) -> MemoryDisk:
        """The process dies. Returns the disk that the next one finds, what arrived unannounced in its cache."""
        self._dead = True
        for write in self._settling():
            self._tear(write)
        after = MemoryDisk(bytes(self.content), rng=self._rng, sector_bytes=self._sector_bytes)
        after._durable[:] = self._durable
        return after

    def power_loss(self) -> MemoryDisk:
        """The machine dies. Returns the disk that the next one finds."""
        after = self.kill()
        durable, seen = after._durable, after.content
        step = self._sector_bytes
        for start in range(0, len(durable), step):
            sector = slice(start, start + step)
            # The cache had written some of it back, or not.
            if durable[sector] != seen[sector] and self._rng.random() < 0.5 and not self.lies_about_durability:
                durable[sector] = seen[sector]
        after.content[:] = durable
        return after

    def damage(self, position: int, data: bytes) -> None:
        """Change bytes behind everybody's back: rot, a stray writer."""
        self.content[position : position + len(data)] = data
        self._durable[position : position + len(data)] = data

    def flip(self, position: int, mask: int = 1) -> None:
        """Flip bits of one byte."""
        self.damage(position, bytes([self.content[position] ^ mask]))

    def ring(self, offset: int, size: int) -> bytes:
        """What lies at a log offset of a ring that fills the rest of the file."""
        start = RING_START_BYTES + offset % (self.size_bytes - RING_START_BYTES)
        return bytes(self.content[start : start + size])

    # -- how it does it

    def _announce(self, on_done: OnDone, error: BaseException | None = None) -> None:
        if not self._dead:
            on_done(error)

    def _turn(self) -> None:
        if self._dead or not self.in_flight or self.hold:
            return
        write = self._rng.choice(self.in_flight) if self.shuffle else self.in_flight[0]
        if self.fail_write(write.position):
            self.fail(write)
        else:
            self.complete(write)

    def _settling(self) -> list[Write]:
        writes = list(self.in_flight)
        if self.shuffle:
            self._rng.shuffle(writes)
        return writes

    def _tear(self, write: Write) -> None:
        how = self._rng.choice(["nothing", "all", "front", "any"])
        size = len(write.data)
        if how == "all":
            self._put(write, size)
        elif how == "front":
            self._put(write, self._rng.randrange(0, size + 1, self._sector_bytes))
        elif how == "any":
            for start in range(0, size, self._sector_bytes):
                if self._rng.random() < 0.5:
                    self._put(write, start + self._sector_bytes, start)

    def _put(self, write: Write, end: int, start: int = 0) -> None:
        self.content[write.position + start : write.position + end] = write.as_queued[start:end]
