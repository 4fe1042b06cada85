"""The records of the metadata log and their encoding.

Always true:
- A record says what *is* from now on, never what was asked: everything that applying it needs is inside (times, ids,
  epochs), so every node that applies the same entries comes to the same state (I9).
- A tag is never given to another record, and a field never changes its meaning. A field may be added at the end, with a
  default, together with a higher `METADATA_VERSION`.
- A tag or a metadata version that this code does not know stops the node (`UnsupportedMetadata`): guessing would make
  its state differ from everybody else's.

Records are msgspec structs (frozen, keyword-only), encoded as MessagePack arrays that begin with the tag: decoding
100,000 of them takes a blink, and `gc=False` keeps a million ranges out of the garbage collector's sight. They hold
nothing but numbers, strings and tuples, so no cycle can come about.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from controller.errors import MetadataCorrupt, UnsupportedMetadata
from s3stream.metadata import ObjectId, StreamId, StreamRange

__all__ = [
    "ALL_NODES",
    "METADATA_VERSION",
    "BrokerConfigsChanged",
    "ClusterFormatted",
    "LeaderChanged",
    "MetadataRestored",
    "MetadataVersionRaised",
    "NodeDead",
    "NodeDrained",
    "NodeRegistered",
    "NodeSuspected",
    "NodeTrusted",
    "NodeUnregistered",
    "ObjectCommitted",
    "ObjectIdsAllocated",
    "ObjectsCompacted",
    "ObjectsExpired",
    "ObjectsForgotten",
    "PartitionsAdded",
    "ProducerIdsAllocated",
    "Range",
    "Record",
    "RestoredStream",
    "RestoredTopic",
    "Skip",
    "StreamsAbandoned",
    "StreamsClosed",
    "StreamsOpened",
    "StreamsReassigned",
    "StreamsRecovering",
    "StreamsTrimmed",
    "TopicConfigsChanged",
    "TopicCreated",
    "TopicDeleted",
    "Unuploaded",
    "UnuploadedStream",
    "decode_records",
    "encode_records",
]

METADATA_VERSION: Final = 5
"""Newest version of records and state machine that this code understands. It writes what the version that is in force allows.

2: `PartitionsAdded`, `BrokerConfigsChanged`, and ranges without offsets that carry a state.
3: `MetadataRestored`, `StreamsAbandoned.kept`, and `StreamsReassigned`.
4: `NodeSuspected`, `NodeTrusted`, `NodeDead`, `MetadataVersionRaised`, `NodeDrained`, and `NodeRegistered.lease_ms`, `.controller_address`, `.wal_uri` and
`.wal_host`; and under which leader epoch a stream was first opened on its WAL. They are not written before this
version is in force, which takes that every node understands it: so nodes can be upgraded one by one.
5: `NodeSuspected.held` and `.held_before_silence_ms`, likewise.
"""

ALL_NODES: Final = -1
"""In `BrokerConfigsChanged`: the defaults of every node."""


class Range(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """`s3stream.metadata.StreamRange` as records and state hold it: without its Python overhead, by the million."""

    stream_id: StreamId
    leader_epoch: int
    base_offset: int
    end_offset: int
    record_count: int
    size_bytes: int
    max_timestamp_ms: int
    has_state: bool

    @classmethod
    def of(cls, value: StreamRange) -> Range:
        return cls(
            stream_id=value.stream_id,
            leader_epoch=value.leader_epoch,
            base_offset=value.base_offset,
            end_offset=value.end_offset,
            record_count=value.record_count,
            size_bytes=value.size_bytes,
            max_timestamp_ms=value.max_timestamp_ms,
            has_state=value.has_state,
        )

    def value(self) -> StreamRange:
        return StreamRange(
            stream_id=self.stream_id,
            leader_epoch=self.leader_epoch,
            base_offset=self.base_offset,
            end_offset=self.end_offset,
            record_count=self.record_count,
            size_bytes=self.size_bytes,
            max_timestamp_ms=self.max_timestamp_ms,
            has_state=self.has_state,
        )


class Skip(enum.IntEnum):
    """`s3stream.metadata.SkipReason` as a number that is never given to another reason."""

    DELETED = 1
    FENCED = 2
    NOT_CONTIGUOUS = 3


class ClusterFormatted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=1):
    """The first record of a cluster's life."""

    cluster_id: str
    metadata_version: int


class LeaderChanged(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=2):
    """A controller took office; entries of older controller epochs count no more from here on."""

    controller_epoch: int
    leader: str
    """Who, as people and other nodes can make use of it (an address)."""


class NodeRegistered(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=3):
    """A node came up with a WAL; earlier registrations of its id are fenced."""

    node_id: int
    node_epoch: int
    """Grows over the whole cluster, so it also orders registrations of different nodes."""
    wal_id: str
    wal_epoch: int
    address: str
    """Advertised address, opaque here."""
    rack: str
    registered_at_ms: int
    lease_ms: int = 0
    """For how long it may serve without having read the metadata log to its tail; 0: it does not look, so it is never taken for dead."""
    controller_address: str = ""
    """`host:port` by which other nodes reach its controller; empty: it is alone."""
    wal_uri: str = ""
    """Where the WAL is, without secrets, for whoever has to recover it; empty where nobody else could."""
    wal_host: str = ""
    """Identity of the machine whose disk it is on; empty where it is on none."""


class NodeUnregistered(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=4):
    """A node that leads nothing was removed."""

    node_id: int


class TopicCreated(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=5):
    """A topic with one stream per partition: first_stream_id, first_stream_id + 1, …"""

    topic_id: bytes
    name: str
    first_stream_id: StreamId
    leaders: tuple[int, ...]
    """Node that is to open each partition, by partition index."""
    configs: dict[str, str]
    created_at_ms: int


class TopicDeleted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=6):
    """A topic and its streams are gone; objects that hold nothing else become unreferenced."""

    topic_id: bytes
    deleted_at_ms: int


class TopicConfigsChanged(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=7):
    """All configs of a topic that differ from the defaults, as they are from now on."""

    topic_id: bytes
    configs: dict[str, str]


class StreamsOpened(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=8):
    """Streams are OPEN on a node's WAL."""

    node_id: int
    wal_id: str
    streams: tuple[tuple[StreamId, int], ...]
    """(stream_id, leader_epoch)"""


class StreamsRecovering(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=9):
    """A node took over the tail of streams whose WAL it has fenced; it commits that tail, then closes them."""

    node_id: int
    wal_id: str
    streams: tuple[tuple[StreamId, int], ...]
    """(stream_id, leader_epoch)"""


class StreamsClosed(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=10):
    """Streams whose objects hold all of them; any node may open them."""

    stream_ids: tuple[StreamId, ...]


class StreamsTrimmed(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=11):
    """Log start offsets were raised."""

    log_start_offsets: tuple[tuple[StreamId, int], ...]
    trimmed_at_ms: int


class StreamsAbandoned(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=12):
    """An operator gave up a lost WAL: its streams are CLOSED, and go on at an offset that was surely never used."""

    wal_id: str
    resume_offsets: tuple[tuple[StreamId, int], ...]
    """(stream_id, offset): offsets from the committed end up to here are a recorded gap."""
    abandoned_at_ms: int
    kept: tuple[StreamId, ...] = ()
    """Those of them that are not closed: the WAL holds more of them, behind the gap."""


class ObjectCommitted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=13):
    """An uploaded object is referenced. Also the form in which the state keeps every object."""

    object_id: ObjectId
    size_bytes: int
    ranges: tuple[Range, ...]
    """Those that were accepted, sorted by stream."""
    skipped: tuple[tuple[StreamId, Skip], ...]
    committed_at_ms: int


class ObjectsCompacted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=14):
    """Objects took the place of their sources."""

    objects: tuple[ObjectCommitted, ...]
    sources: tuple[ObjectId, ...]


class ObjectsExpired(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=15):
    """Unreferenced objects may now be deleted; a commit of these ids is refused for ever."""

    object_ids: tuple[ObjectId, ...]


class ObjectsForgotten(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=16):
    """Expired objects were deleted from the store."""

    object_ids: tuple[ObjectId, ...]


class ObjectIdsAllocated(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=17):
    """A node may use the ids up to the new end (exclusive); unused ones are lost, which does no harm."""

    node_id: int
    end_object_id: ObjectId


class ProducerIdsAllocated(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=18):
    """A node may give out the producer ids up to the new end (exclusive), as KIP-730 has it."""

    node_id: int
    end_producer_id: int


class PartitionsAdded(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=19):
    """A topic has more partitions, numbered on, with one stream each: first_stream_id, first_stream_id + 1, …"""

    topic_id: bytes
    first_stream_id: StreamId
    leaders: tuple[int, ...]
    """Node that is to open each new partition."""


class BrokerConfigsChanged(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=20):
    """All settings of a node that were altered while it ran, as they are from now on."""

    node_id: int
    """`ALL_NODES` for what holds on every node that does not say otherwise."""
    configs: dict[str, str]


class RestoredTopic(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A topic as it is from now on."""

    topic_id: bytes
    name: str
    stream_ids: tuple[StreamId, ...]
    """By partition index; those that are not among the restored streams stay as they are."""
    configs: dict[str, str]
    created_at_ms: int


class RestoredStream(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A stream as it is from now on: CLOSED. Its ranges are those of the record's objects."""

    stream_id: StreamId
    topic_id: bytes
    partition: int
    node_id: int
    """Who is to open it."""
    leader_epoch: int
    log_start_offset: int
    committed_end_offset: int
    gaps: tuple[tuple[int, int], ...]
    newest_state_object_id: ObjectId
    """0 where there is none."""


class MetadataRestored(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=21):
    """An operator took topics back to what they were at an earlier entry."""

    index: int
    """Of that entry: the state after it was restored."""
    restored_at_ms: int
    deleted_topic_ids: tuple[bytes, ...]
    """Topics that did not exist then."""
    topics: tuple[RestoredTopic, ...]
    streams: tuple[RestoredStream, ...]
    """Those that are not what they were; what they held until now is released."""
    objects: tuple[ObjectCommitted, ...]
    """Every object that holds a range of them, with exactly the ranges that streams need from now on."""
    broker_configs: tuple[tuple[int, dict[str, str]], ...] | None
    """All altered settings of brokers; None: they stay as they are."""


class StreamsReassigned(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=22):
    """Streams are to go to other nodes: at once where nobody has them open, else when their holder has closed them."""

    targets: tuple[tuple[StreamId, int], ...]
    """(stream_id, node_id); the holder itself: it is to stay."""


class UnuploadedStream(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Acknowledged records of a stream that were in no object, as many as offsets."""

    stream_id: StreamId
    base_offset: int
    """What comes before was in objects."""
    end_offset: int
    """Exclusive."""
    size_bytes: int


class Unuploaded(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What a node said that its WAL holds alone: all of it in numbers, exact when it was said, and the streams that hold most of it."""

    record_count: int
    size_bytes: int
    stream_count: int
    oldest_age_ms: int
    """For how long the oldest of them had been waiting, or longer, where it had been recovered; 0 where there was nothing."""
    streams: tuple[UnuploadedStream, ...] = ()
    """All of them, or those with the most bytes."""


class NodeSuspected(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=23):
    """The leader does not hear from a node: it must serve nothing once it reads this, or cannot read."""

    node_id: int
    node_epoch: int
    at_ms: int
    held: Unuploaded | None = None
    """What it reported last; None: the leader knows of no report."""
    held_before_silence_ms: int = -1
    """How long before the last sign of life that the leader had of it; -1: that was another one, and nobody knows."""


class NodeTrusted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=24):
    """A suspected node was heard from again."""

    node_id: int
    node_epoch: int


class NodeDead(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=25):
    """A node serves nothing any more, and commands of this registration are refused for good."""

    node_id: int
    node_epoch: int
    at_ms: int


class MetadataVersionRaised(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=26):
    """All nodes understand this version: what it brings may be written from now on."""

    metadata_version: int


class NodeDrained(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False, tag=30):
    """An operator wants a node to have no partitions, or to have some again; its next registration ends that as well."""

    node_id: int
    is_drained: bool


Record = (
    ClusterFormatted
    | LeaderChanged
    | NodeRegistered
    | NodeUnregistered
    | TopicCreated
    | TopicDeleted
    | TopicConfigsChanged
    | StreamsOpened
    | StreamsRecovering
    | StreamsClosed
    | StreamsTrimmed
    | StreamsAbandoned
    | ObjectCommitted
    | ObjectsCompacted
    | ObjectsExpired
    | ObjectsForgotten
    | ObjectIdsAllocated
    | ProducerIdsAllocated
    | PartitionsAdded
    | BrokerConfigsChanged
    | MetadataRestored
    | StreamsReassigned
    | NodeSuspected
    | NodeTrusted
    | NodeDead
    | MetadataVersionRaised
    | NodeDrained
)

_KNOWN_TAGS: Final = frozenset((*range(1, 27), 30))
_encoder: Final = msgspec.msgpack.Encoder()
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no MessagePack, for text that is no UTF-8, and for arrays in arrays without end."""
_decoder: Final = msgspec.msgpack.Decoder(tuple[Record, ...])


def encode_records(records: Sequence[Record]) -> bytes:
    return _encoder.encode(records)


def decode_records(data: bytes | memoryview, *, where: str) -> tuple[Record, ...]:
    """Decode a batch of records; `where` names the object for messages.

    Raises:
        UnsupportedMetadata: a record that this version does not know.
        MetadataCorrupt: not a batch of records at all.
    """
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        unknown = _unknown_tag(data)
        if unknown is not None:
            raise UnsupportedMetadata(
                f"{where} holds a metadata record of type {unknown}, which this version (metadata version "
                f"{METADATA_VERSION}) does not know: upgrade this node"
            ) from error
        raise MetadataCorrupt(f"{where} holds a metadata record that does not match its type: {error}") from error
    except _UNREADABLE as error:
        raise MetadataCorrupt(f"{where} is not a batch of metadata records: {error}") from error


def _unknown_tag(data: bytes | memoryview) -> object | None:
    try:
        raw = msgspec.msgpack.decode(data)
    except _UNREADABLE:
        return None  # what is wrong comes before what does not end well
    if isinstance(raw, list):
        for item in raw:
            if isinstance(item, list) and item:
                tag: object = item[0]
                if not isinstance(tag, int) or tag not in _KNOWN_TAGS:
                    return tag
    return None
