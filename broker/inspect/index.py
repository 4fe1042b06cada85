"""Reads footer and index of one object, each by a step of its own, so that a tool can say which of them is damaged."""

from __future__ import annotations

from typing import Final, NamedTuple

from s3stream.metadata import ObjectId
from s3stream.object_format import FOOTER_SIZE_BYTES, Footer, ObjectIndex, parse_footer
from s3stream.objectstore import ObjectStore

__all__ = ["Tail", "read_footer", "read_index", "read_tail"]

TAIL_SIZE_BYTES: Final = 64 << 10
"""What is read at first: holds footer and index of objects of up to 1,023 blocks."""


class Tail(NamedTuple):
    """The last bytes of an object, and how many it has in all."""

    data: bytes
    object_size_bytes: int


async def read_tail(store: ObjectStore, key: str) -> Tail:
    """Read an object's end. Raises NotFound, Unavailable."""
    return Tail(*await store.get_tail(key, TAIL_SIZE_BYTES))


def read_footer(tail: Tail, object_id: ObjectId) -> Footer:
    """The footer. Raises ObjectCorrupt, ForeignObject, UnsupportedObjectFormat."""
    return parse_footer(tail.data, tail.object_size_bytes, object_id)


async def read_index(store: ObjectStore, key: str, tail: Tail, footer: Footer) -> ObjectIndex:
    """The index, out of the tail or by another read. Raises ObjectCorrupt, UnsupportedObjectFormat, NotFound, Unavailable."""
    at = len(tail.data) - FOOTER_SIZE_BYTES - footer.index_size_bytes
    if at >= 0:
        raw = tail.data[at : at + footer.index_size_bytes]
    else:
        raw = bytes(await store.get_range(key, footer.index_position, footer.index_position + footer.index_size_bytes))
    return ObjectIndex(footer, raw)
