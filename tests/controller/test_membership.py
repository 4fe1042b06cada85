"""Several controllers on one bucket: one leads, the others follow; it is replaced when it does not answer."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from controller.controller import Controller, TopicSpec
from controller.errors import TopicExists
from controller.log import LeaderObject
from s3stream.errors import MetadataUnavailable, NodeFenced
from s3stream.memory import Faults
from s3stream.metadata import StreamId
from tests.controller.cluster import Cluster, run, settled


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
