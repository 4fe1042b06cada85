"""A body of an S3 answer that is taken piece by piece, for as long as its reader needs, over a connection that stays open.

Always true:
- What was received and not taken is bounded: then nothing more is read from the socket, and the store waits.
- Pieces come in order, and the caller may keep them. An end before the body's is `ConnectionClosedError`, after all that came.
- A connection serves another request only if its body was taken to the end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from botocore.exceptions import ConnectionClosedError

__all__ = ["BodyStream"]

_MOST_READY: Final = 2
"""Pieces that wait to be taken. Another one is being filled, and another one is in its reader's hands."""
_LEAST_PIECE_BYTES: Final = 16 << 10
_MOST_PIECE_BYTES: Final = 256 << 10
"""Larger ones spare nothing: so much comes from a socket at a time."""


class BodyStream:
    """What botocore hands on as its raw stream. One reader."""

    def __init__(
        self,
        size_bytes: int,
        *,
        buffer_bytes: int,
        transport: asyncio.Transport,
        url: str,
        on_end: Callable[[bool], None],
    ) -> None:
        """Expect a body.

        Args:
            buffer_bytes: about as much waits here to be taken, at most.
            on_end: told once whether the body was taken to its end, so that the connection can be used again.
        """
        self._left = size_bytes
        self._piece_bytes = min(max(buffer_bytes // (_MOST_READY + 2), _LEAST_PIECE_BYTES), _MOST_PIECE_BYTES)
        self._transport = transport
        self._url = url
        self._on_end: Callable[[bool], None] | None = on_end
        self._ready: deque[memoryview] = deque()
        self._piece = memoryview(bytearray(min(self._piece_bytes, size_bytes)))
        self._filled = 0
        self._is_paused = False
        self._error: str | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_received(self) -> bool:
        """True when all of it is here."""
        return not self._left

    def room(self) -> memoryview:
        """Where the next bytes go; none where all of it is here."""
        return self._piece[self._filled :]

    def filled(self, size_bytes: int) -> None:
        """So many bytes were written to `room`."""
        self._filled += size_bytes
        self._left -= size_bytes
        if self._filled == len(self._piece):
            self._ready.append(self._cut())
        if len(self._ready) >= _MOST_READY and self._left and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def fail(self, reason: str) -> None:
        """The connection ended."""
        if self._left and self._error is None:
            self._error = reason
            self._wake()

    async def next(self) -> memoryview:
        """The next bytes as they came, at least one; empty at the end.

        Raises:
            ConnectionClosedError: there are no more, and there should be.
        """
        while not self._ready and not self._filled and self._left and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._ready or self._filled:
            piece = self._ready.popleft() if self._ready else self._cut()
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
            return piece
        if self._left:
            raise ConnectionClosedError(endpoint_url=self._url, error=self._error)
        self._end(True)
        return memoryview(b"")

    def close(self) -> None:
        """Take no more."""
        self._end(not self._left and not self._ready and not self._filled)

    def _cut(self) -> memoryview:
        piece = self._piece[: self._filled]
        self._piece, self._filled = memoryview(bytearray(min(self._piece_bytes, self._left))), 0
        return piece

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, is_whole: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(is_whole)
