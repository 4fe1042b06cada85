"""From a URI to an open write-ahead log."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from wal.aio_disk import AioDisk
from wal.arena import Arena
from wal.aside import AsideWal, file_asides
from wal.config import FileWalConfig, NullWalConfig, ObjectWalConfig, WalConfig, WalIo, parse_wal_uri
from wal.directory import WalDirectory
from wal.disk import Disk, ThreadDisk
from wal.errors import WalConfigInvalid, WalCorrupt, WalMismatch, WalUnavailable
from wal.file_wal import FileWal
from wal.header import WalHeader
from wal.identity import read_identity
from wal.log import WriteAheadLog
from wal.null_wal import NullWal
from wal.object_wal import ObjectWal
from wal.objects import WalObjects
from wal.slot import identity_key
from wal.slot_log import Patience
from wal.slot_salvage import set_slots_aside, slot_asides

__all__ = ["OpenObjects", "open_wal", "set_wal_aside", "wals_set_aside"]

OpenObjects = Callable[[ObjectWalConfig], Awaitable[WalObjects]]
"""Opens the object store that a WAL's URI names. It comes from above: this package knows of no object store."""

OPEN_TIMEOUT_S = 120
"""How long a start waits for a bucket. Recovery, which follows, waits for as long as it takes."""

_WAL_ID_BITS = 128


async def open_wal(
    uri: str | WalConfig,
    *,
    arena: Arena,
    cluster_id: str,
    node_id: int,
    rng: random.Random,
    clock: Callable[[], float] | None = None,
    open_objects: OpenObjects | None = None,
) -> WriteAheadLog:
    """Open the WAL that a URI names; it is made where there is none.

    The caller recovers it before the first append, and closes it.

    Args:
        uri: See `wal.config`.
        arena: Where payloads are laid out; empty.
        cluster_id: The WAL is stamped with it, or must have been.
        node_id: Likewise.
        rng: Gives a new WAL its `wal_id`.
        clock: See `FileWal.open`.
        open_objects: For a WAL in a bucket.

    Raises:
        WalError: see `wal.errors`; every message says what to do.
    """
    config = parse_wal_uri(uri) if isinstance(uri, str) else uri
    if isinstance(config, NullWalConfig):
        return NullWal(arena=arena, wal_id=_new_wal_id(rng), cluster_id=cluster_id)
    if isinstance(config, ObjectWalConfig):
        if open_objects is None:
            raise WalConfigInvalid(f"a WAL in {config.store_uri} is not to be had here: use file:///path?capacity=1GiB")
        return await _open_in_bucket(
            config,
            await open_objects(config),
            arena=arena,
            cluster_id=cluster_id,
            node_id=node_id,
            rng=rng,
            clock=clock,
        )
    return await _open_file(config, arena=arena, cluster_id=cluster_id, node_id=node_id, rng=rng, clock=clock)


async def set_wal_aside(
    uri: str, *, cluster_id: str, node_id: int, rng: random.Random, open_objects: OpenObjects
) -> None:
    """Leave a node's damaged WAL, which is closed, as it is, and begin another in its place.

    Raises:
        WalError: that cannot be done; the WAL is where it was.
    """
    config = parse_wal_uri(uri)
    if isinstance(config, ObjectWalConfig):
        objects = await open_objects(config)
        try:
            await _set_slots_aside(objects, cluster_id=cluster_id, node_id=node_id, rng=rng)
        finally:
            await objects.close()
        return
    assert isinstance(config, FileWalConfig), "nothing else can be damaged"
    directory = WalDirectory(config.path)
    try:
        directory.replace(
            WalHeader(
                wal_id=_new_wal_id(rng), cluster_id=cluster_id, node_id=node_id, capacity_bytes=config.capacity_bytes
            )
        )
    finally:
        directory.close()


async def _set_slots_aside(objects: WalObjects, *, cluster_id: str, node_id: int, rng: random.Random) -> None:
    key = identity_key(node_id)
    data = await Patience(rng).persist(lambda: objects.read(key))
    if data is None:
        return  # another start of the node was faster
    identity = read_identity(data, key)
    identity.check(cluster_id=cluster_id, node_id=node_id, key=key)
    await set_slots_aside(objects, key, node_id=node_id, wal_id=identity.wal_id, writer_id=_new_wal_id(rng), rng=rng)


@asynccontextmanager
async def wals_set_aside(
    uri: str, *, node_id: int, rng: random.Random, open_objects: OpenObjects
) -> AsyncIterator[Sequence[AsideWal]]:
    """Damaged WALs of a node that were set aside where a URI says; to be used within the block."""
    config = parse_wal_uri(uri)
    if isinstance(config, FileWalConfig):
        yield file_asides(config.path)
    elif isinstance(config, ObjectWalConfig):
        objects = await open_objects(config)
        try:
            yield await slot_asides(objects, node_id, rng)
        finally:
            await objects.close()
    else:
        yield ()


async def _open_in_bucket(
    config: ObjectWalConfig,
    objects: WalObjects,
    *,
    arena: Arena,
    cluster_id: str,
    node_id: int,
    rng: random.Random,
    clock: Callable[[], float] | None,
) -> ObjectWal:
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            return await ObjectWal.open(
                arena=arena,
                objects=objects,
                cluster_id=cluster_id,
                node_id=node_id,
                config=config,
                rng=rng,
                clock=clock,
            )
    except TimeoutError as error:
        await objects.close()
        raise WalUnavailable(
            f"the WAL's bucket has not answered for {OPEN_TIMEOUT_S} s: see whether {objects.uri} is well, then start again"
        ) from error
    except BaseException:
        await objects.close()
        raise


async def _open_file(
    config: FileWalConfig,
    *,
    arena: Arena,
    cluster_id: str,
    node_id: int,
    rng: random.Random,
    clock: Callable[[], float] | None,
) -> FileWal:
    directory = WalDirectory(config.path)
    try:
        if not directory.has_wal:
            directory.create(
                WalHeader(
                    wal_id=_new_wal_id(rng),
                    cluster_id=cluster_id,
                    node_id=node_id,
                    capacity_bytes=config.capacity_bytes,
                )
            )
        fd, size_bytes = directory.open_file()
    except BaseException:
        directory.close()
        raise
    disk = _LockedDisk(_disk_for(config, fd, size_bytes), directory)
    try:
        return await FileWal.open(
            arena=arena,
            disk=disk,
            cluster_id=cluster_id,
            node_id=node_id,
            capacity_bytes=config.capacity_bytes,
            fenced_epoch=directory.fence.fenced_epoch,
            format_in_background=True,
            clock=clock,
        )
    except (WalCorrupt, WalMismatch) as error:  # a node has several places; this one is meant
        await disk.close()
        raise type(error)(f"{config.path}: {error}") from error
    except BaseException:
        await disk.close()
        raise


def _disk_for(config: FileWalConfig, fd: int, size_bytes: int) -> Disk:
    """Kernel AIO where it is to be had, else a thread, which works everywhere."""
    loop = asyncio.get_running_loop()
    if config.io is WalIo.THREAD:
        return ThreadDisk(fd, size_bytes=size_bytes, loop=loop)
    try:
        if not AioDisk.suits(fd):
            raise OSError(errno.EINVAL, "the file system does not take O_DIRECT")
        return AioDisk(fd, size_bytes=size_bytes, loop=loop)
    except OSError as error:
        if config.io is WalIo.AIO:
            os.close(fd)
            raise WalUnavailable(
                f"the WAL in {config.path} cannot use kernel AIO ({error.strerror}): leave io=aio out of its URI"
            ) from error
        return ThreadDisk(fd, size_bytes=size_bytes, loop=loop)


class _LockedDisk:
    """A disk that gives its directory up when it is closed, not before its last write."""

    def __init__(self, disk: Disk, directory: WalDirectory) -> None:
        self._disk = disk
        self._directory = directory
        self.size_bytes = disk.size_bytes
        self.write = disk.write
        self.read = disk.read
        self.sync = disk.sync

    async def close(self) -> None:
        await self._disk.close()
        self._directory.close()


def _new_wal_id(rng: random.Random) -> str:
    return f"{rng.getrandbits(_WAL_ID_BITS):032x}"
