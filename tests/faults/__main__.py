"""`make faults ARGS="--seconds 600"`: a cluster on MinIO, real clients, and faults of processes and network from a seed."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.faults.runs import faulty_run
from tests.interop.clients.base import ClientUnavailable
from tests.stores.process import PROCESSES, StoreUnavailable, ended_at_last


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="for how long there are faults, in each run (default: 120)"
    )
    parser.add_argument("--seed", type=int, help="what the faults are drawn from (default: any)")
    parser.add_argument("--runs", type=int, default=1, help="so many runs, with seeds that count up (default: 1)")
    parser.add_argument("--per-second", type=int, default=100, help="records of each producer (default: 100)")
    parser.add_argument("--store", choices=PROCESSES, default="minio", help="the object store (default: minio)")
    parser.add_argument(
        "--directory", type=Path, help="an empty place for data, which stays; default: a temporary one, which goes"
    )
    options = parser.parse_args()
    first = random.randrange(1 << 32) if options.seed is None else options.seed
    for seed in range(first, first + options.runs):
        again = f"make faults ARGS='--seed {seed} --seconds {options.seconds:g} --store {options.store}'"
        print(f"seed {seed}; again: {again}", flush=True)
        with tempfile.TemporaryDirectory(prefix="tidelog-faults-") as temporary:
            directory = (options.directory or Path(temporary)) / f"{seed}"
            directory.mkdir(parents=True)
            store = PROCESSES[options.store](directory / options.store)
            try:
                store.check()
                with ended_at_last(store):
                    store.start()
                    store.wait_ready()
                    report = faulty_run(
                        directory, store.server, seed=seed, seconds=options.seconds, per_s=options.per_second,
                        say=lambda text: print(text, flush=True),
                    )  # fmt: skip
            except (StoreUnavailable, ClientUnavailable) as error:
                print(error, file=sys.stderr)
                return 1
            except BaseException:
                print(f"failed; again: {again}", file=sys.stderr)
                raise
        print(report, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
