"""What is fuzzed: everything that reads bytes which others wrote, be it a client, a disk or a bucket.

A target takes any bytes and returns, or raises one of the errors that it may raise. Anything else is a finding: another exception,
a broken promise (an `assert` below), time or memory without measure. Where a checksum stands in front, the target makes it
right first, as a faulty writer would, or nothing behind it would ever be reached.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from broker.errors import KafkaError
from broker.groups import records
from broker.groups.subscription import assigned_partitions, subscribed_topics
from broker.http_server import HttpRequest, parse_request
from broker.leader_epochs import LeaderEpochs
from broker.partition import decode_state
from broker.producer_state import ProducerStateCorrupt, ProducerStates
from broker.replay import replay_batches
from controller import entry, snapshot
from controller.errors import MetadataCorrupt, UnsupportedMetadata
from protocol.apis import decode_request, decode_response, encode_request
from protocol.compression import Codec, decompress
from protocol.errors import InvalidRecords, Malformed, OutputTooLarge, UnsupportedVersion
from protocol.frames import parse_request_header
from protocol.record_set import iter_batches, iter_records, walk_records
from protocol.records import HEADER_BYTES, check_produced_header, iter_bounds, parse_batch_header
from s3stream.errors import ObjectCorrupt, UnsupportedObjectFormat
from s3stream.metadata import ObjectId
from s3stream.object_format import FOOTER_SIZE_BYTES, INDEX_ENTRY_SIZE_BYTES, verify_object
from tests.fuzz.wal_image import image_of
from wal.checksum import crc32c
from wal.errors import WalCorrupt, WalUnsupportedFormat
from wal.header import RING_START_BYTES, choose_header
from wal.identity import read_identity
from wal.log import RecoveredRun
from wal.recovery import AcceptedFrame, FrameScan, Hole
from wal.salvage import Assessment, LostFrame
from wal.slot import (
    SLOT_HEADER_SIZE_BYTES,
    Position,
    SlotHeader,
    SlotKind,
    pack_slot_header,
    read_slot_header,
    slot_key,
)
from wal.slot_salvage import in_batch

__all__ = ["TARGETS", "Target"]

CAP_BYTES = 1 << 20
"""What anything may inflate to here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One entry for the fuzzer."""

    name: str
    run: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    """What it may raise."""

    def __call__(self, data: bytes) -> bool:
        """Run once; False where the bytes were refused, as they may be."""
        try:
            self.run(data)
        except self.refusals:
            return False
        return True


def requests(data: bytes) -> None:
    """A request frame without its size, as from a socket: what is decoded encodes to something that decodes to the same."""
    header = parse_request_header(data)
    request = decode_request(header.api_key, header.api_version, data, header.body_position, 4096)
    again = b"".join(encode_request(header.api_key, header.api_version, 1, header.client_id, request))[4:]
    position = parse_request_header(again).body_position
    assert decode_request(header.api_key, header.api_version, again, position) == request


def responses(data: bytes) -> None:
    """API key and version, then the body of a response."""
    if len(data) < 4:
        raise Malformed("no key")
    decode_response(*struct.unpack(">hh", data[:4]), data[4:], 0)


def batches(data: bytes) -> None:
    """What a partition is asked to store, and every way in which batches are looked at later."""
    header = check_produced_header(data, 11, CAP_BYTES)
    ((_, bounds),) = iter_bounds(data)
    assert (bounds.size_bytes, bounds.record_count) == (len(data), header.record_count)
    (only,) = iter_batches(data)
    assert only == data
    replay_batches(data, [0], ProducerStates(), LeaderEpochs(), 0)
    marks = [
        mark
        for mark in walk_records(header, decompress(header.codec, only[HEADER_BYTES:], CAP_BYTES))
        if mark is not None
    ]
    try:
        read = list(iter_records(data, max_output_bytes=CAP_BYTES))
    except Malformed as error:
        if "utf-8" in str(error):
            return  # names of headers are not looked at by a walk
        raise AssertionError("a walk took what reading refuses") from error
    assert [(one.offset, one.timestamp_ms, one.key is not None) for one in read] == marks


def stored_batches(data: bytes) -> None:
    """Consecutive batches, as a fetch brings them, and the last one cut short."""
    for one in iter_batches(data):
        parse_batch_header(one)
        for _ in iter_records(one, max_output_bytes=CAP_BYTES):
            pass
    for _ in iter_bounds(data):
        pass


def compression(data: bytes) -> None:
    """The codec, then what is compressed."""
    if not data:
        raise Malformed("no codec")
    assert len(decompress(data[0] % (len(Codec) + 1), data[1:], CAP_BYTES)) <= CAP_BYTES


def wal_frames(data: bytes) -> None:
    """A log written as `data` says: recovery in runs accepts what recovery frame by frame does, and never more than is there."""
    header, seed, image = image_of(data)
    start = header.trim_offset & -4096
    single = FrameScan(header, seed)
    stepped = []
    while isinstance(found := single.step(image, start), AcceptedFrame):
        assert header.trim_offset <= found.offset < start + len(image)
        stepped.append((found.offset, found.stream_id))
    scan = FrameScan(header, seed)
    count = 0
    while isinstance(run := scan.run(image, start, 8192), RecoveredRun):
        assert run.offset < run.end_offset <= start + len(image)
        for payloads in run.streams.values():
            columns = [list(column) for column in payloads]
            assert len({len(column) for column in columns}) == 1
            count += len(columns[0])
    assert (count, scan.next_offset) == (len(stepped), single.next_offset)
    assert run == found, "both end for the same reason"
    if isinstance(run, Hole):
        scan.check_hole(run)
        scan.check_beyond(run, image, start)


def wal_slot(data: bytes) -> None:
    """The head of a slot, with a checksum that is right, under the key of the slot that it says it is."""
    image = bytearray(data.ljust(SLOT_HEADER_SIZE_BYTES, b"\0"))
    struct.pack_into("<I", image, SLOT_HEADER_SIZE_BYTES - 4, crc32c(image[: SLOT_HEADER_SIZE_BYTES - 4]))
    (wal_epoch,), (number,) = struct.unpack_from("<I", image, 48), struct.unpack_from("<Q", image, 56)
    header = read_slot_header(bytes(image), slot_key(image[16:32].hex(), Position(wal_epoch, number)))
    assert read_slot_header(pack_slot_header(header), slot_key(header.wal_id, header.position)) == header


def wal_damage(data: bytes) -> None:
    """A damaged log, read on behind its holes: what is found is in order, and nothing is told twice."""
    header, _, image = image_of(data)
    slot = SlotHeader(
        kind=SlotKind.BATCH,
        wal_id=header.wal_id,
        writer_id=header.wal_id,
        position=Position(header.wal_epoch, 1),
        base_offset=header.trim_offset & -4096,
        end_offset=(header.trim_offset & -4096) + len(image),
    )
    reached = header.trim_offset
    assessment = Assessment((stream_id, 0) for stream_id in range(4))
    for finding in in_batch(slot, image, header.trim_offset):
        assert finding.offset >= reached
        reached = finding.offset + 1 if isinstance(finding, LostFrame) else finding.end_offset
        assert reached <= slot.end_offset
        assessment.add(finding)
    assessment.end()
    for loss in assessment.streams.values():
        told = sorted([(low, low if high is None else high) for low, high in loss.lost] + loss.intact)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(told))
        assert loss.is_complete or loss.lost[0][0] == loss.end_offset


def wal_identity(data: bytes) -> None:
    """Which WAL is a node's."""
    assert bytes.fromhex(read_identity(data, "wal/node/1").wal_id) is not None


def wal_header(data: bytes) -> None:
    """Both copies of the header, with checksums that are right."""
    image = bytearray(data[:RING_START_BYTES].ljust(RING_START_BYTES, b"\0"))
    for slot in (0, RING_START_BYTES // 2):
        struct.pack_into("<I", image, slot + 1024, crc32c(image[slot : slot + 1024]))
    choose_header(bytes(image))


def objects(data: bytes) -> None:
    """A data object whose checksums are right as far as its places make sense."""
    object_id = ObjectId(77)
    index = verify_object(_sealed_object(bytearray(data)), object_id)
    for one in index.entries():
        assert 0 <= one.position < one.position + one.size_bytes <= len(data)
        assert [*index.data_entries(one.stream_id)] or index.state_entry(one.stream_id)


def _sealed_object(whole: bytearray) -> bytes:
    footer = len(whole) - FOOTER_SIZE_BYTES
    if footer < 0:
        return bytes(whole)
    (index_at,) = struct.unpack_from(">Q", whole, footer + 32)
    for at in range(index_at, footer - INDEX_ENTRY_SIZE_BYTES + 1, INDEX_ENTRY_SIZE_BYTES):
        position, size = struct.unpack_from(">QI", whole, at + _ENTRY_POSITION_AT)
        if position + size <= index_at:
            struct.pack_into(">I", whole, at + _ENTRY_CRC_AT, crc32c(whole[position : position + size]))
    if index_at <= footer:
        struct.pack_into(">I", whole, footer + 48, crc32c(whole[index_at:footer]))
        struct.pack_into(">I", whole, footer + 52, crc32c(whole[:index_at]))
    struct.pack_into(">I", whole, footer + 60, crc32c(whole[footer : footer + 60]))
    return bytes(whole)


def group_records(data: bytes) -> None:
    """What coordinators keep of groups: a key, an offset or a group, as the first byte says; what is read is written as it was."""
    kind, data = data[:1], data[1:]
    if kind == b"k":
        records.decode_key(data)
    elif kind == b"o":
        offset = records.decode_offset_value(data)
        assert records.decode_offset_value(records.encode_offset_value(offset))[0] == offset.offset
    elif kind == b"g":
        group = records.decode_group_value(data)
        assert len(records.decode_group_value(records.encode_group_value(group)).members) == len(group.members)
    else:
        raise Malformed("no kind")


def subscriptions(data: bytes) -> None:
    """What members say that they subscribe to, and what they are assigned: read by the broker, written by clients."""
    topics = subscribed_topics([data])
    partitions = assigned_partitions(data)
    assert topics is None or len(topics) <= len(data)
    assert partitions is None or len(partitions) <= len(data)


def http_heads(data: bytes) -> None:
    """A request to the port for figures and probes."""
    found = parse_request(data + b"\r\n\r\n")
    assert isinstance(found, HttpRequest) or found.status in (400, 405, 505)


def metadata_entry(data: bytes) -> None:
    """An entry of the metadata log, with a checksum that is right."""
    whole = bytearray(data)
    crc_at = entry._HEADER.size
    if len(whole) >= entry._BODY:
        struct.pack_into(">I", whole, crc_at, crc32c(whole[entry._BODY :], crc32c(whole[:crc_at])))
    entry.decode_entry(bytes(whole), 7, where="entry/7")


def metadata_snapshot(data: bytes) -> None:
    """A snapshot of the metadata, with checksums that are right."""
    whole = bytearray(data)
    position = 5
    while position + snapshot._FRAME.size <= len(whole):
        size, _ = snapshot._FRAME.unpack_from(whole, position)
        start = position + snapshot._FRAME.size
        if size:
            snapshot._FRAME.pack_into(whole, position, size, crc32c(whole[start : start + size]))
        position = start + size
    *_, restored = snapshot.restore(bytes(whole), where="snapshot/7")
    assert restored is not None


def partition_state(data: bytes) -> None:
    """A state block: what a partition remembers of its producers, with a checksum that is right."""
    whole = bytearray(data)
    at = whole.find(b"\x54\x50")  # the magic of the producers' part
    if 0 <= at <= len(whole) - 12:
        struct.pack_into(">I", whole, at + 4, crc32c(whole[at + 8 :]))
    producers, epochs = decode_state(bytes(whole))
    assert ProducerStates.restore(producers.snapshot()).snapshot() == producers.snapshot()
    epochs.entries()


_ENTRY_POSITION_AT = 40
_ENTRY_CRC_AT = 56

_PROTOCOL = (Malformed, UnsupportedVersion)
_METADATA = (MetadataCorrupt, UnsupportedMetadata)
TARGETS = {
    target.name: target
    for target in (
        Target(name="requests", run=requests, refusals=_PROTOCOL),
        Target(name="responses", run=responses, refusals=_PROTOCOL),
        Target(name="batches", run=batches, refusals=(Malformed, InvalidRecords, OutputTooLarge, KafkaError)),
        Target(name="stored_batches", run=stored_batches, refusals=(Malformed,)),
        Target(name="compression", run=compression, refusals=(Malformed, OutputTooLarge)),
        Target(name="wal_frames", run=wal_frames, refusals=(WalCorrupt,)),
        Target(name="wal_slot", run=wal_slot, refusals=(WalCorrupt, WalUnsupportedFormat)),
        Target(name="wal_damage", run=wal_damage, refusals=(WalCorrupt,)),
        Target(name="wal_identity", run=wal_identity, refusals=(WalCorrupt, WalUnsupportedFormat)),
        Target(name="wal_header", run=wal_header, refusals=(WalCorrupt, WalUnsupportedFormat)),
        Target(name="objects", run=objects, refusals=(ObjectCorrupt, UnsupportedObjectFormat)),
        Target(name="metadata_entry", run=metadata_entry, refusals=_METADATA),
        Target(name="metadata_snapshot", run=metadata_snapshot, refusals=_METADATA),
        Target(name="group_records", run=group_records, refusals=(Malformed,)),
        Target(name="subscriptions", run=subscriptions, refusals=()),
        Target(name="http_heads", run=http_heads, refusals=()),
        Target(name="partition_state", run=partition_state, refusals=(ProducerStateCorrupt,)),
    )
}
