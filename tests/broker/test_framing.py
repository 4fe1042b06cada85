"""Connections: what happens to bytes that are no proper request, and to the order of answers."""

from __future__ import annotations

import asyncio
import struct

import pytest

from broker.connection import MAX_OTHER_REQUEST_BYTES
from broker.node import Node
from protocol.apis import encode_request
from protocol.messages.api_versions import ApiVersionsRequest
from protocol.messages.metadata import MetadataRequest
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, fetch_request, produce_request


async def test_api_versions_lists_what_is_served(wire: Wire) -> None:
    request = ApiVersionsRequest(client_software_name="test", client_software_version="1.0")
    response = await wire.call("ApiVersions", 4, request)
    served = {one.api_key: (one.min_version, one.max_version) for one in response.api_keys}
    # KAFKA-18659: librdkafka before 2.8.1 sends uncompressed unless Produce begins at 0.
    assert served[0] == (0, 11)
    assert served[1] == (4, 18)
    assert served[3] == (0, 13)
    assert served[18] == (0, 4)
    # librdkafka sends what its user wanted in lz4 uncompressed to a broker without FindCoordinator.
    assert served[10] == (0, 6)
    groups = {8: (2, 10), 9: (1, 10), 11: (0, 9), 12: (0, 4), 13: (0, 5), 14: (0, 5)}
    assert groups.items() <= served.items()
    assert {15: (0, 6), 16: (0, 5), 42: (0, 2), 47: (0, 0)}.items() <= served.items()
    assert 68 not in served, "ConsumerGroupHeartbeat must not be advertised before it is served"


async def test_unknown_api_versions_version_is_answered_in_v0(wire: Wire) -> None:
    # KIP-511: the broker cannot parse the body, whatever it holds, and answers so that any client can read it.
    frame = struct.pack(">hhih", 18, 99, 7, 4) + b"test" + b"\x00" + b"what is this"
    wire.writer.write(struct.pack(">i", len(frame)) + frame)
    answer = await wire.receive_frame()
    assert answer == struct.pack(">ihihhh", 7, 35, 1, 18, 0, 4)


async def test_software_name_must_be_plain(wire: Wire) -> None:
    request = ApiVersionsRequest(client_software_name="-bad name-", client_software_version="1.0")
    assert (await wire.call("ApiVersions", 3, request)).error_code == 42


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">hhih", 9999, 0, 1, -1),  # no such API
        struct.pack(">hhih", 3, 99, 1, -1),  # no such version of Metadata
        struct.pack(">hhih", 0, 2, 1, -1) + bytes(20),  # Produce below 3 is advertised and never served
        struct.pack(">hhih", 11, 3, 1, -1) + b"\x00\x00\x01\x02",  # JoinGroup: known, not served yet
        struct.pack(">hhih", 3, 9, 1, -1) + b"\x00\xff\xff\xff\xff\x0f",  # Metadata with a billion topics
    ],
    ids=["key", "version", "old produce", "not served", "malformed"],
)
async def test_bad_request_closes_its_connection_only(node: Node, frame: bytes) -> None:
    async with await Wire.connect(node.bootstrap_servers) as other, await Wire.connect(node.bootstrap_servers) as bad:
        bad.writer.write(struct.pack(">i", len(frame)) + frame)
        assert await bad.closed_by_broker()
        assert (await other.call("Metadata", 9, MetadataRequest(topics=None))).brokers


@pytest.mark.parametrize("size", [-1, 0, 9, 104_857_601], ids=["negative", "empty", "short", "over the limit"])
async def test_bad_size_closes_the_connection(wire: Wire, size: int) -> None:
    wire.writer.write(struct.pack(">i", size))
    assert await wire.closed_by_broker()


async def test_only_produce_may_be_large(wire: Wire) -> None:
    await wire.create_topic("t", partitions=3, max_message_bytes="4000000")
    large = produce_request("t", *[batch(bytes(3_000_000))] * 3)
    answer = await wire.call("Produce", 9, large)
    assert [one.error_code for one in answer.responses[0].partition_responses] == [0, 0, 0]
    # An array element of two bytes becomes an object of a hundred: a Metadata request of 100 MB would be gigabytes.
    # It ends as soon as its size and key are known.
    wire.writer.write(struct.pack(">ih", MAX_OTHER_REQUEST_BYTES + 1, 3))
    assert await wire.closed_by_broker()


async def test_what_was_answered_before_a_bad_request_still_arrives(wire: Wire) -> None:
    wire.send("ApiVersions", 0, ApiVersionsRequest())
    wire.writer.write(struct.pack(">i", 3))
    assert (await wire.receive()).error_code == 0
    assert await wire.closed_by_broker()


async def test_requests_byte_by_byte(wire: Wire) -> None:
    frame = b"".join(encode_request(18, 0, 5, "test", ApiVersionsRequest()))
    for at in range(len(frame)):
        wire.writer.write(frame[at : at + 1])
        await wire.writer.drain()
        await asyncio.sleep(0)
    answer = await wire.receive_frame()
    assert struct.unpack(">ih", answer[:6]) == (5, 0)


async def test_pipelined_requests_of_all_kinds_are_answered_in_order(wire: Wire) -> None:
    await wire.create_topic("t")
    for _ in range(3):
        wire.send("Produce", 9, produce_request("t", batch(b"a")))
        wire.send("Produce", 3, produce_request("t", batch(b"b")))
        wire.send("Metadata", 12, MetadataRequest(topics=None))
        wire.send("Fetch", 12, fetch_request("t", 0, max_wait_ms=50))
        wire.send("Produce", 11, produce_request("missing", batch(b"c")))
        wire.send("ApiVersions", 0, ApiVersionsRequest())
    for turn in range(3):
        offsets = [(await wire.receive()).responses[0].partition_responses[0].base_offset for _ in range(2)]
        assert offsets == [2 * turn, 2 * turn + 1]
        assert (await wire.receive()).topics
        # Fetch starts only when the produces before it are acknowledged: it sees them.
        assert (await wire.receive()).responses[0].partitions[0].high_watermark == 2 * turn + 2
        assert (await wire.receive()).responses[0].partition_responses[0].error_code == 3
        assert (await wire.receive()).error_code == 0


async def test_nothing_overtakes_a_fetch_that_waits(wire: Wire) -> None:
    await wire.create_topic("t")
    wire.send("Fetch", 12, fetch_request("t", 0, max_wait_ms=100))
    wire.send("ApiVersions", 0, ApiVersionsRequest())
    assert (await wire.receive()).responses[0].partitions[0].records == b""
    assert (await wire.receive()).error_code == 0


async def test_requests_larger_than_the_shared_buffer(wire: Wire) -> None:
    await wire.create_topic("t", max_message_bytes="4000000")
    for size in (200_000, 300_000, 3_000_000, 10, 1_000_000):
        value = bytes([size % 251]) * size
        answer = await wire.produce("t", batch(value))
        assert answer.error_code == 0
        assert await wire.fetch_values("t", answer.base_offset, partition_max_bytes=1 << 23) == [value]


async def test_connections_above_the_limit_are_closed(start_node: StartNode) -> None:
    async with (
        start_node(max_connections=2) as node,
        await Wire.connect(node.bootstrap_servers) as one,
        await Wire.connect(node.bootstrap_servers) as two,
    ):
        await one.call("ApiVersions", 0, ApiVersionsRequest())
        await two.call("ApiVersions", 0, ApiVersionsRequest())
        async with await Wire.connect(node.bootstrap_servers) as three:
            assert await three.closed_by_broker()
        assert (await two.call("ApiVersions", 0, ApiVersionsRequest())).error_code == 0
