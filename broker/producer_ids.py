"""Producer ids, handed out from blocks that the metadata log gave to this node.

Always true: an id is given out once. What is left of a block when the node stops is lost, which does no harm: there
are 2^63 of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["PRODUCER_ID_BLOCK_SIZE", "ProducerIds"]

PRODUCER_ID_BLOCK_SIZE = 1000
"""Ids taken at a time, as in Kafka (KIP-730): so a start of a producer rarely costs an entry in the metadata log."""


class ProducerIds:
    """The ids of one node."""

    def __init__(self, allocate: Callable[[int], Awaitable[range]]) -> None:
        self._allocate = allocate
        self._left: list[int] = []
        self._lock = asyncio.Lock()

    def take(self) -> int | None:
        """An id from the block at hand; None where it is used up."""
        return self._left.pop() if self._left else None

    async def take_or_allocate(self) -> int:
        """An id, from a new block where needed. Raises MetadataUnavailable."""
        async with self._lock:
            if not self._left:
                self._left = list(reversed(await self._allocate(PRODUCER_ID_BLOCK_SIZE)))
            return self._left.pop()
