"""The newest entries as bytes, for the nodes that follow. Pure.

Always true: they are in sequence, and together not much larger than `max_bytes`, whatever their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["RecentEntries"]

_MAX_BYTES = 4 << 20
_MAX_ANSWERED_BYTES = 1 << 20
"""Of one answer: the rest comes with the next."""


class RecentEntries:
    """Entries that count, newest last."""

    def __init__(self, *, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: deque[bytes] = deque()
        self._first_index = 0
        self._bytes = 0

    def add(self, index: int, entry: bytes) -> None:
        """The entry that comes next; behind a gap the ones before it are dropped."""
        if index != self._first_index + len(self._entries):
            self.clear()
        if not self._entries:
            self._first_index = index
        self._entries.append(entry)
        self._bytes += len(entry)
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            self._bytes -= len(self._entries.popleft())
            self._first_index += 1

    def since(self, index: int) -> Sequence[bytes]:
        """Entries from an index on, as many as fit an answer; none where that one is not here."""
        at = index - self._first_index
        if not 0 <= at < len(self._entries):
            return ()
        found: list[bytes] = []
        size = 0
        for number in range(at, len(self._entries)):
            size += len(self._entries[number])
            if found and size > _MAX_ANSWERED_BYTES:
                break
            found.append(self._entries[number])
        return found

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0
