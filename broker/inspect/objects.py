"""`tidelog inspect object`: footer, index and blocks of one data object, and what is in them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from broker.inspect.batches import batch_rows
from broker.inspect.bucket import Bucket, stream_name
from broker.inspect.index import read_footer, read_index, read_tail
from broker.inspect.rows import DamageRow, NoteRow, Row, offsets, plural, size, when
from broker.inspect.states import state_row
from controller.image import Image
from s3stream.errors import ObjectCorrupt
from s3stream.metadata import ObjectId
from s3stream.object_format import BlockKind, Footer, IndexEntry, check_block
from s3stream.objectstore import Archived, NotFound

__all__ = ["inspect_object"]


class ObjectRow(Row, frozen=True, kw_only=True):
    """The object and its footer."""

    object_id: int
    key: str
    size_bytes: int
    index_position: int
    index_size_bytes: int
    index_crc32c: str
    body_crc32c: str
    block_count: int

    def text(self) -> str:
        return (
            f"object {self.object_id}: {self.key}, {size(self.size_bytes)}\n"
            f"footer: {plural(self.block_count, 'block')} with CRC {self.body_crc32c}, an index of {size(self.index_size_bytes)} "
            f"at {self.index_position} with CRC {self.index_crc32c}; all intact"
        )


class ReferenceRow(Row, frozen=True, kw_only=True):
    """What the metadata says of the object."""

    status: str
    """referenced, unreferenced, expired, deleted, or unknown: never committed."""
    since_ms: int
    """When it came to that, -1 where that is not recorded."""
    ranges: tuple[tuple[str, int, int], ...]
    """(partition, base offset, exclusive end offset) that are needed of it."""

    def text(self) -> str:
        since = "" if self.since_ms < 0 else f" since {when(self.since_ms)}"
        needed = ", ".join(f"{name} {offsets(low, high)}" for name, low, high in self.ranges)
        return f"metadata: {self.status}{since}" + (f"; needed for {needed}" if needed else "")


class BlockRow(Row, frozen=True, kw_only=True):
    """One entry of the index."""

    number: int
    block_kind: str
    stream_id: int
    partition: str
    leader_epoch: int
    base_offset: int
    end_offset: int
    record_count: int
    max_timestamp_ms: int
    position: int
    size_bytes: int
    crc32c: str
    crc: str
    """ok, DAMAGED or not read."""

    def text(self) -> str:
        stream = f"stream {self.stream_id} {self.partition}".rstrip()
        what = (
            f"as of offset {self.end_offset}"
            if self.block_kind == "state"
            else f"offsets {offsets(self.base_offset, self.end_offset)}, {plural(self.record_count, 'record')}, "
            f"newest {when(self.max_timestamp_ms)}"
        )
        return (
            f"  block {self.number} {self.block_kind}: {stream}, leader epoch {self.leader_epoch}, {what}, "
            f"{size(self.size_bytes)} at {self.position}, CRC {self.crc32c} {self.crc}"
        )


async def inspect_object(
    bucket: Bucket, object_id: ObjectId, *, image: Image | None, read_blocks: bool, batches: bool, records: bool
) -> AsyncGenerator[Row]:
    """Tell what is in an object.

    Args:
        image: The metadata, for names and references; None leaves them out.
        read_blocks: Read the blocks and check their CRCs; without it nothing but the object's end is read.
        batches: Tell the batches of data blocks.
        records: Tell their records too.

    Raises:
        NotFound, ObjectStoreError: it cannot be read.
        UnsupportedObjectFormat: a newer version wrote it.
    """
    key = bucket.paths.data_object(object_id)
    if image is not None:
        yield reference_row(image, object_id)
    try:
        tail = await read_tail(bucket.store, key)
    except NotFound:
        yield DamageRow(message=f"object {object_id} is not in the store ({key})")
        return
    except Archived as error:
        yield DamageRow(message=f"object {object_id}: {error}")
        return
    try:
        footer = read_footer(tail, object_id)
        index = await read_index(bucket.store, key, tail, footer)
    except ObjectCorrupt as error:
        yield DamageRow(message=f"{error} (the object has {tail.object_size_bytes} bytes)")
        return
    yield _object_row(key, footer, index.entry_count)
    for number, entry in enumerate(index.entries()):
        data: bytes | bytearray = b""
        crc, damage = "not read", ""
        if read_blocks:
            data = await bucket.store.get_range(key, entry.position, entry.position + entry.size_bytes)
            try:
                check_block(object_id, entry, data)
                crc = "ok"
            except ObjectCorrupt as error:
                crc, damage = "DAMAGED", str(error)
        yield _block_row(number, entry, crc, image)
        if damage:
            yield DamageRow(message=damage)
        elif read_blocks and entry.kind == BlockKind.STATE:
            yield state_row(entry.end_offset, bytes(data))
        elif read_blocks and (batches or records):
            for row in batch_rows(memoryview(data), with_records=records):
                yield row


def reference_row(image: Image, object_id: ObjectId) -> Row:
    """What the metadata says of an object."""
    tables = image.state.tables
    if (entry := tables.objects.get(object_id)) is not None:
        ranges = tuple(
            (stream_name(image, value.stream_id), value.base_offset, value.end_offset)
            for value in tables.live_ranges(entry)
        )
        return ReferenceRow(status="referenced", since_ms=entry.committed_at_ms, ranges=ranges)
    if (gone := tables.unreferenced.get(object_id)) is not None:
        return ReferenceRow(status="unreferenced", since_ms=gone.unreferenced_at_ms, ranges=())
    if object_id in tables.expired:
        return ReferenceRow(status="expired, to be deleted", since_ms=-1, ranges=())
    if object_id in tables.gone:
        return ReferenceRow(status="expired and deleted", since_ms=-1, ranges=())
    if object_id >= tables.next_object_id:
        return NoteRow(message=f"the metadata never gave out the id {object_id}: is this the object's bucket?")
    return ReferenceRow(status="never committed", since_ms=-1, ranges=())


def _object_row(key: str, footer: Footer, block_count: int) -> ObjectRow:
    return ObjectRow(
        object_id=footer.object_id,
        key=key,
        size_bytes=footer.object_size_bytes,
        index_position=footer.index_position,
        index_size_bytes=footer.index_size_bytes,
        index_crc32c=f"{footer.index_crc32c:08x}",
        body_crc32c=f"{footer.body_crc32c:08x}",
        block_count=block_count,
    )


def _block_row(number: int, entry: IndexEntry, crc: str, image: Image | None) -> BlockRow:
    return BlockRow(
        number=number,
        block_kind=BlockKind(entry.kind).name.lower(),
        stream_id=entry.stream_id,
        partition=stream_name(image, entry.stream_id),
        leader_epoch=entry.leader_epoch,
        base_offset=entry.base_offset,
        end_offset=entry.end_offset,
        record_count=entry.record_count,
        max_timestamp_ms=entry.max_timestamp_ms,
        position=entry.position,
        size_bytes=entry.size_bytes,
        crc32c=f"{entry.crc32c:08x}",
        crc=crc,
    )
