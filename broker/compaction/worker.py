"""The process of compaction: `python -m broker.compaction.worker FD`, started by the broker and by nobody else.

It reads the metadata log in the bucket as any node does, is told by the broker what comes next, and runs the same `Compactor`
that runs inside a broker in tests. What only the broker may do (ids, commits) it asks the broker for.

Always true:
- It ends with the broker: the link that it was given ends, or the kernel kills it (PR_SET_PDEATHSIG) where it does not get to see
  that. Signals that go to the whole group of processes (Ctrl-C, systemd's) are the broker's business.
- It is the least of what runs on the machine: it gives way to others at the processor, dies first when memory is short, and
  the kernel gives it no more data than its limit.
- What it plans is by an image that may be behind; what it commits is checked by the broker against the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import random
import resource
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker.compaction.wire import (
    Commit,
    Committed,
    Figures,
    Ids,
    IdsWanted,
    LinkBroken,
    LinkEnded,
    Refused,
    RequestFigures,
    Start,
    Told,
    encode,
    read_from_broker,
)
from broker.logs import configured
from broker.origin import check_packages
from controller.committed import CommittedMetadata
from controller.config import ControllerSettings
from controller.entry import Entry, EntryHeader
from controller.log import MetadataLog
from controller.records import decode_records
from controller.replica import Replica
from s3stream.compactor import Compactor
from s3stream.errors import MetadataUnavailable, ObjectExpired, SourcesChanged, StorageError
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.metadata import CommitObjects, CommitResult, ObjectId
from s3stream.metered import MeteredObjectStore, Purpose, Usage
from s3stream.open import open_object_store

__all__ = ["Follower", "Link", "LinkedMetadata", "main"]

log = logging.getLogger("tidelog.compaction")

FIGURES_INTERVAL_S: Final = 1.0
MAX_WAITING_ENTRIES: Final = 1000
"""Entries told while the metadata is being read in the bucket; those beyond are read there as well."""

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE_ADJ: Final = "800"
"""Of 1,000: what is lost with it is least."""
_NICE: Final = 10
"""A tenth of a core where everybody wants all of them: it gives way, and is not starved."""

_REFUSALS: Final[dict[str, type[StorageError]]] = {
    error.__name__: error for error in (SourcesChanged, ObjectExpired, MetadataUnavailable)
}


class Follower:
    """Keeps a replica at the broker's heels. Only `run` changes it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._waiting: deque[Told] = deque()
        self._known_index = -1
        """The log reaches as far as this, surely."""
        self._work = asyncio.Event()
        self._looks = 0
        """How often the bucket was looked at because somebody wanted that."""
        self._look_wanted = self._looking = False
        self._advanced = asyncio.Condition()
        self._started = False

    def tell(self, told: Told) -> None:
        """Take the news of an entry."""
        if len(self._waiting) < MAX_WAITING_ENTRIES:
            self._waiting.append(told)
        self._known_index = max(self._known_index, told.index)
        self._work.set()

    async def reached(self, index: int) -> None:
        """Return when everything up to an entry is applied, and what was there at the start."""
        self._known_index = max(self._known_index, index)
        self._work.set()
        async with self._advanced:
            await self._advanced.wait_for(lambda: self._started and self._replica.next_index > index)

    async def look(self) -> None:
        """Return when the log was read to its tail in the bucket, whatever was told."""
        self._look_wanted = True
        self._work.set()
        looks = self._looks + (2 if self._looking else 1)  # one that has begun may have missed what is wanted
        async with self._advanced:
            await self._advanced.wait_for(lambda: self._looks >= looks)

    async def run(self) -> None:
        """Apply until cancelled. What was not told, or told too early, is read in the bucket."""
        replica = self._replica
        await replica.start()
        self._started = True
        while True:
            if self._waiting:
                told = self._waiting.popleft()
                if told.index == replica.next_index:
                    replica.apply(_entry(told))
                elif told.index > replica.next_index:
                    await replica.catch_up()
            elif self._known_index >= replica.next_index:
                await replica.catch_up()
                if self._known_index >= replica.next_index:
                    raise LinkBroken(f"entry {self._known_index} of the metadata log was told, and is not there")
            elif self._look_wanted:
                self._look_wanted, self._looking = False, True
                await replica.catch_up()
                async with self._advanced:
                    self._looking = False
                    self._looks += 1
                    self._advanced.notify_all()
            else:
                self._work.clear()
                async with self._advanced:
                    self._advanced.notify_all()
                await self._work.wait()


def _entry(told: Told) -> Entry:
    header = EntryHeader(index=told.index, controller_epoch=told.controller_epoch, nonce=b"")
    records = decode_records(told.records, where=f"entry {told.index}, as told")
    return Entry(header=header, records=records, size_bytes=len(told.records))


class Link:
    """The worker's end: hands news to the follower, and answers to whoever asked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, follower: Follower) -> None:
        self._reader = reader
        self._writer = writer
        self._follower = follower
        self._asking = asyncio.Lock()
        self._answer: asyncio.Future[Ids | Committed] | None = None

    async def run(self) -> None:
        """Read until the broker is gone, which raises LinkBroken."""
        while True:
            message = await read_from_broker(self._reader)
            if isinstance(message, Told):
                self._follower.tell(message)
                continue
            answer, self._answer = self._answer, None
            if answer is None or isinstance(message, Start):
                raise LinkBroken("an answer to nothing")
            if answer.done():
                continue  # who asked was cancelled
            if isinstance(message, Refused):
                answer.set_exception(_REFUSALS.get(message.error, MetadataUnavailable)(message.message))
            else:
                answer.set_result(message)

    async def ask(self, question: IdsWanted | Commit) -> Ids | Committed:
        """Have the broker do something. Raises what it refuses with."""
        async with self._asking:
            self._answer = asyncio.get_running_loop().create_future()
            self._writer.write(encode(question))
            return await self._answer

    def send(self, figures: Figures) -> None:
        """Tell the broker what there is to tell."""
        self._writer.write(encode(figures))


class LinkedMetadata(CommittedMetadata):
    """Implements `CompactionMetadata`: reads are of the replica, changes are the broker's."""

    def __init__(self, replica: Replica, follower: Follower, link: Link) -> None:
        super().__init__(replica)
        self._follower = follower
        self._link = link

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        """Ids never given out before."""
        answer = await self._link.ask(IdsWanted(count=count))
        assert isinstance(answer, Ids), "answers match questions"
        return answer.object_ids

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        """Put objects in the place of their sources; what is read afterwards shows it."""
        answer = await self._link.ask(Commit(commit=commit))
        assert isinstance(answer, Committed), "answers match questions"
        await self._follower.reached(answer.index)
        return CommitResult(skipped={})  # compaction has no use for it

    async def catch_up(self) -> None:
        """Read the metadata log to its tail."""
        await self._follower.look()


async def _work(connection: socket.socket) -> int:
    """Compact until the broker is gone; returns the exit status."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        start = await read_from_broker(reader)
        if not isinstance(start, Start):
            raise LinkBroken("the first message is no start")
        with configured(start.logging_format, start.logging_level):
            return await _compact(start, reader, writer)
    except LinkEnded:
        return 0
    finally:
        writer.close()


async def _compact(start: Start, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    rng = random.Random(start.seed)
    opened = open_object_store(start.object_store_uri, rng=rng, settings=start.object_store)
    store, usage = InstrumentedObjectStore(opened.store), Usage()

    def metered(purpose: Purpose) -> MeteredObjectStore:
        return MeteredObjectStore(
            store, usage=usage, purpose=purpose, part_size_bytes=start.object_store.multipart_part_size_bytes
        )

    metadata_log = MetadataLog(
        store=metered(Purpose.METADATA), paths=opened.paths, settings=ControllerSettings(), rng=rng
    )
    metadata_log.bears_refusal = True  # credentials are renewed sooner or later; until then there is nothing to do
    replica = Replica(metadata_log)
    follower = Follower(replica)
    link = Link(reader, writer, follower)
    compactor = Compactor(
        store=metered(Purpose.COMPACTION),
        paths=opened.paths,
        metadata=LinkedMetadata(replica, follower, link),
        settings=start.compaction,
        block_size_bytes=start.block_size_bytes,
        rng=rng,
    )
    _limit_data(start.memory_limit_bytes)

    async def compact() -> None:
        await follower.reached(-1)
        await compactor.run()

    async def tell() -> None:
        while True:
            link.send(_figures(compactor, store, usage))
            await asyncio.sleep(FIGURES_INTERVAL_S)

    try:
        async with asyncio.TaskGroup() as tasks:
            for work in (link.run(), follower.run(), compact(), tell()):
                tasks.create_task(work)
    except ExceptionGroup as errors:
        _, failed = errors.split(LinkEnded)
        for error in failed.exceptions if failed else ():
            log.error("compaction failed, and is started again: %(error)r", {"error": error}, exc_info=error)
        return 1 if failed else 0
    finally:
        await store.close()
    raise AssertionError("its tasks have no end")


def _figures(compactor: Compactor, store: InstrumentedObjectStore, usage: Usage) -> Figures:
    failures: dict[str, Counter[str]] = {}
    for (operation, name), count in store.failures.items():
        failures.setdefault(operation, Counter())[name] = count
    return Figures(
        jobs=compactor.jobs,
        discarded_jobs=compactor.discarded_jobs,
        read_bytes=compactor.read_bytes,
        written_bytes=compactor.written_bytes,
        copied_bytes=compactor.copied_bytes,
        damaged_objects=compactor.damaged_objects,
        memory_bytes=_resident_bytes(),
        cpu_seconds=time.process_time(),
        requests={
            operation: RequestFigures(
                count=store.requests[operation],
                transferred_bytes=store.transferred_bytes[operation],
                failures=dict(failures.get(operation, {})),
                duration_counts=tuple(durations.counts),
                duration_total_s=durations.total,
            )
            for operation, durations in store.durations.items()
        },
        usage=usage,
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _limit_data(limit_bytes: int) -> None:
    """Have the kernel refuse more: a MemoryError then ends this process, and no other."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def _step_back() -> None:
    """Let everything else on the machine go first, and end with the broker."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.nice(_NICE)
    with contextlib.suppress(OSError):  # containers without permission: then it is as likely as others
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)


def main() -> None:
    """Run as a program."""
    _step_back()
    check_packages()
    sys.exit(asyncio.run(_work(socket.socket(fileno=int(sys.argv[1])))))


if __name__ == "__main__":
    main()
