"""The committed offsets of one group.

Always true:
- What `get` and iteration show is durable in the log, in the order of the log.
- `is_under_way` tells what was given to the log and is not durable yet, deletions included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from broker.groups.records import OffsetValue

__all__ = ["Offsets"]

_OFFSET_BYTES = 300
"""What the interpreter takes for one offset: a tuple, two large numbers, an entry of a dictionary; rounded up."""
_TOPIC_BYTES = 400


class Offsets:
    """By topic and partition."""

    __slots__ = ("_by_topic", "_count", "_under_way", "size_bytes")

    def __init__(self) -> None:
        self._by_topic: dict[str, dict[int, OffsetValue]] = {}
        self._under_way: Counter[tuple[str, int]] = Counter()
        self._count = 0
        self.size_bytes = 0
        """About what they take in memory."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, int, OffsetValue]]:
        for topic, partitions in self._by_topic.items():
            for partition, value in partitions.items():
                yield topic, partition, value

    @property
    def topics(self) -> list[str]:
        """Topics with an offset."""
        return list(self._by_topic)

    def of_topic(self, topic: str) -> dict[int, OffsetValue]:
        """Offsets by partition; not to be changed."""
        return self._by_topic.get(topic, {})

    def get(self, topic: str, partition: int) -> OffsetValue | None:
        """What was committed."""
        return self._by_topic.get(topic, {}).get(partition)

    def put(self, topic: str, partition: int, value: OffsetValue | None) -> None:
        """A record of the log took effect; None removes."""
        partitions = self._by_topic.get(topic)
        former = None if partitions is None else partitions.get(partition)
        if former is not None:
            self.size_bytes -= _OFFSET_BYTES + len(former.metadata)
            self._count -= 1
        if value is not None:
            if partitions is None:
                partitions = self._by_topic[topic] = {}
                self.size_bytes += _TOPIC_BYTES + len(topic)
            partitions[partition] = value
            self.size_bytes += _OFFSET_BYTES + len(value.metadata)
            self._count += 1
        elif partitions is not None:
            partitions.pop(partition, None)
            if not partitions:
                del self._by_topic[topic]
                self.size_bytes -= _TOPIC_BYTES + len(topic)

    # ---- under way ------------------------------------------------------------------------------------------------

    def submitted(self, topic: str, partition: int) -> None:
        """A record of this key was given to the log."""
        self._under_way[topic, partition] += 1

    def ended(self, topic: str, partition: int) -> None:
        """It is durable, or never will be acknowledged."""
        key = (topic, partition)
        if self._under_way[key] == 1:
            del self._under_way[key]
        else:
            self._under_way[key] -= 1

    def is_under_way(self, topic: str, partition: int) -> bool:
        """Whether a record of this key is on its way."""
        return (topic, partition) in self._under_way

    @property
    def any_under_way(self) -> bool:
        return bool(self._under_way)

    def keys(self) -> list[tuple[str, int]]:
        """Every key that the log has or is about to have a record of."""
        found = {(topic, partition) for topic, partition, _ in self} | self._under_way.keys()
        return sorted(found)
