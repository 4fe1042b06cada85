"""Deadlines of groups and members, as data: nothing here waits, or knows what time it is.

Theory of operation. Nearly every deadline is moved later again and again (a heartbeat) and hardly ever reached. So moving one only
writes a number; the heap is touched when its entry comes up, and then the timer goes back to where it belongs.

Always true: a timer has at most one valid entry in the heap. The heap holds no more than twice the timers that are set, and a few.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any

__all__ = ["Timer", "Timers"]

_SPARE_ENTRIES = 64


class Timer:
    """Something that happens at `due_ms`, unless it is moved or cancelled."""

    __slots__ = ("due_ms", "group", "kind", "queued_ms", "subject")

    def __init__(self, kind: Any, group: Any, subject: Any = None) -> None:
        self.kind = kind
        self.group = group
        self.subject = subject
        self.due_ms: int | None = None
        """None: not set."""
        self.queued_ms: int | None = None
        """Where its valid entry is in the heap."""


class Timers:
    """All timers of one machine."""

    __slots__ = ("_heap", "_numbers", "_set_count")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._numbers = itertools.count()
        self._set_count = 0

    def __len__(self) -> int:
        return self._set_count

    @property
    def next_ms(self) -> int | None:
        """When `pop_due` may have something; never too late, sometimes too early."""
        return self._heap[0][0] if self._heap else None

    def set(self, timer: Timer, due_ms: int) -> None:
        """Set or move a timer."""
        if timer.due_ms is None:
            self._set_count += 1
        timer.due_ms = due_ms
        if timer.queued_ms is None or due_ms < timer.queued_ms:
            self._push(timer)
            self._bound()

    def cancel(self, timer: Timer) -> None:
        """Nothing happens any more; does nothing where the timer is not set."""
        if timer.due_ms is not None:
            timer.due_ms = None
            self._set_count -= 1
            self._bound()

    def pop_due(self, now_ms: int) -> Iterator[Timer]:
        """Timers that are due, each unset before it is given. Those that are set meanwhile have to wait, however soon they are due."""
        heap = self._heap
        found: list[Timer] = []
        while heap and heap[0][0] <= now_ms:
            at_ms, _, timer = heapq.heappop(heap)
            if timer.queued_ms != at_ms:
                continue  # moved to an earlier time since
            timer.queued_ms = None
            if timer.due_ms is None:
                continue
            if timer.due_ms > now_ms:
                self._push(timer)
            else:
                found.append(timer)
        for timer in found:
            if timer.due_ms is not None and timer.due_ms <= now_ms:  # what came before it may have moved it
                timer.due_ms = None
                self._set_count -= 1
                yield timer

    def _push(self, timer: Timer) -> None:
        assert timer.due_ms is not None, "only what is set is queued"
        timer.queued_ms = timer.due_ms
        heapq.heappush(self._heap, (timer.due_ms, next(self._numbers), timer))

    def _bound(self) -> None:
        """Drop the entries of timers that were cancelled, or moved to an earlier time, once they are the larger half."""
        if len(self._heap) <= 2 * self._set_count + _SPARE_ENTRIES:
            return
        kept = {id(timer): timer for _, _, timer in self._heap if timer.due_ms is not None}
        for _, _, timer in self._heap:
            timer.queued_ms = None
        self._heap.clear()
        for timer in kept.values():
            self._push(timer)
