"""Slot codec: what one object of a WAL in a bucket holds, and the keys under which objects lie. Pure.

    magic 8 bytes · version u32 · kind u32 · wal_id 16 bytes · writer id 16 bytes · WAL epoch u32 · trim epoch u32 · slot u64
    base offset u64 · end offset u64 · confirmed slot u64 · confirmed offset u64 · trim offset u64 · trim slot u64
    reserved u32 · header CRC u32
    frames, as in every WAL (`wal.frame`), from base offset to end offset

Always true:
- A *batch* belongs to the writer of its epoch; a *fence* takes a slot away from that writer, and makes its own writer that
  of the next epoch. Which one a slot holds is settled by whoever creates the object first, for ever.
- `writer id` is random and made anew at each opening, and a writer fills each slot once: an object with our writer
  id is ours, whatever became of the reply. A *recoverer* makes fences only, and writes nothing in the epoch that it begins: its id begins
  with 32 bits of ones, by which the log's own node knows that it was not a second process like it that stopped it.
- `confirmed slot` and `confirmed offset`: this slot and everything before it in the epoch was durable, and may have been
  acknowledged, when the batch was composed. A later batch proves by it whether something is missing.
- `trim`: frames below the offset are given up; the slot (of that epoch) is the first that is still needed. It is at most the one
  behind `confirmed slot`, so a batch never gives up itself.
- The header has a CRC of its own, the frames have theirs. Little-endian. In every version the header has this size, and its CRC this place.
"""

from __future__ import annotations

import enum
import random
import struct
from dataclasses import dataclass
from typing import NamedTuple

from wal.checksum import crc32c
from wal.errors import WalDamaged, WalUnsupportedFormat

__all__ = [
    "FIRST_POSITION",
    "FORMAT_VERSION",
    "SLOT_HEADER_SIZE_BYTES",
    "Position",
    "SlotHeader",
    "SlotKind",
    "identity_key",
    "is_recoverers",
    "log_prefix",
    "new_recoverer_id",
    "new_writer_id",
    "pack_slot_header",
    "parse_slot_key",
    "read_slot_header",
    "slot_key",
]

FORMAT_VERSION = 1

_MAGIC = b"TIDESLOT"
_VERSIONED = struct.Struct("<8sI")
_FIXED = struct.Struct("<8sII16s16sIIQQQQQQQI")
_CRC = struct.Struct("<I")

SLOT_HEADER_SIZE_BYTES = _FIXED.size + _CRC.size
"""What lies before the frames."""

_EPOCH_DIGITS = 10
_NUMBER_DIGITS = 20


class SlotKind(enum.IntEnum):
    """What occupies a slot."""

    BATCH = 1
    FENCE = 2


_KINDS = frozenset(SlotKind)


class Position(NamedTuple):
    """A slot of the log; positions compare as they follow each other."""

    wal_epoch: int
    number: int
    """From 1."""


FIRST_POSITION = Position(0, 1)
"""Nobody writes in epoch 0: its first slot is the fence of the first writer."""

_RECOVERER = "ffffffff"
_ID_DIGITS = 32


def new_writer_id(rng: random.Random) -> str:
    """Of who writes from now on: 32 hex digits."""
    while (drawn := f"{rng.getrandbits(4 * _ID_DIGITS):0{_ID_DIGITS}x}").startswith(_RECOVERER):
        pass
    return drawn


def new_recoverer_id(rng: random.Random) -> str:
    """Of who makes fences only: 32 hex digits."""
    return _RECOVERER + new_writer_id(rng)[len(_RECOVERER) :]


def is_recoverers(header: SlotHeader) -> bool:
    """Whether a slot holds the fence of somebody who only reads."""
    return header.kind is SlotKind.FENCE and header.writer_id.startswith(_RECOVERER)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHeader:
    """What stands before the frames of a batch. A fence has identity only."""

    kind: SlotKind
    wal_id: str
    writer_id: str
    """32 hex digits, of a fence that of the next epoch's writer, or a recoverer's."""
    position: Position
    base_offset: int = 0
    end_offset: int = 0
    """Exclusive log offset of the last frame's end."""
    confirmed_number: int = 0
    confirmed_offset: int = 0
    trim_offset: int = 0
    trim: Position = FIRST_POSITION


def pack_slot_header(header: SlotHeader) -> bytes:
    """What an object begins with."""
    fixed = _FIXED.pack(
        _MAGIC,
        FORMAT_VERSION,
        header.kind,
        bytes.fromhex(header.wal_id),
        bytes.fromhex(header.writer_id),
        header.position.wal_epoch,
        header.trim.wal_epoch,
        header.position.number,
        header.base_offset,
        header.end_offset,
        header.confirmed_number,
        header.confirmed_offset,
        header.trim_offset,
        header.trim.number,
        0,
    )
    return fixed + _CRC.pack(crc32c(fixed))


def read_slot_header(data: bytes, key: str) -> SlotHeader:
    """The header that an object begins with, which must be of the slot that its key names.

    Raises:
        WalUnsupportedFormat: a newer version wrote it.
        WalDamaged: it is damaged, or of another slot.
    """
    if len(data) < SLOT_HEADER_SIZE_BYTES or data[:8] != _MAGIC:
        raise WalDamaged(f"{key} is no slot of a WAL ({len(data)} bytes): does something else write to this prefix?")
    if crc32c(data[: _FIXED.size]) != _CRC.unpack_from(data, _FIXED.size)[0]:
        raise WalDamaged(f"the header of {key} does not match its CRC: restore the object, or abandon this WAL")
    _, version = _VERSIONED.unpack_from(data)
    if version != FORMAT_VERSION:
        raise WalUnsupportedFormat(
            f"{key} has format version {version}, this program reads version {FORMAT_VERSION}: "
            "start it with the version of Tidelog that wrote it, or a newer one"
        )
    (
        _,
        _,
        kind,
        wal_id,
        writer_id,
        wal_epoch,
        trim_epoch,
        number,
        base_offset,
        end_offset,
        confirmed_number,
        confirmed_offset,
        trim_offset,
        trim_number,
        _,
    ) = _FIXED.unpack_from(data)
    if kind not in _KINDS:
        raise WalDamaged(
            f"{key} is of kind {kind}, which no version of this format has: restore the object, or abandon this WAL"
        )
    header = SlotHeader(
        kind=SlotKind(kind),
        wal_id=wal_id.hex(),
        writer_id=writer_id.hex(),
        position=Position(wal_epoch, number),
        base_offset=base_offset,
        end_offset=end_offset,
        confirmed_number=confirmed_number,
        confirmed_offset=confirmed_offset,
        trim_offset=trim_offset,
        trim=Position(trim_epoch, trim_number),
    )
    if key != slot_key(header.wal_id, header.position):
        raise WalDamaged(
            f"{key} holds {slot_key(header.wal_id, header.position)}: an object was copied or renamed by hand"
        )
    return header


def identity_key(node_id: int) -> str:
    """Where a node finds its WAL again: written once, never replaced."""
    return f"wal/node/{node_id}"


def log_prefix(wal_id: str) -> str:
    """What the keys of all slots begin with."""
    return f"wal/log/{wal_id}/"


def slot_key(wal_id: str, position: Position) -> str:
    """Key of a slot; key order is the order of positions."""
    return f"wal/log/{wal_id}/{position.wal_epoch:0{_EPOCH_DIGITS}d}/{position.number:0{_NUMBER_DIGITS}d}"


def parse_slot_key(wal_id: str, key: str) -> Position | None:
    """The slot of a listed key; None for a key that is not ours."""
    epoch, _, number = key.removeprefix(log_prefix(wal_id)).partition("/")
    if not (epoch.isascii() and epoch.isdigit() and number.isascii() and number.isdigit()):
        return None
    position = Position(int(epoch), int(number))
    return position if key == slot_key(wal_id, position) else None
