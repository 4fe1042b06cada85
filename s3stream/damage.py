"""What of committed data reads found damaged or missing: which offsets of which stream, in which object.

Always true:
- A range is in here from the read that found it damaged until a read finds it sound again, or nothing refers to it any more (it
  was trimmed, or its stream deleted). It is told once, when it comes in.
- Nothing here decides what a read gives: damaged bytes are refused whether they are remembered or not (I7).
- What is remembered is bounded. Beyond that, damage is still refused and told, again each time that it is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from s3stream.errors import ObjectCorrupt
from s3stream.metadata import ObjectId, ObjectRange, StreamId, StreamMetadata

__all__ = ["MAX_DAMAGED_RANGES", "Damage", "DamagedRange"]

MAX_DAMAGED_RANGES = 1_000
"""Remembered; some 300 KB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRange:
    """Offsets that cannot be read, or a state that cannot."""

    stream_id: StreamId
    object_id: ObjectId
    base_offset: int
    end_offset: int
    """Exclusive. Equal to `base_offset` where no data is concerned, only the state as of there."""
    is_state: bool = False


class Damage:
    """Remembers damaged ranges of one node's reads."""

    def __init__(self, metadata: StreamMetadata) -> None:
        self._metadata = metadata
        self._whole: dict[ObjectId, tuple[DamagedRange, ...]] = {}
        """Objects of which nothing can be read: gone, another's bytes, or no intact index."""
        self._parts: dict[ObjectId, dict[DamagedRange, None]] = {}
        self._count = 0
        self.tell: Callable[[DamagedRange, ObjectCorrupt], None] = _tell_nobody
        """Called for each range that comes in."""

    def __bool__(self) -> bool:
        return self._count > 0

    def object_lost(self, object_id: ObjectId, error: ObjectCorrupt, known: ObjectRange | None = None) -> None:
        """Nothing of an object can be read: all that streams need of it is damaged. `known` is what a reader came for."""
        if object_id in self._whole:
            return
        needed = {
            (each.stream_id, each.base_offset, each.end_offset, False)
            for found in self._metadata.live_objects()
            if found.object_id == object_id
            for each in found.ranges
        }
        if known is not None and not any(stream_id == known.range.stream_id for stream_id, *_ in needed):
            # Retention has passed its data, and left the newest state.
            needed.add((known.range.stream_id, known.range.end_offset, known.range.end_offset, True))
        lost = tuple(
            DamagedRange(stream_id=stream_id, object_id=object_id, base_offset=low, end_offset=high, is_state=is_state)
            for stream_id, low, high, is_state in sorted(needed)
        )
        if self._count + len(lost) <= MAX_DAMAGED_RANGES:
            self._whole[object_id] = lost
            self._count += len(lost)
        for each in lost:
            self.tell(each, error)

    def range_lost(self, damaged: DamagedRange, error: ObjectCorrupt) -> None:
        """A block does not match its CRC, or is not where the metadata says."""
        parts = self._parts.get(damaged.object_id, {})
        if damaged in parts:
            return
        if self._count < MAX_DAMAGED_RANGES:
            self._parts.setdefault(damaged.object_id, parts)[damaged] = None
            self._count += 1
        self.tell(damaged, error)

    def object_sound(self, object_id: ObjectId) -> None:
        """An object's index was read: what its blocks are worth, reads of them will tell."""
        self._count -= len(self._whole.pop(object_id, ()))

    def range_sound(self, block: DamagedRange) -> None:
        """A block was read, and matches its CRC."""
        parts = self._parts.get(block.object_id)
        if parts is not None and block in parts:
            del parts[block]
            self._count -= 1
            if not parts:
                del self._parts[block.object_id]

    def ranges(self) -> list[DamagedRange]:
        """What is damaged and still needed, in order."""
        for object_id in {*self._whole, *self._parts}:
            self._forget_unneeded(object_id)
        return sorted(self._all(), key=lambda each: (each.stream_id, each.base_offset, each.object_id))

    def _all(self) -> Iterable[DamagedRange]:
        for ranges in (*self._whole.values(), *self._parts.values()):
            yield from ranges

    def _forget_unneeded(self, object_id: ObjectId) -> None:
        whole = self._whole.pop(object_id, ())
        parts = self._parts.pop(object_id, {})
        self._count -= len(whole) + len(parts)
        if kept_whole := tuple(filter(self._is_needed, whole)):
            self._whole[object_id] = kept_whole
        if kept_parts := dict.fromkeys(filter(self._is_needed, parts)):
            self._parts[object_id] = kept_parts
        self._count += len(kept_whole) + len(kept_parts)

    def _is_needed(self, damaged: DamagedRange) -> bool:
        stream_id = damaged.stream_id
        if damaged.is_state:
            newest = self._metadata.newest_state(stream_id)
            return newest is not None and newest.object_id == damaged.object_id
        log_start_offset = self._metadata.log_start_offset(stream_id)
        if log_start_offset is None or damaged.end_offset <= log_start_offset:
            return False
        located = self._metadata.locate(stream_id, damaged.base_offset, limit=1)
        return bool(located) and located[0].object_id == damaged.object_id


def _tell_nobody(damaged: DamagedRange, error: ObjectCorrupt) -> None:
    """Until somebody listens."""
