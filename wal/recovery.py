"""What recovery decides: follow the chain of frames, and tell a torn tail from lost data. Pure.

Always true:
- A frame is accepted only behind the frame before it: right magic, CRCs and log offset, `padding before` that
  reaches back to the last accepted end, and an epoch that the header allows at that offset and that does not
  go back. Anything else is a hole, and the log ends there.
- A hole is normal where a write was under way: nothing in that write was acknowledged. It is corruption where
  anything proves that the log once went further: the header's confirmed offset, or a frame beyond the hole
  that was written when data past the hole was durable.

What cannot be proven: damage to the last acknowledged write, when nothing was written after it (no frame, no
header) before the crash. Its bytes are then indistinguishable from those of a write that never completed.
Closing in order, and every trim, moves that window by writing the confirmed offset to the header.
"""

from __future__ import annotations

from dataclasses import dataclass

from wal.errors import WalCorrupt
from wal.frame import (
    BLOCK_SIZE_BYTES,
    FRAME_HEADER_SIZE_BYTES,
    MAGIC,
    FrameHeader,
    align_block,
    payload_is_intact,
    read_header,
)
from wal.header import WalHeader
from wal.log import RecoveredFrame

__all__ = ["FrameScan", "Hole", "Need", "floor_block"]

_MAGICS_PER_BLOCK = BLOCK_SIZE_BYTES // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The scan wants the log's bytes up to here (exclusive)."""

    end_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """No acceptable frame follows: the log ends here unless something proves otherwise."""

    offset: int
    reason: str


def floor_block(offset: int) -> int:
    """The last block boundary at or below `offset`."""
    return offset & -BLOCK_SIZE_BYTES


class FrameScan:
    """Follows the frames from the trim offset on. It is fed with bytes and never reads itself."""

    __slots__ = ("_header", "_last_epoch", "_seed", "limit_offset", "next_offset")

    def __init__(self, header: WalHeader, seed: int) -> None:
        self._header = header
        self._seed = seed
        self._last_epoch = 0
        self.next_offset = header.trim_offset
        """Exclusive end of what was accepted so far."""
        self.limit_offset = floor_block(header.trim_offset) + header.capacity_bytes
        """Where the ring's next lap would begin; after an orderly close the end of the last block."""
        if header.closed:
            self.limit_offset = align_block(header.confirmed_offset)

    def step(self, buffer: memoryview, buffer_offset: int) -> RecoveredFrame | Need | Hole:
        """Accept the next frame out of `buffer`, which holds the log from `buffer_offset` on."""
        at = self.next_offset
        buffer_end = buffer_offset + len(buffer)
        reason = "no frame of this log follows"
        for candidate in (at,) if at == align_block(at) else (at, align_block(at)):
            if candidate + FRAME_HEADER_SIZE_BYTES > buffer_end:
                if candidate + FRAME_HEADER_SIZE_BYTES > self.limit_offset:
                    continue
                return Need(end_offset=candidate + FRAME_HEADER_SIZE_BYTES)
            frame = read_header(buffer, candidate - buffer_offset, self._seed)
            if frame is None or frame.log_offset != candidate or frame.padding_before != candidate - at:
                continue
            self._check_known_epoch(frame)
            if not self._epoch_fits(frame) or frame.end_offset > self.limit_offset:
                continue
            if frame.end_offset > buffer_end:
                return Need(end_offset=frame.end_offset)
            position = candidate - buffer_offset
            if not payload_is_intact(buffer, position, frame, self._seed):
                # Not the end yet: a former recovery may have stopped here too, and the log went on at the next block.
                reason = f"the frame at {candidate} does not match its payload CRC"
                continue
            self._last_epoch = frame.wal_epoch
            self.next_offset = frame.end_offset
            payload_at = position + FRAME_HEADER_SIZE_BYTES
            return RecoveredFrame(
                offset=candidate,
                end_offset=frame.end_offset,
                stream_id=frame.stream_id,
                leader_epoch=frame.leader_epoch,
                base_offset=frame.base_offset,
                record_count=frame.record_count,
                payload=buffer[payload_at : payload_at + frame.payload_size],
            )
        return Hole(offset=at, reason=reason)

    def check_hole(self, hole: Hole) -> None:
        """Hold the hole against what the header knows.

        Raises:
            WalCorrupt: the log ends before an offset that was durable.
        """
        confirmed = self._header.confirmed_offset
        if hole.offset < confirmed:
            raise WalCorrupt(_loss(hole, f"the WAL header says that the log was durable up to {confirmed}"))

    def check_beyond(self, hole: Hole, buffer: memoryview, buffer_offset: int) -> None:
        """Look through whole blocks beyond the hole for a frame that proves that it once was filled.

        The first frame of a write carries everything that was durable before it, so only block boundaries matter.

        Raises:
            WalCorrupt: there is one.
        """
        magics = buffer.cast("I")[::_MAGICS_PER_BLOCK].tolist()
        block = -1
        while True:
            try:
                block = magics.index(MAGIC, block + 1)
            except ValueError:
                return
            position = block * BLOCK_SIZE_BYTES
            frame = read_header(buffer, position, self._seed)
            if frame is None or frame.log_offset != buffer_offset + position:
                continue
            self._check_known_epoch(frame)
            if frame.confirmed_offset > hole.offset and self._could_follow(frame, hole):
                raise WalCorrupt(
                    _loss(
                        hole, f"the frame at {frame.log_offset} was written when {frame.confirmed_offset} was durable"
                    )
                )

    def _check_known_epoch(self, frame: FrameHeader) -> None:
        if frame.wal_epoch > self._header.wal_epoch:
            raise WalCorrupt(
                f"the frame at {frame.log_offset} is of WAL epoch {frame.wal_epoch}, but the newest intact WAL header of "
                f"epoch {self._header.wal_epoch}: the header is older than the log; restore the volume, or abandon this WAL"
            )

    def _epoch_fits(self, frame: FrameHeader) -> bool:
        if frame.log_offset >= self._header.epoch_start_offset:
            return frame.wal_epoch == self._header.wal_epoch
        return self._last_epoch <= frame.wal_epoch < self._header.wal_epoch

    def _could_follow(self, frame: FrameHeader, hole: Hole) -> bool:
        # What a former recovery gave up stays given up, whatever it says of its own time.
        return hole.offset < self._header.epoch_start_offset or frame.wal_epoch == self._header.wal_epoch


def _loss(hole: Hole, proof: str) -> str:
    return (
        f"acknowledged data is missing from log offset {hole.offset} on: {hole.reason}, yet {proof}. "
        "Restore the volume, or abandon this WAL and accept the loss"
    )
