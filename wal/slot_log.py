"""The slots of a WAL in a bucket: who may write where, where the log ends, and how a writer is stopped for good.

Theory of operation. A writer fills the slots 1, 2, 3 … of its epoch, several at a time, each with one create-if-absent. A slot
counts once all before it are filled. Who wants to take over occupies the first slot that is still free with a fence: from then on
nothing of the old writer counts, however late its writes arrive, and whoever made the fence is the writer of the next epoch. So the
fence is the claim, there is no other, and of two that try, one wins.

The writer deletes slots that were trimmed. So a slot that is free to a fencer may be one that was filled and is gone, and a
fence there stops nobody. Two rules make that visible:
- The writer deletes a slot only once a *durable* batch says that it is trimmed, and never the batch that says so last.
- A fencer lists the log again after its fence was created. If the highest batch says that the fence's slot is trimmed, or if there is a
  later epoch, the fence is litter, and it looks again. Otherwise the slot had never been filled, and now never will be.

Always true:
- A fence that ended its epoch is never deleted, as long as the WAL exists: its writer may wake up whenever it likes.
- What lies behind the end of an epoch (writes that were under way in parallel) or before the trim (duplicates that arrived
  after the deletion) counts for nothing, and is deleted some time.
- No call gives up while the store is away; callers bound their patience. A lost reply is settled by trying again: once the slot
  is occupied, reading it tells by whom.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

from wal.errors import WalDamaged, WalFenced, WalFencedByRecoverer, WalUnavailable
from wal.objects import Buffer, ObjectsRefused, ObjectsUnavailable, WalObjects
from wal.slot import (
    FIRST_POSITION,
    SLOT_HEADER_SIZE_BYTES,
    Position,
    SlotHeader,
    SlotKind,
    is_recoverers,
    log_prefix,
    pack_slot_header,
    parse_slot_key,
    read_slot_header,
    slot_key,
)

__all__ = ["End", "Patience", "SlotLog"]

_log = logging.getLogger("tidelog.wal")

T = TypeVar("T")

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 2.0
"""Back-off doubles from the first to the largest delay, with jitter of its own size. Stores retry on their own before."""

AHEAD_SLOTS = 8
"""How far ahead of a living writer a fence is set that it cannot outrun; doubles with each try."""

READ_ATTEMPTS = 3
"""A header whose CRC does not hold may have been damaged on its way."""

READ_AHEAD_BYTES = 16 << 20
READ_AHEAD_SLOTS = 16
"""Slots that recovery asks for at a time, by bytes and by number."""

DELETE_BATCH = 1000
"""What S3 deletes in one request."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a listing found."""

    behind: Position
    by_epoch: Mapping[int, Sequence[tuple[int, int]]]
    """Number and size of the slots behind that position, in order."""

    @property
    def newest_epoch(self) -> int:
        return max(self.by_epoch, default=0)


class Patience:
    """Tries again while the store does not answer."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.bears_refusal = False
        """Whether a refusal is waited out (credentials are being renewed) or raised (they are wrong)."""

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that gets an answer.

        Raises:
            WalUnavailable: the store refuses us, and that is not waited out.
        """
        delay_s = FIRST_DELAY_S
        warned = False
        while True:
            try:
                return await attempt()
            except ObjectsRefused as error:
                if not self.bears_refusal:
                    raise WalUnavailable(
                        f"the WAL's bucket refuses this node ({error}): allow it to put, get, list and delete below the prefix "
                        "in wal.uri"
                    ) from error
                failure: Exception = error
            except ObjectsUnavailable as error:
                failure = error
            if not warned and delay_s >= MAX_DELAY_S:
                warned = True
                _log.warning(
                    "the WAL's bucket does not answer: trying again until it does (%(error)s)", {"error": failure}
                )
            await asyncio.sleep(delay_s * (0.5 + self._rng.random()))
            delay_s = min(2 * delay_s, MAX_DELAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where an epoch ends, as far as it was looked at."""

    wal_epoch: int
    number: int
    """The last slot that counts; 0 where there is none."""
    offset: int
    """Exclusive end of the log."""
    trim_offset: int
    trim: Position
    fence: SlotHeader | None
    """What ends the epoch for good, where something does."""


class SlotLog:
    """Reads, occupies, fences and deletes slots of one WAL."""

    def __init__(self, *, objects: WalObjects, wal_id: str, rng: random.Random, hedge_s: float) -> None:
        """`hedge_s`: a create that takes longer gets a second one beside it; 0: never."""
        self._objects = objects
        self._wal_id = wal_id
        self._hedge_s = hedge_s
        self.patience = Patience(rng)
        self.hedges = 0
        """Creates that were done twice because the first took long."""

    # -- occupying

    def key(self, position: Position) -> str:
        """Where a slot lies."""
        return slot_key(self._wal_id, position)

    async def occupy(self, header: SlotHeader, frames: Sequence[Buffer] = ()) -> bool:
        """Fill a slot, until it is known who did; False where it was somebody else.

        When this returns, also by an exception, nothing reads `frames` any more.
        """
        key = self.key(header.position)
        packed = pack_slot_header(header)
        parts = [packed, *frames]

        async def attempt() -> bool:
            if await self._create_hedged(key, parts):
                return True
            found = await self._objects.read_head(key, SLOT_HEADER_SIZE_BYTES)
            if found is None:
                # Deleted in between: by a successor that recovered it, or it was another create that came to nothing.
                raise ObjectsUnavailable(f"{key} was there, and is not")
            return found == packed

        return await self.patience.persist(attempt)

    async def _create_hedged(self, key: str, parts: Sequence[Buffer]) -> bool:
        """One create, and a second one beside it where the first takes long. The first answer counts."""
        attempts = {asyncio.ensure_future(self._objects.create(key, parts))}
        may_hedge = self._hedge_s > 0
        try:
            while True:
                done, _ = await asyncio.wait(
                    attempts, timeout=self._hedge_s if may_hedge else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    may_hedge = False
                    self.hedges += 1
                    attempts.add(asyncio.ensure_future(self._objects.create(key, parts)))
                    continue
                for task in done:
                    if task.exception() is None:
                        return task.result()
                attempts -= done
                if not attempts:
                    return done.pop().result()  # raises
        finally:
            for task in attempts:
                task.cancel()
            # The other one may still be sending the caller's memory.
            await asyncio.gather(*attempts, return_exceptions=True)

    # -- looking

    async def newest(self) -> End:
        """Where the newest epoch ends by now. Changes nothing; a living writer goes on meanwhile."""
        while True:
            survey = await self._survey(Position(0, 0))
            epoch = survey.newest_epoch
            end = await self._end_of(epoch, survey)
            if end is None:
                continue
            if end.fence is None:
                return end
            if await self._ends_the_log(end.fence):
                return replace(end, wal_epoch=epoch + 1, number=0, fence=None)

    async def _survey(self, behind: Position) -> _Survey:
        prefix = log_prefix(self._wal_id)
        after = slot_key(self._wal_id, behind)

        async def attempt() -> _Survey:
            found: dict[int, list[tuple[int, int]]] = {}
            async for key, size_bytes in self._objects.list(prefix, start_after=after):
                position = parse_slot_key(self._wal_id, key)
                if position is not None:
                    found.setdefault(position.wal_epoch, []).append((position.number, size_bytes))
            return _Survey(behind, found)

        return await self.patience.persist(attempt)

    async def _end_of(self, epoch: int, survey: _Survey, *, inherits: bool = True) -> End | None:
        """Follow an epoch from what its highest batch confirms, as far as it was listed.

        The trim is what the last batch that counts says, never a later one that does not count: that may be deleted, and what it
        allowed to delete would be missed. None where things changed while we looked.
        """
        listed = survey.by_epoch.get(epoch, ())
        number = 0
        for listed_number, _ in reversed(listed):
            header = await self._header(Position(epoch, listed_number))
            if header is None:
                return None
            if header.kind is SlotKind.BATCH:
                number = header.confirmed_number
                break
        last = fence = None
        while fence is None and listed and number < listed[-1][0]:
            header = await self._header(Position(epoch, number + 1))
            if header is None:
                break
            if header.kind is SlotKind.FENCE:
                fence = header
            else:
                last, number = header, number + 1
        if number == 0:
            return await self._end_of_empty(epoch, survey, fence, inherits=inherits)
        if last is None:
            last = await self._header(Position(epoch, number))
            if last is None:
                if await self._survey(survey.behind) != survey:
                    return None
                raise self._missing(Position(epoch, number))
        return End(
            wal_epoch=epoch,
            number=number,
            offset=last.end_offset,
            trim_offset=last.trim_offset,
            trim=last.trim,
            fence=fence,
        )

    async def _end_of_empty(
        self, epoch: int, survey: _Survey, fence: SlotHeader | None, *, inherits: bool
    ) -> End | None:
        """The end of an epoch in which nothing counts: what the epoch before held last is still there, or its fence tells."""
        nothing = End(wal_epoch=epoch, number=0, offset=0, trim_offset=0, trim=FIRST_POSITION, fence=fence)
        if fence is not None:
            return replace(nothing, offset=fence.end_offset, trim_offset=fence.trim_offset, trim=fence.trim)
        if epoch == 0 or not inherits:
            return nothing
        before = await self._end_of(epoch - 1, await self._survey(Position(epoch - 1, 0)), inherits=False)
        if before is None:
            return None
        if before.fence is None:
            if await self._survey(survey.behind) != survey:
                return None  # the epoch has begun since, and the one before it is being deleted
            raise WalDamaged(
                f"epoch {epoch} of WAL {self._wal_id} was begun, but the fence that began it is missing: objects in "
                f"{self._objects.uri} were deleted by hand or by a lifecycle rule; restore them, or abandon this WAL"
            )
        return replace(before, wal_epoch=epoch, number=0, fence=None)

    async def is_recoverers(self, position: Position) -> bool:
        """Whether a slot is the fence of somebody who only reads."""
        header = await self._header(position)
        return header is not None and is_recoverers(header)

    async def _header(self, position: Position) -> SlotHeader | None:
        key = self.key(position)
        for attempts_left in reversed(range(READ_ATTEMPTS)):
            data = await self.patience.persist(lambda: self._objects.read_head(key, SLOT_HEADER_SIZE_BYTES))
            if data is None:
                return None
            try:
                return read_slot_header(data, key)
            except WalDamaged:
                if not attempts_left:
                    raise
        raise AssertionError("unreachable")

    # -- fencing

    async def fence(self, epoch: int, writer_id: str) -> End:
        """End an epoch, and become the writer of the next one. What this returns is final.

        Raises:
            WalFenced: somebody else did, since the epoch was looked up; WalFencedByRecoverer where that one only reads.
            WalDamaged: slots that were durable are missing.
        """
        taken = 0
        seen = 0
        while True:
            survey = await self._survey(Position(epoch, seen))
            if survey.newest_epoch > epoch:
                listed = survey.by_epoch.get(epoch)
                raise self._superseded(await self._header(Position(epoch, listed[-1][0])) if listed else None)
            end = await self._end_of(epoch, survey)
            if end is None:
                continue
            seen = max(end.number - 1, 0)  # a list from here on is short, and has the highest batch
            if end.fence is None:
                fence = SlotHeader(
                    kind=SlotKind.FENCE,
                    wal_id=self._wal_id,
                    writer_id=writer_id,
                    position=Position(epoch, end.number + 1),
                    base_offset=end.offset,
                    end_offset=end.offset,
                    confirmed_number=end.number,
                    confirmed_offset=end.offset,
                    trim_offset=end.trim_offset,
                    trim=end.trim,
                )
                if not await self.occupy(fence):
                    # A living writer was faster. After a while set the fence well ahead of it, then close up to that.
                    taken += 1
                    if taken > 1:
                        ahead = replace(fence, position=Position(epoch, end.number + AHEAD_SLOTS * 2**taken))
                        await self.occupy(ahead)
                    continue
                end = replace(end, fence=fence)
            assert end.fence is not None
            if not await self._ends_the_log(end.fence):
                continue
            if end.fence.writer_id != writer_id:
                raise self._superseded(end.fence)
            return end

    async def _ends_the_log(self, fence: SlotHeader) -> bool:
        """Whether a fence is in a slot that was never filled before. Where that was trimmed, by its writer or a later one, it is litter.

        Raises:
            WalDamaged: the slot was durable, and not trimmed.
        """
        at = fence.position
        while True:
            survey = await self._survey(at)
            if survey.newest_epoch > at.wal_epoch:
                return False
            for number, _ in reversed(survey.by_epoch.get(at.wal_epoch, ())):
                header = await self._header(Position(at.wal_epoch, number))
                if header is None:
                    break  # trimmed since
                if header.kind is SlotKind.BATCH:
                    if header.trim > at:
                        return False
                    if header.confirmed_number >= at.number:
                        raise self._missing(at)
                    return True
            else:
                return True

    def _superseded(self, fence: SlotHeader | None) -> WalFenced:
        if fence is not None and is_recoverers(fence):
            return WalFencedByRecoverer(
                f"WAL {self._wal_id} was fenced while it was opened: this node was taken for dead, and another one recovers it; restart "
                "this node"
            )
        return WalFenced(
            f"another process opened WAL {self._wal_id} at the same time, and was faster: if two processes run as this node, stop "
            "one of them; then restart this one"
        )

    def _missing(self, position: Position) -> WalDamaged:
        return WalDamaged(
            f"acknowledged data is missing: {self.key(position)} in {self._objects.uri} was durable and is not there. Look for "
            "whoever deletes there, by hand or by a lifecycle rule; restore the object, or abandon this WAL and accept the loss"
        )

    # -- recovery

    async def batches(self, end: End) -> AsyncGenerator[tuple[SlotHeader, bytes], None]:
        """The batches from the trim to a fence of ours, each with its whole object. To be closed.

        Raises:
            WalDamaged: one of them is missing or damaged.
            WalFenced: another process took over meanwhile, and what we look for is its to delete.
        """
        survey = await self._survey(Position(end.trim.wal_epoch, 0))
        offset = None
        for epoch in range(end.trim.wal_epoch, end.wal_epoch + 1):
            first = end.trim.number if epoch == end.trim.wal_epoch else 1
            listed = survey.by_epoch.get(epoch, ())
            if len(listed) == 1 and listed[0][0] == first:
                continue  # where one object is left of an epoch, it is the fence
            writer_id = None
            async with aclosing(self._contiguous(epoch, first, listed)) as slots:
                async for header, data in slots:
                    if header is None:
                        raise await self._gone(end, Position(epoch, first))
                    if header.kind is SlotKind.FENCE:
                        break
                    if not (
                        len(data) == SLOT_HEADER_SIZE_BYTES + header.end_offset - header.base_offset
                        and writer_id in (None, header.writer_id)
                        and (header.base_offset <= end.trim_offset if offset is None else header.base_offset == offset)
                    ):
                        raise WalDamaged(
                            f"{self.key(header.position)} does not continue the slot before it, or is cut short: restore the "
                            "object, or abandon this WAL"
                        )
                    writer_id, offset = header.writer_id, header.end_offset
                    first = header.position.number + 1
                    yield header, data
        if end.offset != (end.trim_offset if offset is None else offset):
            raise WalDamaged(
                f"the slots of WAL {self._wal_id} end at {offset}, and should at {end.offset}: objects in {self._objects.uri} were "
                "deleted by hand or by a lifecycle rule; restore them, or abandon this WAL"
            )

    async def _contiguous(
        self, epoch: int, first: int, listed: Sequence[tuple[int, int]]
    ) -> AsyncGenerator[tuple[SlotHeader | None, bytes], None]:
        """Slots from `first` on, read ahead as they were listed, and a None where the next is missing."""
        sizes = dict(listed)
        ahead: deque[tuple[int, int, asyncio.Future[tuple[SlotHeader | None, bytes]]]] = deque()
        ahead_bytes = 0
        number = first
        try:
            while True:
                while not ahead or (
                    number in sizes
                    and len(ahead) < READ_AHEAD_SLOTS
                    and ahead_bytes + sizes[number] <= READ_AHEAD_BYTES
                ):
                    size = sizes.get(number, 0)
                    ahead.append((number, size, asyncio.ensure_future(self._whole(Position(epoch, number)))))
                    ahead_bytes += size
                    number += 1
                _, size, task = ahead[0]
                found = await task
                ahead.popleft()
                ahead_bytes -= size
                yield found
                if found[0] is None:
                    return
        finally:
            for _, _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, _, task in ahead), return_exceptions=True)

    async def _whole(self, position: Position) -> tuple[SlotHeader | None, bytes]:
        key = self.key(position)
        data = await self.patience.persist(lambda: self._objects.read(key))
        return (None, b"") if data is None else (read_slot_header(data, key), data)

    async def _gone(self, end: End, position: Position) -> Exception:
        """Why a slot that we need is not there."""
        survey = await self._survey(Position(end.wal_epoch + 1, 0))
        return self._superseded(None) if survey.by_epoch else self._missing(position)

    # -- deleting

    async def delete(self, positions: Sequence[Position]) -> None:
        """Delete slots; the caller knows that nobody needs them."""
        for begin in range(0, len(positions), DELETE_BATCH):
            keys = [self.key(position) for position in positions[begin : begin + DELETE_BATCH]]
            await self.patience.persist(lambda keys=keys: self._objects.delete(keys))  # type: ignore[misc]

    async def delete_leftovers(self, end: End, needed: Collection[Position]) -> int:
        """Delete what earlier epochs left that counts for nothing; returns how much it was.

        `needed` are the batches that are not trimmed. Of epochs that we did not end ourselves, what is no batch stays.
        """
        assert end.fence is not None
        survey = await self._survey(Position(0, 0))
        found: list[Position] = []
        for epoch, listed in survey.by_epoch.items():
            if epoch > end.wal_epoch or len(listed) == 1:
                continue  # where one object is left of an epoch, it is the fence
            for number, _ in listed:
                position = Position(epoch, number)
                if position in needed or position == end.fence.position:
                    continue
                if epoch < end.wal_epoch:
                    header = await self._header(position)
                    if header is None or header.kind is SlotKind.FENCE:
                        continue
                found.append(position)
        await self.delete(found)
        return len(found)
