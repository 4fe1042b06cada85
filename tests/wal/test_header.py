"""The WAL's header: two copies, the newer intact one counts, and what is not ours is refused with advice."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from wal.errors import WalCorrupt, WalUnsupportedFormat
from wal.header import RING_START_BYTES, WalHeader, choose_header, initial_image, pack_header, slot_position

HEADER = WalHeader(wal_id="0123456789abcdef" * 2, cluster_id="tide", node_id=1, capacity_bytes=1 << 20)

u64 = st.integers(0, 2**64 - 1)
headers = st.builds(
    WalHeader,
    wal_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    cluster_id=st.text(max_size=60),
    node_id=st.integers(-(2**31), 2**31 - 1),
    capacity_bytes=u64,
    generation=u64,
    wal_epoch=st.integers(0, 2**32 - 1),
    epoch_start_offset=u64,
    trim_offset=u64,
    confirmed_offset=u64,
    formatted_bytes=u64,
    closed=st.booleans(),
)


def with_slot(image: bytes, header: WalHeader, *, torn_at: int | None = None) -> bytes:
    """The image after a write of one more generation, of which only so many bytes may have arrived."""
    changed = bytearray(image)
    at = slot_position(header.generation)
    changed[at : at + len(pack_header(header)[:torn_at])] = pack_header(header)[:torn_at]
    return bytes(changed)


@given(headers)
def test_a_header_comes_back_as_it_was_packed(header: WalHeader) -> None:
    assert choose_header(with_slot(bytes(RING_START_BYTES), header)) == header


def test_the_newer_copy_counts() -> None:
    image = initial_image(HEADER)
    for generation in range(2, 6):
        image = with_slot(image, replace(HEADER, generation=generation, trim_offset=generation * 100))
        assert choose_header(image).trim_offset == generation * 100


@given(st.integers(0, 1023))
def test_a_torn_header_write_leaves_the_one_before_in_force(torn_at: int) -> None:
    image = with_slot(initial_image(HEADER), replace(HEADER, generation=2, trim_offset=200))
    torn = with_slot(image, replace(HEADER, generation=3, trim_offset=300), torn_at=torn_at)

    assert choose_header(torn).trim_offset == 200


def test_after_a_torn_write_the_next_one_goes_to_the_same_slot() -> None:
    image = with_slot(initial_image(HEADER), replace(HEADER, generation=2))
    torn = with_slot(image, replace(HEADER, generation=3), torn_at=30)

    found = choose_header(torn)

    assert slot_position(found.generation + 1) == slot_position(3)
    assert slot_position(found.generation + 1) != slot_position(found.generation)


def test_two_damaged_copies_are_corruption_and_no_fresh_start() -> None:
    with pytest.raises(WalCorrupt, match="restore the volume"):
        choose_header(bytes(RING_START_BYTES))


def test_a_newer_format_is_refused_with_advice() -> None:
    block = bytearray(pack_header(HEADER))
    struct.pack_into("<I", block, 8, 2)
    struct.pack_into("<I", block, 1024, crc32c(bytes(block[:1024])))

    with pytest.raises(WalUnsupportedFormat, match=r"version 2.*a newer one"):
        choose_header(bytes(block) * 2)


def test_one_copy_of_a_newer_format_is_enough_to_refuse() -> None:
    """A newer program that was stopped between its first and its second header write."""
    block = bytearray(pack_header(replace(HEADER, generation=9)))
    struct.pack_into("<I", block, 8, 2)
    struct.pack_into("<I", block, 1024, crc32c(bytes(block[:1024])))

    with pytest.raises(WalUnsupportedFormat):
        choose_header(pack_header(HEADER) + bytes(block))


def test_a_cluster_id_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 255"):
        pack_header(replace(HEADER, cluster_id="x" * 256))
