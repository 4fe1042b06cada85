"""The one format of data objects, whether they hold one stream or many. Pure: bytes in, values out.

    block … block | index | footer

- A *data block* is consecutive payloads of one stream, verbatim, and nothing else. A *state block* is what its stream's
  owner needs to know at open, as of an offset: the end of the stream's data here when it is uploaded, an earlier one where
  compaction added data after which the state was not written again.
- The *index* has one entry of 64 bytes a block, in the order of the blocks: by stream; a stream's data blocks by
  offset, then its state block.
- The *footer* is the last 64 bytes, in every version. One read of the object's tail finds footer and (mostly) index.

Always true, and checked both when an index is built and when it is read:
- Every byte belongs to exactly one block, the index or the footer, and each of these has a CRC32C: no flipped bit goes
  unseen by whoever reads the part it is in.
- Blocks of a stream do not overlap and go up. There may be gaps between them (Kafka compaction leaves some).
- Reading trusts nothing: a length or a position that does not fit raises `ObjectCorrupt`, a version or block kind of
  the future `UnsupportedObjectFormat`; no other exception leaves this module.

Integers are big-endian. An object names its own id, so that one found under another's key is refused.
"""

from __future__ import annotations

import enum
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from s3stream.errors import ForeignObject, ObjectCorrupt, UnsupportedObjectFormat
from s3stream.metadata import ObjectId, StreamId
from s3stream.objectstore import Buffer
from wal.checksum import combine_crc32c, crc32c

__all__ = [
    "FOOTER_SIZE_BYTES",
    "FORMAT_VERSION",
    "INDEX_ENTRY_SIZE_BYTES",
    "BlockKind",
    "Footer",
    "IndexEntry",
    "ObjectBuilder",
    "ObjectIndex",
    "ObjectTail",
    "check_block",
    "parse_footer",
    "verify_object",
]

FORMAT_VERSION = 1

_MAGIC = b"TIDELOG\x0a"
_FOOTER = struct.Struct(">8sHHIQQQQIII")  # … and the CRC32C of all that
_FOOTER_CRC = struct.Struct(">I")
FOOTER_SIZE_BYTES = _FOOTER.size + _FOOTER_CRC.size
_ENTRY = struct.Struct(">BxxxIqqqqQIII4x")
INDEX_ENTRY_SIZE_BYTES = _ENTRY.size
_STREAM_ID = struct.Struct(">q")
_STREAM_ID_AT = 8

_MAX_BLOCK_SIZE_BYTES = (1 << 32) - 1
_REHASH_BELOW_BYTES = 1 << 17
"""Up to this size, hashing a block again costs less than combining its CRC."""

assert FOOTER_SIZE_BYTES == 64
assert INDEX_ENTRY_SIZE_BYTES == 64


class BlockKind(enum.IntEnum):
    """What a block holds."""

    DATA = 1
    STATE = 2


class IndexEntry(NamedTuple):
    """Where a block is and what it holds."""

    kind: int
    leader_epoch: int
    stream_id: StreamId
    base_offset: int
    """Of the first payload; for a state block the same as end_offset."""
    end_offset: int
    """Exclusive, of the last payload; for a state block the offset that it is as of."""
    max_timestamp_ms: int
    """Largest record timestamp inside, -1 where there is none."""
    position: int
    """First byte within the object."""
    size_bytes: int
    record_count: int
    crc32c: int


class Footer(NamedTuple):
    """What the last bytes of an object tell of the rest."""

    object_id: ObjectId
    object_size_bytes: int
    index_position: int
    index_size_bytes: int
    index_crc32c: int
    body_crc32c: int
    """Of everything before the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectTail:
    """What follows the last block."""

    data: bytes
    object_size_bytes: int
    object_crc32c: int
    """Of the whole object, combined from the blocks'."""


class ObjectBuilder:
    """Collects the blocks of one object, in order, and makes its index and footer.

    The caller keeps (or streams away) the blocks' bytes; only their sizes and CRCs pass through here.
    """

    __slots__ = ("_body_crc32c", "_entries", "_last", "_object_id", "_position")

    def __init__(self, object_id: ObjectId) -> None:
        self._object_id = object_id
        self._entries: list[IndexEntry] = []
        self._last: IndexEntry | None = None
        self._position = 0
        self._body_crc32c = 0

    @property
    def body_size_bytes(self) -> int:
        """Bytes of the blocks added so far."""
        return self._position

    def add_data(
        self,
        *,
        stream_id: StreamId,
        leader_epoch: int,
        base_offset: int,
        end_offset: int,
        record_count: int,
        max_timestamp_ms: int,
        parts: list[Buffer],
        part_crcs: Sequence[int | None] = (),
    ) -> int:
        """Add a data block whose bytes are the concatenation of `parts`; returns its CRC-32C.

        Args:
            part_crcs: CRC-32C of each part where it is known, so that it is not hashed again; empty: of none.
        """
        return self._add(
            BlockKind.DATA,
            stream_id,
            leader_epoch,
            base_offset,
            end_offset,
            record_count,
            max_timestamp_ms,
            parts,
            part_crcs,
        )

    def add_copy(self, block: IndexEntry, *, leader_epoch: int) -> None:
        """Add a data block of another object as it is: its bytes are taken over with the CRC that they have there."""
        self._body_crc32c = combine_crc32c(self._body_crc32c, block.crc32c, block.size_bytes)
        self._append(block._replace(leader_epoch=leader_epoch, position=self._position))

    def add_state(self, *, stream_id: StreamId, leader_epoch: int, end_offset: int, state: bytes) -> None:
        """Add a stream's state block, after its data blocks."""
        self._add(BlockKind.STATE, stream_id, leader_epoch, end_offset, end_offset, 0, -1, [state])

    def finish(self) -> ObjectTail:
        """Make index and footer."""
        index = b"".join([_ENTRY.pack(*entry) for entry in self._entries])
        object_size = self._position + len(index) + FOOTER_SIZE_BYTES
        footer = _FOOTER.pack(
            _MAGIC,
            FORMAT_VERSION,
            0,
            0,
            self._object_id,
            object_size,
            self._position,
            len(index),
            crc32c(index),
            self._body_crc32c,
            0,
        )
        data = index + footer + _FOOTER_CRC.pack(crc32c(footer))
        return ObjectTail(data=data, object_size_bytes=object_size, object_crc32c=crc32c(data, self._body_crc32c))

    def _add(
        self,
        kind: BlockKind,
        stream_id: StreamId,
        leader_epoch: int,
        base_offset: int,
        end_offset: int,
        record_count: int,
        max_timestamp_ms: int,
        parts: list[Buffer],
        part_crcs: Sequence[int | None] = (),
    ) -> int:
        block_crc = 0
        size = 0
        for part, known in zip(parts, part_crcs or repeat(None), strict=False):
            part_size = len(part)
            block_crc = crc32c(part, block_crc) if known is None else combine_crc32c(block_crc, known, part_size)
            size += part_size
        if size < _REHASH_BELOW_BYTES:
            for part in parts:
                self._body_crc32c = crc32c(part, self._body_crc32c)
        else:
            self._body_crc32c = combine_crc32c(self._body_crc32c, block_crc, size)
        entry = IndexEntry(
            kind,
            leader_epoch,
            stream_id,
            base_offset,
            end_offset,
            max_timestamp_ms,
            self._position,
            size,
            record_count,
            block_crc,
        )
        self._append(entry)
        return block_crc

    def _append(self, entry: IndexEntry) -> None:
        problem = _order_problem(self._last, entry)
        if problem:
            raise ValueError(f"{_describe(self._object_id, entry)}: {problem}")
        self._entries.append(entry)
        self._last = entry
        self._position += entry.size_bytes


class ObjectIndex:
    """The checked index of one object. It stays packed: 64 bytes an entry, found by binary search."""

    __slots__ = ("_raw", "entry_count", "footer")

    def __init__(self, footer: Footer, raw: bytes) -> None:
        """Check an index as read.

        Raises:
            ObjectCorrupt: it is not the index that the footer speaks of, or contradicts itself.
            UnsupportedObjectFormat: it lists blocks of a kind from the future.
        """
        object_id = footer.object_id
        if len(raw) != footer.index_size_bytes or crc32c(raw) != footer.index_crc32c:
            raise ObjectCorrupt(f"object {object_id}: the index does not match its CRC")
        self.footer = footer
        self._raw = raw
        self.entry_count = len(raw) // INDEX_ENTRY_SIZE_BYTES
        last: IndexEntry | None = None
        for entry in self.entries():
            problem = _order_problem(last, entry)
            if problem:
                if entry.kind not in (BlockKind.DATA, BlockKind.STATE):
                    raise UnsupportedObjectFormat(f"{_describe(object_id, entry)}: {problem}; upgrade this node")
                raise ObjectCorrupt(f"{_describe(object_id, entry)}: {problem}")
            last = entry
        body_size = last.position + last.size_bytes if last else 0
        if body_size != footer.index_position:
            raise ObjectCorrupt(f"object {object_id}: {body_size} bytes of blocks, index at {footer.index_position}")

    @property
    def object_id(self) -> ObjectId:
        """Whose index this is."""
        return self.footer.object_id

    @property
    def size_bytes(self) -> int:
        """Memory that the index takes."""
        return len(self._raw)

    def entry(self, number: int) -> IndexEntry:
        """The entry in place `number`."""
        return IndexEntry._make(_ENTRY.unpack_from(self._raw, number * INDEX_ENTRY_SIZE_BYTES))

    def entries(self) -> Iterator[IndexEntry]:
        """All entries, in order."""
        return map(IndexEntry._make, _ENTRY.iter_unpack(self._raw))

    def data_entries(self, stream_id: StreamId, offset: int = 0) -> Iterator[IndexEntry]:
        """Data blocks of a stream, from the first that ends past `offset` on."""
        low = self._first_of(stream_id)
        high = self._first_of(StreamId(stream_id + 1), low)
        if high > low and self.entry(high - 1).kind == BlockKind.STATE:
            high -= 1
        low = bisect_left(range(high), offset + 1, low, high, key=lambda number: self.entry(number).end_offset)
        for number in range(low, high):
            yield self.entry(number)

    def state_entry(self, stream_id: StreamId) -> IndexEntry | None:
        """The state block of a stream, if there is one."""
        number = self._first_of(StreamId(stream_id + 1)) - 1
        if number < 0:
            return None
        entry = self.entry(number)
        return entry if entry.stream_id == stream_id and entry.kind == BlockKind.STATE else None

    def end_position(self, stream_id: StreamId) -> int:
        """Where a stream's blocks end within the object, and those of all streams before it."""
        number = self._first_of(StreamId(stream_id + 1)) - 1
        if number < 0:
            return 0
        last = self.entry(number)
        return last.position + last.size_bytes

    def block_start(self, position: int) -> int:
        """Where the first block begins that begins at or behind a position within the object."""
        number = bisect_left(range(self.entry_count), position, key=lambda number: self.entry(number).position)
        return self.entry(number).position if number < self.entry_count else self.footer.index_position

    def _first_of(self, stream_id: StreamId, low: int = 0) -> int:
        raw = self._raw

        def stream_of(number: int) -> int:
            (value,) = _STREAM_ID.unpack_from(raw, number * INDEX_ENTRY_SIZE_BYTES + _STREAM_ID_AT)
            return int(value)

        return bisect_left(range(self.entry_count), int(stream_id), low, key=stream_of)


def parse_footer(tail: Buffer, object_size_bytes: int, object_id: ObjectId) -> Footer:
    """Read the footer at the end of `tail`, the last bytes of an object of the given size.

    Raises:
        ObjectCorrupt: it is no footer of that object (ForeignObject: but of another).
        UnsupportedObjectFormat: a newer version wrote it.
    """
    if len(tail) < FOOTER_SIZE_BYTES:
        raise ObjectCorrupt(f"object {object_id}: {object_size_bytes} bytes are too few to hold a footer")
    raw = bytes(tail[len(tail) - FOOTER_SIZE_BYTES :])
    magic, version, _flags, _, own_id, own_size, index_position, index_size, index_crc, body_crc, _ = (
        _FOOTER.unpack_from(raw)
    )
    (footer_crc,) = _FOOTER_CRC.unpack_from(raw, _FOOTER.size)
    if magic != _MAGIC:
        raise ObjectCorrupt(f"object {object_id}: no footer at its end: it was cut short, or is something else")
    if footer_crc != crc32c(raw[: _FOOTER.size]):
        raise ObjectCorrupt(f"object {object_id}: the footer does not match its CRC")
    if version > FORMAT_VERSION:
        raise UnsupportedObjectFormat(
            f"object {object_id} has format version {version}, this node reads up to {FORMAT_VERSION}: upgrade it"
        )
    if own_id != object_id:
        raise ForeignObject(f"object {object_id}: its content is that of object {own_id}")
    if own_size != object_size_bytes:
        raise ObjectCorrupt(f"object {object_id}: written with {own_size} bytes, has {object_size_bytes}")
    if index_position + index_size + FOOTER_SIZE_BYTES != own_size or index_size % INDEX_ENTRY_SIZE_BYTES:
        raise ObjectCorrupt(f"object {object_id}: an index of {index_size} bytes at {index_position} does not fit")
    return Footer(ObjectId(own_id), own_size, index_position, index_size, index_crc, body_crc)


def check_block(object_id: ObjectId, entry: IndexEntry, data: Buffer) -> None:
    """Check a block that was just read (I7).

    Raises:
        ObjectCorrupt: these are not the bytes that were written.
    """
    if len(data) != entry.size_bytes or crc32c(data) != entry.crc32c:
        raise ObjectCorrupt(f"{_describe(object_id, entry)}: the block does not match its CRC")


def verify_object(data: Buffer, object_id: ObjectId) -> ObjectIndex:
    """Check every byte of a whole object.

    Raises:
        ObjectCorrupt, UnsupportedObjectFormat: see above.
    """
    footer = parse_footer(data, len(data), object_id)
    end = len(data) - FOOTER_SIZE_BYTES
    view = memoryview(data)
    index = ObjectIndex(footer, bytes(view[footer.index_position : end]))
    for entry in index.entries():
        check_block(object_id, entry, view[entry.position : entry.position + entry.size_bytes])
    if crc32c(view[: footer.index_position]) != footer.body_crc32c:
        raise ObjectCorrupt(f"object {object_id}: the blocks do not match the CRC in the footer")
    return index


def _order_problem(last: IndexEntry | None, entry: IndexEntry) -> str | None:
    """Why `entry` cannot follow `last`."""
    if entry.kind == BlockKind.DATA:
        if not 0 <= entry.base_offset < entry.end_offset:
            return "the block holds no offsets"
    elif entry.kind == BlockKind.STATE:
        if not 0 <= entry.base_offset == entry.end_offset:
            return "a state block must be as of one offset"
    else:
        return f"unknown block kind {entry.kind}"
    if not 0 < entry.size_bytes <= _MAX_BLOCK_SIZE_BYTES:
        return f"a block cannot have {entry.size_bytes} bytes"
    if last is None:
        return None if entry.position == 0 else "the first block is not at the start"
    if entry.position != last.position + last.size_bytes:
        return "the block does not begin where the one before it ends"
    if entry.stream_id != last.stream_id:
        return None if entry.stream_id > last.stream_id else "streams are out of order"
    if last.kind == BlockKind.STATE:
        return "the block follows its stream's state block"
    if entry.kind == BlockKind.DATA and entry.base_offset < last.end_offset:
        return f"the block begins below offset {last.end_offset}, where the one before it ends"
    return None


def _describe(object_id: ObjectId, entry: IndexEntry) -> str:
    return (
        f"object {object_id}, stream {entry.stream_id}, offsets {entry.base_offset} to {entry.end_offset} (exclusive),"
        f" bytes {entry.position} to {entry.position + entry.size_bytes}"
    )
