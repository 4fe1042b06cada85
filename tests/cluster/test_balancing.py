"""Brokers that come, go and run hot under load: partitions are handed over before a broker stops, one that joins gets its share, and busy
partitions leave a broker that has too many of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker.cluster_client import ClusterClient, open_cluster
from broker.config_resources import Operation
from controller.peers import Balance
from tests.broker.test_configs import BROKER, alter
from tests.broker.wire import Wire
from tests.cluster.brokers import (
    TIMEOUT_S,
    Brokers,
    Load,
    Reader,
    all_of,
    create_topic,
    figures,
    leaders,
    led_when,
    others,
    run_tool,
    running_brokers,
    said,
    shared,
    values_in,
)
from tests.crash.process import free_port

pytestmark = pytest.mark.crash

PARTITIONS = 12


# ---- brokers that come and go -------------------------------------------------------------------------------------------


@pytest.fixture
def patient_brokers(tmp_path: Path) -> Iterator[Brokers]:
    """Three brokers that hand over also where the disk that they all share stands still for seconds: their objects are on it, too."""
    with running_brokers(tmp_path, **{"shutdown.timeout.ms": 25_000}) as found:
        yield found


async def test_a_rolling_restart_costs_no_request(patient_brokers: Brokers) -> None:
    """Of an idempotent producer, of one that is not, of a consumer and of its group: all have default settings."""
    brokers = patient_brokers
    create_topic(brokers, "t", PARTITIONS)
    await shared(brokers, "t", {1: 4, 2: 4, 3: 4})
    halves = range(PARTITIONS // 2), range(PARTITIONS // 2, PARTITIONS)
    with Reader(all_of(brokers), "t", PARTITIONS) as reader:
        with (
            Load(all_of(brokers), "t", PARTITIONS, only=halves[0]) as load,
            Load(all_of(brokers), "t", PARTITIONS, only=halves[1], idempotent=False) as plain,
        ):
            for node_id, broker in brokers.items():
                await asyncio.sleep(1.0)
                load.longest_gap_of_one_s = plain.longest_gap_of_one_s = 0.0
                await asyncio.to_thread(broker.stop)
                assert "partitions stay with this node" not in broker.log_path.read_text()
                rest = others(brokers, node_id)
                await led_by_all(rest)
                gap_s = max(load.longest_gap_of_one_s, plain.longest_gap_of_one_s)
                print(f"node {node_id} stopped: a partition was acknowledged nothing for {gap_s * 1e3:.0f} ms at most")
                broker.start()
                await asyncio.to_thread(broker.wait_ready)
                await led_by_all(brokers)
        sent = {index: (load if index in halves[0] else plain).acknowledged[index] for index in range(PARTITIONS)}
        await reader.read(sent)
    assert load.errors == plain.errors == reader.errors == []
    assert await asyncio.to_thread(values_in, all_of(brokers), "t", PARTITIONS) == sent, "each record once, in order"
    assert reader.values == sent


async def led_by_all(brokers: Brokers) -> None:
    """Return when each of these has some of the partitions, and others none."""
    await asyncio.to_thread(led_when, brokers, "t", lambda found: {*found.values()} == brokers.keys(), "that all lead")


async def test_a_broker_that_joins_takes_traffic(tmp_path: Path) -> None:
    ports = {node_id: free_port() for node_id in (1, 2, 3)}
    with running_brokers(
        tmp_path, 3, started=2, of_each=lambda node: {"metrics.listeners": f"HTTP://127.0.0.1:{ports[node]}"}
    ) as brokers:
        running, joining = others(brokers, 3), {3: brokers[3]}
        create_topic(running, "t", PARTITIONS)
        await shared(running, "t", {1: 6, 2: 6})
        with Reader(all_of(running), "t", PARTITIONS) as reader:
            with Load(all_of(running), "t", PARTITIONS) as load:
                await asyncio.sleep(1.0)
                began_s = time.monotonic()
                brokers[3].start()
                await asyncio.to_thread(brokers[3].wait_ready)
                ready_s = time.monotonic()
                for what in ("received", "sent"):
                    await until_counted(joining, f"tidelog_{what}_bytes_total", topic="t")
                    now_s = time.monotonic()
                    print(
                        f"a broker that joins has {what} records {now_s - began_s:.1f} s after its process was started, "
                        f"{now_s - ready_s:.1f} s after it was ready"
                    )
                await led_by_all(brokers)
                await asyncio.sleep(1.0)
            await reader.read(load.acknowledged)
        assert load.errors == reader.errors == []
        assert await asyncio.to_thread(values_in, all_of(running), "t", PARTITIONS) == load.acknowledged


async def until_counted(brokers: Brokers, name: str, **labels: str) -> None:
    """Return when a metric of each is not zero."""
    async with asyncio.timeout(TIMEOUT_S):
        while not all((await asyncio.to_thread(figures, brokers, name, **labels)).values()):
            await asyncio.sleep(0.05)


# ---- brokers that run hot -----------------------------------------------------------------------------------------------

HOT_PARTITIONS = 8


@contextlib.contextmanager
def hot_brokers(directory: Path) -> Iterator[tuple[Brokers, list[int]]]:
    """Two brokers with as many partitions each, the busy ones of which (they are told) are by chance all of node 2. Nothing moves by itself."""
    settings = {
        "balance.enable": False,
        "balance.load.interval.ms": 1_000,
        # Less than the twofold that node 2 has, and more than the noise of windows of three seconds on a busy machine. Half of it is aimed at.
        "balance.load.tolerance.percent": 80,
        "balance.load.tolerance.bytes.per.second": 10_000,
    }
    with running_brokers(directory, 2, **settings) as brokers:
        create_topic(brokers, "t", HOT_PARTITIONS)
        led = led_when(
            brokers, "t", lambda found: sorted(found.values()) == [1] * 4 + [2] * 4, "that each has its half"
        )
        busy = [index for index, leader in led.items() if leader == 2]
        with Load(all_of(brokers), "t", HOT_PARTITIONS, only=busy, size_bytes=5_000) as load:
            yield brokers, busy
        assert load.errors == []
        assert values_in(all_of(brokers), "t", HOT_PARTITIONS) == load.acknowledged, "each record once, in order"


@contextlib.asynccontextmanager
async def asking(brokers: Brokers) -> AsyncIterator[ClusterClient]:
    """What `tidelog balance` asks with, for questions in close succession."""
    objects = str(brokers[1].settings["object.store.uri"])
    async with open_cluster(objects, cluster_id="", rng=random.Random(0)) as cluster:
        yield cluster


async def planned(cluster: ClusterClient) -> Balance:
    """The leader's plan, as soon as it has one."""
    async with asyncio.timeout(TIMEOUT_S):
        while not (found := await cluster.balance()).moves:
            await asyncio.sleep(0.1)
    return found


async def told(brokers: Brokers, *arguments: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The moves and notes that `tidelog balance` tells of; at least one move, though a broker may be late to report at times."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            code, output = await asyncio.to_thread(run_tool, brokers[1], "balance", "--json", *arguments)
            assert code == 0, output
            rows = [json.loads(line) for line in output.splitlines()]
            if moves := [row for row in rows if row["kind"] == "move"]:
                return moves, [row["message"] for row in rows if row["kind"] == "note"]
            await asyncio.sleep(0.3)


async def let_balance(brokers: Brokers) -> None:
    """As `kafka-configs --alter --entity-type brokers --entity-default --add-config balance.enable=true` does; librdkafka cannot."""
    async with await Wire.connect(brokers[1].bootstrap_servers) as wire:
        assert await alter(wire, BROKER, "", ("balance.enable", Operation.SET, "true")) == (0, None)


async def test_a_hot_broker_is_relieved_by_itself_once(tmp_path: Path) -> None:
    """A dry run tells beforehand what is to move and why; then that moves, and all is quiet again (hysteresis)."""
    with hot_brokers(tmp_path) as (brokers, busy):
        async with asking(brokers) as cluster:
            await planned(cluster)
            moves, notes = await told(brokers, "--dry-run")
            assert {(move["source"], move["target"]) for move in moves} == {(2, 1), (1, 2)}, (
                "idle ones come back for them"
            )
            assert {move["partition"] for move in moves if move["source"] == 2} < {f"t-{index}" for index in busy}
            assert all("node 2 has" in move["why"] and "MB/s in, the average is" in move["why"] for move in moves)
            assert "the leader leaves partitions where they are put (balance.enable)" in notes
            assert {leaders(brokers, "t")[index] for index in busy} == {2}, "that was a dry run"

            await let_balance(brokers)

            def is_even(found: Mapping[int, int]) -> bool:
                return sorted(found[index] for index in busy) == [1, 1, 2, 2]

            await asyncio.to_thread(led_when, brokers, "t", is_even, "that two of four busy partitions moved")
            # The leader knows loads again once all reported three times since; then it looks at them for some reports more.
            led: list[dict[int, int]] = []
            async with asyncio.timeout(TIMEOUT_S):
                while len(led) < 8:
                    await asyncio.sleep(0.5)
                    found = await cluster.balance()
                    assert not found.moves
                    if all(node.bytes_in >= 0 for node in found.nodes):
                        led.append(await asyncio.to_thread(leaders, brokers, "t"))
            assert all(each == led[0] for each in led)
    lines = said(brokers, 'event="partitions are moved', "MB/s in, the average is")
    assert len(lines) == 1, lines


async def test_a_hot_broker_is_relieved_when_somebody_says_so(tmp_path: Path) -> None:
    with hot_brokers(tmp_path) as (brokers, busy):
        async with asking(brokers) as cluster:
            await planned(cluster)
        moves, notes = await told(brokers)
        assert any(note.endswith("(balance.enable)") for note in notes)
        expected = {int(move["partition"].partition("-")[2]): move["target"] for move in moves}
        assert expected
        await asyncio.to_thread(
            led_when, brokers, "t", lambda found: expected.items() <= found.items(), f"that these moved: {expected}"
        )
        assert {leaders(brokers, "t")[index] for index in busy} == {1, 2}
