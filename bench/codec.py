"""What the codec costs: µs of CPU per call, best of several rounds, no I/O. Run `python bench/codec.py`, alone on a quiet core."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from pathlib import Path
from sys import path
from time import process_time
from typing import Any

path.insert(0, str(Path(__file__).resolve().parent.parent))

from protocol import apis, frames, records
from protocol.compiler import compile_decoder, compile_encoder
from protocol.messages import api_versions, fetch, metadata, produce
from protocol.record_set import Record, build_batch, iter_records
from protocol.types import Message

ROUNDS = 7
SECONDS_PER_ROUND = 0.1


def measure(name: str, call: Callable[[], Any]) -> None:
    timer = timeit.Timer(call, timer=process_time)  # so that a busy neighbour distorts less
    calls = 1
    while timer.timeit(calls) < SECONDS_PER_ROUND / 10:
        calls *= 4
    calls *= 10
    best = min(timer.repeat(ROUNDS, calls)) / calls
    print(f"{name:<56} {best * 1e6:9.2f} µs")


def frame(parts: list[Any]) -> memoryview:
    """What a server sees: one frame without its size."""
    return memoryview(b"".join(parts))[4:]


def produce_request(partitions: int, batch: bytes) -> Message:
    data = [produce.PartitionProduceData(i, batch) for i in range(partitions)]
    return produce.ProduceRequest(
        None, -1, 30_000, [produce.TopicProduceData("topic-of-the-bench", partition_data=data)]
    )


def fetch_request(partitions: int) -> Message:
    wanted = [fetch.FetchPartition(i, 3, 1_000_000 + i, partition_max_bytes=1 << 20) for i in range(partitions)]
    topics = [fetch.FetchTopic("topic-of-the-bench", partitions=wanted)]
    return fetch.FetchRequest(max_wait_ms=500, min_bytes=1, session_id=7, session_epoch=4, topics=topics)


def fetch_response(partitions: int, batch: memoryview) -> Message:
    data = [fetch.PartitionData(i, 0, 1000, 1000, 0, records=batch) for i in range(partitions)]
    return fetch.FetchResponse(responses=[fetch.FetchableTopicResponse("topic-of-the-bench", partitions=data)])


def metadata_response(topics: int, partitions: int) -> Message:
    one = [metadata.MetadataResponsePartition(0, i, 1, 5, [1, 2, 3], [1, 2, 3], []) for i in range(partitions)]
    found = [metadata.MetadataResponseTopic(0, f"topic-{i}", bytes(16), False, one) for i in range(topics)]
    brokers = [metadata.MetadataResponseBroker(i, f"broker-{i}.example.org", 9092) for i in range(3)]
    return metadata.MetadataResponse(0, brokers, "cluster", 1, found)


def main() -> None:
    batch = build_batch([Record(None, bytes(16_300), 1_700_000_000_000)])
    view = memoryview(batch)
    header = records.parse_batch_header(view)

    for partitions in (1, 50):
        request = frame(apis.encode_request(0, 9, 1, "bench", produce_request(partitions, batch)))
        body = frames.parse_request_header(request).body_position
        name = f"decode Produce v9, {partitions} x {len(batch):,} bytes"
        measure(name, lambda request=request, body=body: apis.decode_request(0, 9, request, body))
        if partitions == 1:
            measure("parse request header", lambda request=request: frames.parse_request_header(request))
    request = frame(apis.encode_request(1, 12, 1, "bench", fetch_request(50)))
    body = frames.parse_request_header(request).body_position
    measure("decode Fetch v12, 50 partitions", lambda: apis.decode_request(1, 12, request, body))
    response = produce.ProduceResponse(
        [produce.TopicProduceResponse("topic-of-the-bench", partition_responses=[produce.PartitionProduceResponse(0)])]
    )
    measure("encode Produce v9 response, 1 partition", lambda: apis.encode_response(0, 9, 1, response))
    for size, label in ((len(batch), "views"), (170, "joined")):
        answer = fetch_response(50, view[:size])
        name = f"encode Fetch v12 response, 50 x {size:,} bytes, {label}"
        measure(name, lambda answer=answer: apis.encode_response(1, 12, 1, answer))
    keys = [api_versions.ApiVersion(api.key, api.min_version, api.max_version) for api in apis.API.values()] * 4
    versions = api_versions.ApiVersionsResponse(api_keys=keys)
    measure(f"encode ApiVersions v3 response, {len(keys)} keys", lambda: apis.encode_response(18, 3, 1, versions))
    cluster = metadata_response(10, 10)
    measure("encode Metadata v12 response, 10 topics x 10 partitions", lambda: apis.encode_response(3, 12, 1, cluster))

    mutable = bytearray(batch)
    small = build_batch([Record(b"key", b"value")])
    many = small * 100
    hundred = build_batch([Record(b"key", b"value of a record", 1_700_000_000_000 + i) for i in range(100)])
    measure("parse batch header", lambda: records.parse_batch_header(view))
    measure("check produced batch header", lambda: records.check_produced_header(view, 9, 1_048_588))
    measure(f"CRC of {len(batch):,} bytes", lambda: records.crc_matches(view, header.crc))
    measure("stamp base offset and leader epoch", lambda: records.stamp(mutable, header.batch_length, 12_345, 6))
    measure("stamp LogAppendTime, CRC renewed", lambda: records.stamp_log_append_time(mutable, 1_700_000_000_000))
    measure("bounds of one batch", lambda: records.batch_bounds(many, len(small)))
    measure("bounds of 100 consecutive batches", lambda: list(records.iter_bounds(many)))
    measure("read 100 records", lambda: list(iter_records(hundred, max_output_bytes=1 << 20)))
    for message, version in ((fetch.FetchRequest, 12), (fetch.FetchResponse, 12), (metadata.MetadataResponse, 12)):
        name = f"compile {message.__name__} v{version}"
        measure(f"{name}, decode", lambda m=message, v=version: compile_decoder(m, v, True))
        measure(f"{name}, encode", lambda m=message, v=version: compile_encoder(m, v, True))


if __name__ == "__main__":
    main()
