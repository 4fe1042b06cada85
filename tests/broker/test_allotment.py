"""Brokers without ids that start on one bucket, at once, and while others die: on virtual time, with a store that fails."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker.allotment import allot
from controller.allotment import AllotNode
from controller.config import ControllerSettings
from controller.controller import Controller
from controller.errors import NodeIdTaken
from controller.image import Applied
from controller.nodes import NodeRegistration
from controller.peers import PeerUnavailable
from controller.records import NodeDead, NodeRegistered, NodeUnregistered, Record
from controller.tables import NodeStatus
from s3stream.errors import MetadataUnavailable
from s3stream.memory import Bucket, Faults, MemoryObjectStore
from tests.controller.cluster import Link, Network
from tests.controller.machine import T0_MS
from tests.controller.world import PATHS
from tests.sim.loop import VirtualLoop

RESERVED = 1_000
DEAD_AFTER_S = 12.0
"""A leader is replaced, gives everybody time, and waits out a lease."""

FAULTS = Faults(
    latency_ms=15.0,
    slow_probability=0.05,
    slow_latency_ms=400.0,
    refused=0.05,
    lost_reply=0.05,
    repeated=0.03,
    conflict=0.03,
)


@dataclass
class Pod:
    """A process that has its id from the cluster."""

    controller: Controller
    store: MemoryObjectStore
    given: NodeRegistration | None = None


@dataclass
class Pods:
    """A bucket, a network, and processes."""

    seed: int = 0
    bucket: Bucket = field(default_factory=Bucket)
    network: Network = field(default_factory=Network)
    faults: Faults = field(default_factory=Faults)
    all: list[Pod] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    failures: list[BaseException] = field(default_factory=list)

    async def start(self) -> Pod:
        """Start a process; returns when it is a node of the cluster."""
        number = next(self.numbers)
        address = f"pod{number}:9093"
        rng = random.Random(self.seed * 1_000 + number)
        store = MemoryObjectStore(self.bucket, rng=rng, faults=self.faults)
        pod = Pod(await self._controller(address, store, rng), store)
        self.all.append(pod)
        self.network.services[address] = pod.controller.membership
        pod.given = await allot(
            pod.controller, Link(self.network, address), self.command(pod.controller, f"claim{number}"), rng
        )
        pod.controller.join(Link(self.network, address), node_id=pod.given.node_id)
        await pod.controller.register_node(
            pod.given.node_id,
            f"wal-{pod.given.node_id}",
            allotted_epoch=pod.given.node_epoch,
            lease_ms=3_000,
            controller_address=address,
            wal_uri="s3://wals/",
        )
        return pod

    async def _controller(self, address: str, store: MemoryObjectStore, rng: random.Random) -> Controller:
        loop = asyncio.get_running_loop()
        return await Controller.start(
            store=store,
            paths=PATHS,
            settings=ControllerSettings(leader_address=address),
            now_ms=lambda: T0_MS + int(loop.time() * 1_000),
            rng=rng,
            on_failure=self.failures.append,
            clock=loop.time,
        )

    def command(self, controller: Controller, claim: str) -> AllotNode:
        return AllotNode(
            claim=claim,
            reserved_max_id=RESERVED,
            wal_uri="s3://wals/",
            lease_ms=3_000,
            controller_address=controller.address,
            at_ms=controller.now_ms(),
        )

    def kill(self, pod: Pod) -> None:
        """It says nothing more and hears nothing more, and reaches no bucket."""
        self.pause(pod, True)

    def pause(self, pod: Pod, is_paused: bool) -> None:
        change = set.add if is_paused else set.discard
        change(self.network.silent, pod.controller.address)
        change(self.network.mute, pod.controller.address)
        pod.store.outage = is_paused

    async def history(self) -> list[Record]:
        """All that counts in the metadata log."""
        self.faults = Faults()
        records: list[Record] = []

        def read(change: Applied) -> None:
            assert not change.is_reset, "the whole log is there"
            records.extend(change.records)

        reader = Controller(
            store=MemoryObjectStore(self.bucket),
            paths=PATHS,
            settings=ControllerSettings(leader_address="reader:9093"),
            now_ms=lambda: T0_MS,
            rng=random.Random(0),
        )
        reader.subscribe(read)
        await reader._replica.start()
        return records


def run(scenario: Callable[[Pods], Awaitable[None]], **pods: Any) -> Pods:
    """Run a scenario on virtual time, and hold against the log that no living node's id was given away."""
    loop = VirtualLoop()
    found = Pods(**pods)

    async def whole() -> None:
        await scenario(found)
        check(await found.history())
        for pod in found.all:
            pod.store.outage = False
            await pod.controller.close()
        assert found.failures == []

    try:
        loop.run_until_complete(whole())
    finally:
        loop.bury()
        loop.close()
    return found


def check(records: list[Record]) -> None:
    holders: dict[int, str] = {}
    """Whose each id is, by controller address, while it is not known to be dead."""
    for record in records:
        match record:
            case NodeRegistered():
                holder = holders.get(record.node_id, record.controller_address)
                assert holder == record.controller_address, f"node {record.node_id} was {holder}'s: {record}"
                holders[record.node_id] = record.controller_address
            case NodeDead() | NodeUnregistered():
                holders.pop(record.node_id, None)


def ids(pods: list[Pod]) -> list[int]:
    found = [pod.given.node_id for pod in pods if pod.given is not None]
    assert len(found) == len(pods), "each has one"
    return sorted(found)


@pytest.mark.parametrize("seed", range(4))
def test_of_many_that_start_at_the_same_instant_no_two_get_the_same_id(seed: int) -> None:
    """On a bucket that is new, where nobody leads yet."""

    async def scenario(pods: Pods) -> None:
        pods.faults = FAULTS
        found = await asyncio.gather(*(pods.start() for _ in range(6)))
        assert len(set(ids(found))) == 6
        for pod in found:
            assert pod.given is not None
            node = pod.controller.image.node(pod.given.node_id)
            assert node is not None
            assert node.controller_address == pod.controller.address, "nobody was given it since"

    run(scenario, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_pods_come_and_go_and_ids_do_not_become_more(seed: int) -> None:
    """Some are killed, the leader among them; as many are started at once, and after a while again."""

    async def scenario(pods: Pods) -> None:
        rng = random.Random(seed)
        living = list(await asyncio.gather(*(pods.start() for _ in range(3))))
        pods.faults = FAULTS
        seen = set(ids(living))
        for _ in range(6):
            gone = rng.sample(living, rng.randint(1, 3))
            for pod in gone:
                pods.kill(pod)
            living = [pod for pod in living if pod not in gone]
            await asyncio.sleep(rng.choice([0.0, 1.0, DEAD_AFTER_S]))
            living += await asyncio.gather(*(pods.start() for _ in gone))
            assert len(set(ids(living))) == 3
            seen |= set(ids(living))
            await asyncio.sleep(DEAD_AFTER_S)
        # Three that live and three that are not known to be dead yet, and as many of which an answer was lost.
        assert seen <= set(range(RESERVED + 1, RESERVED + 10))

    run(scenario, seed=seed)


def test_the_next_gets_the_id_of_who_died_and_not_of_who_is_slow() -> None:
    async def scenario(pods: Pods) -> None:
        first, second, third = [await pods.start() for _ in range(3)]
        assert ids([first, second, third]) == [1001, 1002, 1003]
        pods.pause(second, True)
        await asyncio.sleep(1.5)
        assert ids([await pods.start()]) == [1004]
        pods.pause(second, False)
        await asyncio.sleep(DEAD_AFTER_S)
        assert second.controller.image.node_status(1002) is NodeStatus.ALIVE
        pods.kill(third)
        await asyncio.sleep(DEAD_AFTER_S)
        assert ids([await pods.start()]) == [1003]

    run(scenario)


def test_who_wakes_after_its_id_was_given_away_changes_nothing_more() -> None:
    async def scenario(pods: Pods) -> None:
        await pods.start()
        sleeper = await pods.start()
        pods.pause(sleeper, True)
        await asyncio.sleep(DEAD_AFTER_S)
        heir = await pods.start()
        assert heir.given is not None
        assert heir.given.node_id == 1002
        pods.pause(sleeper, False)
        with pytest.raises(NodeIdTaken, match="is another's now"):
            await sleeper.controller.register_node(1002, "wal-1002", allotted_epoch=sleeper.given.node_epoch)  # type: ignore[union-attr]
        await sleeper.controller.refresh()
        node = sleeper.controller.image.node(1002)
        assert node is not None
        assert node.controller_address == heir.controller.address

    run(scenario)


def test_all_die_at_once_and_others_begin_where_nobody_leads() -> None:
    async def scenario(pods: Pods) -> None:
        for pod in [await pods.start() for _ in range(3)]:
            pods.kill(pod)
        assert ids(list(await asyncio.gather(*(pods.start() for _ in range(3))))) == [1004, 1005, 1006]
        await asyncio.sleep(DEAD_AFTER_S)
        assert ids([await pods.start()]) == [1001]

    run(scenario)


def test_an_answer_that_is_lost_costs_an_id_for_some_seconds_only() -> None:
    async def scenario(pods: Pods) -> None:
        await pods.start()
        pods.network.loses_answers = True
        assert ids([await pods.start()]) == [1003]
        await asyncio.sleep(DEAD_AFTER_S)
        assert ids([await pods.start()]) == [1002]

    run(scenario)


def test_an_office_is_not_taken_from_one_of_an_older_version() -> None:
    """It knows of no such command, and answers all others."""

    class Older(Link):
        async def submit(self, address: str, command: Any) -> Any:
            raise PeerUnavailable(f"{address} refuses: a command 'AllotNode' is not known here", sent=False)

    async def scenario(pods: Pods) -> None:
        first = await pods.start()
        office = await first.controller.read_leader()
        rng = random.Random(7)
        newer = await pods._controller("newer:9093", MemoryObjectStore(pods.bucket), rng)
        pods.all.append(Pod(newer, MemoryObjectStore(pods.bucket)))
        with pytest.raises(MetadataUnavailable, match="a command 'AllotNode' is not known here"):
            await allot(newer, Older(pods.network, "newer:9093"), pods.command(newer, "claim"), rng)
        assert await first.controller.read_leader() == office

    run(scenario)
