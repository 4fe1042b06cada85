"""From payloads to objects."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3stream.metadata import ObjectId, StreamId, StreamRange
from s3stream.object_format import verify_object
from s3stream.object_writer import StreamData, assemble_object, build_object, build_objects, plan_objects
from tests.s3stream.doubles import PlainPayloads, payload, payloads
from wal.checksum import crc32c

OBJECT = ObjectId(5)


def stream(stream_id: int, count: int, size: int = 100, state: bytes | None = None) -> StreamData:
    return StreamData(
        stream_id=StreamId(stream_id), leader_epoch=2, payloads=payloads(10, 10 + count, size=size), state=state
    )


def test_large_streams_get_objects_of_their_own() -> None:
    groups = plan_objects([stream(4, 2), stream(1, 50), stream(3, 2), stream(2, 60)], stream_object_min_bytes=5000)
    assert [[each.stream_id for each in group] for group in groups] == [[1], [2], [3, 4]]


def test_nothing_to_write_is_no_object() -> None:
    assert plan_objects([], stream_object_min_bytes=1) == []
    with pytest.raises(ValueError, match="nothing to write"):
        StreamData(stream_id=StreamId(1), leader_epoch=0, payloads=[], state=None)


def test_ranges_say_what_is_inside() -> None:
    built = build_object(OBJECT, [stream(1, 7, state=b"producers"), stream(2, 1)], block_size_bytes=250)

    assert built.new_object.ranges == (
        StreamRange(
            stream_id=StreamId(1), leader_epoch=2, base_offset=10, end_offset=17, record_count=7, size_bytes=700,
            max_timestamp_ms=160, has_state=True,
        ),
        StreamRange(
            stream_id=StreamId(2), leader_epoch=2, base_offset=10, end_offset=11, record_count=1, size_bytes=100,
            max_timestamp_ms=100, has_state=False,
        ),
    )  # fmt: skip
    whole = b"".join(built.parts)
    assert (len(whole), crc32c(whole)) == (built.new_object.size_bytes, built.crc32c)
    index = verify_object(whole, OBJECT)
    assert [entry.size_bytes for entry in index.data_entries(StreamId(1))] == [200, 200, 200, 100]
    state = index.state_entry(StreamId(1))
    assert state is not None
    assert (state.end_offset, whole[state.position :][: state.size_bytes]) == (17, b"producers")


def test_large_payloads_are_views_and_small_ones_are_joined() -> None:
    large = [payload(number, size=100_000) for number in range(4)]
    small = payloads(0, 20)
    built = build_object(
        OBJECT,
        [
            StreamData(stream_id=StreamId(1), leader_epoch=0, payloads=large, state=None),
            StreamData(stream_id=StreamId(2), leader_epoch=0, payloads=small, state=None),
        ],
        block_size_bytes=512 << 10,
    )
    assert [part is each.data for part, each in zip(built.parts, large, strict=False)] == [True] * 4
    assert built.parts[4] == b"".join(each.data for each in small)
    assert len(built.parts) == 6


def test_a_payload_larger_than_a_block_is_a_block() -> None:
    built = build_object(OBJECT, [stream(1, 3, size=1000)], block_size_bytes=100)
    index = verify_object(b"".join(built.parts), OBJECT)
    assert [entry.size_bytes for entry in index.entries()] == [1000, 1000, 1000]


def test_assembling_pauses_after_each_block() -> None:
    steps = assemble_object(OBJECT, [stream(1, 6), stream(2, 2)], block_size_bytes=200)
    assert sum(1 for _ in steps) == 4


def test_ids_must_suffice() -> None:
    with pytest.raises(ValueError, match="1 object ids for 2 objects"):
        build_objects([stream(1, 9), stream(2, 1)], [OBJECT], block_size_bytes=100, stream_object_min_bytes=500)


@given(st.integers(0, 1 << 30))
def test_every_payload_is_in_one_object_in_order(seed: int) -> None:
    rng = random.Random(seed)
    streams = [stream(number, rng.randint(1, 30), rng.choice([50, 150])) for number in range(rng.randint(1, 6))]
    built = build_objects(
        streams, [ObjectId(number) for number in range(6)], block_size_bytes=400, stream_object_min_bytes=2000
    )
    seen: dict[int, bytes] = {}
    for each in built:
        whole = b"".join(each.parts)
        index = verify_object(whole, each.new_object.object_id)
        for entry in index.entries():
            assert entry.size_bytes <= 400
            seen.setdefault(entry.stream_id, b"")
            seen[entry.stream_id] += whole[entry.position : entry.position + entry.size_bytes]
            bounds = PlainPayloads().bounds(whole, entry.position)
            assert bounds.base_offset == entry.base_offset
        assert len({entry.stream_id for entry in index.entries()}) == len(each.new_object.ranges)
    assert seen == {each.stream_id: b"".join(p.data for p in each.payloads) for each in streams}
