"""OffsetFetch at a broker that does not coordinate the group, or not yet: librdkafka asks again, and reads on."""

from __future__ import annotations

import asyncio

import confluent_kafka as ck
import pytest

from broker.errors import KafkaError
from broker.groups.group import Group
from broker.node import Node
from protocol.errors import ErrorCode
from protocol.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from tests.broker.wire import Wire, batch

GIVEN_UP_AFTER_S = 60.0
REFUSALS = [ErrorCode.NOT_COORDINATOR, ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, ErrorCode.COORDINATOR_NOT_AVAILABLE]


def refuse(node: Node, monkeypatch: pytest.MonkeyPatch, error_code: ErrorCode, times: int) -> list[str]:
    """Have the next questions for a group refused, as when its coordinator has just moved; returns whose were."""
    groups = node.running.broker.groups
    asked: list[str] = []
    find = groups.group

    def group(group_id: str) -> Group | None:
        if len(asked) < times:
            asked.append(group_id)
            raise KafkaError(error_code, "the coordinator has just moved")
        return find(group_id)

    monkeypatch.setattr(groups, "group", group)
    return asked


def read_one(bootstrap_servers: str) -> ck.Message | None:
    """The first record of topic t, or the first error, that a group's only member is told of."""
    consumer = ck.Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "g", "auto.offset.reset": "earliest", "log_level": 0}
    )
    consumer.subscribe(["t"])
    try:
        return consumer.poll(GIVEN_UP_AFTER_S)
    finally:
        consumer.close()


@pytest.mark.parametrize("error_code", REFUSALS)
async def test_librdkafka_asks_again_and_is_told_of_no_error(
    node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch, error_code: ErrorCode
) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"a"))
    asked = refuse(node, monkeypatch, error_code, times=2)

    message = await asyncio.to_thread(read_one, node.bootstrap_servers)

    assert message is not None, "it waits for ever"
    assert message.error() is None
    assert message.value() == b"a"
    assert asked == ["g", "g"]


@pytest.mark.parametrize("version", [7, 10])
async def test_every_partition_that_is_named_is_to_be_asked_for_again(
    node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    refuse(node, monkeypatch, ErrorCode.NOT_COORDINATOR, times=1)
    topics = [OffsetFetchRequestTopics(name="t", partition_indexes=[0, 3])]
    many = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id="g", topics=topics)])
    one = OffsetFetchRequest(group_id="g", topics=[OffsetFetchRequestTopic(name="t", partition_indexes=[0, 3])])

    answer = await wire.call("OffsetFetch", version, one if version < 8 else many)

    group = answer if version < 8 else answer.groups[0]
    assert group.error_code == ErrorCode.NOT_COORDINATOR
    assert [
        (partition.partition_index, partition.committed_offset, partition.error_code)
        for topic in group.topics
        for partition in topic.partitions
    ] == [(index, -1, ErrorCode.UNSTABLE_OFFSET_COMMIT) for index in (0, 3)]


async def test_versions_that_do_not_know_the_error_name_no_partition(
    node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(node, monkeypatch, ErrorCode.NOT_COORDINATOR, times=1)
    request = OffsetFetchRequest(group_id="g", topics=[OffsetFetchRequestTopic(name="t", partition_indexes=[0])])

    answer = await wire.call("OffsetFetch", 6, request)

    assert (answer.error_code, list(answer.topics)) == (ErrorCode.NOT_COORDINATOR, [])
