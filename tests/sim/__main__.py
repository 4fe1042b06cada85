"""`make sim SEEDS=1..500`: run simulations of one node, or with `ARGS=--cluster` of several, and print how to replay those that fail."""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable

from tests.sim.cluster import simulate_cluster
from tests.sim.run import Outcome
from tests.sim.simulation import simulate

__all__ = ["main", "parse_seeds"]

_FAILURES_SHOWN = 5
_STATS = ("crashes", "stops", "suspensions", "takeovers", "cuts", "deaths", "recoveries", "reassignments", "leaders")
_COUNTED = ("litter", "acknowledged", "seen", "objects", "virtual_s")
"""Of an outcome, besides."""


def parse_seeds(text: str) -> list[int]:
    """`7`, `1..500`, or several of these with commas between."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("..")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("1..200"), help="such as 42, 1..500 or 1,5..9")
    parser.add_argument("--cluster", action="store_true", help="three nodes that recover each other's WALs")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed, and everything about failures")
    arguments = parser.parse_args()
    began = time.monotonic()
    failed: list[Outcome] = []
    totals: Counter[str] = Counter()
    simulation = simulate_cluster if arguments.cluster else simulate
    for outcome in _outcomes(simulation, arguments.seeds, arguments.jobs):
        counts = {name: outcome.stats[name] for name in _STATS} | {name: getattr(outcome, name) for name in _COUNTED}
        totals.update(counts, simulations=1)
        if arguments.verbose:
            print(f"seed {outcome.seed}: " + ", ".join(f"{counts[name]:.0f} {name}" for name in counts), flush=True)
        if outcome.problems:
            failed.append(outcome)
            shown = outcome.problems if arguments.verbose else [_brief(problem) for problem in outcome.problems[:5]]
            print(f"seed {outcome.seed} FAILED:", *shown, sep="\n  ", flush=True)
    print(
        f"{totals['simulations']} simulations in {time.monotonic() - began:.0f} s, with "
        + ", ".join(f"{totals[name]:.0f} {name.replace('_', ' ')}" for name in (*_STATS, *_COUNTED))
        + f": {len(failed)} failed"
    )
    for outcome in failed[:_FAILURES_SHOWN]:
        how = f"SEEDS={outcome.seed}" + (" ARGS=--cluster" if arguments.cluster else "")
        print(f"replay: make sim {how}   (commit {_commit()})")
    return 1 if failed else 0


def _outcomes(simulation: Callable[[int], Outcome], seeds: list[int], jobs: int) -> Iterable[Outcome]:
    if jobs == 1 or len(seeds) == 1:
        yield from map(simulation, seeds)
        return
    # A fresh process now and then: simulations leave fragmented memory behind.
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=50) as pool:
        yield from pool.imap_unordered(simulation, seeds)


def _brief(problem: str) -> str:
    """Without the middle of a traceback."""
    first, *rest = problem.strip().splitlines()
    return "\n    ".join([first, *rest[-2:]])


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return found or "unknown"


if __name__ == "__main__":
    sys.exit(main())
