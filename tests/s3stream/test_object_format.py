"""Objects: written, read back, and every damage noticed."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3stream.errors import ObjectCorrupt, UnsupportedObjectFormat
from s3stream.metadata import ObjectId, StreamId
from s3stream.object_format import (
    FOOTER_SIZE_BYTES,
    INDEX_ENTRY_SIZE_BYTES,
    BlockKind,
    ObjectBuilder,
    ObjectIndex,
    check_block,
    parse_footer,
    verify_object,
)
from wal.checksum import crc32c

OBJECT = ObjectId(77)
DATA_SIZES = st.binary(min_size=1, max_size=60)


def build(object_id: ObjectId = OBJECT) -> bytes:
    """Two streams: 3 has two data blocks with a gap between and a state, 9 has one data block."""
    builder = ObjectBuilder(object_id)
    blocks = [b"first block", b"second", b"state of three", b"of stream nine"]
    builder.add_data(
        stream_id=StreamId(3), leader_epoch=5, base_offset=10, end_offset=20, record_count=10, max_timestamp_ms=111,
        parts=[blocks[0][:5], memoryview(blocks[0])[5:]],
    )  # fmt: skip
    builder.add_data(
        stream_id=StreamId(3), leader_epoch=6, base_offset=25, end_offset=26, record_count=1, max_timestamp_ms=-1,
        parts=[blocks[1]],
    )  # fmt: skip
    builder.add_state(stream_id=StreamId(3), leader_epoch=6, end_offset=30, state=blocks[2])
    builder.add_data(
        stream_id=StreamId(9), leader_epoch=1, base_offset=0, end_offset=4, record_count=4, max_timestamp_ms=99,
        parts=[blocks[3]],
    )  # fmt: skip
    tail = builder.finish()
    whole = b"".join(blocks) + tail.data
    assert (len(whole), crc32c(whole)) == (tail.object_size_bytes, tail.object_crc32c)
    return whole


def parse(whole: bytes) -> ObjectIndex:
    footer = parse_footer(whole, len(whole), OBJECT)
    return ObjectIndex(footer, whole[footer.index_position : footer.index_position + footer.index_size_bytes])


def test_an_object_reads_back() -> None:
    whole = build()
    index = verify_object(whole, OBJECT)

    first, second, state, nine = index.entries()
    assert (first.leader_epoch, first.base_offset, first.end_offset, first.record_count) == (5, 10, 20, 10)
    assert (first.position, first.size_bytes, first.max_timestamp_ms) == (0, 11, 111)
    assert (state.kind, state.end_offset) == (BlockKind.STATE, 30)
    assert whole[nine.position : nine.position + nine.size_bytes] == b"of stream nine"
    assert [*index.data_entries(StreamId(3))] == [first, second]
    assert [*index.data_entries(StreamId(3), 19)] == [first, second]
    assert [*index.data_entries(StreamId(3), 20)] == [second]  # in the gap: the next block
    assert [*index.data_entries(StreamId(3), 26)] == []
    assert [*index.data_entries(StreamId(9), 3)] == [nine]
    assert [*index.data_entries(StreamId(4))] == []
    assert (index.state_entry(StreamId(3)), index.state_entry(StreamId(9))) == (state, None)
    assert index.state_entry(StreamId(1)) is None


def test_an_empty_object_is_valid() -> None:
    tail = ObjectBuilder(OBJECT).finish()
    assert verify_object(tail.data, OBJECT).entry_count == 0


def test_every_flipped_bit_is_noticed_by_whoever_reads_that_part() -> None:
    whole = build()
    sound = parse(whole)
    for bit in range(len(whole) * 8):
        at = bit >> 3
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (bit & 7)
        with pytest.raises(ObjectCorrupt):
            verify_object(damaged, OBJECT)
        with pytest.raises(ObjectCorrupt):
            read_around(sound, damaged, at)


def read_around(sound: ObjectIndex, damaged: bytearray, at: int) -> None:
    """Read as little as is needed to get the byte at `at`."""
    if at >= sound.footer.index_position:
        parse(bytes(damaged))
        return
    (entry,) = [entry for entry in sound.entries() if entry.position <= at < entry.position + entry.size_bytes]
    check_block(OBJECT, entry, damaged[entry.position : entry.position + entry.size_bytes])


def test_too_few_and_too_many_bytes_are_noticed() -> None:
    whole = build()
    for size in range(len(whole)):
        with pytest.raises(ObjectCorrupt):
            verify_object(whole[:size], OBJECT)
        with pytest.raises(ObjectCorrupt):
            verify_object(whole[: size + 1] + whole, OBJECT)


def test_an_object_under_anothers_key_is_refused() -> None:
    with pytest.raises(ObjectCorrupt, match="its content is that of object 78"):
        verify_object(build(ObjectId(78)), OBJECT)


def reseal(whole: bytearray) -> bytes:
    """Make all CRCs right again, as a faulty (or malicious) writer would."""
    footer = len(whole) - FOOTER_SIZE_BYTES
    (index_position,) = struct.unpack_from(">Q", whole, footer + 32)
    struct.pack_into(">I", whole, footer + 48, crc32c(whole[index_position:footer]))
    struct.pack_into(">I", whole, footer + 60, crc32c(whole[footer : footer + 60]))
    return bytes(whole)


def test_a_newer_version_asks_for_an_upgrade() -> None:
    whole = bytearray(build())
    struct.pack_into(">H", whole, len(whole) - FOOTER_SIZE_BYTES + 8, 2)
    with pytest.raises(UnsupportedObjectFormat, match="format version 2, this node reads up to 1: upgrade"):
        verify_object(reseal(whole), OBJECT)


def test_a_block_kind_of_the_future_asks_for_an_upgrade() -> None:
    whole = bytearray(build())
    whole[parse(bytes(whole)).footer.index_position] = 3
    with pytest.raises(UnsupportedObjectFormat, match="unknown block kind 3; upgrade"):
        verify_object(reseal(whole), OBJECT)


@settings(max_examples=300)
@given(st.data())
def test_nothing_but_typed_errors_come_from_an_index_that_lies(data: st.DataObject) -> None:
    """CRCs hold; the content of index and footer is arbitrary."""
    whole = bytearray(build())
    index_position = parse(bytes(whole)).footer.index_position
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(index_position, len(whole) - 5))
        whole[at] = data.draw(st.integers(0, 255))
    try:
        index = verify_object(reseal_if_possible(whole), OBJECT)
    except (ObjectCorrupt, UnsupportedObjectFormat):
        return
    for entry in index.entries():
        assert 0 <= entry.position < entry.position + entry.size_bytes <= index_position
        assert [*index.data_entries(entry.stream_id)] or index.state_entry(entry.stream_id)


def reseal_if_possible(whole: bytearray) -> bytes:
    (index_position,) = struct.unpack_from(">Q", whole, len(whole) - FOOTER_SIZE_BYTES + 32)
    return reseal(whole) if index_position < len(whole) else bytes(whole)


@given(
    st.dictionaries(
        st.integers(0, 1 << 62),
        st.tuples(
            st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50), DATA_SIZES), max_size=5), st.binary(max_size=9)
        ),
        max_size=6,
    )
)
def test_whatever_is_built_is_found_again(streams: dict[int, tuple[list[tuple[int, int, bytes]], bytes]]) -> None:
    builder = ObjectBuilder(OBJECT)
    body = b""
    expected: dict[int, list[tuple[int, int, bytes]]] = {}
    for stream_id in sorted(streams):
        blocks, state = streams[stream_id]
        at = 0
        expected[stream_id] = []
        for gap, count, data in blocks:
            builder.add_data(
                stream_id=StreamId(stream_id), leader_epoch=0, base_offset=at + gap, end_offset=at + gap + count,
                record_count=count, max_timestamp_ms=0, parts=[data],
            )  # fmt: skip
            expected[stream_id].append((at + gap, at + gap + count, data))
            at += gap + count
            body += data
        if state:
            builder.add_state(stream_id=StreamId(stream_id), leader_epoch=0, end_offset=at // 2, state=state)
            body += state
    whole = body + builder.finish().data

    index = verify_object(whole, OBJECT)

    for stream_id, blocks_of in expected.items():
        for offset in range(max([end for _, end, _ in blocks_of], default=0) + 1):
            found = [
                (entry.base_offset, entry.end_offset, whole[entry.position : entry.position + entry.size_bytes])
                for entry in index.data_entries(StreamId(stream_id), offset)
            ]
            assert found == [block for block in blocks_of if block[1] > offset]
        entry = index.state_entry(StreamId(stream_id))
        state = streams[stream_id][1]
        assert (whole[entry.position : entry.position + entry.size_bytes] if entry else b"") == state


@pytest.mark.parametrize(
    ("stream_id", "base_offset", "end_offset", "data", "expected"),
    [
        (3, 25, 30, b"x", "begins below offset 30"),
        (3, 30, 30, b"x", "holds no offsets"),
        (3, -1, 30, b"x", "holds no offsets"),
        (2, 0, 5, b"x", "streams are out of order"),
        (3, 30, 35, b"", "cannot have 0 bytes"),
    ],
)
def test_a_builder_refuses_what_no_reader_would_take(
    stream_id: int, base_offset: int, end_offset: int, data: bytes, expected: str
) -> None:
    builder = ObjectBuilder(OBJECT)
    builder.add_data(
        stream_id=StreamId(3), leader_epoch=0, base_offset=20, end_offset=30, record_count=1, max_timestamp_ms=0,
        parts=[b"x"],
    )  # fmt: skip
    with pytest.raises(ValueError, match=expected):
        builder.add_data(
            stream_id=StreamId(stream_id), leader_epoch=0, base_offset=base_offset, end_offset=end_offset,
            record_count=1, max_timestamp_ms=0, parts=[data],
        )  # fmt: skip


def test_nothing_follows_a_streams_state() -> None:
    builder = ObjectBuilder(OBJECT)
    builder.add_state(stream_id=StreamId(3), leader_epoch=0, end_offset=30, state=b"x")
    with pytest.raises(ValueError, match="follows its stream's state block"):
        builder.add_state(stream_id=StreamId(3), leader_epoch=0, end_offset=40, state=b"y")


def test_sizes_of_the_format() -> None:
    assert (INDEX_ENTRY_SIZE_BYTES, FOOTER_SIZE_BYTES) == (64, 64)
    assert len(build()) == 11 + 6 + 14 + 14 + 4 * 64 + 64


def test_golden_bytes() -> None:
    """The format in the bucket does not change by accident."""
    assert hashlib.sha256(build()).hexdigest() == "be91a1907695aac21539ee6d61fc885f06281c28eca8850b5d577950af80fe92"


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=5000), st.booleans()), min_size=1, max_size=6))
def test_crcs_that_are_known_give_the_same_object_as_hashing(parts: list[tuple[bytes, bool]]) -> None:
    def built(known: bool) -> tuple[bytes, int]:
        builder = ObjectBuilder(ObjectId(1))
        builder.add_data(
            stream_id=StreamId(1),
            leader_epoch=0,
            base_offset=0,
            end_offset=1,
            record_count=1,
            max_timestamp_ms=0,
            parts=[data for data, _ in parts],
            part_crcs=[crc32c(data) if tell else None for data, tell in parts] if known else (),
        )
        tail = builder.finish()
        return tail.data, tail.object_crc32c

    assert built(known=True) == built(known=False)
