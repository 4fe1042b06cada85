"""The time-out of an attempt, which what moves of its body puts off: an attempt that gets on is not cut off by the clock.

Without that a link on which a body takes longer than the time-out is none at all: each attempt would be cut off, all that it moved be
lost, and what waits behind it grow. So it is after an outage, when many large bodies share the link.

Always true:
- Only what moves of a body counts, in either direction; an answer that does not begin is given up after one time-out.
- An attempt is bounded all the same: it may take one time-out, and what its body takes at `_LEAST_BYTES_PER_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

__all__ = ["Progress", "current_progress", "putting_off"]

_LEAST_BYTES_PER_S: Final = 64 << 10
_STEP_SHARE: Final = 8
"""The time-out is moved when such a part of it has passed, not with every piece."""


class Progress:
    """Of one attempt."""

    def __init__(self, timeout: asyncio.Timeout, timeout_s: float) -> None:
        """Take what ends the attempt, which has begun, and after what time."""
        self._loop = asyncio.get_running_loop()
        self._timeout: asyncio.Timeout | None = timeout
        self._timeout_s = timeout_s
        self._began = self._loop.time()
        self._next_at = self._began + timeout_s / _STEP_SHARE
        self._latest = self._began + timeout_s

    def expect(self, size_bytes: int) -> None:
        """A body of this size is about to move."""
        self._latest = self._began + self._timeout_s + size_bytes / _LEAST_BYTES_PER_S

    def moved(self) -> None:
        """A piece of it did."""
        now = self._loop.time()
        if now >= self._next_at and self._timeout is not None and not self._timeout.expired():
            self._next_at = now + self._timeout_s / _STEP_SHARE
            self._timeout.reschedule(min(now + self._timeout_s, self._latest))

    def end(self) -> None:
        """What still moves is of no attempt."""
        self._timeout = None


_current: ContextVar[Progress | None] = ContextVar("_current", default=None)


def current_progress() -> Progress | None:
    """Of the attempt that this task makes."""
    return _current.get()


@contextmanager
def putting_off(timeout: asyncio.Timeout, timeout_s: float) -> Iterator[None]:
    """What moves within, in this task or in one that it begins, puts the time-out off."""
    progress = Progress(timeout, timeout_s)
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)
        progress.end()
