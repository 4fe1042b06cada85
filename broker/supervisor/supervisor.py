"""Keeps several nodes running on one machine, each in a process of its own, until it is told to stop.

Always true:
- A node that ends is started again: at once where it stopped in order, as on a SIGTERM to it alone, else after a while that doubles each time.
- Until all serve for the first time, a node that ends twice means a mistake in the settings or in the surroundings: all are stopped. Once may be by
  chance: after a crash of all, one that came up first may have begun to recover another's WAL.
- A stop goes to all nodes at the same time, and each keeps its partitions: there is nobody to hand them over to.
- Each node process is awaited. One that does not end within its time, or at all when asked a second time, is killed: its WAL keeps the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
from collections.abc import Sequence
from typing import Final

from broker.config import BrokerSettings
from broker.supervisor.link import Serving
from broker.supervisor.process import NodeProcess, cause

__all__ = ["Supervisor", "supervise", "table"]

log = logging.getLogger("tidelog.supervisor")

FIRST_RESTART_DELAY_S: Final = 0.5
MAX_RESTART_DELAY_S: Final = 30.0
"""A node that cannot live costs two starts a minute."""
STABLE_AFTER_S: Final = 60.0
"""One that lived so long is started again as soon as at first."""

FIRST_STARTS: Final = 2
"""Of each node, until all serve."""

STOP_GRACE_S: Final = 30.0
"""What a stop may take besides twice `shutdown.timeout.ms`: answers under way, and the metadata."""


class _Kept:
    """One node, over all its processes."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.process: NodeProcess | None = None
        self.serving: Serving | None = None
        """As said by the newest process that came so far."""
        self.delay_s = FIRST_RESTART_DELAY_S
        self.ends = 0
        """Processes that ended and were not told to."""
        self.status = 0
        """Of the last process that ended."""


class Supervisor:
    """Made for one run."""

    def __init__(self, nodes: Sequence[BrokerSettings], *, rng: random.Random) -> None:
        self._nodes = [_Kept(settings) for settings in nodes]
        self._rng = rng
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        """A node serves, or all are to stop."""
        self._failed = False
        self.restarts = 0

    async def run(self) -> int:
        """Serve until told to stop; returns the exit status: 0 where every node stopped in order."""
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(node)) for node in self._nodes]
            announcing = group.create_task(self._announce())
            patience = group.create_task(self._lose_patience())
            await asyncio.wait(keeping)
            for task in (announcing, patience):
                task.cancel()
        return int(self._failed or any(node.status for node in self._nodes))

    def stop(self) -> None:
        """Have all nodes stop in order; the second time they are killed."""
        if self._stopping.is_set():
            self._kill()
            return
        self._stopping.set()
        self._changed.set()
        for node in self._nodes:
            if node.process is not None:
                node.process.stop()

    def _kill(self) -> None:
        for node in self._nodes:
            if node.process is not None:
                node.process.kill()

    @property
    def _all_came_up(self) -> bool:
        return all(node.serving is not None for node in self._nodes)

    async def _keep(self, node: _Kept) -> None:
        """Run one node until all stop."""
        loop = asyncio.get_running_loop()
        node_id = node.settings.node_id
        while not self._stopping.is_set():
            began = loop.time()
            node.status = await self._live(node)
            if self._stopping.is_set():
                return
            node.ends += 1
            if not self._all_came_up and node.ends >= FIRST_STARTS:
                self._failed = True
                print(
                    f"tidelog: node {node_id} did not come up ({cause(node.status)}): all nodes are stopped",
                    file=sys.stderr,
                )
                self.stop()
                return
            if loop.time() - began >= STABLE_AFTER_S:
                node.delay_s = FIRST_RESTART_DELAY_S
            delay_s = node.delay_s * self._rng.uniform(0.8, 1.2) if node.status else 0.0
            log.warning(
                "a node ended: %(cause)s; node %(node)d is started again in %(delay_s)s s",
                {"cause": cause(node.status), "node": node_id, "delay_s": round(delay_s, 1)},
            )
            if node.status:
                node.delay_s = min(2 * node.delay_s, MAX_RESTART_DELAY_S)
            self.restarts += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()

    async def _live(self, node: _Kept) -> int:
        """From the start of a process to its end; returns its status."""
        try:
            process = await NodeProcess.start(node.settings)
        except OSError as error:
            log.error(
                "a node cannot be started: %(error)s (node %(node)d)", {"error": error, "node": node.settings.node_id}
            )
            return 1
        node.process = process
        try:
            if self._stopping.is_set():
                process.stop()
            serving = await process.serving()
            if serving is not None:
                self._serves(node, serving, process.pid)
            return await process.ended()
        finally:
            node.process = None

    def _serves(self, node: _Kept, serving: Serving, pid: int) -> None:
        again = self._all_came_up
        # Any free port was taken: its clients know that one, so it keeps it.
        node.settings = node.settings.replace(
            listeners=",".join(serving.listeners), metrics_listeners=",".join(serving.metrics_listeners)
        )
        node.serving = serving
        self._changed.set()
        if again:
            log.info(
                "a node serves again: node %(node)d, process %(pid)d, on %(listeners)s",
                {"node": node.settings.node_id, "pid": pid, "listeners": ",".join(serving.listeners)},
            )

    async def _announce(self) -> None:
        """Print where all listen, once they do."""
        while not self._all_came_up:
            await self._changed.wait()
            self._changed.clear()
            if self._stopping.is_set():
                return
        rows = [
            (node.settings, node.serving, node.process.pid if node.process is not None else 0)
            for node in self._nodes
            if node.serving is not None
        ]
        print(table(rows), flush=True)

    async def _lose_patience(self) -> None:
        """Kill what does not stop."""
        await self._stopping.wait()
        print("tidelog: all nodes upload and close", flush=True)
        timeout_ms = max(node.settings.shutdown_timeout_ms for node in self._nodes)
        await asyncio.sleep(2 * timeout_ms / 1_000 + STOP_GRACE_S)
        for node in self._nodes:
            if node.process is not None:
                log.error("a node does not stop, and is killed: node %(node)d", {"node": node.settings.node_id})
        self._kill()


def table(rows: Sequence[tuple[BrokerSettings, Serving, int]]) -> str:
    """Where nodes listen, for people: each with its settings, what it said, and its process id."""
    head = ("node", "process", "Kafka", "controller", "metrics", "write-ahead log")
    lines = [head]
    for settings, serving, pid in rows:
        metrics = (f"http://{one.partition('://')[2]}/metrics" for one in serving.metrics_listeners)
        lines.append(
            (
                str(settings.node_id),
                str(pid),
                ", ".join(serving.listeners),
                serving.controller_address,
                ", ".join(metrics) or "none",
                serving.wal_uri.partition("?")[0],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    body = "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    servers = ",".join(serving.bootstrap_servers for _, serving, _ in rows)
    settings, serving, _ = rows[0]
    return f"""\
Tidelog serves Kafka on {len(rows)} node{"s" if len(rows) > 1 else ""}
{body}
  object store  {serving.object_store_uri}
  memory        {settings.memory_bytes >> 20} MiB for each node
try:
  echo hello | kcat -b {servers} -t test -P
  kcat -b {servers} -t test -C -o beginning -e
  kcat -b {servers} -L"""


async def supervise(nodes: Sequence[BrokerSettings], *, rng: random.Random) -> int:
    """Run nodes until a signal; returns the exit status."""
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(nodes, rng=rng)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    status = await supervisor.run()
    with contextlib.suppress(BrokenPipeError):
        print("tidelog: stopped" if not status else "tidelog: stopped, not in order", flush=True)
    return status
