"""Several controllers on one bucket: one leads, the others follow; it is replaced when it does not answer."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from controller.commands import Command
from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.errors import TopicExists
from controller.log import LeaderObject
from controller.node_metadata import NodeMetadata
from controller.nodes import DrainNode
from controller.peers import Balance, Followed, Following, NodeLoad, NotLeader, PeerUnavailable
from controller.snapshot import digest
from controller.tables import StreamState
from controller.tcp import PeerServer, TcpPeers
from controller.wire import Outcome, decode_command, decode_outcome, encode_command, encode_outcome
from s3stream.errors import MetadataUnavailable, NodeFenced
from s3stream.memory import Bucket, Faults, MemoryObjectStore
from s3stream.metadata import StreamId
from s3stream.paths import Paths
from tests.controller.machine import T0_MS
from tests.sim.loop import VirtualLoop

PATHS = Paths("here")


class Network:
    """The port `Peers` between controllers of one process: everything that is said is encoded, some of it is lost."""

    def __init__(self) -> None:
        self.services: dict[str, Controller] = {}
        self.silent: set[str] = set()
        """Takes requests, and answers none: killed, paused or cut off."""
        self.mute: set[str] = set()
        """Nobody receives its requests."""
        self.loses_answers = False
        self.submitted = 0

    async def submit(self, address: str, command: Command[Any]) -> Outcome:
        await self._arrive(address)
        self.submitted += 1
        received = decode_command(encode_command(command))
        outcome = await self.services[address].submitted(received)
        if self.loses_answers:
            self.loses_answers = False
            raise PeerUnavailable("lost", sent=True)
        return decode_outcome(type(command), encode_outcome(type(received), outcome))

    async def follow(self, address: str, following: Following) -> Followed:
        await self._arrive(address)
        found = await self.services[address].followed(following)
        await self._arrive(address)
        return found

    async def balance(self, address: str) -> Balance:
        await self._arrive(address)
        return await self.services[address].balance()

    async def alive(self, address: str, node_id: int) -> None:
        await self._arrive(address)
        await self.services[address].alive(node_id)

    async def close(self) -> None:
        """Nothing is held."""

    async def _arrive(self, address: str) -> None:
        await asyncio.sleep(0.001)
        if address in self.silent:
            await asyncio.sleep(0.5)
            raise PeerUnavailable("no answer", sent=False)


class Link:
    """A node's access to the network."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address

    async def submit(self, address: str, command: Command[Any]) -> Outcome:
        await self._leave()
        return await self._network.submit(address, command)

    async def follow(self, address: str, following: Following) -> Followed:
        await self._leave()
        return await self._network.follow(address, following)

    async def balance(self, address: str) -> Balance:
        await self._leave()
        return await self._network.balance(address)

    async def alive(self, address: str, node_id: int) -> None:
        """A sign of life, as `controller.pulse` sends them."""
        await self._leave()
        await self._network.alive(address, node_id)

    async def close(self) -> None:
        """Nothing is held."""

    async def _leave(self) -> None:
        if self._address in self._network.mute:
            await asyncio.sleep(0.5)
            raise PeerUnavailable("nobody is reached", sent=False)


class Cluster:
    """A bucket, a network, and nodes 1, 2, 3 …"""

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.network = Network()
        self.stores: list[MemoryObjectStore] = []
        self.nodes: list[Controller] = []
        self.failures: list[BaseException] = []

    async def start(self, **settings: Any) -> Controller:
        number = len(self.nodes) + 1
        address = f"node{number}:9093"
        store = MemoryObjectStore(self.bucket)
        node = await Controller.start(
            store=store,
            paths=PATHS,
            settings=ControllerSettings(leader_address=address, **settings),
            now_ms=lambda: T0_MS,
            rng=random.Random(number),
            on_failure=self.failures.append,
            clock=asyncio.get_running_loop().time,
        )
        self.network.services[address] = node.membership
        node.join(Link(self.network, address), node_id=number)
        self.nodes.append(node)
        self.stores.append(store)
        return node

    def cut_off(self, node: Controller) -> None:
        """Nobody hears of this node any more; it reaches the bucket still."""
        self.network.silent.add(f"node{self.nodes.index(node) + 1}:9093")

    def isolate(self, node: Controller) -> None:
        """As if it were paused: it reaches nothing, and nobody reaches it."""
        number = self.nodes.index(node)
        self.network.silent.add(f"node{number + 1}:9093")
        self.network.mute.add(f"node{number + 1}:9093")
        self.stores[number].outage = True

    def connect(self, node: Controller) -> None:
        """It reaches everything again."""
        number = self.nodes.index(node)
        self.network.silent.discard(f"node{number + 1}:9093")
        self.network.mute.discard(f"node{number + 1}:9093")
        self.stores[number].outage = False

    async def leader_among(self, nodes: list[Controller]) -> Controller:
        while True:
            leading = [node for node in nodes if node.is_leader]
            if len(leading) == 1:
                return leading[0]
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()
        assert self.failures == []


def run(scenario: Callable[[Cluster], Awaitable[None]]) -> Cluster:
    """Run a scenario on virtual time."""
    loop = VirtualLoop()
    cluster = Cluster()

    async def whole() -> None:
        await scenario(cluster)
        await cluster.close()

    try:
        loop.run_until_complete(whole())
    finally:
        loop.close()
    return cluster


async def settled(nodes: list[Controller]) -> None:
    """Return when all nodes have applied the same, and it is the same."""
    while len({node.applied_index for node in nodes}) > 1:
        await asyncio.sleep(0.01)
    assert len({digest(node.image.state) for node in nodes}) == 1


def test_the_first_node_leads_and_the_others_follow() -> None:
    async def scenario(cluster: Cluster) -> None:
        first = await cluster.start()
        assert await cluster.leader_among([first]) is first
        second, third = await cluster.start(), await cluster.start()
        await first.register_node(1, "w1")
        await second.register_node(2, "w2")
        await third.register_node(3, "w3")
        await third.create_topics([TopicSpec(name="spread", partition_count=6)])
        topic = third.image.topic("spread")
        assert topic is not None
        assert sorted(state.leader for state in topic.partitions) == [1, 1, 2, 2, 3, 3]
        await settled(cluster.nodes)
        assert [node.is_leader for node in cluster.nodes] == [True, False, False]

    cluster = run(scenario)
    assert cluster.network.submitted == 3, "what others than the leader wanted went to the leader"


def test_an_answer_comes_when_the_own_image_has_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = await cluster.start(), await cluster.start()
        await first.register_node(1, "w1")
        for number in range(20):
            await second.create_topics([TopicSpec(name=f"t{number}", partition_count=1)])
            assert second.image.topic(f"t{number}") is not None
            made = await second.create_topics([TopicSpec(name=f"t{number}", partition_count=1)])
            assert isinstance(made[f"t{number}"], TopicExists), "errors come back as they are"

    run(scenario)


def test_a_leader_that_does_not_answer_is_replaced_and_its_commands_go_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = [await cluster.start() for _ in range(3)]
        registered = await nodes[1].register_node(2, "w2")
        metadata = nodes[1].bind(2, registered.node_epoch)
        for round_ in range(20):
            leader = await cluster.leader_among([node for node in nodes if node.is_leader] or nodes)
            cluster.cut_off(leader)
            others = [node for node in nodes if node is not leader]
            made = await others[0].create_topics([TopicSpec(name=f"t{round_}", partition_count=1)])
            assert not isinstance(made[f"t{round_}"], Exception)
            if nodes[1] is not leader:
                assert await metadata.new_object_ids(1)
            assert (await cluster.leader_among(others)).is_leader
            cluster.network.silent.clear()
            await settled(others)
            while leader.is_leader:  # it finds out by itself, though it has nothing to write
                await asyncio.sleep(0.1)
            await settled(nodes)

    run(scenario)


@pytest.mark.parametrize("seed", range(20))
def test_of_followers_that_run_at_the_same_time_one_wins(seed: int) -> None:
    """Those that lose follow it: an office is taken from nobody who answers."""

    async def scenario(cluster: Cluster) -> None:
        first, *others = [await cluster.start() for _ in range(5)]
        await cluster.leader_among([first])
        office = await first.read_leader()
        cluster.isolate(first)
        for store in cluster.stores:
            store.faults = Faults(latency_ms=10.0)
        rng = random.Random(seed)
        await asyncio.gather(*(running_after(node, office, rng.uniform(0.0, 0.02)) for node in others))
        now = await others[0].read_leader()
        assert office is not None
        assert now is not None
        assert now.controller_epoch == office.controller_epoch + 1
        assert [node.is_leader for node in others].count(True) == 1

    async def running_after(node: Controller, office: LeaderObject | None, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await node.run_for_office(office)

    run(scenario)


def test_a_deposed_leader_whose_bucket_falls_silent_follows_when_that_is_back() -> None:
    """It finds that another took over, and cannot read what that one wrote for longer than anybody waits for a command."""

    async def scenario(cluster: Cluster) -> None:
        first = await cluster.start(command_timeout_ms=1_000)
        second = await cluster.start()
        cluster.cut_off(first)
        await second.until_in_office()
        await second.register_node(7, "w7")
        reading, silent = first._log.read, True

        async def read(*arguments: Any, **options: Any) -> Any:
            while silent:
                await asyncio.sleep(0.1)
            return await reading(*arguments, **options)

        first._log.read = read  # type: ignore[method-assign]
        await asyncio.sleep(10)
        silent = False
        cluster.connect(first)
        await asyncio.sleep(5)
        await settled(cluster.nodes)
        assert first.image.node(7) is not None

    run(scenario)


def test_a_deposed_leader_commits_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = [await cluster.start() for _ in range(2)]
        old = await cluster.leader_among(nodes)
        (other,) = [node for node in nodes if node is not old]
        await old.register_node(1, "w1")
        await settled(nodes)
        cluster.cut_off(old)
        await other.create_topics([TopicSpec(name="name", partition_count=1)])
        made = await old.create_topics([TopicSpec(name="name", partition_count=2)])
        assert isinstance(made["name"], TopicExists), "it asked the new leader, or learned of it before it decided"
        cluster.network.silent.clear()
        await settled(nodes)
        topic = old.image.topic("name")
        assert topic is not None
        assert len(topic.partitions) == 1

    run(scenario)


def test_a_lost_answer_is_asked_for_again_where_that_is_the_same() -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = await cluster.start(), await cluster.start()
        await first.register_node(1, "w1")
        cluster.network.loses_answers = True
        made = await second.create_topics([TopicSpec(name="once", partition_count=1)])
        topic = second.image.topic("once")
        assert topic is not None
        assert made["once"] == topic
        cluster.network.loses_answers = True
        with pytest.raises(MetadataUnavailable, match="open"):
            await second.delete_topics([topic.topic_id])
        await settled(cluster.nodes)
        assert second.image.topic("once") is None, "here it had taken effect"

    run(scenario)


class Opener:
    """What a broker does about partitions, without any records: opens what it is given, gives away what is to go."""

    def __init__(self, node: Controller, node_id: int) -> None:
        self._node = node
        self._node_id = node_id
        self._metadata: NodeMetadata | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        registered = await self._node.register_node(self._node_id, f"w{self._node_id}", lease_ms=3_000)
        self._metadata = metadata = self._node.bind(self._node_id, registered.node_epoch)

        async def work() -> None:
            while True:
                mine = self._mine()
                await metadata.open_streams([stream.stream_id for stream in mine if not stream.wal_id])
                await metadata.close_streams(
                    {stream.stream_id: 0 for stream in mine if stream.wal_id and stream.target_node_id != -1}
                )
                await asyncio.sleep(0.05)

        self._task = asyncio.create_task(work())

    def _mine(self) -> list[StreamState]:
        streams = self._node.image.state.tables.streams.values()
        return [stream for stream in streams if stream.node_id == self._node_id]

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def leave(self) -> None:
        """Stop as a broker does: close everything, and say so."""
        await self.stop()
        assert self._metadata is not None
        await self._metadata.close_streams({stream.stream_id: 0 for stream in self._mine() if stream.wal_id})
        await self._metadata.leave_cluster()


def held(node: Controller) -> dict[int, int]:
    """How many partitions each node has open."""
    streams = node.image.state.tables.streams.values()
    return dict(Counter(stream.node_id for stream in streams if stream.wal_id))


def test_partitions_follow_the_nodes_that_come_and_go() -> None:
    async def scenario(cluster: Cluster) -> None:
        openers = []
        for node_id in (1, 2):
            node = await cluster.start()
            opener = Opener(node, node_id)
            openers.append(opener)
            await opener.start()
        first, second = cluster.nodes
        await first.create_topics([TopicSpec(name="t", partition_count=12)])
        await asyncio.sleep(1)
        assert held(first) == {1: 6, 2: 6}
        third = await cluster.start()
        openers.append(Opener(third, 3))
        await openers[2].start()
        await asyncio.sleep(10)
        assert held(first) == {1: 4, 2: 4, 3: 4}, "a node that comes gets its share"
        entries = first.applied_index
        await asyncio.sleep(60)
        assert first.applied_index == entries, "then nothing more moves"

        assert await first.membership.give_away(5_000), "also by the leader itself"
        await asyncio.sleep(0.5)
        assert held(second) == {2: 6, 3: 6}
        await openers[0].stop()
        await first.close()
        assert await second.membership.give_away(5_000)
        await asyncio.sleep(0.5)
        assert held(third) == {3: 12}
        await openers[1].stop()
        await second.close()
        assert not await third.membership.give_away(5_000), "nobody is left to take them"
        assert held(third) == {3: 12}
        await openers[2].stop()

    run(scenario)


def test_nodes_that_all_stop_do_not_wait_for_each_other() -> None:
    """Whoever is left last finds out at once that nobody could take its partitions, and waits no longer."""

    async def scenario(cluster: Cluster) -> None:
        openers = []
        for node_id in (1, 2, 3):
            openers.append(Opener(await cluster.start(), node_id))
            await openers[-1].start()
        await cluster.nodes[0].create_topics([TopicSpec(name="t", partition_count=12)])
        await asyncio.sleep(5)
        assert held(cluster.nodes[0]) == {1: 4, 2: 4, 3: 4}
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def stop(node: Controller, opener: Opener) -> None:
            await node.membership.give_away(60_000)
            await opener.leave()
            await node.close()

        await asyncio.gather(*map(stop, cluster.nodes, openers))
        assert loop.time() - began_s < ControllerSettings().node_timeout_ms / 1_000, "of virtual time"

    run(scenario)


def test_a_node_that_stops_and_comes_to_lead_waits_for_others_to_be_heard() -> None:
    """The leader dies while another node gives its partitions away, and takes the office for that."""

    async def scenario(cluster: Cluster) -> None:
        openers = []
        for node_id, election_timeout_ms in ((1, 1_500), (2, 500), (3, 1_500)):
            openers.append(Opener(await cluster.start(election_timeout_ms=election_timeout_ms), node_id))
            await openers[-1].start()
        first, second, _ = cluster.nodes
        await first.create_topics([TopicSpec(name="t", partition_count=12)])
        await asyncio.sleep(5)
        await openers[0].stop()
        cluster.isolate(first)
        assert await second.membership.give_away(60_000)
        assert second.is_leader
        await asyncio.sleep(0.5)
        assert held(second) == {1: 4, 3: 8}, "what the dead one has open stays with it"
        for opener in openers[1:]:
            await opener.stop()
        cluster.connect(first)

    run(scenario)


def test_a_drained_node_gets_nothing_back_until_that_is_taken_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        openers = []
        for node_id in (1, 2, 3):
            openers.append(Opener(await cluster.start(), node_id))
            await openers[-1].start()
        first, second, third = cluster.nodes
        await first.create_topics([TopicSpec(name="t", partition_count=12)])
        await asyncio.sleep(1)
        assert held(first) == {1: 4, 2: 4, 3: 4}
        for drained in (3, 1):  # 1 leads
            await second.submit(DrainNode(node_id=drained, is_drained=True))
            await asyncio.sleep(1)
        assert held(first) == {2: 12}
        balance = {node.node_id: node for node in (await cluster.network.balance("node1:9093")).nodes}
        assert [(node.lives, node.leaves, node.open_count) for node in balance.values()] == [
            (True, True, 0),
            (True, False, 12),
            (True, True, 0),
        ]
        await asyncio.sleep(30)
        assert held(first) == {2: 12}
        await second.submit(DrainNode(node_id=3, is_drained=False))
        await asyncio.sleep(5)
        assert held(first) == {2: 6, 3: 6}
        await openers[0].stop()
        await openers[0].start()
        await asyncio.sleep(5)
        assert held(third) == {1: 4, 2: 4, 3: 4}, "it was started anew"
        for opener in openers:
            await opener.stop()

    run(scenario)


def test_a_hot_node_gives_busy_partitions_away_once_that_is_certain() -> None:
    async def scenario(cluster: Cluster) -> None:
        openers = []
        for node_id in (1, 2):
            openers.append(Opener(await cluster.start(load_interval_ms=1_000), node_id))
            await openers[-1].start()
        first, second = cluster.nodes
        await first.create_topics([TopicSpec(name="t", partition_count=8)])
        await asyncio.sleep(1)
        streams = first.image.state.tables.streams
        busy = {stream_id for stream_id, stream in streams.items() if stream.node_id == 2}
        assert len(busy) == 4

        async def tell(seconds: int) -> None:
            """Each of those that node 2 had first has 10 MB/s, wherever it is."""
            for _ in range(seconds):
                for node_id, node in ((1, first), (2, second)):
                    own = [stream_id for stream_id in busy if streams[stream_id].node_id == node_id]
                    node.membership.report_load(
                        NodeLoad(
                            bytes_in=10_000_000 * len(own),
                            bytes_out=0,
                            busy=tuple((stream_id, 10_000_000, 0) for stream_id in own),
                        )
                    )
                await asyncio.sleep(1)

        await tell(3)
        assert held(first) == {1: 4, 2: 4}
        assert all(streams[stream_id].node_id == 2 for stream_id in busy), "not before it was told three times"
        await tell(6)
        assert sorted(streams[stream_id].node_id for stream_id in busy) == [1, 1, 2, 2]
        entries = first.applied_index
        await tell(30)
        assert first.applied_index == entries, "then nothing more moves"
        told = await cluster.network.balance("node1:9093")
        assert [(node.bytes_in, node.bytes_out) for node in told.nodes] == [(20_000_000, 0)] * 2
        assert told.moves == ()
        for opener in openers:
            await opener.stop()

    run(scenario)


def test_what_a_dead_node_has_closed_goes_to_others_and_what_it_has_open_stays() -> None:
    async def scenario(cluster: Cluster) -> None:
        nodes = [await cluster.start() for _ in range(2)]
        openers = [Opener(node, number) for number, node in enumerate(nodes, 1)]
        for opener in openers:
            await opener.start()
        await nodes[0].create_topics([TopicSpec(name="t", partition_count=4)])
        await asyncio.sleep(1)
        (leader,) = [node for node in nodes if node.is_leader]
        (dead,) = [node for node in nodes if node is not leader]
        dead_id = nodes.index(dead) + 1
        await openers[dead_id - 1].stop()
        held_open, closed = [s.stream_id for s in leader.image.state.tables.streams.values() if s.node_id == dead_id]
        registered = leader.image.node(dead_id)
        assert registered is not None
        await leader.bind(dead_id, registered.node_epoch).close_streams({closed: 0})
        await dead.close()
        await asyncio.sleep(10)
        streams = leader.image.state.tables.streams
        assert streams[closed].node_id != dead_id
        assert streams[held_open].node_id == dead_id
        await openers[2 - dead_id].stop()

    run(scenario)


def test_errors_of_a_superseded_node_arrive() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        second = await cluster.start()
        former = await second.register_node(2, "w2")
        await second.register_node(2, "w2")
        with pytest.raises(NodeFenced):
            await second.bind(2, former.node_epoch).open_streams([StreamId(1)])

    run(scenario)


def test_a_node_that_was_away_reads_what_the_leader_has_no_more() -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = await cluster.start(), await cluster.start()
        await first.register_node(1, "w1")
        await settled(cluster.nodes)
        cluster.cut_off(first)  # for less than an election takes
        for number in range(100):
            await first.create_topics([TopicSpec(name=f"{number:03}" + "x" * 200, partition_count=1)])
            await first.configure_topic(
                first.image.topic(f"{number:03}" + "x" * 200).topic_id,  # type: ignore[union-attr]
                {"note": "x" * 100_000},
            )
        cluster.network.silent.clear()
        await settled(cluster.nodes)
        assert len(second.image.topic_names()) == 100

    run(scenario)


def test_a_node_alone_among_absent_ones_leads_after_the_election_timeout() -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = await cluster.start(), await cluster.start()
        assert await cluster.leader_among(cluster.nodes) is first
        cluster.cut_off(first)
        await first.close()
        third = await cluster.start()
        cluster.cut_off(second)
        await second.close()
        assert await cluster.leader_among([third]) is third
        cluster.nodes[:] = [third]

    run(scenario)


def test_an_idle_cluster_costs_one_request_of_its_leader_now_and_then() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start(leader_check_interval_ms=2_000)
        await cluster.start()
        await asyncio.sleep(5)
        before = [store.requests.total() for store in cluster.stores]
        await asyncio.sleep(60)
        leader, follower = (store.requests.total() - count for store, count in zip(cluster.stores, before, strict=True))
        assert leader == 30
        assert follower == 0

    run(scenario)


# ---- over TCP


class Nobody:
    """A node that never leads."""

    async def submitted(self, command: Command[Any]) -> Outcome:
        raise NotLeader("no")

    async def followed(self, following: Following) -> Followed:
        raise NotLeader("no")

    async def balance(self) -> Balance:
        raise NotLeader("no")

    async def alive(self, node_id: int) -> None:
        raise NotLeader("no")


async def test_nodes_talk_over_tcp() -> None:
    bucket = Bucket()
    nodes: list[Controller] = []
    servers: list[PeerServer] = []
    peers: list[TcpPeers] = []
    for number in (1, 2):
        listener = _bound()
        port = listener.getsockname()[1]
        node = await Controller.start(
            store=MemoryObjectStore(bucket),
            paths=PATHS,
            settings=ControllerSettings(leader_address=f"127.0.0.1:{port}", election_timeout_ms=300, cluster_id="c"),
            now_ms=lambda: T0_MS,
            rng=random.Random(number),
        )
        server = PeerServer(node.membership, cluster_id="c")
        await server.serve([listener])
        own = TcpPeers(cluster_id="c", node_id=number)
        node.join(own, node_id=number)
        nodes.append(node)
        servers.append(server)
        peers.append(own)
    try:
        while not nodes[0].is_leader:
            await asyncio.sleep(0.01)
        await nodes[1].register_node(2, "w2")
        assert nodes[0].image.node(2) is not None

        await servers[0].close()  # as if it were gone
        made = await nodes[1].create_topics([TopicSpec(name="later", partition_count=1)])
        assert not isinstance(made["later"], Exception)
        assert nodes[1].is_leader
    finally:
        for node in nodes:
            await node.close()
        for each in peers:
            await each.close()
        for server in servers:
            await server.close()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of"),
        (b"\x00\x00\x00\x03abc", "not a message"),
        (b"\x00\x00\x00\x08\x93\x01\xa5other", "not a message"),
        (b"\x00\x00\x00\x09\x93\x01\xa5other\x07", "cluster 'other'"),
        (b"\x00\x00\x00\x05\x93\x63\xa1c\x07", "version 99"),
    ],
)
async def test_strangers_lose_their_connection(sent: bytes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    server = PeerServer(Nobody(), cluster_id="c")
    listener = _bound()
    port = listener.getsockname()[1]
    await server.serve([listener])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await reader.read() == b""
    writer.close()
    await server.close()
    assert reason in caplog.text


async def test_a_closed_server_accepts_on_none_of_its_addresses() -> None:
    """A name such as localhost has several."""
    listeners = [_bound(), _bound()]
    ports = [each.getsockname()[1] for each in listeners]
    server = PeerServer(Nobody(), cluster_id="c")
    await server.serve(listeners)
    for port in ports:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
    await server.close()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


def _bound(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))
