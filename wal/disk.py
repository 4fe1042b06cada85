"""The disk port: one file's bytes, written durably, with completions on the event loop. And the real one.

Always true of every implementation:
- `on_done(None)` of a write is called only when its bytes survive a power loss; `on_done(error)` says nothing
  about what is on the disk, which may be the old bytes, the new ones or any mix of sectors.
- Callbacks run on the event loop, never inside the call that queues the work, in the order of completion.
- Positions, sizes and the memory itself are multiples of 4096, so that an O_DIRECT file can take them. The
  memory is not touched by the caller until `on_done`.
- `sync` makes durable what earlier incarnations wrote without having seen the completion.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

__all__ = ["Disk", "OnDone", "ThreadDisk"]

OnDone = Callable[[BaseException | None], object]


class Disk(Protocol):
    """One file of fixed size."""

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""

    def write(self, position: int, data: memoryview, on_done: OnDone) -> None:
        """Write durably."""

    def read(self, position: int, into: memoryview, on_done: OnDone) -> None:
        """Fill `into`."""

    def sync(self, on_done: OnDone) -> None:
        """Make durable what a read can see."""

    async def close(self) -> None:
        """Wait for what is queued, then release the file. Calling it again does nothing."""


class ThreadDisk:
    """A file behind one thread that does its I/O, one call at a time.

    The file is open with O_DSYNC, so a write that has returned is durable; with O_DIRECT too where the file
    system takes it, which is several times faster for large writes and spares the page cache.
    """

    def __init__(self, fd: int, *, size_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        """Takes over the file descriptor."""
        self.size_bytes = size_bytes
        self._fd = fd
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], None], OnDone] | tuple[int, memoryview, OnDone] | None] = (
            SimpleQueue()
        )
        self._thread = Thread(target=self._run, name="wal-writer", daemon=True)
        self._closed: asyncio.Future[None] | None = None
        self._thread.start()

    def write(self, position: int, data: memoryview, on_done: OnDone) -> None:
        """Write durably."""
        self._jobs.put((position, data, on_done))

    def read(self, position: int, into: memoryview, on_done: OnDone) -> None:
        """Fill `into`; a file that ends too early is an error."""
        self._jobs.put((lambda: self._read(position, into), on_done))

    def sync(self, on_done: OnDone) -> None:
        """Flush the page cache's and the device's own write cache."""
        self._jobs.put((lambda: os.fdatasync(self._fd), on_done))

    async def close(self) -> None:
        """Wait for the thread to have done everything queued, and close the file."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._jobs.put(None)
        await asyncio.shield(self._closed)
        self._thread.join()

    def _run(self) -> None:
        get = self._jobs.get
        complete = self._loop.call_soon_threadsafe
        fd = self._fd
        pwrite = os.pwrite
        while (job := get()) is not None:
            error: BaseException | None = None
            try:
                if len(job) == 3:
                    position, data, on_done = job
                    written = pwrite(fd, data, position)
                    if written != len(data):
                        _write_rest(fd, position + written, data[written:])
                else:
                    work, on_done = job
                    work()
            except Exception as failure:  # handed over: a thread that died of it would leave everybody waiting
                error = failure
            complete(on_done, error)
        os.close(fd)
        closed = self._closed
        assert closed is not None
        complete(_resolve, closed)

    def _read(self, position: int, into: memoryview) -> None:
        while into:
            size = os.preadv(self._fd, [into], position)
            if size == 0:
                raise OSError(f"the file ends at {position}, {len(into)} bytes too early")
            position += size
            into = into[size:]


def _write_rest(fd: int, position: int, data: memoryview) -> None:
    """The kernel may take less than everything, for one where the disk gets full in the middle."""
    while data:
        written = os.pwrite(fd, data, position)
        if written == 0:
            raise OSError(f"the disk takes no more bytes at {position}")
        position += written
        data = data[written:]


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
