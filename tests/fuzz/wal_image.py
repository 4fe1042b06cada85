"""Writes a log as any bytes say: so that what a fuzzer changes is what was written, and not only a checksum that fails.

The first bytes choose the header, then each command writes a frame or does damage. Four bytes a command: what, size, and two that
mean something for some.
"""

from __future__ import annotations

from wal.frame import BLOCK_SIZE_BYTES, FRAME_HEADER_SIZE_BYTES, align_block, crc_seed, frame_size, pack_frame
from wal.header import WalHeader

__all__ = ["CAPACITY_BYTES", "image_of"]

CAPACITY_BYTES = 64 << 10
_WAL_ID = "00112233445566778899aabbccddeeff"
_EPOCH = 5


def image_of(data: bytes) -> tuple[WalHeader, int, memoryview]:
    """(header, seed of the checksums, the log from the block of the trim offset on)."""
    choices = data[:4].ljust(4, b"\0")
    start = choices[0] % 4 * BLOCK_SIZE_BYTES
    trim_offset = start + (choices[1] % 3) * 64
    image = memoryview(bytearray(CAPACITY_BYTES // 2))
    seed = crc_seed(_WAL_ID)
    offset = end = trim_offset
    for at in range(4, len(data) - 3, 4):
        what, size, first, second = data[at : at + 4]
        if what % 8 == 0:  # damage
            image[(first << 8 | second) % len(image)] ^= size or 1
            continue
        if what % 8 == 1:  # the next write begins in a block of its own
            offset = align_block(offset)
            continue
        payload_size = size * (first + 1 if what % 8 == 2 else 1)
        position = offset - start
        if position + frame_size(payload_size) > len(image):
            continue
        payload = image[position + FRAME_HEADER_SIZE_BYTES :][:payload_size]
        payload[:] = bytes([second]) * payload_size
        lies = what % 8 == 3
        pack_frame(
            image,
            position,
            payload,
            seed,
            log_offset=offset + (first if lies else 0),
            confirmed_offset=second << 8 if what % 8 == 4 else end,
            wal_epoch=first % 8 if what % 8 == 5 else _EPOCH,
            padding_before=second if lies else offset - end,
            stream_id=second % 4,
            leader_epoch=second,
            base_offset=at,
            record_count=first,
        )
        offset = end = offset + frame_size(payload_size)
    header = WalHeader(
        wal_id=_WAL_ID,
        cluster_id="",
        node_id=1,
        capacity_bytes=CAPACITY_BYTES,
        wal_epoch=_EPOCH,
        epoch_start_offset=choices[2] * 64,
        trim_offset=trim_offset,
        confirmed_offset=max(choices[3] << 7, trim_offset),
        closed=bool(choices[2] & 1),
    )
    return header, seed, image
