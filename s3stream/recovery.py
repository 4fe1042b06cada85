"""Takes what a WAL holds into the log cache, at the start of a node or where another recovers its log.

Always true:
- Of each stream only that is taken which continues what is known of it: what is in objects already, or is of a leader epoch before that of its last
  close, is of no account. Anything else that does not continue it is refused, and nothing is changed; so is what is of a stream that there
  never was, as far as the metadata know: then they are not those that this log was used with, or have lost something.
- A WAL that holds more than memory does is recovered all the same: what was taken so far is uploaded then, without state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from s3stream.cached_blocks import CachedBlocks
from s3stream.errors import StorageError
from s3stream.metadata import StreamId
from s3stream.payload import PayloadFormat
from s3stream.stream import Stream
from wal.arena import Arena
from wal.log import RecoveredPayloads, RecoveredRun

__all__ = ["Recovery"]


class Recovery:
    """One recovery of one log."""

    def __init__(
        self,
        *,
        arena: Arena,
        blocks: CachedBlocks,
        streams: Mapping[StreamId, Stream],
        was_created: Callable[[StreamId], bool],
        payload_format: PayloadFormat,
        upload: Callable[[int], None],
        room: Callable[[], Awaitable[None]],
        uploads_at_once: bool,
        upload_size_bytes: int,
    ) -> None:
        """Recover into `blocks`.

        Args:
            was_created: Whether there ever was a stream.
            upload: Have uploaded what was taken so far; the log is durable up to the offset given.
            room: Wait until memory may have been given back.
            uploads_at_once: Upload while recovery goes on, also while there is room.
        """
        self._arena = arena
        self._blocks = blocks
        self._streams = streams
        self._was_created = was_created
        self._payload_format = payload_format
        self._upload = upload
        self._room = room
        self._uploads_at_once = uploads_at_once
        self._upload_size_bytes = upload_size_bytes
        self.recovered_bytes = 0
        """Payload bytes that were taken."""

    async def take(self, run: RecoveredRun) -> None:
        """Take a run of the WAL's frames as it lies there, but for what objects hold already.

        Raises:
            StorageError: it does not continue what is known, or is too large for the memory that there is.
        """
        blocks = self._blocks
        wanted: list[tuple[Stream, RecoveredPayloads]] = []
        for stream_id, payloads in run.streams.items():
            stream = self._streams.get(StreamId(stream_id))
            if stream is not None and (payloads := _beyond(stream, payloads)).sizes:
                wanted.append((stream, payloads))
            elif stream is None and not self._was_created(StreamId(stream_id)):
                raise StorageError(
                    f"the WAL holds records of stream {stream_id}, and the metadata know of none: they were deleted from the bucket, or do not "
                    "belong to this WAL. None of it was given up. Put back what was deleted, from the bucket's versions or a copy, with all "
                    "brokers stopped"
                )
        if not wanted:
            blocks.open.wal_end_offset = run.end_offset  # deleted, moved in good order, or committed: its room is free
            return
        start = min(payloads.positions[0] for _, payloads in wanted)
        end = max(payloads.positions[-1] + payloads.sizes[-1] for _, payloads in wanted)
        position = await self._room_for(end - start, run.offset)
        self._arena.slice(position, end - start)[:] = run.buffer[start:end]
        shift = position % self._arena.size_bytes - start
        for stream, payloads in wanted:
            part = blocks.part_of(stream, payloads.base_offsets[0])
            size_before = part.size_bytes
            part.extend(
                payloads.end_offsets,
                [at + shift for at in payloads.positions],
                payloads.sizes,
                self._payload_format.max_timestamps_ms(run.buffer, payloads.positions),
            )
            stream.next_offset = stream.confirmed_offset = part.end_offset
            blocks.open.size_bytes += part.size_bytes - size_before
            self.recovered_bytes += part.size_bytes - size_before
        blocks.open.wal_end_offset = run.end_offset
        # Not what it holds, but what it keeps from others: much of the memory is padding where every payload had a write of its own.
        if self._arena.head - blocks.open.start_position >= self._upload_size_bytes and (
            self._uploads_at_once or self._arena.free_bytes < self._arena.size_bytes // 2
        ):
            self._upload(run.end_offset)

    async def _room_for(self, size: int, wal_offset: int) -> int:
        """Room for so much of the log from `wal_offset` on."""
        arena = self._arena
        if size > arena.size_bytes // 2:
            raise StorageError(
                f"the WAL holds {size} bytes in one piece, too large for a log cache of {arena.size_bytes}: "
                "give the node the memory back that it had when they were written"
            )
        while True:
            while (position := arena.reserve(size)) is None and self._blocks.evict_oldest():
                pass
            if position is not None:
                return position
            room = asyncio.ensure_future(self._room())
            self._upload(wal_offset)
            await room


def _beyond(stream: Stream, payloads: RecoveredPayloads) -> RecoveredPayloads:
    """Those payloads of a stream that continue what is known of it; the ones before are in objects, or were never acknowledged: a
    stream is closed only when objects hold all of it, so what is of a leader epoch before that is of no account.

    Raises:
        StorageError: they do not continue it.
    """
    next_offset = stream.next_offset
    least = stream.least_leader_epoch
    if payloads.leader_epochs[0] >= least and payloads.base_offsets == [next_offset, *payloads.end_offsets[:-1]]:
        return payloads
    kept: list[int] = []
    for index, (leader_epoch, base_offset, end_offset) in enumerate(
        zip(payloads.leader_epochs, payloads.base_offsets, payloads.end_offsets, strict=True)
    ):
        if end_offset <= next_offset or leader_epoch < least:
            continue
        if base_offset != next_offset:
            raise StorageError(
                f"the WAL holds offsets {base_offset}..{end_offset - 1} of stream {stream.stream_id}, but what is "
                f"known before it ends at {next_offset}: data between is missing. Nothing was changed; "
                "check that the bucket and the WAL belong together, and whether objects were deleted by hand."
            )
        kept.append(index)
        next_offset = end_offset
    return RecoveredPayloads(*([column[index] for index in kept] for column in payloads))
