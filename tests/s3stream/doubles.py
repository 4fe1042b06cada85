"""Stand-ins for what surrounds the storage engine: a payload format, and metadata with the controller's rules."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from s3stream.errors import ObjectExpired, SourcesChanged
from s3stream.memory import MemoryObjectStore
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    NewObject,
    ObjectId,
    ObjectRange,
    OpenedStream,
    StreamId,
    StreamRange,
)
from s3stream.object_writer import Payload, StreamData, build_object
from s3stream.objectstore import Buffer, ObjectStore
from s3stream.paths import Paths
from s3stream.payload import PayloadBounds

_HEADER = struct.Struct(">qIIq")
PATHS = Paths("cluster")


class PlainPayloads:
    """Payloads of a header (base offset, record count, size, timestamp) and filler."""

    def bounds(self, buffer: Buffer, position: int) -> PayloadBounds:
        """See PayloadFormat."""
        try:
            base_offset, count, size, timestamp_ms = _HEADER.unpack_from(buffer, position)
        except struct.error as error:
            raise ValueError(str(error)) from error
        if position + size > len(buffer):
            raise ValueError(f"a payload of {size} bytes does not end in the buffer")
        return PayloadBounds(base_offset, base_offset + count, size, count, timestamp_ms)

    def max_timestamps_ms(self, buffer: Buffer, positions: Sequence[int]) -> list[int]:
        """See PayloadFormat."""
        return [self.bounds(buffer, position).max_timestamp_ms for position in positions]


def payload(base_offset: int, *, count: int = 1, size: int = 100, timestamp_ms: int = 0) -> Payload:
    """A payload whose filler depends on its offset."""
    filler = random.Random(base_offset).randbytes(size - _HEADER.size)
    data = _HEADER.pack(base_offset, count, size, timestamp_ms) + filler
    return Payload(data, base_offset, base_offset + count, count, timestamp_ms)


def payloads(base_offset: int, end_offset: int, *, count: int = 1, size: int = 100) -> list[Payload]:
    """Payloads of `count` records each, with timestamps of 10 ms an offset."""
    return [
        payload(offset, count=count, size=size, timestamp_ms=offset * 10)
        for offset in range(base_offset, end_offset, count)
    ]


def offsets_of(buffers: Iterable[Buffer]) -> list[int]:
    """Base offsets of all payloads in some buffers, after checking their content."""
    found = []
    for buffer in buffers:
        position = 0
        while position < len(buffer):
            bounds = PlainPayloads().bounds(buffer, position)
            expected = payload(
                bounds.base_offset,
                count=bounds.record_count,
                size=bounds.size_bytes,
                timestamp_ms=bounds.max_timestamp_ms,
            )
            assert buffer[position : position + bounds.size_bytes] == expected.data
            found.append(bounds.base_offset)
            position += bounds.size_bytes
    return found


class DictMetadata:
    """`StreamMetadata` and the collector's port over dictionaries. What it promises it asserts."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.stream_ranges: dict[StreamId, list[tuple[ObjectId, StreamRange]]] = {}
        self.log_starts: dict[StreamId, int] = {}
        self.ends: dict[StreamId, int] = {}
        self.objects: dict[ObjectId, NewObject] = {}
        self.states: dict[StreamId, tuple[ObjectId, StreamRange]] = {}
        self.unreferenced: dict[ObjectId, int] = {}
        self.expired: dict[ObjectId, None] = {}
        self.gone: set[ObjectId] = set()
        self.created: set[StreamId] = set()
        self.next_id = 1

    def create(self, *stream_ids: int) -> None:
        """Create streams."""
        for stream_id in map(StreamId, stream_ids):
            self.created.add(stream_id)
            self.stream_ranges[stream_id] = []
            self.log_starts[stream_id] = self.ends[stream_id] = 0

    def delete(self, stream_id: int) -> None:
        """Delete a stream."""
        for each in (self.stream_ranges, self.log_starts, self.ends, self.states):
            each.pop(StreamId(stream_id), None)  # type: ignore[attr-defined]
        self._release()

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        self.next_id += count
        return [ObjectId(number) for number in range(self.next_id - count, self.next_id)]

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        for new in commit.objects:
            if new.object_id in self.gone:
                raise ObjectExpired(str(new.object_id))
        if commit.sources:
            self._compact(commit)
        else:
            for new in commit.objects:
                for each in new.ranges:
                    ranges = self.stream_ranges[each.stream_id]
                    assert self.ends[each.stream_id] == each.base_offset, "I5"
                    if each.base_offset == each.end_offset:
                        assert each.has_state, "a range holds offsets, or a state"
                        self.objects[new.object_id] = new
                        self.states[each.stream_id] = (new.object_id, each)
                        continue
                    self.ends[each.stream_id] = each.end_offset
                    self._reference(new, each, len(ranges), len(ranges))
        self._release()
        return CommitResult(skipped={})

    def _compact(self, commit: CommitObjects) -> None:
        for source in commit.sources:
            if source not in self.objects:
                raise SourcesChanged(str(source))
        covered = {
            (object_id, stream_id)
            for stream_id, ranges in self.stream_ranges.items()
            for object_id, _ in ranges
            if object_id in commit.sources
        }
        for new in commit.objects:
            for each in new.ranges:
                ranges = self.stream_ranges.get(each.stream_id)
                if ranges is None:
                    continue
                inside = [
                    number
                    for number, (_, old) in enumerate(ranges)
                    if old.end_offset > each.base_offset and old.base_offset < each.end_offset
                ]
                for number in inside:
                    assert (ranges[number][0], each.stream_id) in covered, "replaces what is not in a source"
                    covered.remove((ranges[number][0], each.stream_id))
                state = self.states.get(each.stream_id)
                if state and state[0] in commit.sources and each.base_offset < state[1].end_offset <= each.end_offset:
                    assert each.has_state, "the newest state got lost"
                    del self.states[each.stream_id]
                if inside:
                    first, last = inside[0], inside[-1]
                    assert ranges[last][1].end_offset == each.end_offset
                    assert ranges[first][1].base_offset == each.base_offset or (
                        first == 0 and each.base_offset < ranges[0][1].base_offset
                    )
                    self._reference(new, each, first, last + 1)
                else:
                    assert each.has_state
                    assert each.stream_id not in self.states
                    self.states[each.stream_id] = (new.object_id, each)
                    self.objects[new.object_id] = new
        assert not covered, "a live range of a source is in no output"
        assert not any(object_id in commit.sources for object_id, _ in self.states.values())

    def _reference(self, new: NewObject, each: StreamRange, first: int, last: int) -> None:
        self.objects[new.object_id] = new
        self.stream_ranges[each.stream_id][first:last] = [(new.object_id, each)]
        state = self.states.get(each.stream_id)
        if each.has_state and (state is None or state[1].end_offset <= each.end_offset):
            self.states[each.stream_id] = (new.object_id, each)

    def _release(self) -> None:
        needed = {object_id for ranges in self.stream_ranges.values() for object_id, _ in ranges}
        needed |= {object_id for object_id, _ in self.states.values()}
        for object_id in [object_id for object_id in self.objects if object_id not in needed]:
            del self.objects[object_id]
            self.unreferenced[object_id] = self.now_ms

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> Sequence[OpenedStream]:
        raise NotImplementedError

    async def close_streams(self, end_offsets: Mapping[StreamId, int], leader_epochs: Mapping[StreamId, int]) -> None:
        raise NotImplementedError

    async def trim_streams(self, log_start_offsets: Mapping[StreamId, int]) -> None:
        for stream_id, offset in log_start_offsets.items():
            self.log_starts[stream_id] = offset
            ranges = self.stream_ranges[stream_id]
            ranges[:] = [(object_id, each) for object_id, each in ranges if each.end_offset > offset]
        self._release()

    def locate(self, stream_id: StreamId, offset: int, *, limit: int = 16) -> Sequence[ObjectRange]:
        return [found for found in self.ranges(stream_id) if found.range.end_offset > offset][:limit]

    def ranges(self, stream_id: StreamId) -> Sequence[ObjectRange]:
        return [self._located(*found) for found in self.stream_ranges.get(stream_id, [])]

    def newest_state(self, stream_id: StreamId) -> ObjectRange | None:
        found = self.states.get(stream_id)
        return None if found is None else self._located(*found)

    def _located(self, object_id: ObjectId, each: StreamRange) -> ObjectRange:
        return ObjectRange(object_id=object_id, size_bytes=self.objects[object_id].size_bytes, range=each)

    async def catch_up(self) -> None:
        """There is nobody else."""

    def live_objects(self) -> Sequence[NewObject]:
        live: dict[ObjectId, dict[StreamId, StreamRange]] = {}
        for stream_id, ranges in self.stream_ranges.items():
            for object_id, each in ranges:
                live.setdefault(object_id, {})[stream_id] = each
        for stream_id, (object_id, each) in self.states.items():
            live.setdefault(object_id, {})[stream_id] = each
        return [
            replace(self.objects[object_id], ranges=tuple(each for _, each in sorted(ranges.items())))
            for object_id, ranges in sorted(live.items())
        ]

    def was_created(self, stream_id: StreamId) -> bool:
        return stream_id in self.created

    def committed_end_offset(self, stream_id: StreamId) -> int | None:
        return self.ends.get(stream_id)

    def log_start_offset(self, stream_id: StreamId) -> int | None:
        return self.log_starts.get(stream_id)

    def is_referenced(self, object_id: ObjectId) -> bool:
        return object_id in self.objects

    def unreferenced_before(self, time_ms: int) -> Sequence[ObjectId]:
        return [object_id for object_id, at_ms in self.unreferenced.items() if at_ms < time_ms]

    def expired_objects(self) -> Sequence[ObjectId]:
        return list(self.expired)

    async def expire_objects(self, object_ids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        usable = [object_id for object_id in object_ids if object_id not in self.objects and object_id < self.next_id]
        for object_id in usable:
            self.unreferenced.pop(object_id, None)
            if object_id not in self.gone:
                self.expired[object_id] = None
            self.gone.add(object_id)
        return usable

    async def forget_objects(self, object_ids: Sequence[ObjectId]) -> None:
        for object_id in object_ids:
            self.expired.pop(object_id, None)


async def upload(
    store: ObjectStore,
    metadata: DictMetadata,
    streams: Mapping[int, list[Payload]],
    *,
    states: Mapping[int, bytes] | None = None,
    block_size_bytes: int = 1000,
) -> ObjectId:
    """Put and commit one object that holds all of these."""
    (object_id,) = await metadata.new_object_ids(1)
    data = [
        StreamData(
            stream_id=StreamId(stream_id),
            leader_epoch=1,
            payloads=streams[stream_id],
            state=(states or {}).get(stream_id),
        )
        for stream_id in sorted(streams)
    ]
    built = build_object(object_id, data, block_size_bytes=block_size_bytes)
    await store.put(PATHS.data_object(object_id), built.parts, crc32c=built.crc32c)
    await metadata.commit_objects(CommitObjects(objects=(built.new_object,)))
    return object_id


def new_world() -> tuple[MemoryObjectStore, DictMetadata]:
    """An empty bucket and its metadata."""
    return MemoryObjectStore(), DictMetadata()
