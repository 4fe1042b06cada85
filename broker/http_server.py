"""A very small HTTP server, for figures and probes: GET and HEAD, one request a connection, on a thread of its own.

Theory of operation. The thread runs an event loop of its own, so that a probe is answered while the broker's loop is busy or
stuck: that is when it is asked for. Requests are parsed by a pure function; what is answered, the owner says.

Always true:
- A client costs little, whatever it does: connections are accepted one by one, `ACCEPTS_PER_S` at most, while fewer than
  `MAX_CONNECTIONS` are open; all others wait in the kernel, which holds `BACKLOG` of them and refuses the rest.
- A request has a size and a time; an answer has a time. Bodies are not read. Every connection is closed after its answer.
- No text of a client's is repeated to it, or written to the log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

__all__ = ["HttpAnswer", "HttpServer", "parse_request"]

log = logging.getLogger("tidelog.http")

MAX_CONNECTIONS = 32
"""A scraper or two, some probes, and somebody who looks; each may hold a page of some hundred KB."""

ACCEPTS_PER_S = 50
"""More than any scrapers and probes need; whoever asks without end takes some per cent of a core from the broker, not half of one."""

BACKLOG = 16

MAX_HEAD_BYTES = 8 << 10
"""Request line and headers: what most servers take."""

REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
"""Prometheus gives up after ten seconds by default (`scrape_timeout`)."""

TEXT = "text/plain; charset=utf-8"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """Status, body and its type."""

    status: int
    body: bytes
    content_type: str = TEXT

    def encode(self, *, with_body: bool = True) -> bytes:
        """The whole response."""
        head = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (self.body if with_body else b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What counts of a request."""

    method: str
    path: str
    """Without the query."""


def refusal(status: int) -> HttpAnswer:
    """An answer that says no."""
    return HttpAnswer(status=status, body=f"{_REASONS[status].lower()}\n".encode())


def parse_request(head: bytes) -> HttpRequest | HttpAnswer:
    """The request that a head (with the empty line at its end) makes, or the answer that refuses it."""
    line, _, headers = head.partition(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or not line.isascii() or not all(parts):
        return refusal(400)
    method, target, protocol = parts
    if not protocol.startswith(b"HTTP/"):
        return refusal(400)
    if protocol not in (b"HTTP/1.1", b"HTTP/1.0"):
        return refusal(505)
    if any(line and (b":" not in line or line[:1] in b" \t") for line in headers.split(b"\r\n")):
        return refusal(400)
    if method not in (b"GET", b"HEAD"):
        return refusal(405)
    if not target.startswith(b"/"):
        return refusal(400)
    return HttpRequest(method=method.decode(), path=target.partition(b"?")[0].decode())


class HttpServer:
    """Answers on bound sockets until it is closed. `answer` runs on this server's thread."""

    def __init__(self, sockets: Sequence[socket.socket], answer: Callable[[str], Awaitable[HttpAnswer]]) -> None:
        """Take sockets over, and what answers for a path (404 where it does not know it)."""
        self._sockets = sockets
        self._answer = answer
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="tidelog-http", daemon=True)

    def start(self) -> None:
        """Listen, and answer from now on."""
        for one in self._sockets:
            one.setblocking(False)
            one.listen(BACKLOG)
        self._thread.start()

    async def close(self) -> None:
        """Give up what is under way; returns when the thread has ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        for one in self._sockets:
            one.close()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        acceptors = [asyncio.ensure_future(self._accept(one)) for one in self._sockets]
        await self._stop.wait()
        tasks = [*acceptors, *self._connections]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("figures and probes were not answered any more", exc_info=outcome)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                one, _ = await loop.sock_accept(listener)
            except OSError:  # gone again already, or no file descriptor is free: the pause below is for that
                self._slots.release()
            else:
                task = loop.create_task(self._serve_one(one))
                self._connections.add(task)
                task.add_done_callback(self._ended)
            await asyncio.sleep(1 / ACCEPTS_PER_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._slots.release()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError | TimeoutError):
            log.error("an HTTP request failed", exc_info=error)

    async def _serve_one(self, one: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=one, limit=MAX_HEAD_BYTES)
        try:
            request = await self._read(reader)
            if request is None:
                return
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                with_body = True
                if isinstance(request, HttpRequest):
                    with_body = request.method == "GET"
                    answer = await self._answered(request.path)
                else:
                    answer = request
                writer.write(answer.encode(with_body=with_body))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> HttpRequest | HttpAnswer | None:
        """The request, what refuses it, or None where the client went away."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return parse_request(await reader.readuntil(b"\r\n\r\n"))
        except TimeoutError:
            return refusal(408)
        except asyncio.LimitOverrunError:
            return refusal(431)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _answered(self, path: str) -> HttpAnswer:
        try:
            return await self._answer(path)
        except Exception:
            log.exception("an HTTP request failed")
            return refusal(500)
