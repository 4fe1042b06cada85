"""`tidelog inspect group`: what `__consumer_offsets` says of consumer groups: members, generation, committed offsets, lag.

Always true: the records are read from objects and, where it is on this machine, from the WAL, in the order of the log; the
last one of a key counts, as for a coordinator that loads. What is only in a coordinator's memory (a rebalance that is under
way, heartbeats) is not seen.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from broker.groups.coordinator import OFFSETS_TOPIC, partition_of
from broker.groups.records import (
    GroupValue,
    OffsetKey,
    OffsetValue,
    decode_group_value,
    decode_key,
    decode_offset_value,
)
from broker.groups.subscription import assigned_partitions
from broker.inspect.batches import MAX_DECOMPRESSED_BYTES
from broker.inspect.bucket import Bucket
from broker.inspect.index import read_footer, read_index, read_tail
from broker.inspect.rows import DamageRow, NoteRow, Row, plural, when
from broker.inspect.wal import StreamTail, open_wal_disk
from controller.image import Image
from controller.tables import StreamState
from protocol.errors import Malformed
from protocol.record_set import ControlType, Record, iter_batches, iter_records, read_marker
from protocol.records import parse_batch_header
from s3stream.errors import ObjectCorrupt
from s3stream.metadata import ObjectId, StreamId
from s3stream.object_format import IndexEntry, check_block
from s3stream.objectstore import NotFound
from wal.errors import WalError
from wal.header import choose_header
from wal.survey import WalSurvey

__all__ = ["GroupLog", "inspect_groups"]


class GroupRow(Row, frozen=True, kw_only=True):
    """One group as of its last completed rebalance."""

    group_id: str
    partition: str
    """Of `__consumer_offsets`."""
    has_metadata: bool
    """False: offsets were committed, and it never had members (or no longer)."""
    protocol_type: str
    protocol: str | None
    generation_id: int
    leader: str | None
    since_ms: int
    member_count: int
    offset_count: int

    def text(self) -> str:
        text = f"group {self.group_id} in {self.partition}: "
        if not self.has_metadata:
            return f"{text}no members, {plural(self.offset_count, 'committed offset')}"
        led = f", led by {self.leader}" if self.leader else ""
        return (
            f"{text}{plural(self.member_count, 'member') if self.member_count else 'empty'}, generation "
            f"{self.generation_id} since {when(self.since_ms)}, type {self.protocol_type or '-'}, protocol "
            f"{self.protocol or '-'}{led}; {plural(self.offset_count, 'committed offset')}"
        )


class MemberRow(Row, frozen=True, kw_only=True):
    """One member of the group before it."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    assignment: tuple[str, ...] | None
    """Partitions; None where it is not a consumer's."""

    def text(self) -> str:
        static = f", static as {self.group_instance_id}" if self.group_instance_id is not None else ""
        assigned = (
            "an assignment of its own kind" if self.assignment is None else ", ".join(self.assignment) or "nothing"
        )
        return f"  member {self.member_id} ({self.client_id} on {self.client_host}{static}): {assigned}"


class CommittedRow(Row, frozen=True, kw_only=True):
    """One committed offset of the group before it."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int
    metadata: str
    committed_at_ms: int
    log_end_offset: int | None
    """As far as objects and the WAL of this machine tell; None for a partition that does not exist (any more)."""
    lag: int | None

    def text(self) -> str:
        lag = "no such partition" if self.lag is None else f"lag {self.lag} (log end {self.log_end_offset})"
        metadata = f", metadata {self.metadata!r}" if self.metadata else ""
        return f"  {self.topic}-{self.partition}: offset {self.offset}, {lag}, committed {when(self.committed_at_ms)}{metadata}"


@dataclass(slots=True)
class GroupLog:
    """What the records of one partition come to. Pure."""

    groups: dict[str, GroupValue] = field(default_factory=dict)
    offsets: dict[str, dict[tuple[str, int], OffsetValue]] = field(default_factory=dict)
    _open: dict[int, list[Record]] = field(default_factory=dict)
    """Records of transactions that have not ended, by producer id (KIP-98: offsets sent to a transaction)."""

    def add_batch(self, batch: memoryview) -> None:
        """Take one batch in.

        Raises:
            Malformed: it, or one of its records, cannot be read.
        """
        header = parse_batch_header(batch)
        records = iter_records(batch, max_output_bytes=MAX_DECOMPRESSED_BYTES)
        if header.is_control:
            for record in records:
                marker = read_marker(record)
                if marker is not None:
                    ended = self._open.pop(header.producer_id, [])
                    if marker.control_type is ControlType.COMMIT:
                        self._apply(iter(ended))
        elif header.is_transactional:
            self._open.setdefault(header.producer_id, []).extend(records)
        else:
            self._apply(records)

    def _apply(self, records: Iterator[Record]) -> None:
        for record in records:
            if record.key is None:
                continue
            key = decode_key(record.key)
            if isinstance(key, OffsetKey):
                offsets = self.offsets.setdefault(key.group_id, {})
                if record.value is None:
                    offsets.pop((key.topic, key.partition), None)
                else:
                    offsets[key.topic, key.partition] = decode_offset_value(record.value)
            elif isinstance(key, str):
                if record.value is None:
                    self.groups.pop(key, None)
                else:
                    self.groups[key] = decode_group_value(record.value)

    def group_ids(self) -> list[str]:
        """Groups that there are."""
        return sorted(self.groups.keys() | {group_id for group_id, offsets in self.offsets.items() if offsets})


@dataclass(slots=True)
class _Tails:
    """What only the WAL holds: ends of all partitions, and batches of the wanted ones."""

    ends: dict[int, int] = field(default_factory=dict)
    batches: dict[int, list[bytes]] = field(default_factory=dict)


async def inspect_groups(
    bucket: Bucket, group_id: str | None, *, image: Image, wal: Path | None
) -> AsyncGenerator[Row]:
    """Tell of one group, with its members and offsets, or of all, a line each.

    Raises:
        ObjectStoreError: the store does not answer.
    """
    topic = image.topic(OFFSETS_TOPIC)
    if topic is None:
        yield NoteRow(
            message=f"there is no topic {OFFSETS_TOPIC}: no group ever committed an offset or completed a rebalance"
        )
        return
    if group_id is None:
        indexes = range(len(topic.partitions))
    else:
        index = partition_of(group_id, len(topic.partitions))
        indexes = range(index, index + 1)
    streams = {index: image.state.tables.streams[topic.partitions[index].stream_id] for index in indexes}
    tails = _Tails()
    if wal is not None:
        try:
            await _read_tails(wal, image, {stream.stream_id: stream for stream in streams.values()}, tails)
        except WalError as error:
            yield NoteRow(message=f"what is only in the WAL is left out: {error}")
    found = False
    for index, stream in streams.items():
        log = GroupLog()
        async for batch in _stored_batches(bucket, stream):
            if isinstance(batch, DamageRow):
                yield batch
            elif (damage := _add(log, batch, index)) is not None:
                yield damage
        for data in tails.batches.get(stream.stream_id, ()):
            if (damage := _add(log, memoryview(data), index)) is not None:
                yield damage
        for known in log.group_ids():
            if group_id in (None, known):
                found = True
                for row in _group_rows(log, known, index, image, tails, whole=group_id is not None):
                    yield row
    if not found:
        yield NoteRow(message="no such group is stored" if group_id is not None else "no group is stored")


def _add(log: GroupLog, batch: memoryview, index: int) -> DamageRow | None:
    try:
        log.add_batch(batch)
    except Malformed as error:
        offset = parse_batch_header(batch).base_offset
        return DamageRow(message=f"{OFFSETS_TOPIC}-{index}, the batch at offset {offset}: {error}")
    return None


async def _stored_batches(bucket: Bucket, stream: StreamState) -> AsyncIterator[memoryview | DamageRow]:
    """Batches of a stream in objects, in order, from the log start on."""
    for object_id in list(dict.fromkeys(stream.object_ids)):
        key = bucket.paths.data_object(object_id)
        try:
            tail = await read_tail(bucket.store, key)
            index = await read_index(bucket.store, key, tail, read_footer(tail, object_id))
        except (ObjectCorrupt, NotFound) as error:
            yield DamageRow(message=f"object {object_id}: {error}")
            continue
        for entry in index.data_entries(stream.stream_id, stream.log_start_offset):
            data = await _block(bucket, key, object_id, entry)
            if isinstance(data, DamageRow):
                yield data
                continue
            for batch in iter_batches(data):
                if parse_batch_header(batch).last_offset >= stream.log_start_offset:
                    yield batch


async def _block(bucket: Bucket, key: str, object_id: ObjectId, entry: IndexEntry) -> bytes | DamageRow:
    try:
        data = await bucket.store.get_range(key, entry.position, entry.position + entry.size_bytes)
        check_block(object_id, entry, data)
    except (ObjectCorrupt, NotFound) as error:
        return DamageRow(message=str(error))
    return bytes(data)


async def _read_tails(path: Path, image: Image, wanted: dict[StreamId, StreamState], tails: _Tails) -> None:
    streams = image.state.tables.streams
    ends: dict[int, StreamTail] = {}
    async with open_wal_disk(path) as disk:
        survey = WalSurvey(disk)
        wal_id = choose_header(await survey.head()).wal_id
        async for run in survey.runs():
            for number, payloads in run.streams.items():
                stream = streams.get(StreamId(number))
                if stream is None or stream.wal_id not in ("", wal_id):
                    continue
                ends.setdefault(number, StreamTail()).add(payloads)
                if stream.stream_id not in wanted:
                    continue
                places = zip(payloads.positions, payloads.sizes, payloads.base_offsets, strict=True)
                tails.batches.setdefault(number, []).extend(
                    bytes(run.buffer[position : position + size_bytes])
                    for position, size_bytes, base_offset in places
                    if base_offset >= stream.committed_end_offset
                )
    tails.ends.update({stream_id: tail.ranges[-1][1] for stream_id, tail in ends.items()})


def _group_rows(log: GroupLog, group_id: str, index: int, image: Image, tails: _Tails, *, whole: bool) -> Iterator[Row]:
    group = log.groups.get(group_id)
    offsets = log.offsets.get(group_id, {})
    yield GroupRow(
        group_id=group_id,
        partition=f"{OFFSETS_TOPIC}-{index}",
        has_metadata=group is not None,
        protocol_type="" if group is None else group.protocol_type,
        protocol=None if group is None else group.protocol_name,
        generation_id=-1 if group is None else group.generation_id,
        leader=None if group is None else group.leader,
        since_ms=-1 if group is None else group.state_timestamp_ms,
        member_count=0 if group is None else len(group.members),
        offset_count=len(offsets),
    )
    if not whole:
        return
    for member in () if group is None else group.members:
        partitions = assigned_partitions(member.assignment)
        yield MemberRow(
            member_id=member.member_id,
            group_instance_id=member.group_instance_id,
            client_id=member.client_id,
            client_host=member.client_host,
            session_timeout_ms=member.session_timeout_ms,
            rebalance_timeout_ms=member.rebalance_timeout_ms,
            assignment=None if partitions is None else tuple(f"{topic}-{number}" for topic, number in partitions),
        )
    for (topic, number), value in sorted(offsets.items()):
        end = _log_end(image, tails, topic, number)
        yield CommittedRow(
            topic=topic,
            partition=number,
            offset=value.offset,
            leader_epoch=value.leader_epoch,
            metadata=value.metadata,
            committed_at_ms=value.commit_timestamp_ms,
            log_end_offset=end,
            lag=None if end is None else max(0, end - value.offset),
        )


def _log_end(image: Image, tails: _Tails, topic: str, number: int) -> int | None:
    found = image.topic(topic)
    if found is None or not 0 <= number < len(found.partitions):
        return None
    stream_id = found.partitions[number].stream_id
    return max(image.state.tables.streams[stream_id].committed_end_offset, tails.ends.get(stream_id, 0))
