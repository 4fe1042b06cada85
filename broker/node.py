"""A whole broker inside a Python process: `async with Node(settings) as node: …`.

Always true:
- Nothing is global: any number of nodes may live in one process, each with its own directories or buckets.
- Leaving the block uploads what was acknowledged, closes everything and awaits every task. What cannot be uploaded in time
  (`shutdown.timeout.ms`) stays in the WAL and is there at the next start.
- The node runs on the caller's event loop, uvloop or asyncio's own; a loop that is blocked blocks the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType

from broker.addresses import Listener
from broker.config import ALLOTTED, BrokerSettings
from broker.host import host_identity
from broker.wiring.start import Running, start_broker
from broker.wiring.surroundings import Surroundings
from controller.tables import NodeStatus
from s3stream.errors import MetadataUnavailable
from s3stream.objectstore import ObjectStore

__all__ = ["Node", "wall_clock_ms"]

REFRESH_TIMEOUT_S = 5.0
"""How long the metadata are waited for when a node that failed asks whether it is dead."""


def wall_clock_ms() -> int:
    """Wall-clock time in ms since the epoch."""
    return time.time_ns() // 1_000_000


class Node:
    """One broker. Use it as an asynchronous context manager."""

    def __init__(
        self,
        settings: BrokerSettings | None = None,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        rng: random.Random | None = None,
        wrap_store: Callable[[ObjectStore], ObjectStore] | None = None,
        lookout: bool = False,
    ) -> None:
        """Take the settings; nothing is opened before `async with`.

        Args:
            now_ms: The wall clock, for tests that move it.
            rng: Where ids come from; give a seeded one to make a run repeatable.
            wrap_store: Puts something between the broker and its object store, such as faults. Compaction then stays in this process.
            lookout: Among others, keep the lease with the help of a thread where the event loop is late: what the commands do.
        """
        self.settings = BrokerSettings() if settings is None else settings
        self._now_ms = now_ms
        self._rng = random.Random() if rng is None else rng
        self._wrap_store = wrap_store
        self._lookout = lookout
        self.hands_over = True
        """At its end it first gives its partitions to other nodes, if there are any. Set it to False where all of them stop."""
        self._stack = AsyncExitStack()
        self._running: Running | None = None
        self._failure: asyncio.Future[BaseException] | None = None

    async def __aenter__(self) -> Node:
        """Start; returns when clients can connect."""
        self._failure = asyncio.get_running_loop().create_future()
        self._running = await self._stack.enter_async_context(
            start_broker(
                self.settings,
                Surroundings(
                    now_ms=self._now_ms,
                    rng=self._rng,
                    on_failed=self._failed,
                    wrap_store=self._wrap_store,
                    hands_over=lambda: self.hands_over,
                    has_lookout=self._lookout,
                    host=host_identity(),
                ),
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Upload, close, await."""
        self._running = None
        await self._stack.aclose()

    def _failed(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(error)

    @property
    def running(self) -> Running:
        """The parts, for tests and tools that look inside."""
        assert self._running is not None, "the node runs inside `async with` only"
        return self._running

    async def is_taken_for_dead(self) -> bool:
        """Whether the metadata say that this node is dead, or was, and its id was given to another since: it may start again, as after a
        crash. What failed first may have been that its WAL was fenced, so the metadata are read."""
        with contextlib.suppress(MetadataUnavailable, TimeoutError):
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                await self.running.broker.controller.refresh()
        node = self.running.broker.controller.image.node(self.node_id)
        if self.settings.node_id == ALLOTTED and (node is None or node.node_epoch != self.running.node_epoch):
            return True
        return node is not None and node.status is NodeStatus.DEAD

    @property
    def node_id(self) -> int:
        """As configured, or as it was given at this start."""
        return self.running.broker.settings.node_id

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Where the node listens, with the ports that port 0 became."""
        return self.running.listeners

    @property
    def metrics_listeners(self) -> tuple[Listener, ...]:
        """Where figures and probes are served, likewise; empty where they are not."""
        return self.running.metrics_listeners

    @property
    def wal_uri(self) -> str:
        """The write-ahead log."""
        return self.running.wal_uri

    @property
    def object_store_uri(self) -> str:
        """The object store, without secrets."""
        return self.running.store.uri

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` of the first advertised listener, as clients want it."""
        listener = next(iter(self.running.broker.advertised.values()))
        return f"[{listener.host}]:{listener.port}" if ":" in listener.host else f"{listener.host}:{listener.port}"

    async def wait_failed(self) -> BaseException:
        """Return when the node can acknowledge nothing more (a WAL write failed, or it was superseded), with the reason."""
        assert self._failure is not None, "the node runs inside `async with` only"
        return await asyncio.shield(self._failure)
