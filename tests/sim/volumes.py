"""The file systems of simulated computers, as far as WALs are concerned: directories on volumes, seen by every process of a computer.

The code that finds, fences and reads the WAL of another node (`wal.foreign`, `wal.directory.fence`) is real. What it would ask the kernel for
is asked here: which directories there are, the header in one, its fence word, who holds its lock, and the bytes of the ring.

Fault model: a volume is attached to one computer at a time. Who had a file of it open when it was taken away gets EIO from then on.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import wal.aside
import wal.directory
import wal.foreign
from tests.sim.disk import Platter, SimDisk
from tests.sim.loop import Process, VirtualLoop, current_process
from wal.errors import WalUnavailable
from wal.header import RING_START_BYTES, WalHeader, choose_header

__all__ = ["FileSystem", "Volume", "simulated_files"]


class Volume:
    """A directory with a WAL: its ring, its fence word, and who has it open."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.fenced_epoch = -1
        """The fence word."""
        self.opened_by: Process | None = None
        """Who holds its lock, if that one is alive."""
        self._disks: list[SimDisk] = []

    def disk(self, process: Process, loop: VirtualLoop) -> SimDisk:
        """Its ring, for a process."""
        made = SimDisk(self.platter, process, loop)
        self._disks.append(made)
        return made

    def detach(self) -> None:
        """Take it away from whoever has it open."""
        disks, self._disks = self._disks, []
        for disk in disks:
            disk.detach()

    @property
    def header(self) -> WalHeader:
        """As a read sees it."""
        return choose_header(bytes(self.platter.content[:RING_START_BYTES]))


FileSystem = dict[Path, Volume]
"""What a computer sees."""


@contextmanager
def simulated_files() -> Iterator[None]:
    """Make code for WAL directories see those of the process that runs it."""
    with ExitStack() as stack:
        targets: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
            (wal.foreign, "read_wal_header", _read_wal_header),
            (wal.directory, "read_wal_header", _read_wal_header),
            (wal.directory, "FenceWord", _FenceWord),
            (wal.foreign, "lock_holder", _lock_holder),
            (wal.foreign, "_in", _in),
            (wal.foreign, "_file_system", lambda path: "ext4"),
            (wal.aside, "open_read_only", _open_read_only),
            (wal.aside, "ThreadDisk", _disk),
        )
        for target, name, replacement in targets:
            stack.enter_context(mock.patch.object(target, name, replacement))
        yield


class _FenceWord:
    def __init__(self, directory: Path) -> None:
        found = _files().get(directory)
        if found is None:
            raise OSError(errno.ENOENT, f"there is no {directory}")
        self._volume = found

    def fenced_epoch(self) -> int:
        return self._volume.fenced_epoch

    def raise_to(self, wal_epoch: int) -> None:
        self._volume.fenced_epoch = max(wal_epoch, self._volume.fenced_epoch)

    def close(self) -> None:
        """Nothing to unmap."""


def _files() -> FileSystem:
    process = current_process()
    assert process is not None, "files are read by processes"
    files: FileSystem = process.ports.files
    return files


def _volume(path: Path) -> Volume:
    found = _files().get(path)
    if found is None:
        raise WalUnavailable(f"there is no WAL in {path}")
    return found


def _read_wal_header(path: Path) -> WalHeader:
    return _volume(path).header


def _lock_holder(path: Path) -> int | None:
    found = _files().get(path)
    return 1 if found is not None and found.opened_by is not None and found.opened_by.alive else None


def _in(directory: Path, problems: list[str]) -> Iterator[Path]:
    yield from sorted(path for path in _files() if path.parent == directory)


def _open_read_only(path: Path) -> tuple[Volume, int]:
    found = _volume(path)
    return found, found.platter.size_bytes


def _disk(volume: Volume, *, size_bytes: int, loop: VirtualLoop) -> SimDisk:
    process = current_process()
    assert process is not None
    return volume.disk(process, loop)
