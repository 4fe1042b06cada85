"""Where fuzzing starts: good examples of what each target reads, made from the code's own writers and from golden frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from broker.groups import records
from broker.leader_epochs import LeaderEpochs
from broker.partition import encode_state
from broker.producer_state import ProducerStates
from controller.entry import EntryHeader, encode_entry
from controller.records import (
    MetadataVersionRaised,
    NodeDead,
    NodeSuspected,
    NodeTrusted,
    ProducerIdsAllocated,
    StreamsTrimmed,
    Unuploaded,
    UnuploadedStream,
    encode_records,
)
from protocol.apis import encode_request, encode_response
from protocol.compression import Codec, compress
from protocol.record_set import Record, build_batch
from s3stream.metadata import StreamId
from tests.controller.test_snapshot import encoded, rich
from tests.fuzz.wal_image import image_of
from tests.protocol.examples import BODIES, filled
from tests.protocol.test_golden_requests import ALL as GOLDEN
from tests.s3stream.test_object_format import build
from wal.header import initial_image
from wal.identity import WalIdentity, pack_identity
from wal.slot import Position, SlotHeader, SlotKind, pack_slot_header

__all__ = ["SEEDS"]

_RECORDS = [
    Record(b"key", b"value", 1_000),
    Record(None, None, 999, (("h", b"v"), ("null", None), ("", b""))),
    Record(b"", b"x" * 300, 100_000),
]


def requests() -> Iterator[bytes]:
    yield from (golden.frame for golden in GOLDEN)
    for body in BODIES:
        if body.is_request:
            yield b"".join(encode_request(body.api.key, body.version, 7, "seed", filled(body.layout)))[4:]


def responses() -> Iterator[bytes]:
    for body in BODIES:
        if not body.is_request:
            key = body.api.key.to_bytes(2, "big") + body.version.to_bytes(2, "big")
            frame = b"".join(encode_response(body.api.key, body.version, 7, filled(body.layout)))
            flexible_header = body.flexible and body.api.key != 18
            yield key + frame[9 if flexible_header else 8 :]


def batches() -> Iterator[bytes]:
    for codec in Codec:
        yield build_batch(_RECORDS, codec=codec)
        yield build_batch(_RECORDS * 20, codec=codec, producer_id=9, producer_epoch=1, base_sequence=5)


def stored_batches() -> Iterator[bytes]:
    for codec in Codec:
        yield build_batch(_RECORDS, codec=codec) + build_batch(_RECORDS, base_offset=3, log_append_time_ms=5)[:-9]


def compression() -> Iterator[bytes]:
    for codec in Codec:
        for data in (b"", b"abc" * 100, bytes(5000)):
            yield bytes([codec]) + compress(codec, data)


def wal_frames() -> Iterator[bytes]:
    yield b"\0\0\0\0" + b"\x06\x10\x01\x02" * 40
    yield b"\1\1\0\0" + b"\x06\x10\x01\x02\x01\0\0\0\x02\x80\x09\x07" * 9
    yield b"\0\0\2\0" + b"\x06\x10\x01\x02" * 20 + b"\0\x01\x02\x03" + b"\x06\x22\x01\x02" * 9
    yield b"\0\0\1\4" + b"\x06\x10\x01\x02\x03\x10\0\0\x04\x10\x01\x02\x05\x09\x05\x02" * 5


def wal_slot() -> Iterator[bytes]:
    for kind in SlotKind:
        yield pack_slot_header(
            SlotHeader(
                kind=kind,
                wal_id="00112233445566778899aabbccddeeff",
                writer_id="ffeeddccbbaa99887766554433221100",
                position=Position(3, 17),
                base_offset=1000,
                end_offset=2000,
                confirmed_number=15,
                confirmed_offset=800,
            )
        )


def wal_damage() -> Iterator[bytes]:
    yield from wal_frames()


def wal_identity() -> Iterator[bytes]:
    yield pack_identity(WalIdentity(wal_id="00112233445566778899aabbccddeeff", cluster_id="tide", node_id=1))


def wal_header() -> Iterator[bytes]:
    header, _, _ = image_of(b"")
    yield initial_image(header)


def objects() -> Iterator[bytes]:
    yield build()


HELD = Unuploaded(
    record_count=3,
    size_bytes=90,
    stream_count=2,
    oldest_age_ms=1_000,
    streams=(UnuploadedStream(stream_id=StreamId(1), base_offset=5, end_offset=8, size_bytes=90),),
)


def metadata_entry() -> Iterator[bytes]:
    entries = [
        ProducerIdsAllocated(node_id=1, end_producer_id=2000),
        NodeSuspected(node_id=1, node_epoch=2, at_ms=9),
        NodeSuspected(node_id=2, node_epoch=3, at_ms=9, held=HELD, held_before_silence_ms=400),
        NodeTrusted(node_id=1, node_epoch=2),
        NodeDead(node_id=1, node_epoch=2, at_ms=9),
        MetadataVersionRaised(metadata_version=4),
        StreamsTrimmed(log_start_offsets=((StreamId(1), 5), (StreamId(2), 7)), trimmed_at_ms=9),
    ]
    for chosen in (entries, entries[:1], []):
        yield b"".join(encode_entry(EntryHeader(index=7, controller_epoch=3, nonce=bytes(16)), encode_records(chosen)))


def metadata_snapshot() -> Iterator[bytes]:
    yield encoded(rich())


def partition_state() -> Iterator[bytes]:
    producers, epochs = ProducerStates(), LeaderEpochs()
    yield encode_state(producers, epochs)
    epochs.begin(1, 0)
    epochs.begin(4, 100)
    for producer_id in range(3):
        for sequence in range(7):
            producers.record(producer_id, 1, sequence, 1, producer_id + sequence, -1, 5)
    yield encode_state(producers, epochs)


def group_records() -> Iterator[bytes]:
    yield b"k" + records.encode_offset_key("group", "topic", 3)
    yield b"k" + records.encode_group_key("group")
    yield b"o" + records.encode_offset_value(records.OffsetValue(5, 1, "mine", 1_000))
    yield b"o" + records.encode_offset_value(records.OffsetValue(5, 1, "mine", 1_000, 2_000))
    member = records.MemberValue("member", "instance", "client", "/127.0.0.1", 1, 2, b"subscription", b"assignment")
    group = records.GroupValue("consumer", 7, "range", "member", 1_000, (member, member))
    yield b"g" + records.encode_group_value(group)


def subscriptions() -> Iterator[bytes]:
    yield bytes.fromhex("0001 00000002 0001 74 0002 7475 00000000 00000000")
    yield bytes.fromhex("0000 00000001 0001 74 00000002 00000000 00000001 00000000")


def http_heads() -> Iterator[bytes]:
    yield b"GET /metrics?x=1 HTTP/1.1\r\nHost: broker"
    yield b"HEAD / HTTP/1.0"


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    make.__name__: make
    for make in (
        requests,
        responses,
        batches,
        stored_batches,
        compression,
        wal_frames,
        wal_slot,
        wal_damage,
        wal_identity,
        wal_header,
        objects,
        metadata_entry,
        metadata_snapshot,
        group_records,
        subscriptions,
        http_heads,
        partition_state,
    )
}
"""By target."""
