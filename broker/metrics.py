"""What the requests of one broker add up to: plain numbers, cheap enough for the hot path.

Always true:
- They are changed by one event loop, without locks, and only ever grow; `broker.exposition` reads them when it is asked.
- A round of requests costs two readings of a clock, a request two or three additions; what can be worked out when somebody looks (offsets, sizes of
  caches) is not counted here.
- The number of topics that are told apart is bounded: what comes after them shares one row, for ever, so that no sum goes back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from broker.zones import WHERE
from wal.histogram import Histogram

__all__ = [
    "CLOSE_CAUSES",
    "FETCH_REDIRECTS",
    "MAX_TOPICS",
    "OTHER",
    "ApiMetrics",
    "Metrics",
    "ProducedBytes",
    "TopicTraffic",
]

MAX_TOPICS = 200
"""Topics with figures of their own, unless the settings say otherwise: three series each, which a scrape reads in a millisecond."""

OTHER = "(other)"
"""Stands for all others, of topics or of groups. No topic can have such a name."""

CLOSE_CAUSES = ("request", "limit", "idle", "stuck", "slow", "memory", "fault")
"""Why the broker ends a connection; what they mean is said with the metric."""

FETCH_REDIRECTS = ("zone", "leader")
"""To a broker of the consumer's own zone; or back, at the end of what objects hold."""

_PRODUCE_KEY = 0


class ApiMetrics:
    """What one API of Kafka was asked."""

    __slots__ = ("duration", "errors")

    def __init__(self) -> None:
        self.duration = Histogram()
        """Seconds from the request's arrival to its answer, without the time that a fetch waited for data."""
        self.errors: Counter[int] = Counter()
        """Error codes answered, each place of an answer that has one counted."""


class TopicTraffic:
    """What went in and out of a topic, or of all that share a row."""

    __slots__ = ("bytes_in", "bytes_out", "records_in")

    def __init__(self) -> None:
        self.bytes_in = 0
        """Of record batches as they were sent."""
        self.records_in = 0
        self.bytes_out = 0


class ProducedBytes:
    """What producers of a zone sent. An object of its own, which their connections hold."""

    __slots__ = ("bytes_in",)

    def __init__(self) -> None:
        self.bytes_in = 0
        """Of record batches that were appended."""


class Metrics:
    """What happened since start."""

    __slots__ = (
        "_max_topics",
        "apis",
        "arrived",
        "clock",
        "connections_closed",
        "connections_opened",
        "fetch_reads_cached",
        "fetch_reads_cold",
        "fetch_redirects",
        "fetch_waits",
        "fetched_bytes",
        "fetches_delayed",
        "fetches_late",
        "other_topics",
        "produce",
        "produce_stalled_s",
        "produce_stalls",
        "produced",
        "topics",
    )

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter, max_topics: int = MAX_TOPICS) -> None:
        self._max_topics = max_topics
        self.clock = clock
        """Seconds from some point on; for durations only, nothing is decided by it."""
        self.arrived = 0.0
        """When what is being received came in: read once, for all requests that one read of a socket brings."""
        self.produce = ApiMetrics()
        self.apis: dict[int, ApiMetrics] = {_PRODUCE_KEY: self.produce}
        """By API key."""
        self.topics: dict[str, TopicTraffic] = {}
        self.other_topics = TopicTraffic()
        self.connections_opened = 0
        self.connections_closed = Counter(dict.fromkeys(CLOSE_CAUSES, 0))
        """Those that this broker ended, by cause. All are there from the start: of a series that appears with its first event,
        Prometheus sees no increase."""
        self.produce_stalls = 0
        """Times that producers had to wait for room in the log."""
        self.produce_stalled_s = 0.0
        """How long they did; a wait that is not over is not in it."""
        self.fetches_delayed = 0
        """Fetches that could not be answered at once: they waited for data, or for objects to be read."""
        self.fetches_late = 0
        """Fetches that were answered before all that they wanted of objects was there."""
        self.fetch_waits = Histogram()
        """Seconds that fetches waited for data (long poll)."""
        self.fetch_reads_cached = 0
        """Reads of partitions that the log cache served."""
        self.fetch_reads_cold = 0
        """Reads of partitions that went to objects, or to the block cache."""

        self.fetched_bytes = Counter(dict.fromkeys(WHERE, 0))
        """Of record batches sent to consumers, by whether they are in this broker's zone."""
        self.produced = {where: ProducedBytes() for where in WHERE}
        """What came from producers, likewise."""
        self.fetch_redirects = Counter(dict.fromkeys(FETCH_REDIRECTS, 0))
        """Partitions of fetches whose consumer was told to read elsewhere."""

    def api(self, api_key: int) -> ApiMetrics:
        """The figures of an API that is served."""
        found = self.apis.get(api_key)
        if found is None:
            found = self.apis[api_key] = ApiMetrics()
        return found

    def topic(self, name: str) -> TopicTraffic:
        """Where to count for a topic that appeared: in a row of its own while there are not too many."""
        found = self.topics.get(name)
        if found is None:
            if len(self.topics) >= self._max_topics:
                return self.other_topics
            found = self.topics[name] = TopicTraffic()
        return found

    def forget_topic(self, name: str) -> None:
        """The topic is gone; its place is free for one that is yet to come."""
        self.topics.pop(name, None)
