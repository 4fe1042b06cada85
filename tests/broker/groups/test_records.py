"""The records of `__consumer_offsets`, byte for byte as Kafka writes them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.groups.records import (
    GroupValue,
    MemberValue,
    OffsetKey,
    OffsetValue,
    decode_group_value,
    decode_key,
    decode_offset_value,
    encode_group_key,
    encode_group_value,
    encode_offset_key,
    encode_offset_value,
)
from protocol.errors import Malformed

MEMBER = MemberValue("m-1", "inst", "app", "/10.0.0.1", 300_000, 45_000, b"\0\1", b"\2")


def test_key_of_an_offset() -> None:
    key = encode_offset_key("group", "topic", 7)
    assert key.hex(" ") == "00 01 00 05 67 72 6f 75 70 00 05 74 6f 70 69 63 00 00 00 07"
    assert decode_key(key) == OffsetKey("group", "topic", 7)
    assert decode_key(b"\0\0" + key[2:]) == OffsetKey("group", "topic", 7)  # before Kafka 0.9


def test_key_of_a_group() -> None:
    key = encode_group_key("group")
    assert key.hex(" ") == "00 02 00 05 67 72 6f 75 70"
    assert decode_key(key) == "group"


def test_keys_of_other_kinds_are_not_judged() -> None:
    assert decode_key(bytes.fromhex("0003 0005 67726f7570")) is None  # a consumer group's metadata (KIP-848)


def test_value_of_an_offset() -> None:
    value = OffsetValue(42, 5, "meta", 1_700_000_000_000)
    data = encode_offset_value(value)
    assert data.hex() == "0003000000000000002a0000000500046d6574610000018bcfe56800"
    assert decode_offset_value(data) == value


def test_an_offset_with_an_expiry_of_its_own_has_no_leader_epoch() -> None:
    data = encode_offset_value(OffsetValue(42, 5, "", 1_000, 2_000))
    assert data.hex() == "0001000000000000002a000000000000000003e800000000000007d0"
    assert decode_offset_value(data) == OffsetValue(42, -1, "", 1_000, 2_000)


def test_value_of_a_group() -> None:
    value = GroupValue("consumer", 3, "range", "m-1", 1_000, (MEMBER,))
    data = encode_group_value(value)
    assert data.hex() == (
        "0003" "0008636f6e73756d6572" "00000003" "000572616e6765" "00036d2d31" "00000000000003e8" "00000001"
        "00036d2d31" "0004696e7374" "0003617070" "00092f31302e302e302e31" "000493e0" "0000afc8"
        "00000002" "0001" "00000001" "02"
    )  # fmt: skip
    assert decode_group_value(data) == value


def test_an_empty_group_has_neither_protocol_nor_leader() -> None:
    data = encode_group_value(GroupValue("consumer", 4, None, None, 1_000, ()))
    assert data.hex() == "00030008636f6e73756d657200000004ffffffff00000000000003e800000000"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # version 0: neither rebalance timeout nor time nor instance
        (
            "0000" "0001 63" "00000001" "0001 72" "0001 6d" "00000001"
            "0001 6d" "0001 61" "0001 68" "0000000a" "00000000" "00000000",
            GroupValue("c", 1, "r", "m", -1, (MemberValue("m", None, "a", "h", 10, 10, b"", b""),)),
        ),
        # version 4: flexible, with a tag that is not known
        (
            "0004" "02 63" "00000001" "00" "00" "0000000000000005" "01" "01 07 02 aabb",
            GroupValue("c", 1, None, None, 5, ()),
        ),
    ],
)  # fmt: skip
def test_older_and_newer_groups_are_read(data: str, expected: GroupValue) -> None:
    assert decode_group_value(bytes.fromhex(data)) == expected


def test_a_flexible_offset_is_read() -> None:
    data = bytes.fromhex("0004000000000000002a00000005056d65746100000000000003e800")
    assert decode_offset_value(data) == OffsetValue(42, 5, "meta", 1_000)


strings = st.text(max_size=20)
nullable = st.none() | strings
int32 = st.integers(-(2**31), 2**31 - 1)
times = st.integers(0, 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
members = st.builds(MemberValue, strings, nullable, strings, strings, times, times, st.binary(), st.binary())


@given(st.builds(GroupValue, strings, int32, nullable, nullable, int64, st.lists(members, max_size=4).map(tuple)))
def test_any_group_comes_back(value: GroupValue) -> None:
    assert decode_group_value(encode_group_value(value)) == value


@given(st.builds(OffsetValue, int64, int32, strings, int64, st.just(-1)))
def test_any_offset_comes_back(value: OffsetValue) -> None:
    assert decode_offset_value(encode_offset_value(value)) == value


@given(st.binary(max_size=60), st.sampled_from([b"", b"\0\0", b"\0\1", b"\0\2", b"\0\3", b"\0\4", b"\0\5"]))
def test_whatever_cannot_be_read_is_malformed(data: bytes, version: bytes) -> None:
    for decode in (decode_key, decode_offset_value, decode_group_value):
        with contextlib.suppress(Malformed):
            decode(version + data)
