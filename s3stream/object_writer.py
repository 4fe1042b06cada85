"""Decides which streams share an object, and lays objects out. Pure: payload views in, parts for a PUT out.

Always true:
- Large payloads are not copied: parts are views of them. Small ones are joined, a block at a time, because a
  PUT of many tiny parts costs more than the copy.
- A stream is in one object of an upload only, so that the order of commits is the order of its offsets.
- What a stream's range says (offsets, counts, bytes) is computed from the very payloads that are laid out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from s3stream.metadata import NewObject, ObjectId, StreamId, StreamRange
from s3stream.object_format import ObjectBuilder
from s3stream.objectstore import Buffer
from s3stream.payload import PayloadBounds
from wal.checksum import combine_crc32c

__all__ = [
    "BuiltObject",
    "DataBlock",
    "Payload",
    "StreamData",
    "StreamSource",
    "assemble_in_turns",
    "assemble_object",
    "build_object",
    "build_objects",
    "is_joined",
    "join_small",
    "plan_objects",
]

_JOIN_BELOW_BYTES = 16 << 10
"""Blocks whose payloads are smaller than this on average are joined into one part."""


class Payload(NamedTuple):
    """One payload (for Kafka: a record batch) and what the index must know of it."""

    data: Buffer
    base_offset: int
    end_offset: int
    """Exclusive."""
    record_count: int
    max_timestamp_ms: int

    @classmethod
    def of(cls, bounds: PayloadBounds, data: Buffer) -> Payload:
        """A payload whose bounds were read from its bytes."""
        return cls(data, bounds.base_offset, bounds.end_offset, bounds.record_count, bounds.max_timestamp_ms)


class DataBlock(NamedTuple):
    """Consecutive payloads of one stream, to be laid out as one block."""

    parts: list[Buffer]
    size_bytes: int
    base_offset: int
    end_offset: int
    """Exclusive."""
    record_count: int
    max_timestamp_ms: int
    part_crcs: Sequence[int | None] = ()
    """CRC-32C of each part where it is known already; empty: of none."""


class StreamSource(Protocol):
    """What an object is to hold of one stream; payloads are looked at only when their block is laid out."""

    @property
    def stream_id(self) -> StreamId:
        """Each stream is in an object at most once."""

    @property
    def leader_epoch(self) -> int:
        """Epoch under which the data is committed."""

    @property
    def base_offset(self) -> int:
        """Where the payloads begin, or, where there are none, the end offset that the state accounts for."""

    @property
    def size_bytes(self) -> int:
        """Of all payloads."""

    @property
    def state(self) -> bytes | None:
        """State block as of the end of the data, None = unchanged since the last upload."""

    def blocks(self, block_size_bytes: int) -> Iterator[DataBlock]:
        """The payloads, in offset order, in blocks of at most this size unless one payload is larger by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamData:
    """Payloads of one stream that are at hand as values."""

    stream_id: StreamId
    leader_epoch: int
    payloads: Sequence[Payload]
    """In offset order, at least one."""
    state: bytes | None
    """As of the last payload's end_offset; None = unchanged since the last upload."""
    size_bytes: int = field(init=False)
    """Of all payloads."""

    @property
    def base_offset(self) -> int:
        """See `StreamSource`."""
        return self.payloads[0].base_offset

    def __post_init__(self) -> None:
        if not self.payloads:
            raise ValueError(f"stream {self.stream_id}: nothing to write")
        object.__setattr__(self, "size_bytes", sum([len(payload.data) for payload in self.payloads]))

    def blocks(self, block_size_bytes: int) -> Iterator[DataBlock]:
        """See `StreamSource`."""
        for payloads in _blocks(self.payloads, block_size_bytes):
            parts: list[Buffer] = [payload.data for payload in payloads]
            size = sum(map(len, parts))
            yield DataBlock(
                join_small(parts, size),
                size,
                payloads[0].base_offset,
                payloads[-1].end_offset,
                sum(payload.record_count for payload in payloads),
                max(payload.max_timestamp_ms for payload in payloads),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltObject:
    """An object ready to be put, then committed."""

    new_object: NewObject
    parts: list[Buffer]
    crc32c: int
    """Of the whole object."""
    data_crcs: Mapping[StreamId, int]
    """Of all payloads of each stream."""


def join_small(parts: list[Buffer], size_bytes: int) -> list[Buffer]:
    """Join the payloads of a block where they are small on average; leave large ones as they are."""
    return [b"".join(parts)] if is_joined(len(parts), size_bytes) else parts


def is_joined(count: int, size_bytes: int) -> bool:
    """Whether so many payloads of so many bytes are copied into one part."""
    return count > 1 and size_bytes < _JOIN_BELOW_BYTES * count


def plan_objects(streams: Iterable[StreamSource], *, stream_object_min_bytes: int) -> list[list[StreamSource]]:
    """Group streams into objects: each with at least `stream_object_min_bytes` gets one of its own, the rest share one.

    Streams within a group are sorted as the format wants them.
    """
    own: list[list[StreamSource]] = []
    shared: list[StreamSource] = []
    for stream in sorted(streams, key=lambda stream: stream.stream_id):
        if stream.size_bytes >= stream_object_min_bytes:
            own.append([stream])
        else:
            shared.append(stream)
    return [*own, shared] if shared else own


def build_objects(
    streams: Iterable[StreamSource],
    object_ids: Sequence[ObjectId],
    *,
    block_size_bytes: int,
    stream_object_min_bytes: int,
) -> list[BuiltObject]:
    """Plan and lay out everything at once. Takes as many of the ids as there are groups; the rest stay unused."""
    groups = plan_objects(streams, stream_object_min_bytes=stream_object_min_bytes)
    if len(groups) > len(object_ids):
        raise ValueError(f"{len(object_ids)} object ids for {len(groups)} objects")
    return [
        build_object(object_id, group, block_size_bytes=block_size_bytes)
        for object_id, group in zip(object_ids, groups, strict=False)
    ]


def build_object(object_id: ObjectId, streams: Sequence[StreamSource], *, block_size_bytes: int) -> BuiltObject:
    """Lay out one object in one go; see `assemble_object`."""
    steps = assemble_object(object_id, streams, block_size_bytes=block_size_bytes)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            built: BuiltObject = stop.value
            return built


async def assemble_in_turns(
    object_id: ObjectId, streams: Sequence[StreamSource], *, block_size_bytes: int
) -> BuiltObject:
    """The same, letting others run after each data block."""
    steps = assemble_object(object_id, streams, block_size_bytes=block_size_bytes)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            built: BuiltObject = stop.value
            return built
        await asyncio.sleep(0)


def assemble_object(
    object_id: ObjectId, streams: Sequence[StreamSource], *, block_size_bytes: int
) -> Generator[None, None, BuiltObject]:
    """Lay out one object, yielding after each block so that the caller can let others run.

    Args:
        streams: sorted by stream id, each at most once.
        block_size_bytes: most bytes in a block; only a payload that is larger by itself makes a larger one.
    """
    builder = ObjectBuilder(object_id)
    parts: list[Buffer] = []
    ranges: list[StreamRange] = []
    data_crcs: dict[StreamId, int] = {}
    for stream in streams:
        end_offset = stream.base_offset
        record_count = size = crc = 0
        max_timestamp_ms = -1
        for block in stream.blocks(block_size_bytes):
            block_crc = builder.add_data(
                stream_id=stream.stream_id,
                leader_epoch=stream.leader_epoch,
                base_offset=block.base_offset,
                end_offset=block.end_offset,
                record_count=block.record_count,
                max_timestamp_ms=block.max_timestamp_ms,
                parts=block.parts,
                part_crcs=block.part_crcs,
            )
            crc = combine_crc32c(crc, block_crc, block.size_bytes) if size else block_crc
            end_offset = block.end_offset
            record_count += block.record_count
            size += block.size_bytes
            max_timestamp_ms = max(max_timestamp_ms, block.max_timestamp_ms)
            parts += block.parts
            yield
        if stream.state is not None:
            builder.add_state(
                stream_id=stream.stream_id,
                leader_epoch=stream.leader_epoch,
                end_offset=end_offset,
                state=stream.state,
            )
            parts.append(stream.state)
        ranges.append(
            StreamRange(
                stream_id=stream.stream_id,
                leader_epoch=stream.leader_epoch,
                base_offset=stream.base_offset,
                end_offset=end_offset,
                record_count=record_count,
                size_bytes=size,
                max_timestamp_ms=max_timestamp_ms,
                has_state=stream.state is not None,
            )
        )
        data_crcs[stream.stream_id] = crc
    tail = builder.finish()
    parts.append(tail.data)
    return BuiltObject(
        new_object=NewObject(object_id=object_id, size_bytes=tail.object_size_bytes, ranges=tuple(ranges)),
        parts=parts,
        crc32c=tail.object_crc32c,
        data_crcs=data_crcs,
    )


def _blocks(payloads: Sequence[Payload], block_size_bytes: int) -> Iterator[list[Payload]]:
    block: list[Payload] = []
    size = 0
    for payload in payloads:
        if block and size + len(payload.data) > block_size_bytes:
            yield block
            block, size = [], 0
        block.append(payload)
        size += len(payload.data)
    if block:
        yield block
