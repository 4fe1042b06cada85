"""Looking into batches without harm to others (I13, I14): keys on compacted topics, records at a time."""

from __future__ import annotations

import asyncio
import struct
import zlib

import pytest

from broker import record_walks
from broker.node import Node
from broker.record_walks import AT_ONCE_BYTES, RecordWalks
from protocol.compression import Codec, compress
from protocol.errors import OutputTooLarge
from protocol.messages.api_versions import ApiVersionsRequest
from protocol.record_set import Record, build_batch
from protocol.records import ATTRIBUTES_POSITION, HEADER_BYTES
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, produce_request
from wal.checksum import crc32c

KEYED = build_batch([Record(key=b"k", value=b"v", timestamp_ms=n) for n in range(40_000)], codec=Codec.ZSTD)


def with_records(packed: bytes, count: int, codec: Codec) -> bytes:
    """A batch of `count` records whose compressed bytes are these, with a CRC that is right."""
    head = bytearray(build_batch([Record(key=b"k")])[:HEADER_BYTES])
    struct.pack_into(">i", head, 8, HEADER_BYTES + len(packed) - 12)
    struct.pack_into(">h", head, ATTRIBUTES_POSITION, int(codec))
    struct.pack_into(">i", head, 23, count - 1)
    struct.pack_into(">i", head, 57, count)
    struct.pack_into(">I", head, 17, crc32c(bytes(head[ATTRIBUTES_POSITION:]) + packed))
    return bytes(head) + packed


def bomb_of_headers(count: int) -> bytes:
    """One record with a key and `count` headers, whose names are empty and whose values are null: two bytes each."""
    inner = b"\0\0\0\x02k\x01" + varint(count) + b"\0\x01" * count
    return with_records(compress(Codec.ZSTD, varint(len(inner)) + inner), 1, Codec.ZSTD)


def varint(n: int) -> bytes:
    n <<= 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


async def test_a_large_batch_is_walked_over_in_slices() -> None:
    walks = RecordWalks()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    found = await walks.first(KEYED, lambda mark: mark.timestamp_ms >= 39_000)
    task.cancel()
    assert found is not None
    assert found.offset == 39_000
    assert turns >= 39_000 // record_walks.STEPS_AT_ONCE


async def test_millions_of_headers_become_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = RecordWalks()
    bomb = bomb_of_headers(200_000)
    assert len(bomb) < 1000
    found = await walks.first(bomb, lambda mark: mark.has_key)
    assert found is not None, "walked over to its end"
    # A look-up by time gives up after so many steps, a check of keys does not.
    assert await walks.first(bomb, lambda mark: mark.has_key, max_steps=10_000) is None


async def test_what_a_batch_inflates_to_is_capped() -> None:
    with pytest.raises(OutputTooLarge):
        await RecordWalks().first(batch(bytes(record_walks.MAX_INFLATED_BYTES), codec=Codec.GZIP), lambda mark: False)


async def test_large_batches_are_taken_by_a_compacted_topic_when_all_have_keys(wire: Wire) -> None:
    await wire.create_topic("compacted", cleanup_policy="compact", max_message_bytes="4000000")
    keyed = batch(*[b"x" * 100] * 3000, key=b"k")
    keyless = build_batch([Record(key=b"k", value=b"x" * 100)] * 3000 + [Record(value=b"no key")], codec=Codec.LZ4)
    assert len(keyed) > AT_ONCE_BYTES
    # Pipelined: each waits until its keys are checked, and the order is kept.
    for records in (keyed, keyless, KEYED, batch(b"small", key=b"k"), bomb_of_headers(100_000), keyed[:-1] + b"?"):
        wire.send("Produce", 9, produce_request("compacted", records))
    answers = [(await wire.receive()).responses[0].partition_responses[0] for _ in range(6)]
    assert [(answer.error_code, answer.base_offset) for answer in answers] == [
        (0, 0),
        (87, -1),
        (0, 3000),
        (0, 43_000),
        (0, 43_001),
        (2, -1),
    ]


async def test_one_request_may_carry_several_large_batches(wire: Wire) -> None:
    await wire.create_topic("compacted", partitions=3, cleanup_policy="compact")
    answer = await wire.call("Produce", 9, produce_request("compacted", KEYED, KEYED, KEYED))
    assert [one.error_code for one in answer.responses[0].partition_responses] == [0, 0, 0]


async def test_others_are_served_while_large_batches_are_checked(node: Node) -> None:
    async with (
        await Wire.connect(node.bootstrap_servers) as first,
        await Wire.connect(node.bootstrap_servers) as second,
        await Wire.connect(node.bootstrap_servers) as other,
    ):
        await first.create_topic("compacted", cleanup_policy="compact")
        await first.create_topic("t")
        bomb = bomb_of_headers(2_000_000)
        for wire in (first, second):
            wire.send("Produce", 9, produce_request("compacted", bomb))
        walks = node.running.broker.record_walks
        await eventually(lambda: walks.is_treating, "a check")
        assert (await other.call("ApiVersions", 0, ApiVersionsRequest())).error_code == 0
        assert (await other.produce("t", batch(b"quick"))).error_code == 0
        assert (await other.produce("compacted", batch(b"quick", key=b"k"))).base_offset == 0
        assert walks.is_treating, "all of that before the check was over"
        for wire in (first, second):
            assert (await wire.receive()).responses[0].partition_responses[0].error_code == 0


async def test_a_client_that_goes_away_during_a_check_holds_nobody_up(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as stays:
        await stays.create_topic("compacted", cleanup_policy="compact")
        for _ in range(3):
            async with await Wire.connect(node.bootstrap_servers) as gone:
                gone.send("Produce", 9, produce_request("compacted", bomb_of_headers(500_000)))
                await eventually(lambda: node.running.broker.record_walks.is_treating, "a check")
                gone.writer.transport.abort()
        assert (await stays.produce("compacted", KEYED)).error_code == 0


async def test_a_megabyte_of_empty_gzip_members_is_refused_at_once(wire: Wire) -> None:
    deflate = zlib.compressobj(wbits=31)
    empty = deflate.compress(b"") + deflate.flush()
    bomb = with_records(empty * (1_000_000 // len(empty)), 1, Codec.GZIP)
    await wire.create_topic("compacted", cleanup_policy="compact")
    assert (await wire.produce("compacted", bomb)).error_code == 2


async def test_large_batches_are_compressed_anew_while_others_go_on(wire: Wire) -> None:
    await wire.create_topic("t", compression_type="zstd", max_message_bytes="4000000")
    large = batch(*[b"x" * 100] * 3000)
    assert len(large) > AT_ONCE_BYTES
    holes = build_batch([Record(value=b"x", offset=offset) for offset in (0, 2)], keep_offsets=True)
    bomb = batch(bytes(record_walks.MAX_INFLATED_BYTES + 1), codec=Codec.GZIP)
    for records in (large, batch(b"small"), bomb, holes, large[:-1] + b"?", batch(b"last", codec=Codec.ZSTD)):
        wire.send("Produce", 9, produce_request("t", records))
    answers = [(await wire.receive()).responses[0].partition_responses[0] for _ in range(6)]
    assert [(answer.error_code, answer.base_offset) for answer in answers] == [
        (0, 0),
        (0, 3000),
        (10, -1),
        (87, -1),
        (2, -1),
        (0, 3001),
    ]
    stored = bytes((await wire.fetch("t")).records)
    assert len(stored) < len(large) // 10
    assert await wire.fetch_values("t", 3000) == [b"small", b"last"]
