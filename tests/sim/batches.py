"""Record batches as a client makes and takes them, written from the format's description and not with the broker's own code.

So what the broker stores is checked end to end: a reader here recomputes every CRC (KIP-98 describes the format).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crc32c import crc32c

__all__ = ["BadBatch", "Batch", "decode_batches", "encode_batch"]

_HEAD = struct.Struct(">qiib")  # base offset, batch length, partition leader epoch, magic
_CRC = struct.Struct(">I")
_REST = struct.Struct(">hiqqqhii")  # attributes, last offset delta, timestamps, producer, epoch, sequence, record count
_CRC_AT = _HEAD.size
_REST_AT = _CRC_AT + _CRC.size
_RECORDS_AT = _REST_AT + _REST.size
_BEFORE_LENGTH = 12
_MAGIC = 2


class BadBatch(Exception):
    """The bytes are no intact record batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch that was read."""

    base_offset: int
    leader_epoch: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: Sequence[tuple[bytes | None, bytes | None]]
    """Key and value of each."""

    @property
    def end_offset(self) -> int:
        """Exclusive."""
        return self.base_offset + len(self.records)


def encode_batch(
    records: Sequence[tuple[bytes | None, bytes | None]],
    *,
    timestamp_ms: int,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
) -> bytes:
    """An uncompressed batch of records with one timestamp."""
    body = bytearray()
    for delta, (key, value) in enumerate(records):
        record = bytearray(b"\0" + _varint(0) + _varint(delta))
        for field in (key, value):
            record += _varint(-1) if field is None else _varint(len(field)) + field
        record += _varint(0)  # no headers
        body += _varint(len(record)) + record
    rest = _REST.pack(
        0, len(records) - 1, timestamp_ms, timestamp_ms, producer_id, producer_epoch, base_sequence, len(records)
    )
    covered = rest + body
    head = _HEAD.pack(0, _RECORDS_AT + len(body) - _BEFORE_LENGTH, -1, _MAGIC)
    return head + _CRC.pack(crc32c(covered)) + covered


def decode_batches(data: bytes) -> Iterator[Batch]:
    """Every batch in a fetch answer, each with its CRC checked.

    Raises:
        BadBatch: damaged, or cut off.
    """
    at = 0
    while at < len(data):
        if at + _RECORDS_AT > len(data):
            raise BadBatch(f"{len(data) - at} bytes are left, too few for a batch")
        base_offset, length, leader_epoch, magic = _HEAD.unpack_from(data, at)
        end = at + _BEFORE_LENGTH + length
        if magic != _MAGIC or length < _RECORDS_AT - _BEFORE_LENGTH or end > len(data):
            raise BadBatch(f"magic {magic}, length {length}, {len(data) - at} bytes left")
        (crc,) = _CRC.unpack_from(data, at + _CRC_AT)
        if crc32c(data[at + _REST_AT : end]) != crc:
            raise BadBatch(f"the batch at offset {base_offset} does not match its CRC")
        _, last_delta, _, _, producer_id, producer_epoch, base_sequence, count = _REST.unpack_from(data, at + _REST_AT)
        if last_delta + 1 != count:
            raise BadBatch(f"{count} records, and the last offset delta {last_delta}")
        yield Batch(
            base_offset=base_offset,
            leader_epoch=leader_epoch,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
            records=_records(data[at + _RECORDS_AT : end], count),
        )
        at = end


def _records(data: bytes, count: int) -> list[tuple[bytes | None, bytes | None]]:
    records: list[tuple[bytes | None, bytes | None]] = []
    at = 0
    for _ in range(count):
        _, at = _read_varint(data, at)  # length
        at += 1  # attributes
        _, at = _read_varint(data, at)  # timestamp delta
        _, at = _read_varint(data, at)  # offset delta
        fields: list[bytes | None] = []
        for _ in range(2):
            size, at = _read_varint(data, at)
            fields.append(None if size < 0 else data[at : at + size])
            at += max(size, 0)
        headers, at = _read_varint(data, at)
        if headers:
            raise BadBatch("records of these clients have no headers")
        records.append((fields[0], fields[1]))
    if at != len(data):
        raise BadBatch(f"{len(data) - at} bytes behind the last record")
    return records


def _varint(value: int) -> bytes:
    """Zigzag and seven bits a byte."""
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    shift = value = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
