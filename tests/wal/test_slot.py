"""The codec of slots: round trips, and what is told of damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal.errors import WalCorrupt, WalUnsupportedFormat
from wal.slot import (
    SLOT_HEADER_SIZE_BYTES,
    Position,
    SlotHeader,
    SlotKind,
    pack_slot_header,
    parse_slot_key,
    read_slot_header,
    slot_key,
)

WAL_ID = "0123456789abcdef" * 2
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
IDS = st.integers(0, 2**128 - 1).map("{:032x}".format)
HEADERS = st.builds(
    SlotHeader,
    kind=st.sampled_from(SlotKind),
    wal_id=IDS,
    writer_id=IDS,
    position=st.builds(Position, U32, U64),
    base_offset=U64,
    end_offset=U64,
    confirmed_number=U64,
    confirmed_offset=U64,
    trim_offset=U64,
    trim=st.builds(Position, U32, U64),
)
HEADER = SlotHeader(kind=SlotKind.BATCH, wal_id=WAL_ID, writer_id=WAL_ID, position=Position(3, 7), end_offset=80)


@given(HEADERS)
def test_a_header_is_read_as_it_was_written(header: SlotHeader) -> None:
    packed = pack_slot_header(header)
    assert len(packed) == SLOT_HEADER_SIZE_BYTES
    assert read_slot_header(packed + b"frames", slot_key(header.wal_id, header.position)) == header


@given(st.integers(0, SLOT_HEADER_SIZE_BYTES * 8 - 1))
def test_any_flipped_bit_is_seen(bit: int) -> None:
    damaged = bytearray(pack_slot_header(HEADER))
    damaged[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(WalCorrupt):
        read_slot_header(bytes(damaged), slot_key(WAL_ID, HEADER.position))


def test_an_object_under_the_key_of_another_slot_is_refused() -> None:
    with pytest.raises(WalCorrupt, match="copied or renamed by hand"):
        read_slot_header(pack_slot_header(HEADER), slot_key(WAL_ID, Position(3, 8)))


def test_something_else_is_no_slot() -> None:
    with pytest.raises(WalCorrupt, match="is no slot of a WAL"):
        read_slot_header(b"hello", "wal/log/x")


def test_a_newer_version_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wal.slot.FORMAT_VERSION", 2)
    newer = pack_slot_header(HEADER)
    monkeypatch.undo()
    with pytest.raises(WalUnsupportedFormat, match="format version 2"):
        read_slot_header(newer, slot_key(WAL_ID, HEADER.position))


@given(st.lists(st.builds(Position, U32, U64)))
def test_keys_sort_as_positions_do(positions: list[Position]) -> None:
    keys = sorted(slot_key(WAL_ID, position) for position in positions)
    assert [parse_slot_key(WAL_ID, key) for key in keys] == sorted(positions)


@pytest.mark.parametrize("key", ["wal/node/1", "wal/log/other/1/2", f"wal/log/{WAL_ID}/1/2", f"wal/log/{WAL_ID}/x/y"])
def test_other_keys_are_not_ours(key: str) -> None:
    assert parse_slot_key(WAL_ID, key) is None
