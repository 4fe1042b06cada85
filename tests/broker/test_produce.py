"""Produce: what is accepted, what is refused with which error, and idempotence (I11)."""

from __future__ import annotations

import asyncio
import time

import pytest

from broker.node import Node
from broker.record_walks import MAX_INFLATED_BYTES
from protocol.compression import Codec
from protocol.errors import ErrorCode
from protocol.messages.init_producer_id import InitProducerIdRequest
from protocol.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from protocol.record_set import Record, build_batch
from protocol.records import parse_batch_header
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, fetch_request, produce_request, records_in


@pytest.mark.parametrize("version", range(3, 12))
async def test_every_version_appends(wire: Wire, version: int) -> None:
    await wire.create_topic("t")
    answer = await wire.produce("t", batch(b"one", b"two"), version=version)
    assert (answer.error_code, answer.base_offset, answer.log_append_time_ms) == (0, 0, -1)
    assert (await wire.produce("t", batch(b"three"), version=version, acks=1)).base_offset == 2
    assert await wire.fetch_values("t") == [b"one", b"two", b"three"]


async def test_batches_are_stored_as_sent(wire: Wire) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"zero"))
    sent = batch(b"x" * 100, codec=Codec.LZ4)
    await wire.produce("t", sent)
    stored = bytes((await wire.fetch("t", 1)).records)
    # Only base offset and leader epoch, both outside the CRC, are the broker's.
    assert stored[16:] == sent[16:]
    header = parse_batch_header(stored)
    assert (header.base_offset, header.partition_leader_epoch) == (1, 0)


async def test_acks_0_gets_no_response(wire: Wire) -> None:
    await wire.create_topic("t")
    wire.send("Produce", 9, produce_request("t", batch(b"quiet"), acks=0), expect_response=False)
    assert (await wire.produce("t", batch(b"loud"))).base_offset == 1
    assert await wire.fetch_values("t") == [b"quiet", b"loud"]


async def test_acks_0_with_an_error_closes_the_connection(wire: Wire) -> None:
    wire.send("Produce", 9, produce_request("missing", batch(b"x"), acks=0), expect_response=False)
    assert await wire.closed_by_broker()


async def test_other_acks_are_refused(wire: Wire) -> None:
    await wire.create_topic("t")
    assert (await wire.produce("t", batch(b"x"), acks=2)).error_code == 21


async def test_partitions_succeed_and_fail_on_their_own(wire: Wire) -> None:
    await wire.create_topic("t", partitions=2)
    request = produce_request("t", batch(b"a"), b"not a batch", batch(b"c"))
    (answer,) = (await wire.call("Produce", 9, request)).responses
    assert [one.error_code for one in answer.partition_responses] == [0, 2, 3]
    assert answer.partition_responses[0].base_offset == 0


def _with(records: bytes, position: int, value: bytes) -> bytes:
    return records[:position] + value + records[position + len(value) :]


GOOD = batch(b"value", b"other")


@pytest.mark.parametrize(
    ("records", "code"),
    [
        (b"", 87),
        (GOOD + GOOD, 87),
        (GOOD[:40], 2),
        (GOOD[:-1], 2),
        (_with(GOOD, 16, b"\x01"), 87),
        (_with(GOOD, len(GOOD) - 1, b"\xff"), 2),
        (_with(GOOD, 57, b"\x00\x00\x00\x03"), 87),
        (batch(b"x", control=True), 87),
        (batch(b"x", producer_id=7, producer_epoch=0, base_sequence=-1), 87),
        (batch(b"x", transactional=True, producer_id=7, producer_epoch=0, base_sequence=0), 48),
        (batch(bytes(1_100_000)), 10),
    ],
    ids=[
        "no batch",
        "two batches",
        "no header",
        "cut short",
        "magic 1",
        "wrong CRC",
        "wrong count",
        "control batch",
        "no sequence",
        "transaction",
        "too large",
    ],
)
async def test_batches_that_kafka_refuses(wire: Wire, records: bytes, code: int) -> None:
    await wire.create_topic("t")
    answer = await wire.produce("t", records)
    assert (answer.error_code, answer.base_offset) == (code, -1)
    # Nothing of it was appended, and the partition goes on.
    assert (await wire.produce("t", GOOD)).base_offset == 0


async def test_zstd_needs_version_7(wire: Wire) -> None:
    await wire.create_topic("t")
    records = batch(b"x" * 100, codec=Codec.ZSTD)
    assert (await wire.produce("t", records, version=6)).error_code == 76
    assert (await wire.produce("t", records, version=7)).error_code == 0


async def test_null_records_are_no_batch(wire: Wire) -> None:
    await wire.create_topic("t")
    request = ProduceRequest(
        acks=1, topic_data=[TopicProduceData(name="t", partition_data=[PartitionProduceData(index=0, records=None)])]
    )
    response = await wire.call("Produce", 9, request)
    assert response.responses[0].partition_responses[0].error_code == 87


async def test_transactional_requests_are_refused_for_good(wire: Wire) -> None:
    # 53 is final for every client; a retriable error would make them hang until their time-out.
    request = InitProducerIdRequest(transactional_id="tx", transaction_timeout_ms=1000)
    assert (await wire.call("InitProducerId", 4, request)).error_code == 53


async def test_log_append_time(wire: Wire) -> None:
    await wire.create_topic("t", message_timestamp_type="LogAppendTime")
    before = time.time_ns() // 1_000_000
    answer = await wire.produce("t", batch(b"x", timestamp_ms=5))
    assert before <= answer.log_append_time_ms <= before + 60_000
    data = await wire.fetch("t")
    header = parse_batch_header(data.records)
    assert header.is_log_append_time
    # The CRC was renewed: a client that checks it reads the record with the broker's time.
    assert [record.timestamp_ms for record in records_in(data)] == [answer.log_append_time_ms]


async def test_timestamps_out_of_bounds(wire: Wire) -> None:
    await wire.create_topic("t", message_timestamp_before_max_ms="1000", message_timestamp_after_max_ms="1000")
    now = time.time_ns() // 1_000_000
    assert (await wire.produce("t", batch(b"x", timestamp_ms=now))).error_code == 0
    assert (await wire.produce("t", batch(b"x", timestamp_ms=now - 60_000))).error_code == 32
    assert (await wire.produce("t", batch(b"x", timestamp_ms=now + 60_000))).error_code == 32
    assert (await wire.produce("t", batch(b"x", timestamp_ms=-1))).error_code == 0


@pytest.mark.parametrize("codec", list(Codec))
async def test_compacted_topics_need_keys(wire: Wire, codec: Codec) -> None:
    await wire.create_topic("t", cleanup_policy="compact")
    with_keys = [Record(key=b"k", value=b"v"), Record(key=b"k", value=None)]
    assert (await wire.produce("t", build_batch(with_keys, codec=codec))).error_code == 0
    without = [*with_keys, Record(key=None, value=b"v")]
    assert (await wire.produce("t", build_batch(without, codec=codec))).error_code == 87


# ---- idempotence -----------------------------------------------------------------------------------------------


async def producer_id(wire: Wire) -> int:
    response = await wire.call("InitProducerId", 4, InitProducerIdRequest(transactional_id=None))
    assert (response.error_code, response.producer_epoch) == (0, 0)
    found: int = response.producer_id
    return found


def numbered(pid: int, sequence: int, *values: bytes, epoch: int = 0) -> bytes:
    return batch(*values, producer_id=pid, producer_epoch=epoch, base_sequence=sequence)


async def test_producer_ids_are_unique(wire: Wire, node: Node) -> None:
    async with await Wire.connect(node.bootstrap_servers) as other:
        ids = [await producer_id(one) for one in (wire, other) for _ in range(600)]
    assert len(set(ids)) == 1200


async def test_duplicates_return_the_original_offset(wire: Wire) -> None:
    await wire.create_topic("t")
    pid = await producer_id(wire)
    for sequence in range(6):
        assert (await wire.produce("t", numbered(pid, sequence, b"%d" % sequence))).base_offset == sequence
    # KIP-98: the last five batches are known …
    for sequence in range(1, 6):
        answer = await wire.produce("t", numbered(pid, sequence, b"%d" % sequence))
        assert (answer.error_code, answer.base_offset) == (0, sequence)
    # … and what is older cannot be told from a gap.
    assert (await wire.produce("t", numbered(pid, 0, b"0"))).error_code == 45
    assert await wire.fetch_values("t") == [b"%d" % n for n in range(6)]


async def test_gaps_and_old_epochs_are_refused(wire: Wire) -> None:
    await wire.create_topic("t")
    pid = await producer_id(wire)
    await wire.produce("t", numbered(pid, 0, b"a", b"b"))
    assert (await wire.produce("t", numbered(pid, 3, b"x"))).error_code == 45
    # A new epoch starts at 0 and fences the old one: 47 on Produce, which every client knows, not 90.
    assert (await wire.produce("t", numbered(pid, 2, b"x", epoch=1))).error_code == 45
    assert (await wire.produce("t", numbered(pid, 0, b"c", epoch=1))).base_offset == 2
    assert (await wire.produce("t", numbered(pid, 2, b"x"))).error_code == 47


async def test_sequences_wrap(wire: Wire, node: Node) -> None:
    await wire.create_topic("t")
    pid = await producer_id(wire)
    for partition in node.running.broker.partitions:
        partition.producers.complete = False  # so that a producer may begin anywhere
    top = 2**31 - 1
    assert (await wire.produce("t", numbered(pid, top, b"a", b"b"))).base_offset == 0  # takes 2^31 - 1 and 0
    assert (await wire.produce("t", numbered(pid, 1, b"c"))).base_offset == 2
    assert (await wire.produce("t", numbered(pid, top, b"a", b"b"))).base_offset == 0


async def test_a_batch_is_not_taken_before_the_one_that_a_new_producer_has_to_send_again(
    wire: Wire, node: Node
) -> None:
    """Its partition was not open here when the first came, and was when the second did."""
    await wire.create_topic("t")
    pid = await producer_id(wire)
    (partition,) = node.running.broker.partitions
    partition.loaded = False
    assert (await wire.produce("t", numbered(pid, 0, b"a"))).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
    partition.loaded = True
    async with await Wire.connect(node.bootstrap_servers) as other:  # on the same one it is told of the cause
        refused = await other.produce("t", numbered(pid, 1, b"b"))
    assert refused.error_code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert (await wire.produce("t", numbered(pid, 0, b"a"))).base_offset == 0
    assert (await wire.produce("t", numbered(pid, 1, b"b"))).base_offset == 1


async def test_pipelined_retries_wait_for_their_original(wire: Wire, node: Node) -> None:
    await wire.create_topic("t")
    pid = await producer_id(wire)
    async with await Wire.connect(node.bootstrap_servers) as second:
        for _ in range(3):  # in one go: the duplicates come before the original is durable
            wire.send("Produce", 9, produce_request("t", numbered(pid, 0, b"a")))
            second.send("Produce", 9, produce_request("t", numbered(pid, 0, b"a")))
        answers = [await one.receive() for one in (wire, second) for _ in range(3)]
    partitions = [answer.responses[0].partition_responses[0] for answer in answers]
    assert [(one.error_code, one.base_offset) for one in partitions] == [(0, 0)] * 6
    assert await wire.fetch_values("t") == [b"a"]


async def test_idle_producers_are_forgotten(start_node: StartNode) -> None:
    async with (
        start_node(producer_id_expiration_ms=100) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        await wire.produce("t", numbered(1, 0, b"a"))
        partition = node.running.broker.topics.by_name["t"].partitions[0]
        assert partition is not None
        await eventually(lambda: not len(partition.producers), "the expiry")
        # KIP-360: an unknown producer may go on wherever it was.
        assert (await wire.produce("t", numbered(1, 7, b"b"))).base_offset == 1


async def test_one_request_with_batches_for_many_partitions(wire: Wire) -> None:
    await wire.create_topic("t", partitions=50)
    request = produce_request("t", *(batch(b"%d" % n) for n in range(50)))
    (answer,) = (await wire.call("Produce", 9, request)).responses
    assert [(one.index, one.error_code, one.base_offset) for one in answer.partition_responses] == [
        (n, 0, 0) for n in range(50)
    ]
    assert await wire.fetch_values("t", partition=49) == [b"49"]


async def test_acknowledged_records_are_readable_at_once(wire: Wire, node: Node) -> None:
    # The acknowledgement follows the high watermark (I1): a fetch on another connection must see the record.
    await wire.create_topic("t")
    async with await Wire.connect(node.bootstrap_servers) as reader:
        for n in range(50):
            await wire.produce("t", batch(b"%d" % n))
            assert await reader.fetch_values("t", n) == [b"%d" % n]


async def test_a_waiting_fetch_is_woken_by_an_append(wire: Wire, node: Node) -> None:
    await wire.create_topic("t")
    async with await Wire.connect(node.bootstrap_servers) as reader:
        reader.send("Fetch", 12, fetch_request("t", 0, max_wait_ms=30_000))
        waiting = asyncio.create_task(reader.receive())
        await wire.produce("t", batch(b"x"))
        response = await asyncio.wait_for(waiting, 10)  # far less than the fetch would wait
        assert [record.value for record in records_in(response.responses[0].partitions[0])] == [b"x"]


async def test_a_batch_that_inflates_beyond_reason_is_refused_where_it_has_to_be_looked_into(wire: Wire) -> None:
    bomb = batch(bytes(MAX_INFLATED_BYTES + 1), key=b"k", codec=Codec.ZSTD)
    assert len(bomb) < 100_000
    await wire.create_topic("t")
    await wire.create_topic("compacted", cleanup_policy="compact")
    assert (await wire.produce("t", bomb)).error_code == 0  # nobody looks into it
    assert (await wire.produce("compacted", bomb)).error_code == 10
    # A look-up by time answers with the start of the batch, from which a consumer misses nothing.
    assert (await wire.list_offset("t", 5)).offset == 0


async def test_a_request_with_very_many_topics_does_not_stop_the_broker(start_node: StartNode) -> None:
    # With a search among those before it for each, this would take hours.
    topics = [
        TopicProduceData(name=f"t{n}", partition_data=[PartitionProduceData(index=0, records=b"")])
        for n in range(50_000)
    ]
    async with start_node(memory_bytes=1 << 30) as node, await Wire.connect(node.bootstrap_servers) as wire:
        answer = await wire.call("Produce", 9, ProduceRequest(acks=1, timeout_ms=1000, topic_data=topics))
    assert [one.name for one in answer.responses] == [one.name for one in topics]
    assert {one.partition_responses[0].error_code for one in answer.responses} == {3}


@pytest.mark.parametrize("sent", Codec)
@pytest.mark.parametrize("wanted", ["uncompressed", "gzip", "snappy", "lz4", "zstd"])
async def test_a_topic_compresses_anew_what_comes_in_another_codec(wire: Wire, sent: Codec, wanted: str) -> None:
    await wire.create_topic("t", compression_type=wanted)
    codec = Codec.NONE if wanted == "uncompressed" else Codec[wanted.upper()]
    records = batch(b"x" * 500, b"y", codec=sent)
    assert (await wire.produce("t", batch(b"before"))).base_offset == 0
    assert (await wire.produce("t", records)).base_offset == 1
    stored = await wire.fetch("t", 1)
    assert [(record.offset, record.value) for record in records_in(stored)] == [(1, b"x" * 500), (2, b"y")]
    assert parse_batch_header(stored.records).codec == codec
    if sent is codec:
        assert bytes(stored.records)[16:] == records[16:], "as sent"


async def test_what_was_compressed_anew_is_checked_like_everything_else(wire: Wire) -> None:
    await wire.create_topic("t", compression_type="uncompressed", max_message_bytes="1000")
    small = batch(b"x" * 5000, codec=Codec.ZSTD)
    assert len(small) < 1000
    assert (await wire.produce("t", small)).error_code == 10, "too large in the topic's codec"
    damaged = bytearray(batch(b"x" * 100, codec=Codec.ZSTD))
    damaged[-1] ^= 1
    assert (await wire.produce("t", bytes(damaged))).error_code == 2
    await wire.create_topic("u", compression_type="gzip")
    pid = await producer_id(wire)
    for _ in range(2):  # a duplicate is one, whatever it was made into
        assert (await wire.produce("u", numbered(pid, 0, b"once"))).base_offset == 0
    assert await wire.fetch_values("u") == [b"once"]


async def test_log_append_time_of_a_batch_that_was_compressed_anew(wire: Wire) -> None:
    await wire.create_topic("t", compression_type="lz4", message_timestamp_type="LogAppendTime")
    answer = await wire.produce("t", batch(b"x" * 100, timestamp_ms=1))
    (record,) = records_in(await wire.fetch("t"))
    assert (record.value, record.timestamp_ms) == (b"x" * 100, answer.log_append_time_ms)
