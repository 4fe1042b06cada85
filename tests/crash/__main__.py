"""`make crash RUNS=25`: kill a real broker again and again, and tell what each run was like."""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from tests.crash.runs import crash_runs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--runs", type=int, default=25, help="how often to kill the broker")
    parser.add_argument("--seed", type=int, default=None, help="what the load and the moments are drawn from")
    parser.add_argument(
        "--directory", type=Path, default=None, help="an empty place for data; default: a temporary one"
    )
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tidelog-crash-") as temporary:
        directory = arguments.directory or Path(temporary)
        count = 0
        for run in crash_runs(directory, runs=arguments.runs, seed=seed):
            count += 1
            print(run, flush=True)
    print(f"{count} crashes, every promise kept")


if __name__ == "__main__":
    main()
