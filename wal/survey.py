"""Looks at a WAL that may be open elsewhere: reads its headers and frames, takes no lock, writes nothing.

Always true:
- What is reported as a frame passed every check that recovery makes: the rules are those of `wal.recovery`, unchanged.
- Where the log seems to end, the header and that place are read again, and reading goes on if the writer was just there.
  So neither a trim nor a write that happens meanwhile passes for damage: a loss is reported only where the same place,
  read after the proof of it, is still not filled.
- Frames that the writer trims away while they are read are left out.
"""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from wal.disk import Disk
from wal.errors import WalCorrupt
from wal.frame import BLOCK_SIZE_BYTES, FRAME_HEADER_SIZE_BYTES, align_block, crc_seed, frame_size
from wal.header import RING_START_BYTES, WalHeader, choose_header, read_slots
from wal.log import RecoveredRun
from wal.recovery import FrameScan, Hole, Need, floor_block
from wal.ring_reader import RingReader, complete

__all__ = ["EndOfLog", "SurveyedFrame", "WalSurvey", "frames_of"]

_RUN_BYTES = 1 << 20
"""Frames that are told together."""

_MAX_FOLLOWED_HEADERS = 1_000
"""How often the log's start may move on while one survey follows it; then the end found so far is told."""


class SurveyedFrame(NamedTuple):
    """One frame of a run."""

    offset: int
    end_offset: int
    """Exclusive log offset of the frame's end."""
    stream_id: int
    leader_epoch: int
    base_offset: int
    record_count: int
    payload: memoryview
    """Valid until the next run is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfLog:
    """Where the frames end, and what that means."""

    offset: int
    reason: str
    """Why nothing was accepted there."""
    loss: str | None
    """What proves that acknowledged data is missing there; None where nothing does: the log ends there in order, or with
    a write that was never acknowledged."""


class WalSurvey:
    """One look at the log behind a disk."""

    def __init__(self, disk: Disk) -> None:
        """The disk is only read. It belongs to the caller, who closes it."""
        self._disk = disk
        self.end: EndOfLog | None = None
        """Known once `runs` was read to its end."""

    async def headers(self) -> list[WalHeader | None]:
        """Both copies of the header as they are now; None for one that is damaged, or being written.

        Raises:
            WalUnsupportedFormat: a newer version wrote them.
            WalUnavailable: the disk cannot be read.
        """
        return read_slots(await self.head())

    async def runs(self) -> AsyncIterator[RecoveredRun]:
        """Every frame from the trim offset on, many at a time. A run is valid until the next one is asked for.

        Raises:
            WalCorrupt: neither copy of the header is intact.
            WalUnsupportedFormat, WalUnavailable: see above.
        """
        header = choose_header(await self.head())
        scan, reader = self._begin(header, header.trim_offset)
        followed = 0
        while True:
            begun_at = scan.next_offset
            loss: str | None = None
            try:
                found = await _run(scan, reader, _RUN_BYTES)
            except WalCorrupt as error:  # a frame of an epoch that this header does not know
                if scan.next_offset > begun_at:  # what comes before it is sound: get that first
                    sound_bytes = scan.next_offset - begun_at
                    scan, reader = self._begin(header, begun_at)
                    found = await _run(scan, reader, sound_bytes)
                else:
                    loss = str(error)
                    found = Hole(offset=begun_at, reason="the frame there is newer than the header")
            if not isinstance(found, Hole):
                yield found
                continue
            hole = found
            loss = loss or await self._proof(scan, hole, reader)
            now = choose_header(await self.head())
            if now.generation != header.generation and followed < _MAX_FOLLOWED_HEADERS:
                followed += 1
                header = now
                scan, reader = self._begin(header, max(hole.offset, header.trim_offset))
                continue
            if loss is not None:
                # The proof may have been written after we looked at the hole.
                scan, reader = self._begin(header, hole.offset)
                try:
                    found = await _run(scan, reader, 1)
                except WalCorrupt:
                    found = hole
                if not isinstance(found, Hole):
                    yield found
                    continue
            self.end = EndOfLog(offset=hole.offset, reason=hole.reason, loss=loss)
            return

    def _begin(self, header: WalHeader, offset: int) -> tuple[FrameScan, RingReader]:
        scan = FrameScan(header, crc_seed(header.wal_id))
        scan.next_offset = offset
        return scan, RingReader(self._disk, header.capacity_bytes, floor_block(offset), scan.limit_offset)

    async def _proof(self, scan: FrameScan, hole: Hole, reader: RingReader) -> str | None:
        """What proves that the hole was once filled."""
        try:
            scan.check_hole(hole)
            offset = align_block(hole.offset)
            while offset < scan.limit_offset:
                await reader.extend(offset, offset + BLOCK_SIZE_BYTES)
                end = reader.start_offset + len(reader.view)
                scan.check_beyond(hole, reader.view, reader.start_offset)
                offset = end
        except WalCorrupt as error:
            return str(error)
        return None

    async def head(self) -> bytes:
        """The file's first bytes, both copies of the header."""
        with mmap.mmap(-1, RING_START_BYTES) as memory:
            view = memoryview(memory)
            try:
                await complete(partial(self._disk.read, 0, view))
                return bytes(view)
            finally:
                view.release()


async def _run(scan: FrameScan, reader: RingReader, max_bytes: int) -> RecoveredRun | Hole:
    while isinstance(found := scan.run(reader.view, reader.start_offset, max_bytes), Need):
        await reader.extend(floor_block(scan.next_offset), found.end_offset)
    return found


def frames_of(run: RecoveredRun) -> Iterator[SurveyedFrame]:
    """The frames of a run, in the order of the log."""
    rows = sorted(
        (position, size_bytes, stream_id, leader_epoch, base_offset, end_offset)
        for stream_id, payloads in run.streams.items()
        for position, size_bytes, leader_epoch, base_offset, end_offset in zip(*payloads, strict=True)
    )
    for position, size_bytes, stream_id, leader_epoch, base_offset, end_offset in rows:
        offset = run.offset + position - FRAME_HEADER_SIZE_BYTES
        yield SurveyedFrame(
            offset,
            offset + frame_size(size_bytes),
            stream_id,
            leader_epoch,
            base_offset,
            end_offset - base_offset,
            run.buffer[position : position + size_bytes],
        )
