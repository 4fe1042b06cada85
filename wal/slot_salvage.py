"""What a damaged WAL in a bucket still holds: the counterpart of `wal.salvage` for slots. And how such a log is closed for good.

Always true:
- What counts is what recovery lets count: slots from the trim on, contiguous in each epoch up to its fence. A slot that is there and cannot be read
  counts, since its PUT may have been acknowledged; one that is not there counts only if something says that it was filled.
- The trim is the furthest that any intact slot tells: what is below it was in objects before anybody wrote so.
- `close_off` fences in spite of damage: every slot that the writer might still fill, up to one that it has not begun, is taken. So nothing can be
  acknowledged there any more when the log is read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator

from wal.errors import WalDamaged
from wal.frame import FRAME_ALIGNMENT_BYTES, crc_seed
from wal.header import WalHeader
from wal.log import RecoveredRun
from wal.objects import WalObjects
from wal.recovery import RUN_BYTES, FrameScan, Hole
from wal.salvage import Finding, LostFrame, LostStretch
from wal.slot import (
    FIRST_POSITION,
    SLOT_HEADER_SIZE_BYTES,
    Position,
    SlotHeader,
    SlotKind,
    log_prefix,
    pack_slot_header,
    parse_slot_key,
    read_slot_header,
    slot_key,
)
from wal.slot_log import Patience

__all__ = ["SlotAside", "close_off", "in_batch", "salvage_slots", "set_slots_aside", "slot_asides"]

_READS = 16
"""Slots that are asked for at a time."""
_DELETE_BATCH = 1000


class _Slots:
    """The slots of a WAL as they were listed, with the headers that are intact."""

    def __init__(self, objects: WalObjects, wal_id: str, patience: Patience) -> None:
        self._objects = objects
        self._wal_id = wal_id
        self._patience = patience
        self.listed: set[Position] = set()
        self.headers: dict[Position, SlotHeader] = {}

    async def look(self) -> None:
        """List, and read the headers."""

        async def attempt() -> set[Position]:
            return {
                position
                async for key, _ in self._objects.list(log_prefix(self._wal_id))
                if (position := parse_slot_key(self._wal_id, key)) is not None
            }

        self.listed = await self._patience.persist(attempt)
        ordered = sorted(self.listed)
        for begin in range(0, len(ordered), _READS):
            await asyncio.gather(*(self._read_header(position) for position in ordered[begin : begin + _READS]))

    async def _read_header(self, position: Position) -> None:
        key = slot_key(self._wal_id, position)
        data = await self._patience.persist(lambda: self._objects.read_head(key, SLOT_HEADER_SIZE_BYTES))
        if data is None:
            self.listed.discard(position)
            return
        try:
            self.headers[position] = read_slot_header(data, key)
        except WalDamaged:
            self.headers.pop(position, None)

    async def read(self, position: Position) -> bytes:
        """A whole slot; empty where it is gone."""
        key = slot_key(self._wal_id, position)
        return await self._patience.persist(lambda: self._objects.read(key)) or b""

    @property
    def newest_epoch(self) -> int:
        return max((position.wal_epoch for position in self.listed), default=0)

    def numbers(self, epoch: int) -> list[int]:
        return sorted(position.number for position in self.listed if position.wal_epoch == epoch)

    def confirmed_number(self, epoch: int) -> int:
        """Up to which slot an epoch is known to have been filled."""
        return max(
            (header.confirmed_number for position, header in self.headers.items() if position.wal_epoch == epoch),
            default=0,
        )

    def is_batch(self, position: Position) -> bool:
        header = self.headers.get(position)
        return header is not None and header.kind is SlotKind.BATCH

    @property
    def trim(self) -> tuple[Position, int]:
        """Where the log begins: slot and offset."""
        return max(((header.trim, header.trim_offset) for header in self.headers.values()), default=(FIRST_POSITION, 0))


async def close_off(objects: WalObjects, wal_id: str, writer_id: str, rng: random.Random) -> None:
    """See to it that nothing is acknowledged in a damaged log any more."""
    patience = Patience(rng)
    slots = _Slots(objects, wal_id, patience)
    while True:
        await slots.look()
        epoch = slots.newest_epoch
        numbers = slots.numbers(epoch)
        filled = max(slots.confirmed_number(epoch), numbers[0] - 1 if numbers else 0)
        last = max(numbers[-1] if numbers else 0, filled)
        free = [number for number in range(filled + 1, last + 2) if Position(epoch, number) not in slots.listed]
        for number in free:
            position = Position(epoch, number)
            fence = SlotHeader(kind=SlotKind.FENCE, wal_id=wal_id, writer_id=writer_id, position=position)
            key, packed = slot_key(wal_id, position), [pack_slot_header(fence)]
            await patience.persist(lambda key=key, packed=packed: objects.create(key, packed))  # type: ignore[misc]
        before = slots.listed | {Position(epoch, number) for number in free}
        await slots.look()
        # What was filled meanwhile lies behind a fence. Unless another epoch was begun, by somebody who recovered it all.
        if slots.newest_epoch == epoch and (slots.listed <= before or Position(epoch, last + 1) in slots.listed):
            return


async def salvage_slots(objects: WalObjects, wal_id: str, rng: random.Random) -> AsyncGenerator[Finding, None]:
    """Everything that a log in a bucket still holds, in log order. A run is valid until the next finding is asked for.

    Raises:
        WalUnsupportedFormat: a newer version wrote it.
        WalUnavailable: the store refuses us.
    """
    slots = _Slots(objects, wal_id, Patience(rng))
    await slots.look()
    trim, offset = slots.trim
    for epoch in range(trim.wal_epoch, slots.newest_epoch + 1):
        number = trim.number if epoch == trim.wal_epoch else 1
        confirmed = slots.confirmed_number(epoch)
        last = max([confirmed, *slots.numbers(epoch)])
        while number <= last:
            position = Position(epoch, number)
            if slots.is_batch(position):
                header = slots.headers[position]
                if header.base_offset > offset:
                    yield LostStretch(offset, header.base_offset)
                data = await slots.read(position)
                for finding in in_batch(
                    header, memoryview(data)[SLOT_HEADER_SIZE_BYTES:], max(offset, header.base_offset)
                ):
                    yield finding
                offset = header.end_offset
                number += 1
                continue
            if number > confirmed and (position not in slots.listed or position in slots.headers):
                break  # the epoch ends here: nothing was written, or a fence
            following = _next_batch(slots, epoch, number, last, confirmed)
            yield LostStretch(offset, offset + 1 if following is None else max(following.base_offset, offset + 1))
            if following is None:
                break
            offset, number = following.base_offset, following.position.number


def _next_batch(slots: _Slots, epoch: int, number: int, last: int, confirmed: int) -> SlotHeader | None:
    """The next intact batch behind a lost slot that counts."""
    while (number := number + 1) <= last:
        position = Position(epoch, number)
        if slots.is_batch(position):
            return slots.headers[position]
        if number > confirmed and (position not in slots.listed or position in slots.headers):
            return None
    return None


def in_batch(header: SlotHeader, frames: memoryview, start_offset: int) -> Iterator[Finding]:
    """The frames of one batch, and what of it is damaged."""
    base_offset, end_offset = header.base_offset, header.end_offset
    scan = FrameScan(
        WalHeader(
            wal_id=header.wal_id,
            cluster_id="",
            node_id=0,
            capacity_bytes=1 << 62,
            wal_epoch=header.position.wal_epoch,
            epoch_start_offset=base_offset,
            trim_offset=start_offset,
            confirmed_offset=end_offset,
            closed=True,
        ),
        crc_seed(header.wal_id),
    )
    while scan.next_offset < end_offset:
        found = scan.run(frames, base_offset, RUN_BYTES)
        if isinstance(found, RecoveredRun):
            yield found
            continue
        at = scan.next_offset
        lost = scan.skip_frame(frames, base_offset)
        if lost is not None:
            yield LostFrame.of(lost)
        elif scan.resume(Hole(offset=at, reason=""), frames, base_offset, at + FRAME_ALIGNMENT_BYTES):
            yield LostStretch(at, scan.next_offset)
        else:
            yield LostStretch(at, end_offset)
            return


# ---- set aside: a key that says so, and another identity for the node -----------------------------------------------------


def _aside_prefix(node_id: int) -> str:
    return f"wal/damaged/{node_id}/"


async def set_slots_aside(
    objects: WalObjects, identity_key: str, *, node_id: int, wal_id: str, writer_id: str, rng: random.Random
) -> None:
    """Close a damaged log, remember that it is there, and let the node begin another one."""
    patience = Patience(rng)
    await close_off(objects, wal_id, writer_id, rng)
    key = _aside_prefix(node_id) + wal_id
    await patience.persist(lambda: objects.create(key, [wal_id.encode()]))
    await patience.persist(lambda: objects.delete([identity_key]))


async def slot_asides(objects: WalObjects, node_id: int, rng: random.Random) -> list[SlotAside]:
    """The damaged logs of a node that were set aside."""
    prefix = _aside_prefix(node_id)

    async def attempt() -> list[SlotAside]:
        return [
            SlotAside(objects, node_id=node_id, wal_id=key.removeprefix(prefix), rng=rng)
            async for key, _ in objects.list(prefix)
        ]

    return await Patience(rng).persist(attempt)


class SlotAside:
    """A damaged log in a bucket (`AsideWal`)."""

    def __init__(self, objects: WalObjects, *, node_id: int, wal_id: str, rng: random.Random) -> None:
        self._objects = objects
        self._node_id = node_id
        self._rng = rng
        self.wal_id = wal_id
        self.place = f"{objects.uri}, {log_prefix(wal_id)}"

    def findings(self) -> AsyncGenerator[Finding, None]:
        """See `AsideWal`."""
        return salvage_slots(self._objects, self.wal_id, self._rng)

    async def remove(self) -> None:
        """See `AsideWal`. The key that says so goes last."""
        patience = Patience(self._rng)

        async def listed() -> list[str]:
            return [key async for key, _ in self._objects.list(log_prefix(self.wal_id))]

        keys = await patience.persist(listed)
        for begin in range(0, len(keys), _DELETE_BATCH):
            part = keys[begin : begin + _DELETE_BATCH]
            await patience.persist(lambda part=part: self._objects.delete(part))  # type: ignore[misc]
        await patience.persist(lambda: self._objects.delete([_aside_prefix(self._node_id) + self.wal_id]))
