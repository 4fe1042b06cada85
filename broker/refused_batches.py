"""Batches of idempotent producers that were refused for the moment, and what follows them on the same connection.

An idempotent client has up to five batches of a partition under way. Where the first is refused since its partition is just moving, and the partition is
open when the second one is looked at, that one lacks its predecessor. OUT_OF_ORDER_SEQUENCE_NUMBER would be true, and cost the producer its
guarantee: librdkafka (2.12) then begins a new epoch for all its partitions, and sends again under that what other brokers may have appended. So what
follows a refused batch is refused as that was, and comes again after it.

Always true:
- A refusal accounts for as many batches as can have been under way behind it, of the same producer and epoch, and for none once a batch of
  the partition is appended: a gap that has another cause is told as such.
- One connection's; at most one refusal a partition, and `MAX_PARTITIONS` in all.
"""

from __future__ import annotations

from typing import Final

from broker.producer_state import DUPLICATES_REMEMBERED
from protocol.errors import ErrorCode
from protocol.records import HEADER_BYTES, BatchHeader, parse_batch_header

__all__ = ["FOLLOWERS", "MAX_PARTITIONS", "RefusedBatches"]

FOLLOWERS: Final = DUPLICATES_REMEMBERED - 1
"""So many batches may have been under way behind one."""

MAX_PARTITIONS: Final = 10_000
"""Beyond it the oldest refusal is forgotten."""

_HALF_OF_ALL: Final = 1 << 30  # of the sequences, which wrap at 2^31


class _Refused:
    __slots__ = ("code", "followers_left", "header")

    def __init__(self, header: BatchHeader, code: ErrorCode) -> None:
        self.header = header
        self.code = code
        self.followers_left = FOLLOWERS

    def accounts_for(self, header: BatchHeader) -> bool:
        """Whether a batch lacks the refused one."""
        mine = self.header
        if (header.producer_id, header.producer_epoch) != (mine.producer_id, mine.producer_epoch):
            return False
        return 0 < (header.base_sequence - mine.base_sequence) % (2 * _HALF_OF_ALL) < _HALF_OF_ALL


class RefusedBatches:
    """Those of one connection, by topic and index of their partition."""

    __slots__ = ("_by_partition",)

    def __init__(self) -> None:
        self._by_partition: dict[tuple[str, int], _Refused] = {}

    def __len__(self) -> int:
        return len(self._by_partition)

    def add(self, topic: str, index: int, records: bytes | memoryview, code: ErrorCode) -> None:
        """A batch is refused: what follows it lacks it, if it has a producer, and if clients send it again after this error."""
        if not code.retriable or len(records) < HEADER_BYTES:
            return
        header = parse_batch_header(records)
        if header.producer_id < 0:
            return
        key = (topic, index)
        known = self._by_partition.pop(key, None)
        if known is None or not known.accounts_for(header):
            known = _Refused(header, code)
            if len(self._by_partition) >= MAX_PARTITIONS:
                del self._by_partition[next(iter(self._by_partition))]
        self._by_partition[key] = known

    def follows(self, topic: str, index: int, records: bytes | memoryview) -> bool:
        """Whether a batch lacks one that was refused, so that nothing can come of it."""
        refused = self._by_partition.get((topic, index))
        return (
            refused is not None and len(records) >= HEADER_BYTES and refused.accounts_for(parse_batch_header(records))
        )

    def account_for(self, topic: str, index: int, records: bytes | memoryview) -> ErrorCode | None:
        """With what a batch that is out of order is to be refused, since it follows a refused one; None: that is not the cause."""
        refused = self._by_partition.get((topic, index))
        if refused is None or not refused.followers_left or not self.follows(topic, index, records):
            return None
        refused.followers_left -= 1
        return refused.code

    def appended(self, topic: str, index: int) -> None:
        """A batch of the partition was taken."""
        self._by_partition.pop((topic, index), None)
