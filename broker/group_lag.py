"""How far consumer groups are behind, in records and in seconds.

Theory of operation. A task goes round over the committed offsets of all groups and compares them with their partitions; whoever
asks is given the results of the last round. It looks at what is in memory only: the offsets, the log cache's timestamps, and the
ranges of objects in the metadata. So no object is read, and no record decoded.

Always true:
- A group without a committed offset for a partition has no lag there: nobody knows from where it will read.
- Lag in records is exact as of the look: from the committed offset, or the log start where that is later, to the high watermark.
- Lag in seconds is the age of the first record that is not committed, by the timestamps of producers. In the log cache that is the
  newest timestamp of its batch; in objects it is estimated, and off by at most the time that the records of one range of an object
  span. Records without timestamps give none.
- Rounds take no more than `SHARE` of a core, however many offsets there are; others run after each `LOOKS_AT_A_TIME`.
- The number of pairs of group and topic with figures of their own is bounded, in the order of their names; all others are one pair:
  the sum of their records, and the largest of their seconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from broker.groups.group import Group
from broker.metrics import OTHER
from broker.topics import Topics

__all__ = ["GroupLag", "Lag"]

INTERVAL_S = 15.0
"""How often scrapers come, by custom."""

SHARE = 0.05

LOOKS_AT_A_TIME = 200
"""Offsets; about half a millisecond."""

MAX_NAME_LENGTH = 249
"""Of a group's name as it is shown; as long as topics' may be. Clients may choose thirty thousand characters."""


class Lag(NamedTuple):
    """Of one group on one topic, all partitions together."""

    records: int
    seconds: float
    """Of the partition that is furthest behind."""


class GroupLag:
    """The rounds, and what the last one found."""

    def __init__(
        self,
        *,
        groups: Iterable[Group],
        topics: Topics,
        now_ms: Callable[[], int],
        clock: Callable[[], float],
        max_pairs: int,
    ) -> None:
        self._groups = groups
        self._topics = topics
        self._now_ms = now_ms
        self._clock = clock
        self._max_pairs = max_pairs
        self.lags: dict[tuple[str, str], Lag] = {}
        """By group and topic, as of the last round."""
        self.group_counts: Counter[str] = Counter()
        """By state."""
        self.member_count = 0

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            took_s = await self.look()
            await asyncio.sleep(max(INTERVAL_S, took_s / SHARE))

    async def look(self) -> float:
        """One round; returns the seconds of work in it."""
        found: dict[tuple[str, str], Lag] = {}
        began, took_s = self._clock(), 0.0
        groups = list(self._groups)
        group_counts = Counter(group.state.value for group in groups)
        member_count = sum(len(group.members) for group in groups)
        looks = 0
        for group in groups:
            name = group.group_id[:MAX_NAME_LENGTH]
            for topic in group.offsets.topics:
                key = name, topic
                for partition, committed in list(group.offsets.of_topic(topic).items()):
                    lag = self._lag(topic, partition, committed.offset)
                    if lag is not None:
                        found[key] = _sum(found.get(key), lag)
                    looks += 1
                    if looks % LOOKS_AT_A_TIME == 0:
                        took_s += self._clock() - began
                        await asyncio.sleep(0)
                        began = self._clock()
        self.lags = _bounded(found, self._max_pairs)
        self.group_counts, self.member_count = group_counts, member_count
        return took_s + self._clock() - began

    def _lag(self, topic_name: str, index: int, committed_offset: int) -> Lag | None:
        """Of one partition; None where it is not open here, or gone."""
        topic = self._topics.by_name.get(topic_name)
        partition = topic.partitions[index] if topic is not None and index < len(topic.partitions) else None
        if partition is None:
            return None
        offset = max(committed_offset, partition.log_start_offset)
        records = partition.high_watermark - offset
        if records <= 0:
            return Lag(0, 0.0)
        stamped_ms = partition.stream.estimated_timestamp_ms(offset)
        return Lag(records, max(self._now_ms() - stamped_ms, 0) / 1000 if stamped_ms >= 0 else 0.0)


def _sum(one: Lag | None, other: Lag) -> Lag:
    return other if one is None else Lag(one.records + other.records, max(one.seconds, other.seconds))


def _bounded(found: dict[tuple[str, str], Lag], max_pairs: int) -> dict[tuple[str, str], Lag]:
    lags: dict[tuple[str, str], Lag] = {}
    for at, (key, lag) in enumerate(sorted(found.items())):
        if at < max_pairs:
            lags[key] = lag
        else:
            others = OTHER, OTHER
            lags[others] = _sum(lags.get(others), lag)
    return lags
