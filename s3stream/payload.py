"""How the engine finds its way in payloads that it does not understand.

A payload is what one append wrote: for Kafka, one record batch. Blocks and reads are concatenations of whole payloads,
verbatim; only the implementation of `PayloadFormat`, which the broker gives, knows where one ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from s3stream.objectstore import Buffer

__all__ = ["PayloadBounds", "PayloadFormat"]


class PayloadBounds(NamedTuple):
    """What the engine needs to know of one payload."""

    base_offset: int
    end_offset: int
    """Exclusive: the offset after the payload's last."""
    size_bytes: int
    record_count: int
    max_timestamp_ms: int
    """Largest record timestamp inside, -1 where there is none."""


class PayloadFormat(Protocol):
    """Reads the bounds of payloads."""

    def bounds(self, buffer: Buffer, position: int) -> PayloadBounds:
        """Bounds of the payload that starts at `position`.

        Raises:
            ValueError: the bytes there are no payload, or it does not end within the buffer.
        """

    def max_timestamps_ms(self, buffer: Buffer, positions: Sequence[int]) -> list[int]:
        """Largest record timestamp of each of the payloads that start at `positions`, which are known to be payloads."""
