"""Record batches, magic 2: the unit that clients send, the log stores and consumers get.

    0 base_offset int64 · 8 batch_length int32 · 12 partition_leader_epoch int32 · 16 magic int8 · 17 crc uint32
    21 attributes int16 · 23 last_offset_delta int32 · 27 base_timestamp int64 · 35 max_timestamp int64
    43 producer_id int64 · 51 producer_epoch int16 · 53 base_sequence int32 · 57 record_count int32 · 61 records

Always true here:
- a batch spans `batch_length + 12` bytes, and its CRC-32C covers everything from the attributes on. So base offset and
  leader epoch may be rewritten in place, freely;
- `record_count == last_offset_delta + 1` in what a client may send; compaction may leave fewer records in a stored batch;
- nothing here decompresses except `protocol.record_set`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from crc32c import crc32c

from protocol.errors import ErrorCode, InvalidRecords, Malformed
from protocol.types import Buffer

__all__ = [
    "ATTRIBUTES_POSITION",
    "CODEC_MASK",
    "CONTROL",
    "HEADER_BYTES",
    "LENGTH_OVERHEAD_BYTES",
    "LOG_APPEND_TIME",
    "MAGIC",
    "NO_PRODUCER_ID",
    "NO_SEQUENCE",
    "NO_TIMESTAMP",
    "TRANSACTIONAL",
    "BatchBounds",
    "BatchHeader",
    "batch_bounds",
    "batch_max_timestamps",
    "batch_producer_id",
    "check_produced_header",
    "crc_matches",
    "empty_batch",
    "iter_bounds",
    "parse_batch_header",
    "stamp",
    "stamp_log_append_time",
]

HEADER_BYTES = 61
INT32_MAX = 2**31 - 1
LENGTH_OVERHEAD_BYTES = 12
"""What `batch_length` leaves out: base offset and itself."""
ATTRIBUTES_POSITION = 21
"""Where the bytes under the CRC begin."""
MAGIC = 2

CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20

NO_PRODUCER_ID = -1
NO_SEQUENCE = -1
NO_TIMESTAMP = -1

_ZSTD = 4
_ZSTD_SINCE_PRODUCE_VERSION = 7  # KIP-110
_RARE = CONTROL | LOG_APPEND_TIME | _ZSTD
"""Attribute bits that call for a closer look; the bit of zstd is also that of codecs which do not exist."""
_HEADER = struct.Struct("!qiibIhiqqqhii")
_BOUNDS = struct.Struct("!qi4xb6xi8xq14xi")
_MAX_TIMESTAMP = struct.Struct("!35xq")
_PRODUCER_ID = struct.Struct("!43xq")
_STAMP = struct.Struct("!qii")
_LENGTH = struct.Struct("!i")
_CRC = struct.Struct("!I")
_CRC_POSITION = 17
_ATTRIBUTES = struct.Struct("!h")
_TIMESTAMP = struct.Struct("!q")
_MAX_TIMESTAMP_POSITION = 35
_LENGTH_POSITION = 8


class BatchHeader(NamedTuple):
    """The fixed part of a batch."""

    base_offset: int
    batch_length: int
    partition_leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        """Size of the whole batch."""
        return self.batch_length + LENGTH_OVERHEAD_BYTES

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def codec(self) -> int:
        """Number of the compression codec; see `protocol.compression.Codec`."""
        return self.attributes & CODEC_MASK

    @property
    def is_log_append_time(self) -> bool:
        return bool(self.attributes & LOG_APPEND_TIME)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & CONTROL)

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record; sequences wrap from 2**31 - 1 to 0."""
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF if self.base_sequence >= 0 else NO_SEQUENCE


class BatchBounds(NamedTuple):
    """What a log needs to know of a batch."""

    base_offset: int
    end_offset: int
    """Exclusive."""
    size_bytes: int
    record_count: int
    max_timestamp_ms: int


_new = tuple.__new__


def parse_batch_header(buf: Buffer | bytearray, pos: int = 0) -> BatchHeader:
    """Read the header at `pos`, without judging it.

    Raises:
        Malformed: fewer than 61 bytes are there.
    """
    try:
        return _new(BatchHeader, _HEADER.unpack_from(buf, pos))
    except struct.error as error:
        raise Malformed(f"record batch: {len(buf) - pos} bytes hold no batch header") from error


def check_produced_header(records: Buffer | None, produce_version: int, max_batch_bytes: int) -> BatchHeader:
    """Check that `records` is one batch that a client may write, as far as its header tells; returns the header.

    The CRC is not looked at: check it on the copy that stays (`crc_matches`). `max_batch_bytes` is Kafka's
    `message.max.bytes`, which counts the whole compressed batch.

    Raises:
        InvalidRecords: with Kafka's error for the rule that is broken.
    """
    if records is None:
        records = b""
    size = len(records)
    try:
        header = _new(BatchHeader, _HEADER.unpack_from(records))
    except struct.error:
        _refuse_short(records)
    (
        _,
        batch_length,
        _,
        magic,
        _,
        attributes,
        last_offset_delta,
        _,
        _,
        producer_id,
        _,
        base_sequence,
        record_count,
    ) = header
    if (
        magic == MAGIC
        and batch_length + LENGTH_OVERHEAD_BYTES == size
        and size <= max_batch_bytes
        and record_count == last_offset_delta + 1
        and record_count > 0
        and (producer_id < 0 or base_sequence >= 0)
        and not attributes & _RARE
    ):
        return header
    return _explain(header, size, produce_version, max_batch_bytes)


def _refuse_short(records: Buffer) -> BatchHeader:
    if not len(records):
        raise InvalidRecords(ErrorCode.INVALID_RECORD, "a partition needs one record batch, there is none")
    if len(records) > 16 and records[16] < MAGIC:
        raise InvalidRecords(ErrorCode.INVALID_RECORD, f"batch has magic {records[16]}, only {MAGIC} can be written")
    raise InvalidRecords(ErrorCode.CORRUPT_MESSAGE, f"{len(records)} bytes are too few for a record batch")


def _explain(header: BatchHeader, size: int, produce_version: int, max_batch_bytes: int) -> BatchHeader:
    """Find the rule that `header` breaks, in the order in which Kafka checks; returns it where none is broken."""
    if header.magic != MAGIC:
        raise InvalidRecords(ErrorCode.INVALID_RECORD, f"batch has magic {header.magic}, only {MAGIC} can be written")
    if header.size_bytes < HEADER_BYTES or header.size_bytes > size:
        message = f"batch claims {header.size_bytes} bytes, {size} arrived"
        raise InvalidRecords(ErrorCode.CORRUPT_MESSAGE, message)
    codec = header.codec
    if codec > _ZSTD:
        raise InvalidRecords(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, f"there is no compression codec {codec}")
    if codec == _ZSTD and produce_version < _ZSTD_SINCE_PRODUCE_VERSION:
        message = f"zstd needs Produce v{_ZSTD_SINCE_PRODUCE_VERSION}, this was v{produce_version}"
        raise InvalidRecords(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, message)
    if header.size_bytes < size:
        raise InvalidRecords(ErrorCode.INVALID_RECORD, "a partition takes exactly one record batch, there are more")
    if size > max_batch_bytes:
        raise InvalidRecords(ErrorCode.MESSAGE_TOO_LARGE, f"batch has {size} bytes, the limit is {max_batch_bytes}")
    if header.record_count <= 0 or header.record_count != header.last_offset_delta + 1:
        message = f"batch claims {header.record_count} records and a last offset delta of {header.last_offset_delta}"
        raise InvalidRecords(ErrorCode.INVALID_RECORD, message)
    if header.is_control:
        raise InvalidRecords(ErrorCode.INVALID_RECORD, "clients may not write control batches")
    if header.producer_id >= 0 and header.base_sequence < 0:
        message = f"batch of producer {header.producer_id} has sequence {header.base_sequence}"
        raise InvalidRecords(ErrorCode.INVALID_RECORD, message)
    if header.is_log_append_time:
        raise InvalidRecords(ErrorCode.INVALID_TIMESTAMP, "only the broker may set the timestamp type LogAppendTime")
    return header


def empty_batch(base_offset: int, end_offset: int, partition_leader_epoch: int) -> bytes:
    """A batch without records that spans offsets up to an end (exclusive), or as many as fit.

    Kafka's log cleaner leaves such batches where all records of one are gone; consumers go on behind them.
    """
    assert base_offset < end_offset, "a batch spans offsets"
    last_offset_delta = min(end_offset - 1 - base_offset, INT32_MAX)
    batch = bytearray(HEADER_BYTES)
    _HEADER.pack_into(
        batch,
        0,
        base_offset,
        HEADER_BYTES - LENGTH_OVERHEAD_BYTES,
        partition_leader_epoch,
        MAGIC,
        0,
        0,
        last_offset_delta,
        NO_TIMESTAMP,
        NO_TIMESTAMP,
        NO_PRODUCER_ID,
        -1,
        NO_SEQUENCE,
        0,
    )
    _CRC.pack_into(batch, _CRC_POSITION, crc32c(memoryview(batch)[ATTRIBUTES_POSITION:]))
    return bytes(batch)


def crc_matches(batch: Buffer | bytearray, crc: int) -> bool:
    """Whether `crc`, from the header, is the CRC-32C of the rest of `batch`, which must be exactly one batch."""
    return crc32c(memoryview(batch)[ATTRIBUTES_POSITION:]) == crc


def stamp(batch: memoryview | bytearray, batch_length: int, base_offset: int, partition_leader_epoch: int) -> None:
    """Write base offset and leader epoch into the batch at the start of `batch`; neither is under the CRC.

    `batch_length` is the header's own, written back so that one store does it all.
    """
    _STAMP.pack_into(batch, 0, base_offset, batch_length, partition_leader_epoch)


def stamp_log_append_time(batch: memoryview | bytearray, now_ms: int) -> None:
    """Make `batch`, exactly one batch, a LogAppendTime one of `now_ms`, and renew its CRC."""
    (attributes,) = _ATTRIBUTES.unpack_from(batch, ATTRIBUTES_POSITION)
    _ATTRIBUTES.pack_into(batch, ATTRIBUTES_POSITION, attributes | LOG_APPEND_TIME)
    _TIMESTAMP.pack_into(batch, _MAX_TIMESTAMP_POSITION, now_ms)
    _CRC.pack_into(batch, _CRC_POSITION, crc32c(memoryview(batch)[ATTRIBUTES_POSITION:]))


def batch_bounds(buf: Buffer | bytearray, pos: int = 0) -> BatchBounds:
    """Bounds of the batch that starts at `pos`.

    Raises:
        Malformed: no batch of magic 2 starts there, or it does not end within `buf`.
    """
    try:
        base_offset, length, magic, last_offset_delta, max_timestamp, count = _BOUNDS.unpack_from(buf, pos)
    except struct.error as error:
        raise Malformed(f"record batch: {len(buf) - pos} bytes hold no batch header") from error
    size = length + LENGTH_OVERHEAD_BYTES
    if magic != MAGIC or size < HEADER_BYTES or pos + size > len(buf) or last_offset_delta < 0:
        raise Malformed(f"record batch of magic {magic} and {size} bytes at {pos} of {len(buf)}")
    return _new(BatchBounds, (base_offset, base_offset + last_offset_delta + 1, size, count, max_timestamp))


def batch_max_timestamps(buf: Buffer | bytearray, positions: Iterable[int]) -> list[int]:
    """Largest timestamps of the batches that start at `positions`."""
    unpack = _MAX_TIMESTAMP.unpack_from
    return [unpack(buf, pos)[0] for pos in positions]


def batch_producer_id(buf: Buffer | bytearray, pos: int) -> int:
    """Producer id of the batch that starts at `pos`: all of a header that most replays look at."""
    producer_id: int = _PRODUCER_ID.unpack_from(buf, pos)[0]
    return producer_id


def iter_bounds(buf: Buffer | bytearray) -> Iterator[tuple[int, BatchBounds]]:
    """Position and bounds of each of the consecutive batches that fill `buf`.

    Raises:
        Malformed: as `batch_bounds`, when the iteration gets there.
    """
    pos = 0
    while pos < len(buf):
        bounds = batch_bounds(buf, pos)
        yield pos, bounds
        pos += bounds.size_bytes
