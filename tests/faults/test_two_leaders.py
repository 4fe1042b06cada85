"""A leader that is stopped in the middle of a commit, and wakes when another one leads: the two never both commit.

Real processes on MinIO. What counts is read in the bucket by code of the tests' own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.messages.metadata import MetadataRequest
from tests.broker.wire import Wire
from tests.faults.cluster import PREFIX, Cluster, running_cluster
from tests.faults.metadata import counted, leaders, read_log, topics_created
from tests.faults.network import Trap
from tests.stores.s3_server import S3Server

pytestmark = [pytest.mark.crash, pytest.mark.slow]

TIMEOUT_S = 60.0
ROUNDS = 2 * int(os.environ.get("FAULTS_CONTROLLER_ROUNDS", "1"))


async def leader_other_than(cluster: Cluster, former: int) -> int:
    async with asyncio.timeout(TIMEOUT_S):
        while (found := await cluster.leader()) in (0, former):
            await asyncio.sleep(0.05)
    return found


async def created(cluster: Cluster, node_id: int, name: str) -> bool:
    """Ask a node to create a topic; whether it says that it did."""
    async with asyncio.timeout(TIMEOUT_S), await Wire.connect(cluster.nodes[node_id].broker.bootstrap_servers) as wire:
        try:
            await wire.create_topic(name)
        except AssertionError:
            return False
        return True


async def test_a_leader_that_slept_in_the_middle_of_a_commit_commits_nothing_beside_its_successor(
    s3_server_named: Callable[[str], S3Server], tmp_path: Path
) -> None:
    server = s3_server_named("minio")
    promised: set[str] = set()
    with running_cluster(tmp_path, server) as cluster:
        for round_ in range(ROUNDS):
            former = await leader_other_than(cluster, 0)
            node = cluster.nodes[former]
            # The entry's PUT is held on its way to the store; every second time only its answer is.
            node.store.trap = trap = Trap(
                f"PUT /{cluster.bucket}/{PREFIX}/metadata/log/".encode(), passes=round_ % 2 == 1
            )
            slept = asyncio.create_task(created(cluster, former, f"by-the-one-that-slept-{round_}"))
            assert await asyncio.to_thread(trap.sprung.wait, TIMEOUT_S)
            node.pause()
            now = await leader_other_than(cluster, former)
            assert await created(cluster, now, f"by-its-successor-{round_}")
            promised.add(f"by-its-successor-{round_}")
            cluster.network.heal()  # now the PUT arrives, while its sender sleeps
            await asyncio.sleep(0.2)
            node.resume()
            if await slept:
                promised.add(f"by-the-one-that-slept-{round_}")
            assert await created(cluster, former, f"after-it-woke-{round_}"), "it follows, and its commands are decided"
            promised.add(f"after-it-woke-{round_}")

        log = read_log(server, cluster.bucket, PREFIX)
        entries = counted(log)
        told = []
        for each in cluster.nodes.values():
            async with await Wire.connect(each.broker.bootstrap_servers) as wire:
                told.append(await topics_known(wire))
    offices = leaders(entries)
    print(
        f"{len(log)} entries, {len(log) - len(entries)} of them by deposed leaders without effect; offices {len(offices)}; "
        f"{len(promised)} topics promised"
    )
    assert all(len(addresses) == 1 for addresses in offices.values()), "an office has one holder"
    assert len(offices) > ROUNDS
    names = topics_created(entries)
    assert len(set(names)) == len(names), "nothing was committed twice"
    assert promised <= set(names), "what was promised counts"
    assert told == [set(names)] * 3, "all nodes know what counts, and nothing else"


async def topics_known(wire: Wire) -> set[str]:
    response = await wire.call("Metadata", 12, MetadataRequest(topics=None))
    return {topic.name for topic in response.topics}
