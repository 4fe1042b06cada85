"""`tidelog inspect partition`: offsets, where they are, the state that travels with them, and what only the WAL holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from broker.inspect.bucket import Bucket
from broker.inspect.index import read_footer, read_index, read_tail
from broker.inspect.rows import DamageRow, NoteRow, Row, offsets, plural, ranges_text, size, when
from broker.inspect.states import state_row
from broker.inspect.wal import StreamTail, loss_row, open_wal_disk
from broker.salvage import assess
from controller.image import Image
from controller.records import Range
from controller.tables import StreamState
from s3stream.errors import ObjectCorrupt
from s3stream.metadata import ObjectId
from s3stream.object_format import check_block
from s3stream.objectstore import Archived, NotFound
from wal.aside import file_asides
from wal.errors import WalError
from wal.header import choose_header
from wal.survey import WalSurvey

__all__ = ["NoSuchPartition", "find_stream", "inspect_partition"]


class NoSuchPartition(Exception):
    """The metadata has no such partition; the message names what it has."""


class PartitionRow(Row, frozen=True, kw_only=True):
    """The partition as the metadata has it."""

    partition: str
    topic_id: str
    stream_id: int
    status: str
    leader: int
    leader_epoch: int
    wal_id: str
    log_start_offset: int
    committed_end_offset: int
    gaps: tuple[tuple[int, int], ...]
    configs: dict[str, str]

    def text(self) -> str:
        wal = f" with WAL {self.wal_id}" if self.wal_id else ""
        lines = [
            f"partition {self.partition}: stream {self.stream_id}, topic id {self.topic_id}",
            f"  {self.status} on node {self.leader}{wal}, leader epoch {self.leader_epoch}",
            f"  log start {self.log_start_offset}, committed up to {self.committed_end_offset}",
        ]
        if self.gaps:
            lines.append(f"  given up by an operator: {ranges_text(self.gaps)}")
        lines.append("  configs: " + (", ".join(f"{k}={v}" for k, v in sorted(self.configs.items())) or "the defaults"))
        return "\n".join(lines)


class RangeRow(Row, frozen=True, kw_only=True):
    """One range and the object that it lies in."""

    base_offset: int
    end_offset: int
    record_count: int
    size_bytes: int
    max_timestamp_ms: int
    leader_epoch: int
    has_state: bool
    object_id: int
    key: str
    object_size_bytes: int

    def text(self) -> str:
        state = ", with state" if self.has_state else ""
        return (
            f"  {offsets(self.base_offset, self.end_offset)} {plural(self.record_count, 'record')}, {size(self.size_bytes)}, "
            f"newest {when(self.max_timestamp_ms)}, leader epoch {self.leader_epoch}{state}: object {self.object_id} "
            f"({self.key}, {size(self.object_size_bytes)})"
        )


class NewestStateRow(Row, frozen=True, kw_only=True):
    """Where the newest state block is; a `state-block` follows."""

    object_id: int

    def text(self) -> str:
        return f"  newest state, in object {self.object_id}:"


class WalTailRow(Row, frozen=True, kw_only=True):
    """What the WAL holds of the partition."""

    path: str
    frame_count: int
    payload_bytes: int
    ranges: tuple[tuple[int, int], ...]
    not_uploaded: tuple[tuple[int, int], ...]
    log_end_offset: int
    """Exclusive end of everything, committed or in this WAL."""

    def text(self) -> str:
        return (
            f"  WAL {self.path}: {plural(self.frame_count, 'batch', 'batches')}, {size(self.payload_bytes)}, offsets {ranges_text(self.ranges)}; not uploaded: {ranges_text(self.not_uploaded)}"
            f"\n  log end {self.log_end_offset}"
        )


def find_stream(image: Image, name: str) -> StreamState:
    """The stream of `topic-partition`.

    Raises:
        NoSuchPartition: there is none.
    """
    topic_name, _, number = name.rpartition("-")
    topic = image.topic(topic_name)
    if topic is None or not (number.isascii() and number.isdigit()) or int(number) >= len(topic.partitions):
        known = [f"{each.name}-0 … {each.name}-{len(each.partitions) - 1}" for each in image.topics()]
        raise NoSuchPartition(
            f"there is no partition {name}; write TOPIC-NUMBER. There are: {', '.join(known[:20]) or 'none at all'}"
        )
    return image.state.tables.streams[topic.partitions[int(number)].stream_id]


async def inspect_partition(
    bucket: Bucket, name: str, *, image: Image, wal: Path | None, read_blocks: bool = False
) -> AsyncGenerator[Row]:
    """Tell everything of one partition. Of each object the end is read, so that one that is gone or replaced shows.

    Args:
        wal: The directory of its leader's WAL; None leaves the tail out.
        read_blocks: Read the partition's records as well, and hold them against their CRCs.

    Raises:
        NoSuchPartition: there is none.
        ObjectStoreError: the store does not answer.
    """
    stream = find_stream(image, name)
    topic = image.state.tables.topics[stream.topic_id]
    yield PartitionRow(
        partition=name,
        topic_id=topic.topic_id.hex(),
        stream_id=stream.stream_id,
        status=stream.status.name,
        leader=stream.node_id,
        leader_epoch=stream.leader_epoch,
        wal_id=stream.wal_id,
        log_start_offset=stream.log_start_offset,
        committed_end_offset=stream.committed_end_offset,
        gaps=stream.gaps,
        configs=dict(topic.configs),
    )
    for object_id, value in zip(stream.object_ids, stream.ranges, strict=True):
        yield RangeRow(
            base_offset=value.base_offset,
            end_offset=value.end_offset,
            record_count=value.record_count,
            size_bytes=value.size_bytes,
            max_timestamp_ms=value.max_timestamp_ms,
            leader_epoch=value.leader_epoch,
            has_state=value.has_state,
            object_id=object_id,
            key=bucket.paths.data_object(object_id),
            object_size_bytes=image.state.tables.objects[object_id].size_bytes,
        )
        async for row in _damage(bucket, name, stream, object_id, value, read_blocks=read_blocks):
            yield row
    if stream.newest_state is not None:
        yield NewestStateRow(object_id=stream.newest_state[0])
        yield await _state(bucket, stream, stream.newest_state[0])
    if wal is not None:
        yield await _tail(wal, stream)
        for aside in file_asides(wal):
            if aside.wal_id == stream.wal_id:
                loss = (await assess(aside, image)).streams[stream.stream_id]
                yield loss_row(image, stream.stream_id, loss)


async def _damage(
    bucket: Bucket, name: str, stream: StreamState, object_id: ObjectId, value: Range, *, read_blocks: bool
) -> AsyncIterator[DamageRow]:
    """What of a range cannot be read."""

    def damaged(base_offset: int, end_offset: int, problem: object) -> DamageRow:
        first_offset = max(base_offset, stream.log_start_offset)
        return DamageRow(message=f"{name}, offsets {first_offset} to {end_offset - 1} cannot be read: {problem}")

    key = bucket.paths.data_object(object_id)
    try:
        tail = await read_tail(bucket.store, key)
        index = await read_index(bucket.store, key, tail, read_footer(tail, object_id))
        entries = list(index.data_entries(stream.stream_id))
        held = sum(entry.record_count for entry in entries)
        if held != value.record_count:
            problem = f"object {object_id} holds {held} records of it, {value.record_count} were committed"
            yield damaged(value.base_offset, value.end_offset, problem)
            return
        for entry in entries:
            if not read_blocks or entry.end_offset <= stream.log_start_offset:
                continue
            try:
                check_block(
                    object_id,
                    entry,
                    await bucket.store.get_range(key, entry.position, entry.position + entry.size_bytes),
                )
            except ObjectCorrupt as error:
                yield damaged(entry.base_offset, entry.end_offset, error)
    except NotFound:
        yield damaged(value.base_offset, value.end_offset, f"object {object_id} is not in the store ({key})")
    except (ObjectCorrupt, Archived) as error:
        yield damaged(value.base_offset, value.end_offset, error)


async def _state(bucket: Bucket, stream: StreamState, object_id: ObjectId) -> Row:
    key = bucket.paths.data_object(object_id)
    try:
        tail = await read_tail(bucket.store, key)
        index = await read_index(bucket.store, key, tail, read_footer(tail, object_id))
        entry = index.state_entry(stream.stream_id)
        if entry is None:
            return DamageRow(message=f"object {object_id} holds no state of stream {stream.stream_id}")
        data = await bucket.store.get_range(key, entry.position, entry.position + entry.size_bytes)
        check_block(object_id, entry, data)
    except NotFound:
        return DamageRow(message=f"object {object_id} is not in the store ({key})")
    except (ObjectCorrupt, Archived) as error:
        return DamageRow(message=str(error))
    return state_row(entry.end_offset, bytes(data))


async def _tail(path: Path, stream: StreamState) -> Row:
    try:
        async with open_wal_disk(path) as disk:
            survey = WalSurvey(disk)
            wal_id = choose_header(await survey.head()).wal_id
            if stream.wal_id not in ("", wal_id):
                return NoteRow(message=f"the WAL in {path} is {wal_id}, the partition's tail is in {stream.wal_id}")
            tail = StreamTail()
            async for run in survey.runs():
                if (payloads := run.streams.get(stream.stream_id)) is not None:
                    tail.add(payloads)
    except WalError as error:
        return NoteRow(message=f"the tail in the WAL is left out: {error}")
    not_uploaded = tail.past(stream.committed_end_offset)
    return WalTailRow(
        path=str(path),
        frame_count=tail.frame_count,
        payload_bytes=tail.payload_bytes,
        ranges=tuple((low, high) for low, high in tail.ranges),
        not_uploaded=not_uploaded,
        log_end_offset=max([stream.committed_end_offset, *(high for _, high in not_uploaded)]),
    )
