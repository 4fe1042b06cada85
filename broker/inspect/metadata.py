"""`tidelog inspect metadata`: the metadata log's objects, its entries with their records, and the state that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from broker.inspect.bucket import Bucket, stream_name
from broker.inspect.rows import DamageRow, NoteRow, Row, plural, size, when
from broker.losses import loss_text
from controller.entry import Entry, decode_entry
from controller.errors import ControllerError, MetadataCorrupt, UnsupportedMetadata
from controller.image import Image
from controller.losses import known_loss
from controller.lost_wals import LostWal, lost_wals
from controller.records import Record
from s3stream.objectstore import NotFound

__all__ = ["inspect_metadata"]

_SHOWN_RECORD_CHARACTERS = 160
"""Of one record in text; `--json` has all of it."""


class ClusterRow(Row, frozen=True, kw_only=True):
    """The cluster marker."""

    cluster_id: str
    created_at_ms: int
    format: int

    def text(self) -> str:
        return f"cluster {self.cluster_id}, made {when(self.created_at_ms)}, bucket format {self.format}"


class LeaderRow(Row, frozen=True, kw_only=True):
    """The leader object."""

    controller_epoch: int
    leader: str

    def text(self) -> str:
        return f"leader: controller epoch {self.controller_epoch}, {self.leader or 'no address told'}"


class FloorRow(Row, frozen=True, kw_only=True):
    """The floor."""

    index: int
    snapshot_index: int

    def text(self) -> str:
        if self.snapshot_index < 0:
            return "floor: none yet, the log goes back to entry 0"
        return (
            f"floor: entries from {self.index} on exist; what is below is in the snapshot as of {self.snapshot_index}"
        )


class SnapshotRow(Row, frozen=True, kw_only=True):
    """One snapshot."""

    index: int
    size_bytes: int
    written_at_ms: int

    def text(self) -> str:
        return f"snapshot as of entry {self.index}: {size(self.size_bytes)}, written {when(self.written_at_ms)}"


class LogRow(Row, frozen=True, kw_only=True):
    """The entries that the bucket holds."""

    first_index: int
    last_index: int
    entry_count: int
    size_bytes: int
    newest_at_ms: int

    def text(self) -> str:
        if not self.entry_count:
            return "log: no entries"
        missing = self.last_index - self.first_index + 1 - self.entry_count
        gap = f", {missing} MISSING in between" if missing else ""
        return (
            f"log: entries {self.first_index} to {self.last_index}{gap}, {size(self.size_bytes)}, "
            f"the newest of {when(self.newest_at_ms)}"
        )


class EntryRow(Row, frozen=True, kw_only=True):
    """One entry."""

    index: int
    controller_epoch: int
    size_bytes: int
    nonce: str
    records: tuple[dict[str, Any], ...]
    """Each with its `type`."""

    def text(self) -> str:
        lines = [
            f"entry {self.index}: controller epoch {self.controller_epoch}, {plural(len(self.records), 'record')}, "
            f"{size(self.size_bytes)}"
        ]
        lines += [f"  {_record_text(record)}" for record in self.records]
        return "\n".join(lines)


class NodeRow(Row, frozen=True, kw_only=True):
    """One registered node."""

    node_id: int
    node_epoch: int
    wal_id: str
    wal_epoch: int
    address: str
    rack: str
    registered_at_ms: int
    led_partitions: int
    lease_ms: int
    status: str
    """ALIVE, SUSPECT or DEAD."""
    status_since_ms: int
    """0 while it is alive."""
    is_drained: bool
    """It is to have no partitions."""

    def text(self) -> str:
        status = f", {self.status} since {when(self.status_since_ms)}" if self.status_since_ms else ""
        rack = f", rack {self.rack}" if self.rack else ""
        return (
            f"node {self.node_id}: epoch {self.node_epoch}, {self.address or 'no address'}{rack}, WAL {self.wal_id} epoch "
            f"{self.wal_epoch}, registered {when(self.registered_at_ms)}, leads {plural(self.led_partitions, 'partition')}"
            f"{status}{', drained' if self.is_drained else ''}"
        )


class LostWalRow(Row, frozen=True, kw_only=True, tag="lost-wal"):
    """The WAL of a dead node that partitions wait for."""

    wal_id: str
    node_id: int
    uri: str
    host: str
    recoverer: int
    """The node that recovers it; -1: none."""
    partitions: tuple[str, ...]
    newest_timestamp_ms: int
    """Of what objects hold of them; -1: nothing."""
    cost: str
    """What is known of what it alone holds."""
    reported_records: int
    """As the node said last; -1: no report is known."""
    reported_bytes: int
    reported_partitions: int
    reported_oldest_age_ms: int
    """For how long the oldest had waited by then, or longer; -1: not known."""
    reported_before_silence_ms: int
    """How long before its last sign of life; -1: not known."""
    left_records: int
    """Of these, those that are in no object now; -1: not known."""

    def text(self) -> str:
        head = f"WAL {self.wal_id} of node {self.node_id}, which is dead: {plural(len(self.partitions), 'partition')} wait for it"
        if self.recoverer != -1:
            return f"{head}; node {self.recoverer} recovers it"
        where = f"{self.uri}{f', on machine {self.host}' if self.host else ''}" if self.uri else "unknown to others"
        objects = f", the newest of {when(self.newest_timestamp_ms)}" if self.newest_timestamp_ms >= 0 else ""
        return (
            f"{head}; NOBODY recovers it\n"
            f"  it is at: {where}\n"
            f"  it alone holds what follows on what objects hold of them{objects}\n"
            f"  {self.cost}\n"
            f"  start node {self.node_id}, or attach its volume to a broker (wal.recovery.directories)\n"
            f"  what of each partition giving it up would cost: tidelog wal abandon {self.wal_id}; --yes does it"
        )


class TopicRow(Row, frozen=True, kw_only=True):
    """One topic."""

    name: str
    topic_id: str
    created_at_ms: int
    configs: dict[str, str]
    partitions: tuple[TopicPartition, ...]

    def text(self) -> str:
        configs = "".join(f", {name}={value}" for name, value in sorted(self.configs.items()))
        lines = [f"topic {self.name}: id {self.topic_id}, {plural(len(self.partitions), 'partition')}{configs}"]
        lines += [f"  {partition.text()}" for partition in self.partitions]
        return "\n".join(lines)


class TopicPartition(msgspec.Struct, frozen=True, kw_only=True):
    """One partition within a topic's row."""

    index: int
    stream_id: int
    status: str
    leader: int
    leader_epoch: int
    log_start_offset: int
    committed_end_offset: int
    range_count: int
    size_bytes: int

    def text(self) -> str:
        return (
            f"{self.index}: stream {self.stream_id} {self.status} on node {self.leader}, leader epoch {self.leader_epoch}, "
            f"committed [{self.log_start_offset}, {self.committed_end_offset}) in {plural(self.range_count, 'range')}, "
            f"{size(self.size_bytes)}"
        )


class StateRow(Row, frozen=True, kw_only=True):
    """The state as of the log's end, in numbers."""

    next_index: int
    metadata_version: int
    controller_epoch: int
    leader: str
    topics: int
    streams: int
    objects: int
    object_bytes: int
    unreferenced_objects: int
    expired_objects: int
    next_object_id: int
    next_producer_id: int

    def text(self) -> str:
        return (
            f"state before entry {self.next_index}: metadata version {self.metadata_version}, controller epoch "
            f"{self.controller_epoch}, {plural(self.topics, 'topic')}, {plural(self.streams, 'stream')}, "
            f"{plural(self.objects, 'referenced object')} of {size(self.object_bytes)}, {self.unreferenced_objects} "
            f"unreferenced, {self.expired_objects} expired"
        )


async def inspect_metadata(
    bucket: Bucket, *, entries: bool, first_index: int | None, last_index: int | None
) -> AsyncGenerator[Row]:
    """Tell what the metadata of a cluster is.

    Args:
        entries: Tell each entry of the log.
        first_index: The first of them; None: the first that the floor promises.
        last_index: The last of them; None: that of the log.

    Raises:
        ObjectStoreError: the store does not answer.
        UnsupportedMetadata: a newer version wrote it.
    """
    try:
        marker = await bucket.log.read_marker()
        if marker is None:
            yield NoteRow(message=f"no cluster lives in {bucket.store.uri} with prefix {bucket.paths.prefix!r}")
            return
        yield ClusterRow(cluster_id=marker.cluster_id, created_at_ms=marker.created_at_ms, format=marker.format)
        leader = await bucket.log.read_leader()
        if leader is not None:
            yield LeaderRow(controller_epoch=leader.controller_epoch, leader=leader.leader)
        floor = await bucket.log.read_floor()
        yield FloorRow(index=floor.index, snapshot_index=floor.snapshot_index)
    except MetadataCorrupt as error:
        yield DamageRow(message=str(error))
        return
    async for summary in bucket.store.list(bucket.paths.snapshot_prefix):
        index = bucket.paths.snapshot_index(summary.key)
        if index is not None:
            yield SnapshotRow(index=index, size_bytes=summary.size_bytes, written_at_ms=summary.last_modified_ms)
    log = await _log_row(bucket)
    yield log
    if entries:
        first = first_index if first_index is not None else max(floor.index, log.first_index)
        for index in range(first, (last_index if last_index is not None else log.last_index) + 1):
            yield await _entry_row(bucket, index)
    try:
        replica = await bucket.replica()
    except UnsupportedMetadata:
        raise
    except ControllerError as error:
        yield DamageRow(message=str(error))
        return
    for row in _state_rows(replica.image, replica.next_index):
        yield row


async def _log_row(bucket: Bucket) -> LogRow:
    first = last = -1
    count = size_bytes = newest_at_ms = 0
    async for summary in bucket.store.list(bucket.paths.log_prefix):
        index = bucket.paths.log_index(summary.key)
        if index is None:
            continue
        first = index if first < 0 else first
        last = index
        count += 1
        size_bytes += summary.size_bytes
        newest_at_ms = max(newest_at_ms, summary.last_modified_ms)
    return LogRow(
        first_index=first, last_index=last, entry_count=count, size_bytes=size_bytes, newest_at_ms=newest_at_ms
    )


async def _entry_row(bucket: Bucket, index: int) -> Row:
    key = bucket.paths.log_entry(index)
    try:
        entry = decode_entry((await bucket.store.get(key)).data, index, where=key)
    except NotFound:
        return DamageRow(message=f"{key} is not there")
    except MetadataCorrupt as error:
        return DamageRow(message=error.problem)
    return entry_row(entry)


def entry_row(entry: Entry) -> EntryRow:
    """An entry as a row."""
    return EntryRow(
        index=entry.header.index,
        controller_epoch=entry.header.controller_epoch,
        size_bytes=entry.size_bytes,
        nonce=entry.header.nonce.hex(),
        records=tuple(_record(record) for record in entry.records),
    )


def _record(record: Record) -> dict[str, Any]:
    return {"type": type(record).__name__, **_plain(record)}


def _plain(value: Any) -> Any:
    """Records as JSON has it: structs with their names, ids in hex."""
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _record_text(record: dict[str, Any]) -> str:
    parts = []
    for name, value in record.items():
        if name == "type":
            continue
        if name.endswith("_at_ms"):
            parts.append(f"{name.removesuffix('_at_ms')} {when(value)}")
        elif name == "ranges":
            parts.append("ranges " + ", ".join(_range_text(each) for each in value))
        elif name == "objects":
            parts.append("objects " + ", ".join(f"{each['object_id']}" for each in value))
        else:
            parts.append(f"{name} {value}")
    text = f"{record['type']}: {'; '.join(parts)}"
    return text if len(text) <= _SHOWN_RECORD_CHARACTERS else text[: _SHOWN_RECORD_CHARACTERS - 1] + "…"


def _range_text(value: dict[str, Any]) -> str:
    return f"{value['stream_id']}@[{value['base_offset']}, {value['end_offset']})"


def _lost_wal_row(image: Image, wal: LostWal) -> LostWalRow:
    tables = image.state.tables
    loss = known_loss(tables, wal.wal_id)
    assert loss is not None, "it is lost with its node"
    held = loss.held
    return LostWalRow(
        wal_id=wal.wal_id,
        node_id=wal.node_id,
        uri=wal.uri,
        host=wal.host,
        recoverer=wal.recoverer,
        partitions=tuple(stream_name(image, stream_id) for stream_id in wal.stream_ids),
        newest_timestamp_ms=max(
            (value.max_timestamp_ms for stream_id in wal.stream_ids for value in tables.streams[stream_id].ranges),
            default=-1,
        ),
        cost=loss_text(loss),
        reported_records=-1 if held is None else held.record_count,
        reported_bytes=-1 if held is None else held.size_bytes,
        reported_partitions=-1 if held is None else held.stream_count,
        reported_oldest_age_ms=-1 if held is None else held.oldest_age_ms,
        reported_before_silence_ms=loss.before_silence_ms,
        left_records=-1 if loss.record_count is None else loss.record_count,
    )


def _state_rows(image: Image, next_index: int) -> list[Row]:
    tables = image.state.tables
    led = Counter(stream.node_id for stream in tables.streams.values())
    rows: list[Row] = [
        StateRow(
            next_index=next_index,
            metadata_version=tables.metadata_version,
            controller_epoch=tables.controller_epoch,
            leader=tables.leader,
            topics=len(tables.topics),
            streams=len(tables.streams),
            objects=len(tables.objects),
            object_bytes=sum(entry.size_bytes for entry in tables.objects.values()),
            unreferenced_objects=len(tables.unreferenced),
            expired_objects=len(tables.expired),
            next_object_id=tables.next_object_id,
            next_producer_id=tables.next_producer_id,
        )
    ]
    rows += [
        NodeRow(
            node_id=node.node_id,
            node_epoch=node.node_epoch,
            wal_id=node.wal_id,
            wal_epoch=node.wal_epoch,
            address=node.address,
            rack=node.rack,
            registered_at_ms=node.registered_at_ms,
            led_partitions=led[node.node_id],
            lease_ms=node.lease_ms,
            status=tables.node_status(node.node_id).name,
            status_since_ms=health.since_ms if (health := tables.node_health.get(node.node_id)) else 0,
            is_drained=node.node_id in tables.drained,
        )
        for _, node in sorted(tables.nodes.items())
    ]
    rows += [_lost_wal_row(image, wal) for wal in lost_wals(tables)]
    for topic in image.topics():
        partitions = []
        for state in topic.partitions:
            stream = tables.streams[state.stream_id]
            partitions.append(
                TopicPartition(
                    index=state.index,
                    stream_id=state.stream_id,
                    status=stream.status.name,
                    leader=stream.node_id,
                    leader_epoch=stream.leader_epoch,
                    log_start_offset=stream.log_start_offset,
                    committed_end_offset=stream.committed_end_offset,
                    range_count=len(stream.ranges),
                    size_bytes=sum(value.size_bytes for value in stream.ranges),
                )
            )
        rows.append(
            TopicRow(
                name=topic.name,
                topic_id=topic.topic_id.hex(),
                created_at_ms=topic.created_at_ms,
                configs=dict(topic.configs),
                partitions=tuple(partitions),
            )
        )
    return rows
