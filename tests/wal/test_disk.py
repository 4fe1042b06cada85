"""The real disks, a thread and kernel AIO: errors and completions arrive on the event loop."""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.wal.driving import skip_without_aio
from wal.aio_disk import AioDisk
from wal.disk import Disk, ThreadDisk

BLOCK = 4096


def memory(content: bytes) -> memoryview:
    """Aligned memory, as the port wants it."""
    view = memoryview(mmap.mmap(-1, max(len(content), BLOCK)))
    view[: len(content)] = content
    return view[: len(content)]


@pytest.fixture(params=["thread", "aio"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Which disk: a test that takes it runs on both."""
    if request.param == "aio":
        skip_without_aio(tmp_path)
    return str(request.param)


@asynccontextmanager
async def disk_over(kind: str, path: Path, flags: int = os.O_RDWR) -> AsyncIterator[Disk]:
    fd = os.open(path, flags | os.O_DSYNC | (os.O_DIRECT if kind == "aio" else 0))
    made = AioDisk if kind == "aio" else ThreadDisk
    disk: Disk = made(fd, size_bytes=8 * BLOCK, loop=asyncio.get_running_loop())
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


async def test_what_is_written_is_read_back(kind: str, file: Path) -> None:
    async with disk_over(kind, file) as disk:
        assert await outcome(lambda done: disk.write(BLOCK, memory(b"x" * BLOCK), done)) is None
        found = memory(bytes(2 * BLOCK))
        assert await outcome(lambda done: disk.read(0, found, done)) is None
        assert await outcome(disk.sync) is None
    assert bytes(found) == bytes(BLOCK) + b"x" * BLOCK


async def test_writes_are_announced_on_the_event_loop_and_never_within_the_call(kind: str, file: Path) -> None:
    told: list[tuple[int, int]] = []
    async with disk_over(kind, file) as disk:
        for number in range(20):
            disk.write(
                number % 8 * BLOCK,
                memory(bytes([number]) * BLOCK),
                lambda error, number=number: told.append((number, threading.get_ident())),
            )
        assert told == [], "never within the call"
    assert sorted(told) == [(number, threading.get_ident()) for number in range(20)]
    if kind == "thread":
        assert told == sorted(told), "one thread does one after the other"


async def test_closing_waits_for_what_is_queued(kind: str, file: Path) -> None:
    async with disk_over(kind, file) as disk:
        for number in range(8):
            disk.write(number * BLOCK, memory(b"y" * BLOCK), lambda error: None)
        await asyncio.gather(disk.close(), disk.close())
        content = os.pread(fd := os.open(file, os.O_RDONLY), 8 * BLOCK, 0)
        os.close(fd)
    assert content == b"y" * 8 * BLOCK


async def test_a_failed_write_is_announced_with_its_error(kind: str, file: Path) -> None:
    async with disk_over(kind, file, os.O_RDONLY) as disk:
        error = await outcome(lambda done: disk.write(0, memory(b"x" * BLOCK), done))
        assert isinstance(error, OSError)
        found = memory(bytes(BLOCK))
        assert await outcome(lambda done: disk.read(0, found, done)) is None, "the disk goes on"


async def test_a_file_that_ends_too_early_is_an_error(kind: str, file: Path) -> None:
    async with disk_over(kind, file) as disk:
        error = await outcome(lambda done: disk.read(7 * BLOCK, memory(bytes(2 * BLOCK)), done))
    assert "ends at 32768, 4096 bytes too early" in str(error)


async def test_more_operations_than_the_kernel_takes_at_once_wait_their_turn(kind: str, file: Path) -> None:
    async with disk_over(kind, file) as disk:
        found = [memory(bytes(BLOCK)) for _ in range(200)]
        for number, into in enumerate(found):
            into[:] = bytes([number % 251]) * BLOCK
        done = await asyncio.gather(
            *(outcome(lambda told, at=number: disk.write(at % 8 * BLOCK, found[at], told)) for number in range(200))
        )
    assert done == [None] * 200


async def test_aio_refuses_what_it_cannot_do_and_leaves_the_descriptor_alone(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        assert not AioDisk.suits(fd), "without O_DIRECT the kernel would write inside the call"
    finally:
        os.close(fd)
