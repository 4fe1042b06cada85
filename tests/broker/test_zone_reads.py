"""Fetches of consumers that name their zone, message by message, on two brokers in two zones (KIP-392)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from broker.node import Node
from protocol.errors import ErrorCode
from protocol.messages.delete_records import DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic
from protocol.messages.fetch import PartitionData
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, fetch_request, only_partition, records_in
from tests.crash.process import free_port

OLD = 20


class Zones(NamedTuple):
    """Node 1 leads t-0 and is in zone a; node 2 is in zone b."""

    one: Node
    two: Node
    to_one: Wire
    to_two: Wire


@pytest.fixture
async def zones(start_node: StartNode, tmp_path: Path) -> AsyncIterator[Zones]:
    """Records 0 to `OLD` are in objects only: node 1, which leads the partition, has started since."""

    def node(node_id: int, rack: str) -> AbstractAsyncContextManager[Node]:
        return start_node(
            node_id=node_id,
            broker_rack=rack,
            controller_listeners=f"CONTROLLER://127.0.0.1:{free_port()}",
            wal_uri=f"{(tmp_path / f'wal{node_id}').as_uri()}?capacity=16MiB",
            upload_interval_ms=600_000,
        )

    async with node(1, "a") as one, await Wire.connect(one.bootstrap_servers) as wire:
        await wire.create_topic("t")
        for number in range(OLD):
            assert (await wire.produce("t", batch(b"%d" % number))).error_code == 0
    async with (
        node(1, "a") as one,
        node(2, "b") as two,
        await Wire.connect(one.bootstrap_servers) as to_one,
        await Wire.connect(two.bootstrap_servers) as to_two,
    ):
        await eventually(lambda: one.running.broker.topics.by_name["t"].partitions[0] is not None, "it is open")
        await eventually(lambda: len(one.running.broker.controller.image.nodes) == 2, "node 1 hears of node 2")
        yield Zones(one, two, to_one, to_two)


async def fetch(wire: Wire, rack: str, offset: int, **fields: Any) -> PartitionData:
    request = fetch_request("t", offset, **fields)
    request.rack_id = rack
    return only_partition(await wire.call("Fetch", 12, request))


def values(data: PartitionData) -> list[bytes | None]:
    return [record.value for record in records_in(data)]


async def test_the_leader_sends_a_consumer_of_another_zone_there_once(zones: Zones) -> None:
    sent = await fetch(zones.to_one, "b", 0, max_wait_ms=60_000, min_bytes=1 << 20)  # at once, all the same
    assert (sent.error_code, sent.preferred_read_replica, sent.high_watermark) == (0, 2, OLD)
    assert not sent.records, "librdkafka would skip them"
    assert zones.one.running.broker.metrics.fetch_redirects["zone"] == 1
    again = await fetch(zones.to_one, "b", 0)
    assert again.preferred_read_replica == -1, "it came back: something is in its way there"
    assert values(again)[:1] == [b"0"]
    assert zones.one.running.broker.metrics.fetched_bytes["other"] > 0


async def test_the_leader_serves_its_own_zone_and_zones_without_brokers(zones: Zones) -> None:
    counted = zones.one.running.broker.metrics.fetched_bytes
    for rack, zone in (("", "unknown"), ("a", "own"), ("c", "other")):
        assert counted[zone] == 0
        data = await fetch(zones.to_one, rack, 0)
        assert data.preferred_read_replica == -1
        assert values(data)[:1] == [b"0"]
        assert counted[zone] > 0
    # Fetch before version 11 has no word for it.
    data = only_partition(await zones.to_one.call("Fetch", 10, fetch_request("t", 0)))
    assert values(data)[:1] == [b"0"]


async def test_bytes_of_producers_are_counted_by_the_zone_that_their_client_id_names(zones: Zones) -> None:
    counted = zones.one.running.broker.metrics.produced
    records = batch(b"some")
    for client_id, zone in (("app", "unknown"), ("app,tidelog_az=a", "own"), ("tidelog_az=b", "other")):
        assert counted[zone].bytes_in == 0
        async with await Wire.connect(zones.one.bootstrap_servers, client_id) as wire:
            for version in (9, 3):  # with tags in the header, and without
                assert (await wire.produce("t", records, version=version)).error_code == 0
        assert counted[zone].bytes_in == 2 * len(records)


async def test_what_the_leader_has_in_memory_it_serves_itself(zones: Zones) -> None:
    assert (await zones.to_one.produce("t", batch(b"new"))).error_code == 0
    data = await fetch(zones.to_one, "b", OLD)
    assert (data.preferred_read_replica, values(data)) == (-1, [b"new"])


async def test_a_broker_of_the_zone_serves_what_objects_hold(zones: Zones) -> None:
    """I1. The high watermark is the leader's to tell, so that none goes back (I3)."""
    assert (await zones.to_one.produce("t", batch(b"new"))).error_code == 0
    found: list[bytes | None] = []
    while len(found) < OLD:
        data = await fetch(zones.to_two, "b", len(found), max_wait_ms=60_000, min_bytes=1 << 20)
        assert (data.error_code, data.high_watermark, data.last_stable_offset) == (0, -1, -1)
        assert data.log_start_offset == 0
        found += values(data)
    assert found == [b"%d" % number for number in range(OLD)]
    assert zones.two.running.broker.metrics.fetched_bytes["own"] > 0


async def test_at_the_end_of_what_objects_hold_it_leads_back_to_the_leader(zones: Zones) -> None:
    """Not by OFFSET_OUT_OF_RANGE: whoever takes this broker for the leader would begin elsewhere, and miss records (I1)."""
    assert (await zones.to_one.produce("t", batch(b"new"))).error_code == 0
    for offset in (OLD, OLD + 1, OLD + 100):
        data = await fetch(zones.to_two, "b", offset)
        assert data.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert data.current_leader.leader_id == 1
    assert zones.two.running.broker.metrics.fetch_redirects["leader"] == 3
    assert values(await fetch(zones.to_one, "b", OLD)) == [b"new"]


async def test_others_than_those_of_its_zone_learn_who_leads(zones: Zones) -> None:
    for rack in ("", "a", "c"):
        data = await fetch(zones.to_two, rack, 0)
        assert (data.error_code, data.current_leader.leader_id) == (ErrorCode.NOT_LEADER_OR_FOLLOWER, 1)


async def test_who_knows_another_leader_epoch_is_led_to_the_leader(zones: Zones) -> None:
    epoch = zones.one.running.broker.topics.by_name["t"].info.partitions[0].leader_epoch
    assert (await fetch(zones.to_two, "b", 0, current_leader_epoch=epoch)).error_code == 0
    for other in (epoch - 1, epoch + 1):
        data = await fetch(zones.to_two, "b", 0, current_leader_epoch=other)
        assert data.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER


async def test_what_was_deleted_is_the_leaders_to_answer(zones: Zones) -> None:
    deleted = DeleteRecordsRequest(
        topics=[DeleteRecordsTopic(name="t", partitions=[DeleteRecordsPartition(partition_index=0, offset=5)])],
        timeout_ms=30_000,
    )
    response = await zones.to_one.call("DeleteRecords", 2, deleted)
    assert response.topics[0].partitions[0].error_code == 0
    broker = zones.two.running.broker
    stream_id = broker.topics.by_name["t"].info.partitions[0].stream_id
    await eventually(lambda: broker.storage.metadata.log_start_offset(stream_id) == 5, "node 2 hears of it")
    assert (await fetch(zones.to_two, "b", 4)).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
    assert values(await fetch(zones.to_two, "b", 5))[:1] == [b"5"]
    assert (await fetch(zones.to_one, "b", 4)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE


async def test_metadata_names_a_broker_of_each_zone(zones: Zones) -> None:
    for wire in (zones.to_one, zones.to_two):
        response = await wire.call("Metadata", 12, MetadataRequest(topics=[MetadataRequestTopic(name="t")]))
        (partition,) = response.topics[0].partitions
        assert list(partition.replica_nodes) == list(partition.isr_nodes) == [1, 2], "the leader first"
        assert {node.node_id: node.rack for node in response.brokers} == {1: "a", 2: "b"}
