"""What the simulation's clients share: the topics they use, what is written down of all of them, and what each client tries again on.

A broker that was deposed while it stood still, and that is alone, answers until it finds out (one of several has a lease for that). So it
may tell an older high watermark than others have told (I3 is held against everybody else), know a topic's former namesake, or miss
what a producer has sent since. What it says is at an offset must be there all the same, and it must acknowledge nothing (I4): that
shows as a loss.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker.retention import MAX_CLOCK_DIFFERENCE_MS
from tests.checker.history import History
from tests.sim.client import Client
from tests.sim.network import Network
from tests.sim.router import RoutedClient

__all__ = ["BACK_OFF_S", "RETRIABLE", "Topic", "World"]

BACK_OFF_S = 0.1
RETRIABLE = frozenset({3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56, 74, 75, 78})
"""What a client tries again on (UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, …)."""


@dataclass(eq=False, slots=True, kw_only=True)
class Topic:
    """A topic as its clients know it. One that is created again under the same name is another topic."""

    name: str
    incarnation: int
    partitions: int
    deleted: bool = False
    may_be_trimmed: bool = False
    retention_ms: int | None = None
    """How long it keeps records: it then gets some that are twice as old, and later some of today."""

    def key(self, partition: int) -> str:
        """What the history calls a partition."""
        return f"{self.name}#{self.incarnation}-{partition}"


@dataclass(eq=False, slots=True, kw_only=True)
class World:
    """What all actors share."""

    network: Network
    ports: Sequence[int]
    """Where brokers listen. If there are several, clients find out which one leads what they want."""
    history: History
    now_ms: Callable[[], int]
    problems: list[str] = field(default_factory=list)
    finishing: bool = False
    """Send nothing new, but bring to an end what was begun."""
    lull: float = 1.0
    """How much longer than usually clients pause: while nothing is waited for but a process that stands still for hours."""
    high_watermarks: dict[str, int] = field(default_factory=dict)
    """The highest that any client was told, by partition."""
    aging: dict[str, deque[tuple[int, int]]] = field(default_factory=dict)
    """What was acknowledged of a partition with retention by age, (timestamp in ms, offset), but for what retention may have taken."""

    def client(self, name: str, slowness: float = 1.0, *, of: tuple[str, int] | None = None) -> Client:
        """Of any broker, or of the one that leads a partition: topic and index."""
        if len(self.ports) == 1:
            return Client(self.network, self.ports[0], name, slowness)
        return RoutedClient(self.network, self.ports, name, random.Random(name), slowness, of=of)

    def kept_from(self, topic: Topic, partition: int) -> int | None:
        """The first offset that retention must leave alone: of a record so young that no clock that is in order takes it for too old."""
        aging = self.aging.get(topic.key(partition))
        if not aging or topic.retention_ms is None:
            return None
        while aging and aging[0][0] < self.now_ms() - topic.retention_ms + MAX_CLOCK_DIFFERENCE_MS:
            aging.popleft()
        return min((offset for _, offset in aging), default=None)
