"""What the storage engine needs of the metadata log: a port and its values. The controller implements it.

Always true:
- Committed ranges of a stream are contiguous and do not overlap: [log_start_offset, committed_end_offset) (I5).
- A reply means: the change is committed, and applied to the image that `locate` reads from.
- Ids are plain integers at run time, with distinct types: a stream is not an object.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

__all__ = [
    "CommitObjects",
    "CommitResult",
    "NewObject",
    "ObjectId",
    "ObjectRange",
    "OpenedStream",
    "SkipReason",
    "StreamId",
    "StreamMetadata",
    "StreamRange",
    "past_gaps",
]

StreamId = NewType("StreamId", int)
ObjectId = NewType("ObjectId", int)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRange:
    """A contiguous range of one stream inside one object."""

    stream_id: StreamId
    leader_epoch: int
    """Epoch under which the uploader holds the stream; for compaction: that of the newest source."""
    base_offset: int
    end_offset: int
    """Exclusive."""
    record_count: int
    """Records inside; less than end_offset - base_offset after Kafka compaction."""
    size_bytes: int
    max_timestamp_ms: int
    """Largest record timestamp inside, -1 where there is none."""
    has_state: bool
    """The object also holds a state block of this stream: as of end_offset, or, after a compaction, as of the last
    offset at which it was written; the block says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewObject:
    """An object that was put and is to be referenced."""

    object_id: ObjectId
    size_bytes: int
    ranges: tuple[StreamRange, ...]
    """Sorted by stream, one range a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitObjects:
    """Reference objects, all or nothing but for stale streams, which are skipped and reported.

    Without `sources` it is an upload: each range must begin at its stream's committed end, under its current leader epoch.
    With `sources` it is a compaction: whole ranges of the sources are replaced, which must all be referenced unchanged. A source is
    un-referenced when the last of its ranges was replaced.
    """

    objects: tuple[NewObject, ...]
    sources: tuple[ObjectId, ...] = ()


class SkipReason(enum.Enum):
    """Why a range of an upload was left out of a commit."""

    DELETED = "the stream was deleted"
    FENCED = "the stream has another owner or a newer leader epoch"
    NOT_CONTIGUOUS = "the range does not begin at the stream's committed end"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """What became of a commit."""

    skipped: Mapping[StreamId, SkipReason]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRange:
    """Where a range of a stream can be read."""

    object_id: ObjectId
    size_bytes: int
    """Of the whole object."""
    range: StreamRange


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedStream:
    """A stream that this node may append to from now on."""

    stream_id: StreamId
    leader_epoch: int
    log_start_offset: int
    committed_end_offset: int
    gaps: tuple[tuple[int, int], ...] = ()
    """Offsets that an operator gave up with a lost WAL, each [start, end): nothing was or ever will be there. They change
    only by an abandon, which closes the stream."""
    least_leader_epoch: int = 0
    """Frames of older leader epochs, which the WAL may still hold, count for nothing: the stream was closed since, and went on elsewhere."""


def past_gaps(gaps: Sequence[tuple[int, int]], offset: int) -> int:
    """The offset itself, or, where it was given up, the first one after it that was not."""
    for start, end in gaps:
        if start <= offset < end:
            offset = end
    return offset


class StreamMetadata(Protocol):
    """The engine's view of the metadata log, already bound to this node and its node epoch.

    Every coroutine raises `MetadataUnavailable` where the bucket cannot be reached within the deadline (try again)
    and `NodeFenced` where this node's registration was superseded (stop serving).
    """

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        """Ids never given out before."""

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        """Reference new objects. Idempotent by object id. Raises ObjectExpired or SourcesChanged; see errors.py."""

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> Sequence[OpenedStream]:
        """Open streams on this node, each with a leader epoch one higher; deleted ones are left out of the answer."""

    async def close_streams(self, end_offsets: Mapping[StreamId, int], leader_epochs: Mapping[StreamId, int]) -> None:
        """Close streams whose data is committed up to the given ends; those not open under these epochs any more are left alone."""

    async def trim_streams(self, log_start_offsets: Mapping[StreamId, int]) -> None:
        """Raise log start offsets; deleted streams are ignored."""

    def was_created(self, stream_id: StreamId) -> bool:
        """Whether there ever was such a stream; it may have been deleted since."""

    def locate(self, stream_id: StreamId, offset: int, *, limit: int = 16) -> Sequence[ObjectRange]:
        """Committed ranges from the one that holds `offset` on, in order, at most `limit`. Empty at or past the committed end."""

    def ranges(self, stream_id: StreamId) -> Sequence[ObjectRange]:
        """All committed ranges of a stream, in offset order (for timestamp look-ups and checks)."""

    def newest_state(self, stream_id: StreamId) -> ObjectRange | None:
        """The last range with a state block, even where retention has since passed its data."""

    def live_objects(self) -> Sequence[NewObject]:
        """Every referenced object, by object id (for compaction planning)."""

    def committed_end_offset(self, stream_id: StreamId) -> int | None:
        """Exclusive end of what objects hold; None for an unknown or deleted stream."""

    def log_start_offset(self, stream_id: StreamId) -> int | None:
        """First offset that may be read; None for an unknown or deleted stream."""
