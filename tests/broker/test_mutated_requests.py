"""Damaged requests: they end their own connection at most, without a traceback, and harm nobody else (I14)."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
from collections.abc import Iterator

import pytest

from broker.dispatch import HANDLERS
from broker.handlers import produce
from broker.node import Node
from protocol.apis import encode_request
from protocol.messages.api_versions import ApiVersionsRequest
from protocol.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from protocol.messages.delete_groups import DeleteGroupsRequest
from protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from protocol.messages.describe_groups import DescribeGroupsRequest
from protocol.messages.find_coordinator import FindCoordinatorRequest
from protocol.messages.heartbeat import HeartbeatRequest
from protocol.messages.init_producer_id import InitProducerIdRequest
from protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from protocol.messages.leave_group import LeaveGroupRequest, MemberIdentity
from protocol.messages.list_groups import ListGroupsRequest
from protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from protocol.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from protocol.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup, OffsetFetchRequestTopic
from protocol.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from protocol.types import Message
from tests.broker.wire import Wire, batch, fetch_request, produce_request
from tests.protocol.examples import BODIES, filled

EXAMPLES: dict[str, Message] = {
    "Produce": produce_request("t", batch(b"a", b"b"), batch(b"c")),
    "Fetch": fetch_request("t", 0, max_wait_ms=1),
    "ListOffsets": ListOffsetsRequest(
        topics=[ListOffsetsTopic(name="t", partitions=[ListOffsetsPartition(partition_index=0, timestamp=500)])]
    ),
    "Metadata": MetadataRequest(topics=[MetadataRequestTopic(name="t")]),
    "ApiVersions": ApiVersionsRequest(client_software_name="a", client_software_version="1"),
    "CreateTopics": CreateTopicsRequest(
        topics=[
            CreatableTopic(
                name="new",
                num_partitions=1,
                replication_factor=1,
                configs=[CreatableTopicConfig(name="retention.ms", value="1")],
            )
        ],
        timeout_ms=1000,
        validate_only=True,
    ),
    "DeleteTopics": DeleteTopicsRequest(topics=[DeleteTopicState(name="x")], topic_names=["x"], timeout_ms=1000),
    "InitProducerId": InitProducerIdRequest(transactional_id=None),
    "FindCoordinator": FindCoordinatorRequest(key="g", coordinator_keys=["g"]),
    "JoinGroup": JoinGroupRequest(
        group_id="g",
        session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000,
        group_instance_id="i",
        protocol_type="",  # refused at once: nobody waits for the others to join
        protocols=[JoinGroupRequestProtocol(name="range", metadata=b"\0\0\0\0\0\1\0\1t\0\0\0\0")],
    ),
    "SyncGroup": SyncGroupRequest(
        group_id="g",
        generation_id=1,
        member_id="m",
        assignments=[SyncGroupRequestAssignment(member_id="m", assignment=b"x")],
    ),
    "Heartbeat": HeartbeatRequest(group_id="g", generation_id=1, member_id="m"),
    "LeaveGroup": LeaveGroupRequest(group_id="g", member_id="m", members=[MemberIdentity(group_instance_id="i")]),
    "OffsetCommit": OffsetCommitRequest(
        group_id="g",
        topics=[OffsetCommitRequestTopic(name="t", partitions=[OffsetCommitRequestPartition(committed_offset=1)])],
    ),
    "OffsetFetch": OffsetFetchRequest(
        group_id="g",
        topics=[OffsetFetchRequestTopic(name="t", partition_indexes=[0])],
        groups=[OffsetFetchRequestGroup(group_id="g", topics=None)],
    ),
    "DescribeGroups": DescribeGroupsRequest(groups=["g"]),
    "ListGroups": ListGroupsRequest(states_filter=["stable"]),
    "DeleteGroups": DeleteGroupsRequest(groups_names=["g"]),
    "OffsetDelete": OffsetDeleteRequest(
        group_id="g", topics=[OffsetDeleteRequestTopic(name="t", partitions=[OffsetDeleteRequestPartition()])]
    ),
}
"""Requests that get far before something is wrong with them. Of every other API a message with something in each field is taken."""


def examples() -> Iterator[bytes]:
    """A frame of every API in every version that the dispatcher's table has."""
    served = {produce.API_KEY: (produce.MIN_VERSION, produce.MAX_VERSION)} | {
        key: (entry.min_version, entry.max_version) for key, entry in HANDLERS.items()
    }
    for body in BODIES:
        least, most = served.get(body.api.key, (0, -1))
        if body.is_request and least <= body.version <= most:
            request = EXAMPLES.get(body.api.name) or filled(body.layout)
            yield b"".join(encode_request(body.api.key, body.version, 1, "test", request))


FRAMES = list(examples())


def damaged(rng: random.Random, frame: bytes) -> bytes:
    """The frame with something wrong in it; its size prefix is right, so that the damage reaches the decoders."""
    body = bytearray(frame[4:])
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        match rng.randrange(4):
            case 0:
                body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            case 1:
                body[rng.randrange(len(body))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                del body[rng.randrange(len(body) // 2, len(body)) :]
                body += bytes(max(10 - len(body), 0))
            case 3:
                body += rng.randbytes(rng.randrange(1, 9))
    return struct.pack(">i", len(body)) + bytes(body)


def test_every_api_is_there() -> None:
    assert {int.from_bytes(frame[4:6], "big") for frame in FRAMES} == {produce.API_KEY, *HANDLERS}


@pytest.mark.parametrize("seed", range(6))
async def test_damage_stays_in_its_connection(node: Node, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    async with await Wire.connect(node.bootstrap_servers) as other:
        await other.create_topic("t", partitions=2)
        await other.call("FindCoordinator", 6, FindCoordinatorRequest(coordinator_keys=["g"]))
        for _ in range(150):
            async with await Wire.connect(node.bootstrap_servers) as bad:
                for frame in rng.sample(FRAMES, 3):
                    bad.writer.write(damaged(rng, frame))
                # What is left unread goes with the connection: an answer, or the end.
                bad.writer.write_eof()
                await asyncio.wait_for(bad.reader.read(), 20)
        # What a damaged request may have appended passed its CRC; the rest of the partition is as it was.
        end = (await other.produce("t", batch(b"still here"))).base_offset
        assert await other.fetch_values("t", end) == [b"still here"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
