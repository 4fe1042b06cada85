"""Requests for a partition that is about to be served here wait for it; who waits too long is refused as before."""

from __future__ import annotations

import asyncio

import pytest

from broker import arrivals
from broker.node import Node
from broker.partition import Partition
from protocol.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from tests.broker.wire import Wire, batch, eventually, fetch_request, produce_request, records_in

NOT_LEADER = 6


@pytest.fixture
async def partition(node: Node, wire: Wire) -> Partition:
    """Partition 0 of the topic `t` with one record; partition 1 is there as well."""
    await wire.create_topic("t", partitions=2)
    await wire.produce("t", batch(b"first"))
    found = node.running.broker.topics.by_name["t"].partitions[0]
    assert found is not None
    return found


def take_away(node: Node, partition: Partition) -> None:
    """As while the metadata says that it is ours, and it is not open yet."""
    node.running.broker.topics.by_name["t"].partitions[0] = None


def bring(node: Node, partition: Partition) -> None:
    node.running.broker.topics.by_name["t"].partitions[0] = partition
    node.running.broker.arrivals.arrived(partition.stream.stream_id)


async def waiting(node: Node, count: int = 1) -> None:
    await eventually(lambda: node.running.broker.arrivals.waited == count, f"{count} requests that wait")


async def test_produce_waits_until_the_state_is_rebuilt(node: Node, wire: Wire, partition: Partition) -> None:
    partition.loaded = False
    async with await Wire.connect(node.bootstrap_servers) as other:
        for value in (b"second", b"third"):
            wire.send("Produce", 9, produce_request("t", batch(value)))
        await waiting(node)
        assert (await other.produce("t", batch(b"x"), partition=1)).error_code == 0, "others do not wait"
        assert not (await other.fetch("t")).error_code, "it is read all the time"
        partition.loaded = True
        node.running.broker.arrivals.arrived(partition.stream.stream_id)
        answers = [(await wire.receive()).responses[0].partition_responses[0] for _ in range(2)]
        assert [(answer.error_code, answer.base_offset) for answer in answers] == [(0, 1), (0, 2)]
        assert await other.fetch_all("t") == [b"first", b"second", b"third"]


async def test_a_request_is_appended_once_however_often_it_waits(node: Node, wire: Wire, partition: Partition) -> None:
    take_away(node, partition)
    partition.loaded = False
    wire.send("Produce", 9, produce_request("t", batch(b"second"), batch(b"other")))
    await waiting(node)
    bring(node, partition)  # opened, and not ready for records
    await waiting(node, 2)
    partition.loaded = True
    node.running.broker.arrivals.arrived(partition.stream.stream_id)
    answers = (await wire.receive()).responses[0].partition_responses
    assert [(answer.index, answer.error_code, answer.base_offset) for answer in answers] == [(0, 0, 1), (1, 0, 0)]
    assert await wire.fetch_all("t") == [b"first", b"second"]


async def test_who_waits_too_long_is_refused(
    node: Node, wire: Wire, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "PATIENCE_S", 0.05)
    take_away(node, partition)
    wire.send("Produce", 9, produce_request("t", batch(b"second"), batch(b"other")))
    answers = (await wire.receive()).responses[0].partition_responses
    assert [answer.error_code for answer in answers] == [NOT_LEADER, 0]
    assert (await wire.fetch("t", max_wait_ms=10)).error_code == NOT_LEADER
    assert (await wire.fetch("t", max_wait_ms=10_000)).error_code == NOT_LEADER
    assert (await wire.list_offset("t", -1)).error_code == NOT_LEADER


async def test_a_client_that_goes_away_while_it_waits_harms_nobody(node: Node, partition: Partition) -> None:
    take_away(node, partition)
    async with await Wire.connect(node.bootstrap_servers) as leaving:
        leaving.send("Produce", 9, produce_request("t", batch(b"second")))
        await waiting(node)
    async with await Wire.connect(node.bootstrap_servers) as leaving:
        leaving.send("Fetch", 12, fetch_request("t", max_wait_ms=60_000))
        await waiting(node, 2)
    await eventually(lambda: node.running.broker.waiting_fetches.fetch_count == 0, "the end of the fetch")
    bring(node, partition)
    async with await Wire.connect(node.bootstrap_servers) as wire:
        # What was sent before it went may be taken, as in Kafka.
        assert (await wire.fetch_all("t"))[:1] == [b"first"]
        assert (await wire.produce("t", batch(b"next"))).error_code == 0


async def test_fetch_waits_for_a_partition_and_for_no_longer_than_the_client_wants(
    node: Node, wire: Wire, partition: Partition
) -> None:
    take_away(node, partition)
    wire.send("Fetch", 12, fetch_request("t", max_wait_ms=60_000))
    await waiting(node)
    bring(node, partition)
    data = (await wire.receive()).responses[0].partitions[0]
    assert [record.value for record in records_in(data)] == [b"first"]
    take_away(node, partition)
    assert (await wire.fetch("t", max_wait_ms=0)).error_code == NOT_LEADER


async def test_what_consumers_ask_of_a_new_leader_waits_as_well(node: Node, wire: Wire, partition: Partition) -> None:
    take_away(node, partition)
    partition.loaded = False
    request = OffsetForLeaderEpochRequest(
        topics=[
            OffsetForLeaderTopic(
                topic="t", partitions=[OffsetForLeaderPartition(partition=0, leader_epoch=partition.leader_epoch)]
            )
        ]
    )
    wire.send("OffsetForLeaderEpoch", 4, request)
    await waiting(node)
    async with await Wire.connect(node.bootstrap_servers) as other:
        offsets = asyncio.create_task(other.list_offset("t", -1))
        await waiting(node, 2)
        bring(node, partition)
        assert (await offsets).offset == 1
    partition.loaded = True
    node.running.broker.arrivals.arrived(partition.stream.stream_id)
    answer = (await wire.receive()).topics[0].partitions[0]
    assert (answer.error_code, answer.end_offset) == (0, 1)


async def test_a_partition_that_goes_is_not_waited_for(node: Node, wire: Wire, partition: Partition) -> None:
    partition.leave()
    assert (await wire.produce("t", batch(b"second"))).error_code == NOT_LEADER
    assert node.running.broker.arrivals.waited == 0
