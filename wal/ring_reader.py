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

LEAD_BYTES = 2 << 20
"""Room before what is read next, for the beginning of a frame that ends there. What is longer takes a slower path."""


class RingReader:
    """The log from `start_offset` on, as far as it was read. It never reads past `limit_offset`.

    Two buffers take turns: while the window lies in one, what follows it is read into the other.
    """

    def __init__(self, disk: Disk, capacity_bytes: int, start_offset: int, limit_offset: int) -> None:
        self._disk = disk
        self._capacity_bytes = capacity_bytes
        self._limit_offset = limit_offset
        self._buffer = _memory(LEAD_BYTES + RECOVERY_READ_BYTES)
        self._spare = _memory(LEAD_BYTES + RECOVERY_READ_BYTES)
        self._begin = self._end = LEAD_BYTES
        """The window in the buffer."""
        self._ahead: tuple[int, int, asyncio.Future[WalUnavailable | None]] | None = None
        """What is read into the spare buffer, behind its lead: log offset, size, how it ended."""
        self.start_offset = start_offset
        """A block boundary."""

    @property
    def view(self) -> memoryview:
        """Valid until the next `extend`."""
        return self._buffer[self._begin : self._end]

    async def extend(self, start_offset: int, end_offset: int) -> None:
        """Move the window to a later block boundary and read on, at least to `end_offset`.

        Raises:
            WalUnavailable: the disk reports an error.
        """
        end_offset = min(align_block(end_offset), self._limit_offset)
        while self._window_end < end_offset:
            kept = max(self._window_end - start_offset, 0)
            if kept <= LEAD_BYTES:
                await self._turn(start_offset, kept)
            else:
                await self._grow(start_offset, end_offset)
        self._begin += start_offset - self.start_offset
        self.start_offset = start_offset

    @property
    def _window_end(self) -> int:
        return self.start_offset + self._end - self._begin

    async def _turn(self, start_offset: int, kept: int) -> None:
        """Go on in the other buffer, with the last bytes of this one before what was read."""
        offset = start_offset + kept
        if self._ahead is None or self._ahead[0] != offset:
            await self._forget_ahead()
            self._read_ahead(offset)
        size = await self._take_ahead()
        self._spare[LEAD_BYTES - kept : LEAD_BYTES] = self._buffer[self._end - kept : self._end]
        self._buffer, self._spare = self._spare, self._buffer
        self._begin, self._end = LEAD_BYTES - kept, LEAD_BYTES + size
        self.start_offset = start_offset
        self._read_ahead(offset + size)

    async def _grow(self, start_offset: int, end_offset: int) -> None:
        """Go on in a larger buffer."""
        await self._forget_ahead()
        kept = self._window_end - start_offset
        size = min(end_offset + RECOVERY_READ_BYTES, self._limit_offset) - start_offset
        buffer = _memory(max(size, LEAD_BYTES + RECOVERY_READ_BYTES))
        buffer[:kept] = self._buffer[self._end - kept : self._end]
        while kept < size:
            piece = self._contiguous(start_offset + kept, size - kept)
            await complete(partial(self._read, start_offset + kept, buffer[kept : kept + piece]))
            kept += piece
        self._buffer, self._begin, self._end, self.start_offset = buffer, 0, size, start_offset

    def _read_ahead(self, offset: int) -> None:
        size = self._contiguous(offset, min(RECOVERY_READ_BYTES, self._limit_offset - offset))
        if size <= 0:
            return
        done: asyncio.Future[WalUnavailable | None] = asyncio.get_running_loop().create_future()
        self._ahead = offset, size, done

        def on_done(error: BaseException | None) -> None:
            if not done.done():
                done.set_result(None if error is None else _unavailable(error))

        self._read(offset, self._spare[LEAD_BYTES : LEAD_BYTES + size], on_done)

    async def _take_ahead(self) -> int:
        """Wait for what is read ahead; its size."""
        assert self._ahead is not None, "the log is not asked for beyond its limit"
        _, size, done = self._ahead
        error = await done
        self._ahead = None
        if error is not None:
            raise error
        return size

    async def _forget_ahead(self) -> None:
        """Wait until nothing is read into the spare buffer any more."""
        if self._ahead is not None:
            await self._ahead[2]
            self._ahead = None

    def _contiguous(self, offset: int, size: int) -> int:
        """How much of that can be read at once: less where the ring ends."""
        return min(size, self._capacity_bytes - offset % self._capacity_bytes)

    def _read(self, offset: int, into: memoryview, on_done: OnDone) -> None:
        self._disk.read(RING_START_BYTES + offset % self._capacity_bytes, into, on_done)


def _memory(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))  # aligned, as O_DIRECT wants it


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
            future.set_exception(_unavailable(error))

    operation(on_done)
    await future


def _unavailable(error: BaseException) -> WalUnavailable:
    failure = WalUnavailable(f"the disk under the WAL fails ({error}): repair it and start again; the log is as it was")
    failure.__cause__ = error
    return failure
