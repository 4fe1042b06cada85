"""What nodes told the leader of their loads, and whether that is enough to go by.

Always true:
- A node's load is known when it reported `REPORTS` times in a row since partitions last moved, and the last time not long ago; it is the mean of
  these. So one burst moves nothing, and what has just moved is measured where it is now.
- What is kept is bounded: a few reports of each node, each of at most `MAX_BUSY` partitions.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from controller.balancer import StreamLoad
from controller.peers import NodeLoad
from s3stream.metadata import StreamId

__all__ = ["MAX_BUSY", "REPORTS", "Loads"]

REPORTS: Final = 3

MAX_BUSY: Final = 200
"""Partitions that a report names: what is not among the busiest of its node does not make it hot."""

_SKIPPED: Final = 1
"""Reports after a move that are of the time before, too."""

_LATE_INTERVALS: Final = 3
"""A node that reports so late is not known any more."""


@dataclass(slots=True)
class _Reports:
    skipped: int = 0
    kept: deque[NodeLoad] = field(default_factory=lambda: deque(maxlen=REPORTS))
    last_s: float = 0.0


class Loads:
    """One leader's book."""

    def __init__(self, *, interval_s: float) -> None:
        self._interval_s = interval_s
        self._by_node: dict[int, _Reports] = {}
        self.count = 0
        """Reports so far: grows with each."""

    def report(self, node_id: int, load: NodeLoad, now_s: float) -> None:
        """A node tells what went through it since it told the last time."""
        self.count += 1
        reports = self._by_node.setdefault(node_id, _Reports())
        if reports.skipped < _SKIPPED:
            reports.skipped += 1
        else:
            reports.kept.append(load)
        reports.last_s = now_s

    def forget(self) -> None:
        """Partitions move: what was told is of another time."""
        self._by_node.clear()

    def of(self, node_id: int, now_s: float) -> tuple[StreamLoad, Mapping[StreamId, StreamLoad]] | None:
        """The load of a node and of its busiest partitions, in bytes a second; None: not known."""
        reports = self._by_node.get(node_id)
        if reports is None or len(reports.kept) < REPORTS:
            return None
        if now_s - reports.last_s > _LATE_INTERVALS * self._interval_s:
            return None
        bytes_in: Counter[StreamId] = Counter()
        bytes_out: Counter[StreamId] = Counter()
        for load in reports.kept:
            for stream_id, stream_in, stream_out in load.busy:
                bytes_in[stream_id] += stream_in
                bytes_out[stream_id] += stream_out
        whole = StreamLoad(
            bytes_in=sum(load.bytes_in for load in reports.kept) / REPORTS,
            bytes_out=sum(load.bytes_out for load in reports.kept) / REPORTS,
        )
        busy = {
            stream_id: StreamLoad(bytes_in=bytes_in[stream_id] / REPORTS, bytes_out=bytes_out[stream_id] / REPORTS)
            for stream_id in sorted(bytes_in | bytes_out)
        }
        return whole, busy
