"""What the WAL of a node holds alone: what is acknowledged, and in no committed object yet, by stream. Pure.

Always true: what is told was durable in the WAL, and exact at the moment in which it is asked for; nothing that still waits for the
WAL counts, nor what nobody can lose any more, since its stream was deleted or is another node's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from s3stream.log_cache import BlockPart, CacheBlock
from s3stream.metadata import StreamId

if TYPE_CHECKING:
    from s3stream.stream import Stream

__all__ = ["UnuploadedRange", "unuploaded_ranges"]


class UnuploadedRange(NamedTuple):
    """Offsets of one stream, dense: as many records as offsets."""

    stream_id: StreamId
    base_offset: int
    """What comes before is in objects."""
    end_offset: int
    """Exclusive: what is acknowledged ends here."""
    size_bytes: int


def unuploaded_ranges(
    blocks: Iterable[CacheBlock], stream_of: Callable[[CacheBlock, StreamId], Stream | None]
) -> list[UnuploadedRange]:
    """What blocks that are not committed hold, which come in order; `stream_of` gives the stream of a part, None where it is gone."""
    found: dict[StreamId, UnuploadedRange] = {}
    for block in blocks:
        for stream_id, (_, part) in block.parts.items():
            stream = stream_of(block, stream_id)
            if stream is None or stream.confirmed_offset <= part.base_offset:
                continue
            end_offset, size_bytes = _confirmed(part, stream.confirmed_offset)
            before = found.get(stream_id)
            if end_offset > part.base_offset:
                found[stream_id] = (
                    UnuploadedRange(stream_id, part.base_offset, end_offset, size_bytes)
                    if before is None
                    else before._replace(end_offset=end_offset, size_bytes=before.size_bytes + size_bytes)
                )
    return list(found.values())


def _confirmed(part: BlockPart, confirmed_offset: int) -> tuple[int, int]:
    """Where the confirmed payloads of a part end, and their size."""
    if part.end_offset <= confirmed_offset:
        return part.end_offset, part.size_bytes
    count = bisect_right(part.ends, confirmed_offset)
    return (part.ends[count - 1], sum(part.sizes[:count])) if count else (part.base_offset, 0)
