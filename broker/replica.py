"""A partition that another broker leads, for consumers of this broker's zone: what objects hold of it (KIP-392).

Always true:
- It stands for one fetch; nobody waits on it, and it takes no records.
- The high watermark is told as unknown (-1), as in an answer that has none: only the leader knows it, and what objects hold ends below
  it, so that consumers who were told more would see it go back (I3). Java's keep what the leader told them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metrics import TopicTraffic

if TYPE_CHECKING:
    from broker.partition import PartitionWaiter
    from s3stream.committed_stream import CommittedStream

__all__ = ["Replica"]


class Replica:
    """What a fetch asks of a partition."""

    __slots__ = ("stream", "traffic")

    def __init__(self, stream: CommittedStream, traffic: TopicTraffic) -> None:
        self.stream = stream
        self.traffic = traffic

    high_watermark = -1
    last_stable_offset = -1

    @property
    def log_start_offset(self) -> int:
        """First offset that can be read."""
        return self.stream.log_start_offset

    def watch(self, waiter: PartitionWaiter) -> None:
        """Nothing comes here that would wake anybody."""

    def unwatch(self, waiter: PartitionWaiter) -> None:
        """See `watch`."""
