"""The load generator's hand-made frames mean what the protocol package, written apart from it, reads in them."""

from __future__ import annotations

import struct

from bench import wire
from protocol.apis import decode_request, encode_response
from protocol.frames import parse_request_header
from protocol.messages.fetch import FetchableTopicResponse, FetchRequest, FetchResponse, PartitionData
from protocol.messages.produce import PartitionProduceResponse, ProduceRequest, ProduceResponse, TopicProduceResponse
from protocol.record_set import iter_records
from protocol.records import check_produced_header, crc_matches


def test_a_produce_request_is_valid() -> None:
    batch = wire.record_batch([b"first", b"second" * 100], timestamp_ms=1_700_000_000_000)
    frame = wire.produce_request(topic="load", partition=3, batch=batch, correlation_id=7)

    assert struct.unpack_from(">i", frame)[0] == len(frame) - 4
    header = parse_request_header(frame[4:])
    assert (header.api_key, header.api_version, header.correlation_id) == (0, wire.PRODUCE_VERSION, 7)
    request = decode_request(0, wire.PRODUCE_VERSION, memoryview(frame)[4:], header.body_position)
    assert isinstance(request, ProduceRequest)
    assert (request.transactional_id, request.acks) == (None, -1)
    [topic] = request.topic_data
    [partition] = topic.partition_data
    assert (topic.name, partition.index, bytes(partition.records or b"")) == ("load", 3, batch)

    checked = check_produced_header(batch, wire.PRODUCE_VERSION, 1 << 20)
    assert crc_matches(batch, checked.crc)
    assert [record.value for record in iter_records(batch, max_output_bytes=1 << 20)] == [b"first", b"second" * 100]


def test_the_error_code_of_a_produce_response_is_found() -> None:
    partition = PartitionProduceResponse(index=0, error_code=87, base_offset=5)
    response = ProduceResponse(responses=[TopicProduceResponse(name="load", partition_responses=[partition])])
    frame = b"".join(encode_response(0, wire.PRODUCE_VERSION, 1, response))
    assert struct.unpack_from(">h", frame, wire.produce_error_position("load")) == (87,)


def test_a_fetch_request_asks_for_the_packed_offset() -> None:
    frame = wire.fetch_request(topic="load", partition=2, max_bytes=1 << 20, correlation_id=9)
    struct.pack_into(">q", frame, wire.fetch_offset_position("load"), 4_000_000_000)

    header = parse_request_header(frame[4:])
    assert (header.api_key, header.api_version, header.correlation_id) == (1, wire.FETCH_VERSION, 9)
    request = decode_request(1, wire.FETCH_VERSION, memoryview(frame)[4:], header.body_position)
    assert isinstance(request, FetchRequest)
    assert (request.max_bytes, request.session_id, request.session_epoch) == (1 << 20, 0, -1)
    [topic] = request.topics
    [partition] = topic.partitions
    assert (topic.topic, partition.partition, partition.fetch_offset) == ("load", 2, 4_000_000_000)
    assert partition.partition_max_bytes == 1 << 20


def test_error_and_records_of_a_fetch_response_are_found() -> None:
    records = b"r" * 70_000
    partition = PartitionData(partition_index=0, error_code=1, high_watermark=9, records=[records])
    response = FetchResponse(responses=[FetchableTopicResponse(topic="load", partitions=[partition])])
    frame = b"".join(encode_response(1, wire.FETCH_VERSION, 1, response))

    layout = wire.FetchResponseLayout("load")
    assert struct.unpack_from(">h", frame, layout.error_position) == (1,)
    position, size = layout.records(memoryview(frame))
    assert (frame[position : position + size], size) == (records, 70_000)
