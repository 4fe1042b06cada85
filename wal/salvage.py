"""What a damaged log still holds, and what of it may be lost: for which stream, from which offset to which.

A log is damaged where recovery says so (`WalDamaged`): a hole, and proof that what was there was acknowledged. It is read on behind the
hole, from the next frame whose header is intact. What was found, in log order, is assessed against what is known of each stream.

Always true:
- A frame counts only where its CRCs, its place and its epoch are right, as in recovery. Where the log ends, the rules are recovery's: a hole
  that nothing proves to have been acknowledged is its end, and what lies behind it is nobody's.
- A damaged frame whose header is intact names what is lost. What else a hole held, nobody knows: it may have been of any stream.
- Offsets of a stream are dense (I2). So a stream has lost nothing in a hole where the next frame of it continues exactly what is known of it
  before. Where none does, and where none follows, it may have lost something: nobody else says that it has not.
- Nothing is written.
"""

from __future__ import annotations

import mmap
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from wal.disk import Disk
from wal.frame import (
    BLOCK_SIZE_BYTES,
    FRAME_ALIGNMENT_BYTES,
    FRAME_HEADER_SIZE_BYTES,
    FrameHeader,
    align_block,
    crc_seed,
)
from wal.header import RING_START_BYTES, WalHeader, choose_header
from wal.log import RecoveredPayloads, RecoveredRun
from wal.recovery import RUN_BYTES, FrameScan, Hole, Need, floor_block
from wal.ring_reader import RingReader, complete

__all__ = ["Assessment", "Finding", "LostFrame", "LostStretch", "StreamLoss", "lost_text", "salvage_ring"]

_SEARCH_BYTES = 4 << 20
"""How much of a hole is searched at a time."""


class LostFrame(NamedTuple):
    """A frame whose header is intact, and whose payload is not."""

    offset: int
    stream_id: int
    leader_epoch: int
    base_offset: int
    end_offset: int
    """Exclusive."""

    @classmethod
    def of(cls, frame: FrameHeader) -> LostFrame:
        return cls(
            frame.log_offset,
            frame.stream_id,
            frame.leader_epoch,
            frame.base_offset,
            frame.base_offset + frame.record_count,
        )


class LostStretch(NamedTuple):
    """Bytes of the log of which nothing can be told."""

    offset: int
    end_offset: int


Finding = RecoveredRun | LostFrame | LostStretch


async def salvage_ring(disk: Disk) -> AsyncGenerator[Finding, None]:
    """Everything that a ring still holds, in log order. A run is valid until the next finding is asked for.

    Raises:
        WalCorrupt: neither header is intact, or they are older than the log.
        WalUnsupportedFormat, WalUnavailable: it cannot be read.
    """
    header = choose_header(await _head(disk))
    scan = FrameScan(header, crc_seed(header.wal_id))
    reader = RingReader(disk, header.capacity_bytes, floor_block(scan.next_offset), scan.limit_offset)
    acknowledged_offset = -1
    while True:
        found = scan.run(reader.view, reader.start_offset, RUN_BYTES)
        if isinstance(found, Need):
            await reader.extend(floor_block(scan.next_offset), found.end_offset)
            continue
        if isinstance(found, RecoveredRun):
            yield found
            continue
        if acknowledged_offset < 0:
            acknowledged_offset = await _acknowledged_offset(disk, header, found)
        if found.offset >= acknowledged_offset:
            return
        lost = await _lost_frame(scan, reader)
        if lost is not None:
            yield lost
            continue
        end_offset = await _next_frame(scan, reader, found)
        yield LostStretch(found.offset, acknowledged_offset if end_offset is None else end_offset)
        if end_offset is None:
            return


async def _acknowledged_offset(disk: Disk, header: WalHeader, hole: Hole) -> int:
    """What is proven to have been durable: by the header, and by all that lies behind the first hole."""
    scan = FrameScan(header, crc_seed(header.wal_id))
    proven = header.confirmed_offset
    if header.closed:
        return proven
    offset = align_block(hole.offset)
    reader = RingReader(disk, header.capacity_bytes, offset, scan.limit_offset)
    while offset < scan.limit_offset:
        await reader.extend(offset, offset + BLOCK_SIZE_BYTES)
        end = reader.start_offset + len(reader.view)
        proven = max(proven, scan.confirmed_beyond(hole, reader.view, reader.start_offset))
        offset = end
    return proven


async def _lost_frame(scan: FrameScan, reader: RingReader) -> LostFrame | None:
    """Step over the next frame if its header is intact, and in its place."""
    at = scan.next_offset
    await reader.extend(floor_block(at), min(align_block(at) + FRAME_HEADER_SIZE_BYTES, scan.limit_offset))
    frame = scan.skip_frame(reader.view, reader.start_offset)
    if frame is None:
        return None
    return LostFrame.of(frame)


async def _next_frame(scan: FrameScan, reader: RingReader, hole: Hole) -> int | None:
    """Go on at the next intact header behind a hole; returns the end of what was before it, None where there is none."""
    offset = hole.offset + FRAME_ALIGNMENT_BYTES
    while offset + FRAME_HEADER_SIZE_BYTES <= scan.limit_offset:
        await reader.extend(floor_block(offset), min(offset + _SEARCH_BYTES, scan.limit_offset))
        if scan.resume(hole, reader.view, reader.start_offset, offset):
            return scan.next_offset
        end = reader.start_offset + len(reader.view)
        offset = max(offset + FRAME_ALIGNMENT_BYTES, end - FRAME_HEADER_SIZE_BYTES + FRAME_ALIGNMENT_BYTES)
    return None


async def _head(disk: Disk) -> bytes:
    with mmap.mmap(-1, RING_START_BYTES) as memory:
        view = memoryview(memory)
        try:
            await complete(partial(disk.read, 0, view))
            return bytes(view)
        finally:
            view.release()


# ---- what it means for streams ------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class StreamLoss:
    """What is known of one stream."""

    end_offset: int
    """Exclusive: what comes before is complete, in objects or in the log."""
    lost: list[tuple[int, int | None]] = field(default_factory=list)
    """Offsets that are missing, each [start, end). None: nobody knows how far, nor whether there was anything."""
    intact: list[tuple[int, int]] = field(default_factory=list)
    """What the log holds behind the first of them."""
    in_doubt: bool = False
    """A stretch was lost since the last frame that was found of it."""
    least_leader_epoch: int = 0
    """Frames of older leader epochs count for nothing: the stream was closed since, wholly in objects."""

    @property
    def is_complete(self) -> bool:
        """Nothing that was acknowledged can be missing."""
        return not self.lost

    def accept(self, base_offset: int, end_offset: int) -> bool:
        """An intact frame; True: it continues what is complete."""
        self.in_doubt = False
        reached = self._reached
        if end_offset <= max(reached, base_offset):
            return False
        if base_offset > reached:
            self.lost.append((reached, base_offset))
        if self.lost:
            self._add_intact(max(base_offset, reached), end_offset)
            return False
        self.end_offset = end_offset
        return True

    def lose(self, base_offset: int, end_offset: int) -> None:
        """A frame whose payload is damaged; which is no loss where objects have it."""
        self.in_doubt = False
        start = self._reached
        if end_offset > start:
            if self.lost and self.lost[-1][1] == start:
                start = self.lost.pop()[0]
            self.lost.append((start, end_offset))

    def text(self) -> str:
        """What is missing, for people."""
        return lost_text(self.lost)

    def end(self) -> None:
        """Nothing follows."""
        if self.in_doubt:
            self.lost.append((self._reached, None))

    @property
    def _reached(self) -> int:
        """Exclusive end of what was found or is known to be lost."""
        reached = self.end_offset
        if self.lost:
            reached = max(reached, self.lost[-1][1] or 0)
        return max(reached, self.intact[-1][1]) if self.intact else reached

    def _add_intact(self, base_offset: int, end_offset: int) -> None:
        if self.intact and self.intact[-1][1] == base_offset:
            base_offset = self.intact.pop()[0]
        self.intact.append((base_offset, end_offset))


def lost_text(lost: Iterable[tuple[int, int | None]]) -> str:
    """Missing ranges of offsets, for people."""
    return "; ".join(
        f"offsets {start} to {end - 1} are missing" if end is not None else f"offsets from {start} on may be missing"
        for start, end in lost
    )


class Assessment:
    """Holds what was found in a damaged log against what is known of its streams."""

    def __init__(
        self,
        committed_end_offsets: Iterable[tuple[int, int]],
        least_leader_epochs: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Those streams whose last records may be in this log, each with the end of what objects hold of it, and with the least leader
        epoch of its frames that count."""
        self.streams = {
            stream_id: StreamLoss(end_offset=end, least_leader_epoch=least_leader_epochs.get(stream_id, 0))
            for stream_id, end in committed_end_offsets
        }
        self.lost_bytes = 0
        """Of the log: stretches of which nothing can be told."""

    def add(self, finding: Finding) -> RecoveredRun | None:
        """Take a finding in; returns what of it continues streams that are complete so far."""
        if isinstance(finding, RecoveredRun):
            return self._add_run(finding)
        if isinstance(finding, LostFrame):
            stream = self.streams.get(finding.stream_id)
            if stream is not None and finding.leader_epoch >= stream.least_leader_epoch:
                stream.lose(finding.base_offset, finding.end_offset)
            return None
        self.lost_bytes += finding.end_offset - finding.offset
        for stream in self.streams.values():
            stream.in_doubt = True
        return None

    def end(self) -> None:
        """The log was read to its end."""
        for stream in self.streams.values():
            stream.end()

    def _add_run(self, run: RecoveredRun) -> RecoveredRun:
        kept: dict[int, RecoveredPayloads] = {}
        for stream_id, payloads in run.streams.items():
            stream = self.streams.get(stream_id)
            if stream is None:
                continue
            least = stream.least_leader_epoch
            rows = [row for row in zip(*payloads, strict=True) if row[2] >= least and stream.accept(row[3], row[4])]
            if rows:
                kept[stream_id] = RecoveredPayloads(*map(list, zip(*rows, strict=True)))
        return run._replace(streams=kept)

    @property
    def complete(self) -> set[int]:
        """Streams that can go on."""
        return {stream_id for stream_id, stream in self.streams.items() if stream.is_complete}

    @property
    def incomplete(self) -> dict[int, StreamLoss]:
        """Streams that cannot, by id."""
        return {stream_id: stream for stream_id, stream in sorted(self.streams.items()) if not stream.is_complete}
