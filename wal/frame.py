"""Frame codec: one payload with its header, as it lies in the arena and on the disk. Pure.

    magic u32 · header CRC u32 · log offset u64 · confirmed offset u64
    WAL epoch u32 · body size u32 · body CRC u32 · padding before u32               = 40 bytes of header
    stream id i64 · base offset i64 · leader epoch i32 · record count i32 · payload = the body

Always true:
- A frame starts at a multiple of 8, and the first frame of every write at a multiple of 4096.
- Both CRCs are crc32c, seeded with a number made of the `wal_id`: frames of a log that once lay in the same
  place never pass for ours. The header CRC covers everything behind it in the header, the body CRC included.
- `log offset` is where the frame belongs. A ring's older lap, or a block that went astray, shows by it.
- `padding before` chains frames over the padding between writes: the space between the end of one frame and
  the start of the next is a hole unless the next says that nothing was there. So a block that a power cut
  turned back to zeros never passes for padding.
- `confirmed offset`: everything below it was durable, and may have been acknowledged, when the frame was
  written. A valid frame behind a hole proves by it whether acknowledged data is missing.
- Little-endian; the header is 64 bytes with the fixed part of the body, so that a reservation can leave room.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crc32c import crc32c

__all__ = [
    "BLOCK_SIZE_BYTES",
    "FRAME_ALIGNMENT_BYTES",
    "FRAME_HEADER_SIZE_BYTES",
    "FrameHeader",
    "align_block",
    "align_frame",
    "body_is_intact",
    "crc_seed",
    "frame_size",
    "pack_frame",
    "read_header",
    "restamp_confirmed",
]

FRAME_ALIGNMENT_BYTES = 8
BLOCK_SIZE_BYTES = 4096
"""Writes are padded to it: the largest sector that disks have, and what O_DIRECT wants at most."""

MAGIC = 0x4C574454
"""`TDWL` on the disk."""

_FIXED = struct.Struct("<IIQQIIIIqqii")
_AFTER_CRC = struct.Struct("<QQIIII")
_BODY = struct.Struct("<qqii")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

FRAME_HEADER_SIZE_BYTES = _FIXED.size
"""What lies before the payload: the header and the fixed part of the body."""

_CRC_AT = 4
_COVERED_AT = 8
_CONFIRMED_AT = 16
_BODY_AT = _COVERED_AT + _AFTER_CRC.size
_BODY_FIXED_SIZE = _BODY.size

_magic_pack_into = _U32.pack_into
_crc_pack_into = _U32.pack_into
_confirmed_pack_into = _U64.pack_into
_header_pack_into = _AFTER_CRC.pack_into
_body_pack_into = _BODY.pack_into


class FrameHeader(NamedTuple):
    """What stands before a payload."""

    log_offset: int
    confirmed_offset: int
    wal_epoch: int
    padding_before: int
    stream_id: int
    leader_epoch: int
    base_offset: int
    record_count: int
    payload_size: int
    body_crc: int

    @property
    def end_offset(self) -> int:
        """Exclusive log offset of the frame's end."""
        return self.log_offset + frame_size(self.payload_size)


def frame_size(payload_size: int) -> int:
    """Bytes that a payload takes in the log, without the padding of its write."""
    return (payload_size + (FRAME_HEADER_SIZE_BYTES + FRAME_ALIGNMENT_BYTES - 1)) & -FRAME_ALIGNMENT_BYTES


def align_frame(offset: int) -> int:
    """The first place at or above `offset` where a frame may start."""
    return (offset + (FRAME_ALIGNMENT_BYTES - 1)) & -FRAME_ALIGNMENT_BYTES


def align_block(offset: int) -> int:
    """The first block boundary at or above `offset`."""
    return (offset + (BLOCK_SIZE_BYTES - 1)) & -BLOCK_SIZE_BYTES


def crc_seed(wal_id: str) -> int:
    """What the CRCs of a log's frames start from."""
    return crc32c(bytes.fromhex(wal_id))


def pack_frame(
    buffer: memoryview,
    position: int,
    payload_size: int,
    seed: int,
    log_offset: int,
    confirmed_offset: int,
    wal_epoch: int,
    padding_before: int,
    stream_id: int,
    leader_epoch: int,
    base_offset: int,
    record_count: int,
) -> None:
    """Write the header of a payload that already lies at `position + FRAME_HEADER_SIZE_BYTES`."""
    body_at = position + _BODY_AT
    body_size = _BODY_FIXED_SIZE + payload_size
    _body_pack_into(buffer, body_at, stream_id, base_offset, leader_epoch, record_count)
    body_crc = crc32c(buffer[body_at : body_at + body_size], seed)
    covered_at = position + _COVERED_AT
    _header_pack_into(buffer, covered_at, log_offset, confirmed_offset, wal_epoch, body_size, body_crc, padding_before)
    _magic_pack_into(buffer, position, MAGIC)
    _crc_pack_into(buffer, position + _CRC_AT, crc32c(buffer[covered_at:body_at], seed))


def restamp_confirmed(buffer: memoryview, position: int, seed: int, confirmed_offset: int) -> None:
    """Raise the confirmed offset of a frame that was packed, but not written yet."""
    _confirmed_pack_into(buffer, position + _CONFIRMED_AT, confirmed_offset)
    covered = buffer[position + _COVERED_AT : position + _BODY_AT]
    _crc_pack_into(buffer, position + _CRC_AT, crc32c(covered, seed))


def read_header(buffer: memoryview, position: int, seed: int) -> FrameHeader | None:
    """The header at `position`, or None where no intact one stands. Says nothing of the body."""
    if position + FRAME_HEADER_SIZE_BYTES > len(buffer):
        return None
    (
        magic,
        header_crc,
        log_offset,
        confirmed_offset,
        wal_epoch,
        body_size,
        body_crc,
        padding_before,
        stream_id,
        base_offset,
        leader_epoch,
        record_count,
    ) = _FIXED.unpack_from(buffer, position)
    if magic != MAGIC or body_size < _BODY_FIXED_SIZE:
        return None
    if crc32c(buffer[position + _COVERED_AT : position + _BODY_AT], seed) != header_crc:
        return None
    return FrameHeader(
        log_offset,
        confirmed_offset,
        wal_epoch,
        padding_before,
        stream_id,
        leader_epoch,
        base_offset,
        record_count,
        body_size - _BODY_FIXED_SIZE,
        body_crc,
    )


def body_is_intact(buffer: memoryview, position: int, header: FrameHeader, seed: int) -> bool:
    """Whether stream id, offsets and payload are what was written. The whole frame must be in the buffer."""
    end = position + FRAME_HEADER_SIZE_BYTES + header.payload_size
    return crc32c(buffer[position + _BODY_AT : end], seed) == header.body_crc
