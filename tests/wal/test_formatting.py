"""Formatting in the background: zeros go where nothing was written yet, and never over frames."""

from __future__ import annotations

import asyncio

from tests.wal.driving import Listener, append, append_durably, recover, started, turns
from tests.wal.memory_disk import MemoryDisk
from wal.arena import Arena
from wal.file_wal import FileWal
from wal.header import RING_START_BYTES, choose_header

KIB = 1024


async def test_formatting_writes_through_fresh_space_and_never_over_frames() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=256 * KIB)
    wal, _ = await formatting(disk)
    await append_durably(wal, b"before")
    await asyncio.sleep(0.02)
    end = await append_durably(wal, b"after")

    assert end < 3 * 4096
    written = sum(len(data) for position, data in disk.written if position >= RING_START_BYTES)
    assert written >= 256 * KIB - 4096
    await wal.close()
    assert choose_header(bytes(disk.content[:RING_START_BYTES])).formatted_bytes == 256 * KIB
    _, frames, _ = await started(disk_again(disk))
    assert [frame.payload for frame in frames] == [b"before", b"after"]


async def test_an_append_waits_for_the_formatting_of_its_own_place() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=256 * KIB)
    disk.hold = False
    wal, told = await formatting(disk, hold=True)
    (formatting_write,) = disk.in_flight
    end = append(wal, b"not to be zeroed")
    await turns()
    assert disk.in_flight == [formatting_write]

    disk.complete()
    await turns()
    disk.complete()

    assert told.durable == [end]
    disk.let_go()
    await wal.close()
    _, frames, _ = await started(disk_again(disk))
    assert [frame.payload for frame in frames] == [b"not to be zeroed"]


async def test_formatting_that_fails_fences_the_log() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=256 * KIB)
    wal, told = await formatting(disk, hold=True)
    append(wal, b"waits")
    await turns()
    disk.fail()
    await turns()

    assert len(told.failures) == 1
    assert disk.in_flight == []
    disk.let_go()
    await wal.close()


async def formatting(disk: MemoryDisk, *, hold: bool = False) -> tuple[FileWal, Listener]:
    """A log that formats its space in the background, listened to."""
    wal = await FileWal.open(arena=Arena(256 * KIB), disk=disk, cluster_id="tide", node_id=1, format_in_background=True)
    await recover(wal)
    disk.hold = hold
    told = Listener().listen(wal)
    await turns()
    return wal, told


def disk_again(disk: MemoryDisk) -> MemoryDisk:
    """The disk that the next process finds after an orderly end."""
    return disk.kill()
