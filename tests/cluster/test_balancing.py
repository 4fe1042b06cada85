"""Brokers that come and go under load: partitions are handed over before a broker stops, and one that joins gets its share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tests.cluster.brokers import TIMEOUT_S, Brokers, Load, all_of, running_brokers, shared, values_in

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
