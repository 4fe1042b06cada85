"""The leader has partitions moved where nodes come and go, are drained or run hot."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.node_metadata import NodeMetadata
from controller.nodes import DrainNode
from controller.peers import NodeLoad
from controller.tables import StreamState
from tests.controller.cluster import Cluster, run


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
                await self._close([stream for stream in mine if stream.wal_id and stream.target_node_id != -1])
                await asyncio.sleep(0.05)

        self._task = asyncio.create_task(work())

    def _mine(self) -> list[StreamState]:
        streams = self._node.image.state.tables.streams.values()
        return [stream for stream in streams if stream.node_id == self._node_id]

    async def _close(self, streams: Sequence[StreamState]) -> None:
        assert self._metadata is not None
        leader_epochs = {stream.stream_id: stream.leader_epoch for stream in streams}
        await self._metadata.close_streams(dict.fromkeys(leader_epochs, 0), leader_epochs)

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def leave(self) -> None:
        """Stop as a broker does: close everything, and say so."""
        await self.stop()
        assert self._metadata is not None
        await self._close([stream for stream in self._mine() if stream.wal_id])
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
        leader_epoch = leader.image.state.tables.streams[closed].leader_epoch
        registered = leader.image.node(dead_id)
        assert registered is not None
        await leader.bind(dead_id, registered.node_epoch).close_streams({closed: 0}, {closed: leader_epoch})
        await dead.close()
        await asyncio.sleep(10)
        streams = leader.image.state.tables.streams
        assert streams[closed].node_id != dead_id
        assert streams[held_open].node_id == dead_id
        await openers[2 - dead_id].stop()

    run(scenario)
