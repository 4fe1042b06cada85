"""Plants bugs, and looks whether a simulation finds them: a simulator is worth what it finds.

A worker process plants a bug, runs one seed, and takes the bug out again. A few seeds are tried at a time, until one finds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from multiprocessing.pool import Pool
from typing import Protocol, TypeAlias

import pytest

from tests.sim.run import Outcome

__all__ = ["Plant", "Simulate", "is_found_among"]

_SEEDS_AT_A_TIME = 6

Plant: TypeAlias = Callable[[pytest.MonkeyPatch], None]
"""A function of a module that plants one bug, called what the bug is called."""


class Simulate(Protocol):
    """`simulate` or `simulate_cluster`."""

    def __call__(self, seed: int, *, problems_enough: int) -> Outcome:
        """Run a seed until there are so many problems, or to its end."""


def is_found(plant: Plant, simulate: Simulate, seed: int) -> bool:
    """Whether a seed finds a bug (in a worker process)."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return bool(simulate(seed, problems_enough=1).problems)


def is_found_among(plant: Plant, simulate: Simulate, hint: int, seeds: Iterable[int], workers: Pool) -> bool:
    """Whether any of these seeds finds a bug; those behind it are not tried.

    Args:
        hint: the seed that did so when this was written, tried first: so that it takes seconds. Where a change of the broker or of the
            simulation has made it miss, the others are searched, and the next one belongs there.
    """
    left = itertools.chain((hint,), seeds)
    count = 1
    while some := tuple(itertools.islice(left, count)):
        if any(workers.starmap(is_found, [(plant, simulate, seed) for seed in some], chunksize=1)):
            return True
        count = _SEEDS_AT_A_TIME
    return False
