"""Topics: Metadata, CreateTopics, DeleteTopics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.node import Node
from protocol.messages.create_topics import (
    CreatableReplicaAssignment,
    CreatableTopic,
    CreatableTopicConfig,
    CreateTopicsRequest,
)
from protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse, MetadataResponseTopic
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, fetch_request, only_partition


async def create(wire: Wire, *topics: CreatableTopic, version: int = 7, validate_only: bool = False) -> list[Any]:
    request = CreateTopicsRequest(topics=list(topics), timeout_ms=10_000, validate_only=validate_only)
    results: list[Any] = (await wire.call("CreateTopics", version, request)).topics
    return results


def topic(name: str, partitions: int = 1, replication_factor: int = 1, **fields: Any) -> CreatableTopic:
    return CreatableTopic(name=name, num_partitions=partitions, replication_factor=replication_factor, **fields)


async def metadata(wire: Wire, *names: str, version: int = 12, create_missing: bool = False) -> MetadataResponse:
    request = MetadataRequest(
        topics=[MetadataRequestTopic(name=name) for name in names], allow_auto_topic_creation=create_missing
    )
    response: MetadataResponse = await wire.call("Metadata", version, request)
    return response


async def one_topic(wire: Wire, name: str, **options: Any) -> MetadataResponseTopic:
    (found,) = (await metadata(wire, name, **options)).topics
    return found


@pytest.mark.parametrize("version", range(14))
async def test_every_metadata_version(wire: Wire, node: Node, version: int) -> None:
    topic_id = await wire.create_topic("t", partitions=2)
    response = await metadata(wire, "t", version=version)
    (broker,) = response.brokers
    assert (broker.node_id, f"{broker.host}:{broker.port}") == (1, node.bootstrap_servers)
    (found,) = response.topics
    assert (found.error_code, found.name, [one.leader_id for one in found.partitions]) == (0, "t", [1, 1])
    assert list(found.partitions[1].replica_nodes) == list(found.partitions[1].isr_nodes) == [1]
    if version >= 1:
        assert response.controller_id == 1
    if version >= 10:
        assert found.topic_id == topic_id


async def test_all_topics_or_none(wire: Wire) -> None:
    for name in ("a", "b"):
        await wire.create_topic(name)
    everything = await wire.call("Metadata", 12, MetadataRequest(topics=None))
    assert sorted(found.name for found in everything.topics) == ["a", "b"]
    assert (await metadata(wire)).topics == []
    # Version 0 has no null: an empty list means all.
    assert len((await metadata(wire, version=0)).topics) == 2


async def test_metadata_by_id(wire: Wire) -> None:
    topic_id = await wire.create_topic("t")
    request = MetadataRequest(
        topics=[
            MetadataRequestTopic(name=None, topic_id=topic_id),
            MetadataRequestTopic(name=None, topic_id=bytes(15) + b"x"),
        ]
    )
    known, unknown = (await wire.call("Metadata", 12, request)).topics
    assert (known.error_code, known.name) == (0, "t")
    assert (unknown.error_code, unknown.name) == (100, None)


async def test_a_missing_topic_is_created_when_both_sides_allow_it(wire: Wire) -> None:
    assert (await one_topic(wire, "auto", create_missing=False)).error_code == 3
    made = await one_topic(wire, "auto", create_missing=True)
    assert (made.error_code, len(made.partitions), made.partitions[0].leader_id) == (0, 1, 1)
    assert (await wire.produce("auto", batch(b"x"))).base_offset == 0
    assert (await one_topic(wire, "bad name", create_missing=True)).error_code == 17


async def test_one_request_creates_so_many_topics_at_once_and_none_that_collide(start_node: StartNode) -> None:
    async with (
        start_node(num_partitions=2, max_partitions_per_request=10) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        names = [f"t{n}" for n in range(7)]
        found = await metadata(wire, *names, create_missing=True)
        assert [one.error_code for one in found.topics] == [0] * 5 + [3] * 2
        found = await metadata(wire, *names, create_missing=True)  # as clients do
        assert [one.error_code for one in found.topics] == [0] * 7
        found = await metadata(wire, "a.b", "a_b", create_missing=True)
        assert [one.error_code for one in found.topics] == [0, 17]


async def test_auto_creation_can_be_turned_off(start_node: StartNode) -> None:
    async with (
        start_node(auto_create_topics_enable=False) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        assert (await one_topic(wire, "auto", create_missing=True)).error_code == 3


async def test_kept_answers_do_not_outlive_changes(wire: Wire) -> None:
    for _ in range(2):
        assert (await one_topic(wire, "t")).error_code == 3
    await wire.create_topic("t")
    for _ in range(2):
        assert (await one_topic(wire, "t")).error_code == 0


async def test_authorized_operations_are_told_on_request_only(wire: Wire) -> None:
    await wire.create_topic("t")
    assert (await one_topic(wire, "t")).topic_authorized_operations == -(2**31)
    request = MetadataRequest(topics=None, include_topic_authorized_operations=True)
    (found,) = (await wire.call("Metadata", 12, request)).topics
    assert found.topic_authorized_operations == 3576


# ---- CreateTopics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(2, 8))
async def test_every_create_version(wire: Wire, version: int) -> None:
    (made,) = await create(wire, topic("t", 3, 5), version=version)
    assert (made.error_code, made.name) == (0, "t")
    if version >= 5:
        assert (made.num_partitions, made.replication_factor) == (3, 5)  # any replication factor, on one node
    assert len((await one_topic(wire, "t")).partitions) == 3
    for partition in range(3):  # open when the answer comes
        assert (await wire.produce("t", batch(b"x"), partition=partition)).error_code == 0


async def test_defaults(start_node: StartNode) -> None:
    async with start_node(num_partitions=4) as node, await Wire.connect(node.bootstrap_servers) as wire:
        (made,) = await create(wire, topic("t", -1, -1))
        assert (made.error_code, made.num_partitions, made.replication_factor) == (0, 4, 1)


async def test_the_answer_tells_what_the_topic_goes_by(start_node: StartNode) -> None:
    overridden = [
        CreatableTopicConfig(name="retention.ms", value="60000"),
        CreatableTopicConfig(name="segment.bytes", value="1000000"),
    ]
    async with start_node(message_max_bytes=5000) as node, await Wire.connect(node.bootstrap_servers) as wire:
        (made,) = await create(wire, topic("t", configs=overridden))
        (older,) = await create(wire, topic("u", configs=overridden), version=4)
    told = {config.name: (config.value, config.config_source) for config in made.configs}
    assert told["retention.ms"] == ("60000", 1)  # of the topic
    assert told["segment.bytes"] == ("1000000", 1)  # kept and told, though it means nothing here
    assert told["max.message.bytes"] == ("5000", 4)  # of the broker's settings
    assert told["cleanup.policy"] == ("delete", 5)  # built in
    assert sorted(told) == [config.name for config in made.configs]
    assert not older.configs


async def test_each_topic_succeeds_or_fails_on_its_own(wire: Wire) -> None:
    await wire.create_topic("exists")
    bad_config = [CreatableTopicConfig(name="retention.ms", value="soon")]
    null_config = [CreatableTopicConfig(name="retention.ms", value=None)]
    results = await create(
        wire,
        topic("good"),
        topic("exists"),
        topic("bad name"),
        topic("no.partitions", 0),
        topic("no.replicas", 1, 0),
        topic("config", configs=bad_config),
        topic("null", configs=null_config),
        topic("twice"),
        topic("twice"),
        topic("huge", 10_001),
        topic("exi.sts"),
        topic("exi_sts"),
    )
    assert {result.name: result.error_code for result in results} == {
        "good": 0,
        "exists": 36,
        "bad name": 17,
        "no.partitions": 37,
        "no.replicas": 38,
        "config": 40,
        "null": 40,
        "twice": 42,
        "huge": 44,
        "exi.sts": 0,
        "exi_sts": 17,
    }


async def test_names_that_differ_in_dots_only(wire: Wire) -> None:
    await wire.create_topic("a.b")
    (made,) = await create(wire, topic("a_b"))
    assert made.error_code == 17


async def test_manual_assignments(wire: Wire) -> None:
    def assigned(name: str, *assignments: tuple[int, list[int]], partitions: int = -1) -> CreatableTopic:
        return topic(
            name,
            partitions,
            -1,
            assignments=[CreatableReplicaAssignment(partition_index=at, broker_ids=ids) for at, ids in assignments],
        )

    results = await create(
        wire,
        assigned("good", (0, [1]), (1, [1])),
        assigned("gap", (0, [1]), (2, [1])),
        assigned("stranger", (0, [7])),
        assigned("repeated", (0, [1, 1])),
        assigned("both", (0, [1]), partitions=1),
    )
    assert [result.error_code for result in results] == [0, 39, 39, 39, 42]
    assert results[0].num_partitions == 2


async def test_validate_only_creates_nothing(wire: Wire) -> None:
    results = await create(wire, topic("t", 2), topic("bad name"), validate_only=True)
    assert [(result.error_code, result.num_partitions) for result in results] == [(0, 2), (17, -1)]
    assert (await one_topic(wire, "t")).error_code == 3


async def test_the_topic_remembers_its_config(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", max_message_bytes="200")
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert (await wire.produce("t", batch(bytes(300)))).error_code == 10


# ---- DeleteTopics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, 7))
async def test_every_delete_version(wire: Wire, version: int) -> None:
    await wire.create_topic("t")
    request = (
        DeleteTopicsRequest(topics=[DeleteTopicState(name="t")], timeout_ms=10_000)
        if version >= 6
        else DeleteTopicsRequest(topic_names=["t"], timeout_ms=10_000)
    )
    (deleted,) = (await wire.call("DeleteTopics", version, request)).responses
    assert (deleted.error_code, deleted.name) == (0, "t")
    assert (await one_topic(wire, "t")).error_code == 3
    assert (await wire.produce("t", batch(b"x"))).error_code == 3


async def test_delete_and_create_again(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        ids = set()
        for generation in range(3):
            topic_id = await wire.create_topic("t")
            ids.add(topic_id)
            assert await wire.fetch_values("t") == [], "nothing of the former topic shows through"
            answer = await wire.produce("t", batch(b"generation %d" % generation))
            assert answer.base_offset == 0
            if generation < 2:
                request = DeleteTopicsRequest(topics=[DeleteTopicState(topic_id=topic_id)], timeout_ms=10_000)
                (deleted,) = (await wire.call("DeleteTopics", 6, request)).responses
                assert (deleted.error_code, deleted.name, deleted.topic_id) == (0, "t", topic_id)
        assert len(ids) == 3
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await wire.fetch_values("t") == [b"generation 2"]


async def test_readers_of_a_topic_that_is_created_again(wire: Wire, node: Node) -> None:
    former_id = await wire.create_topic("t")
    for n in range(3):
        await wire.produce("t", batch(b"former %d" % n))
    async with (
        await Wire.connect(node.bootstrap_servers) as by_name,
        await Wire.connect(node.bootstrap_servers) as by_id,
    ):
        by_name.send("Fetch", 12, fetch_request("t", 3, max_wait_ms=60_000))
        by_id.send("Fetch", 13, fetch_request(former_id, 3, max_wait_ms=60_000))
        await eventually(lambda: node.running.server.metrics.fetches_delayed == 2, "two that wait")
        await wire.call("DeleteTopics", 6, DeleteTopicsRequest(topics=[DeleteTopicState(name="t")], timeout_ms=10_000))
        new_id = await wire.create_topic("t")
        # Both hear of it at once, with an error that makes them ask who leads, rather than of what is there now.
        assert only_partition(await by_name.receive()).error_code == 6
        assert only_partition(await by_id.receive()).error_code == 6
        await wire.produce("t", batch(b"new"))
        # By name the place is out of range, and the consumer begins anew. By id the former topic stays unknown.
        assert only_partition(await by_name.call("Fetch", 12, fetch_request("t", 3))).error_code == 1
        assert await by_name.fetch_values("t", 0) == [b"new"]
        assert only_partition(await by_id.call("Fetch", 13, fetch_request(former_id, 3))).error_code == 100
        assert only_partition(await by_id.call("Fetch", 13, fetch_request(new_id, 0))).high_watermark == 1


async def test_what_a_deleted_topic_holds_is_deleted_too(start_node: StartNode, tmp_path: Path) -> None:
    def objects() -> int:
        return sum(1 for path in (tmp_path / "objects" / "data").rglob("*") if path.is_file())

    async with (
        asyncio.timeout(30),
        start_node(log_segment_delete_delay_ms=50, metadata_restore_window_ms=0, upload_interval_ms=50) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        topic_id = await wire.create_topic("t")
        await wire.produce("t", batch(b"x" * 1000))
        while not objects():
            await asyncio.sleep(0.02)
        request = DeleteTopicsRequest(topics=[DeleteTopicState(topic_id=topic_id)], timeout_ms=10_000)
        await wire.call("DeleteTopics", 6, request)
        while objects():
            await asyncio.sleep(0.02)


async def test_delete_errors(wire: Wire) -> None:
    topic_id = await wire.create_topic("t")
    request = DeleteTopicsRequest(
        topics=[
            DeleteTopicState(name="missing"),
            DeleteTopicState(topic_id=bytes(15) + b"x"),
            DeleteTopicState(name="t"),
            DeleteTopicState(topic_id=topic_id),
            DeleteTopicState(),
            DeleteTopicState(name="t", topic_id=topic_id),
        ],
        timeout_ms=10_000,
    )
    response = await wire.call("DeleteTopics", 6, request)
    assert [one.error_code for one in response.responses] == [3, 100, 0, 42, 42, 42]


async def test_deletion_can_be_turned_off(start_node: StartNode) -> None:
    async with start_node(delete_topic_enable=False) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        request = DeleteTopicsRequest(topics=[DeleteTopicState(name="t")], timeout_ms=10_000)
        assert (await wire.call("DeleteTopics", 6, request)).responses[0].error_code == 73
        assert (await one_topic(wire, "t")).error_code == 0
