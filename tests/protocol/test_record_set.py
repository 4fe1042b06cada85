"""Records inside batches, against aiokafka's and kafka-python's own readers and writers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.record import default_records as aiokafka_records
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.compression import Codec, compress, decompress
from protocol.errors import Malformed, OutputTooLarge
from protocol.record_set import (
    ControlType,
    Marker,
    Record,
    RecordMark,
    build_batch,
    build_control_batch,
    iter_batches,
    iter_records,
    read_marker,
    walk_records,
    with_records,
)
from protocol.records import HEADER_BYTES, crc_matches, parse_batch_header, stamp_log_append_time

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python reads its resources in an older way
    from kafka.record import default_records as kafka_python_records

CAP = 1 << 20
each_codec = pytest.mark.parametrize("codec", Codec)
each_client = pytest.mark.parametrize(
    "client", [aiokafka_records, kafka_python_records], ids=["aiokafka", "kafka-python"]
)

SAMPLE = [
    Record(b"key", b"value", 1_700_000_000_000),
    Record(None, None, 1_699_999_999_000, (("h", b"v"), ("null", None), ("", b""))),
    Record(b"", b"x" * 1000, 1_700_000_100_000),
]

records = st.lists(
    st.builds(
        Record,
        key=st.none() | st.binary(max_size=200),
        value=st.none() | st.binary(max_size=200),
        timestamp_ms=st.integers(min_value=0, max_value=2**45),
        headers=st.lists(
            st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.none() | st.binary(max_size=5)),
            max_size=3,
        ).map(tuple),
    ),
    min_size=1,
    max_size=20,
)


def read(batch: bytes) -> list[Record]:
    return list(iter_records(batch, max_output_bytes=CAP))


@each_codec
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(records=records, base_offset=st.integers(min_value=0, max_value=2**62))
def test_records_come_back_with_dense_offsets(codec: Codec, records: list[Record], base_offset: int) -> None:
    batch = build_batch(records, codec=codec, base_offset=base_offset)
    assert read(batch) == [record._replace(offset=base_offset + i) for i, record in enumerate(records)]


@given(records=records)
def test_a_walk_tells_the_same_as_reading(records: list[Record]) -> None:
    batch = build_batch(records, base_offset=7)
    marks = list(walk(batch))
    assert [mark for mark in marks if mark is not None] == [
        RecordMark(record.offset, record.timestamp_ms, record.key is not None) for record in read(batch)
    ]
    assert marks.count(None) == sum(len(record.headers) for record in records)


def walk(batch: bytes) -> Iterator[RecordMark | None]:
    header = parse_batch_header(batch)
    return walk_records(header, decompress(header.codec, memoryview(batch)[HEADER_BYTES:], CAP))


@each_codec
def test_a_walk_refuses_what_reading_refuses(codec: Codec) -> None:
    rng = random.Random(5)
    whole = build_batch(SAMPLE, codec=codec)
    refused = 0
    for _ in range(2000):
        mutant = bytearray(whole)
        mutant[rng.randrange(HEADER_BYTES, len(mutant))] = rng.randrange(256)
        try:
            read(bytes(mutant))
            readable = True
        except Malformed as error:
            readable = False
            if "utf-8" in str(error):
                continue  # names of headers are not read by a walk
        try:
            list(walk(bytes(mutant)))
            assert readable
        except Malformed:
            assert not readable
            refused += 1
    assert refused


def test_a_batch_by_hand() -> None:
    batch = build_batch([Record(b"k", b"v", 256, (("h", None),))], base_offset=1)
    assert batch.hex() == (
        "0000000000000001" "0000003d" "ffffffff" "02" + batch[17:21].hex() + "0000" "00000000"
        "0000000000000100" "0000000000000100" "ffffffffffffffff" "ffff" "ffffffff" "00000001"
        + "16" "00" "00" "00" "02" "6b" "02" "76" "02" "02" "68" "01"
    )  # fmt: skip


@each_client
@each_codec
def test_clients_read_what_we_build(client: Any, codec: Codec) -> None:
    batch = build_batch(SAMPLE, codec=codec, base_offset=7, producer_id=3, producer_epoch=1, base_sequence=5)
    theirs = client.DefaultRecordBatch(bytearray(batch))
    assert theirs.validate_crc()
    assert (theirs.producer_id, theirs.producer_epoch, theirs.base_sequence) == (3, 1, 5)
    assert [
        Record(r.key, r.value, r.timestamp, tuple((name, value) for name, value in r.headers), r.offset) for r in theirs
    ] == [record._replace(offset=7 + i) for i, record in enumerate(SAMPLE)]


@each_client
@each_codec
def test_we_read_what_clients_build(client: Any, codec: Codec) -> None:
    builder = client.DefaultRecordBatchBuilder(
        magic=2,
        compression_type=int(codec),
        is_transactional=1,
        producer_id=11,
        producer_epoch=2,
        base_sequence=4,
        batch_size=1 << 20,
    )
    for offset, record in enumerate(SAMPLE):
        builder.append(offset, record.timestamp_ms, record.key, record.value, list(record.headers))
    batch = bytes(builder.build())
    header = parse_batch_header(batch)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (11, 2, 4)
    assert header.is_transactional
    assert read(batch) == [record._replace(offset=i) for i, record in enumerate(SAMPLE)]


def test_kept_offsets_have_gaps_as_after_compaction() -> None:
    kept = [Record(b"a", b"", offset=12), Record(b"b", b"", offset=19)]
    batch = build_batch(kept, base_offset=10, keep_offsets=True)
    assert [record.offset for record in read(batch)] == [12, 19]
    assert parse_batch_header(batch).last_offset == 19


def test_log_append_time_is_every_records_time() -> None:
    batch = bytearray(build_batch(SAMPLE))
    stamp_log_append_time(batch, 42)
    assert {record.timestamp_ms for record in read(bytes(batch))} == {42}


def test_markers_end_transactions() -> None:
    batch = build_control_batch(
        Marker(ControlType.COMMIT, 6), producer_id=3, producer_epoch=1, timestamp_ms=9, base_offset=50
    )
    header = parse_batch_header(batch)
    assert (header.is_control, header.is_transactional, header.record_count) == (True, True, 1)
    [record] = read(batch)
    assert (record.key, record.value) == (bytes.fromhex("00000001"), bytes.fromhex("000000000006"))
    assert read_marker(record) == Marker(ControlType.COMMIT, 6)
    assert read_marker(Record(bytes.fromhex("00000000"), bytes(6))) == Marker(ControlType.ABORT, 0)


def test_control_records_of_other_types_end_nothing() -> None:
    assert read_marker(Record(bytes.fromhex("00000002"), b"")) is None
    for record in (Record(None, bytes(6)), Record(b"\0\0", bytes(6)), Record(bytes(4), bytes(5))):
        with pytest.raises(Malformed, match="control"):
            read_marker(record)


def test_batches_in_a_fetched_buffer_leave_out_the_one_cut_short() -> None:
    batch = build_batch(SAMPLE)
    assert list(iter_batches(batch * 2 + batch[:-1])) == [batch, batch]
    assert list(iter_batches(batch + batch[:5])) == [batch]
    with pytest.raises(Malformed):
        list(iter_batches(bytes(100)))


@each_codec
def test_the_cap_is_for_decompressed_bytes(codec: Codec) -> None:
    batch = build_batch([Record(None, bytes(100_000))], codec=codec)
    with pytest.raises(OutputTooLarge):
        list(iter_records(batch, max_output_bytes=100_000))
    assert len(list(iter_records(batch, max_output_bytes=100_100))) == 1


def test_reading_is_lazy_so_that_a_lookup_may_stop_early() -> None:
    batch = bytearray(build_batch(SAMPLE))
    batch[-1] = 0xFF  # only the last record is damaged
    reader = iter_records(batch, max_output_bytes=CAP)
    assert next(reader).key == b"key"


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (60, 2, "follow the last of 2 records"),
        (60, 4, "index out of range"),
        (61, 0x7E, "bytes where"),
        (61, 0x01, "record of -1 bytes"),
        (61, 0x20, "its size says"),
        (65, 0x7F, "record"),
    ],
)
def test_a_batch_that_its_records_do_not_fill_exactly_is_malformed(position: int, value: int, reason: str) -> None:
    batch = bytearray(build_batch([Record(b"key", b"value", 1)] * 3))
    batch[position] = value
    with pytest.raises(Malformed, match=reason):
        read(bytes(batch))


def test_header_names_are_never_null_and_counts_never_negative() -> None:
    head = build_batch([Record()])[:61]
    for body in ("100000000101020101", "0c000000010101", "0e0000000101fe7f"):
        raw = bytearray(head + bytes.fromhex(body))
        raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
        with pytest.raises(Malformed, match="header"):
            read(bytes(raw))


@pytest.mark.parametrize("before", ["", "80801000", "8080100000", "808010000000", "8080100000000101"])
def test_a_varint_without_end_is_refused_at_its_tenth_byte(before: str) -> None:
    """Else it would grow bit by bit into an integer as large as the batch."""
    raw = bytearray(build_batch([Record()])[:61] + bytes.fromhex(before) + b"\x80" * 10 + b"\x01" * (1 << 18))
    raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    with pytest.raises(Malformed, match="wider than 64 bits"):
        read(bytes(raw))


def test_a_buffer_that_is_not_exactly_one_batch_is_malformed() -> None:
    batch = build_batch(SAMPLE)
    for buffer in (batch + b"x", batch[:-1], batch * 2, b""):
        with pytest.raises(Malformed):
            read(buffer)


@each_codec
def test_mutated_batches_are_read_or_malformed(codec: Codec) -> None:
    rng = random.Random(f"mutants {codec}")
    batch = build_batch(SAMPLE * 5, codec=codec)
    for _ in range(1500):
        mutant = bytearray(batch)
        for _ in range(rng.randint(1, 4)):
            mutant[rng.randrange(12, len(mutant))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        try:
            read(bytes(mutant))
        except Malformed:
            continue


@each_codec
@pytest.mark.parametrize("into", Codec)
def test_a_batch_in_another_codec_is_the_same_batch(codec: Codec, into: Codec) -> None:
    sent = build_batch(SAMPLE, codec=codec, producer_id=7, producer_epoch=1, base_sequence=5, base_offset=3)
    before = parse_batch_header(sent)
    made = with_records(before, into, compress(into, decompress(codec, sent[HEADER_BYTES:], CAP)))
    after = parse_batch_header(made)
    assert (after.codec, after.size_bytes) == (into, len(made))
    assert crc_matches(made, after.crc)
    same = {"batch_length": 0, "crc": 0, "attributes": 0}
    assert after._replace(**same) == before._replace(**same)
    assert read(made) == read(sent)
