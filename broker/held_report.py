"""What the WAL of this node holds alone, as the node that leads is told: what would be lost with it.

Always true:
- What is told is exact at that moment, and bounded: the whole in numbers, and the streams with the most bytes.
- Looking takes no more than a hundredth of the event loop's time, however many partitions wait for their upload.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from controller.peers import NodeReport
from controller.records import Unuploaded, UnuploadedStream
from controller.reports import MAX_NAMED
from s3stream.unuploaded import UnuploadedRange

__all__ = ["LEAST_INTERVAL_S", "HeldReport"]

LEAST_INTERVAL_S: Final = 0.25
"""A node that asks more often tells no more often."""

_SHARE: Final = 100
"""Time between two looks, in times that a look takes."""


class Holder(Protocol):
    """The storage engine, as far as it is needed here."""

    @property
    def unuploaded_age_s(self) -> float:
        """How long the oldest has been waiting."""

    def unuploaded(self) -> Sequence[UnuploadedRange]:
        """By stream, what is acknowledged and in no object."""


class HeldReport:
    """Makes the reports of one registration."""

    def __init__(self, holder: Holder, *, node_epoch: int, clock: Callable[[], float]) -> None:
        self._holder = holder
        self._node_epoch = node_epoch
        self._clock = clock
        self._due_s = float("-inf")

    def __call__(self) -> NodeReport | None:
        """What is held now; None where it was told just before."""
        began_s = self._clock()
        if began_s < self._due_s:
            return None
        ranges = self._holder.unuploaded()
        named = heapq.nlargest(MAX_NAMED, ranges, key=lambda each: each.size_bytes)
        report = NodeReport(
            node_epoch=self._node_epoch,
            held=Unuploaded(
                record_count=sum(each.end_offset - each.base_offset for each in ranges),
                size_bytes=sum(each.size_bytes for each in ranges),
                stream_count=len(ranges),
                oldest_age_ms=round(self._holder.unuploaded_age_s * 1_000) if ranges else 0,
                streams=tuple(
                    UnuploadedStream(
                        stream_id=each.stream_id,
                        base_offset=each.base_offset,
                        end_offset=each.end_offset,
                        size_bytes=each.size_bytes,
                    )
                    for each in named
                ),
            ),
        )
        ended_s = self._clock()
        self._due_s = ended_s + max(LEAST_INTERVAL_S, _SHARE * (ended_s - began_s))
        return report
