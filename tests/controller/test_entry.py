"""Entries: damaged, misplaced and newer ones are refused, each with its key and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.entry import EntryHeader, decode_entry, encode_entry
from controller.errors import MetadataCorrupt, UnsupportedMetadata
from controller.records import METADATA_VERSION, StreamsClosed, encode_records

HEADER = EntryHeader(index=7, controller_epoch=3, nonce=bytes(range(16)))
RECORDS = (StreamsClosed(stream_ids=(1, 2)),)
ENTRY = b"".join(encode_entry(HEADER, encode_records(RECORDS)))


def test_an_entry_comes_back_as_it_was() -> None:
    entry = decode_entry(ENTRY, 7, where="log/7")
    assert (entry.header, entry.records, entry.size_bytes) == (HEADER, RECORDS, len(ENTRY))


def test_the_layout_does_not_change() -> None:
    assert ENTRY[:41].hex() == (
        "544c4d4c" "01" f"{METADATA_VERSION:08x}" "0000000000000007" "0000000000000003" "000102030405060708090a0b0c0d0e0f"
    )  # fmt: skip


@settings(deadline=None)
@given(st.integers(0, len(ENTRY) * 8 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    damaged = bytearray(ENTRY)
    damaged[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises((MetadataCorrupt, UnsupportedMetadata), match="log/7"):
        decode_entry(bytes(damaged), 7, where="log/7")


@settings(deadline=None)
@given(st.integers(0, len(ENTRY) - 1))
def test_every_truncation_is_noticed(size: int) -> None:
    with pytest.raises(MetadataCorrupt, match="log/7"):
        decode_entry(ENTRY[:size], 7, where="log/7")


def test_an_entry_belongs_to_its_index() -> None:
    with pytest.raises(MetadataCorrupt, match="carries the index 7"):
        decode_entry(ENTRY, 8, where="log/8")


def test_an_entry_of_a_newer_version_stops_the_node() -> None:
    header = replace(HEADER, metadata_version=METADATA_VERSION + 1)
    newer = b"".join(encode_entry(header, encode_records(RECORDS)))
    with pytest.raises(UnsupportedMetadata, match=f"metadata version {METADATA_VERSION + 1}, newer than this node's"):
        decode_entry(newer, 7, where="log/7")
