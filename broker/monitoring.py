"""What an operator sees from outside: `/metrics`, `/healthz` and `/readyz`, from before recovery until after the last upload.

Always true:
- `/healthz` is 200 while the broker's event loop turns: whoever restarts it on anything else would lose time, never gain any.
- `/readyz` is 200 while the broker recovered its log, rebuilt the state of its partitions, serves, and can acknowledge.
- Figures are read on the broker's loop and turned into text on the thread of the HTTP server; at most once in
  `FRESH_S`, however many ask.
- It fails for itself alone: nothing here stops the broker, except an address that cannot be bound at start.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from broker.addresses import Listener
from broker.config import InvalidSettings
from broker.event_loop import EventLoopWatch
from broker.exposition.collector import BrokerCollector
from broker.exposition.described import Parts
from broker.http_server import HttpAnswer, HttpServer
from broker.listening import bind

__all__ = ["Monitoring"]

T = TypeVar("T")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The format that every scraper reads; names and labels need nothing newer."""

FRESH_S = 0.5
"""A page is given to everybody who asks within this time: no scraper asks more often, and reading has a price."""

READ_TIMEOUT_S = 5.0
"""A loop that does not come to reading the figures in this time is stuck: say so, while the scraper still listens."""

TOO_BUSY = f"the event loop was too busy for {READ_TIMEOUT_S:.0f} s"

RENDER_STEP_BYTES = 16 << 10
"""About two milliseconds of rendering."""

RENDER_PAUSE_S = 0.001

STUCK_AFTER_S = 10.0
"""A loop that has not turned for so long is not alive. Collections and fresh memory stop it for a tenth of a second at worst."""


class Monitoring:
    """The figures and the state of one broker, over HTTP."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._state = "starting: recovering"
        self._parts: Parts | None = None
        self._server: HttpServer | None = None
        self._page = b""
        self._page_at: float | None = None
        self._reading = asyncio.Lock()
        """Of the server's thread: one reader at a time."""
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self.event_loop = EventLoopWatch(clock)

    async def listen(self, listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
        """Bind and answer; returns the listeners with the ports that port 0 became. None: nothing happens.

        Raises:
            InvalidSettings: an address cannot be bound; says which and what to do.
        """
        if not listeners:
            return ()
        sockets: list[socket.socket] = []
        bound: list[Listener] = []
        for listener in listeners:
            try:
                found = await bind(self._loop, listener)
            except OSError as error:
                for one in sockets:
                    one.close()
                raise InvalidSettings(
                    f"cannot listen on {listener}: {error.strerror or error}. Stop the program that has the port "
                    "(ss -ltnp shows it), or choose another in metrics.listeners; empty: no metrics."
                ) from error
            sockets += found
            bound.append(Listener(name=listener.name, host=listener.host, port=found[0].getsockname()[1]))
        self.event_loop.start()
        self._server = HttpServer(sockets, self._answer)
        self._server.start()
        return tuple(bound)

    def serving(self, parts: Parts) -> None:
        """The broker serves from now on; these are its parts."""
        self._parts = parts
        self._state = ""

    def stopping(self) -> None:
        """The broker takes no more requests."""
        self._state = "stopping"

    async def close(self) -> None:
        """Answer no more."""
        self.event_loop.stop()
        if self._server is not None:
            await self._server.close()

    # ---- on the thread of the HTTP server ---------------------------------------------------------------------------

    async def _answer(self, path: str) -> HttpAnswer:
        if path == "/metrics":
            return await self._metrics()
        if path == "/healthz":
            return _verdict("alive", self._unhealthy())
        if path == "/readyz":
            return _verdict("ready", self._unhealthy() or await self._unready())
        text = "" if path != "/" else "/metrics\n/healthz\n/readyz\n"
        return HttpAnswer(status=200 if text else 404, body=text.encode() or b"try /metrics, /healthz or /readyz\n")

    def _unhealthy(self) -> str:
        """Why the process should be restarted; empty: it should not."""
        silent_s = self.event_loop.silent_s
        return f"the event loop has not turned for {silent_s:.0f} s" if silent_s > STUCK_AFTER_S else ""

    async def _unready(self) -> str:
        """Why clients should not come here now; empty: they may."""
        try:
            return await self._on_loop(self._look)
        except TimeoutError:
            return TOO_BUSY

    async def _metrics(self) -> HttpAnswer:
        async with self._reading:
            now = self._clock()
            if self._page_at is None or not 0 <= now - self._page_at < FRESH_S:
                try:
                    families = await self._on_loop(self._read)
                except TimeoutError:
                    return _verdict("", TOO_BUSY)
                self._page = await self._render(families)
                self._page_at = now
        return HttpAnswer(status=200, body=self._page, content_type=CONTENT_TYPE)

    async def _on_loop(self, look: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a look on the broker's loop finds. Raises TimeoutError."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(look(), self._loop))

    async def _render(self, families: list[Metric]) -> bytes:
        """The page, made in steps: the broker's thread waits for the interpreter during each."""
        parts: list[bytes] = []
        size = 0
        for family in (*families, *self._registry.collect()):
            parts.append(generate_latest(_Only(family)))
            size += len(parts[-1])
            if size >= RENDER_STEP_BYTES:
                size = 0
                await asyncio.sleep(RENDER_PAUSE_S)
        return b"".join(parts)

    # ---- on the broker's loop ---------------------------------------------------------------------------------------

    async def _look(self) -> str:
        parts = self._parts
        if self._state or parts is None:
            return self._state
        if parts.storage.failed is not None:
            return str(parts.storage.failed)
        loading = parts.partitions.loading_count
        if loading:
            return f"the state of {loading} partitions is not rebuilt yet"
        loading = parts.groups.place_counts["loading"]
        return f"{loading} partitions of consumer groups are not read yet" if loading else ""

    async def _read(self) -> list[Metric]:
        return [] if self._parts is None else list(BrokerCollector(self._parts).collect())


class _Only(CollectorRegistry):
    """One metric, as the library wants it."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _verdict(good: str, bad: str) -> HttpAnswer:
    return HttpAnswer(status=503 if bad else 200, body=f"{bad or good}\n".encode())
