"""`tidelog balance`: tell how partitions lie, as the leader sees it, what it would move and why; or have that moved at once.

Always true: with `--dry-run` nothing is changed. Without it, what is told is what is done, once.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import AsyncGenerator

from broker.cluster_client import ClusterClient, open_cluster
from broker.config import BrokerSettings
from broker.inspect.bucket import stream_name
from broker.inspect.command import EXIT_CLEAN, add_places
from broker.inspect.rows import NoteRow, Row, emit, plural
from broker.uris import absolute_uri
from controller.peers import Balance
from controller.streams import ReassignStreams

__all__ = ["add_balance", "balance"]

_DESCRIPTION = """\
Tell what each broker has, and what is to move to make brokers even, by number of partitions, bytes in and bytes out. With --dry-run that is all;
else it is moved at once. The broker that leads does the same by itself (balance.enable).
"""


class BrokerRow(Row, frozen=True, kw_only=True):
    """One registered broker."""

    node: int
    state: str
    """runs, leaves (stops, or is drained), or away."""
    partitions: int
    closed_partitions: int
    """Of them, those that it is to open."""
    bytes_in: int
    """In a second; -1: not known (yet)."""
    bytes_out: int

    def text(self) -> str:
        load = (
            f"{self.bytes_in / 1e6:.1f} MB/s in, {self.bytes_out / 1e6:.1f} MB/s out"
            if self.bytes_in >= 0
            else "load not known"
        )
        return f"node {self.node} {self.state}: {plural(self.partitions, 'partition')}, {load}"


class MoveRow(Row, frozen=True, kw_only=True):
    """A partition that is to move."""

    partition: str
    stream_id: int
    source: int
    target: int
    why: str

    def text(self) -> str:
        return f"{self.partition}: from node {self.source} to node {self.target}, since {self.why}"


def add_balance(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `balance` to the command line."""
    command = commands.add_parser(
        "balance", help="tell what would move to make brokers even, and have it moved", description=_DESCRIPTION
    )
    command.add_argument("--dry-run", action="store_true", help="change nothing")
    add_places(command)


async def balance(options: argparse.Namespace, settings: BrokerSettings) -> int:
    """Tell, and move; returns the exit status.

    Raises:
        LeaderUnreachable, ControllerError, ObjectStoreError: it cannot be had; the message says why.
    """
    uri = absolute_uri(settings.object_store_uri)
    async with open_cluster(uri, cluster_id=settings.cluster_id, rng=random.Random()) as cluster:
        found = await cluster.balance()
        await cluster.refresh()
        if found.moves and not options.dry_run:
            await cluster.submit(ReassignStreams(targets={move.stream_id: move.target for move in found.moves}))
        await emit(_rows(cluster, found, is_dry=options.dry_run), as_json=options.json)
        return EXIT_CLEAN


async def _rows(cluster: ClusterClient, found: Balance, *, is_dry: bool) -> AsyncGenerator[Row]:
    for node in found.nodes:
        yield BrokerRow(
            node=node.node_id,
            state="away" if not node.lives else "leaves" if node.leaves else "runs",
            partitions=node.open_count + node.closed_count,
            closed_partitions=node.closed_count,
            bytes_in=node.bytes_in,
            bytes_out=node.bytes_out,
        )
    if any(node.lives and not node.leaves and node.bytes_in < 0 for node in found.nodes):
        yield NoteRow(
            message="loads are known when all brokers reported three times since partitions last moved (balance.load.interval.ms): "
            "until then only numbers of partitions count"
        )
    if not found.balances:
        yield NoteRow(message="the leader leaves partitions where they are put (balance.enable)")
    for move in found.moves:
        yield MoveRow(
            partition=stream_name(cluster.image, move.stream_id),
            stream_id=move.stream_id,
            source=move.source,
            target=move.target,
            why=move.why,
        )
    what = plural(len(found.moves), "partition")
    yield NoteRow(
        message="nothing is to move" if not found.moves else f"{what} would move" if is_dry else f"{what} are to move"
    )
