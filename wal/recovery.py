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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from wal.checksum import crc32c
from wal.errors import WalCorrupt, WalDamaged
from wal.frame import (
    BLOCK_SIZE_BYTES,
    FRAME_ALIGNMENT_BYTES,
    FRAME_HEADER_SIZE_BYTES,
    MAGIC,
    FrameHeader,
    align_block,
    frame_size,
    payload_is_intact,
    read_header,
    unpack_alike_from,
    whole_frame_mask,
)
from wal.header import WalHeader
from wal.log import RecoveredPayloads, RecoveredRun

__all__ = ["RUN_BYTES", "AcceptedFrame", "FrameScan", "Hole", "Need", "floor_block"]

_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_MAGICS_PER_BLOCK = BLOCK_SIZE_BYTES // 4
_ROUND_UP = FRAME_ALIGNMENT_BYTES - 1

RUN_BYTES = 2 << 20
"""Frames that are handed over at a time: enough to spread what a run costs over thousands, few enough for a cache."""

GLANCE_MAX_BYTES = 4096
"""Payloads up to here are told apart from damage by one CRC over the whole frame; of larger ones there are few."""

_Add = tuple[Callable[[int], None], ...]
"""How to add to each column of `RecoveredPayloads`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The scan wants the log's bytes up to here (exclusive)."""

    end_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """No acceptable frame follows: the log ends here unless something proves otherwise."""

    offset: int
    reason: str


class AcceptedFrame(NamedTuple):
    """The next frame of the log."""

    offset: int
    stream_id: int
    columns: tuple[int, ...]
    """What it adds to `RecoveredPayloads`; its position is that in the buffer."""


def floor_block(offset: int) -> int:
    """The last block boundary at or below `offset`."""
    return offset & -BLOCK_SIZE_BYTES


class FrameScan:
    """Follows the frames from the trim offset on. It is fed with bytes and never reads itself."""

    __slots__ = (
        "_epoch_start_offset",
        "_header",
        "_last_epoch",
        "_masks",
        "_seed",
        "_wal_epoch",
        "limit_offset",
        "next_offset",
    )

    def __init__(self, header: WalHeader, seed: int) -> None:
        self._header = header
        self._seed = seed
        self._wal_epoch = header.wal_epoch
        self._epoch_start_offset = header.epoch_start_offset
        self._last_epoch = 0
        self._masks: dict[int, int] = {}
        """By payload size; at most as many as there are sizes up to `GLANCE_MAX_BYTES`."""
        self.next_offset = header.trim_offset
        """Exclusive end of what was accepted so far."""
        self.limit_offset = floor_block(header.trim_offset) + header.capacity_bytes
        """Where the ring's next lap would begin; after an orderly close the end of the last block."""
        if header.closed:
            self.limit_offset = align_block(header.confirmed_offset)

    def run(self, buffer: memoryview, buffer_offset: int, max_bytes: int) -> RecoveredRun | Need | Hole:
        """Accept the frames that follow out of `buffer`, which holds the log from `buffer_offset` on.

        The run ends with the frame that brings it to `max_bytes`; need and hole are told once there is nothing before them.
        """
        start = self.next_offset
        stop_offset = start + max_bytes
        buffer = buffer[start - buffer_offset :]
        streams: dict[int, RecoveredPayloads] = {}
        adders: dict[int, _Add] = {}
        while True:
            self._accept_alike(buffer, start, stop_offset, streams, adders)
            if self.next_offset >= stop_offset:
                break
            found = self.step(buffer, start)
            if not isinstance(found, AcceptedFrame):
                if not streams:
                    return found
                break  # the next run finds it again
            for add, value in zip(_adders(found.stream_id, streams, adders), found.columns, strict=True):
                add(value)
        return RecoveredRun(start, self.next_offset, buffer[: self.next_offset - start], streams)

    def _accept_alike(
        self,
        buffer: memoryview,
        buffer_offset: int,
        stop_offset: int,
        streams: dict[int, RecoveredPayloads],
        adders: dict[int, _Add],
    ) -> None:
        """Accept frames that lie directly behind one another, are of one epoch and of sizes seen before, in as little
        time as Python can.

        It refuses nothing: whatever is not right at a glance is left to `step`, which judges it. Header and payload are
        checked by one CRC over both (see `wal.frame.whole_frame_mask`).
        """
        wal_epoch = self._last_epoch
        end_offset = self.limit_offset if wal_epoch == self._wal_epoch else self._epoch_start_offset
        end = min(end_offset - buffer_offset, len(buffer))
        last = min(stop_offset - buffer_offset - 1, end - FRAME_HEADER_SIZE_BYTES)
        position = self.next_offset - buffer_offset
        seed = self._seed
        mark = MAGIC | wal_epoch << 32
        mask_of = self._masks.get
        adders_of = adders.get
        while position <= last:
            found_mark, log_offset, padding, size, payload_crc, leader_epoch, stream_id, base_offset, record_count = (
                unpack_alike_from(buffer, position)
            )
            payload_at = position + FRAME_HEADER_SIZE_BYTES
            payload_end = payload_at + size
            frame_end = (payload_end + _ROUND_UP) & -FRAME_ALIGNMENT_BYTES
            if (
                found_mark != mark
                or padding
                or log_offset != position + buffer_offset
                or frame_end > end
                or (mask := mask_of(size)) is None
                or crc32c(buffer[position:payload_end], seed) != payload_crc ^ mask
            ):
                break
            add_position, add_size, add_leader_epoch, add_base_offset, add_end_offset = adders_of(stream_id) or _adders(
                stream_id, streams, adders
            )
            add_position(payload_at)
            add_size(size)
            add_leader_epoch(leader_epoch)
            add_base_offset(base_offset)
            add_end_offset(base_offset + record_count)
            position = frame_end
        self.next_offset = position + buffer_offset

    def step(self, buffer: memoryview, buffer_offset: int) -> AcceptedFrame | Need | Hole:
        """Accept the next frame out of `buffer`, which holds the log from `buffer_offset` on."""
        at = self.next_offset
        found = self._accept(buffer, buffer_offset, at, at)
        if found is None and at != (block := align_block(at)):
            # A write ended here, or a torn one was given up here by a former recovery, which went on at the next block.
            found = self._accept(buffer, buffer_offset, block, at)
        if found is not None:
            return found
        if (frame := read_header(buffer, at - buffer_offset, self._seed)) is not None and frame.log_offset == at:
            return Hole(offset=at, reason="the frame there does not match its payload CRC, or is not of this epoch")
        return Hole(offset=at, reason="no frame of this log follows")

    def _accept(self, buffer: memoryview, buffer_offset: int, offset: int, at: int) -> AcceptedFrame | Need | None:
        """The frame at `offset`, if it is the one that follows the end `at`."""
        position = offset - buffer_offset
        if position + FRAME_HEADER_SIZE_BYTES > len(buffer):
            header_end = offset + FRAME_HEADER_SIZE_BYTES
            return Need(end_offset=header_end) if header_end <= self.limit_offset else None
        frame = read_header(buffer, position, self._seed)
        if frame is None or frame.log_offset != offset or frame.padding_before != offset - at:
            return None
        payload_size = frame.payload_size
        end_offset = offset + frame_size(payload_size)
        if not self._epoch_fits(frame) or end_offset > self.limit_offset:
            return None
        if end_offset > buffer_offset + len(buffer):
            return Need(end_offset=end_offset)
        if not payload_is_intact(buffer, position, frame, self._seed):
            return None
        self._last_epoch = frame.wal_epoch
        self.next_offset = end_offset
        if payload_size <= GLANCE_MAX_BYTES and payload_size not in self._masks:
            self._masks[payload_size] = whole_frame_mask(self._seed, payload_size)
        return AcceptedFrame(
            offset,
            frame.stream_id,
            (
                position + FRAME_HEADER_SIZE_BYTES,
                payload_size,
                frame.leader_epoch,
                frame.base_offset,
                frame.base_offset + frame.record_count,
            ),
        )

    def check_hole(self, hole: Hole) -> None:
        """Hold the hole against what the header knows.

        Raises:
            WalDamaged: the log ends before an offset that was durable.
        """
        confirmed = self._header.confirmed_offset
        if hole.offset < confirmed:
            raise WalDamaged(_loss(hole, f"the WAL header says that the log was durable up to {confirmed}"))

    def check_beyond(self, hole: Hole, buffer: memoryview, buffer_offset: int) -> None:
        """Look through whole blocks beyond the hole for a frame that proves that it once was filled.

        The first frame of a write carries everything that was durable before it, so only block boundaries matter.

        Raises:
            WalDamaged: there is one.
            WalCorrupt: there is one that is newer than the header.
        """
        for frame in self._first_frames(hole, buffer, buffer_offset):
            if frame.confirmed_offset > hole.offset:
                raise WalDamaged(
                    _loss(
                        hole, f"the frame at {frame.log_offset} was written when {frame.confirmed_offset} was durable"
                    )
                )

    def confirmed_beyond(self, hole: Hole, buffer: memoryview, buffer_offset: int) -> int:
        """Up to where frames in whole blocks beyond a hole prove that the log was durable; 0 where there are none."""
        return max((frame.confirmed_offset for frame in self._first_frames(hole, buffer, buffer_offset)), default=0)

    def _first_frames(self, hole: Hole, buffer: memoryview, buffer_offset: int) -> Iterator[FrameHeader]:
        """Frames at block boundaries that belong to this log, and may follow a hole."""
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
            if self._could_follow(frame, hole):
                yield frame

    # ---- beyond damage: see `wal.salvage`

    def skip_frame(self, buffer: memoryview, buffer_offset: int) -> FrameHeader | None:
        """Go on behind the next frame, whatever its payload is; None where no header stands in its place."""
        at = self.next_offset
        for offset in dict.fromkeys((at, align_block(at))):
            frame = read_header(buffer, offset - buffer_offset, self._seed)
            if (
                frame is not None
                and (frame.log_offset, frame.padding_before) == (offset, offset - at)
                and self._epoch_fits(frame)
                and frame.end_offset <= self.limit_offset
            ):
                self._last_epoch = frame.wal_epoch
                self.next_offset = frame.end_offset
                return frame
        return None

    def resume(self, hole: Hole, buffer: memoryview, buffer_offset: int, offset: int) -> bool:
        """Look for the next intact header from `offset` on, and go on at the end of what came before it; False: there is none here."""
        data = bytes(buffer[offset - buffer_offset :])
        position = -1
        while (position := data.find(_MAGIC_BYTES, position + 1)) >= 0:
            if position % FRAME_ALIGNMENT_BYTES:
                continue
            frame = read_header(buffer, offset - buffer_offset + position, self._seed)
            if frame is None or frame.log_offset != offset + position:
                continue
            before = frame.log_offset - frame.padding_before
            if (
                before >= hole.offset
                and frame.log_offset in (before, align_block(before))
                and self._epoch_fits(frame)
                and frame.end_offset <= self.limit_offset
            ):
                self.next_offset = before
                return True
        return False

    def _check_known_epoch(self, frame: FrameHeader) -> None:
        if frame.wal_epoch > self._header.wal_epoch:
            raise WalCorrupt(
                f"the frame at {frame.log_offset} is of WAL epoch {frame.wal_epoch}, but the newest intact WAL header of "
                f"epoch {self._header.wal_epoch}: the header is older than the log; restore the volume, or abandon this WAL"
            )

    def _epoch_fits(self, frame: FrameHeader) -> bool:
        wal_epoch = frame.wal_epoch
        if wal_epoch == self._wal_epoch:
            return frame.log_offset >= self._epoch_start_offset
        self._check_known_epoch(frame)
        return self._last_epoch <= wal_epoch and frame.log_offset < self._epoch_start_offset

    def _could_follow(self, frame: FrameHeader, hole: Hole) -> bool:
        # What a former recovery gave up stays given up, whatever it says of its own time.
        return hole.offset < self._header.epoch_start_offset or frame.wal_epoch == self._header.wal_epoch


def _adders(stream_id: int, streams: dict[int, RecoveredPayloads], adders: dict[int, _Add]) -> _Add:
    """How to add to a stream's columns, which are made where there are none."""
    found = adders.get(stream_id)
    if found is None:
        columns = streams[stream_id] = RecoveredPayloads([], [], [], [], [])
        found = adders[stream_id] = tuple(column.append for column in columns)
    return found


def _loss(hole: Hole, proof: str) -> str:
    return (
        f"acknowledged data is missing from log offset {hole.offset} on: {hole.reason}, yet {proof}. "
        "Restore the volume, or abandon this WAL and accept the loss"
    )
