"""`tidelog drain NODE`: have a running broker give all its partitions to the others, and wait until they serve them.

Always true:
- What is wanted is a record of the metadata log: it holds though this command is ended, and the leader replaced, until it is taken back
  (`--cancel`) or the node registers anew.
- Nothing is moved here: the leader has partitions moved, evenly, as it does when a broker stops. This command looks at the metadata
  and tells what it sees.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Final

from broker.cluster_client import ClusterClient, open_cluster
from broker.config import BrokerSettings
from broker.inspect.command import EXIT_CLEAN, EXIT_NOT_CHECKED, add_places, at_least_one
from broker.inspect.rows import NoteRow, Row, emit, plural
from broker.uris import absolute_uri
from controller.errors import NodeRefused, UnknownNode
from controller.nodes import DrainNode
from controller.peers import NodeBalance
from controller.tables import StreamStatus
from s3stream.metadata import StreamId

__all__ = ["add_drain", "drain"]

POLL_S: Final = 0.1
"""Between two looks at the metadata log, each a GET."""

TELL_S: Final = 1.0
"""Between two lines of progress."""

DEFAULT_TIMEOUT_S: Final = 300

_DESCRIPTION = """\
Have a running broker give all its partitions to the others, evenly, and wait until these serve them. No data moves. It runs on
without any, and gets none, until --cancel or its next start. Exit status: 0, or 2 where that cannot be, or takes too long.
"""


class DrainingRow(Row, frozen=True, kw_only=True):
    """How far it is."""

    node: int
    left: int
    """Partitions that the node still has."""
    opening: int
    """Partitions that it gave, and that nobody serves yet."""

    def text(self) -> str:
        opening = f", {self.opening} are being opened elsewhere" if self.opening else ""
        return f"node {self.node}: {plural(self.left, 'partition')} left{opening}"


class DrainedRow(Row, frozen=True, kw_only=True):
    """It is done."""

    node: int
    moved: int
    seconds: float
    takers: dict[int, int]
    """How many of them each node has now."""

    def text(self) -> str:
        if not self.moved:
            return f"node {self.node} has no partitions, and gets none"
        where = ", ".join(f"{count} to node {node_id}" for node_id, count in sorted(self.takers.items()))
        return f"node {self.node} is drained: {plural(self.moved, 'partition')} moved in {self.seconds:.2f} s ({where})"


def add_drain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `drain` to the command line."""
    command = commands.add_parser(
        "drain", help="have a broker give all its partitions to the others", description=_DESCRIPTION
    )
    command.add_argument("node", type=int, metavar="NODE", help="its node.id")
    command.add_argument("--cancel", action="store_true", help="let it have partitions again")
    command.add_argument("--no-wait", action="store_true", help="return as soon as it is told")
    command.add_argument(
        "--timeout-s",
        type=at_least_one,
        default=DEFAULT_TIMEOUT_S,
        metavar="N",
        help=f"give up waiting after so many seconds; the drain goes on (default: {DEFAULT_TIMEOUT_S})",
    )
    add_places(command)


async def drain(options: argparse.Namespace, settings: BrokerSettings) -> int:
    """Drain, or take that back; returns the exit status.

    Raises:
        UnknownNode, NoNodes, NodeRefused: there is no such node, no other, or it does not run; nothing was changed.
        LeaderUnreachable, ControllerError, ObjectStoreError: it cannot be done; the message says why.
    """
    uri = absolute_uri(settings.object_store_uri)
    async with open_cluster(uri, cluster_id=settings.cluster_id, rng=random.Random()) as cluster:
        if options.cancel:
            await cluster.submit(DrainNode(node_id=options.node, is_drained=False))
            await emit(_note(f"node {options.node} gets partitions again"), as_json=options.json)
            return EXIT_CLEAN
        began_s = time.monotonic()
        moving = await _begin(cluster, options.node)
        if options.no_wait:
            told = f"node {options.node} is to give {plural(len(moving), 'partition')} away"
            await emit(_note(told), as_json=options.json)
            return EXIT_CLEAN
        progress = _Progress(cluster, options.node, moving, began_s, options.timeout_s)
        await emit(progress.rows(), as_json=options.json)
        return EXIT_CLEAN if progress.is_done else EXIT_NOT_CHECKED


async def _begin(cluster: ClusterClient, node_id: int) -> frozenset[StreamId]:
    """Say that a node is drained; the partitions that it has. Raises the errors of `drain`."""
    nodes = {node.node_id: node for node in (await cluster.balance()).nodes}
    _refuse(nodes, node_id)
    await cluster.refresh()
    moving = frozenset(cluster.image.streams_led_by(node_id))
    await cluster.submit(DrainNode(node_id=node_id, is_drained=True))
    return moving


def _refuse(nodes: dict[int, NodeBalance], node_id: int) -> None:
    node = nodes.get(node_id)
    if node is None:
        known = ", ".join(map(str, sorted(nodes))) or "none"
        raise UnknownNode(f"node {node_id} is not registered; these are: {known}")
    if not node.lives:
        raise NodeRefused(
            f"node {node_id} does not run, so it can give nothing away: start it with its WAL first. What it has closed, other nodes "
            "serve already; what it has open, only its WAL knows the end of"
        )
    if not any(other.lives and not other.leaves for other in nodes.values() if other is not node):
        raise NodeRefused(f"no other node runs that could have the partitions of node {node_id}: start one first")


class _Progress:
    """What is seen of a drain, until it is done or time is up."""

    def __init__(
        self, cluster: ClusterClient, node_id: int, moving: frozenset[StreamId], began_s: float, timeout_s: int
    ) -> None:
        self._cluster = cluster
        self._node_id = node_id
        self._moving = moving
        self._began_s = began_s
        self._timeout_s = timeout_s
        self.is_done = False

    async def rows(self) -> AsyncGenerator[Row]:
        told_s = self._began_s
        while True:
            await self._cluster.refresh()
            row = self._look()
            now_s = time.monotonic()
            if not row.left and not row.opening:
                self.is_done = True
                yield self._done(now_s - self._began_s)
                return
            if now_s - self._began_s >= self._timeout_s:
                yield row
                yield NoteRow(message=f"not done within {self._timeout_s} s; it goes on until --cancel")
                return
            if now_s - told_s >= TELL_S:
                told_s = now_s
                yield row
                await self._check()
            await asyncio.sleep(POLL_S)

    def _look(self) -> DrainingRow:
        streams = self._cluster.image.state.tables.streams
        left = self._cluster.image.streams_led_by(self._node_id)
        opening = sum(
            1
            for stream_id in self._moving
            if (stream := streams.get(stream_id)) is not None
            and stream.node_id != self._node_id
            and stream.status is not StreamStatus.OPEN
        )
        return DrainingRow(node=self._node_id, left=len(left), opening=opening)

    async def _check(self) -> None:
        """Raises NodeRefused, UnknownNode where the node went away meanwhile, or nobody is left to take its partitions."""
        _refuse({node.node_id: node for node in (await self._cluster.balance()).nodes}, self._node_id)
        if not self._cluster.image.is_drained(self._node_id):
            raise NodeRefused(f"that node {self._node_id} is drained was taken back, or it was started anew")

    def _done(self, seconds: float) -> DrainedRow:
        streams = self._cluster.image.state.tables.streams
        takers = Counter(streams[stream_id].node_id for stream_id in self._moving if stream_id in streams)
        return DrainedRow(node=self._node_id, moved=takers.total(), seconds=round(seconds, 3), takers=dict(takers))


async def _note(message: str) -> AsyncGenerator[Row]:
    yield NoteRow(message=message)
