"""Tells the storage engine where one Kafka record batch ends and the next begins."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import Malformed
from protocol.records import batch_bounds, batch_max_timestamps
from s3stream.objectstore import Buffer
from s3stream.payload import PayloadBounds

__all__ = ["RecordBatchFormat"]


class RecordBatchFormat:
    """The `PayloadFormat` of a Kafka log: one payload is one record batch of magic 2."""

    def bounds(self, buffer: Buffer, position: int) -> PayloadBounds:
        """Bounds of the batch at `position`. Raises ValueError where there is none."""
        try:
            base_offset, end_offset, size_bytes, record_count, max_timestamp = batch_bounds(buffer, position)
        except Malformed as error:
            raise ValueError(str(error)) from error
        return PayloadBounds(base_offset, end_offset, size_bytes, record_count, max_timestamp)

    def max_timestamps_ms(self, buffer: Buffer, positions: Sequence[int]) -> list[int]:
        """See `PayloadFormat`."""
        return batch_max_timestamps(buffer, positions)
