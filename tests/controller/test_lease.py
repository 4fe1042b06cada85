"""Leases on virtual time: what is held, what it costs, and that nobody serves who was taken for dead."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest

from controller.controller import Controller, TopicSpec
from controller.image import Applied
from controller.lease import Lease, LeaseState
from controller.peers import NotLeader, PeerUnavailable
from controller.records import METADATA_VERSION, NodeDead, NodeRegistered, NodeSuspected, NodeTrusted
from controller.tables import NodeStatus
from s3stream.errors import NodeFenced
from tests.controller.cluster import Cluster, Link, run
from tests.controller.world import PATHS


class Member:
    """What a broker does about its lease, and nothing else: it takes it, and shows that it lives."""

    def __init__(self, cluster: Cluster, node: Controller) -> None:
        self.node = node
        self.node_id = cluster.nodes.index(node) + 1
        self._cluster = cluster
        self.deaths: list[int] = []
        """Node epochs of this node that it knows to be dead."""
        self.lease: Lease
        self.shows_life = True
        """To everybody; else only by what it asks the leader."""
        self._tasks: list[asyncio.Task[None]] = []

    async def register(self) -> None:
        await self.stop()
        address = f"node{self.node_id}:9093"
        registered = await self.node.register_node(
            self.node_id, f"w{self.node_id}", lease_ms=3_000, controller_address=address
        )
        self.metadata = self.node.bind(self.node_id, registered.node_epoch)
        self.lease = Lease(
            self.node,
            self.metadata,
            settings=self.node.settings,
            complete_registration=lambda: self.metadata.complete_registration(
                lease_ms=3_000, controller_address=address, wal_uri="", wal_host=""
            ),
            clock=asyncio.get_running_loop().time,
        )
        self._unsubscribe = self.node.subscribe(self._applied)
        self._tasks = [asyncio.create_task(self.lease.run()), asyncio.create_task(self._show_life())]

    async def _show_life(self) -> None:
        own = f"node{self.node_id}:9093"
        link = Link(self._cluster.network, own)
        while True:
            await asyncio.sleep(0.5)
            for address in list(self._cluster.network.services):
                if address != own and self.shows_life:
                    with contextlib.suppress(PeerUnavailable, NotLeader):
                        await link.alive(address, self.node_id)

    def _applied(self, change: Applied) -> None:
        self.lease.metadata_changed()

    async def stop(self) -> None:
        if self._tasks:
            self._unsubscribe()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks = []


async def members(cluster: Cluster, count: int, **settings: int) -> list[Member]:
    found = []
    for _ in range(count):
        found.append(Member(cluster, await cluster.start(**settings)))
        await found[-1].register()
    await asyncio.sleep(0.5)
    assert all(member.lease.state is LeaseState.HELD for member in found)
    return found


async def stop(found: list[Member]) -> None:
    for member in found:
        await member.stop()


def statuses(node: Controller) -> dict[int, NodeStatus]:
    return {node_id: value.status for node_id, value in node.image.nodes.items()}


def said_of(cluster: Cluster, node: Controller) -> list[str]:
    """What entries that are applied from now on say of nodes, as it comes."""
    said: list[str] = []

    def applied(change: Applied) -> None:
        for record in change.records:
            if isinstance(record, NodeSuspected | NodeTrusted | NodeDead | NodeRegistered):
                said.append(f"{type(record).__name__} {record.node_id}")

    node.subscribe(applied)
    return said


def test_a_lease_is_held_on_and_on_and_costs_one_request_a_second() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        before = [Counter(store.requests) for store in cluster.stores]
        entries = cluster.nodes[0].applied_index
        for _ in range(600):
            await asyncio.sleep(0.1)
            assert all(member.lease.serves for member in found)
        for store, count in zip(cluster.stores, before, strict=True):
            assert store.requests - count == {"get": 60}, "of the next entry, or of the leader object"
        assert cluster.nodes[0].applied_index == entries
        assert [member.lease.lapses for member in found] == [0, 0, 0]
        await stop(found)

    run(scenario)


def test_an_election_costs_nobody_a_lease() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        for _ in range(5):
            leader = await cluster.leader_among(cluster.nodes)
            cluster.cut_off(leader)
            others = [node for node in cluster.nodes if node is not leader]
            await cluster.leader_among(others)
            assert all(member.lease.serves for member in found)
            cluster.network.silent.clear()
            await asyncio.sleep(3)
        assert [member.lease.lapses for member in found] == [0, 0, 0]
        assert statuses(cluster.nodes[0]) == dict.fromkeys((1, 2, 3), NodeStatus.ALIVE)
        await stop(found)

    run(scenario)


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_node_that_is_gone_is_dead_within_the_promised_time(which: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        gone = found[0 if which == "leader" else 1]
        assert gone.node.is_leader is (which == "leader")
        (witness,) = [member.node for member in found[1:] if member is not gone][:1]
        said = said_of(cluster, witness)
        loop = asyncio.get_running_loop()
        cluster.isolate(gone.node)
        gone_s = loop.time()
        while witness.image.node_status(gone.node_id) is not NodeStatus.DEAD:
            await asyncio.sleep(0.01)
        took_s = loop.time() - gone_s
        assert took_s < 2.0 + 3.0 + 1.0
        assert not gone.lease.serves
        assert said == [f"NodeSuspected {gone.node_id}", f"NodeDead {gone.node_id}"]
        cluster.connect(gone.node)
        while gone.node.image.node_status(gone.node_id) is not NodeStatus.DEAD:
            await asyncio.sleep(0.01)
            assert not gone.lease.serves
        assert gone.lease.state is LeaseState.LAPSED
        with pytest.raises(NodeFenced, match="taken for dead"):
            await gone.metadata.new_object_ids(1)
        await gone.register()
        await asyncio.sleep(0.2)
        assert gone.lease.serves
        await stop(found)

    run(scenario)


def test_a_node_that_is_heard_from_again_in_time_is_trusted() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        said = said_of(cluster, cluster.nodes[0])
        away = found[2]
        cluster.isolate(away.node)
        await asyncio.sleep(3.5)
        assert statuses(cluster.nodes[0])[3] is NodeStatus.SUSPECT
        cluster.connect(away.node)
        await asyncio.sleep(3)
        assert away.lease.serves
        assert said == ["NodeSuspected 3", "NodeTrusted 3"]
        await away.metadata.new_object_ids(1)
        await stop(found)

    run(scenario)


def test_without_the_bucket_records_are_taken_and_nothing_is_told_that_could_be_stale() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        for store in cluster.stores:
            store.outage = True
        for number in range(600):
            await asyncio.sleep(0.1)
            assert all(member.lease.takes_records for member in found), "the whole time"
            if number > 30:
                assert {member.lease.state for member in found} == {LeaseState.CUT_OFF}
        for store in cluster.stores:
            store.outage = False
        await asyncio.sleep(3)
        assert {member.lease.state for member in found} == {LeaseState.HELD}
        assert statuses(cluster.nodes[0]) == dict.fromkeys((1, 2, 3), NodeStatus.ALIVE)
        await stop(found)

    run(scenario)


def test_an_entry_that_is_damaged_in_the_bucket_costs_the_lease_until_it_is_whole() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 2)
        leader, follower = found
        assert leader.node.is_leader
        key = PATHS.log_entry(follower.node.next_index)
        cluster.bucket.write(key, b"nonsense", 0)
        await asyncio.sleep(5)
        assert not follower.lease.serves
        cluster.bucket.delete([key])
        await asyncio.sleep(2)
        assert follower.lease.serves
        await stop(found)

    run(scenario)


def test_who_cannot_reach_the_leader_but_the_bucket_serves_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 2)
        for number in (1, 2):
            cluster.network.mute.add(f"node{number}:9093")
        for _ in range(300):
            await asyncio.sleep(0.1)
            assert all(member.lease.takes_records for member in found) or NodeStatus.SUSPECT in {
                *statuses(cluster.nodes[0]).values(),
                *statuses(cluster.nodes[1]).values(),
            }
        assert NodeStatus.DEAD not in statuses(cluster.nodes[0]).values(), "they take the office from each other"
        await stop(found)

    run(scenario)


def test_a_busy_log_is_read_to_its_end() -> None:
    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 2, snapshot_interval_entries=10, retained_entries=0)
        for number in range(300):
            await cluster.nodes[0].create_topics([TopicSpec(name=f"t{number}", partition_count=1)])
            await asyncio.sleep(0.03)
            assert all(member.lease.serves for member in found)
        assert [member.lease.lapses for member in found] == [0, 0]
        await stop(found)

    run(scenario)


def test_a_node_of_the_version_before_is_waited_for_and_then_leases_are_told() -> None:
    async def scenario(cluster: Cluster) -> None:
        first = await cluster.start()
        await cluster.leader_among([first])
        first.image.state.tables.metadata_version = 3  # as if formatted by it
        assert first._tenure.ahead is not None
        first._tenure.ahead.tables.metadata_version = 3
        old = await first.register_node(9, "w9")
        member = Member(cluster, first)
        await member.register()
        await asyncio.sleep(10)
        assert first.image.metadata_version == 3, "node 9 was never heard of"
        assert first.image.node(1).lease_ms == 0  # type: ignore[union-attr]
        assert first.image.node(9).node_epoch == old.node_epoch  # type: ignore[union-attr]
        await first.unregister_node(9)
        await asyncio.sleep(3)
        assert first.image.metadata_version == METADATA_VERSION
        told = first.image.node(1)
        assert told is not None
        assert (told.lease_ms, told.controller_address) == (3_000, "node1:9093")
        await stop([member])

    run(scenario)


@pytest.mark.parametrize("seed", range(25))
def test_nobody_serves_who_was_taken_for_dead(seed: int) -> None:
    """Nodes come and go at random, so do their bucket and their network: whoever is dead, as the first knows, holds no lease."""
    rng = random.Random(seed)

    async def scenario(cluster: Cluster) -> None:
        found = await members(cluster, 3)
        wrong: list[str] = []

        def check(change: Applied) -> None:
            for record in change.records:
                if isinstance(record, NodeDead):
                    (member,) = [each for each in found if each.node_id == record.node_id]
                    if member.metadata.node_epoch == record.node_epoch and member.lease.serves:
                        wrong.append(f"node {record.node_id} serves for another {member.lease.remaining_s} s")

        for member in found:
            member.node.subscribe(check)

        for _ in range(12):
            member = rng.choice(found)
            match rng.choice(["isolate", "store", "silent", "mute"]):
                case "isolate":
                    cluster.isolate(member.node)
                case "store":
                    cluster.stores[member.node_id - 1].outage = True
                case "silent":
                    cluster.network.silent.add(f"node{member.node_id}:9093")
                case "mute":
                    cluster.network.mute.add(f"node{member.node_id}:9093")
            await asyncio.sleep(rng.uniform(0.1, 9.0))
            assert wrong == []
            cluster.connect(member.node)
            await asyncio.sleep(rng.uniform(0.0, 4.0))
            for each in found:
                if each.node.image.node_status(each.node_id) is NodeStatus.DEAD:
                    await each.register()
        for each in found:
            cluster.connect(each.node)
        await asyncio.sleep(8)
        for each in found:
            if each.node.image.node_status(each.node_id) is NodeStatus.DEAD:
                await each.register()
        await asyncio.sleep(3)
        assert all(each.lease.serves for each in found)
        await stop(found)

    run(scenario)
