"""`make crash RUNS=25`: kill a real broker again and again, and tell what each run was like."""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
from pathlib import Path

from tests.crash.places import WALS, InBucket, OnDisk, Place
from tests.crash.runs import crash_runs
from tests.stores.process import PROCESSES, ended_at_last


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--runs", type=int, default=25, help="how often to kill the broker")
    parser.add_argument("--seed", type=int, default=None, help="what the load and the moments are drawn from")
    parser.add_argument(
        "--directory", type=Path, default=None, help="an empty place for data; default: a temporary one"
    )
    parser.add_argument("--store", choices=("disk", *PROCESSES), default="disk", help="where objects and metadata are")
    parser.add_argument("--wal", choices=WALS, default="file", help="where the log is, with a --store that is no disk")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        directory = arguments.directory or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tidelog-crash-"))
        )
        place: Place = OnDisk(directory)
        if arguments.store != "disk":
            store = stack.enter_context(ended_at_last(PROCESSES[arguments.store](directory / arguments.store)))
            store.check()
            store.start()
            store.wait_ready()
            place = InBucket(store.server, directory, wal=arguments.wal)
        count = 0
        for run in crash_runs(directory, place, runs=arguments.runs, seed=seed):
            count += 1
            print(run, flush=True)
    print(f"{count} crashes, every promise kept")


if __name__ == "__main__":
    main()
