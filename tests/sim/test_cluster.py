"""Three brokers keep their promises to clients whatever happens to any of them, and a seed replays that exactly."""

from __future__ import annotations

from multiprocessing.pool import Pool

import pytest

from tests.sim.cluster import simulate_cluster
from tests.sim.replay import digests_by_hash_seed

SEEDS = range(1, 14)


def test_a_seed_replays_exactly_whatever_the_hash_seed() -> None:
    assert len(digests_by_hash_seed(simulate_cluster, 5)) == 1


@pytest.mark.slow
def test_every_promise_is_kept(workers: Pool) -> None:
    outcomes = workers.map(simulate_cluster, SEEDS, chunksize=1)
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
