"""The controller that leads is killed, paused, stopped and cut off, again and again, and no client with default settings notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tests.checker.history import History, check
from tests.crash.load import create_topic, read_topic
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.load import Load, all_loads, loading
from tests.interop.clients.driver import FranzGo, Java
from tests.interop.conftest import installed
from tests.stores.s3_server import S3Server

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROUNDS = int(os.environ.get("FAULTS_CONTROLLER_ROUNDS", "1"))
"""Of each way to lose a leader."""
WAYS = os.environ.get("FAULTS_CONTROLLER_WAYS", "killed,paused,stopped,cut off,cut off from the store as well").split(
    ","
)
PARTITIONS = 6
TIMEOUT_S = 60.0


@contextlib.asynccontextmanager
async def lost(cluster: Cluster, leader: int, how: str) -> AsyncIterator[None]:
    """Within the block the leader is no use."""
    node = cluster.nodes[leader]
    match how:
        case "killed":
            node.broker.kill()
        case "paused":
            node.pause()
        case "stopped":
            await asyncio.to_thread(node.broker.stop)
        case "cut off":
            cluster.isolate_controller(leader)
        case "cut off from the store as well":
            cluster.isolate_controller(leader)
            node.store.is_cut = True
        case _:
            raise AssertionError(f"{how} is no way to lose a leader")
    yield
    if how == "paused":
        node.resume()
    elif how in ("killed", "stopped"):
        node.broker.start()
        await asyncio.to_thread(node.broker.wait_ready)
    cluster.network.heal()


async def leader_other_than(cluster: Cluster, former: int) -> int:
    async with asyncio.timeout(TIMEOUT_S):
        while (found := await cluster.leader()) in (0, former):
            await asyncio.sleep(0.05)
    return found


async def going_on(loads: Sequence[Load]) -> None:
    """Return when every producer was acknowledged something by every partition, from now on: its gap is over."""
    began_s = time.monotonic()
    await asyncio.sleep(1.0)
    async with asyncio.timeout(TIMEOUT_S):
        while not all(load.goes_on_since(began_s) for load in loads):
            await asyncio.sleep(0.05)


def longest_gaps(loads: Sequence[Load]) -> dict[str, float]:
    """Since the last call, by producer."""
    found = {load.name: round(load.longest_gap_s, 2) for load in loads}
    for load in loads:
        load.longest_gap_s = 0.0
    return found


async def test_no_client_notices_that_a_leader_is_lost(
    s3_server_named: Callable[[str], S3Server], tmp_path: Path
) -> None:
    for client in (Java(""), FranzGo("")):
        installed(client)
    history = History()
    with running_cluster(tmp_path, s3_server_named("minio")) as cluster:
        create_topic(cluster.bootstrap_servers, "t", PARTITIONS)
        loads = all_loads(cluster.bootstrap_servers, "t", PARTITIONS, history, per_s=50, log_directory=tmp_path)
        gaps: dict[str, dict[str, float]] = {}
        with loading(loads):
            await going_on(loads)
            for round_ in range(ROUNDS):
                for how in WAYS:
                    longest_gaps(loads)
                    former = await leader_other_than(cluster, 0)
                    async with lost(cluster, former, how):
                        now = await leader_other_than(cluster, former)
                        # The new one decides: a topic comes into being while the former leader is away.
                        admin = AdminClient({"bootstrap.servers": cluster.nodes[now].broker.bootstrap_servers})
                        name = f"made-{round_}-{how.replace(' ', '-')}"
                        await asyncio.to_thread(admin.create_topics([NewTopic(name, 1)])[name].result, TIMEOUT_S)
                    await going_on(loads)
                    for name, gap_s in longest_gaps(loads).items():
                        of_this = gaps.setdefault(how, {})
                        of_this[name] = max(gap_s, of_this.get(name, 0.0))
        for how, by_producer in gaps.items():
            told = ", ".join(f"{name} {gap_s:.2f} s" for name, gap_s in by_producer.items())
            print(f"{ROUNDS} × {how}: longest gaps between acknowledgements of one partition: {told}")
        assert [f"{load.name}: {error}" for load in loads for error in load.errors] == []
        check(history, await asyncio.to_thread(read_topic, cluster.bootstrap_servers, "t", PARTITIONS))
        assert history.acknowledged_count == history.sent_count > 0
        for node in cluster.nodes.values():
            assert not node.broker.has_ended(), node.broker.log_tail()
