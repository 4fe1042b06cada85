"""The broker keeps its promises in every simulated history, and a seed replays one of them exactly."""

from __future__ import annotations

from multiprocessing.pool import Pool

import pytest

from tests.sim.__main__ import parse_seeds
from tests.sim.replay import digests_by_hash_seed
from tests.sim.simulation import simulate

FOUND = {
    1939: "clients hung up on a broker that stood still, which it was not told",
    3911: "a broker that was deposed took what others had compacted for lost",
    3938: "the same",
    19090: "an order came to a broker that had ended meanwhile",
    24752: "records grew too old while the simulation went on",
    33927: "an order was given to a broker that stood still, and was waited for when another one had relieved it",
    38725: "a merge put an older state in the place of one that was put by itself meanwhile, and retention ended",
    39247: "a broker registered after the one that its node id was given to, so that this one was deposed",
}
"""Seeds that found something, and what."""
SEEDS = [*range(1, 301), *FOUND]


@pytest.mark.parametrize("seed", [3, 5])
def test_a_seed_replays_exactly_whatever_the_hash_seed(seed: int) -> None:
    assert len(digests_by_hash_seed(simulate, seed)) == 1


def test_seeds_are_written_as_numbers_and_ranges() -> None:
    assert parse_seeds("7") == [7]
    assert parse_seeds("1..3,9") == [1, 2, 3, 9]


@pytest.mark.slow
def test_every_promise_is_kept(workers: Pool) -> None:
    outcomes = workers.map(simulate, SEEDS, chunksize=5)
    failed = {outcome.seed: outcome.problems for outcome in outcomes if outcome.problems}
    assert not failed, f"replay: make sim SEEDS={','.join(map(str, failed))}"
    # A simulation in which nothing happens keeps every promise.
    assert sum(outcome.stats["crashes"] for outcome in outcomes) > len(SEEDS)
    assert sum(outcome.stats["stops"] for outcome in outcomes) > len(SEEDS)
    assert sum(outcome.stats["suspensions"] for outcome in outcomes) > len(SEEDS) // 10
    assert sum(outcome.stats["takeovers"] for outcome in outcomes) > len(SEEDS) // 10
    assert sum(outcome.litter for outcome in outcomes) > len(SEEDS) // 20
    assert sum(outcome.acknowledged for outcome in outcomes) > 100 * len(SEEDS)
    assert sum(outcome.objects for outcome in outcomes) > 10 * len(SEEDS)
    assert sum(outcome.ring_laps > 1 for outcome in outcomes) > len(SEEDS) // 2
