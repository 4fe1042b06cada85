"""`make fuzz SECONDS=300`: coverage-guided fuzzing with Atheris (libFuzzer), each target in a process of its own.

What was found to lead to new code stays in build/fuzz/corpus, so that the next run goes on from there. What failed is kept in
build/fuzz/failures and printed, with the command that runs it again:

    python -m tests.fuzz replay TARGET FILE

When it is mended, the file goes to tests/fuzz/regressions/TARGET, where `make test` runs it for ever.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

BUILD = Path("build/fuzz")
LONGEST_INPUT_BYTES = 8192
SLOWEST_INPUT_S = 5
"""An input that takes longer is a finding: everybody waits while a broker looks at it."""
MOST_MEMORY_MB = 1500

_PROGRESS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/\S+.*exec/s: (\d+)")
_DONE = re.compile(r"Done (\d+) (?:runs )?in")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fuzz")
    run.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    run.add_argument("--seconds", type=int, default=120, help="for all targets together (default: 120)")
    replay = commands.add_parser("replay", help="run one input again, with its traceback")
    replay.add_argument("target", choices=TARGETS)
    replay.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "replay":
        taken = TARGETS[options.target](options.file.read_bytes())
        print("taken" if taken else "refused, as it may be")
        return 0
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {min(unknown)}")
    names = options.targets or list(TARGETS)
    print(f"{'target':<18}{'executions':>12}{'per s':>8}{'coverage':>10}{'corpus':>8}  findings", flush=True)
    found = [failure for name in names for failure in _fuzz(name, max(options.seconds // len(names), 1))]
    for name, path in found:
        print(f"\nfound by {name}; run it again:\n  {sys.executable} -m tests.fuzz replay {name} {path}")
    return 1 if found else 0


def _fuzz(name: str, seconds: int) -> list[tuple[str, Path]]:
    corpus, failures = BUILD / "corpus" / name, BUILD / "failures" / name
    for directory in (corpus, failures):
        directory.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[name]():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    before = set(failures.iterdir())
    log_path = BUILD / f"{name}.log"
    with log_path.open("wb") as log:
        subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.guided", name, str(corpus)),
                f"-artifact_prefix={failures}/",
                f"-max_total_time={seconds}",
                f"-max_len={LONGEST_INPUT_BYTES}",
                f"-timeout={SLOWEST_INPUT_S}",
                f"-rss_limit_mb={MOST_MEMORY_MB}",
                "-print_final_stats=1",
            ],
            stdout=log,
            stderr=log,
            check=False,  # libFuzzer ends with an error when it found something
        )
    text = log_path.read_text(errors="replace")
    steps = _PROGRESS.findall(text)
    if not steps:
        raise SystemExit(f"the fuzzer did not run:\n{text[-3000:]}")
    count, coverage, _, corpus_size, per_s = steps[-1]
    total = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    executions = total[1] if total else count
    new = sorted(set(failures.iterdir()) - before)
    print(f"{name:<18}{executions:>12}{per_s:>8}{coverage:>10}{corpus_size:>8}  {len(new)}", flush=True)
    if new:
        print("\n".join(text.splitlines()[-60:]))
    return [(name, path) for path in new]


if __name__ == "__main__":
    sys.exit(main())
