"""Which bytes of a new object are copied by the store, and which are read and written. Pure.

Always true:
- What is copied is whole, neighbouring blocks of one object, at least `LEAST_COPY_BYTES` and at most `MAX_COPY_BYTES` of them; what
  lies between two copies is nothing, or at least `LEAST_COPY_BYTES`: so S3 takes each of them for a part.
- Blocks that are much smaller than they should be are not copied: written anew, they are joined.
- Every block is in exactly one step, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from s3stream.metadata import ObjectId
from s3stream.object_format import IndexEntry
from s3stream.objectstore import LEAST_COPY_BYTES
from wal.checksum import combine_crc32c

__all__ = ["MAX_COPY_BYTES", "Copy", "Rewrite", "Splicer"]

MAX_COPY_BYTES = 128 << 20
"""A store copies so much in a few seconds. S3 would take 5 GiB at once."""
_WORTH_COPYING_BYTES = LEAST_COPY_BYTES
"""A copy costs as much as writing a part. It takes a little more of them, and spares reading and sending every byte."""
_SMALL_BLOCK_SHARE = 4
"""Blocks below this fraction of the target size, on average, are joined instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Blocks to be copied by the store."""

    object_id: ObjectId
    blocks: Sequence[IndexEntry]

    @property
    def start(self) -> int:
        """Of their bytes within the object."""
        return self.blocks[0].position

    @property
    def end(self) -> int:
        """Exclusive."""
        return self.blocks[-1].position + self.blocks[-1].size_bytes

    @property
    def crc32c(self) -> int:
        """Of all bytes together, as the index of the source has them."""
        crc = 0
        for block in self.blocks:
            crc = combine_crc32c(crc, block.crc32c, block.size_bytes)
        return crc


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """Blocks to be read, checked and written."""

    object_id: ObjectId
    blocks: Sequence[IndexEntry]


class Splicer:
    """Goes through the blocks of one new object, in their order."""

    def __init__(self, block_size_bytes: int, *, copies: bool) -> None:
        self._least_block_size = block_size_bytes // _SMALL_BLOCK_SHARE
        self._copies = copies
        self._written = 0
        """Bytes since the last copy, or the object's start."""

    def wrote(self, size_bytes: int) -> None:
        """Something else was written, such as a state."""
        self._written += size_bytes

    def steps(self, object_id: ObjectId, blocks: Sequence[IndexEntry]) -> Iterator[Copy | Rewrite]:
        """What to do with neighbouring blocks of one object."""
        size = sum(block.size_bytes for block in blocks)
        first = 0
        if self._copies and size >= max(_WORTH_COPYING_BYTES, len(blocks) * self._least_block_size):
            while 0 < self._written < LEAST_COPY_BYTES and first < len(blocks):
                size -= blocks[first].size_bytes
                self._written += blocks[first].size_bytes
                first += 1
            if size >= _WORTH_COPYING_BYTES:
                if first:
                    yield Rewrite(object_id=object_id, blocks=blocks[:first])
                for part in _parts(blocks[first:], size):
                    yield Copy(object_id=object_id, blocks=part)
                self._written = 0
                return
        if blocks:
            self._written += sum(block.size_bytes for block in blocks[first:])
            yield Rewrite(object_id=object_id, blocks=blocks)


def _parts(blocks: Sequence[IndexEntry], size: int) -> Iterator[Sequence[IndexEntry]]:
    """Divide evenly, so that the last part is no smaller than the others."""
    count = -(-size // MAX_COPY_BYTES)
    share = size / count
    part: list[IndexEntry] = []
    begun = taken = 0
    given = 1
    for block in blocks:
        is_full = given < count and taken + block.size_bytes > share * given
        if is_full and min(taken - begun, size - taken) >= LEAST_COPY_BYTES:
            yield part
            part, begun, given = [], taken, given + 1
        part.append(block)
        taken += block.size_bytes
    yield part
