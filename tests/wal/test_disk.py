"""The real disk: a file behind a thread, whose errors and completions arrive on the event loop."""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from wal.disk import ThreadDisk

BLOCK = 4096


def memory(content: bytes) -> memoryview:
    """Aligned memory, as the port wants it."""
    view = memoryview(mmap.mmap(-1, max(len(content), BLOCK)))
    view[: len(content)] = content
    return view[: len(content)]


@asynccontextmanager
async def disk_over(path: Path, flags: int = os.O_RDWR) -> AsyncIterator[ThreadDisk]:
    disk = ThreadDisk(os.open(path, flags | os.O_DSYNC), size_bytes=8 * BLOCK, loop=asyncio.get_running_loop())
    try:
        yield disk
    finally:
        await disk.close()


async def outcome(operation: Callable[[Callable[[BaseException | None], None]], None]) -> BaseException | None:
    """Run one operation; gives what its callback was told."""
    told: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    operation(told.set_result)
    return await told


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * BLOCK))
    return path


async def test_what_is_written_is_read_back(file: Path) -> None:
    async with disk_over(file) as disk:
        assert await outcome(lambda done: disk.write(BLOCK, memory(b"x" * BLOCK), done)) is None
        found = memory(bytes(2 * BLOCK))
        assert await outcome(lambda done: disk.read(0, found, done)) is None
        assert await outcome(disk.sync) is None
    assert bytes(found) == bytes(BLOCK) + b"x" * BLOCK


async def test_writes_are_done_in_order_and_announced_on_the_event_loop(file: Path) -> None:
    told: list[tuple[int, int]] = []
    async with disk_over(file) as disk:
        for number in range(20):
            disk.write(
                number % 8 * BLOCK,
                memory(bytes([number]) * BLOCK),
                lambda error, number=number: told.append((number, threading.get_ident())),
            )
        assert told == [], "never within the call"
    assert told == [(number, threading.get_ident()) for number in range(20)]


async def test_closing_waits_for_what_is_queued(file: Path) -> None:
    async with disk_over(file) as disk:
        for number in range(8):
            disk.write(number * BLOCK, memory(b"y" * BLOCK), lambda error: None)
        await asyncio.gather(disk.close(), disk.close())
        content = os.pread(fd := os.open(file, os.O_RDONLY), 8 * BLOCK, 0)
        os.close(fd)
    assert content == b"y" * 8 * BLOCK


async def test_a_failed_write_is_announced_with_its_error(file: Path) -> None:
    async with disk_over(file, os.O_RDONLY) as disk:
        error = await outcome(lambda done: disk.write(0, memory(b"x" * BLOCK), done))
        assert isinstance(error, OSError)
        found = memory(bytes(BLOCK))
        assert await outcome(lambda done: disk.read(0, found, done)) is None, "the thread goes on"


async def test_a_file_that_ends_too_early_is_an_error(file: Path) -> None:
    async with disk_over(file) as disk:
        error = await outcome(lambda done: disk.read(7 * BLOCK, memory(bytes(2 * BLOCK)), done))
    assert "ends at 32768, 4096 bytes too early" in str(error)
