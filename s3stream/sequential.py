"""Reads an object front to back, whatever its reader needs of it, in as few requests as that takes.

Always true:
- One request is made for all that lies close together, and is taken as it comes: nothing is kept but what waits to be taken, about
  `buffer_bytes` of it. Gaps of up to `SKIPPED_BYTES` are read and thrown away, which costs less than another request.
- Going back, or far ahead, begins anew.
- Nothing is checked here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from s3stream.objectstore import Buffer, ObjectStore

__all__ = ["SKIPPED_BYTES", "SequentialReader"]

SKIPPED_BYTES: Final = 1 << 20
"""As much as comes while a request is on its way."""


class SequentialReader:
    """Of one object; closed by whoever made it."""

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        *,
        buffer_bytes: int,
        on_received: Callable[[int], Awaitable[None]],
    ) -> None:
        """Describe it; nothing is read before it is asked for. `on_received` is told of what came, and may take its time."""
        self._store = store
        self._key = key
        self._buffer_bytes = buffer_bytes
        self._on_received = on_received
        self._pieces: AsyncGenerator[Buffer, None] | None = None
        self._piece = memoryview(b"")
        self._position = 0
        """Of the piece, within the object."""
        self._end = 0
        """Of the request, exclusive."""

    async def read(self, start: int, end: int, *, until: int) -> Buffer:
        """Bytes [start, end), fewer where the object is shorter.

        Args:
            until: as far as will be read next, more or less without gaps: what one request is worth making for.
        """
        gap = start - self._position
        if not 0 <= gap <= SKIPPED_BYTES or end > self._end:
            await self._begin(start, max(end, until))
        else:
            await self._skip(gap)
        if len(self._piece) >= end - start:
            return self._take(end - start)
        data = bytearray()
        while len(data) < end - start:
            if not self._piece and not await self._next():
                break
            data += self._take(min(end - start - len(data), len(self._piece)))
        return data

    async def close(self) -> None:
        """Leave the rest, if any. It can be read from again."""
        pieces, self._pieces = self._pieces, None
        self._piece = memoryview(b"")
        self._position = self._end = 0
        if pieces is not None:
            await pieces.aclose()

    async def _begin(self, start: int, end: int) -> None:
        await self.close()
        self._position, self._end = start, end
        if end - start <= self._buffer_bytes:
            data = await self._store.get_range(self._key, start, end)
            self._piece = memoryview(data)
            await self._on_received(len(data))
        else:
            self._pieces = self._store.get_stream(self._key, start, end, buffer_bytes=self._buffer_bytes)

    async def _skip(self, size: int) -> None:
        while size:
            if not self._piece and not await self._next():
                return
            size -= len(self._take(min(size, len(self._piece))))

    async def _next(self) -> bool:
        """The next piece; False at the end."""
        if self._pieces is None:
            return False
        self._piece = memoryview(await anext(self._pieces, b""))
        await self._on_received(len(self._piece))
        return len(self._piece) > 0

    def _take(self, size: int) -> memoryview:
        taken, self._piece = self._piece[:size], self._piece[size:]
        self._position += size
        return taken
