"""How late the event loop is: the one figure that shows when it does too much at a time.

Always true: `last_turn` and the histogram are changed by the loop alone, and may be read by any thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wal.histogram import Histogram

__all__ = ["EventLoopWatch"]

INTERVAL_S = 0.25
"""Often enough to catch a stop of a tenth of a second every other time, too seldom to be noticed itself."""


class EventLoopWatch:
    """A timer that notes when it is called."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.last_turn = clock()
        """When the loop was last seen turning."""
        self.lag = Histogram()
        """Seconds beyond what was planned."""

    @property
    def silent_s(self) -> float:
        """For how long the loop was not seen turning."""
        return max(self._clock() - self.last_turn, 0.0)

    def start(self) -> None:
        """Begin, on the running loop."""
        self._plan()

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self) -> None:
        self.last_turn = self._clock()
        self._due = self.last_turn + INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._turn)

    def _turn(self) -> None:
        self.lag.observe(max(self._clock() - self._due, 0.0))  # timers of some loops have whole milliseconds
        self._plan()
