"""The write-ahead log as its user sees it: a port, and the values that cross it.

Always true:
- A frame is *durable* once a crash or a power loss can no longer take it away. `on_durable(offset)` is called
  only then, on the event loop, with an exclusive end that never goes back; everything below it is durable.
- Frames become durable in the order in which they were appended. There is never a durable frame behind a hole.
- A log offset names a place in the endless logical log (bytes, from 0, never reused), whatever ring, slot or
  object holds it. It has nothing to do with the offsets of a stream.
- The payload is laid out once, in the arena, and that same memory is what is written, cached and uploaded.
- The log holds no clock and takes no decision on what to trim: the storage engine says so (invariant I6).

Appending is three synchronous steps, so that the CRC of a payload can be checked on the copy that stays:

    payload = wal.reserve(size)         # a writable view in the arena, behind room for the frame's header
    payload[:] = received               # the one copy; check and stamp it here
    end = wal.append(stream_id=…, …)    # or wal.cancel(): nothing was written
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

from wal.histogram import Histogram

__all__ = ["RecoveredPayloads", "RecoveredRun", "WriteAheadLog", "ignore_durable", "ignore_failed"]


class RecoveredPayloads(NamedTuple):
    """What a run holds of one stream, in log order: columns, because a recovery finds millions."""

    positions: list[int]
    """Where each payload starts in the run's buffer."""
    sizes: list[int]
    leader_epochs: list[int]
    base_offsets: list[int]
    end_offsets: list[int]
    """Exclusive: the offset behind each payload's last record."""


class RecoveredRun(NamedTuple):
    """Durable frames that follow each other in the log, as `recover` found them."""

    offset: int
    end_offset: int
    """Exclusive log offset of the last frame's end."""
    buffer: memoryview
    """The log from `offset` to `end_offset`, frame headers and padding included. Reused: valid until the next run is asked for."""
    streams: dict[int, RecoveredPayloads]


class WriteAheadLog(Protocol):
    """A durable log of opaque frames with one writer."""

    commit_durations: Histogram
    """Seconds from the start of a group commit's write to its durability."""
    commit_sizes: Histogram
    """Bytes of log that one group commit made durable."""

    @property
    def wal_id(self) -> str:
        """Random identity of this log (32 hex digits), stamped in it when it was formatted."""

    @property
    def wal_epoch(self) -> int:
        """Grows by one at each opening; a registration with an older one is an older copy of the log."""

    @property
    def cluster_id(self) -> str:
        """Identity of the cluster the log was formatted for."""

    @property
    def capacity_bytes(self) -> int:
        """Most bytes between the trim offset and the end of the log."""

    @property
    def trim_offset(self) -> int:
        """Start of the log: frames that end at or below it are given up."""

    @property
    def durable_offset(self) -> int:
        """Exclusive end of what is durable."""

    @property
    def end_offset(self) -> int:
        """Exclusive end of what was appended, durable or not."""

    @property
    def reserved_position(self) -> int:
        """Where the payload of the open reservation starts in the arena's memory (`arena.view`)."""

    def set_listeners(self, on_durable: Callable[[int], None], on_failed: Callable[[BaseException], None]) -> None:
        """Say whom to tell, on the event loop: of a new durable offset, and, once, of a failed write.

        After `on_failed` the log is fenced: nothing more becomes durable, `reserve` raises `WalFenced`.
        """

    def recover(self) -> AsyncIterator[RecoveredRun]:
        """Yield every durable frame past the trim offset, in order, many at a time. Called once, before the first append.

        A run has at most an eighth of the arena's size, and one frame.

        Raises:
            WalCorrupt: a frame beyond a hole proves that acknowledged frames are missing.
        """

    def reserve(self, payload_size: int) -> memoryview | None:
        """Room for one payload in the arena, or None while the arena or the log is full.

        At most one reservation is open; `append` or `cancel` ends it in the same callback, with no await between.
        """

    def append(
        self,
        *,
        stream_id: int,
        leader_epoch: int,
        base_offset: int,
        record_count: int,
        payload_crc32c: int | None = None,
    ) -> int:
        """Frame the reserved payload and queue it; returns the exclusive log offset of its end.

        `payload_crc32c` is that of the payload as it stands now, where the caller knows it: it is not hashed again.

        The write itself starts soon (group commit): at once where the writer is idle at the end of this turn of
        the event loop, otherwise with everything else that gathers meanwhile.
        """

    def cancel(self) -> None:
        """Give the open reservation back. Nothing of it reaches the log."""

    async def trim(self, offset: int) -> None:
        """Give up everything below `offset`; returns once that is durable and the room is free for reuse."""

    async def close(self) -> None:
        """Write what was appended, then release files and threads. Calling it again does nothing."""


def ignore_durable(offset: int) -> None:
    """Who is told of a new durable offset until `set_listeners`."""


def ignore_failed(error: BaseException) -> None:
    """Likewise, of a failed write."""
