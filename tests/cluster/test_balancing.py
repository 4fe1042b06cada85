"""Brokers that come and go under load: partitions are handed over before a broker stops, and one that joins gets its share."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from broker.cluster_client import open_cluster
from tests.cluster.brokers import (
    TIMEOUT_S,
    Brokers,
    Load,
    all_of,
    leaders,
    run_tool,
    running_brokers,
    shared,
    values_in,
)

pytestmark = pytest.mark.crash

PARTITIONS = 12


async def test_a_rolling_restart_costs_no_request(brokers: Brokers) -> None:
    admin = AdminClient({"bootstrap.servers": all_of(brokers)})
    admin.create_topics([NewTopic("t", num_partitions=PARTITIONS)])["t"].result(TIMEOUT_S)
    await shared(brokers, "t", {1: 4, 2: 4, 3: 4})
    with Load(all_of(brokers), "t", PARTITIONS) as load:
        for node_id, broker in brokers.items():
            await asyncio.sleep(1.0)
            await asyncio.to_thread(broker.stop)
            assert "partitions stay with this node" not in broker.log_path.read_text()
            others = [other for other in brokers if other != node_id]
            await shared({other: brokers[other] for other in others}, "t", dict.fromkeys(others, PARTITIONS // 2))
            broker.start()
            await asyncio.to_thread(broker.wait_ready)
            await shared(brokers, "t", dict.fromkeys(brokers, PARTITIONS // 3))
    print(f"the longest gap between acknowledgements was {load.longest_gap_s:.2f} s")
    assert load.errors == []
    found = await asyncio.to_thread(values_in, all_of(brokers), "t", PARTITIONS)
    assert found == load.acknowledged, "each record once, in order"


async def test_a_broker_that_joins_takes_traffic(tmp_path: Path) -> None:
    with running_brokers(tmp_path, 3, started=2) as brokers:
        running = {node_id: broker for node_id, broker in brokers.items() if node_id != 3}
        admin = AdminClient({"bootstrap.servers": all_of(running)})
        admin.create_topics([NewTopic("t", num_partitions=PARTITIONS)])["t"].result(TIMEOUT_S)
        await shared(running, "t", {1: 6, 2: 6})
        with Load(all_of(running), "t", PARTITIONS) as load:
            await asyncio.sleep(1.0)
            brokers[3].start()
            await asyncio.to_thread(brokers[3].wait_ready)
            await shared(brokers, "t", {1: 4, 2: 4, 3: 4})
            await asyncio.sleep(1.0)
        assert load.errors == []
        assert await asyncio.to_thread(values_in, all_of(running), "t", PARTITIONS) == load.acknowledged


async def test_busy_partitions_are_spread_when_somebody_says_so(tmp_path: Path) -> None:
    settings = {
        "balance.enable": False,
        "balance.load.interval.ms": 300,
        "balance.load.tolerance.bytes.per.second": 10_000,
    }
    with running_brokers(tmp_path, 2, **settings) as brokers:
        admin = AdminClient({"bootstrap.servers": all_of(brokers)})
        admin.create_topics([NewTopic("t", num_partitions=8)])["t"].result(TIMEOUT_S)
        await shared(brokers, "t", {1: 4, 2: 4})
        busy = [index for index, leader in leaders(brokers, "t").items() if leader == 2]
        with Load(all_of(brokers), "t", 8, only=busy, size_bytes=5_000) as load:

            async def told(*arguments: str) -> list[dict[str, Any]]:
                code, output = await asyncio.to_thread(run_tool, brokers[1], "balance", "--json", *arguments)
                assert code == 0, output
                return [json.loads(line) for line in output.splitlines()]

            objects = str(brokers[1].settings["object.store.uri"])
            async with (
                asyncio.timeout(TIMEOUT_S),
                open_cluster(objects, cluster_id="", rng=random.Random(0)) as cluster,
            ):
                while not (await cluster.balance()).moves:
                    await asyncio.sleep(0.1)
            moves = []
            while not moves:  # it may be that a broker was late to report, just now
                moves = [row for row in await told("--dry-run") if row["kind"] == "move"]
            assert {(move["source"], move["target"]) for move in moves} <= {(2, 1), (1, 2)}
            assert {move["partition"] for move in moves if move["source"] == 2} <= {f"t-{index}" for index in busy}
            assert "MB/s in, the average is" in moves[0]["why"]
            assert {leaders(brokers, "t")[index] for index in busy} == {2}, "that was a dry run"
            async with asyncio.timeout(TIMEOUT_S):  # it may be that a broker was late to report, just now
                rows = await told()
                while not (moves := [row for row in rows if row["kind"] == "move"]):
                    await asyncio.sleep(0.3)
                    rows = await told()
            assert any(row["message"].endswith("(balance.enable)") for row in rows if row["kind"] == "note")
            expected = {int(move["partition"].partition("-")[2]): move["target"] for move in moves}
            assert expected
            async with asyncio.timeout(TIMEOUT_S):
                while not expected.items() <= (await asyncio.to_thread(leaders, brokers, "t")).items():
                    await asyncio.sleep(0.1)
            assert {leaders(brokers, "t")[index] for index in busy} == {1, 2}
        assert load.errors == []
