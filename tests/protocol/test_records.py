"""Batch headers: parsing, the rules of the produce path, stamping."""

from __future__ import annotations

import random
import struct

import pytest

from protocol.compression import Codec
from protocol.errors import ErrorCode, InvalidRecords, Malformed
from protocol.record_set import ControlType, Marker, Record, build_batch, build_control_batch, iter_records
from protocol.records import (
    HEADER_BYTES,
    batch_bounds,
    check_produced_header,
    crc_matches,
    iter_bounds,
    parse_batch_header,
    stamp,
    stamp_log_append_time,
)

LIMIT = 1_048_588
THREE = [Record(b"a", b"1", 100), Record(b"b", b"2", 300), Record(None, None, 200)]


def test_header_of_a_batch() -> None:
    batch = build_batch(
        THREE,
        base_offset=40,
        partition_leader_epoch=6,
        producer_id=9,
        producer_epoch=2,
        base_sequence=7,
        transactional=True,
    )
    header = parse_batch_header(batch)
    assert (header.base_offset, header.last_offset, header.record_count) == (40, 42, 3)
    assert (header.base_timestamp, header.max_timestamp) == (100, 300)
    assert (header.producer_id, header.producer_epoch, header.base_sequence, header.last_sequence) == (9, 2, 7, 9)
    assert (header.partition_leader_epoch, header.magic, header.size_bytes) == (6, 2, len(batch))
    assert (header.is_transactional, header.is_control, header.is_log_append_time, header.codec) == (
        True,
        False,
        False,
        0,
    )
    assert parse_batch_header(b"before" + batch, 6) == header


def test_sequences_wrap_to_zero() -> None:
    batch = build_batch(THREE, producer_id=1, producer_epoch=0, base_sequence=2**31 - 2)
    assert parse_batch_header(batch).last_sequence == 0
    assert parse_batch_header(build_batch(THREE)).last_sequence == -1


@pytest.mark.parametrize("codec", Codec)
def test_a_plain_batch_is_accepted(codec: Codec) -> None:
    batch = build_batch(THREE, codec=codec)
    header = check_produced_header(memoryview(batch), 9, LIMIT)
    assert header == parse_batch_header(batch)
    assert crc_matches(batch, header.crc)


def test_an_idempotent_batch_is_accepted() -> None:
    batch = build_batch(THREE, producer_id=1, producer_epoch=0, base_sequence=0)
    assert check_produced_header(batch, 9, LIMIT).producer_id == 1


def patched(position: int, code: str, value: int) -> bytes:
    batch = bytearray(build_batch(THREE))
    struct.pack_into(code, batch, position, value)
    return bytes(batch)


MARKER = build_control_batch(Marker(ControlType.COMMIT, 0), producer_id=1, producer_epoch=0, timestamp_ms=5)


@pytest.mark.parametrize(
    ("batch", "version", "error_code", "message"),
    [
        (None, 9, ErrorCode.INVALID_RECORD, "there is none"),
        (b"", 9, ErrorCode.INVALID_RECORD, "there is none"),
        (bytes(60), 9, ErrorCode.INVALID_RECORD, "magic 0"),
        (build_batch(THREE)[:60], 9, ErrorCode.CORRUPT_MESSAGE, "60 bytes are too few"),
        (build_batch(THREE)[:16], 9, ErrorCode.CORRUPT_MESSAGE, "16 bytes are too few"),
        (build_batch(THREE)[:-1], 9, ErrorCode.CORRUPT_MESSAGE, "arrived"),
        (patched(16, "b", 1), 9, ErrorCode.INVALID_RECORD, "magic 1"),
        (patched(16, "b", 3), 9, ErrorCode.INVALID_RECORD, "magic 3"),
        (patched(8, "!i", 48), 9, ErrorCode.CORRUPT_MESSAGE, "claims 60 bytes"),
        (patched(8, "!i", -12), 9, ErrorCode.CORRUPT_MESSAGE, "claims 0 bytes"),
        (patched(8, "!i", 2**31 - 1), 9, ErrorCode.CORRUPT_MESSAGE, "arrived"),
        (build_batch(THREE) * 2, 9, ErrorCode.INVALID_RECORD, "exactly one"),
        (patched(22, "b", 5), 9, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, "codec 5"),
        (build_batch(THREE, codec=Codec.ZSTD), 6, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, "zstd needs Produce v7"),
        (build_batch([Record(None, bytes(LIMIT))]), 9, ErrorCode.MESSAGE_TOO_LARGE, str(LIMIT)),
        (patched(57, "!i", 2), 9, ErrorCode.INVALID_RECORD, "2 records"),
        (patched(57, "!i", 0), 9, ErrorCode.INVALID_RECORD, "0 records"),
        (patched(23, "!i", -1), 9, ErrorCode.INVALID_RECORD, "last offset delta of -1"),
        (build_batch(THREE, producer_id=5), 9, ErrorCode.INVALID_RECORD, "producer 5 has sequence -1"),
        (MARKER, 9, ErrorCode.INVALID_RECORD, "control"),
        (build_batch(THREE, log_append_time_ms=5), 9, ErrorCode.INVALID_TIMESTAMP, "LogAppendTime"),
        (build_batch(THREE, control=True), 9, ErrorCode.INVALID_RECORD, "control"),
    ],
)
def test_a_broken_rule_is_answered_with_kafkas_error(
    batch: bytes | None, version: int, error_code: ErrorCode, message: str
) -> None:
    with pytest.raises(InvalidRecords, match=message) as caught:
        check_produced_header(batch, version, LIMIT)
    assert caught.value.error_code is error_code


def test_the_limit_counts_the_whole_batch() -> None:
    batch = build_batch(THREE)
    assert check_produced_header(batch, 9, len(batch)).size_bytes == len(batch)
    with pytest.raises(InvalidRecords):
        check_produced_header(batch, 9, len(batch) - 1)


def test_crc_covers_every_byte_from_the_attributes_on_and_none_before() -> None:
    batch = build_batch(THREE)
    crc = parse_batch_header(batch).crc
    for position in range(len(batch)):
        damaged = bytearray(batch)
        damaged[position] ^= 0x10
        assert crc_matches(damaged, crc) == (position < 21)


def test_stamping_leaves_everything_else_and_the_crc_alone() -> None:
    batch = bytearray(b"before" + build_batch(THREE) + b"behind")
    view = memoryview(batch)[6:-6]
    header = parse_batch_header(view)
    stamp(view, header.batch_length, 123_456_789_012, 77)
    assert parse_batch_header(view) == header._replace(base_offset=123_456_789_012, partition_leader_epoch=77)
    assert crc_matches(view, header.crc)
    assert bytes(batch[:6] + batch[-6:]) == b"beforebehind"
    assert [r.offset for r in iter_records(view, max_output_bytes=100)] == [123_456_789_012 + i for i in range(3)]


def test_log_append_time_sets_the_bit_the_time_and_the_crc() -> None:
    batch = bytearray(build_batch(THREE, codec=Codec.GZIP))
    before = parse_batch_header(batch)
    stamp_log_append_time(batch, 5000)
    after = parse_batch_header(batch)
    assert after == before._replace(attributes=0x09, max_timestamp=5000, crc=after.crc)
    assert after.crc != before.crc
    assert crc_matches(batch, after.crc)
    assert batch == bytearray(build_batch(THREE, codec=Codec.GZIP, log_append_time_ms=5000))
    assert {r.timestamp_ms for r in iter_records(batch, max_output_bytes=100)} == {5000}


def test_bounds_of_consecutive_batches() -> None:
    first, second = build_batch(THREE, base_offset=5), build_batch(THREE[:1], base_offset=8)
    assert list(iter_bounds(first + second)) == [
        (0, (5, 8, len(first), 3, 300)),
        (len(first), (8, 9, len(second), 1, 100)),
    ]
    assert batch_bounds(first + second, len(first)).end_offset == 9


def test_bounds_of_a_compacted_batch_keep_its_offsets() -> None:
    batch = build_batch([Record(b"k", b"v", offset=9)], base_offset=5, keep_offsets=True)
    bounds = batch_bounds(batch)
    assert (bounds.base_offset, bounds.end_offset, bounds.record_count) == (5, 10, 1)


@pytest.mark.parametrize(
    "buffer",
    [
        build_batch(THREE)[:-1],
        bytes(HEADER_BYTES),
        bytes(5),
        patched(8, "!i", -1),
        patched(16, "b", 1),
        patched(23, "!i", -1),
    ],
)
def test_bounds_of_what_is_no_batch(buffer: bytes) -> None:
    with pytest.raises(Malformed):
        batch_bounds(buffer)


def test_bounds_of_random_bytes_are_malformed_or_end_inside() -> None:
    rng = random.Random(3)
    whole = build_batch(THREE) * 3
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            for position, bounds in iter_bounds(damaged):
                assert position + bounds.size_bytes <= len(damaged)
        except Malformed:
            continue


def test_a_short_header_is_malformed() -> None:
    with pytest.raises(Malformed, match="60 bytes"):
        parse_batch_header(bytes(60))
