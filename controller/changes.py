"""Wakes whoever waits until something is different: an entry was applied, the office won or lost, the leader another.

Always true: who waits is woken by whatever changes after it began to wait, and looks for itself what that was.
"""

from __future__ import annotations

import asyncio

__all__ = ["Changes"]


class Changes:
    """Of one controller."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        """Set, and replaced, with each change."""

    def tell(self) -> None:
        """Something is different."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, timeout_ms: float | None = None) -> bool:
        """Return with the next change; False: there was none in this time."""
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1_000):
                await self._next.wait()
        except TimeoutError:
            return False
        return True
