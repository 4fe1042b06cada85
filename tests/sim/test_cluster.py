"""Three brokers keep their promises to clients whatever happens to any of them, and a seed replays that exactly."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys

import pytest

from tests.sim.cluster import simulate_cluster

SEEDS = [*range(1, 13)]
JOBS = 2


def trace_of(seed: int) -> str:
    return hashlib.sha256(simulate_cluster(seed).trace.encode()).hexdigest()


def test_a_seed_replays_exactly_whatever_the_hash_seed() -> None:
    script = "from tests.sim.test_cluster import trace_of; print(trace_of(5))"
    traces = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            env={"PYTHONHASHSEED": str(hash_seed), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in (1, 2)
    }
    assert len(traces) == 1


@pytest.mark.slow
def test_every_promise_is_kept() -> None:
    with multiprocessing.get_context("spawn").Pool(JOBS) as pool:
        outcomes = pool.map(simulate_cluster, SEEDS, chunksize=1)
    failed = {outcome.seed: outcome.problems for outcome in outcomes if outcome.problems}
    assert not failed, f"replay: make sim ARGS=--cluster SEEDS={','.join(map(str, failed))}"
    # A simulation in which nothing happens keeps every promise.
    for what, least in (
        ("crashes", 1),
        ("suspensions", 0.25),
        ("recoveries", 0.5),
        ("reassignments", 3),
        ("leaders", 2),
    ):
        assert sum(outcome.stats[what] for outcome in outcomes) > least * len(SEEDS), what
    assert sum(outcome.acknowledged for outcome in outcomes) > 100 * len(SEEDS)
