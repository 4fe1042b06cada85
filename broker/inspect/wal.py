"""`tidelog inspect wal`: headers, frames, where the log ends and what that proves, and what was not uploaded yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from broker.inspect.bucket import stream_name
from broker.inspect.rows import DamageRow, NoteRow, Row, offsets, plural, ranges_text, size
from broker.salvage import assess, streams_on
from controller.image import Image
from s3stream.metadata import StreamId
from wal.aside import AsideWal, FileAside, file_asides
from wal.directory import lock_holder, open_read_only, read_fence
from wal.disk import Disk, ThreadDisk
from wal.errors import WalCorrupt
from wal.header import RING_START_BYTES, WalHeader, choose_header
from wal.log import RecoveredPayloads
from wal.salvage import StreamLoss, lost_text
from wal.survey import EndOfLog, SurveyedFrame, WalSurvey, frames_of

__all__ = ["StreamTail", "frame_row", "inspect_wal", "loss_row", "open_wal_disk", "tail_row"]


class WalRow(Row, frozen=True, kw_only=True):
    """The directory."""

    path: str
    ring_bytes: int
    open_in_process: int | None
    """None where no process of this machine is seen to have it open."""
    fenced_epoch: int | None

    def text(self) -> str:
        holder = (
            "open in no process here" if self.open_in_process is None else f"open in process {self.open_in_process}"
        )
        fence = "" if self.fenced_epoch in (None, -1) else f", fenced up to epoch {self.fenced_epoch}"
        return f"WAL {self.path}: a ring of {size(self.ring_bytes)}, {holder}{fence}"


class HeaderCopyRow(Row, frozen=True, kw_only=True):
    """One of the two copies of the header; all but the first two fields are missing where it is damaged."""

    copy: int
    intact: bool
    in_force: bool = False
    wal_id: str = ""
    cluster_id: str = ""
    node_id: int = -1
    capacity_bytes: int = 0
    generation: int = -1
    wal_epoch: int = -1
    epoch_start_offset: int = 0
    trim_offset: int = 0
    confirmed_offset: int = 0
    closed: bool = False

    def text(self) -> str:
        if not self.intact:
            return f"header copy {self.copy}: not intact (damaged, or half written at a crash: the other one counts)"
        if not self.in_force:
            return f"header copy {self.copy}: generation {self.generation}, trimmed to {self.trim_offset}"
        closed = "closed in order" if self.closed else "not closed: open, or its process crashed"
        return (
            f"header copy {self.copy}: generation {self.generation}, in force\n"
            f"  WAL {self.wal_id} of node {self.node_id} in cluster {self.cluster_id}\n"
            f"  epoch {self.wal_epoch}, from log offset {self.epoch_start_offset} on; {closed}\n"
            f"  trimmed to {self.trim_offset}, durable at least to {self.confirmed_offset}"
        )


class FrameRow(Row, frozen=True, kw_only=True):
    """One frame."""

    offset: int
    end_offset: int
    stream_id: int
    partition: str
    leader_epoch: int
    base_offset: int
    record_count: int
    payload_bytes: int

    def text(self) -> str:
        return (
            f"frame {offsets(self.offset, self.end_offset)}: {_stream(self.stream_id, self.partition)}, leader epoch "
            f"{self.leader_epoch}, offsets {offsets(self.base_offset, self.base_offset + self.record_count)}, "
            f"{size(self.payload_bytes)}"
        )


class StreamTailRow(Row, frozen=True, kw_only=True):
    """What the WAL holds of one stream."""

    stream_id: int
    partition: str
    frame_count: int
    payload_bytes: int
    ranges: tuple[tuple[int, int], ...]
    """Offsets, each [base, end); more than one only where an abandon left a gap."""
    leader_epochs: tuple[int, int]
    """Lowest and highest."""
    committed_end_offset: int | None
    """None where the metadata was not read, or the stream was deleted."""
    not_uploaded: tuple[tuple[int, int], ...] | None
    """Of `ranges`, what lies past the committed end."""

    def text(self) -> str:
        low, high = self.leader_epochs
        epochs = f"leader epoch {low}" if low == high else f"leader epochs {low} to {high}"
        text = (
            f"{_stream(self.stream_id, self.partition)}: {plural(self.frame_count, 'frame')}, {size(self.payload_bytes)}, "
            f"{epochs}, offsets {ranges_text(self.ranges)}"
        )
        if self.not_uploaded is None:
            return text
        if not self.not_uploaded:
            return f"{text}; all uploaded (committed up to {self.committed_end_offset})"
        return f"{text}; NOT UPLOADED: {ranges_text(self.not_uploaded)} (committed up to {self.committed_end_offset})"


class LossRow(DamageRow, frozen=True, kw_only=True, tag="loss"):
    """What of one partition may be missing in a damaged WAL."""

    message: str = ""
    stream_id: int
    partition: str
    complete_up_to: int
    """Exclusive: everything below is in objects or in this WAL."""
    lost: tuple[tuple[int, int | None], ...]
    """Offsets, each [start, end); no end where nobody knows it."""
    intact: tuple[tuple[int, int], ...]
    """What this WAL holds behind the first of them."""

    def text(self) -> str:
        intact = f"; intact behind that: {ranges_text(self.intact)}" if self.intact else ""
        return f"DAMAGE: {self.partition}: complete up to {self.complete_up_to}; {lost_text(self.lost)}{intact}"


class EndRow(Row, frozen=True, kw_only=True):
    """Where the log ends."""

    start_offset: int
    end_offset: int
    frame_count: int
    payload_bytes: int
    reason: str
    acknowledged_beyond: bool
    """Something proves that the log once went further; a damage says what."""

    def text(self) -> str:
        proof = "" if self.acknowledged_beyond else "; nothing there or beyond proves that more was acknowledged"
        return (
            f"{plural(self.frame_count, 'frame')} with {size(self.payload_bytes)} of payload in log offsets "
            f"{offsets(self.start_offset, self.end_offset)}\n"
            f"the log ends at {self.end_offset}: {self.reason}{proof}"
        )


@dataclass(slots=True)
class StreamTail:
    """What the WAL holds of one stream, as far as it was read."""

    frame_count: int = 0
    payload_bytes: int = 0
    ranges: list[list[int]] = field(default_factory=list)
    leader_epochs: set[int] = field(default_factory=set)

    def add(self, payloads: RecoveredPayloads) -> None:
        """Count what a run holds of the stream."""
        self.frame_count += len(payloads.sizes)
        self.payload_bytes += sum(payloads.sizes)
        self.leader_epochs.update(payloads.leader_epochs)
        end_at = self.ranges[-1][1] if self.ranges else -1
        for base_offset, end_offset in zip(payloads.base_offsets, payloads.end_offsets, strict=True):
            if base_offset == end_at:
                self.ranges[-1][1] = end_offset
            else:
                self.ranges.append([base_offset, end_offset])
            end_at = end_offset

    def past(self, committed_end_offset: int) -> tuple[tuple[int, int], ...]:
        """What lies past an offset."""
        return tuple((max(low, committed_end_offset), high) for low, high in self.ranges if high > committed_end_offset)


@asynccontextmanager
async def open_wal_disk(path: Path) -> AsyncIterator[Disk]:
    """The file of a WAL, to be read only.

    Raises:
        WalUnavailable: there is none, or it may not be read.
    """
    fd, size_bytes = open_read_only(path)
    disk = ThreadDisk(fd, size_bytes=size_bytes, loop=asyncio.get_running_loop())
    try:
        yield disk
    finally:
        await disk.close()


async def inspect_wal(path: Path, *, image: Image | None, list_frames: bool) -> AsyncGenerator[Row]:
    """Tell what is in a WAL's directory.

    Args:
        image: The metadata of its cluster, for names and for what is uploaded; None leaves those out.

    Raises:
        WalUnavailable, WalUnsupportedFormat: it cannot be looked at.
    """
    async with open_wal_disk(path) as disk:
        yield WalRow(
            path=str(path),
            ring_bytes=disk.size_bytes - RING_START_BYTES,
            open_in_process=lock_holder(path),
            fenced_epoch=read_fence(path),
        )
        survey = WalSurvey(disk)
        async for row in survey_rows(survey, image=image, list_frames=list_frames):
            yield row
        if image is not None and survey.end is not None and survey.end.loss is not None:
            wal_id = choose_header(await survey.head()).wal_id
            async for row in loss_rows(FileAside(wal_id, path), image):
                yield row
    for aside in file_asides(path):
        yield DamageRow(
            message=f"WAL {aside.wal_id} was found damaged, and set aside in {aside.path}"
            + ("" if image is None else f": {plural(len(streams_on(image, aside.wal_id)), 'partition')} offline for it")
            + f"; see tidelog inspect wal {aside.path}"
        )


async def loss_rows(aside: AsideWal, image: Image) -> AsyncGenerator[Row]:
    """What a damaged WAL has lost of each partition that is open on it, and what it still holds."""
    assessment = await assess(aside, image)
    for stream_id, loss in assessment.incomplete.items():
        yield loss_row(image, stream_id, loss)
    yield NoteRow(
        message=f"{plural(len(assessment.complete), 'partition')} of {len(assessment.streams)} lost nothing that was acknowledged"
    )


async def survey_rows(survey: WalSurvey, *, image: Image | None, list_frames: bool) -> AsyncGenerator[Row]:
    """What a survey of one WAL finds."""
    copies = await survey.headers()
    intact = [copy for copy in copies if copy is not None]
    in_force = max(intact, key=lambda copy: copy.generation, default=None)
    for number, copy in enumerate(copies):
        yield _header_row(number, copy, in_force)
    if in_force is not None and image is not None and image.cluster_id != in_force.cluster_id:
        yield NoteRow(
            message=f"the bucket is that of cluster {image.cluster_id}, this WAL that of {in_force.cluster_id}: "
            "names and uploads are left out; say --bucket"
        )
        image = None
    tails: dict[int, StreamTail] = {}
    start_offset = in_force.trim_offset if in_force is not None else 0
    try:
        async for run in survey.runs():
            for stream_id, payloads in run.streams.items():
                tails.setdefault(stream_id, StreamTail()).add(payloads)
            if list_frames:
                for frame in frames_of(run):
                    yield frame_row(frame, image)
    except WalCorrupt as error:
        yield DamageRow(message=str(error))
        return
    for stream_id, tail in sorted(tails.items()):
        yield tail_row(stream_id, tail, image)
    assert survey.end is not None, "the frames were read to their end"
    yield _end_row(survey.end, start_offset, tails.values())
    if survey.end.loss is not None:
        yield DamageRow(message=survey.end.loss)


def loss_row(image: Image | None, stream_id: int, loss: StreamLoss) -> LossRow:
    """What is missing of one stream."""
    return LossRow(
        stream_id=stream_id,
        partition=stream_name(image, stream_id),
        complete_up_to=loss.end_offset,
        lost=tuple(loss.lost),
        intact=tuple(loss.intact),
    )


def _header_row(number: int, header: WalHeader | None, in_force: WalHeader | None) -> HeaderCopyRow:
    if header is None:
        return HeaderCopyRow(copy=number, intact=False)
    return HeaderCopyRow(
        copy=number,
        intact=True,
        in_force=header is in_force,
        wal_id=header.wal_id,
        cluster_id=header.cluster_id,
        node_id=header.node_id,
        capacity_bytes=header.capacity_bytes,
        generation=header.generation,
        wal_epoch=header.wal_epoch,
        epoch_start_offset=header.epoch_start_offset,
        trim_offset=header.trim_offset,
        confirmed_offset=header.confirmed_offset,
        closed=header.closed,
    )


def frame_row(frame: SurveyedFrame, image: Image | None) -> FrameRow:
    """One frame."""
    return FrameRow(
        offset=frame.offset,
        end_offset=frame.end_offset,
        stream_id=frame.stream_id,
        partition=stream_name(image, frame.stream_id),
        leader_epoch=frame.leader_epoch,
        base_offset=frame.base_offset,
        record_count=frame.record_count,
        payload_bytes=len(frame.payload),
    )


def tail_row(stream_id: int, tail: StreamTail, image: Image | None) -> StreamTailRow:
    """What a WAL holds of one stream."""
    stream = None if image is None else image.state.tables.streams.get(StreamId(stream_id))
    committed_end_offset = None if stream is None else stream.committed_end_offset
    return StreamTailRow(
        stream_id=stream_id,
        partition=stream_name(image, stream_id),
        frame_count=tail.frame_count,
        payload_bytes=tail.payload_bytes,
        ranges=tuple((low, high) for low, high in tail.ranges),
        leader_epochs=(min(tail.leader_epochs), max(tail.leader_epochs)),
        committed_end_offset=committed_end_offset,
        not_uploaded=None if committed_end_offset is None else tail.past(committed_end_offset),
    )


def _end_row(end: EndOfLog, start_offset: int, tails: Collection[StreamTail]) -> EndRow:
    return EndRow(
        start_offset=start_offset,
        end_offset=end.offset,
        frame_count=sum(tail.frame_count for tail in tails),
        payload_bytes=sum(tail.payload_bytes for tail in tails),
        reason=end.reason,
        acknowledged_beyond=end.loss is not None,
    )


def _stream(stream_id: int, partition: str) -> str:
    return f"stream {stream_id} {partition}".rstrip()
