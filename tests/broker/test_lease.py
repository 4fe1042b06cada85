"""A broker of several without a lease, as its clients see it: nothing is told that could be stale, and records are taken on."""

from __future__ import annotations

import pytest

from broker.node import Node
from controller.lease import Lease, LeaseState
from protocol.errors import ErrorCode
from protocol.messages.find_coordinator import FindCoordinatorRequest
from protocol.messages.heartbeat import HeartbeatRequest
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually, fetch_request, produce_request

AMONG_OTHERS = {
    "controller_listeners": "CONTROLLER://127.0.0.1:0",
    "broker_lease_ms": 600,
    "broker_session_timeout_ms": 1_000,
    "broker_heartbeat_interval_ms": 200,
    "default_replication_factor": 1,
    "offsets_topic_num_partitions": 1,
}
LATEST = -1


def lease_of(node: Node) -> Lease:
    lease = node.running.broker.serving
    assert isinstance(lease, Lease)
    return lease


async def test_while_the_bucket_is_away_records_are_taken_and_nothing_is_told(start_node: StartNode) -> None:
    async with start_node(**AMONG_OTHERS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert lease_of(node).state is LeaseState.HELD
        await wire.create_topic("t")
        assert (await wire.produce("t", batch(b"a"))).error_code == ErrorCode.NONE
        assert (await wire.call("FindCoordinator", 3, FindCoordinatorRequest(key="g"))).error_code == ErrorCode.NONE
        async with await Wire.connect(node.bootstrap_servers) as waiting:
            waiting.send("Fetch", 12, fetch_request("t", 1, max_wait_ms=3_000))  # for more than there is

            node.running.store.failing = True
            await eventually(lambda: lease_of(node).state is LeaseState.CUT_OFF, "the end of the lease")
            late = (await waiting.receive()).responses[0].partitions[0]
            assert (late.error_code, late.high_watermark) == (ErrorCode.NOT_LEADER_OR_FOLLOWER, -1)
        data = await wire.fetch("t")
        assert (data.error_code, data.high_watermark) == (ErrorCode.NOT_LEADER_OR_FOLLOWER, -1)
        assert not data.records
        assert (await wire.list_offset("t", LATEST)).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        beat = HeartbeatRequest(group_id="g", member_id="m")
        assert (await wire.call("Heartbeat", 4, beat)).error_code == ErrorCode.NOT_COORDINATOR
        for value in (b"b", b"c"):
            assert (await wire.produce("t", batch(value))).error_code == ErrorCode.NONE
            assert lease_of(node).state is LeaseState.CUT_OFF

        node.running.store.failing = False
        await eventually(lambda: lease_of(node).serves, "a new lease")
        assert await wire.fetch_values("t") == [b"a", b"b", b"c"]
        assert (await wire.call("Heartbeat", 4, beat)).error_code == ErrorCode.UNKNOWN_MEMBER_ID
        assert lease_of(node).lapses == 1


async def test_a_broker_that_stood_still_takes_nothing_before_it_has_looked(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a pause of the process: nobody knows yet whether others have taken over."""
    async with start_node(**AMONG_OTHERS) as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        lease = lease_of(node)
        clock = lease._clock
        monkeypatch.setattr(lease, "_clock", lambda: clock() + 3_600)
        wire.send("Produce", 9, produce_request("t", batch(b"late")))
        answer = (await wire.receive()).responses[0].partition_responses[0]
        assert answer.error_code in (ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.NONE)
        if answer.error_code == ErrorCode.NONE:
            assert lease.lapses == 1, "it had looked by then"
        await eventually(lambda: lease.serves, "a new lease")


async def test_a_broker_alone_needs_no_lease(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t")
        node.running.store.failing = True
        assert (await wire.produce("t", batch(b"a"))).error_code == ErrorCode.NONE
        assert await wire.fetch_values("t") == [b"a"]
        node.running.store.failing = False
        registered = node.running.broker.controller.image.node(node.settings.node_id)
        assert registered is not None
        assert registered.lease_ms == 0, "so nobody takes it for dead"
