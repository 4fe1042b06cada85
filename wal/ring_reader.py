"""A window over the log, read from the ring in large aligned pieces into one buffer that recovery scans."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable
from functools import partial

from wal.disk import Disk, OnDone
from wal.errors import WalUnavailable
from wal.frame import align_block
from wal.header import RING_START_BYTES

__all__ = ["RECOVERY_READ_BYTES", "RingReader", "complete"]

RECOVERY_READ_BYTES = 8 << 20
"""How much recovery reads at once; the buffer grows for frames that are larger."""


class RingReader:
    """The log from `start_offset` on, as far as it was read. It never reads past `limit_offset`."""

    def __init__(self, disk: Disk, capacity_bytes: int, start_offset: int, limit_offset: int) -> None:
        self._disk = disk
        self._capacity_bytes = capacity_bytes
        self._limit_offset = limit_offset
        self._buffer = memoryview(mmap.mmap(-1, RECOVERY_READ_BYTES))
        self._size = 0
        self.start_offset = start_offset
        """A block boundary."""

    @property
    def view(self) -> memoryview:
        """Valid until the next `extend`."""
        return self._buffer[: self._size]

    async def extend(self, start_offset: int, end_offset: int) -> None:
        """Move the window to a later block boundary and read on, at least to `end_offset`."""
        kept = max(self.start_offset + self._size - start_offset, 0)
        needed = align_block(end_offset) - start_offset
        buffer = self._buffer
        if needed > len(buffer):
            buffer = memoryview(mmap.mmap(-1, needed + RECOVERY_READ_BYTES))
        buffer[:kept] = self._buffer[self._size - kept : self._size]
        self._buffer = buffer
        self.start_offset = start_offset
        self._size = kept
        wanted = min(len(buffer), self._limit_offset - start_offset)
        while self._size < wanted:
            position = (start_offset + self._size) % self._capacity_bytes
            size = min(wanted - self._size, self._capacity_bytes - position)
            into = buffer[self._size : self._size + size]
            await complete(partial(self._disk.read, RING_START_BYTES + position, into))
            self._size += size


async def complete(operation: Callable[[OnDone], None]) -> None:
    """Await one operation of a disk.

    Raises:
        WalUnavailable: the disk reports an error.
    """
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_done(error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            failure = WalUnavailable(
                f"the disk under the WAL fails ({error}): repair it and start again; the log is as it was"
            )
            failure.__cause__ = error
            future.set_exception(failure)

    operation(on_done)
    await future
