"""The compiler on declarations of our own: what no message of the first broker needs, and what a declaration must not say."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import pytest

from protocol.compiler import compile_decoder, compile_encoder
from protocol.errors import Malformed
from protocol.types import (
    NULL_UUID,
    Buffer,
    Message,
    RecordsField,
    Uuid,
    boolean,
    bytestring,
    float64,
    int8,
    int16,
    int32,
    int64,
    nullable_since,
    since,
    string,
    tag,
    until,
)


class Point(Message):
    x: int32 = 0
    y: int32 = -1


class Everything(Message):
    """One field of every type; in hex below, in the order of the wire."""

    flag: boolean = False
    tiny: int8 = 0
    short: int16 = 0
    number: int32 = 0
    long: int64 = 0
    ratio: float64 = 0.0
    topic_id: Uuid = NULL_UUID
    name: string = ""
    data: bytestring = b""
    point: Annotated[Point | None, nullable_since(1)] = None
    shorts: Sequence[int16] = ()
    ids: Sequence[Uuid] = ()
    names: Annotated[Sequence[string] | None, nullable_since(1)] = ()
    points: Sequence[Point] = ()
    records: RecordsField | None = None


class Tagged(Message):
    plain: int8 = 0
    number: Annotated[int32, tag(0)] = 7
    name: Annotated[string | None, tag(1)] = None
    point: Annotated[Point | None, tag(2)] = None
    numbers: Annotated[Sequence[int32], tag(200)] = ()


class Moved(Message):
    """`old` became `new` in version 2."""

    old: Annotated[int8, until(1)] = 5
    new: Annotated[string, since(2)] = "none"


def encode(message: Message, version: int = 1, flexible: bool = True) -> bytes:
    parts: list[Buffer] = []
    compile_encoder(type(message), version, flexible).call(message, parts)
    return b"".join(parts)


def decode(cls: type[Message], data: str | bytes, version: int = 1, flexible: bool = True) -> Any:
    raw = bytes.fromhex(data) if isinstance(data, str) else data
    return compile_decoder(cls, version, flexible).call(memoryview(raw), 0)


EVERYTHING = Everything(
    True,
    -2,
    3,
    4,
    5,
    0.5,
    bytes(range(16)),
    "é",
    b"\x07",
    Point(1, 2),
    [8, -9],
    [bytes(16)],
    ["a", ""],
    [Point(3, 4)],
    b"r",
)
FIXED = "01fe00030000000400000000000000053fe0000000000000000102030405060708090a0b0c0d0e0f"


def test_every_type_in_compact_form() -> None:
    wire = (
        FIXED + "03" "c3a9" "02" "07" "01" "00000001" "00000002" "00" "03" "0008" "fff7" "02" + "00" * 16
        + "03" "02" "61" "01" "02" "00000003" "00000004" "00" "02" "72" "00"
    )  # fmt: skip
    assert encode(EVERYTHING).hex() == wire
    assert decode(Everything, wire) == EVERYTHING


def test_every_type_in_the_older_form() -> None:
    wire = (
        FIXED + "0002" "c3a9" "00000001" "07" "01" "00000001" "00000002" "00000002" "0008" "fff7" "00000001" + "00" * 16
        + "00000002" "0001" "61" "0000" "00000001" "00000003" "00000004" "00000001" "72"
    )  # fmt: skip
    assert encode(EVERYTHING, flexible=False).hex() == wire
    assert decode(Everything, wire, flexible=False) == EVERYTHING


def test_nullable_structs_have_a_presence_byte() -> None:
    """KIP-893: -1 is null, 1 is there."""
    empty = Everything(names=None)
    head = "00" * 40 + "0101"
    assert encode(empty).hex() == head + "ff010100010000"
    assert decode(Everything, encode(empty)) == Everything(shorts=[], ids=[], names=None, points=[])
    assert encode(Everything(point=Point())).hex() == head + "0100000000ffffffff00010101010000"


def test_null_before_nullable_since_is_our_mistake_and_a_peers_malformation() -> None:
    with pytest.raises(TypeError):
        encode(Everything(point=Point(), names=None), version=0)
    with pytest.raises(Malformed, match=r"Everything.names is null"):
        decode(Everything, "00" * 40 + "0101000000000000000000010100", version=0)


def test_tags_that_hold_their_default_are_left_out() -> None:
    assert encode(Tagged(3)).hex() == "0300"
    assert encode(Tagged(3, 7, None, Point(0, -1), [])).hex() == "0300"
    assert decode(Tagged, "0300") == Tagged(3, 7, None, None, ())


def test_tags_carry_number_size_and_value_in_ascending_order() -> None:
    full = Tagged(3, 8, "n", Point(1, 2), [9])
    wire = "03040004000000080102026e0209000000010000000200c801050200000009"
    assert encode(full).hex() == wire
    assert decode(Tagged, wire) == full


def test_unknown_tags_are_skipped() -> None:
    assert decode(Tagged, "03020004000000086302abcd") == Tagged(3, 8)
    assert decode(Point, "00000001000000020200006302abcd") == Point(1, 2)
    assert decode(Everything, encode(EVERYTHING)[:-1] + bytes.fromhex("01050100")) == EVERYTHING


def test_flat_structs_with_unknown_tags_among_them_are_read_one_by_one() -> None:
    wire = bytes.fromhex("00" * 40 + "01" "01" "ff" "01" "01" "01" "04" + "00000001" "00000002" "00"
                         "00000003" "00000004" "01" "05" "01" "aa" "00000005" "00000006" "00" "00" "00")  # fmt: skip
    assert decode(Everything, wire).points == [Point(1, 2), Point(3, 4), Point(5, 6)]


def test_tags_come_in_any_order_and_the_last_of_two_alike_counts() -> None:
    """KIP-482 has writers send them ascending, but Kafka's reader does not insist."""
    assert decode(Tagged, "03020102026e000400000008") == Tagged(3, 8, "n")
    assert decode(Tagged, "0302000400000008000400000009") == Tagged(3, 9)


@pytest.mark.parametrize(
    "wire",
    [
        "03" "01" "00" "05" "00000008" "00",  # larger than its value
        "03" "01" "00" "03" "00000008",  # smaller than its value
        "03" "01" "00" "04" "0000",  # cut short
        "03" "01" "63" "09" "abcd",  # unknown and cut short
    ],
)  # fmt: skip
def test_tags_of_a_wrong_size_are_malformed(wire: str) -> None:
    with pytest.raises(Malformed):
        decode(Tagged, wire)
    with pytest.raises(Malformed):
        decode(Point, "0000000100000002" + wire[2:] if "63" in wire else "00")


def test_more_elements_than_the_frame_can_hold_are_refused_by_count() -> None:
    for count in ("ffffffff07", "8102"):
        with pytest.raises(Malformed, match=r"Everything.shorts claims \d+ elements"):
            decode(Everything, "00" * 40 + "0101ff" + count + "00" * 200)


def test_all_arrays_of_a_message_together_hold_no_more_than_the_limit() -> None:
    """Two bytes of frame may become a hundred of memory."""
    five = Everything(names=["", "", ""], points=[Point(), Point()])
    wire = memoryview(encode(five))
    assert compile_decoder(Everything, 1, True, max_elements=5).call(wire, 0).names == ["", "", ""]
    with pytest.raises(Malformed, match=r"Everything.points claims 2 elements"):
        compile_decoder(Everything, 1, True, max_elements=4).call(wire, 0)


def test_a_field_that_the_version_lacks_keeps_its_default_and_is_left_out() -> None:
    assert encode(Moved(1, "x"), version=1).hex() == "0100"
    assert encode(Moved(1, "x"), version=2).hex() == "027800"
    assert decode(Moved, "0100", version=1) == Moved(1, "none")
    assert decode(Moved, "027800", version=2) == Moved(5, "x")


def test_a_compact_string_is_no_longer_than_kafka_allows() -> None:
    longest = encode(Moved(0, "x" * 0x7FFF), version=2)
    assert decode(Moved, longest, version=2).new == "x" * 0x7FFF
    with pytest.raises(Malformed, match=r"Moved.new"):
        decode(Moved, bytes.fromhex("818002") + b"x" * 0x8000 + b"\0", version=2)


def test_a_varint_wider_than_32_bits_is_malformed() -> None:
    for wire in ("ffffffff1f", "ffffffffff01", "8080808080", "8080808010"):
        with pytest.raises(Malformed, match="wider than 32 bits"):
            decode(Moved, bytes.fromhex(wire) + bytes(10), version=2)


def test_tracebacks_show_generated_source() -> None:
    codec = compile_encoder(Moved, 2, True)
    try:
        codec.call(None, [])
    except AttributeError as error:
        shown = "".join(traceback.format_exception(error))
    assert "encode_Moved_v2" in shown
    assert "new = message.new" in shown
    assert "".join(linecache.getlines("<protocol encode_Moved_v2>")) == codec.source


class NullableNumber(Message):
    x: int32 | None = 0


class TagWithoutNone(Message):
    point: Annotated[Point, tag(0)] = None  # type: ignore[assignment]


class TwoTags(Message):
    x: Annotated[int32, tag(0)] = 0
    y: Annotated[int32, tag(0)] = 0


class Untyped(Message):
    x: int = 0


class NoDefault(Message):
    x: int32


class ArrayOfArrays(Message):
    x: Sequence[Sequence[int32]] = ()


class Endless(Message):
    inner: Endless | None = None


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (NullableNumber, r"NullableNumber.x: int32 cannot be null"),
        (TagWithoutNone, r"TagWithoutNone.point: a tagged struct must be"),
        (TwoTags, "two fields share a tag"),
        (Untyped, r"Untyped.x: .* is no wire type"),
        (NoDefault, "every field needs a default"),
        (ArrayOfArrays, r"ArrayOfArrays.x: array of array"),
        (Endless, "nested deeper than 8"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(cls: type[Message], reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        compile_decoder(cls, 0, True)


def test_tags_need_a_flexible_version() -> None:
    with pytest.raises(TypeError, match=r"Tagged.number: tagged in version 1, which is not flexible"):
        compile_encoder(Tagged, 1, False)
