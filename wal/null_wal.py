"""`null://`: a log that keeps nothing. For benchmarks only: it shows what durability costs.

Always true: it behaves as a WAL of endless capacity whose every write is done by the next turn of the event
loop. What it acknowledges is lost with the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from wal.arena import Arena
from wal.errors import PayloadTooLarge
from wal.frame import FRAME_HEADER_SIZE_BYTES, frame_size
from wal.histogram import SIZE_BOUNDS_BYTES, Histogram
from wal.log import RecoveredRun, ignore_durable

__all__ = ["NullWal"]


class NullWal:
    """`WriteAheadLog` that only lays payloads out in the arena."""

    def __init__(self, *, arena: Arena, wal_id: str, cluster_id: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._arena = arena
        self._view = arena.view
        self.commit_durations = Histogram()
        self.commit_sizes = Histogram(SIZE_BOUNDS_BYTES)
        self.wal_id = wal_id
        self.cluster_id = cluster_id
        self.wal_epoch = 0
        self.capacity_bytes = 1 << 62
        self.max_payload_bytes = arena.size_bytes // 4
        self.trim_offset = 0
        self.durable_offset = 0
        self.end_offset = 0
        self._on_durable: Callable[[int], None] = ignore_durable
        self._reserved_size = -1
        self._reserved_at = 0
        self._head_before = 0
        self._scheduled = False

    def set_listeners(self, on_durable: Callable[[int], None], on_failed: Callable[[BaseException], None]) -> None:
        """See `WriteAheadLog`. Nothing can fail."""
        self._on_durable = on_durable

    async def recover(self) -> AsyncIterator[RecoveredRun]:
        """There is nothing."""
        nothing: tuple[RecoveredRun, ...] = ()
        for run in nothing:
            yield run

    def reserve(self, payload_size: int) -> memoryview | None:
        """See `WriteAheadLog`."""
        assert self._reserved_size < 0, "the last reservation is still open: append or cancel it"
        if payload_size > self.max_payload_bytes:
            raise PayloadTooLarge(payload_size, self.max_payload_bytes)
        arena = self._arena
        head = arena.head
        position = arena.reserve(frame_size(payload_size))
        if position is None:
            return None
        self._head_before = head
        self._reserved_size = payload_size
        self._reserved_at = payload_at = position % arena.size_bytes + FRAME_HEADER_SIZE_BYTES
        return self._view[payload_at : payload_at + payload_size]

    @property
    def reserved_position(self) -> int:
        """See `WriteAheadLog`."""
        assert self._reserved_size >= 0, "nothing is reserved"
        return self._reserved_at

    def append(
        self,
        *,
        stream_id: int,
        leader_epoch: int,
        base_offset: int,
        record_count: int,
        payload_crc32c: int | None = None,
    ) -> int:
        """See `WriteAheadLog`."""
        size = self._reserved_size
        assert size >= 0, "nothing is reserved"
        self._reserved_size = -1
        self.end_offset = end = self.end_offset + frame_size(size)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._acknowledge)
        return end

    def cancel(self) -> None:
        """See `WriteAheadLog`."""
        assert self._reserved_size >= 0, "nothing is reserved"
        self._reserved_size = -1
        self._arena.head = self._head_before

    async def trim(self, offset: int) -> None:
        """See `WriteAheadLog`."""
        if offset > self.durable_offset:
            raise ValueError(f"cannot trim to {offset}: only {self.durable_offset} is durable")
        self.trim_offset = max(self.trim_offset, offset)

    async def close(self) -> None:
        """See `WriteAheadLog`."""
        if self._scheduled:
            self._acknowledge()

    def _acknowledge(self) -> None:
        if self._scheduled:
            self._scheduled = False
            self.durable_offset = self.end_offset
            self._on_durable(self.durable_offset)
