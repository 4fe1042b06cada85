"""The fence word: what is durable too late is not acknowledged."""

from __future__ import annotations

import asyncio

import pytest

from tests.wal.driving import Listener, append, append_durably, recover, turns
from tests.wal.memory_disk import MemoryDisk
from wal.arena import Arena
from wal.errors import WalFenced
from wal.file_wal import FileWal

KIB = 1024


async def test_the_fence_is_read_between_durable_and_acknowledged() -> None:
    disk = MemoryDisk.formatted()
    fenced = [-1]
    wal = await with_fence(disk, fenced)
    told = Listener().listen(wal)
    disk.hold = True
    append(wal, b"durable, but too late")
    await turns()
    fenced[0] = wal.wal_epoch
    disk.complete()

    assert told.durable == []
    assert "somebody else recovers it" in str(told.failures[0])
    disk.let_go()
    await wal.close()


async def test_a_fence_of_an_older_epoch_does_not_bother_the_next() -> None:
    disk = MemoryDisk.formatted()
    wal = await with_fence(disk, [0])
    told = Listener().listen(wal)

    end = await append_durably(wal, b"fine")

    assert (told.durable, told.failures) == ([end], [])
    await wal.close()


async def test_a_fence_that_comes_during_recovery_stops_the_epoch_that_follows() -> None:
    """Whoever fences reads the epoch of the header, and the log is about to move on to its next one."""
    disk = MemoryDisk.formatted()
    fenced = [-1]
    disk.hold = True
    starting = asyncio.ensure_future(with_fence(disk, fenced))
    await turns(10)
    assert disk.in_flight, "the header of the next epoch is being written"
    fenced[0] = 0
    for _ in range(2):
        disk.complete()
        await turns()

    with pytest.raises(WalFenced, match="somebody else recovers it"):
        await starting


async def with_fence(disk: MemoryDisk, fenced: list[int]) -> FileWal:
    """A log whose fence word is the first of `fenced`."""
    wal = await FileWal.open(
        arena=Arena(256 * KIB), disk=disk, cluster_id="tide", node_id=1, fenced_epoch=lambda: fenced[0]
    )
    await recover(wal)
    return wal
