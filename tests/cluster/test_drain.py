"""`tidelog drain` on brokers that run: everything goes, under load, and comes back only when it may."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.cluster.brokers import (
    TIMEOUT_S,
    Brokers,
    Load,
    all_of,
    create_topic,
    leaders,
    run_tool,
    running_brokers,
    shared,
    values_in,
)

pytestmark = pytest.mark.crash

PARTITIONS = 12


async def test_a_drained_broker_gives_everything_away_and_gets_nothing_back(brokers: Brokers) -> None:
    create_topic(brokers, "t", PARTITIONS)
    await shared(brokers, "t", {1: 4, 2: 4, 3: 4})
    with Load(all_of(brokers), "t", PARTITIONS) as load:
        await asyncio.sleep(1.0)
        code, output = await asyncio.to_thread(run_tool, brokers[2], "drain", "1", "--json")
        rows = [json.loads(line) for line in output.splitlines()]
        assert code == 0
        assert rows[-1]["kind"] == "drained"
        assert (rows[-1]["moved"], rows[-1]["takers"]) == (4, {"2": 2, "3": 2})
        assert set(leaders(brokers, "t").values()) == {2, 3}
        code, output = await asyncio.to_thread(run_tool, brokers[2], "drain", "1")
        assert (code, output) == (0, "node 1 has no partitions, and gets none\n"), "once more changes nothing"
        # Also not of what comes into being from now on.
        create_topic(brokers, "later", 6)
        await shared(brokers, "later", {2: 3, 3: 3})
        code, output = await asyncio.to_thread(run_tool, brokers[3], "drain", "1", "--cancel")
        assert code == 0
        assert "gets partitions again" in output
        async with asyncio.timeout(TIMEOUT_S):
            while 1 not in {*leaders(brokers, "t").values(), *leaders(brokers, "later").values()}:
                await asyncio.sleep(0.1)
    assert load.errors == []
    found = await asyncio.to_thread(values_in, all_of(brokers), "t", PARTITIONS)
    assert found == load.acknowledged, "each record once, in order"


def test_what_cannot_be_drained_is_told(tmp_path: Path) -> None:
    with running_brokers(tmp_path, 2) as brokers:
        code, output = run_tool(brokers[1], "drain", "9")
        assert code == 2
        assert "node 9 is not registered; these are: 1, 2" in output
        brokers[2].kill()
        deadline = time.monotonic() + TIMEOUT_S
        while (told := run_tool(brokers[1], "drain", "2"))[0] == 0:  # it was heard from a moment ago
            assert time.monotonic() < deadline
        assert "node 2 does not run" in told[1]
        code, output = run_tool(brokers[1], "drain", "1")
        assert code == 2
        assert "no other node runs that could have the partitions of node 1" in output
        brokers[1].stop()
        code, output = run_tool(brokers[1], "drain", "1")
        assert code == 2
        assert "no broker leads in this bucket" in output
