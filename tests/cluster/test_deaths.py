"""Brokers that are not heard from: who is taken for dead tells nothing and takes nothing when it wakes, and who is only busy is not taken for dead."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from tests.broker.wire import Wire, batch, fetch_request, produce_request
from tests.cluster.blockable import BLOCKED_S, SLOW_S
from tests.cluster.brokers import (
    TIMEOUT_S,
    Brokers,
    Load,
    all_of,
    create_topic,
    figures,
    leaders,
    leading,
    led_when,
    others,
    run_tool,
    running_brokers,
    shared,
)
from tests.crash.process import BrokerProcess, free_port

pytestmark = pytest.mark.crash

NOT_LEADER_OR_FOLLOWER = 6
LATEST = -1


async def status_of(node_id: int, asked: BrokerProcess, wanted: str) -> None:
    """Return when the metadata say so of a node."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            _, text = await asyncio.to_thread(run_tool, asked, "inspect", "metadata")
            (line,) = [line for line in text.splitlines() if line.startswith(f"node {node_id}: ")]
            found = next((status for status in ("SUSPECT", "DEAD") if f", {status} since" in line), "ALIVE")
            if found == wanted:
                return
            await asyncio.sleep(0.2)


async def answer(wire: Wire) -> Any:
    """What is answered to the one request under way; None where the connection is closed instead."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await wire.receive()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def test_a_paused_broker_that_was_taken_for_dead_tells_and_takes_nothing_when_it_wakes(
    brokers: Brokers, tmp_path: Path
) -> None:
    create_topic(brokers, "t", 3)
    led = await shared(brokers, "t", {1: 1, 2: 1, 3: 1})
    controller = await leading(tmp_path / "objects", brokers)
    paused_id = next(node_id for node_id in brokers if node_id != controller)
    paused = brokers[paused_id]
    rest = others(brokers, paused_id)
    (partition,) = [index for index, leader in led.items() if leader == paused_id]
    async with (
        await Wire.connect(paused.bootstrap_servers) as reader,
        await Wire.connect(paused.bootstrap_servers) as asker,
        await Wire.connect(paused.bootstrap_servers) as writer,
    ):
        for number in range(5):
            assert (await writer.produce("t", batch(b"%d" % number), partition=partition)).error_code == 0
        assert (await reader.fetch("t", 5, partition=partition)).error_code == 0
        assert (await asker.list_offset("t", LATEST, partition=partition)).offset == 5

        os.kill(paused.pid, signal.SIGSTOP)
        paused_s = time.monotonic()
        # Questions that it finds when it wakes, before anything tells it what happened meanwhile.
        reader.send("Fetch", 12, fetch_request("t", 5, partition=partition))
        wanted = ListOffsetsPartition(partition_index=partition, timestamp=LATEST)
        topics = [ListOffsetsTopic(name="t", partitions=[wanted])]
        asker.send("ListOffsets", 9, ListOffsetsRequest(replica_id=-1, topics=topics))
        writer.send("Produce", 9, produce_request("t", batch(b"late"), partition=partition))

        await asyncio.to_thread(
            led_when, rest, "t", lambda found: found[partition] in rest, "that others go on with it"
        )
        print(f"served elsewhere {time.monotonic() - paused_s:.2f} s after the pause began")
        asking = AdminClient({"bootstrap.servers": all_of(rest)})
        told = await asyncio.to_thread(asking.list_topics, "t", TIMEOUT_S)
        assert paused_id not in told.brokers, "clients are not sent to the dead"
        producer = Producer({"bootstrap.servers": all_of(rest)})
        for number in range(5, 10):
            producer.produce("t", b"%d" % number, partition=partition)
        assert await asyncio.to_thread(producer.flush, TIMEOUT_S) == 0

        os.kill(paused.pid, signal.SIGCONT)
        fetched, listed, produced = await answer(reader), await answer(asker), await answer(writer)
    if fetched is not None:
        (data,) = fetched.responses[0].partitions
        assert (data.error_code, data.high_watermark, list(data.records or ())) == (NOT_LEADER_OR_FOLLOWER, -1, [])
    if listed is not None:
        assert listed.topics[0].partitions[0].error_code == NOT_LEADER_OR_FOLLOWER
    if produced is not None:
        assert produced.responses[0].partition_responses[0].error_code == NOT_LEADER_OR_FOLLOWER
    # It begins anew by itself.
    await status_of(paused_id, brokers[controller], "ALIVE")
    assert "others took it for dead" in paused.log_path.read_text()
    await asyncio.to_thread(paused.wait_ready)
    assert not paused.has_ended(), paused.log_tail()
    async with await Wire.connect(brokers[leaders(brokers, "t")[partition]].bootstrap_servers) as wire:
        assert await wire.fetch_all("t", partition=partition) == [b"%d" % number for number in range(10)]


async def test_a_broker_whose_event_loop_is_blocked_is_not_taken_for_dead_and_keeps_its_lease(tmp_path: Path) -> None:
    # Patience for a machine that is short of breath itself: still, a silence of BLOCKED_S would be a death, and the end of a lease.
    patient = {"broker.session.timeout.ms": 4_000, "broker.lease.ms": 6_000}

    def served(node_id: int) -> dict[str, object]:
        return {"metrics.listeners": f"HTTP://127.0.0.1:{free_port()}"}

    with running_brokers(tmp_path, program="tests.cluster.blockable", of_each=served, **patient) as brokers:
        create_topic(brokers, "t", 3)
        led = await shared(brokers, "t", {1: 1, 2: 1, 3: 1})
        controller = await leading(tmp_path / "objects", brokers)
        follower = next(node_id for node_id in brokers if node_id != controller)
        with Load(all_of(brokers), "t", 3) as load:
            for blocked in (follower, controller):
                (partition,) = [index for index, leader in led.items() if leader == blocked]
                looks = figures(brokers, "tidelog_lease_looks_total", found="tail")
                lapses = figures(brokers, "tidelog_lease_lapses_total")
                async with await Wire.connect(brokers[blocked].bootstrap_servers) as wire:
                    os.kill(brokers[blocked].pid, signal.SIGUSR1)
                    await asyncio.sleep(0.5)
                    blocked_s = time.monotonic()
                    told = await wire.list_offset("t", LATEST, partition=partition)
                    assert time.monotonic() - blocked_s > BLOCKED_S / 2, "it was blocked indeed"
                    assert told.error_code == 0, "it had its lease when it woke"
                await asyncio.sleep(2.0)
                assert figures(brokers, "tidelog_lease_looks_total", found="tail")[blocked] > looks[blocked]
                assert figures(brokers, "tidelog_lease_lapses_total")[blocked] == lapses[blocked]
        assert load.errors == []
        print(f"the longest gap between acknowledgements was {load.longest_gap_s:.2f} s")
        for broker in brokers.values():
            assert "a node is taken for dead" not in broker.log_path.read_text()
            assert not broker.has_ended(), broker.log_tail()


async def test_a_broker_whose_event_loop_is_slow_answers_on(tmp_path: Path) -> None:
    """Its own renewals take longer than a lease, since each of their steps waits for a turn of the loop."""

    def served(node_id: int) -> dict[str, object]:
        return {"metrics.listeners": f"HTTP://127.0.0.1:{free_port()}"}

    patient = {"broker.session.timeout.ms": 4_000}
    with running_brokers(tmp_path, 2, program="tests.cluster.blockable", of_each=served, **patient) as brokers:
        create_topic(brokers, "t", 2)
        led = await shared(brokers, "t", {1: 1, 2: 1})
        controller = await leading(tmp_path / "objects", brokers)
        slow = next(node_id for node_id in brokers if node_id != controller)
        (partition,) = [index for index, leader in led.items() if leader == slow]
        looks = figures(brokers, "tidelog_lease_looks_total", found="tail")
        async with await Wire.connect(brokers[slow].bootstrap_servers) as wire:
            os.kill(brokers[slow].pid, signal.SIGUSR2)
            until_s = time.monotonic() + SLOW_S
            codes = []
            while time.monotonic() < until_s:
                codes.append((await wire.list_offset("t", LATEST, partition=partition)).error_code)
        print(f"{len(codes)} answers in {SLOW_S} s")
        assert set(codes) == {0}
        assert figures(brokers, "tidelog_lease_looks_total", found="tail")[slow] > looks[slow]


async def test_a_broker_that_stops_in_order_is_gone_at_once(brokers: Brokers) -> None:
    admin = AdminClient({"bootstrap.servers": all_of(brokers)})
    assert sorted(admin.list_topics(timeout=TIMEOUT_S).brokers) == [1, 2, 3]
    await asyncio.to_thread(brokers[2].stop)
    await status_of(2, brokers[1], "DEAD")
    for broker in (brokers[1], brokers[3]):
        assert "not heard from" not in broker.log_path.read_text(), "it said so itself"
        assert sorted(AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=TIMEOUT_S).brokers) == [1, 3]  # fmt: skip
    brokers[2].start()
    await asyncio.to_thread(brokers[2].wait_ready)
    await status_of(2, brokers[1], "ALIVE")
