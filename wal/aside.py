"""Damaged logs that were set aside: what they still hold is taken from there, and nobody writes to them any more.

Always true:
- A log that is set aside is as it was found. A new one, with an identity of its own, is in its place.
- It stays until nothing refers to it: everything that it held was uploaded, or given up by an operator.
- Whoever repairs it in its place gets it all back at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from wal.directory import aside_paths, open_read_only, remove_aside
from wal.disk import ThreadDisk
from wal.histogram import SIZE_BOUNDS_BYTES, Histogram
from wal.log import RecoveredRun
from wal.salvage import Assessment, Finding, salvage_ring

__all__ = ["AsideWal", "FileAside", "SalvagedWal", "file_asides"]


class AsideWal(Protocol):
    """A log that was set aside."""

    @property
    def wal_id(self) -> str:
        """Its identity, under which streams are still open."""

    @property
    def place(self) -> str:
        """Where it is, for people."""

    def findings(self) -> AsyncGenerator[Finding, None]:
        """What it still holds, in log order. To be closed. Raises WalError."""

    async def remove(self) -> None:
        """Delete it: nothing refers to it."""


class FileAside:
    """One in a directory of its own, below that of the log in use."""

    def __init__(self, wal_id: str, path: Path) -> None:
        self.wal_id = wal_id
        self.path = path
        self.place = str(path)

    async def findings(self) -> AsyncGenerator[Finding, None]:
        """See `AsideWal`."""
        fd, size_bytes = open_read_only(self.path)
        disk = ThreadDisk(fd, size_bytes=size_bytes, loop=asyncio.get_running_loop())
        try:
            async with aclosing(salvage_ring(disk)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            await disk.close()

    async def remove(self) -> None:
        """See `AsideWal`."""
        await asyncio.to_thread(remove_aside, self.path)


def file_asides(path: Path) -> list[FileAside]:
    """The logs that were set aside in a directory."""
    return [FileAside(wal_id, found) for wal_id, found in aside_paths(path)]


class SalvagedWal:
    """A log that is only recovered (`WriteAheadLog`): it yields what continues complete streams, and takes nothing."""

    def __init__(
        self,
        wal_id: str,
        findings: Callable[[], AsyncGenerator[Finding, None]],
        assessment: Assessment,
        *,
        cluster_id: str,
    ) -> None:
        """`assessment` is complete when the recovery is."""
        self.wal_id = wal_id
        self.cluster_id = cluster_id
        self.wal_epoch = 0
        self.capacity_bytes = 1 << 62
        self.trim_offset = self.durable_offset = self.end_offset = 0
        self.commit_durations = Histogram()
        self.commit_sizes = Histogram(SIZE_BOUNDS_BYTES)
        self._findings = findings
        self._assessment = assessment

    @property
    def reserved_position(self) -> int:
        """See `WriteAheadLog`."""
        raise AssertionError("nothing is reserved")

    def set_listeners(self, on_durable: Callable[[int], None], on_failed: Callable[[BaseException], None]) -> None:
        """See `WriteAheadLog`. Nothing is written."""

    async def recover(self) -> AsyncIterator[RecoveredRun]:
        """See `WriteAheadLog`."""
        async with aclosing(self._findings()) as findings:
            async for finding in findings:
                run = self._assessment.add(finding)
                if run is not None:
                    self.durable_offset = self.end_offset = run.end_offset
                    yield run
        self._assessment.end()

    def reserve(self, payload_size: int) -> memoryview | None:
        """See `WriteAheadLog`."""
        raise AssertionError("a log that was set aside takes nothing")

    def append(
        self,
        *,
        stream_id: int,
        leader_epoch: int,
        base_offset: int,
        record_count: int,
        payload_crc32c: int | None = None,
    ) -> int:
        """See `WriteAheadLog`."""
        raise AssertionError("a log that was set aside takes nothing")

    def cancel(self) -> None:
        """See `WriteAheadLog`."""
        raise AssertionError("nothing is reserved")

    async def trim(self, offset: int) -> None:
        """See `WriteAheadLog`. It stays as it is."""

    async def close(self) -> None:
        """See `WriteAheadLog`."""
