"""Kafka requests laid out ahead of time, so that a load generator spends its time in the kernel and not in encoding.

Always true:
- Independent of the product's codec: a mistake there is not measured around here.
- Requests are of one topic and one partition; batches are magic 2, uncompressed, of a plain producer, so
  the same bytes may be sent again and again and are valid each time.
- Layouts are those of Produce version 9 and Fetch version 12 (the last one that names topics).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import crc32c

__all__ = [
    "FETCH_VERSION",
    "PRODUCE_VERSION",
    "FetchResponseLayout",
    "fetch_offset_position",
    "fetch_request",
    "produce_error_position",
    "produce_request",
    "record_batch",
]

PRODUCE_VERSION = 9
FETCH_VERSION = 12
_CLIENT_ID = b"tidelog-bench"
_TIMEOUT_MS = 30_000


def _unsigned_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(value: int) -> bytes:
    return _unsigned_varint(value << 1 if value >= 0 else (-value << 1) - 1)


def record_batch(values: list[bytes], *, timestamp_ms: int) -> bytes:
    """A record batch of keyless records, ready to be produced."""
    records = bytearray()
    for delta, value in enumerate(values):
        body = b"\x00" + _varint(0) + _varint(delta) + _varint(-1) + _varint(len(value)) + value + _varint(0)
        records += _varint(len(body)) + body
    checked = (
        struct.pack(
            ">hiqqqhii", 0, len(values) - 1, timestamp_ms, timestamp_ms, -1, -1, -1, len(values)
        )  # attributes, last offset delta, timestamps, producer id, epoch, sequence, count
        + records
    )
    header_after_length = struct.pack(">ibI", -1, 2, crc32c.crc32c(checked))
    return struct.pack(">qi", 0, len(header_after_length) + len(checked)) + header_after_length + checked


def _frame(api_key: int, api_version: int, correlation_id: int, body: bytes) -> bytes:
    header = struct.pack(">hhih", api_key, api_version, correlation_id, len(_CLIENT_ID)) + _CLIENT_ID + b"\x00"
    return struct.pack(">i", len(header) + len(body)) + header + body


def produce_request(*, topic: str, partition: int, batch: bytes, correlation_id: int, acks: int = -1) -> bytes:
    """A whole Produce frame, its size in front."""
    name = topic.encode()
    body = (
        b"\x00"  # no transactional id
        + struct.pack(">hi", acks, _TIMEOUT_MS)
        + b"\x02"  # one topic
        + _unsigned_varint(len(name) + 1)
        + name
        + b"\x02"  # one partition
        + struct.pack(">i", partition)
        + _unsigned_varint(len(batch) + 1)
        + batch
        + b"\x00\x00\x00"  # tags of partition, topic and request
    )
    return _frame(0, PRODUCE_VERSION, correlation_id, body)


def produce_error_position(topic: str) -> int:
    """Where in a Produce response frame, its size included, the partition's error code is."""
    return 4 + 4 + 1 + 1 + 1 + len(topic.encode()) + 1 + 4


def fetch_request(
    *, topic: str, partition: int, max_bytes: int, correlation_id: int, max_wait_ms: int = 500
) -> bytearray:
    """A whole Fetch frame without a session, from offset 0: the load generator packs other offsets into it."""
    name = topic.encode()
    body = (
        struct.pack(">iiiibii", -1, max_wait_ms, 1, max_bytes, 0, 0, -1)
        + b"\x02"
        + _unsigned_varint(len(name) + 1)
        + name
        + b"\x02"
        + struct.pack(">iiqiqi", partition, -1, 0, -1, -1, max_bytes)
        + b"\x00\x00"  # tags of partition and topic
        + b"\x01\x01\x00"  # no forgotten topics, no rack, tags
    )
    return bytearray(_frame(1, FETCH_VERSION, correlation_id, body))


def fetch_offset_position(topic: str) -> int:
    """Where in a Fetch request frame the fetch offset (int64) is."""
    header_size = 4 + 2 + 2 + 4 + 2 + len(_CLIENT_ID) + 1
    return header_size + 25 + 1 + 1 + len(topic.encode()) + 1 + 4 + 4


@dataclass(frozen=True, slots=True)
class FetchResponseLayout:
    """Where a Fetch response frame of one partition holds what a load generator looks at."""

    topic: str

    @property
    def error_position(self) -> int:
        """Of the partition's error code (int16)."""
        return 4 + 4 + 1 + 4 + 2 + 4 + 1 + 1 + len(self.topic.encode()) + 1 + 4

    @property
    def records_position(self) -> int:
        """Of the length of the records (compact: an unsigned varint, one more than the size)."""
        return self.error_position + 2 + 8 + 8 + 8 + 1 + 4

    def records(self, frame: memoryview) -> tuple[int, int]:
        """Position and size of the records in a frame, from its first bytes."""
        position = self.records_position
        size_plus_one = shift = 0
        while True:
            byte = frame[position]
            position += 1
            size_plus_one |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return position, max(size_plus_one - 1, 0)
