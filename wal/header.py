"""The WAL's own header: whose log this is, where it starts and what is known to be in it. Pure.

Always true:
- Two slots of one block each, written in turn: generation g goes to slot g % 2. The intact slot with the
  highest generation counts, so a torn header write leaves the one before in force.
- A trim is durable here before its space is used again.
- `wal_epoch` grows at each opening, and with it `epoch_start_offset` is set: at or above that offset only
  frames of that epoch count, below it only older ones. What a recovery has given up can never come back.
- `confirmed_offset` was durable when the header was written. A log that ends below it has lost data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

from wal.errors import WalCorrupt, WalUnsupportedFormat
from wal.frame import BLOCK_SIZE_BYTES

__all__ = [
    "CLUSTER_ID_LIMIT_BYTES",
    "FORMAT_VERSION",
    "HEADER_SLOT_COUNT",
    "RING_START_BYTES",
    "WalHeader",
    "choose_header",
    "initial_image",
    "pack_header",
    "read_slots",
    "slot_position",
]

FORMAT_VERSION = 1
HEADER_SLOT_COUNT = 2
RING_START_BYTES = HEADER_SLOT_COUNT * BLOCK_SIZE_BYTES
"""Where the ring begins in the file."""

CLUSTER_ID_LIMIT_BYTES = 255
"""Longest cluster id in UTF-8: its length is one byte."""

_MAGIC = b"TIDEWAL\x00"
_VERSIONED = struct.Struct("<8sI")
_FIXED = struct.Struct("<8sIQ16siQIQQQQ?B")
_CRC = struct.Struct("<I")
_CRC_AT = 1024
"""Its place in every version of the format; it covers everything before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalHeader:
    """One generation of the header."""

    wal_id: str
    cluster_id: str
    node_id: int
    capacity_bytes: int
    """Size of the ring."""
    generation: int = 0
    wal_epoch: int = 0
    epoch_start_offset: int = 0
    """Where the frames of `wal_epoch` begin."""
    trim_offset: int = 0
    confirmed_offset: int = 0
    formatted_bytes: int = 0
    """The ring's first bytes that were written at least once; beyond it space is only set aside."""
    closed: bool = True
    """The log was closed in order: it ends exactly at `confirmed_offset`."""


def slot_position(generation: int) -> int:
    """Where in the file a generation of the header goes."""
    return generation % HEADER_SLOT_COUNT * BLOCK_SIZE_BYTES


def pack_header(header: WalHeader) -> bytes:
    """One block."""
    cluster_id = header.cluster_id.encode()
    if len(cluster_id) > CLUSTER_ID_LIMIT_BYTES:
        raise ValueError(f"cluster id of {len(cluster_id)} bytes: at most {CLUSTER_ID_LIMIT_BYTES} fit the WAL header")
    fixed = _FIXED.pack(
        _MAGIC,
        FORMAT_VERSION,
        header.generation,
        bytes.fromhex(header.wal_id),
        header.node_id,
        header.capacity_bytes,
        header.wal_epoch,
        header.epoch_start_offset,
        header.trim_offset,
        header.confirmed_offset,
        header.formatted_bytes,
        header.closed,
        len(cluster_id),
    )
    covered = (fixed + cluster_id).ljust(_CRC_AT, b"\0")
    return (covered + _CRC.pack(crc32c(covered))).ljust(BLOCK_SIZE_BYTES, b"\0")


def initial_image(header: WalHeader) -> bytes:
    """What a new file begins with: the header in both slots."""
    blocks = [b""] * HEADER_SLOT_COUNT
    for generation in range(HEADER_SLOT_COUNT):
        first = WalHeader(
            wal_id=header.wal_id,
            cluster_id=header.cluster_id,
            node_id=header.node_id,
            capacity_bytes=header.capacity_bytes,
            generation=generation,
        )
        blocks[slot_position(generation) // BLOCK_SIZE_BYTES] = pack_header(first)
    return b"".join(blocks)


def choose_header(image: bytes) -> WalHeader:
    """The header in force, of the file's first `RING_START_BYTES` bytes.

    Raises:
        WalUnsupportedFormat: a newer version wrote it.
        WalCorrupt: neither slot is intact.
    """
    intact = [header for header in read_slots(image) if header is not None]
    if not intact:
        raise WalCorrupt(
            "neither copy of the WAL header is intact, so what the log holds cannot be told; restore the volume from a "
            "snapshot, or abandon this WAL and start the node with an empty directory (what was not uploaded is lost)"
        )
    return max(intact, key=lambda header: header.generation)


def read_slots(image: bytes) -> list[WalHeader | None]:
    """Both copies, of the file's first `RING_START_BYTES` bytes; None for one that is damaged or half written.

    Raises:
        WalUnsupportedFormat: a newer version wrote one.
    """
    return [
        _read_slot(image[slot * BLOCK_SIZE_BYTES : (slot + 1) * BLOCK_SIZE_BYTES]) for slot in range(HEADER_SLOT_COUNT)
    ]


def _read_slot(block: bytes) -> WalHeader | None:
    (expected_crc,) = _CRC.unpack_from(block, _CRC_AT)
    if crc32c(block[:_CRC_AT]) != expected_crc:
        return None
    magic, version = _VERSIONED.unpack_from(block)
    if magic != _MAGIC:
        return None
    if version != FORMAT_VERSION:
        raise WalUnsupportedFormat(
            f"the WAL has format version {version}, this program reads version {FORMAT_VERSION}: "
            "start it with the version of Tidelog that wrote it, or a newer one"
        )
    (
        _,
        _,
        generation,
        wal_id,
        node_id,
        capacity_bytes,
        wal_epoch,
        epoch_start_offset,
        trim_offset,
        confirmed_offset,
        formatted_bytes,
        closed,
        cluster_id_size,
    ) = _FIXED.unpack_from(block)
    try:
        cluster_id = block[_FIXED.size : _FIXED.size + cluster_id_size].decode()
    except UnicodeDecodeError:
        return None  # a CRC that is right by chance, or another's making
    return WalHeader(
        wal_id=wal_id.hex(),
        cluster_id=cluster_id,
        node_id=node_id,
        capacity_bytes=capacity_bytes,
        generation=generation,
        wal_epoch=wal_epoch,
        epoch_start_offset=epoch_start_offset,
        trim_offset=trim_offset,
        confirmed_offset=confirmed_offset,
        formatted_bytes=formatted_bytes,
        closed=closed,
    )
