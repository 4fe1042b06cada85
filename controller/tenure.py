"""Holding the office: taking it, writing entries while it is held, and noticing that it is not any more.

Always true:
- Whoever holds the office as far as it knows has a *claim* on the leader object, and the *ahead* state: the image, or the image plus the entry
  in flight. Without a claim nothing is written.
- An entry is applied here when it counts: it lies in its slot, and the leader object named this claim after that.
- Nobody takes office over a log that ends before what the last one in office knew of: nothing is written where entries are missing.
- Only the driver's one task calls what writes (`driver.py`). Anybody may ask whether the office is held.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from controller.changes import Changes
from controller.config import ControllerSettings
from controller.entry import Entry, EntryHeader, encode_entry
from controller.log import Claim, LeaderObject, LogEndsEarly, MetadataLog
from controller.recent import RecentEntries
from controller.records import LeaderChanged, Record, encode_records
from controller.replica import Replica
from controller.state import FormatCluster, State

__all__ = ["Tenure"]

_PAUSES: Final = (0.5, 4.0)
"""In `retry_backoff_ms`: how long another controller is left alone before the office is taken from it."""


class Tenure:
    """Of one controller."""

    def __init__(
        self,
        log: MetadataLog,
        replica: Replica,
        changes: Changes,
        *,
        settings: ControllerSettings,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._log = log
        self._replica = replica
        self._changes = changes
        self._settings = settings
        self._rng = rng
        self._clock = clock
        self.cluster_id = ""
        """Of the bucket, known before the office is taken."""
        self.claim: Claim | None = None
        """Present while this controller holds the office, as far as it knows."""
        self.ahead: State | None = None
        """What commands are decided on; present with the claim, but for the moment in which it is copied."""
        self.is_shared = False
        """Others follow: they are handed out what is written."""
        self.recent = RecentEntries()
        """What they are handed out."""
        self.seen_s = float("-inf")
        """When the newest look at the leader object began that found this node in office, by the clock of leases."""

    @property
    def is_held(self) -> bool:
        """As far as this controller knows."""
        return self.claim is not None

    async def still_holds(self, claim: Claim) -> bool:
        """Whether the leader object names this claim still, as a look at it says. Changes nothing here."""
        began_s = self._clock()
        leads = await self._log.still_leads(claim)
        if leads:
            self.seen_s = max(self.seen_s, began_s)
        return leads

    async def take(self, may_replace: Callable[[LeaderObject | None], bool] = lambda holder: True) -> None:
        """Claim the leader object, unless its holder may not be replaced, read to the tail, and say so in the log."""
        while True:
            try:
                claim = await self._log.take_office(
                    self._settings.leader_address,
                    self._replica.image.controller_epoch,
                    next_index=self._replica.next_index,
                    may_replace=may_replace,
                )
            except LogEndsEarly as early:
                await self._replica.catch_up()
                if self._replica.next_index < early.next_index:
                    raise self._log.lost_entries(self._replica.next_index, early.next_index) from None
                continue
            if claim is None:
                return
            while True:
                await self._replica.catch_up()
                image = self._replica.image
                if image.controller_epoch >= claim.controller_epoch:
                    break
                records: list[Record] = [
                    LeaderChanged(controller_epoch=claim.controller_epoch, leader=self._settings.leader_address)
                ]
                records.extend(image.state.handle(FormatCluster(cluster_id=self.cluster_id)).records)
                header = self.next_header(claim, image.state)
                if await self.append(claim, header, records, encode_records(records)):
                    self.claim = claim
                    self._changes.tell()  # others may follow; what they want decided waits for the copy
                    self.ahead = await self._replica.copied_state()
                    return
                if not await self.still_holds(claim):
                    break
            await self.pause()

    def next_header(self, claim: Claim, after: State) -> EntryHeader:
        """Of the entry that leads to a state."""
        return EntryHeader(
            index=self._replica.next_index,
            controller_epoch=claim.controller_epoch,
            nonce=self._rng.randbytes(16),
            metadata_version=after.tables.metadata_version,
        )

    async def append(self, claim: Claim, header: EntryHeader, records: Sequence[Record], body: bytes) -> bool:
        """Append an entry, and apply it if it counts. False: its slot is another's, or the office was lost meanwhile."""
        if not await self._log.append(header, body) or not await self.still_holds(claim):
            return False
        self._replica.apply(Entry(header=header, records=records, size_bytes=len(body)))
        if self.is_shared:
            self.recent.add(header.index, b"".join(encode_entry(header, body)))
            self._changes.tell()
        return True

    def step_down(self) -> None:
        """Hold it no more."""
        self.claim = None
        self.ahead = None
        self.recent.clear()
        self._changes.tell()

    async def resign(self) -> None:
        """Say in the bucket that nobody holds it, so that others need not wait, and how far the log went, so that its end is missed."""
        if self.claim is not None:
            await self._log.resign(self.claim, next_index=self._replica.next_index)

    async def pause(self) -> None:
        """Leave another controller time to get something done before the office is taken from it."""
        await asyncio.sleep(self._rng.uniform(*_PAUSES) * self._settings.retry_backoff_ms / 1_000)
