"""What nodes report that their WALs hold alone: who knows of it, and what the metadata log keeps of it when one falls silent."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from controller.peers import HeardReport, NodeReport
from controller.records import NodeSuspected, Unuploaded, UnuploadedStream
from controller.reports import MAX_NAMED, Reports
from controller.tables import NodeStatus
from s3stream.metadata import StreamId
from tests.controller.cluster import Cluster, run
from tests.controller.test_lease import Member, members, stop


def held(records: int) -> Unuploaded:
    stream = UnuploadedStream(stream_id=StreamId(1), base_offset=0, end_offset=records, size_bytes=10 * records)
    return Unuploaded(
        record_count=records, size_bytes=10 * records, stream_count=1, oldest_age_ms=4_000, streams=(stream,)
    )


def report(records: int, node_epoch: int = 1) -> NodeReport:
    return NodeReport(node_epoch=node_epoch, held=held(records))


def test_the_newest_report_of_a_registration_counts() -> None:
    reports = Reports(1)
    assert reports.of(2, 1) is None
    reports.heard(2, report(5), 10.0)
    reports.heard(2, report(7), 11.0)
    reports.heard(2, report(6), 10.5)
    found = reports.of(2, 1)
    assert found is not None
    assert (found.held.record_count, found.at_s) == (7, 11.0)
    assert reports.of(2, 2) is None, "it registered anew, and has said nothing since"
    reports.heard(2, report(1, node_epoch=2), 12.0)
    assert reports.of(2, 1) is None
    reports.forget([3])
    assert reports.of(2, 2) is None


def test_the_leader_passes_on_what_would_be_lost_with_it_and_with_others() -> None:
    leader, other = Reports(1), Reports(3)
    leader.heard(2, report(5), 99.0)
    leader.made(report(9), 100.0)
    told = leader.to_pass_on(3, 100.5)
    assert leader.to_pass_on(3, 100.6) == (), "it knows"
    assert [each.node_id for each in leader.to_pass_on(2, 100.6)] == [1], "what is its own it knows best"
    other.passed_on(told, 50.0)
    of_leader, of_two = other.of(1, 1), other.of(2, 1)
    assert of_leader is not None
    assert of_two is not None
    assert (of_leader.held, of_leader.at_s) == (held(9), 49.5)
    assert (of_two.held.record_count, of_two.held.streams, of_two.at_s) == (5, (), 48.5), "in numbers only"
    leader.made(report(10), 101.0)
    assert [each.held.record_count for each in leader.to_pass_on(3, 101.0)] == [5, 10]


def test_a_report_is_cut_that_names_too_many() -> None:
    reports = Reports(1)
    (stream,) = held(5).streams
    long = msgspec.structs.replace(held(5), stream_count=MAX_NAMED + 1, streams=(stream,) * (MAX_NAMED + 1))
    reports.heard(2, NodeReport(node_epoch=1, held=long), 1.0)
    found = reports.of(2, 1)
    assert found is not None
    assert (len(found.held.streams), found.held.stream_count) == (MAX_NAMED, MAX_NAMED + 1)


def test_nobody_is_told_what_it_holds_itself() -> None:
    reports = Reports(2)
    reports.made(report(5), 1.0)
    reports.passed_on([HeardReport(node_id=2, node_epoch=1, age_ms=0, held=held(1))], 9.0)
    found = reports.of(2, 1)
    assert found is not None
    assert found.held.record_count == 5


def reporting(member: Member, records: int) -> None:
    member.node.membership.report = lambda: report(records, member.metadata.node_epoch)


async def suspicion_of(cluster: Cluster, gone: list[Member], witness: Member, node_id: int) -> NodeSuspected:
    """What the metadata log says of a node when these are gone."""
    said: list[NodeSuspected] = []
    witness.node.subscribe(
        lambda change: said.extend(record for record in change.records if isinstance(record, NodeSuspected))
    )
    for member in gone:
        cluster.isolate(member.node)
    while witness.node.image.node_status(node_id) is not NodeStatus.DEAD:
        await asyncio.sleep(0.01)
    return next(record for record in said if record.node_id == node_id)


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_the_last_report_of_a_node_goes_into_the_log_with_its_suspicion(which: str) -> None:
    """Also that of the leader, which told it to all that followed."""

    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        for member in found:
            reporting(member, 100 * member.node_id)
        await asyncio.sleep(3)
        gone, witness = found[0 if which == "leader" else 1], found[2]
        record = await suspicion_of(cluster, [gone], witness, gone.node_id)
        assert record.held == held(100 * gone.node_id)
        assert 0 <= record.held_before_silence_ms <= 1_500
        health = witness.node.image.state.tables.node_health[gone.node_id]
        assert (health.status, health.held, health.held_before_silence_ms) == (
            NodeStatus.DEAD,
            record.held,
            record.held_before_silence_ms,
        )
        cluster.connect(gone.node)
        await asyncio.sleep(3)
        await gone.register()
        assert gone.node_id not in gone.node.image.state.tables.node_health, "it is there again"
        await stop(found)

    run(scenario)


def test_a_leader_knows_of_a_node_that_died_with_the_one_before_it() -> None:
    """But not how long that lived on: its signs of life went to the one before."""

    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        for member in found:
            reporting(member, 100 * member.node_id)
        found[1].shows_life = False  # but by what it asks the leader
        await asyncio.sleep(3)
        record = await suspicion_of(cluster, found[:2], found[2], 2)
        assert record.held is not None
        assert (record.held.record_count, record.held.streams) == (200, ())
        assert record.held_before_silence_ms == -1
        await stop(found)

    run(scenario)


def test_where_no_report_was_heard_the_log_says_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        record = await suspicion_of(cluster, [found[1]], found[2], 2)
        assert (record.held, record.held_before_silence_ms) == (None, -1)
        await stop(found)

    run(scenario)


def test_reports_cost_neither_an_entry_nor_a_request() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        for member in found:
            reporting(member, 100)
        entries = cluster.nodes[0].applied_index
        before = [store.requests["put"] for store in cluster.stores]
        await asyncio.sleep(60)
        assert cluster.nodes[0].applied_index == entries
        assert [store.requests["put"] for store in cluster.stores] == before
        await stop(found)

    run(scenario)
