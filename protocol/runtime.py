"""What generated code calls: the rare paths of varints, tags and records.

Always true here: a position past the frame's end may be passed around, but every path reads or compares before it
trusts one, so that an overrun ends in `IndexError`, `struct.error` or `Malformed` and never in wrong data.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NoReturn

from protocol.errors import Malformed
from protocol.types import Buffer

__all__ = [
    "JOIN_BELOW_BYTES",
    "MAX_STRING_BYTES",
    "PACK_INTS",
    "UNPACK_INTS",
    "VARINT",
    "bad_tag",
    "encode_uvarint",
    "null",
    "overrun",
    "put_records",
    "read_uvarint",
    "skip_tags",
    "too_many",
    "wide_uvarint",
]

MAX_STRING_BYTES = 0x7FFF
"""Kafka refuses longer strings, also where the compact length could express them."""

JOIN_BELOW_BYTES = 4096
"""Records up to this size are copied in between their neighbours: one more buffer in `writelines` costs more."""

VARINT = tuple(bytes([n]) for n in range(128))
"""The one-byte varints."""


INT_ARRAY_TABLE_SIZE = 16
"""Integer arrays shorter than this have a `struct.Struct` at hand: most are replica lists."""

PACK_INTS = {code: tuple(struct.Struct(f"!{n}{code}").pack for n in range(INT_ARRAY_TABLE_SIZE)) for code in "bhiq"}
UNPACK_INTS = {
    code: tuple(struct.Struct(f"!{n}{code}").unpack_from for n in range(INT_ARRAY_TABLE_SIZE)) for code in "bhiq"
}


def encode_uvarint(n: int) -> bytes:
    """Unsigned varint of `n`, seven bits a byte, low bits first (KIP-482)."""
    if n < 0x80:
        return VARINT[n]
    if n < 0x4000:
        return bytes((n & 0x7F | 0x80, n >> 7))
    if n < 0x200000:
        return bytes((n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14))
    if n < 0x10000000:
        return bytes((n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14 & 0x7F | 0x80, n >> 21))
    assert n < 1 << 32, "lengths are 32 bits wide"
    return bytes((n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14 & 0x7F | 0x80, n >> 21 & 0x7F | 0x80, n >> 28))


def wide_uvarint(n: int, buf: memoryview, pos: int) -> tuple[int, int]:
    """Go on with a varint whose first byte `n` has its high bit set; `pos` is after that byte."""
    byte = buf[pos]
    if byte < 0x80:
        return n & 0x7F | byte << 7, pos + 1
    n = n & 0x7F | (byte & 0x7F) << 7
    byte = buf[pos + 1]
    if byte < 0x80:
        return n | byte << 14, pos + 2
    n |= (byte & 0x7F) << 14
    byte = buf[pos + 2]
    if byte < 0x80:
        return n | byte << 21, pos + 3
    n |= (byte & 0x7F) << 21
    byte = buf[pos + 3]
    if byte > 0x0F:
        raise Malformed("varint is wider than 32 bits")
    return n | byte << 28, pos + 4


def read_uvarint(buf: memoryview, pos: int) -> tuple[int, int]:
    n = buf[pos]
    return (n, pos + 1) if n < 0x80 else wide_uvarint(n, buf, pos + 1)


def skip_tags(count: int, buf: memoryview, pos: int, end: int) -> int:
    """Skip a tag section none of whose `count` tags is known; `pos` is after the count."""
    for _ in range(count):
        number, pos = read_uvarint(buf, pos)
        size, pos = read_uvarint(buf, pos)
        pos += size
        if pos > end:
            bad_tag(number, size)
    return pos


def put_records(small: list[Buffer], parts: list[Buffer], records: Sequence[Buffer]) -> None:
    """Append many buffers after what `small` holds, the large ones as they are."""
    for piece in records:
        if len(piece) > JOIN_BELOW_BYTES:
            parts.append(b"".join(small))
            small.clear()
            parts.append(piece)
        else:
            small.append(piece)


def bad_tag(number: int, size: int) -> NoReturn:
    raise Malformed(f"tag {number} is not of {size} bytes, or reaches past the end of the frame")


def null(field: str) -> NoReturn:
    raise Malformed(f"{field} is null")


def overrun() -> NoReturn:
    raise Malformed("a field reaches past the end of the frame")


def too_many(field: str, count: int) -> NoReturn:
    raise Malformed(f"{field} claims {count} elements, more than the frame can hold or a request may")
