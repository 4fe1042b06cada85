"""Damage as an operator sees it: partitions by name, first and last offset, in the log and in the metrics.

Always true: nothing is decided here. What is damaged is refused by whoever reads it (`s3stream.damage`), what may be missing in a WAL
keeps its partition offline (`broker.salvage`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from broker.salvage import OfflineStream
from controller.image import Image
from s3stream.damage import Damage, DamagedRange
from s3stream.errors import ObjectCorrupt
from s3stream.metadata import StreamId
from s3stream.paths import Paths

__all__ = ["MAX_NAMED_RANGES", "DamageReport", "NamedRange"]

MAX_NAMED_RANGES = 100
"""Ranges that metrics name; all are counted. `tidelog verify` and `tidelog inspect wal` list them all."""

ADVICE = "restore the object under its key, from the bucket's versions or a backup: it is read again at once, without a restart"

log = logging.getLogger("tidelog.damage")


class NamedRange(NamedTuple):
    """One damaged range."""

    topic: str
    partition: int
    place: str
    """Where the records were: `object 17`, or `WAL …` with its id."""
    first_offset: int
    last_offset: float
    """Inclusive; infinite where nobody knows it."""


class DamageReport:
    """Names what is damaged."""

    def __init__(self, *, image: Image, paths: Paths, objects: Damage, offline: Sequence[OfflineStream] = ()) -> None:
        self._image = image
        self._paths = paths
        self._objects = objects
        self._offline = list(offline)
        objects.tell = self._tell
        for stream in offline:
            topic, partition = self._name(stream.stream_id)
            log.error(
                "acknowledged records may be lost in a damaged WAL: %(topic)s-%(partition)d is offline, %(lost)s (WAL %(wal_id)s in %(place)s)",
                {
                    "topic": topic,
                    "partition": partition,
                    "lost": stream.loss.text(),
                    "wal_id": stream.wal_id,
                    "place": stream.place,
                },
            )

    def _tell(self, damaged: DamagedRange, error: ObjectCorrupt) -> None:
        topic, partition = self._name(damaged.stream_id)
        if damaged.is_state:
            log.error(
                "a state is damaged: %(error)s (%(topic)s-%(partition)d)",
                {
                    "topic": topic,
                    "partition": partition,
                    "object_id": damaged.object_id,
                    "key": self._paths.data_object(damaged.object_id),
                    "error": error,
                    "advice": ADVICE,
                },
            )
            return
        log.error(
            "records are damaged: %(topic)s-%(partition)d, offsets %(first_offset)d to %(last_offset)d: %(error)s",
            {
                "topic": topic,
                "partition": partition,
                "first_offset": damaged.base_offset,
                "last_offset": damaged.end_offset - 1,
                "object_id": damaged.object_id,
                "key": self._paths.data_object(damaged.object_id),
                "error": error,
                "advice": ADVICE,
            },
        )

    def ranges(self) -> Iterator[NamedRange]:
        """Records that cannot be read now."""
        for stream in self._still_offline():
            topic, partition = self._name(stream.stream_id)
            for start, end in stream.loss.lost:
                yield NamedRange(
                    topic, partition, f"WAL {stream.wal_id}", start, math.inf if end is None else float(end - 1)
                )
        for damaged in self._objects.ranges():
            if damaged.is_state:
                continue
            topic, partition = self._name(damaged.stream_id)
            yield NamedRange(
                topic, partition, f"object {damaged.object_id}", damaged.base_offset, damaged.end_offset - 1
            )

    def counts(self) -> dict[str, int]:
        """Damaged ranges of records, and states, by where they are."""
        found = self._objects.ranges()
        states = sum(1 for each in found if each.is_state)
        lost = sum(len(stream.loss.lost) for stream in self._still_offline())
        return {"wal": lost, "object": len(found) - states, "state": states}

    def _still_offline(self) -> list[OfflineStream]:
        """Without what an operator gave up since."""
        streams = self._image.state.tables.streams
        self._offline = [
            each
            for each in self._offline
            if (stream := streams.get(each.stream_id)) is not None and stream.wal_id == each.wal_id
        ]
        return self._offline

    def _name(self, stream_id: StreamId) -> tuple[str, int]:
        place = self._image.partition_of(stream_id)
        topic = None if place is None else self._image.topic_by_id(place[0])
        return ("(deleted)", -1) if place is None or topic is None else (topic.name, place[1])
