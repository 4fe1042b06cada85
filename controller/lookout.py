"""A look at the bucket from a thread of its own, so that a node whose event loop is late does not lose its lease while the bucket answers.

Theory of operation. The event loop renews the lease (`lease.py`), and says several times a second what it knows of the log (`Known`). While
that is in time the thread only wakes, about once a second. Where the newest look began more than half a lease ago, the thread has one in
its place: it asks for the next entry, and where that is there, for those after it, until there is none. None of them is applied. They are
only searched for what could end the trust in this node; where one has that, the lease is not extended, and the thread rests until the event
loop has applied that entry.

It is one rule for all nodes. A node that leads does not go by the leader object here: its event loop may have stood still with an entry
under way, and others that replaced it meanwhile have not taken it for dead.

When to look, from where, and what a look proves is decided in `Looks`, without a clock, a thread or a request; `Lookout` is the thread. That
has an event loop of its own, and on it a client of the store of its own, which is made when it is needed for the first time: 10 ms of CPU and
a megabyte, on S3.

Always true:
- A lease is extended as of the moment before the request that found no entry, by the clock of leases. That proves the log's end only where
  that was known less than half of `entry_min_age_ms` before, since no entry is deleted before it is so old; else nobody looks.
- Every doubt extends nothing: an error, an answer that comes late, an entry that cannot be decoded.
- A node whose event loop has not moved for `HUNG_AFTER_S` hangs, and gets no lease from here: others are to take over.
- Nothing is shared with the event loop but values that are replaced as a whole, and counts that only the thread changes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import logging
import math
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Final, Protocol

from controller.entry import Entry
from controller.lease import Known, Registration
from controller.pulse import HUNG_AFTER_S
from controller.records import (
    MetadataRestored,
    NodeDead,
    NodeRegistered,
    NodeSuspected,
    NodeTrusted,
    NodeUnregistered,
    Record,
    StreamsAbandoned,
)

__all__ = ["EntryReader", "Found", "Lookout", "Looks", "concerns"]

_log: Final = logging.getLogger("tidelog.controller")

BEAT_INTERVAL_S: Final = 0.2
"""How often the event loop says what it knows."""
_DUE: Final = 1 / 2
"""In leases: the age of the newest look after which the thread has one. The event loop is to have one after a third."""
_TIMEOUT: Final = 1 / 3
"""In leases: so that there is time for a second look."""
_PAUSE: Final = 1 / 10
"""In leases: after each look, and while there is nothing to look at."""
_JOIN_TIMEOUT_S: Final = 5.0


class Found(enum.StrEnum):
    """What came of a look."""

    TAIL = "tail"
    """The log's end, and nothing before it that concerns this node: the lease holds on."""
    CONCERN = "concern"
    """An entry that may end the trust in this node: the event loop is to see what comes of it."""
    FAILURE = "failure"
    """Nothing: no answer in time, or one that is no good."""


def concerns(records: Sequence[Record], registration: Registration) -> bool:
    """Whether entries could end the trust in this registration, or take from it what it has open, without it doing anything."""
    for record in records:
        match record:
            case NodeRegistered(node_id=registration.node_id):
                if record.node_epoch != registration.node_epoch:  # else it is this node, which tells of itself
                    return True
            case NodeSuspected() | NodeTrusted() | NodeDead() | NodeUnregistered():
                if record.node_id == registration.node_id:
                    return True
            case StreamsAbandoned() | MetadataRestored():
                return True
    return False


class Looks:
    """What is known of the log's end, and when to look for it. Pure: times are those of the clock of leases."""

    def __init__(self, registration: Registration, *, lease_s: float, trusted_s: float) -> None:
        """Take for how long a 404 proves the log's end, once that was known (`trusted_s`)."""
        self._registration = registration
        self._lease_s = lease_s
        self._trusted_s = trusted_s
        self._next_index = 0
        """Entries below are applied, or were searched and do not concern this node."""
        self._tail_known_s = float("-inf")
        """When the newest read began that found the log's end, there or before."""
        self._looked = (-1, float("-inf"))
        """The trust that was known at the newest look that found it, and as of when that was."""
        self._concern = -1
        """The newest entry that concerned this node."""

    def due_in_s(self, known: Known | None, now_s: float) -> float:
        """For how long the lease need not be extended from here; infinite where it may not be, by what is known."""
        if known is None or now_s - known.moved_s > HUNG_AFTER_S or known.next_index <= self._concern:
            return float("inf")
        if now_s - max(known.tail_known_s, self._tail_known_s) > self._trusted_s:
            return float("inf")
        trust, looked_s = self._looked
        newest_s = max(known.as_of_s, looked_s) if trust == known.trust else known.as_of_s
        return max(newest_s + self._lease_s * _DUE - now_s, 0.0)

    def look(self, known: Known, clock: Callable[[], float]) -> Generator[int, Entry | None, float | None]:
        """The entries to be read, one after the other; is sent each, or None where there is none. Returns as of when the log ended, with
        nothing before that concerns this node; None where that is not so, or not proven."""
        self._next_index = max(self._next_index, known.next_index)
        self._tail_known_s = max(self._tail_known_s, known.tail_known_s)
        while True:
            began_s = clock()
            if began_s - self._tail_known_s > self._trusted_s:
                return None
            entry = yield self._next_index
            if entry is None:
                self._tail_known_s = began_s
                self._looked = known.trust, began_s
                return began_s
            if concerns(entry.records, self._registration):
                self._concern = self._next_index
                return None
            self._next_index += 1


class Extensible(Protocol):
    """The lease, as whoever looks at the bucket sees it. See `Lease`."""

    @property
    def known(self) -> Known | None:
        """What the event loop said last."""

    def beat(self) -> None:
        """The event loop moves, and says what it knows."""

    def extend(self, known: Known, as_of_s: float) -> None:
        """The log was found to end as of then."""


class EntryReader(Protocol):
    """Reads the log in the bucket, on one event loop."""

    async def read_entry(self, index: int) -> Entry | None:
        """An entry as it is in the bucket, in one request; None where there is none. Raises where that is not known."""

    async def close(self) -> None:
        """Release connections."""


class Lookout:
    """One thread's work, and the task that tells it what the event loop knows."""

    def __init__(
        self,
        lease: Extensible,
        registration: Registration,
        *,
        lease_ms: int,
        entry_min_age_ms: int,
        open_reader: Callable[[], EntryReader],
        clock: Callable[[], float],
    ) -> None:
        """Take the parts. `open_reader` is called in the thread; `clock` is that of leases."""
        self._lease = lease
        self._lease_s = lease_ms / 1_000
        self._looks = Looks(registration, lease_s=self._lease_s, trusted_s=entry_min_age_ms / 2_000)
        self._open_reader = open_reader
        self._reader: EntryReader | None = None
        self._clock = clock
        self._stop: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="looks at the bucket", daemon=True)
        self._failing = False
        self.found = dict.fromkeys(Found, 0)
        """Looks, by what came of them."""

    async def run(self) -> None:
        """Have the thread look where that is needed, until cancelled."""
        self._thread.start()
        try:
            while True:
                self._lease.beat()
                await asyncio.sleep(BEAT_INTERVAL_S)
        finally:
            self._stop.set_result(None)
            await asyncio.to_thread(self._thread.join, _JOIN_TIMEOUT_S)

    # ---- in the thread

    def _run(self) -> None:
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        looking = asyncio.ensure_future(self._look_on_and_on())
        await asyncio.wait((looking, asyncio.wrap_future(self._stop)), return_when=asyncio.FIRST_COMPLETED)
        looking.cancel()
        for outcome in await asyncio.gather(looking, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error(
                    "nobody looks at the bucket beside the event loop any more; please report this", exc_info=outcome
                )
        if self._reader is not None:
            await self._reader.close()

    async def _look_on_and_on(self) -> None:
        pause_s = self._lease_s * _PAUSE
        while True:
            known = self._lease.known
            due_in_s = self._looks.due_in_s(known, self._clock())
            if known is not None and due_in_s == 0:
                self.found[await self._look(known)] += 1
            await asyncio.sleep(max(due_in_s, pause_s) if math.isfinite(due_in_s) else pause_s)

    async def _look(self, known: Known) -> Found:
        try:
            async with asyncio.timeout(self._lease_s * _TIMEOUT):
                as_of_s = await self._read_to_tail(known)
        except Exception as error:  # whatever it is: the event loop renews the lease all the same, and this tries again
            if not self._failing:
                self._failing = True
                _log.info(
                    "a look at the bucket beside the event loop failed: %(error)s",
                    {"error": str(error) or type(error).__name__},
                )
            return Found.FAILURE
        self._failing = False
        if as_of_s is None:
            return Found.CONCERN
        self._lease.extend(known, as_of_s)
        return Found.TAIL

    async def _read_to_tail(self, known: Known) -> float | None:
        if self._reader is None:
            self._reader = self._open_reader()
        look = self._looks.look(known, self._clock)
        try:
            index = next(look)
            while True:
                index = look.send(await self._reader.read_entry(index))
        except StopIteration as ended:
            as_of_s: float | None = ended.value
            return as_of_s
