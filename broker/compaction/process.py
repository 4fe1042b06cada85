"""The broker's side of compaction in a process of its own: starts it, answers it, and starts it again when it ends.

Who does what. The worker (see `worker.py`) follows the metadata by itself, plans, reads, checks, rewrites and puts. The broker
keeps it informed of what it applies, gives out object ids, and commits, since it is the one that may. So the broker's event loop
spends on a job what the commit of an upload of as many ranges costs it, and nothing on planning and bytes.

Always true:
- Nothing waits for the worker. It may end or hang at any moment: what it was doing is an orphan, or a job that nobody committed.
- It does not outlive the broker: it ends when the link does, and the kernel kills it when the broker is killed (see `worker.py`).
- It is started when there is something to merge, and again, later each time, when it ended. One that is silent is killed.
- What is told and not taken is bounded: beyond `TOLD_ROOM_BYTES` entries are left out, and the worker reads them in the bucket.
- Figures go on over a restart of the worker; its requests to the object store are counted as this node's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import broker
from broker.compaction.wire import (
    Commit,
    Committed,
    Figures,
    FromBroker,
    Ids,
    IdsWanted,
    LinkBroken,
    Refused,
    RequestFigures,
    Start,
    Told,
    encode,
    read_from_worker,
)
from controller.image import Applied, Image
from controller.records import encode_records
from s3stream.config import CompactionSettings, ObjectStoreSettings
from s3stream.errors import MetadataUnavailable, NodeFenced, ObjectExpired, SourcesChanged
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.metadata import CommitObjects, CommitResult, ObjectId
from s3stream.metered import Usage

__all__ = ["CompactionProcess", "WorkerSettings"]

log = logging.getLogger("tidelog.compaction")

FIRST_RESTART_DELAY_S: Final = 1.0
MAX_RESTART_DELAY_S: Final = 60.0
"""A worker that cannot live costs a start a minute."""
STABLE_AFTER_S: Final = 120.0
"""One that lived so long is started again at once."""

MAX_SILENCE_S: Final = 300.0
"""A worker without a sign of life for so long is killed: it says something each second, unless the machine is out of breath."""

TOLD_ROOM_BYTES: Final = 4 << 20
"""Entries of the metadata log that the worker has not taken yet."""

END_WITHIN_S: Final = 3.0
"""A worker whose link was closed aborts its upload and ends; one that has not by then is killed."""


class WorkerMetadata(Protocol):
    """What is done on behalf of the worker; see `CompactionMetadata`."""

    @property
    def object_count(self) -> int:
        """How many objects are referenced."""

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        """Ids never given out before."""

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        """Put objects in the place of their sources."""


class EntrySource(Protocol):
    """Who applies the metadata log here."""

    @property
    def image(self) -> Image:
        """What is committed."""

    @property
    def applied_index(self) -> int:
        """Index of the last entry in the image."""

    def subscribe(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """Be told of every entry applied from now on; returns how to unsubscribe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What the worker is told of the broker's settings."""

    object_store_uri: str
    object_store: ObjectStoreSettings
    compaction: CompactionSettings
    block_size_bytes: int
    memory_limit_bytes: int
    logging_format: str
    logging_level: str


class CompactionProcess:
    """Has the figures of a `Compactor`, and those of the process."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        metadata: WorkerMetadata,
        entries: EntrySource,
        store: InstrumentedObjectStore,
        usage: Usage,
        rng: random.Random,
    ) -> None:
        """Take the parts; nothing is started before `run`. `store` and `usage` are where the worker's requests are counted."""
        self._settings = settings
        self._metadata = metadata
        self._entries = entries
        self._store = store
        self._usage = usage
        self._rng = rng
        self.pid: int | None = None
        """Of the worker, while there is one."""
        self.restarts = 0
        self.jobs = 0
        self.discarded_jobs = 0
        self.read_bytes = 0
        self.written_bytes = 0
        self.copied_bytes = 0
        self.cpu_seconds = 0.0
        self.damaged_objects = 0
        self.memory_bytes = 0
        """As of the last second; 0 while there is no worker."""
        self._last: Figures | None = None

    async def run(self) -> None:
        """Keep a worker running until cancelled."""
        loop = asyncio.get_running_loop()
        delay_s = FIRST_RESTART_DELAY_S
        await self._needed()
        while True:
            began = loop.time()
            why = await self._live()
            if loop.time() - began >= STABLE_AFTER_S:
                delay_s = FIRST_RESTART_DELAY_S
            self.restarts += 1
            log.warning(
                "the process of compaction ended: %(why)s; it is started again in %(delay_s)d s",
                {"why": why, "delay_s": round(delay_s)},
            )
            await asyncio.sleep(delay_s * (0.5 + self._rng.random()))
            delay_s = min(delay_s * 2, MAX_RESTART_DELAY_S)

    async def _needed(self) -> None:
        """Wait until there is something to merge: many a broker, above all in tests, lives without."""
        while True:
            await asyncio.sleep(self._settings.compaction.interval_ms / 1000 * (0.5 + self._rng.random()))
            if self._metadata.object_count > 1:
                return

    async def _live(self) -> str:
        """Start a worker and serve it to its end; returns why it ended."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                worker = _start(theirs)
        except OSError as error:
            ours.close()
            return f"cannot be started: {error}"
        self.pid = worker.pid
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                why = await self._serve(reader, writer)
            finally:
                writer.close()
        finally:
            await _ended(worker)
            self.pid, self.memory_bytes, self._last = None, 0, None
        return _cause(worker.returncode, why)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        settings = self._settings
        start = Start(
            object_store_uri=settings.object_store_uri,
            object_store=settings.object_store,
            compaction=settings.compaction,
            block_size_bytes=settings.block_size_bytes,
            memory_limit_bytes=settings.memory_limit_bytes,
            seed=self._rng.getrandbits(63),
            logging_format=settings.logging_format,
            logging_level=settings.logging_level,
        )
        writer.write(encode(start))

        def tell(applied: Applied) -> None:
            full = writer.transport.get_write_buffer_size() > TOLD_ROOM_BYTES
            if full or applied.is_reset or writer.is_closing():
                return  # it will miss this one, and look in the bucket
            writer.write(
                encode(
                    Told(
                        index=applied.index,
                        controller_epoch=self._entries.image.controller_epoch,
                        records=encode_records(applied.records),
                    )
                )
            )

        unsubscribe = self._entries.subscribe(tell)
        try:
            while True:
                async with asyncio.timeout(MAX_SILENCE_S):
                    message = await read_from_worker(reader)
                if isinstance(message, Figures):
                    self._note(message)
                else:
                    answer = encode(await self._answer(message))
                    if not writer.is_closing():  # it was killed meanwhile, as the next read tells
                        writer.write(answer)
        except LinkBroken as error:
            return str(error)
        except TimeoutError:
            return f"nothing was heard of it for {MAX_SILENCE_S:.0f} s"
        finally:
            unsubscribe()

    async def _answer(self, message: IdsWanted | Commit) -> FromBroker:
        try:
            if isinstance(message, IdsWanted):
                return Ids(object_ids=tuple(await self._metadata.new_object_ids(message.count)))
            await self._metadata.commit_objects(message.commit)
            return Committed(index=self._entries.applied_index)
        except (SourcesChanged, ObjectExpired) as error:
            return Refused(error=type(error).__name__, message=str(error))
        except (MetadataUnavailable, NodeFenced) as error:  # a fenced node is about to stop
            return Refused(error=MetadataUnavailable.__name__, message=str(error))

    def _note(self, figures: Figures) -> None:
        """Add what was done since the worker's last message."""
        last = self._last
        self.jobs += figures.jobs - (last.jobs if last else 0)
        self.discarded_jobs += figures.discarded_jobs - (last.discarded_jobs if last else 0)
        self.read_bytes += figures.read_bytes - (last.read_bytes if last else 0)
        self.written_bytes += figures.written_bytes - (last.written_bytes if last else 0)
        self.cpu_seconds += figures.cpu_seconds - (last.cpu_seconds if last else 0.0)
        self.copied_bytes += figures.copied_bytes - (last.copied_bytes if last else 0)
        self.damaged_objects = figures.damaged_objects
        self.memory_bytes = figures.memory_bytes
        for operation, now in figures.requests.items():
            before = last.requests.get(operation) if last else None
            self._count(operation, now, before or RequestFigures.none())
        self._usage.add(figures.usage.since(last.usage) if last else figures.usage)
        self._last = figures

    def _count(self, operation: str, now: RequestFigures, before: RequestFigures) -> None:
        if now == before:
            return
        self._store.add(
            operation,
            count=now.count - before.count,
            transferred_bytes=now.transferred_bytes - before.transferred_bytes,
            failures={name: count - before.failures.get(name, 0) for name, count in now.failures.items()},
            duration_counts=[
                count - former for count, former in zip(now.duration_counts, before.duration_counts, strict=True)
            ],
            duration_total_s=now.duration_total_s - before.duration_total_s,
        )


def _start(link: socket.socket) -> subprocess.Popen[bytes]:
    """Start the program on its end of the link. It takes a fifth of a millisecond: the memory is shared until the exec."""
    # Our own packages, wherever they were loaded from, and not those of the working directory.
    home = str(Path(broker.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "broker.compaction.worker", str(link.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the log goes to standard error, as ours does
        pass_fds=(link.fileno(),),
        env={**os.environ, "PYTHONPATH": path},
    )


async def _ended(worker: subprocess.Popen[bytes]) -> None:
    """Wait for a worker whose link was closed, and kill it if that takes long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + END_WITHIN_S
    while worker.poll() is None:
        if loop.time() >= deadline:
            worker.kill()
        await asyncio.sleep(0.01)


def _cause(status: int | None, why: str) -> str:
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"status {status}" if status else why
