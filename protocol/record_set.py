"""The records inside a batch: read them, or build a batch from them.

The produce and fetch paths never come here. What does: lookups by timestamp inside one batch, compacted and internal
topics, control batches, tests, tools and simulated clients.

Always true here: reading raises nothing but `Malformed` whatever the bytes; it decompresses at most the caller's cap; and
it accepts a batch only if its records fill it exactly, as Kafka does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from crc32c import crc32c

from protocol.compression import Codec, compress, decompress
from protocol.errors import Malformed
from protocol.records import (
    CODEC_MASK,
    CONTROL,
    HEADER_BYTES,
    LENGTH_OVERHEAD_BYTES,
    LOG_APPEND_TIME,
    MAGIC,
    NO_PRODUCER_ID,
    NO_SEQUENCE,
    TRANSACTIONAL,
    BatchHeader,
    parse_batch_header,
)
from protocol.types import Buffer

__all__ = [
    "ControlType",
    "Marker",
    "Record",
    "RecordMark",
    "build_batch",
    "build_control_batch",
    "iter_batches",
    "iter_records",
    "read_marker",
    "walk_records",
    "with_records",
]

_HEADER = struct.Struct("!qiibI")
_CHECKED = struct.Struct("!hiqqqhii")
_MARKER_KEY = struct.Struct("!hh")
_MARKER_VALUE = struct.Struct("!hi")
_new = tuple.__new__


class Record(NamedTuple):
    """One record. In a batch to build, `offset` is ignored unless offsets are kept."""

    key: bytes | None = None
    value: bytes | None = None
    timestamp_ms: int = 0
    headers: tuple[tuple[str, bytes | None], ...] = ()
    offset: int = 0


class RecordMark(NamedTuple):
    """What can be told of a record without taking it apart."""

    offset: int
    timestamp_ms: int
    has_key: bool


class ControlType(IntEnum):
    """What a control record marks."""

    ABORT = 0
    COMMIT = 1


class Marker(NamedTuple):
    """The end of a transaction."""

    control_type: ControlType
    coordinator_epoch: int


def iter_records(batch: Buffer, *, max_output_bytes: int) -> Iterator[Record]:
    """The records of one batch, in order; `batch` must be exactly that batch.

    With LogAppendTime every record has the batch's time. The CRC is not looked at.

    Raises:
        Malformed: when the iteration gets to what is wrong.
        OutputTooLarge: the records decompress to more than `max_output_bytes`.
    """
    header = parse_batch_header(batch)
    if header.magic != MAGIC or header.size_bytes != len(batch):
        raise Malformed(f"{len(batch)} bytes are no batch of magic {header.magic} and {header.size_bytes} bytes")
    data = decompress(header.codec, memoryview(batch)[HEADER_BYTES:], max_output_bytes)
    log_append_time_ms = header.max_timestamp if header.is_log_append_time else None
    pos = 0
    for _ in range(header.record_count):
        try:
            # Most varints take one byte; those are read right here.
            size = data[pos]
            pos += 1
            if size > 0x7F:
                size, pos = _wide_varint(size, data, pos)
            end = pos + (size >> 1)
            if size & 1 or end > len(data):
                raise Malformed(f"record of {size >> 1 ^ -(size & 1)} bytes where {len(data) - pos} are left")
            timestamp_delta = data[pos + 1]  # after one byte of attributes, unused
            pos += 2
            if timestamp_delta > 0x7F:
                timestamp_delta, pos = _wide_varint(timestamp_delta, data, pos)
            offset_delta = data[pos]
            pos += 1
            if offset_delta > 0x7F:
                offset_delta, pos = _wide_varint(offset_delta, data, pos)
            key, pos = _read_bytes(data, pos)
            value, pos = _read_bytes(data, pos)
            count = data[pos]
            pos += 1
            headers: tuple[tuple[str, bytes | None], ...] = ()
            if count:
                headers, pos = _read_headers(count, data, pos, end)
        except (IndexError, UnicodeDecodeError) as error:
            raise Malformed(f"record: {error}") from error
        if pos != end:  # also where a key, value or header reached further
            raise Malformed(f"record ends at {pos}, its size says {end}")
        if log_append_time_ms is None:
            timestamp_ms = header.base_timestamp + (timestamp_delta >> 1 ^ -(timestamp_delta & 1))
        else:
            timestamp_ms = log_append_time_ms
        offset = header.base_offset + (offset_delta >> 1 ^ -(offset_delta & 1))
        yield _new(Record, (key, value, timestamp_ms, headers, offset))
    if pos != len(data):
        raise Malformed(f"{len(data) - pos} bytes follow the last of {header.record_count} records")


def walk_records(header: BatchHeader, data: bytes) -> Iterator[RecordMark | None]:
    """The records of one batch, in order, without taking them apart: `data` is what follows its header, decompressed.

    None comes for each header of a record, which may be millions: so a caller can count steps, and let others have a turn.

    Raises:
        Malformed: when the iteration gets to what is wrong.
    """
    log_append_time_ms = header.max_timestamp if header.is_log_append_time else None
    base_offset, base_timestamp = header.base_offset, header.base_timestamp
    pos = 0
    for _ in range(header.record_count):
        try:
            size = data[pos]
            pos += 1
            if size > 0x7F:
                size, pos = _wide_varint(size, data, pos)
            end = pos + (size >> 1)
            if size & 1 or end > len(data):
                raise Malformed(f"record of {size >> 1 ^ -(size & 1)} bytes where {len(data) - pos} are left")
            timestamp_delta, pos = _varint(data, pos + 1)
            offset_delta, pos = _varint(data, pos)
            key_size, pos = _skip_bytes(data, pos)
            _, pos = _skip_bytes(data, pos)
            count, pos = _varint(data, pos)
            if count & 1 or count >> 1 > end - pos:
                raise Malformed(f"record claims {count >> 1 ^ -(count & 1)} headers")
            for _ in range(count >> 1):
                name_size, pos = _skip_bytes(data, pos)
                if name_size < 0:
                    raise Malformed("record: header name is null")
                _, pos = _skip_bytes(data, pos)
                yield None
        except IndexError as error:
            raise Malformed(f"record: {error}") from error
        if pos != end:
            raise Malformed(f"record ends at {pos}, its size says {end}")
        timestamp_ms = (
            base_timestamp + (timestamp_delta >> 1 ^ -(timestamp_delta & 1))
            if log_append_time_ms is None
            else log_append_time_ms
        )
        yield _new(RecordMark, (base_offset + (offset_delta >> 1 ^ -(offset_delta & 1)), timestamp_ms, key_size >= 0))
    if pos != len(data):
        raise Malformed(f"{len(data) - pos} bytes follow the last of {header.record_count} records")


def iter_batches(buf: Buffer) -> Iterator[memoryview]:
    """The consecutive batches in `buf`, as views. A batch cut short at the end, as fetches may bring, is left out.

    Raises:
        Malformed: a length that no batch can have.
    """
    view = memoryview(buf)
    pos = 0
    while len(view) - pos >= LENGTH_OVERHEAD_BYTES:
        size = int.from_bytes(view[pos + 8 : pos + 12], "big", signed=True) + LENGTH_OVERHEAD_BYTES
        if size < HEADER_BYTES:
            raise Malformed(f"record batch of {size} bytes")
        if pos + size > len(view):
            return
        yield view[pos : pos + size]
        pos += size


def build_batch(
    records: Sequence[Record],
    *,
    base_offset: int = 0,
    codec: Codec = Codec.NONE,
    partition_leader_epoch: int = -1,
    producer_id: int = NO_PRODUCER_ID,
    producer_epoch: int = -1,
    base_sequence: int = NO_SEQUENCE,
    transactional: bool = False,
    control: bool = False,
    log_append_time_ms: int | None = None,
    keep_offsets: bool = False,
) -> bytes:
    """One batch of `records`, which must be at least one.

    Offsets count up from `base_offset`; with `keep_offsets` each record's own is used, ascending, as in compacted logs.
    """
    assert records, "a batch holds at least one record"
    base_timestamp = records[0].timestamp_ms
    body = bytearray()
    delta = -1
    for index, record in enumerate(records):
        delta = record.offset - base_offset if keep_offsets else index
        _put_record(body, record, record.timestamp_ms - base_timestamp, delta)
    attributes = int(codec) | TRANSACTIONAL * transactional | CONTROL * control
    max_timestamp = max(record.timestamp_ms for record in records)
    if log_append_time_ms is not None:
        attributes |= LOG_APPEND_TIME
        max_timestamp = log_append_time_ms
    checked = _CHECKED.pack(
        attributes,
        delta,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        len(records),
    ) + compress(codec, bytes(body))
    length = len(checked) + _HEADER.size - LENGTH_OVERHEAD_BYTES
    return _HEADER.pack(base_offset, length, partition_leader_epoch, MAGIC, crc32c(checked)) + checked


def with_records(header: BatchHeader, codec: Codec, packed: Buffer) -> bytes:
    """The batch of a header with its records in another codec, and its CRC renewed; all else stays."""
    checked = b"".join(
        (
            _CHECKED.pack(
                header.attributes & ~CODEC_MASK | codec,
                header.last_offset_delta,
                header.base_timestamp,
                header.max_timestamp,
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                header.record_count,
            ),
            packed,
        )
    )
    length = len(checked) + _HEADER.size - LENGTH_OVERHEAD_BYTES
    return _HEADER.pack(header.base_offset, length, header.partition_leader_epoch, MAGIC, crc32c(checked)) + checked


def build_control_batch(
    marker: Marker,
    *,
    producer_id: int,
    producer_epoch: int,
    timestamp_ms: int,
    base_offset: int = 0,
    partition_leader_epoch: int = -1,
) -> bytes:
    """The batch that ends a transaction in a partition. It takes one offset (KIP-98)."""
    key = _MARKER_KEY.pack(0, marker.control_type)
    value = _MARKER_VALUE.pack(0, marker.coordinator_epoch)
    return build_batch(
        [Record(key, value, timestamp_ms)],
        base_offset=base_offset,
        partition_leader_epoch=partition_leader_epoch,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        transactional=True,
        control=True,
    )


def read_marker(record: Record) -> Marker | None:
    """The marker in a record of a control batch; None for types that end no transaction.

    Raises:
        Malformed: it is no control record.
    """
    try:
        _, control_type = _MARKER_KEY.unpack_from(record.key or b"")
        if control_type not in (ControlType.ABORT, ControlType.COMMIT):
            return None
        _, coordinator_epoch = _MARKER_VALUE.unpack_from(record.value or b"")
    except struct.error as error:
        raise Malformed(f"control record: {error}") from error
    return Marker(ControlType(control_type), coordinator_epoch)


def _put_record(body: bytearray, record: Record, timestamp_delta: int, offset_delta: int) -> None:
    inner = bytearray(1)  # attributes, unused
    _put_varints(inner, (timestamp_delta, offset_delta))
    _put_bytes(inner, record.key)
    _put_bytes(inner, record.value)
    _put_varints(inner, (len(record.headers),))
    for name, value in record.headers:
        _put_bytes(inner, name.encode())
        _put_bytes(inner, value)
    _put_varints(body, (len(inner),))
    body += inner


def _put_bytes(out: bytearray, value: bytes | None) -> None:
    if value is None:
        out.append(1)  # -1
    else:
        _put_varints(out, (len(value),))
        out += value


def _put_varints(out: bytearray, values: Iterable[int]) -> None:
    """Zigzag varints, low bits first."""
    for value in values:
        n = value << 1 if value >= 0 else ~(value << 1)
        while n > 0x7F:
            out.append(n & 0x7F | 0x80)
            n >>= 7
        out.append(n)


def _wide_varint(n: int, data: bytes, pos: int) -> tuple[int, int]:
    """Go on with a varint whose first byte `n` has its high bit set; the result is still in zigzag form."""
    n &= 0x7F
    for shift in range(7, 64, 7):
        byte = data[pos]
        pos += 1
        if byte < 0x80:
            return n | byte << shift, pos
        n |= (byte & 0x7F) << shift
    raise Malformed("record: varint is wider than 64 bits")


def _read_bytes(data: bytes, pos: int) -> tuple[bytes | None, int]:
    size = data[pos]
    pos += 1
    if size > 0x7F:
        size, pos = _wide_varint(size, data, pos)
    if size & 1:
        return None, pos
    end = pos + (size >> 1)
    return data[pos:end], end


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    n = data[pos]
    return (n, pos + 1) if n < 0x80 else _wide_varint(n, data, pos + 1)


def _skip_bytes(data: bytes, pos: int) -> tuple[int, int]:
    """Size of a key, value or name, −1 for null, and where it ends."""
    size = data[pos]
    pos += 1
    if size > 0x7F:
        size, pos = _wide_varint(size, data, pos)
    return (-1, pos) if size & 1 else (size >> 1, pos + (size >> 1))


def _read_headers(count: int, data: bytes, pos: int, end: int) -> tuple[tuple[tuple[str, bytes | None], ...], int]:
    if count > 0x7F:
        count, pos = _wide_varint(count, data, pos)
    if count & 1 or count >> 1 > end - pos:
        raise Malformed(f"record claims {count >> 1 ^ -(count & 1)} headers")
    headers = []
    for _ in range(count >> 1):
        name, pos = _read_bytes(data, pos)
        if name is None:
            raise Malformed("record: header name is null")
        value, pos = _read_bytes(data, pos)
        headers.append((name.decode(), value))
    return tuple(headers), pos
