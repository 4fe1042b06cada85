"""Counters, cheap enough for the hot path: plain integers that one event loop changes."""

from __future__ import annotations

__all__ = ["Metrics"]


class Metrics:
    """What happened since start."""

    __slots__ = (
        "connections_opened",
        "fetch_bytes",
        "fetch_requests",
        "fetches_delayed",
        "produce_bytes",
        "produce_refused",
        "produce_requests",
        "produce_stalls",
        "requests",
    )

    def __init__(self) -> None:
        self.connections_opened = 0
        self.requests = 0
        """Of any kind but Produce."""
        self.produce_requests = 0
        self.produce_bytes = 0
        """Frames received, headers included."""
        self.produce_refused = 0
        """Batches that were answered with an error."""
        self.produce_stalls = 0
        """Times that producers had to wait for room in the log."""
        self.fetch_requests = 0
        self.fetch_bytes = 0
        """Record bytes answered."""
        self.fetches_delayed = 0
        """Fetches that waited for data (long poll)."""
