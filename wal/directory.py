"""The directory of a file WAL: `lock`, `fence` and `wal`, one process at a time. And `damaged-<wal_id>/wal`, see `wal.aside`.

Always true:
- `lock` is held (flock) while a process has the WAL open; it goes when the process does, its last write included.
- `wal` appears under its name only when it is whole: size set aside, header written, all of it durable. So a
  file without an intact header is damage and never a fresh start.
- `fence` is one word in shared memory: logs of that epoch or an older one acknowledge nothing more. It serves a
  recoverer on the same host; it need not survive the host, because neither does the process it fences.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

from wal.errors import WalLocked, WalUnavailable
from wal.header import RING_START_BYTES, WalHeader, choose_header, initial_image

__all__ = [
    "FenceWord",
    "WalDirectory",
    "aside_paths",
    "fence",
    "lock_holder",
    "open_read_only",
    "read_fence",
    "read_wal_header",
    "remove_aside",
]

_WAL_NAME = "wal"
_NEW_NAME = "wal.new"
_ASIDE_PREFIX = "damaged-"
_LOCK_NAME = "lock"
_FENCE_NAME = "fence"
_FENCE = struct.Struct("<Q")
"""The highest fenced epoch plus one, so that a file of zeros fences nothing."""


class FenceWord:
    """The fence, mapped: reading it costs no system call."""

    def __init__(self, directory: Path) -> None:
        """Make the word where it is missing."""
        fd = os.open(directory / _FENCE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, _FENCE.size)  # set aside: on a full disk a mapped hole would kill the process
            self._map = mmap.mmap(fd, _FENCE.size)
        finally:
            os.close(fd)

    def fenced_epoch(self) -> int:
        """Logs of this epoch or an older one are fenced; -1 where none is."""
        epoch: int = _FENCE.unpack_from(self._map)[0]
        return epoch - 1

    def clear(self) -> None:
        """Fence nothing: the log is a new one."""
        _FENCE.pack_into(self._map, 0, 0)

    def close(self) -> None:
        """Unmap it."""
        self._map.close()

    def raise_to(self, wal_epoch: int) -> None:
        """Fence every log of `wal_epoch` or older."""
        if wal_epoch > self.fenced_epoch():
            _FENCE.pack_into(self._map, 0, wal_epoch + 1)


class WalDirectory:
    """An open directory: locked until `close`."""

    def __init__(self, path: Path) -> None:
        """Make the directory where it is missing, and lock it.

        Raises:
            WalLocked: another process has it.
            WalUnavailable: it cannot be made, or not written.
        """
        self.path = path
        try:
            missing = [parent for parent in (path, *path.parents) if not parent.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for made in missing:  # else a power loss may take the whole directory, acknowledged frames and all
                _sync_directory(made.parent)
            self._lock_fd = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unavailable(path, error) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise WalLocked(
                    f"the WAL in {path} is open in another process: stop that one, or give this node a directory of its own"
                ) from error
            raise _unavailable(path, error) from error
        try:
            self.fence = FenceWord(path)
        except OSError as error:
            os.close(self._lock_fd)
            raise _unavailable(path, error) from error

    @property
    def has_wal(self) -> bool:
        """Whether a WAL was ever completed here."""
        return (self.path / _WAL_NAME).exists()

    def create(self, header: WalHeader) -> None:
        """Make the file: quick, because its space is only set aside, not written.

        Raises:
            WalUnavailable: no room for the capacity, or the directory is read-only.
        """
        self._create(header)

    def replace(self, header: WalHeader) -> None:
        """Set the WAL that is here aside as it is, and make another in its place.

        Raises:
            WalUnavailable: no room for the capacity once more, or the directory is read-only.
        """
        with open(self.path / _WAL_NAME, "rb") as file:
            damaged_id = choose_header(file.read(RING_START_BYTES)).wal_id
        self._create(header, aside=self.path / f"{_ASIDE_PREFIX}{damaged_id}")

    def _create(self, header: WalHeader, aside: Path | None = None) -> None:
        size_bytes = RING_START_BYTES + header.capacity_bytes
        new = self.path / _NEW_NAME
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(fd, 0, size_bytes)
                image = initial_image(header)
                assert os.pwrite(fd, image, 0) == len(image), "the file system took a part of two blocks"
                os.fsync(fd)
            finally:
                os.close(fd)
            self.fence.clear()
            if aside is not None:  # a crash in between leaves no WAL here, and the next start makes one
                aside.mkdir(exist_ok=True)
                os.rename(self.path / _WAL_NAME, aside / _WAL_NAME)
                _sync_directory(aside)
                _sync_directory(self.path)
            os.rename(new, self.path / _WAL_NAME)
            _sync_directory(self.path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise _unavailable(self.path, error, size_bytes) from error

    def open_file(self) -> tuple[int, int]:
        """Open the file for durable writes: its descriptor and its size in bytes.

        O_DIRECT where the file system takes it (tmpfs and some overlays do not).
        """
        path = self.path / _WAL_NAME
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_DSYNC
        try:
            fd = _open_direct(path, flags)
            if fd is None:
                fd = os.open(path, flags)
            return fd, os.fstat(fd).st_size
        except OSError as error:
            raise _unavailable(self.path, error) from error

    def close(self) -> None:
        """Unlock. Calling it again does nothing."""
        if self._lock_fd >= 0:
            self.fence.close()
            os.close(self._lock_fd)
            self._lock_fd = -1


def fence(path: Path) -> int:
    """Fence the log in a directory, whoever has it open; returns the epoch fenced.

    What was acknowledged before this call returns can be read from then on; nothing is acknowledged after it.

    Raises:
        WalUnavailable: the directory cannot be read or written.
        WalCorrupt, WalUnsupportedFormat: what is there is no log that can be fenced.
    """
    try:
        word = FenceWord(path)
    except OSError as error:
        raise _unavailable(path, error) from error
    try:
        # Higher than it was in any case: a process that is starting, and has not moved to its next epoch yet, sees it change.
        least = word.fenced_epoch() + 1
        while True:
            wal_epoch = _read_epoch(path)
            word.raise_to(max(wal_epoch, least))
            # A process that is starting may have moved to its next epoch meanwhile. If it does so after this
            # look, it sees the word changed since it began, and stops by itself.
            if _read_epoch(path) == wal_epoch:
                return max(wal_epoch, least)
    finally:
        word.close()


def aside_paths(path: Path) -> list[tuple[str, Path]]:
    """The WALs that were set aside below a directory, by the identity that each had."""
    found = sorted(path.glob(f"{_ASIDE_PREFIX}*/{_WAL_NAME}"))
    return [(each.parent.name.removeprefix(_ASIDE_PREFIX), each.parent) for each in found]


def remove_aside(path: Path) -> None:
    """Delete a WAL that was set aside."""
    (path / _WAL_NAME).unlink(missing_ok=True)
    path.rmdir()
    _sync_directory(path.parent)


def open_read_only(path: Path) -> tuple[int, int]:
    """Open the file of a WAL to look at it, whoever has it open: its descriptor and its size in bytes.

    No lock is taken and nothing is written; where the file system takes O_DIRECT, the page cache stays as it is.

    Raises:
        WalUnavailable: there is none, or it may not be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        fd = _open_direct(path / _WAL_NAME, flags)
        if fd is None:
            fd = os.open(path / _WAL_NAME, flags)
        return fd, os.fstat(fd).st_size
    except FileNotFoundError as error:
        raise WalUnavailable(f"there is no WAL in {path}: give the directory that wal.uri names") from error
    except OSError as error:
        raise WalUnavailable(
            f"the WAL in {path} cannot be read ({error.strerror}): run this as the broker's user"
        ) from error


def read_fence(path: Path) -> int | None:
    """The fenced epoch, -1 where none is, None where the directory has no fence; nothing is made."""
    try:
        data = (path / _FENCE_NAME).read_bytes()
    except OSError:
        return None
    return int(_FENCE.unpack_from(data)[0]) - 1 if len(data) >= _FENCE.size else None


def lock_holder(path: Path) -> int | None:
    """The process that has the WAL open, as the kernel lists locks; None where none of this machine's does.

    Trying the lock would tell as well, but might keep a broker from starting at that moment.
    """
    try:
        status = (path / _LOCK_NAME).stat()
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == place:
            return int(fields[4])
    return None


def _read_epoch(path: Path) -> int:
    return read_wal_header(path).wal_epoch


def read_wal_header(path: Path) -> WalHeader:
    """The header in force of the WAL in a directory, whoever has it open.

    Raises:
        WalUnavailable: there is none, or it may not be read.
        WalCorrupt, WalUnsupportedFormat: neither copy is intact, or a newer version wrote them.
    """
    try:
        with open(path / _WAL_NAME, "rb") as file:
            return choose_header(file.read(RING_START_BYTES))
    except FileNotFoundError as error:
        raise WalUnavailable(f"there is no WAL in {path}") from error
    except OSError as error:
        raise WalUnavailable(f"the WAL in {path} cannot be read ({error.strerror})") from error


def _open_direct(path: Path, flags: int) -> int | None:
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
    try:  # some file systems take the flag and refuse the I/O
        with mmap.mmap(-1, RING_START_BYTES) as memory:
            os.preadv(fd, [memory], 0)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EINVAL:
            return None
        raise
    return fd


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unavailable(path: Path, error: OSError, size_bytes: int = 0) -> WalUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f"it needs {size_bytes} bytes: make room, or set a smaller capacity"
    elif error.errno == errno.EROFS:
        advice = "the file system is read-only: mount it writable, or choose another directory"
    elif error.errno in (errno.EACCES, errno.EPERM):
        advice = "this user may not write there: change the owner, or choose another directory"
    else:
        advice = "choose another directory, or repair this one"
    return WalUnavailable(f"the WAL in {path} cannot be opened ({error.strerror}): {advice}")
