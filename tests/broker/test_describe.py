"""What administrators ask to see: cluster, topics by pages, sizes, producers, transactions, leader epochs."""

from __future__ import annotations

from typing import Any

import pytest

from broker.node import Node
from protocol.messages.describe_cluster import DescribeClusterRequest
from protocol.messages.describe_log_dirs import DescribableLogDirTopic, DescribeLogDirsRequest
from protocol.messages.describe_producers import DescribeProducersRequest, DescribeProducersTopic
from protocol.messages.describe_topic_partitions import Cursor, DescribeTopicPartitionsRequest, TopicRequest
from protocol.messages.describe_transactions import DescribeTransactionsRequest
from protocol.messages.list_config_resources import ListConfigResourcesRequest
from protocol.messages.list_transactions import ListTransactionsRequest
from protocol.messages.offset_for_leader_epoch import (
    EpochEndOffset,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_the_cluster(wire: Wire, node: Node, version: int) -> None:
    request = DescribeClusterRequest(include_cluster_authorized_operations=True)
    response = await wire.call("DescribeCluster", version, request)
    assert (response.error_code, response.controller_id) == (0, 1)
    assert response.cluster_id == node.running.broker.cluster_id
    (found,) = response.brokers
    assert (found.broker_id, f"{found.host}:{found.port}") == (1, node.bootstrap_servers)
    assert response.cluster_authorized_operations > 0


async def test_this_is_no_endpoint_of_controllers(wire: Wire) -> None:
    for endpoint_type, code in ((2, 114), (3, 115)):
        response = await wire.call("DescribeCluster", 1, DescribeClusterRequest(endpoint_type=endpoint_type))
        assert response.error_code == code


async def page(wire: Wire, *names: str, limit: int = 2000, cursor: Cursor | None = None) -> Any:
    request = DescribeTopicPartitionsRequest(
        topics=[TopicRequest(name=name) for name in names], response_partition_limit=limit, cursor=cursor
    )
    return await wire.call("DescribeTopicPartitions", 0, request)


async def test_topics_page_by_page(wire: Wire) -> None:
    for name, partitions in (("b", 3), ("a", 2), ("c", 1)):
        await wire.create_topic(name, partitions)
    seen: list[tuple[str, int]] = []
    cursor = None
    pages = 0
    while pages == 0 or cursor is not None:
        response = await page(wire, limit=2, cursor=cursor)
        seen += [(topic.name, each.partition_index) for topic in response.topics for each in topic.partitions]
        cursor = response.next_cursor
        pages += 1
    assert seen == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("c", 0)]
    assert pages == 3
    whole = await page(wire, "c", "missing", "a b")
    assert [(topic.name, topic.error_code) for topic in whole.topics] == [("a b", 17), ("c", 0), ("missing", 3)]
    (partition,) = whole.topics[1].partitions
    assert (partition.leader_id, partition.replica_nodes, partition.isr_nodes) == (1, [1], [1])
    assert (await page(wire, "c", cursor=Cursor(topic_name="c", partition_index=-1))).topics[0].error_code == 42


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
async def test_how_large_partitions_are(wire: Wire, node: Node, version: int) -> None:
    await wire.create_topic("t", 2)
    await wire.create_topic("u")
    records = batch(b"x" * 1000)
    await wire.produce("t", records, partition=1)
    partition = node.running.broker.topics.by_name["t"].partitions[1]
    assert partition is not None
    await node.running.storage.flush(partition.stream.stream_id, 1)
    await wire.produce("t", records, partition=1)

    response = await wire.call("DescribeLogDirs", version, DescribeLogDirsRequest(topics=None))
    (found,) = response.results
    assert found.log_dir == node.object_store_uri
    sizes = {
        (topic.name, each.partition_index): each.partition_size for topic in found.topics for each in topic.partitions
    }
    assert sizes == {("t", 0): 0, ("t", 1): 2 * len(records), ("u", 0): 0}
    some = DescribeLogDirsRequest(topics=[DescribableLogDirTopic(topic="t", partitions=[0, 7])])
    (found,) = (await wire.call("DescribeLogDirs", version, some)).results
    assert [(topic.name, [each.partition_index for each in topic.partitions]) for topic in found.topics] == [("t", [0])]


async def test_producers(wire: Wire, node: Node) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"x", b"y", producer_id=7, producer_epoch=1, base_sequence=0))
    request = DescribeProducersRequest(
        topics=[
            DescribeProducersTopic(name="t", partition_indexes=[0, 1]),
            DescribeProducersTopic(name="u", partition_indexes=[0]),
        ]
    )
    topics = (await wire.call("DescribeProducers", 0, request)).topics
    assert [[each.error_code for each in topic.partitions] for topic in topics] == [[0, 3], [3]]
    (found,) = topics[0].partitions[0].active_producers
    assert (found.producer_id, found.producer_epoch, found.last_sequence) == (7, 1, 1)
    assert (found.coordinator_epoch, found.current_txn_start_offset) == (-1, -1)
    assert 0 < found.last_timestamp <= node.running.broker.now_ms()


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_there_are_no_transactions(wire: Wire, version: int) -> None:
    request = ListTransactionsRequest(state_filters=["Ongoing", "Sleeping"])
    response = await wire.call("ListTransactions", version, request)
    assert (response.error_code, response.transaction_states) == (0, [])
    assert response.unknown_state_filters == ["Sleeping"]
    described = await wire.call("DescribeTransactions", 0, DescribeTransactionsRequest(transactional_ids=["t", ""]))
    assert [each.error_code for each in described.transaction_states] == [105, 42]


async def test_a_pattern_that_is_none(wire: Wire) -> None:
    request = ListTransactionsRequest(transactional_id_pattern="[")
    assert (await wire.call("ListTransactions", 2, request)).error_code == 128


async def test_what_has_configurations(wire: Wire) -> None:
    await wire.create_topic("t")
    assert (await wire.call("ListConfigResources", 0, ListConfigResourcesRequest())).config_resources == []
    for wanted, expected in (((), [(2, "t"), (4, "1"), (8, "1")]), ((2,), [(2, "t")]), ((16, 32), [])):
        response = await wire.call("ListConfigResources", 1, ListConfigResourcesRequest(resource_types=wanted))
        assert [(each.resource_type, each.resource_name) for each in response.config_resources] == expected
    response = await wire.call("ListConfigResources", 1, ListConfigResourcesRequest(resource_types=[77]))
    assert response.error_code == 35


async def end_of(
    wire: Wire, leader_epoch: int, *, version: int = 4, current: int = -1, partition: int = 0
) -> EpochEndOffset:
    wanted = OffsetForLeaderPartition(partition=partition, current_leader_epoch=current, leader_epoch=leader_epoch)
    request = OffsetForLeaderEpochRequest(topics=[OffsetForLeaderTopic(topic="t", partitions=[wanted])])
    response = await wire.call("OffsetForLeaderEpoch", version, request)
    found: EpochEndOffset = response.topics[0].partitions[0]
    return found


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_where_leader_epochs_end(start_node: StartNode, version: int) -> None:
    for count in (2, 3):  # each start is a leader epoch
        async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
            if count == 2:
                await wire.create_topic("t")
            for _ in range(count):
                await wire.produce("t", batch(b"x"))
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        for asked, leader_epoch, end_offset in ((0, 0, 2), (1, 1, 5), (2, 2, 5), (3, -1, -1), (-1, -1, -1)):
            found = await end_of(wire, asked, version=version)
            assert (found.error_code, found.leader_epoch, found.end_offset) == (0, leader_epoch, end_offset)
        assert (await end_of(wire, 0, version=version, current=1)).error_code == 74
        assert (await end_of(wire, 0, version=version, current=3)).error_code == 75
        assert (await end_of(wire, 0, version=version, partition=1)).error_code == 3
