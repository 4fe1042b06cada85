"""Which broker a consumer reads from, so that reads stay in its zone where they can (KIP-392). Pure, but for a memory of what was told.

Always true:
- A zone is a `broker.rack`. Any broker can read what objects hold, so one broker of each zone stands for a replica of each partition; the
  leader stands for its own zone. Which one it is follows from the brokers that serve and the partition alone, on every broker alike.
- Clients are told of no other replicas than these: Java's ignore a preferred one that Metadata does not name.
- A consumer that was sent to its zone, and came back, is not sent there again for `REST_S`: librdkafka pauses where that happens twice
  a minute.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["MAX_REMEMBERED", "REST_S", "WHERE", "Sent", "ZoneNode", "Zones", "client_rack", "where_is"]

_TAG = re.compile(r"(?:^|[^\w])tidelog_az=([\w.-]+)")

WHERE = ("own", "other", "unknown")
"""Where a client is: in the broker's zone, in another, or nobody says."""

REST_S = 90.0
"""Half as long again as the minute within which librdkafka counts it as flapping."""

MAX_REMEMBERED = 10_000
"""Consumers and partitions that were sent elsewhere lately; some 2 MB. Who is forgotten is sent again: slower, never wrong."""


def client_rack(rack_id: str, client_id: str | None) -> str:
    """The zone that a client names with `client.rack`, or, where it cannot, by `tidelog_az=…` in its client id; else empty."""
    if rack_id or client_id is None or "tidelog_az=" not in client_id:
        return rack_id
    found = _TAG.search(client_id)
    return "" if found is None else found[1]


def where_is(rack: str, own_rack: str) -> str:
    """Where a client of a zone is, as a broker of another, or the same, sees it: one of `WHERE`."""
    if not rack or not own_rack:
        return "unknown"
    return "own" if rack == own_rack else "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneNode:
    """A broker that serves."""

    node_id: int
    rack: str


class Zones:
    """The brokers of each zone."""

    __slots__ = ("_by_rack", "_racks")

    def __init__(self, nodes: Iterable[ZoneNode]) -> None:
        by_rack: defaultdict[str, list[int]] = defaultdict(list)
        racks: dict[int, str] = {}
        for node in sorted(nodes, key=lambda node: node.node_id):
            if node.rack:
                by_rack[node.rack].append(node.node_id)
                racks[node.node_id] = node.rack
        self._by_rack: Mapping[str, Sequence[int]] = dict(sorted(by_rack.items()))
        self._racks = racks

    def nearest(self, rack: str, leader: int, stream_id: int) -> int:
        """The broker that consumers of a zone read a partition's objects from: the leader, where none is nearer."""
        if not rack or self._racks.get(leader) == rack:
            return leader
        nodes = self._by_rack.get(rack)
        return nodes[stream_id % len(nodes)] if nodes else leader

    def replicas(self, leader: int, stream_id: int) -> list[int]:
        """What is told as replicas of a partition: its leader, then one broker of each other zone."""
        return [leader, *(node for rack in self._by_rack if (node := self.nearest(rack, leader, stream_id)) != leader)]


class Sent:
    """Who was sent elsewhere lately, for which partition."""

    def __init__(self) -> None:
        self._sent_s: OrderedDict[tuple[str, int], float] = OrderedDict()

    def may_send(self, client: str, stream_id: int, now_s: float) -> bool:
        """Whether a consumer may be sent elsewhere; if so, it is remembered as sent."""
        key = client, stream_id
        before_s = self._sent_s.get(key)
        if before_s is not None and now_s - before_s < REST_S:
            return False
        self._sent_s[key] = now_s
        self._sent_s.move_to_end(key)
        while len(self._sent_s) > MAX_REMEMBERED:
            self._sent_s.popitem(last=False)
        return True
