"""What streams and objects are, as the storage engine asks for it: reads of the committed image.

Always true: nothing here changes anything, and an answer holds until the reader's next await.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controller.image import Image
from controller.tables import StreamState
from s3stream.metadata import NewObject, ObjectId, ObjectRange, StreamId

__all__ = ["CommittedMetadata", "ImageSource"]


class ImageSource(Protocol):
    """Who keeps an image: a controller, or a replica."""

    @property
    def image(self) -> Image:
        """The committed image, as far as it has read."""


class CommittedMetadata:
    """The reading half of `StreamMetadata`, and what compaction and collection look for."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def was_created(self, stream_id: StreamId) -> bool:
        """Whether there ever was such a stream; it may have been deleted since."""
        return stream_id < self._source.image.state.tables.next_stream_id

    def locate(self, stream_id: StreamId, offset: int, *, limit: int = 16) -> Sequence[ObjectRange]:
        """Committed ranges from the one that holds `offset` on. Empty at or past the committed end."""
        stream = self._stream(stream_id)
        if stream is None:
            return ()
        first = stream.index_of(offset)
        return self._located(stream, first, first + limit)

    def ranges(self, stream_id: StreamId) -> Sequence[ObjectRange]:
        """All committed ranges of a stream, in offset order."""
        stream = self._stream(stream_id)
        return () if stream is None else self._located(stream, 0, len(stream.ranges))

    def newest_state(self, stream_id: StreamId) -> ObjectRange | None:
        """The last range with a state block, even where retention has since passed its data."""
        stream = self._stream(stream_id)
        if stream is None or stream.newest_state is None:
            return None
        object_id, value = stream.newest_state
        size_bytes = self._source.image.state.tables.objects[object_id].size_bytes
        return ObjectRange(object_id=object_id, size_bytes=size_bytes, range=value.value())

    @property
    def object_count(self) -> int:
        """How many objects are referenced."""
        return len(self._source.image.state.tables.objects)

    def live_objects(self) -> Sequence[NewObject]:
        """Every referenced object with the ranges that streams still need, by object id."""
        tables = self._source.image.state.tables
        return [
            NewObject(
                object_id=object_id,
                size_bytes=entry.size_bytes,
                ranges=tuple(value.value() for value in tables.live_ranges(entry)),
            )
            for object_id, entry in sorted(tables.objects.items())
        ]

    def committed_end_offset(self, stream_id: StreamId) -> int | None:
        """Exclusive end of what objects hold; None for an unknown or deleted stream."""
        stream = self._stream(stream_id)
        return None if stream is None else stream.committed_end_offset

    def log_start_offset(self, stream_id: StreamId) -> int | None:
        """First offset that may be read; None for an unknown or deleted stream."""
        stream = self._stream(stream_id)
        return None if stream is None else stream.log_start_offset

    def is_referenced(self, object_id: ObjectId) -> bool:
        """True while a stream needs the object: it must not be deleted (I8)."""
        return object_id in self._source.image.state.tables.objects

    def unreferenced_before(self, time_ms: int) -> Sequence[ObjectId]:
        """Objects that have been unreferenced since before a time, and are not yet expired."""
        found = self._source.image.state.tables.unreferenced.items()
        return sorted(object_id for object_id, value in found if value.unreferenced_at_ms < time_ms)

    def expired_objects(self) -> Sequence[ObjectId]:
        """Objects that were expired and not yet reported as deleted."""
        return list(self._source.image.state.tables.expired)

    def _stream(self, stream_id: StreamId) -> StreamState | None:
        return self._source.image.state.tables.streams.get(stream_id)

    def _located(self, stream: StreamState, first: int, last: int) -> list[ObjectRange]:
        objects = self._source.image.state.tables.objects
        return [
            ObjectRange(object_id=object_id, size_bytes=objects[object_id].size_bytes, range=value.value())
            for object_id, value in zip(stream.object_ids[first:last], stream.ranges[first:last], strict=True)
        ]
