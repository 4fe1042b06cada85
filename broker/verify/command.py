"""`tidelog verify`: its command line, progress on a terminal, and the exit status."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import AsyncGenerator, Callable

from broker.config import BrokerSettings
from broker.inspect.bucket import Bucket, open_bucket
from broker.inspect.command import EXIT_CLEAN, EXIT_FINDINGS, EXIT_NOT_CHECKED, add_places, at_least_one
from broker.inspect.rows import Row, emit
from broker.shares import storage_settings
from broker.uris import absolute_uri
from broker.verify.findings import MultipartRow, UnreferencedRow
from broker.verify.verify import DEFAULT_PARALLEL, Progress, Verification
from wal.config import ObjectWalConfig, parse_wal_uri

__all__ = ["TerminalProgress", "add_verify", "verify"]

_DESCRIPTION = """\
Check everything that a cluster keeps in its bucket: every object there and intact, every CRC, the index of each object
against the metadata, ranges without gap or overlap, batches in order, log and snapshots against each other. Nothing is
written; it may run beside live brokers.
"""

_EPILOG = """\
exit status: 0 clean, 1 findings, 2 something could not be checked (or the command line is wrong)

examples:
  tidelog verify --data ./data                       what `tidelog dev` keeps
  tidelog verify -c broker.toml --quick              without reading what is in the objects
  tidelog verify --bucket s3://my-bucket/my-cluster --parallel 32 --json
"""


def add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `verify` to the command line."""
    command = commands.add_parser(
        "verify",
        help="check a whole bucket for damage (read-only)",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_places(command)
    command.add_argument("--quick", action="store_true", help="leave out the blocks: read the ends of objects only")
    command.add_argument(
        "--parallel",
        type=at_least_one,
        default=DEFAULT_PARALLEL,
        metavar="N",
        help=f"objects checked at a time, each with some 8 MiB in memory (default: {DEFAULT_PARALLEL})",
    )
    command.add_argument(
        "--unreferenced", action="store_true", help="list every unreferenced object and unfinished upload"
    )


async def verify(options: argparse.Namespace, settings: BrokerSettings) -> int:
    """Print what is found; returns the exit status.

    Raises:
        InvalidSettings, ControllerError, ObjectStoreError: it cannot be checked at all.
    """
    async with open_bucket(absolute_uri(settings.object_store_uri), random.Random()) as bucket:
        if not await _has_cluster(bucket):
            print(
                f"tidelog: no cluster lives in {bucket.store.uri} with prefix {bucket.paths.prefix!r}: nothing was checked",
                file=sys.stderr,
            )
            return EXIT_NOT_CHECKED
        progress = TerminalProgress(_write_to_terminal) if sys.stderr.isatty() else None
        run = Verification(
            bucket=bucket,
            settings=storage_settings(settings).collection,
            wal=_wal_in_bucket(settings),
            quick=options.quick,
            parallel=options.parallel,
            on_progress=progress or (lambda _: None),
        )
        await emit(_shown(run, progress, list_unreferenced=options.unreferenced), as_json=options.json)
    if run.findings:
        return EXIT_FINDINGS
    return EXIT_NOT_CHECKED if run.unchecked else EXIT_CLEAN


def _wal_in_bucket(settings: BrokerSettings) -> ObjectWalConfig | None:
    config = parse_wal_uri(absolute_uri(settings.wal_uri)) if "://" in settings.wal_uri else None
    return config if isinstance(config, ObjectWalConfig) else None


async def _shown(
    run: Verification, progress: TerminalProgress | None, *, list_unreferenced: bool
) -> AsyncGenerator[Row]:
    async for row in run.rows():
        if isinstance(row, UnreferencedRow | MultipartRow) and not list_unreferenced:
            continue  # the summary counts them
        if progress is not None:
            progress.clear()
        yield row


async def _has_cluster(bucket: Bucket) -> bool:
    """Whether there is anything under the prefix that a cluster puts there."""
    prefix = bucket.paths.cluster.removesuffix("cluster")
    async for _ in bucket.store.list(prefix):
        return True
    return False


def _write_to_terminal(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class TerminalProgress:
    """Progress on one line of a terminal, a few times a second."""

    def __init__(self, write: Callable[[str], object], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock_s = clock_s
        self._next_s = 0.0
        self._shown = False

    def __call__(self, progress: Progress) -> None:
        """Show it, if it is time."""
        now_s = self._clock_s()
        if now_s < self._next_s:
            return
        self._next_s = now_s + 0.2
        self._shown = True
        self._write(
            f"\r\x1b[K{progress.objects} of {progress.of_objects} objects, {progress.read_bytes >> 20} MiB read, "
            f"{progress.findings} findings"
        )

    def clear(self) -> None:
        """Make room for a line."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False
