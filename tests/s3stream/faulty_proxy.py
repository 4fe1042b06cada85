"""An HTTP proxy before an S3 server that does to requests what networks and stores do. It runs in a thread of its own.

Its faults, each of which real stores and networks show:

- an answer without the request having been done: 503 SlowDown, 403, or the connection closed before anything was read;
- the request done, and the answer lost: the connection closed, or 500 in its place;
- half an answer, then the end of the connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from urllib.parse import urlsplit

__all__ = ["Fault", "FaultyProxy", "proxied"]


class Fault(Enum):
    """What happens to a request."""

    NONE = auto()
    SLOW_DOWN = auto()
    """503, not done."""
    DENIED = auto()
    """403, not done."""
    SKEWED = auto()
    """403 RequestTimeTooSkewed, not done."""
    HUNG_UP = auto()
    """Not done, and no answer."""
    LOST_REPLY = auto()
    """Done, and no answer."""
    DONE_BUT_500 = auto()
    """Done, and an answer that says otherwise."""
    TRUNCATED = auto()
    """Done, and half an answer."""


PASSING = (Fault.SLOW_DOWN, Fault.HUNG_UP, Fault.LOST_REPLY, Fault.DONE_BUT_500, Fault.TRUNCATED)
"""Those that the client is to get over by itself."""

_SKEW = "<RequestTime>20260101T010000Z</RequestTime><ServerTime>2026-01-01T00:00:00Z</ServerTime>"
_ANSWERS = {
    Fault.SLOW_DOWN: ("503 Slow Down", "SlowDown", ""),
    Fault.DENIED: ("403 Forbidden", "AccessDenied", ""),
    Fault.SKEWED: ("403 Forbidden", "RequestTimeTooSkewed", _SKEW),
    Fault.DONE_BUT_500: ("500 Internal Server Error", "InternalError", ""),
}


class FaultyProxy:
    """Forwards to `upstream`; `fault_of(method, target)` says what else happens."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self.fault_of: Callable[[str, str], Fault] = lambda method, target: Fault.NONE
        self.seen: Counter[Fault] = Counter()
        """Requests by what happened to them."""
        self.requests: list[tuple[str, str]] = []
        """Method and target of each."""
        self.url = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="faulty proxy")

    def start(self) -> None:
        """Returns when `url` is set."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Close everything and end the thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                return  # the client has left, or the test is over
            finally:
                connections.discard(task)
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            method, target, _ = lines[0].split(" ")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            fault = self.fault_of(method, target)
            self.seen[fault] += 1
            self.requests.append((method, target))
            body = await reader.readexactly(int(fields.get("content-length", "0")))
            if fault is Fault.HUNG_UP:
                return
            if fault in (Fault.SLOW_DOWN, Fault.DENIED, Fault.SKEWED):
                answer = _refusal(method, fault)
            else:
                answer = await self._forward(lines, body)
            if fault is Fault.LOST_REPLY:
                return
            if fault is Fault.DONE_BUT_500:
                answer = _refusal(method, fault)
            if fault is Fault.TRUNCATED:
                writer.write(answer[: len(answer) - max(1, (len(answer) - answer.index(b"\r\n\r\n")) // 2)])
                await writer.drain()
                return
            writer.write(answer)
            await writer.drain()

    async def _forward(self, lines: list[str], body: bytes) -> bytes:
        """The whole answer, for a connection that stays open."""
        assert self._upstream.hostname is not None
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            kept = [line for line in lines if line and not line.lower().startswith("connection:")]
            writer.write("\r\n".join([*kept, "Connection: close", "", ""]).encode() + body)
            await writer.drain()
            head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        names = ("connection:", "transfer-encoding:", "content-length:")
        kept = [line for line in head.decode().split("\r\n") if not line.lower().startswith(names)]
        length = next(
            (line for line in head.decode().split("\r\n") if line.lower().startswith("content-length:")), None
        )
        is_head = lines[0].startswith("HEAD ")
        kept.append(length if is_head and length else f"Content-Length: {len(content)}")
        return "\r\n".join([kept[0].replace("HTTP/1.0", "HTTP/1.1"), *kept[1:], "", ""]).encode() + content


def _refusal(method: str, fault: Fault) -> bytes:
    status, code, more = _ANSWERS[fault]
    body = f"<Error><Code>{code}</Code><Message>because</Message>{more}</Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {0 if method == 'HEAD' else len(body)}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)


@contextmanager
def proxied(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy that runs."""
    proxy = FaultyProxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
