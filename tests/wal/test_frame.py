"""The frame codec: what is packed comes back, and no changed bit passes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal.checksum import crc32c
from wal.frame import (
    FRAME_HEADER_SIZE_BYTES,
    align_block,
    crc_seed,
    frame_size,
    pack_frame,
    payload_is_intact,
    read_header,
    restamp_confirmed,
    whole_frame_mask,
)

SEED = crc_seed("00112233445566778899aabbccddeeff")
FIELDS: dict[str, int] = {
    "log_offset": 4096,
    "confirmed_offset": 4000,
    "wal_epoch": 2,
    "padding_before": 96,
    "stream_id": 11,
    "leader_epoch": 4,
    "base_offset": 77,
    "record_count": 3,
}

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
all_fields = st.fixed_dictionaries(
    {
        "log_offset": u64,
        "confirmed_offset": u64,
        "wal_epoch": u32,
        "padding_before": u32,
        "stream_id": i64,
        "leader_epoch": i32,
        "base_offset": i64,
        "record_count": i32,
    }
)


def packed(payload: bytes, position: int = 0, seed: int = SEED, **fields: int) -> memoryview:
    """A buffer with one frame at `position`."""
    buffer = memoryview(bytearray(position + frame_size(len(payload))))
    payload_at = position + FRAME_HEADER_SIZE_BYTES
    buffer[payload_at : payload_at + len(payload)] = payload
    pack_frame(buffer, position, buffer[payload_at : payload_at + len(payload)], seed, **(FIELDS | fields))
    return buffer


@given(fields=all_fields, payload=st.binary(max_size=300), position=st.integers(0, 64).map(lambda n: n * 8))
def test_a_frame_comes_back_as_it_was_packed(fields: dict[str, Any], payload: bytes, position: int) -> None:
    buffer = packed(payload, position, **fields)

    header = read_header(buffer, position, SEED)

    assert header is not None
    assert {name: getattr(header, name) for name in fields} == fields
    assert header.payload_size == len(payload)
    assert header.end_offset == fields["log_offset"] + frame_size(len(payload))
    assert payload_is_intact(buffer, position, header, SEED)
    payload_at = position + FRAME_HEADER_SIZE_BYTES
    assert bytes(buffer[payload_at : payload_at + len(payload)]) == payload


@given(data=st.data(), payload=st.binary(max_size=100))
def test_a_flipped_bit_anywhere_is_noticed(data: st.DataObject, payload: bytes) -> None:
    buffer = packed(payload)
    covered = FRAME_HEADER_SIZE_BYTES + len(payload)
    bit = data.draw(st.integers(0, covered * 8 - 1))
    buffer[bit // 8] ^= 1 << bit % 8

    header = read_header(buffer, 0, SEED)

    assert header is None or not payload_is_intact(buffer, 0, header, SEED)


def test_every_bit_of_the_header_counts_on_its_own() -> None:
    for bit in range(FRAME_HEADER_SIZE_BYTES * 8):
        buffer = packed(b"payload")
        buffer[bit // 8] ^= 1 << bit % 8
        assert read_header(buffer, 0, SEED) is None, f"bit {bit}"


def test_a_frame_of_another_log_is_no_frame_of_ours() -> None:
    buffer = packed(b"payload", seed=crc_seed("ff" * 16))

    assert read_header(buffer, 0, SEED) is None


def test_raising_the_confirmed_offset_changes_nothing_else() -> None:
    buffer = packed(b"payload", position=8)
    before = read_header(buffer, 8, SEED)
    assert before is not None

    restamp_confirmed(buffer, 8, SEED, 4096)

    after = read_header(buffer, 8, SEED)
    assert after == before._replace(confirmed_offset=4096)
    assert payload_is_intact(buffer, 8, after, SEED)


@pytest.mark.parametrize("size", [0, 1, FRAME_HEADER_SIZE_BYTES - 1])
def test_less_than_a_header_is_no_frame(size: int) -> None:
    assert read_header(packed(b"")[:size], 0, SEED) is None


@given(st.integers(0, 1 << 20))
def test_frames_are_aligned_and_as_small_as_can_be(payload_size: int) -> None:
    size = frame_size(payload_size)

    assert size % 8 == 0
    assert 0 <= size - FRAME_HEADER_SIZE_BYTES - payload_size < 8
    assert 0 <= align_block(size) - size < 4096
    assert align_block(size) % 4096 == 0


def test_the_layout_on_the_disk_stays_as_it_is() -> None:
    """Golden bytes: a change here is a new format version."""
    assert bytes(packed(b"abc")) == bytes.fromhex(
        "5444574c 02000000 0010000000000000 a00f000000000000 60000000 03000000 0e432a8a 04000000"
        "0b00000000000000 4d00000000000000 03000000 ae9aebee 616263 0000000000"
    )


@given(payload=st.binary(max_size=3000), seed=u32)
def test_a_known_crc_gives_the_same_frame_as_hashing(payload: bytes, seed: int) -> None:
    assert packed(payload, seed=seed, payload_crc=crc32c(payload)) == packed(payload, seed=seed)


@given(all_fields, st.binary(max_size=300), st.data())
def test_one_crc_over_a_frame_tells_any_changed_bit(
    fields: dict[str, int], payload: bytes, data: st.DataObject
) -> None:
    buffer = packed(payload, **fields)
    frame = buffer[: FRAME_HEADER_SIZE_BYTES + len(payload)]
    header = read_header(buffer, 0, SEED)
    assert header is not None
    mask = whole_frame_mask(SEED, len(payload))
    assert crc32c(frame, SEED) == header.payload_crc ^ mask

    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8

    assert crc32c(frame, SEED) != struct.unpack_from("<I", frame, 32)[0] ^ mask


def test_one_crc_over_a_frame_tells_another_log_s_frame() -> None:
    payload = b"payload"
    frame = packed(payload, seed=crc_seed("f" * 32), **FIELDS)[: FRAME_HEADER_SIZE_BYTES + len(payload)]
    [payload_crc] = struct.unpack_from("<I", frame, 32)

    assert crc32c(frame, SEED) != payload_crc ^ whole_frame_mask(SEED, len(payload))
