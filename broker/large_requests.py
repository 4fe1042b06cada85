"""What keeps requests that take long, or hold much, from harming others: who may start now, and who waits for a turn.

Theory of operation. All but Produce is decoded into objects, some hundred bytes for each element of an array, and a few hundred
thousand elements take the better part of a second. So large requests take turns: after each of them all others have as much time as
it took. What is not answered at once keeps its objects meanwhile: such requests are charged, by their
size on the wire, to a budget that all connections share.

Always true:
- Requests below `LARGE_BYTES` do not take turns, and those up to `FREE_BYTES` are not held back by the budget either.
- Whoever waits is resumed in order. The first may overdraw the budget when nothing is charged: somebody always gets on.
- A connection has one request under way at most, so what it is charged is under the connection's own name.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["FREE_BYTES", "LARGE_BYTES", "LargeRequests"]

LARGE_BYTES = 64 << 10
"""From this size on requests take turns. One of 64 KiB takes some milliseconds at worst."""

SHORT_TURN_S = 0.002
"""A turn that took less is followed by the next one at once."""

FREE_BYTES = 1 << 10
"""What each connection may have under way without being charged: nearly every request that people send."""


class Waiter(Protocol):
    """A connection whose next request is in its receive buffer."""

    def resume(self) -> None:
        """Try again to start it."""


class LargeRequests:
    """The turns and the budget of one server."""

    __slots__ = (
        "_charged",
        "_free_bytes",
        "_loop",
        "_next",
        "_resume_scheduled",
        "_turn_began_at",
        "_turn_taken",
        "_waiting",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, budget_bytes: int) -> None:
        self._loop = loop
        self._free_bytes = budget_bytes
        self._charged: dict[Waiter, int] = {}
        self._waiting: dict[Waiter, None] = {}
        self._next: Waiter | None = None
        """Who waits for the budget, and comes before everybody whom it concerns: else a large request might never start."""
        self._turn_taken = False
        self._turn_began_at = 0.0
        self._resume_scheduled = False

    @property
    def charged_bytes(self) -> int:
        """Size of the requests that are under way."""
        return sum(self._charged.values())

    @property
    def waiting_count(self) -> int:
        """Connections that wait for their turn, or for others to be answered."""
        return len(self._waiting)

    def waits(self, waiter: Waiter) -> bool:
        """Whether `waiter` is held back here."""
        return waiter in self._waiting

    def may_start(self, waiter: Waiter, size: int) -> bool:
        """Whether a request of `size` bytes may start now; False: `waiter` is resumed when it is worth trying again."""
        if size <= FREE_BYTES:
            return True
        if size >= LARGE_BYTES and self._turn_taken:
            return self._wait(waiter)
        if self._next not in (None, waiter):
            return self._wait(waiter)
        if size > self._free_bytes and self._charged:
            self._next = waiter
            return self._wait(waiter)
        self._next = None
        self._waiting.pop(waiter, None)
        if size >= LARGE_BYTES:
            self._turn_taken = True
            self._turn_began_at = self._loop.time()
            self._loop.call_soon(self._end_turn)
        return True

    def begin(self, waiter: Waiter, size: int) -> None:
        """A request of `size` bytes was started and is not answered yet."""
        if size > FREE_BYTES:
            self._charged[waiter] = size
            self._free_bytes -= size

    def end(self, waiter: Waiter) -> None:
        """The request that `waiter` had under way is answered or given up; does nothing where none is charged."""
        size = self._charged.pop(waiter, 0)
        if size:
            self._free_bytes += size
            self._schedule()

    def forget(self, waiter: Waiter) -> None:
        """The connection is gone."""
        self._waiting.pop(waiter, None)
        if self._next is waiter:
            self._next = None
            self._schedule()
        self.end(waiter)

    def _wait(self, waiter: Waiter) -> bool:
        self._waiting[waiter] = None
        return False

    def _schedule(self) -> None:
        if not self._resume_scheduled:
            self._resume_scheduled = True
            self._loop.call_soon(self._resume_waiting)

    def _end_turn(self) -> None:
        # Called when everything that was started in the same turn of the event loop is served.
        spent_s = self._loop.time() - self._turn_began_at
        if spent_s < SHORT_TURN_S:
            self._next_turn()
        else:
            self._loop.call_later(spent_s, self._next_turn)

    def _next_turn(self) -> None:
        self._turn_taken = False
        self._schedule()

    def _resume_waiting(self) -> None:
        self._resume_scheduled = False
        # Those that may still not start line up again, in the same order; those that have another reason by now do not.
        self._next = None
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            waiter.resume()
