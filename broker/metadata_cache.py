"""Encoded Metadata answers, kept until something changes: many clients ask the same, and a large answer takes milliseconds.

Always true: an answer is given only for the version of `Topics` that it was made from; the cache is bounded.
"""

from __future__ import annotations

import struct

__all__ = ["MAX_CACHED_ANSWERS", "MAX_CACHED_BYTES", "MetadataCache"]

MAX_CACHED_ANSWERS = 64
MAX_CACHED_BYTES = 16 << 20
"""Of all answers together: with 10,000 partitions one has some 500 KB."""

_INT32 = struct.Struct(">i")


class MetadataCache:
    """Encoded answers to the questions asked lately."""

    __slots__ = ("_answers", "_size_bytes", "_version")

    def __init__(self) -> None:
        self._answers: dict[object, bytes] = {}
        self._size_bytes = 0
        self._version = -1

    def get(self, version: int, key: object, correlation_id: int) -> bytes | None:
        """The frame for a question, if nothing changed since it was kept."""
        if version != self._version:
            self._answers.clear()
            self._size_bytes = 0
            self._version = version
        answer = self._answers.get(key)
        return None if answer is None else answer[:4] + _INT32.pack(correlation_id) + answer[8:]

    def put(self, version: int, key: object, frame: bytes) -> None:
        """Keep a frame, if nothing changed since the question was looked up."""
        if (
            version == self._version
            and len(self._answers) < MAX_CACHED_ANSWERS
            and self._size_bytes + len(frame) <= MAX_CACHED_BYTES
        ):
            self._answers[key] = frame
            self._size_bytes += len(frame)
