"""`python -m bench`: the table of loads beside their baselines; others (`memory`, `recovery` …) are runs of their own."""

from __future__ import annotations

import argparse
import contextlib
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import (
    catch_up,
    compaction,
    controller,
    cost,
    groups,
    idle_consumers,
    joins,
    memory,
    moves,
    partitions,
    recovery,
)
from bench.baselines import BaselineUnavailable
from bench.broker import Broker, BrokerFailed, running_broker
from bench.librdkafka import LibrdkafkaUnavailable, rdkafka_performance
from bench.load import LoadFailed
from bench.targets import LINES, MEASUREMENTS, PARTITIONS, Context, Figures, Line, MeasurementFailed

_BUILD_DIR = Path(__file__).resolve().parent.parent / "build"
_RUNS: Mapping[str, Callable[[Path], None]] = {
    "catch_up": catch_up.run,
    "compaction": compaction.run,
    "controller": controller.run,
    "cost": cost.run,
    "idle_consumers": idle_consumers.run,
    "joins": joins.run,
    "memory": memory.run,
    "moves": moves.run,
    "partitions": partitions.run,
    "recovery": recovery.run,
}
"""What is not a line of the table, by name."""
_BURST_SETTINGS: Mapping[str, object] = {
    "memory.bytes": 8 << 30,
    "upload.size.bytes": 1 << 30,
    "upload.interval.ms": 3000,
}
"""An arena of 4 GiB and blocks of 1 GiB: a burst ends before its upload begins, and the upload ends before the next one."""


@contextlib.contextmanager
def _context(work_dir: Path, seconds: float) -> Iterator[Context]:
    with contextlib.ExitStack() as stack:

        def start(name: str, **settings: object) -> Broker:
            broker = stack.enter_context(running_broker(work_dir / name, settings))
            for topic, partitions in PARTITIONS.items():
                broker.create_topic(topic, partitions)
            return broker

        durable_wal = f"file://{work_dir}/durable/wal?capacity=4GiB"
        yield Context(
            build_dir=_BUILD_DIR,
            work_dir=work_dir,
            durable=start("durable", **_BURST_SETTINGS, **{"wal.uri": durable_wal}),
            without_wal=start("without-wal", **_BURST_SETTINGS, **{"wal.uri": "null://"}),
            sustained=start("sustained"),
            seconds=seconds,
        )


def _measure(work_dir: Path, names: list[str], rounds: int, seconds: float) -> list[dict[str, Figures]]:
    found: list[dict[str, Figures]] = []
    with _context(work_dir, seconds) as context:
        for number in range(rounds):
            this_round: dict[str, Figures] = {}
            for name in names:
                print(f"\rround {number + 1} of {rounds}: {name:<20}", end="", file=sys.stderr, flush=True)
                this_round[name] = MEASUREMENTS[name](context)
            found.append(this_round)
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    return found


def _table(rounds: list[dict[str, Figures]]) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "median", "least", "most", "unit", "goal", "reached")]
    for line in LINES:
        values = [line.value(found) for found in rounds if all(name in found for name in line.needs)]
        if values:
            rows.append(_row(line, values))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _row(line: Line, values: list[float]) -> tuple[str, ...]:
    median = statistics.median(values)
    goal = reached = ""
    if line.goal is not None:
        goal = ("≤ " if line.lower_is_better else "≥ ") + _number(line.goal)
        share = line.goal / median if line.lower_is_better else median / line.goal
        reached = f"{share:.0%}"
    return (line.title, _number(median), _number(min(values)), _number(max(values)), line.unit, goal, reached)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "run",
        nargs="?",
        choices=["table", "groups", *_RUNS],
        default="table",
        help="what to run (default: table)",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each timed measurement")
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), help="measure only these and what they need")
    parser.add_argument(
        "--directory", type=Path, help="where WAL and objects go (default: a temporary directory in build/)"
    )
    return parser


def main() -> int:
    args = _parser().parse_args()
    _BUILD_DIR.mkdir(exist_ok=True)
    work_dir = args.directory or Path(tempfile.mkdtemp(prefix="bench-", dir=_BUILD_DIR))
    try:
        if args.run == "groups":
            groups.run(work_dir, args.seconds)
        elif args.run in _RUNS:
            _RUNS[args.run](work_dir)
        else:
            if not args.only or any(name.startswith("librdkafka") for name in args.only):
                rdkafka_performance(_BUILD_DIR)
            names = [name for name in MEASUREMENTS if not args.only or name in args.only]
            rounds = _measure(work_dir, names, args.rounds, args.seconds)
            print(f"{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, Python {platform.python_version()}\n")
            print("\n".join(_table(rounds)))
    except (BaselineUnavailable, BrokerFailed, LibrdkafkaUnavailable, LoadFailed, MeasurementFailed) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if args.directory is None:
            shutil.rmtree(work_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
