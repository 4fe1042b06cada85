"""Snapshots of the state: taken at once, encoded piece by piece, and read back.

Always true:
- A capture shares only immutable values with the state, so that it can be encoded while the state goes on.
- The encoding is canonical: equal states have equal snapshots, bit for bit, whoever takes them (I9).
- Ranges are stored once, with their objects; which of them a stream still needs follows from its log start offset, since
  retention drops ranges in offset order; those that compaction has replaced are left out of an object that is still needed for others.

Layout: magic "TLMS", format version (1 byte), then frames of length (4 bytes, big-endian), CRC-32C of the payload
(4 bytes) and payload (MessagePack): a head, topics, objects, and an empty frame at the end, by which a snapshot is whole.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final

import msgspec
from crc32c import crc32c

from controller.errors import MetadataCorrupt, UnsupportedMetadata
from controller.records import METADATA_VERSION, NodeRegistered, ObjectCommitted, Skip, Unuploaded
from controller.state import State
from controller.tables import (
    IdSet,
    NodeHealth,
    NodeStatus,
    StreamState,
    StreamStatus,
    Tables,
    TopicState,
    Unreferenced,
)
from s3stream.metadata import ObjectId, StreamId

__all__ = ["Capture", "capture", "digest", "encode", "restore"]

_MAGIC: Final = b"TLMS"
_FORMAT_VERSION: Final = 1
_FRAME: Final = struct.Struct(">II")
_RANGES_PER_FRAME: Final = 20_000
"""Some 10 ms of encoding, after which others get their turn."""


class _Head(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    metadata_version: int
    cluster_id: str
    index: int
    controller_epoch: int
    leader: str
    next_node_epoch: int
    next_stream_id: StreamId
    next_object_id: ObjectId
    next_producer_id: int
    topic_count: int
    object_count: int
    nodes: tuple[NodeRegistered, ...]
    unreferenced: tuple[tuple[ObjectId, int, int, tuple[tuple[StreamId, Skip], ...]], ...]
    """(object_id, size_bytes, unreferenced_at_ms, skipped)"""
    expired: tuple[ObjectId, ...]
    gone: tuple[tuple[int, int], ...]
    broker_configs: tuple[tuple[int, tuple[tuple[str, str], ...]], ...] = ()
    """Since metadata version 2: (node_id, (name, value) …)"""
    node_health: tuple[tuple[int, NodeStatus, int], ...] = ()
    """Since metadata version 4: (node_id, status, since_ms)"""
    drained: tuple[int, ...] = ()
    """Since metadata version 4: nodes that are to have no partitions."""
    held: tuple[tuple[int, int, Unuploaded], ...] = ()
    """Since metadata version 5: (node_id, how long before its silence, what it reported that its WAL holds alone), of nodes that are not alive."""


class _Stream(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    stream_id: StreamId
    status: StreamStatus
    node_id: int
    wal_id: str
    leader_epoch: int
    log_start_offset: int
    committed_end_offset: int
    gaps: tuple[tuple[int, int], ...]
    newest_state_object_id: ObjectId
    """0 where there is none."""
    target_node_id: int = -1
    """Since metadata version 3."""
    wal_leader_epoch: int = 0
    """Since metadata version 4."""


class _Topic(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    topic_id: bytes
    name: str
    configs: tuple[tuple[str, str], ...]
    created_at_ms: int
    streams: tuple[_Stream, ...]


class Capture:
    """The state as of one log index."""

    __slots__ = ("_head", "_objects", "_topics", "index")

    def __init__(self, index: int, head: _Head, topics: list[_Topic], objects: list[ObjectCommitted]) -> None:
        self.index = index
        self._head = head
        self._topics = topics
        self._objects = objects

    def frames(self) -> Iterator[bytes]:
        """Payloads, each the work of some milliseconds."""
        encode_payload = msgspec.msgpack.Encoder().encode
        yield encode_payload(self._head)
        for topic in self._topics:
            yield encode_payload(topic)
        batch: list[ObjectCommitted] = []
        range_count = 0
        for entry in self._objects:
            batch.append(entry)
            range_count += 1 + len(entry.ranges)
            if range_count >= _RANGES_PER_FRAME:
                yield encode_payload(batch)
                batch, range_count = [], 0
        if batch:
            yield encode_payload(batch)


def capture(state: State, index: int) -> Capture:
    """Take the state down as it is now; `index` is that of the last entry applied."""
    tables = state.tables
    topics = [
        _Topic(
            topic_id=topic.topic_id,
            name=topic.name,
            configs=tuple(sorted(topic.configs.items())),
            created_at_ms=topic.created_at_ms,
            streams=tuple(_captured_stream(tables.streams[stream_id]) for stream_id in topic.stream_ids),
        )
        for _, topic in sorted(tables.topics.items())
    ]
    head = _Head(
        metadata_version=tables.metadata_version,
        cluster_id=tables.cluster_id,
        index=index,
        controller_epoch=tables.controller_epoch,
        leader=tables.leader,
        next_node_epoch=tables.next_node_epoch,
        next_stream_id=tables.next_stream_id,
        next_object_id=tables.next_object_id,
        next_producer_id=tables.next_producer_id,
        topic_count=len(topics),
        object_count=len(tables.objects),
        nodes=tuple(node for _, node in sorted(tables.nodes.items())),
        unreferenced=tuple(
            (object_id, value.size_bytes, value.unreferenced_at_ms, value.skipped)
            for object_id, value in sorted(tables.unreferenced.items())
        ),
        expired=tuple(tables.expired),
        gone=tables.gone.intervals(),
        broker_configs=tuple(
            (node_id, tuple(sorted(configs.items()))) for node_id, configs in sorted(tables.broker_configs.items())
        ),
        node_health=tuple(
            (node_id, health.status, health.since_ms) for node_id, health in sorted(tables.node_health.items())
        ),
        drained=tuple(sorted(tables.drained)),
        held=tuple(
            (node_id, health.held_before_silence_ms, health.held)
            for node_id, health in sorted(tables.node_health.items())
            if health.held is not None
        ),
    )
    return Capture(
        index, head, topics, [_captured_object(tables, entry) for _, entry in sorted(tables.objects.items())]
    )


def _captured_object(tables: Tables, entry: ObjectCommitted) -> ObjectCommitted:
    """Without what compaction has replaced in it, where it is still needed for other streams."""
    replaced = tables.replaced.get(entry.object_id)
    if replaced is None:
        return entry
    return msgspec.structs.replace(
        entry, ranges=tuple(value for value in entry.ranges if value.stream_id not in replaced)
    )


def _captured_stream(stream: StreamState) -> _Stream:
    return _Stream(
        stream_id=stream.stream_id,
        status=stream.status,
        node_id=stream.node_id,
        wal_id=stream.wal_id,
        leader_epoch=stream.leader_epoch,
        log_start_offset=stream.log_start_offset,
        committed_end_offset=stream.committed_end_offset,
        gaps=stream.gaps,
        newest_state_object_id=ObjectId(0) if stream.newest_state is None else stream.newest_state[0],
        target_node_id=stream.target_node_id,
        wal_leader_epoch=stream.wal_leader_epoch,
    )


def encode(taken: Capture) -> Iterator[bytes]:
    """The snapshot object, in pieces, each the work of some milliseconds."""
    yield _MAGIC + bytes([_FORMAT_VERSION])
    for payload in taken.frames():
        yield _FRAME.pack(len(payload), crc32c(payload)) + payload
    yield _FRAME.pack(0, 0)


def digest(state: State) -> str:
    """A hash that is equal for equal states, and for no others (I9)."""
    hasher = hashlib.sha256()
    for payload in capture(state, 0).frames():
        hasher.update(payload)
    for stream_id, stream in sorted(state.tables.streams.items()):
        hasher.update(msgspec.msgpack.encode((stream_id, stream.object_ids)))
    return hasher.hexdigest()


def restore(data: bytes, *, where: str) -> Iterator[tuple[State, int] | None]:
    """Read a snapshot object; `where` names it for messages.

    Yields None after each some milliseconds of work, and at the end the state and the index of its last entry.

    Raises:
        UnsupportedMetadata: a newer version wrote it.
        MetadataCorrupt: it is not whole.
    """
    if data[:4] != _MAGIC or len(data) < 5:
        raise MetadataCorrupt(f"{where} is not a metadata snapshot")
    if data[4] > _FORMAT_VERSION:
        raise UnsupportedMetadata(
            f"{where} has snapshot format {data[4]}, newer than {_FORMAT_VERSION}: upgrade this node"
        )
    payloads = _payloads(data, where)
    try:
        version = msgspec.msgpack.decode(head_payload := next(payloads))[0]
        if version > METADATA_VERSION:
            raise UnsupportedMetadata(
                f"{where} has metadata version {version}, newer than this node's {METADATA_VERSION}: upgrade this node"
            )
        head = msgspec.msgpack.decode(head_payload, type=_Head)
        tables = _restored_head(head)
        newest: dict[StreamId, ObjectId] = {}
        topic_decoder = msgspec.msgpack.Decoder(_Topic)
        for _ in range(head.topic_count):
            _restore_topic(tables, topic_decoder.decode(next(payloads)), newest)
        yield None
        object_decoder = msgspec.msgpack.Decoder(list[ObjectCommitted])
        for payload in payloads:
            for entry in object_decoder.decode(payload):
                _restore_object(tables, entry, newest)
            yield None
    except (StopIteration, msgspec.DecodeError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise MetadataCorrupt(f"{where} cannot be decoded: {error!r}") from error
    if len(tables.objects) != head.object_count:
        raise MetadataCorrupt(f"{where} holds {len(tables.objects)} objects instead of {head.object_count}")
    range_count = 0
    for stream in tables.streams.values():
        stream.sort_ranges()
        range_count += len(stream.ranges)
        if range_count >= _RANGES_PER_FRAME:
            range_count = 0
            yield None
    yield State(tables), head.index


def _payloads(data: bytes, where: str) -> Iterator[memoryview]:
    view = memoryview(data)
    position = 5
    while position + _FRAME.size <= len(view):
        size, crc = _FRAME.unpack_from(view, position)
        position += _FRAME.size
        if not size and not crc and position == len(view):
            return
        payload = view[position : position + size]
        if not size or len(payload) != size or crc32c(payload) != crc:
            break
        yield payload
        position += size
    raise MetadataCorrupt(f"{where} is damaged at byte {position}: a CRC does not match, or its end is missing")


def _restored_head(head: _Head) -> Tables:
    return Tables(
        cluster_id=head.cluster_id,
        metadata_version=head.metadata_version,
        controller_epoch=head.controller_epoch,
        leader=head.leader,
        next_node_epoch=head.next_node_epoch,
        next_stream_id=head.next_stream_id,
        next_object_id=head.next_object_id,
        next_producer_id=head.next_producer_id,
        nodes={node.node_id: node for node in head.nodes},
        unreferenced={
            object_id: Unreferenced(size_bytes=size_bytes, unreferenced_at_ms=at_ms, skipped=skipped)
            for object_id, size_bytes, at_ms, skipped in head.unreferenced
        },
        expired=dict.fromkeys(head.expired),
        gone=IdSet(head.gone),
        broker_configs={node_id: dict(configs) for node_id, configs in head.broker_configs},
        node_health=_restored_health(head),
        drained=dict.fromkeys(head.drained),
    )


def _restored_health(head: _Head) -> dict[int, NodeHealth]:
    held = {node_id: (before_silence_ms, value) for node_id, before_silence_ms, value in head.held}
    restored: dict[int, NodeHealth] = {}
    for node_id, status, since_ms in head.node_health:
        before_silence_ms, value = held.get(node_id, (-1, None))
        restored[node_id] = NodeHealth(
            status=status, since_ms=since_ms, held=value, held_before_silence_ms=before_silence_ms
        )
    return restored


def _restore_topic(tables: Tables, topic: _Topic, newest: dict[StreamId, ObjectId]) -> None:
    tables.topics[topic.topic_id] = TopicState(
        topic_id=topic.topic_id,
        name=topic.name,
        stream_ids=tuple(stream.stream_id for stream in topic.streams),
        configs=dict(topic.configs),
        created_at_ms=topic.created_at_ms,
    )
    tables.topic_ids[topic.name] = topic.topic_id
    for partition, stream in enumerate(topic.streams):
        if stream.newest_state_object_id:
            newest[stream.stream_id] = stream.newest_state_object_id
        tables.streams[stream.stream_id] = StreamState(
            stream_id=stream.stream_id,
            topic_id=topic.topic_id,
            partition=partition,
            status=stream.status,
            node_id=stream.node_id,
            wal_id=stream.wal_id,
            leader_epoch=stream.leader_epoch,
            log_start_offset=stream.log_start_offset,
            committed_end_offset=stream.committed_end_offset,
            gaps=stream.gaps,
            target_node_id=stream.target_node_id,
            wal_leader_epoch=stream.wal_leader_epoch,
        )


def _restore_object(tables: Tables, entry: ObjectCommitted, newest: dict[StreamId, ObjectId]) -> None:
    object_id = entry.object_id
    live_count = 0
    for value in entry.ranges:
        stream = tables.streams.get(value.stream_id)
        if stream is None:
            continue
        carries_state = newest.get(value.stream_id) == object_id
        if carries_state:
            stream.newest_state = (object_id, value)
        if value.end_offset > stream.log_start_offset and value.base_offset < value.end_offset:
            stream.ranges.append(value)
            stream.object_ids.append(object_id)
            live_count += 1
        elif carries_state:
            live_count += 1
    tables.objects[object_id] = entry
    tables.live_counts[object_id] = live_count
