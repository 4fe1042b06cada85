"""Writes generation after generation of the WAL's header, one at a time.

Always true:
- A header is composed when its write begins, so it carries everything that was known then; requests that come
  meanwhile share the next one.
- Whoever waits may be cancelled: the write goes on, and its memory is not touched before it is done.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from wal.disk import Disk
from wal.frame import BLOCK_SIZE_BYTES
from wal.header import WalHeader, pack_header, slot_position

__all__ = ["HeaderWriter"]


class HeaderWriter:
    """The only writer of one log's header."""

    def __init__(
        self,
        *,
        disk: Disk,
        generation: int,
        compose: Callable[[], WalHeader],
        on_written: Callable[[WalHeader], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        """Go on after `generation`.

        Args:
            disk: Where the header is.
            generation: The newest intact one.
            compose: What to write now; its generation is put in here.
            on_written: Told of each header that became durable, before those who wait for it.
            on_failed: Told of a failed write; it calls `fail`.
        """
        self._disk = disk
        self._generation = generation
        self._compose = compose
        self._on_written = on_written
        self._on_failed = on_failed
        self._block = memoryview(mmap.mmap(-1, BLOCK_SIZE_BYTES))
        self._in_flight = False
        self._wanted = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._failure: BaseException | None = None

    async def write(self) -> None:
        """Return once a header that was composed after this call is durable."""
        if self._failure is not None:
            raise self._failure
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._generation + (2 if self._in_flight else 1), waiter))
        self._wanted = True
        self._start()
        await waiter

    def fail(self, failure: BaseException) -> None:
        """Write nothing more, and say so to those who wait."""
        self._failure = failure
        waiting, self._waiting = self._waiting, []
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(failure)

    def _start(self) -> None:
        if self._in_flight or not self._wanted or self._failure is not None:
            return
        self._in_flight = True
        self._wanted = False
        header = replace(self._compose(), generation=self._generation + 1)
        self._block[:] = pack_header(header)
        self._disk.write(slot_position(header.generation), self._block, partial(self._written, header))

    def _written(self, header: WalHeader, error: BaseException | None) -> None:
        self._in_flight = False
        if error is not None:
            self._on_failed(error)
            return
        self._generation = header.generation
        self._on_written(header)
        waiting, self._waiting = self._waiting, []
        for generation, waiter in waiting:
            if generation > header.generation:
                self._waiting.append((generation, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._start()
