"""Damage as an operator sees it: partitions by name, first and last offset, in the log and in the metrics.

Always true: nothing is decided here. What is damaged is refused by whoever reads it (`s3stream.damage`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from controller.image import Image
from s3stream.damage import Damage, DamagedRange
from s3stream.errors import ObjectCorrupt

__all__ = ["MAX_NAMED_RANGES", "DamageReport", "NamedRange"]

MAX_NAMED_RANGES = 100
"""Ranges that metrics name; all are counted. `tidelog verify` lists them all."""

log = logging.getLogger("tidelog.damage")


class NamedRange(NamedTuple):
    """One damaged range."""

    topic: str
    partition: int
    place: str
    """Where the records were: `object 17`."""
    first_offset: int
    last_offset: int
    """Inclusive."""


class DamageReport:
    """Names what is damaged."""

    def __init__(self, *, image: Image, objects: Damage) -> None:
        self._image = image
        self._objects = objects
        objects.tell = self._tell

    def _tell(self, damaged: DamagedRange, error: ObjectCorrupt) -> None:
        topic, partition = self._name(damaged)
        values = {
            "topic": topic,
            "partition": partition,
            "first_offset": damaged.base_offset,
            "last_offset": damaged.end_offset - 1,
            "object_id": damaged.object_id,
            "error": error,
        }
        if damaged.is_state:
            log.error("a state is damaged: %(error)s (%(topic)s-%(partition)d)", values)
        else:
            log.error(
                "records are damaged: %(topic)s-%(partition)d, offsets %(first_offset)d to %(last_offset)d: %(error)s",
                values,
            )

    def ranges(self) -> Iterator[NamedRange]:
        """Records that cannot be read now."""
        for damaged in self._objects.ranges():
            if damaged.is_state:
                continue
            topic, partition = self._name(damaged)
            yield NamedRange(
                topic, partition, f"object {damaged.object_id}", damaged.base_offset, damaged.end_offset - 1
            )

    def counts(self) -> dict[str, int]:
        """Damaged ranges of records, and states, by where they are."""
        found = self._objects.ranges()
        states = sum(1 for each in found if each.is_state)
        return {"object": len(found) - states, "state": states}

    def _name(self, damaged: DamagedRange) -> tuple[str, int]:
        place = self._image.partition_of(damaged.stream_id)
        topic = None if place is None else self._image.topic_by_id(place[0])
        return ("(deleted)", -1) if place is None or topic is None else (topic.name, place[1])
