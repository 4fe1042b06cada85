"""Frame codec: one payload with its header, as it lies in the arena and on the disk. Pure.

    magic u32 · WAL epoch u32 · log offset u64 · confirmed offset u64 · padding before u32 · payload size u32
    payload CRC u32 · leader epoch i32 · stream id i64 · base offset i64 · record count i32 · header CRC u32
    payload

Always true:
- A frame starts at a multiple of 8, and the first frame of every write at a multiple of 4096.
- Both CRCs are crc32c, seeded with a number made of the `wal_id`: frames of a log that once lay in the same
  place never pass for ours. The header CRC covers everything before it, the payload CRC included.
- `log offset` is where the frame belongs. A ring's older lap, or a block that went astray, shows by it.
- `padding before` chains frames over the padding between writes: the space between the end of one frame and
  the start of the next is a hole unless the next says that nothing was there. So a block that a power cut
  turned back to zeros never passes for padding.
- `confirmed offset`: everything below it was durable, and may have been acknowledged, when the frame was
  written. A valid frame behind a hole proves by it whether acknowledged data is missing.
- Little-endian; the header is 64 bytes, so that a reservation can leave room for it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from wal.checksum import combine_crc32c, crc32c

__all__ = [
    "BLOCK_SIZE_BYTES",
    "FRAME_ALIGNMENT_BYTES",
    "FRAME_HEADER_SIZE_BYTES",
    "FrameHeader",
    "align_block",
    "crc_seed",
    "frame_size",
    "pack_frame",
    "payload_is_intact",
    "read_header",
    "restamp_confirmed",
    "unpack_alike_from",
    "whole_frame_mask",
]

FRAME_ALIGNMENT_BYTES = 8
BLOCK_SIZE_BYTES = 4096
"""Writes are padded to it: the largest sector that disks have, and what O_DIRECT wants at most."""

MAGIC = 0x4C574454
"""`TDWL` on the disk."""

_HEADER = struct.Struct("<IIQQIIIiqqi")
_CONFIRMED = struct.Struct("<Q")
_CRC = struct.Struct("<I")

_CONFIRMED_AT = 16
_CRC_AT = _HEADER.size

unpack_alike_from = struct.Struct("<QQ8xIIIiqqi4x").unpack_from
"""Magic and WAL epoch as one number, and what else differs from frame to frame, but for the confirmed offset; unchecked."""

FRAME_HEADER_SIZE_BYTES = _CRC_AT + _CRC.size
"""What lies before the payload."""

_INTACT_HEADER_CRC = crc32c(bytes(_CRC.size))
"""The CRC of any bytes followed by their own CRC."""

_pack_header_into = _HEADER.pack_into
_pack_crc_into = _CRC.pack_into
_unpack_header_from = _HEADER.unpack_from
_unpack_crc_from = _CRC.unpack_from
_new_tuple = tuple.__new__


class FrameHeader(NamedTuple):
    """What stands before a payload, in the order in which it stands there."""

    magic: int
    wal_epoch: int
    log_offset: int
    confirmed_offset: int
    padding_before: int
    payload_size: int
    payload_crc: int
    leader_epoch: int
    stream_id: int
    base_offset: int
    record_count: int

    @property
    def end_offset(self) -> int:
        """Exclusive log offset of the frame's end."""
        return self.log_offset + frame_size(self.payload_size)


def frame_size(payload_size: int) -> int:
    """Bytes that a payload takes in the log, without the padding of its write."""
    return (payload_size + (FRAME_HEADER_SIZE_BYTES + FRAME_ALIGNMENT_BYTES - 1)) & -FRAME_ALIGNMENT_BYTES


def align_block(offset: int) -> int:
    """The first block boundary at or above `offset`."""
    return (offset + (BLOCK_SIZE_BYTES - 1)) & -BLOCK_SIZE_BYTES


def crc_seed(wal_id: str) -> int:
    """What the CRCs of a log's frames start from."""
    return crc32c(bytes.fromhex(wal_id))


def pack_frame(
    buffer: memoryview,
    position: int,
    payload: memoryview,
    seed: int,
    log_offset: int,
    confirmed_offset: int,
    wal_epoch: int,
    padding_before: int,
    stream_id: int,
    leader_epoch: int,
    base_offset: int,
    record_count: int,
    payload_crc: int | None = None,
) -> None:
    """Write the header of a payload that lies in the buffer already, at `position + FRAME_HEADER_SIZE_BYTES`.

    `payload_crc` is the payload's plain CRC-32C, where it is known.
    """
    _pack_header_into(
        buffer,
        position,
        MAGIC,
        wal_epoch,
        log_offset,
        confirmed_offset,
        padding_before,
        len(payload),
        crc32c(payload, seed) if payload_crc is None else _seed_after(seed, len(payload)) ^ payload_crc,
        leader_epoch,
        stream_id,
        base_offset,
        record_count,
    )
    crc_at = position + _CRC_AT
    _pack_crc_into(buffer, crc_at, crc32c(buffer[position:crc_at], seed))


@lru_cache(maxsize=256)
def _seed_after(seed: int, payload_size: int) -> int:
    """What a payload's CRC differs by when it starts from `seed`. Requests of one size are the rule where they are large."""
    return combine_crc32c(seed, 0, payload_size)


def restamp_confirmed(buffer: memoryview, position: int, seed: int, confirmed_offset: int) -> None:
    """Raise the confirmed offset of a frame that was packed, but not written yet."""
    _CONFIRMED.pack_into(buffer, position + _CONFIRMED_AT, confirmed_offset)
    crc_at = position + _CRC_AT
    _pack_crc_into(buffer, crc_at, crc32c(buffer[position:crc_at], seed))


def read_header(buffer: memoryview, position: int, seed: int) -> FrameHeader | None:
    """The header at `position`, or None where no intact one stands. Says nothing of the payload."""
    if position + FRAME_HEADER_SIZE_BYTES > len(buffer):
        return None
    # Not FrameHeader(*…): recovery reads millions of them.
    header = _new_tuple(FrameHeader, _unpack_header_from(buffer, position))
    crc_at = position + _CRC_AT
    if header.magic != MAGIC or crc32c(buffer[position:crc_at], seed) != _unpack_crc_from(buffer, crc_at)[0]:
        return None
    return header


def payload_is_intact(buffer: memoryview, position: int, header: FrameHeader, seed: int) -> bool:
    """Whether the payload is what was written. The whole frame must be in the buffer."""
    payload_at = position + FRAME_HEADER_SIZE_BYTES
    return crc32c(buffer[payload_at : payload_at + header.payload_size], seed) == header.payload_crc


def whole_frame_mask(seed: int, payload_size: int) -> int:
    """What the CRC of a whole frame, header and payload in one go, differs by from the payload CRC, for payloads of one size.

    The CRC over an intact header, its own CRC included, is the same whatever the header says; and what a CRC starts from
    shows in its end independently of the bytes between. So `crc32c(frame, seed) == payload_crc ^ mask` says of header and payload
    together what two comparisons say of each: damage to either goes unseen once in 2**32 times.
    """
    return combine_crc32c(_INTACT_HEADER_CRC ^ seed, 0, payload_size)
