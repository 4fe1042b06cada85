"""Logs of other nodes: found where a registration says that they are, fenced, and read. Nothing of them is changed but the fence.

Always true:
- A log is the one that is looked for only if it says so itself (`wal_id`), wherever it was found.
- What was acknowledged before `fence` returns can be read from then on, and nothing is acknowledged after it: in a bucket by a slot that is
  taken, on a disk by the fence word, which the writer reads before it acknowledges and before it trims.
- The fence word works among processes of one machine. A disk can be attached to one machine at a time, and whoever was writing on another can
  write no more. A file system that several machines write to at the same time gives neither, and is refused.
- A log is found in a directory that its owner told if that is on this machine, else only in directories that the operator named.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from wal.aside import AsideWal, FileAside
from wal.config import OBJECTS_PREFIX, FileWalConfig, NullWalConfig, ObjectWalConfig, WalConfig, parse_wal_uri
from wal.directory import fence, lock_holder, read_wal_header
from wal.errors import WalDamaged, WalError, WalUnreachable
from wal.identity import read_identity
from wal.objects import WalObjects
from wal.salvage import Finding
from wal.slot import SLOT_HEADER_SIZE_BYTES, identity_key, log_prefix, new_recoverer_id
from wal.slot_log import End, Patience, SlotLog
from wal.slot_salvage import close_off, in_batch, salvage_slots

__all__ = ["ForeignWal", "WalPlace", "find_foreign", "place_of"]

MAX_CHILDREN: Final = 1_000
"""Of a directory that the operator named: so many of its own directories are looked into."""

HEDGE_S: Final = 0.5

SETTLE_S: Final = 0.1
"""A write that is under way is done by then, as a rule."""

_SHARED: Final = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
        "virtiofs",
    ]
)
"""File systems that several machines can write to at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalPlace:
    """Whose log it is, and where it should be."""

    wal_id: str
    node_id: int
    wal_epoch: int
    """Of its header when its node opened it last: what is older is a copy."""
    uri: str
    """As `place_of` made it; empty where nobody but its node can read it."""
    host: str
    """Identity of the machine whose disk it is on; empty where that does not matter, or is not known."""


class ForeignWal(AsideWal, Protocol):
    """A log of another node. To be fenced before it is read, and closed at the end."""

    async def fence(self) -> None:
        """Stop whoever writes there, for good. May be repeated. Waits for as long as a bucket does not answer.

        Raises:
            WalError: it cannot be fenced now.
        """

    async def close(self) -> None:
        """Let go of it; it stays as it is."""


def place_of(config: WalConfig, host: str) -> tuple[str, str]:
    """Where a node's log is, as its registration tells it: (URI, identity of the machine)."""
    match config:
        case NullWalConfig():
            return "", ""
        case FileWalConfig():
            return config.path.as_uri(), host
        case ObjectWalConfig():
            uri = config.store_uri
            return (uri if uri.startswith("s3:") else OBJECTS_PREFIX + uri), ""


async def find_foreign(
    place: WalPlace,
    *,
    host: str,
    directories: Sequence[Path],
    open_objects: Callable[[ObjectWalConfig], Awaitable[WalObjects]],
    rng: random.Random,
) -> ForeignWal:
    """Find a log from here. To be closed.

    Args:
        place: Which one.
        host: Identity of this machine.
        directories: Where the operator mounts volumes of other nodes: each is looked at, and the directories in it.
        open_objects: Opens the object store of a log in a bucket.
        rng: Gives ids and jitter.

    Raises:
        WalUnreachable: it is not to be had here; says where it was looked for, and what was found there.
    """
    if not place.uri:
        raise WalUnreachable(f"nobody but node {place.node_id} itself can read WAL {place.wal_id}")
    config = parse_wal_uri(place.uri)
    if isinstance(config, ObjectWalConfig):
        return await _find_in_bucket(place, config, open_objects, rng)
    assert isinstance(config, FileWalConfig), "nothing else is told"
    own = [config.path] if host and place.host == host else []
    return await asyncio.to_thread(_find_on_disk, place, config.path, own, directories)


# ---- on a disk


def _find_on_disk(place: WalPlace, told: Path, own: Sequence[Path], directories: Sequence[Path]) -> FileForeign:
    problems: list[str] = []
    for path in (*own, *(found for directory in directories for found in _in(directory, problems))):
        try:
            header = read_wal_header(path)
            if header.wal_id != place.wal_id:
                problems.append(f"the WAL in {path} is another ({header.wal_id}, of node {header.node_id})")
                continue
            if header.wal_epoch < place.wal_epoch:
                problems.append(
                    f"the WAL in {path} is an older copy (epoch {header.wal_epoch}, and it was opened with {place.wal_epoch} since)"
                )
                continue
            kind = _file_system(path)
        except (WalError, OSError) as error:
            problems.append(str(error))
            continue
        if kind in _SHARED:
            problems.append(
                f"it is in {path}, on a file system ({kind}) that other machines can write to at the same time, so nobody can be "
                "kept from writing there"
            )
            continue
        return FileForeign(place.wal_id, path)
    if not own:
        problems.append(f"its node has it in {told}, on another machine")
    raise WalUnreachable(f"WAL {place.wal_id} of node {place.node_id} is not to be had here: {'; '.join(problems)}")


def _in(directory: Path, problems: list[str]) -> Iterator[Path]:
    """The logs in a directory that the operator named: itself, or directories in it."""
    try:
        children = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    except OSError as error:
        problems.append(f"{directory} cannot be read ({error.strerror})")
        return
    for path in (directory, *(directory / name for name in children[:MAX_CHILDREN])):
        if (path / "wal").is_file():
            yield path


def _file_system(path: Path) -> str:
    """What kind of file system a directory is on; empty where the kernel does not tell."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


class FileForeign(FileAside):
    """A ring on a disk that this machine reads (`ForeignWal`)."""

    async def fence(self) -> None:
        """See `ForeignWal`."""
        await asyncio.to_thread(fence, self.path)
        if await asyncio.to_thread(lock_holder, self.path) is not None:
            # One write of it may be under way, and be a trim. Read too early, what it gave up looks like damage; which does no
            # harm, but for the second look that it costs.
            await asyncio.sleep(SETTLE_S)

    async def remove(self) -> None:
        """See `AsideWal`. It is its node's."""
        raise AssertionError("a log of another node is not ours to delete")

    async def close(self) -> None:
        """See `ForeignWal`."""


# ---- in a bucket


async def _find_in_bucket(
    place: WalPlace,
    config: ObjectWalConfig,
    open_objects: Callable[[ObjectWalConfig], Awaitable[WalObjects]],
    rng: random.Random,
) -> ObjectForeign:
    objects = await open_objects(config)
    try:
        key = identity_key(place.node_id)
        data = await Patience(rng).persist(lambda: objects.read(key))
        found_id = "" if data is None else read_identity(data, key).wal_id
        if found_id != place.wal_id:
            what = f"names another ({found_id})" if found_id else "is missing"
            raise WalUnreachable(
                f"WAL {place.wal_id} of node {place.node_id} is not to be had here: {key} in {objects.uri} {what}"
            )
    except BaseException:
        await objects.close()
        raise
    return ObjectForeign(place.wal_id, objects, rng)


class ObjectForeign:
    """Slots in a bucket (`ForeignWal`)."""

    def __init__(self, wal_id: str, objects: WalObjects, rng: random.Random) -> None:
        self.wal_id = wal_id
        self.place = f"{objects.uri}, {log_prefix(wal_id)}"
        self._objects = objects
        self._rng = rng
        self._log = SlotLog(objects=objects, wal_id=wal_id, rng=rng, hedge_s=HEDGE_S)
        self._end: End | None = None
        """Where it ends; None where it is damaged, so that only `salvage_slots` can tell."""

    async def fence(self) -> None:
        """See `ForeignWal`."""
        writer_id = new_recoverer_id(self._rng)
        self._end = None
        try:
            self._end = await self._log.fence((await self._log.newest()).wal_epoch, writer_id)
        except WalDamaged:
            await close_off(self._objects, self.wal_id, writer_id, self._rng)

    async def findings(self) -> AsyncGenerator[Finding, None]:
        """See `AsideWal`. What is whole is read ahead; what was told before damage was met is told again, which changes nothing."""
        if self._end is not None:
            try:
                async with aclosing(self._log.batches(self._end)) as batches:
                    async for header, data in batches:
                        start_offset = max(header.base_offset, self._end.trim_offset)
                        for finding in in_batch(header, memoryview(data)[SLOT_HEADER_SIZE_BYTES:], start_offset):
                            yield finding
            except WalDamaged:
                self._end = None
            else:
                return
        async with aclosing(salvage_slots(self._objects, self.wal_id, self._rng)) as findings:
            async for finding in findings:
                yield finding

    async def remove(self) -> None:
        """See `AsideWal`. It is its node's."""
        raise AssertionError("a log of another node is not ours to delete")

    async def close(self) -> None:
        """See `ForeignWal`."""
        await self._objects.close()
