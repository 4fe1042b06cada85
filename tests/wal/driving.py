"""How the tests use a write-ahead log: as the storage engine does, in a few words."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.wal.memory_disk import MemoryDisk
from wal.aio_disk import AioDisk
from wal.arena import Arena
from wal.file_wal import FileWal
from wal.frame import FRAME_HEADER_SIZE_BYTES, frame_size
from wal.log import RecoveredRun, WriteAheadLog

__all__ = [
    "Frame",
    "Listener",
    "append",
    "append_durably",
    "frames_of",
    "open_file_wal",
    "recover",
    "skip_without_aio",
    "started",
    "turns",
]


@dataclass(frozen=True, slots=True)
class Frame:
    """What was put into the log, or came out of it."""

    offset: int
    end_offset: int
    stream_id: int
    leader_epoch: int
    base_offset: int
    record_count: int
    payload: bytes


@dataclass(slots=True)
class Listener:
    """What a log told its user."""

    durable: list[int] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def listen(self, wal: WriteAheadLog) -> Listener:
        wal.set_listeners(self.durable.append, self.failures.append)
        return self


async def open_file_wal(
    disk: MemoryDisk, *, arena_bytes: int = 256 << 10, cluster_id: str = "tide", node_id: int = 1
) -> FileWal:
    return await FileWal.open(arena=Arena(arena_bytes), disk=disk, cluster_id=cluster_id, node_id=node_id)


def frames_of(run: RecoveredRun) -> list[Frame]:
    """The frames of a run, in log order."""
    frames = []
    for stream_id, columns in run.streams.items():
        for position, size, leader_epoch, base_offset, end_offset in zip(*columns, strict=True):
            offset = run.offset + position - FRAME_HEADER_SIZE_BYTES
            payload = bytes(run.buffer[position : position + size])
            frames.append(
                Frame(
                    offset,
                    offset + frame_size(size),
                    stream_id,
                    leader_epoch,
                    base_offset,
                    end_offset - base_offset,
                    payload,
                )
            )
    return sorted(frames, key=lambda frame: frame.offset)


async def recover(wal: WriteAheadLog) -> list[Frame]:
    return [frame async for run in wal.recover() for frame in frames_of(run)]


async def started(disk: MemoryDisk, *, arena_bytes: int = 256 << 10) -> tuple[FileWal, list[Frame], Listener]:
    """A log that was recovered and takes appends."""
    wal = await open_file_wal(disk, arena_bytes=arena_bytes)
    frames = await recover(wal)
    return wal, frames, Listener().listen(wal)


def append(
    wal: WriteAheadLog,
    payload: bytes,
    *,
    stream_id: int = 7,
    leader_epoch: int = 3,
    base_offset: int = 100,
    record_count: int = 5,
) -> int:
    """Append one payload and return its end offset; there must be room."""
    view = wal.reserve(len(payload))
    assert view is not None, "the log or the arena is full"
    view[:] = payload
    return wal.append(
        stream_id=stream_id, leader_epoch=leader_epoch, base_offset=base_offset, record_count=record_count
    )


async def append_durably(wal: WriteAheadLog, payload: bytes, **fields: int) -> int:
    """Append one payload, and wait until it is durable: it has a write of its own."""
    end = append(wal, payload, **fields)
    while wal.durable_offset < end:
        await asyncio.sleep(0)
    return end


async def turns(count: int = 5) -> None:
    """Let the event loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


def skip_without_aio(directory: Path) -> None:
    """Skip where the file system does not take O_DIRECT or the kernel has no AIO."""
    path = directory / "direct"
    path.write_bytes(b"")
    loop = asyncio.new_event_loop()
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        disk = AioDisk(fd, size_bytes=0, loop=loop)
        loop.run_until_complete(disk.close())
    except OSError as error:
        pytest.skip(f"no kernel AIO for files in {directory}: {error}")
    finally:
        loop.close()
        path.unlink()
