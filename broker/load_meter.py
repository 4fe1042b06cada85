"""Measures what goes through the partitions of this node, for whoever balances the cluster.

Always true: what is told is of the time since it was told last, and bounded: the node's whole, and its busiest partitions.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from controller.loads import MAX_BUSY
from controller.peers import NodeLoad

if TYPE_CHECKING:
    from broker.partition import Partition
    from s3stream.metadata import StreamId

__all__ = ["LoadMeter"]


class LoadMeter:
    """One task's work."""

    def __init__(
        self, *, partitions: Callable[[], Iterable[Partition]], interval_s: float, report: Callable[[NodeLoad], None]
    ) -> None:
        self._partitions = partitions
        self._interval_s = interval_s
        self._report = report
        self._seen: dict[StreamId, tuple[Partition, int, int]] = {}

    async def run(self) -> None:
        """Tell now and then, until cancelled."""
        loop = asyncio.get_running_loop()
        told_s = loop.time()
        while True:
            await asyncio.sleep(self._interval_s)
            now_s = loop.time()
            self._report(self.measured(now_s - told_s))
            told_s = now_s

    def measured(self, seconds: float) -> NodeLoad:
        """What went through since the last call, so many seconds ago."""
        seen: dict[StreamId, tuple[Partition, int, int]] = {}
        rates: list[tuple[int, StreamId, int, int]] = []
        for partition in self._partitions():
            stream_id = partition.stream.stream_id
            now_in, now_out = partition.bytes_in, partition.bytes_out
            former, was_in, was_out = self._seen.get(stream_id, (partition, 0, 0))
            if former is not partition:
                was_in = was_out = 0  # it was away, and is back
            seen[stream_id] = (partition, now_in, now_out)
            rate_in, rate_out = round((now_in - was_in) / seconds), round((now_out - was_out) / seconds)
            if rate_in or rate_out:
                rates.append((rate_in + rate_out, stream_id, rate_in, rate_out))
        self._seen = seen
        return NodeLoad(
            bytes_in=sum(rate[2] for rate in rates),
            bytes_out=sum(rate[3] for rate in rates),
            busy=tuple(
                (stream_id, rate_in, rate_out) for _, stream_id, rate_in, rate_out in heapq.nlargest(MAX_BUSY, rates)
            ),
        )
