"""What a node may answer for: its lease, taken from the bucket, by which nobody reads from a broker that others have taken over from.

Theory of operation. A node that has read the metadata log to its tail, in a read that began at time t, and found itself neither suspected
nor dead nor registered anew, may serve until t + `lease_ms`. Others open what it has only when it was taken for dead, and that is no
sooner than `lease_ms` and a margin after the suspicion was committed (`detection.py`): a read that began later would have seen it. So
the lease comes from the bucket and from nobody else; an election costs none, and a deposed controller can extend none.

What a renewal costs. A node that follows asks for the entry that comes next, one GET: a 404 proves that there is none, as long as entries
are not deleted before `entry_min_age_ms`, and the log's end was known less than half of that ago; only after a longer time the floor is
read as well. A node that leads reads the leader object, one GET: where it still names it, nobody else can have committed anything. It does
not where it committed just now.

Who renews it. The event loop, as long as that is in time. Where it is late, a thread looks in its place (`lookout.py`), by the rule of the
first paragraph, word for word: it asks for the entries from the first on that the event loop has not applied, and the last of these reads,
which found none, began at t; no entry before that one concerns this registration. The two share values that are replaced as a whole: the
event loop says what it *knows*, the thread which *look* it had. Whether a look counts is decided by the event loop, whenever it answers:
both carry the number of losses of trust that the event loop knew of, and a look counts while that is the present one. So no order of the
two does harm. A look that began before a suspicion was committed is good until t + `lease_ms`, as a read of the event loop's is, and ends at once where
the event loop hears of the suspicion first, also where the look is told only after that; once trusted again, a node goes by looks that began after that.

Always true:
- Time is that of a clock that goes on while the machine sleeps (CLOCK_BOOTTIME), read before the bucket is asked, and again at each answer.
- A lease is about answers that could be stale. Records are safe without one, since the WAL is fenced before anybody takes over
  (docs/decisions/0003): while the bucket does not answer, which also keeps everybody from taking over, records are taken until the WAL
  is full. Not after this process stood still: then nothing is answered before the bucket was asked, or found not to answer. That the
  bucket does not answer is found by the event loop alone.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from controller.config import ControllerSettings
from controller.entry import Entry
from controller.errors import ControllerError
from controller.image import Image
from controller.tables import NodeStatus
from s3stream.errors import MetadataUnavailable, NodeFenced

__all__ = ["ALWAYS", "Known", "Lease", "LeaseState", "Registration", "Serving", "boottime_s"]

_log: Final = logging.getLogger("tidelog.controller")

_RENEWALS_PER_LEASE: Final = 3
_LEAST_PAUSE_S: Final = 0.01
_STANDSTILL_S: Final = 1.0
"""A wait that takes so much longer than it was to: the process, or its event loop, stood still."""


def boottime_s() -> float:
    """Seconds since the machine started, those that it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseState(enum.IntEnum):
    """What a node answers."""

    HELD = 0
    """Everything."""
    CUT_OFF = 1
    """Nothing that could be stale; it takes records, since the bucket does not answer."""
    LAPSED = 2
    """Nothing: it has not read the metadata log for too long, or it is suspected, or dead."""


class Serving(Protocol):
    """What handlers ask before they answer."""

    @property
    def serves(self) -> bool:
        """Whether what this node knows of its partitions may be told."""

    @property
    def takes_records(self) -> bool:
        """Whether records may be appended."""


class _Always:
    serves = True
    takes_records = True


ALWAYS: Final[Serving] = _Always()
"""Of a node that is alone: nobody takes over from it."""


class LogReader(Protocol):
    """The controller of this node, as its lease sees it."""

    @property
    def image(self) -> Image:
        """What is committed, as far as this node has read."""

    @property
    def next_index(self) -> int:
        """The first entry that it has not applied."""

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""

    @property
    def office_seen_s(self) -> float:
        """When the newest look at the leader object began that found this node in office."""

    async def is_in_office(self) -> bool:
        """Whether the leader object names this node still."""

    async def read_entry(self, index: int) -> Entry | None:
        """An entry as it is in the bucket, in one request; None where there is none."""

    async def receive(self, entries: Sequence[Entry]) -> None:
        """Apply entries; returns when that is done."""

    async def refresh(self) -> None:
        """Read the log to its tail, and the floor. Raises MetadataUnavailable."""


class Registration(Protocol):
    """This start of the node, as the metadata knows it."""

    node_id: int
    node_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the event loop knows, for whoever looks at the bucket beside it: this node is trusted, after all that it has applied."""

    trust: int
    """How often it was found not to be trusted before."""
    next_index: int
    """The first entry that is not applied."""
    tail_known_s: float
    """When the newest read began that found the log's end, there or before."""
    as_of_s: float
    """Of the lease that the event loop took."""
    moved_s: float
    """When the event loop said this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What was found beside the event loop: the log's end, and nothing before it that concerns this node."""

    trust: int
    """As it was known when the look began."""
    as_of_s: float
    gaps: int
    """How often such a look came when the lease had run out."""


class Lease:
    """The lease of one registration. `run` renews it."""

    def __init__(
        self,
        log: LogReader,
        registration: Registration,
        *,
        settings: ControllerSettings,
        complete_registration: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = boottime_s,
    ) -> None:
        """Take the parts. `complete_registration` tells what the registration could not; called with each renewal, it mostly does nothing."""
        self._log = log
        self._registration = registration
        self._settings = settings
        self._lease_s = settings.lease_ms / 1_000
        self._trusted_s = settings.entry_min_age_ms / 2_000
        self._complete_registration = complete_registration
        self._clock = clock
        self._until_s = 0.0
        self._cut_off_until_s = 0.0
        self._tail_known_s = float("-inf")
        """When the newest read began that found the log's end."""
        self._trust = 0
        """Grows whenever this node is found not to be trusted: what was seen before counts no more."""
        self._known: Known | None = None
        """Replaced as a whole, by the event loop."""
        self._look = _Look(trust=-1, as_of_s=float("-inf"), gaps=0)
        """Replaced as a whole, by the one who looks beside it."""
        self._gaps_told = 0
        self._wanted = asyncio.Event()
        self._held = asyncio.Event()
        """Set when it was held for the first time."""
        self._lapse_told = True
        self.lapses = 0
        """How often it ran out, or was lost, before it was taken anew."""

    @property
    def serves(self) -> bool:
        """See Serving."""
        now_s = self._clock()
        return now_s < self._until_s or now_s < self._extended_until_s

    @property
    def takes_records(self) -> bool:
        """See Serving."""
        return self.serves or self._clock() < self._cut_off_until_s

    @property
    def remaining_s(self) -> float:
        """How long it holds without another renewal; 0 where it does not."""
        return max(max(self._until_s, self._extended_until_s) - self._clock(), 0.0)

    @property
    def _extended_until_s(self) -> float:
        """By the newest look from beside the event loop, if that counts."""
        look = self._look
        return look.as_of_s + self._lease_s if look.trust == self._trust else 0.0

    @property
    def state(self) -> LeaseState:
        if self.serves:
            return LeaseState.HELD
        return LeaseState.CUT_OFF if self.takes_records else LeaseState.LAPSED

    def metadata_changed(self) -> None:
        """Something was applied: a suspicion ends the lease at once, and one that was withdrawn lets it be taken."""
        if not self._is_trusted:
            self._lose()
        elif not self.serves:
            self._wanted.set()

    def _lose(self) -> None:
        self._trust += 1
        self._known = None
        self._until_s = self._cut_off_until_s = 0.0

    # ---- beside the event loop

    def beat(self) -> None:
        """The event loop moves, and says what it knows."""
        if not self._until_s or not self._is_trusted:
            self._known = None
            return
        self._known = Known(
            trust=self._trust,
            next_index=self._log.next_index,
            tail_known_s=self._tail_known_s,
            as_of_s=self._until_s - self._lease_s,
            moved_s=self._clock(),
        )

    @property
    def known(self) -> Known | None:
        """What the event loop said last; None where there is no lease that could be extended. May be asked by another thread."""
        return self._known

    def extend(self, known: Known, as_of_s: float) -> None:
        """The log was read to its end, beginning as of then, by somebody who started from what was known, and found nothing that
        concerns this node. May be called by one other thread."""
        gap = known.trust == self._trust and not self.serves
        self._look = _Look(trust=known.trust, as_of_s=as_of_s, gaps=self._look.gaps + gap)

    def _tell_gaps(self) -> None:
        """What ran out, and was taken anew beside the event loop before that noticed, is a lapse as well."""
        gaps = self._look.gaps
        if gaps != self._gaps_told and not self._lapse_told:
            self.lapses += 1
            _log.warning("this node was without a lease for a moment, since its event loop, and the bucket, were slow")
        self._gaps_told = gaps

    # ---- on it

    @property
    def _is_trusted(self) -> bool:
        node = self._log.image.node(self._registration.node_id)
        return node is not None and node.node_epoch == self._registration.node_epoch and node.status is NodeStatus.ALIVE

    async def wait_held(self, timeout_s: float) -> None:
        """Return when it is held for the first time, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._held.wait()
        except TimeoutError:
            return

    async def run(self) -> None:
        """Take it, and take it anew, until cancelled."""
        interval_s = self._lease_s / _RENEWALS_PER_LEASE
        while True:
            self._wanted.clear()
            self._tell_gaps()
            as_of_s = self._clock()
            try:
                as_of_s = await self._renew(as_of_s)
                async with asyncio.timeout(interval_s):
                    await self._complete_registration()
            except NodeFenced:
                self._lose()  # the metadata, when it is read, says who is this node by now
            except (
                MetadataUnavailable,
                ControllerError,
                TimeoutError,
            ) as error:  # an entry that cannot be read is no reason to give up
                self._tell_lapse(f"the metadata log cannot be read in time ({str(error) or type(error).__name__})")
            pause_s = max(as_of_s + interval_s - self._clock(), _LEAST_PAUSE_S)
            if not self.serves:
                self._tell_lapse("this node is suspected, or the bucket is slow")
                pause_s = self._settings.retry_backoff_ms / 1_000
            await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _renew(self, began_s: float) -> float:
        """Take it as of a moment that is now, or was just now; returns that. Raises MetadataUnavailable, TimeoutError."""
        reading = asyncio.ensure_future(self._read_to_tail(began_s))
        try:
            # Whether the bucket answers is to be known before the lease that is held runs out.
            done, _ = await asyncio.wait((reading,), timeout=self._lease_s / 2)
            if not done:
                self._note_silence(began_s, self._lease_s / 2)
                async with asyncio.timeout(self._lease_s / 2):  # what takes longer would be no good any more
                    await asyncio.shield(reading)
            as_of_s = reading.result()
        except MetadataUnavailable:
            self._note_silence(began_s, self._lease_s)
            raise
        except TimeoutError:
            self._note_silence(began_s, self._lease_s)
            raise
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self._cut_off_until_s = 0.0
        if not self._is_trusted:
            self._lose()
            return as_of_s
        if self._clock() >= as_of_s + self._lease_s:
            return as_of_s
        if not self.serves and not self._lapse_told:
            self._tell_lapse("this process stood still, or the bucket is slow")
        self._until_s = max(self._until_s, as_of_s + self._lease_s)
        self.beat()  # the event loop may be late from the next moment on
        self._held.set()
        if self._lapse_told:
            self._lapse_told = False
            _log.info("this node holds a lease, and serves: node %(node)d", {"node": self._registration.node_id})
        return as_of_s

    def _note_silence(self, began_s: float, planned_s: float) -> None:
        """The bucket was asked, and has not answered: unless it was this process that stood still meanwhile, records are taken on."""
        now_s = self._clock()
        if now_s - began_s <= planned_s + _STANDSTILL_S and self._is_trusted:
            self._cut_off_until_s = now_s + 2 * self._lease_s

    async def _read_to_tail(self, began_s: float) -> float:
        """Read; returns as of when this node has all that was committed."""
        log = self._log
        if log.is_leader:
            if began_s - log.office_seen_s < self._lease_s / _RENEWALS_PER_LEASE:
                self._tail_known_s = max(self._tail_known_s, log.office_seen_s)
                return log.office_seen_s
            if await log.is_in_office():
                self._tail_known_s = began_s
                return began_s
        if began_s - self._tail_known_s > self._trusted_s:
            await log.refresh()
        else:
            index = log.next_index
            while (entry := await log.read_entry(index)) is not None:
                await log.receive((entry,))
                index = max(index + 1, log.next_index)
            if log.next_index < index:  # what was received could not be applied: it had stepped into office meanwhile
                await log.refresh()
        self._tail_known_s = began_s
        return began_s

    def _tell_lapse(self, why: str) -> None:
        if self._lapse_told or self.serves:
            return
        self._lapse_told = True
        self.lapses += 1
        takes = "takes records only" if self.takes_records else "answers for no partition"
        _log.warning("this node has no lease: it %(takes)s, since %(why)s", {"takes": takes, "why": why})
