"""How much of the object store's bandwidth catch-up reads may take, and whose turn it is: a line of GETs.

Always true:
- At most `max_requests` of them are under way, fewer than the store has connections: uploads, the WAL and the metadata
  never wait for a consumer that catches up.
- With a rate, GETs begin no faster than their bytes are paid for at that rate, but for a moment's worth.
- Turns are fair in bytes, not in requests: of readers that wait, the one that will have had least with its next GET is next
  (self-clocked fair queueing; Golestani 1994). A reader that is new, or was idle, starts level with the one served last: it waits for
  one turn of each other at most, however far behind or greedy they are.

One event loop's property; no call blocks.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass

__all__ = ["CatchUpBudget", "Share"]

_MOMENT_S = 0.1
"""How far GETs may run ahead of the rate: a late timer costs no bandwidth then."""
_SHORTEST_WAIT_S = 0.001
"""Less is no wait at all: timers are not that exact."""


@dataclass(slots=True, eq=False)
class Share:
    """What one reader had."""

    had_bytes: int = 0
    """By the line's own count, which goes on while others read: see `CatchUpBudget`."""


class CatchUpBudget:
    """Gives out turns; whoever has one calls `done` when its answer is here."""

    def __init__(self, *, max_requests: int) -> None:
        """Open the line, without a rate: see `limit`."""
        self._max_requests = max_requests
        self._rate: int | None = None
        self._line: list[tuple[int, int, int, asyncio.Future[None]]] = []
        """A heap of: what its reader will have had, a number, size, to be told."""
        self._number = 0
        self._level = 0
        """What the reader will have had that was served last: where new ones begin."""
        self._paid_at_s = 0.0
        """When all that was asked for is paid for, on the event loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._throttled_since_s = 0.0
        self._throttled_s = 0.0
        self.requests_under_way = 0

    @property
    def rate_bytes_per_s(self) -> int | None:
        """What GETs may take; None: no bound."""
        return self._rate

    @property
    def waiting_count(self) -> int:
        """GETs that wait for their turn."""
        return len(self._line)

    @property
    def is_throttled(self) -> bool:
        """Whether the rate holds somebody back now."""
        return self._timer is not None

    @property
    def throttled_s(self) -> float:
        """Seconds since start in which the rate held GETs back."""
        now_s = 0.0 if self._timer is None else asyncio.get_running_loop().time() - self._throttled_since_s
        return self._throttled_s + now_s

    def limit(self, rate_bytes_per_s: int | None) -> None:
        """Change the rate; what waits now waits by the new one, and owes nothing by the old one."""
        if rate_bytes_per_s == self._rate:
            return
        self._rate = rate_bytes_per_s
        self._paid_at_s = 0.0
        self._stop_timer()
        if self._line:
            self._serve()

    async def turn(self, share: Share, size_bytes: int) -> None:
        """Wait until `share`'s reader may ask for so many bytes."""
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        share.had_bytes = max(self._level, share.had_bytes) + size_bytes
        self._number += 1
        heapq.heappush(self._line, (share.had_bytes, self._number, size_bytes, asked))
        self._serve()
        try:
            await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled():
                self.done()
            raise

    def done(self) -> None:
        """A GET that had its turn has ended."""
        self.requests_under_way -= 1
        self._serve()

    def charge(self, size_bytes: int) -> None:
        """Account for what was read without a turn (indexes: small, and the next read waits for them)."""
        if self._rate is not None:
            now_s = asyncio.get_running_loop().time()
            self._paid_at_s = max(self._paid_at_s, now_s) + size_bytes / self._rate

    def _serve(self) -> None:
        while self._line and self._timer is None and self.requests_under_way < self._max_requests:
            had_bytes, _, size_bytes, asked = self._line[0]
            if not asked.done():  # else given up
                if self._rate is not None and self._wait_for_rate():
                    return
                self._level = had_bytes
                self.charge(size_bytes)
                self.requests_under_way += 1
                asked.set_result(None)
            heapq.heappop(self._line)

    def _wait_for_rate(self) -> bool:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        delay_s = self._paid_at_s - now_s - _MOMENT_S
        if delay_s < _SHORTEST_WAIT_S:
            return False
        self._throttled_since_s = now_s
        self._timer = loop.call_later(delay_s, self._paid)
        return True

    def _paid(self) -> None:
        self._stop_timer()
        self._serve()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._throttled_s += asyncio.get_running_loop().time() - self._throttled_since_s
