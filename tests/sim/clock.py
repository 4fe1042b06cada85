"""Wall clocks of simulated machines: each drifts by itself, and an operator or NTP may set it."""

from __future__ import annotations

import asyncio

__all__ = ["WallClock"]

_START_MS = 1_700_000_000_000


class WallClock:
    """`now_ms` of one machine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, drift: float = 0.0, offset_ms: int = 0) -> None:
        self._loop = loop
        self._drift = drift
        """By how much it runs fast, as a fraction: real clocks stay below 200 parts in a million."""
        self._offset_ms = offset_ms

    def __call__(self) -> int:
        return _START_MS + self._offset_ms + int(self._loop.time() * 1000 * (1 + self._drift))

    def set_wrong(self, by_ms: int) -> None:
        """Make it wrong by so much, but for its drift; 0: set it right."""
        self._offset_ms = by_ms

    def jump(self, by_ms: int) -> None:
        """Set the clock forward or back."""
        self._offset_ms += by_ms
