"""A lane of its own for range reads of S3: bodies go from the socket into the memory they stay in.

Through aiohttp a gigabyte takes about a second of CPU: every piece of a body is an object, is fed to a stream, wakes a task, and is
copied. Here the event loop receives into the body's own memory (`asyncio.BufferedProtocol`), and wakes the task once, at its end.

Always true:
- botocore makes and signs the request and looks at the answer; this only carries them, over HTTP/1.1 with kept connections.
- It carries answers of one plain kind: 206 with Content-Length. For anything else (errors, redirects, chunks, a proxy on the way, a
  connection that cannot be made) it answers None, and the request goes by aiohttp as if this were not there, which knows
  what to make of it. A range read changes nothing, so it may be sent twice.
- A body goes into memory that was made for it, or, within `receiving_into`, into the caller's; within `streamed` it is taken
  piece by piece (see `s3_streams`), and its connection is in use for as long as that takes.
- A body that ends early is `ConnectionClosedError`, as aiohttp's would be: the caller tries again. Nobody sees a part of a body.
- A connection whose answer was not taken to its end is closed: the next request never gets what was meant for another.
- TLS is checked as botocore checks it, with the same certificates.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from aiobotocore.awsrequest import AioAWSResponse
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.utils import get_environ_proxies

from s3stream.s3_progress import Progress, current_progress
from s3stream.s3_streams import BodyStream

__all__ = ["RangeLane", "ReceivedBody", "receiving_into", "streamed"]

_HEAD_BYTES = 16 << 10
"""Of an answer's status line and headers; S3's are below one."""
_IDLE_S: Final = 10.0
"""A connection that was idle for longer is not used again: servers close theirs at 20 s (S3) or more."""
_MOST_IDLE: Final = 64
"""Connections kept for later requests."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(slots=True)
class _Into:
    """Where a caller wants a body."""

    parts: Sequence[memoryview]
    size: int | None = None
    """What came there; None: the body came another way."""


_into: ContextVar[_Into | None] = ContextVar("_into", default=None)


@contextmanager
def receiving_into(parts: Sequence[memoryview]) -> Iterator[_Into]:
    """Requests of this task receive into these, one after the other, where this lane carries them: see `size`."""
    into = _Into(parts)
    token = _into.set(into)
    try:
        yield into
    finally:
        _into.reset(token)


@dataclass(slots=True)
class _Streamed:
    """A caller wants a body piece by piece."""

    buffer_bytes: int
    stream: BodyStream | None = None
    """None: the body came another way."""


_streamed: ContextVar[_Streamed | None] = ContextVar("_streamed", default=None)


@contextmanager
def streamed(buffer_bytes: int) -> Iterator[_Streamed]:
    """The request of this task is answered with a stream, where this lane carries it: see `stream`. So much of it waits, at most."""
    wanted = _Streamed(buffer_bytes)
    token = _streamed.set(wanted)
    try:
        yield wanted
    except BaseException:
        if wanted.stream is not None:
            wanted.stream.close()
        raise
    finally:
        _streamed.reset(token)


class ReceivedBody:
    """A body that is here: what botocore hands on as its raw stream. Without `data` where the caller's memory has it."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def close(self) -> None:
        """Nothing is held."""


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class _Head(NamedTuple):
    """An answer before its body."""

    headers: dict[str, str]
    size: int
    is_last: bool
    """The server closes the connection behind it."""


class _NotPlain(Exception):
    """An answer that is aiohttp's to deal with."""


class _Ended(Exception):
    """The connection ended before the answer did."""


class RangeLane:
    """Connections to the store, for range reads alone."""

    def __init__(self, *, verify: str | bool, connect_timeout_s: float) -> None:
        """Describe it; connections are made when they are needed.

        Args:
            verify: a file of certificates to trust, or whether to check at all.
        """
        self._verify = verify
        self._connect_timeout_s = connect_timeout_s
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[_Origin, list[_Connection]] = {}
        self._streaming: set[_Connection] = set()
        self._closed = False
        self.carried_count = 0
        """Answers that came this way."""

    async def answer(self, request: Any, **_: Any) -> AioAWSResponse | None:
        """The answer to a request (a handler of botocore's event `before-send`); None: send it as ever.

        Raises:
            ConnectionClosedError: it ended early.
        """
        if request.method != "GET" or "Range" not in request.headers or get_environ_proxies(request.url):
            return None
        parts = urlsplit(request.url)
        if parts.scheme not in _DEFAULT_PORTS or parts.hostname is None:
            return None
        origin = _Origin(parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme])
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = _request_head(target, origin, request.headers)
        most = _asked_for(request.headers["Range"])
        into = _into.get()
        wanted = _streamed.get()
        if into is not None:
            into.size = None
        while True:
            connection = self._kept(origin)
            is_new = connection is None
            if connection is None:
                try:
                    async with asyncio.timeout(self._connect_timeout_s):
                        connection = await self._connect(origin)
                except (OSError, TimeoutError):
                    return None
            try:
                if wanted is not None:
                    on_end = partial(self._ended, origin, connection)
                    headers, stream = await connection.begin(head, most, wanted.buffer_bytes, request.url, on_end)
                    wanted.stream = stream
                    self._streaming.add(connection)
                    self.carried_count += 1
                    return AioAWSResponse(request.url, 206, headers, stream)
                headers, data = await connection.get(head, most, into.parts if into is not None else None)
            except _NotPlain:
                return None
            except _Ended as error:
                if not is_new and not connection.has_answered:
                    continue  # the server closed it while it was idle
                raise ConnectionClosedError(endpoint_url=request.url, error=error) from error
            self._keep(origin, connection)
            if into is not None:
                into.size = int(headers["content-length"])
            self.carried_count += 1
            return AioAWSResponse(request.url, 206, headers, ReceivedBody(data))

    def close(self) -> None:
        """Close all connections; what is under way ends with them."""
        self._closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        for connection in list(self._streaming):
            connection.close()
        self._streaming.clear()

    def _kept(self, origin: _Origin) -> _Connection | None:
        connections = self._idle.get(origin, [])
        fresh_since = asyncio.get_running_loop().time() - _IDLE_S
        while connections:
            connection = connections.pop()
            if connection.is_usable and connection.idle_since >= fresh_since:
                return connection
            connection.close()
        return None

    def _ended(self, origin: _Origin, connection: _Connection, is_whole: bool) -> None:
        """A stream was taken to its end, or given up."""
        self._streaming.discard(connection)
        if is_whole:
            connection.end_stream()
            self._keep(origin, connection)
        else:
            connection.close()

    def _keep(self, origin: _Origin, connection: _Connection) -> None:
        idle = self._idle.setdefault(origin, [])
        if self._closed or not connection.is_usable or len(idle) >= _MOST_IDLE:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        idle.append(connection)

    async def _connect(self, origin: _Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        if origin.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(_tls_context, self._verify)  # reads files
        _, connection = await loop.create_connection(
            _Connection, origin.host, origin.port, ssl=self._tls if origin.scheme == "https" else None
        )
        return connection


class _Connection(asyncio.BufferedProtocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head = memoryview(bytearray(_HEAD_BYTES))
        self._head_size = 0
        self._found: _Head | None = None
        self._data = bytearray()
        self._into: Sequence[memoryview] | None = None
        self._most_bytes = 0
        self._rest: list[memoryview] | None = None
        """What of the body's memory is to be filled, the next piece last; None before the body."""
        self._answer: asyncio.Future[None] | None = None
        self._new_stream: Callable[[int], BodyStream] | None = None
        """Where the body is to be a stream: makes it, once its size is known."""
        self._stream: BodyStream | None = None
        self._progress: Progress | None = None
        """Of the attempt that waits for a body."""
        self._failed = False
        self.has_answered = False
        """Something came for the request that is, or was last, under way."""
        self._is_last = False
        self.idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether another request may go this way."""
        return not self._failed and self._transport is not None and not self._transport.is_closing()

    async def get(
        self, head: bytes, most_bytes: int, into: Sequence[memoryview] | None = None
    ) -> tuple[dict[str, str], bytearray]:
        """Send a request; headers and body of its answer, which is empty where it went `into` something."""
        self._into = into
        self._progress = current_progress()
        if self._progress is not None:
            self._progress.expect(most_bytes)
        try:
            found = await self._answered(head, most_bytes)
        finally:
            self._into = self._rest = self._progress = None
            data, self._data = self._data, bytearray()
        if found.is_last:
            self.close()
        return found.headers, data

    async def begin(
        self, head: bytes, most_bytes: int, buffer_bytes: int, url: str, on_end: Callable[[bool], None]
    ) -> tuple[dict[str, str], BodyStream]:
        """Send a request; headers of its answer, and its body as it comes."""

        def new_stream(size_bytes: int) -> BodyStream:
            assert self._transport is not None
            return BodyStream(size_bytes, buffer_bytes=buffer_bytes, transport=self._transport, url=url, on_end=on_end)

        self._new_stream = new_stream
        try:
            found = await self._answered(head, most_bytes)
        finally:
            self._new_stream = None
        assert self._stream is not None
        self._is_last = found.is_last
        return found.headers, self._stream

    def end_stream(self) -> None:
        """A stream was taken to its end."""
        self._stream = None
        if self._is_last:
            self.close()

    async def _answered(self, head: bytes, most_bytes: int) -> _Head:
        """Send a request; the head of its answer, whose body is on its way or here."""
        assert self._transport is not None
        self._most_bytes = most_bytes
        self._head_size = 0
        self._found = self._rest = None
        self.has_answered = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head)
        try:
            await self._answer
        except BaseException:  # given up, too: what comes now must not be taken for the next answer
            self.close()
            raise
        finally:
            self._answer = None
        return cast(_Head, self._found)

    def close(self) -> None:
        """End it, whatever is under way."""
        self._failed = True
        if self._stream is not None:
            self._stream.fail("closed")
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.BufferedProtocol ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio, which also asks before it tells of the end of a stream, and takes an empty buffer for a mistake."""
        if self._stream is not None and not self._stream.is_received:
            return self._stream.room()
        if self._answer is None or self._answer.done():
            return self._head  # what comes now ends the connection
        return self._rest[-1] if self._rest else self._head[self._head_size :]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio."""
        if self._stream is not None and not self._stream.is_received:
            self._stream.filled(nbytes)
            return
        if self._answer is None or self._answer.done():
            self.close()  # more than was asked for
            return
        self.has_answered = True
        if self._rest is not None:
            self._filled(nbytes)
        else:
            self._head_size += nbytes
            try:
                self._read_head()
            except _NotPlain as error:
                self._fail(error)
                return
        if self._rest == [] or self._stream is not None:
            self._answer.set_result(None)

    def _filled(self, size: int) -> None:
        assert self._rest
        piece = self._rest.pop()
        if size < len(piece):
            self._rest.append(piece[size:])
        if self._progress is not None:
            self._progress.moved()

    def eof_received(self) -> None:
        """See asyncio."""
        self._fail(_Ended("before the body's end" if self._rest else "before the head's end"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._fail(_Ended(str(exc or "closed")))

    def _fail(self, error: Exception) -> None:
        self._failed = True
        if self._stream is not None:
            self._stream.fail(str(error))
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _read_head(self) -> None:
        received = bytes(self._head[: self._head_size])
        end = received.find(b"\r\n\r\n")
        if end < 0:
            if self._head_size == len(self._head):
                raise _NotPlain("a head without end")
            return
        self._found = found = _parse_head(received[:end])
        rest = received[end + 4 :]
        if found.size > self._most_bytes or len(rest) > found.size:
            raise _NotPlain("more than was asked for, or announced")
        if self._new_stream is not None:
            self._stream = stream = self._new_stream(found.size)
            while rest:
                room = stream.room()
                taken = min(len(room), len(rest))
                room[:taken] = rest[:taken]
                stream.filled(taken)
                rest = rest[taken:]
            return
        if self._into is None:
            self._data = bytearray(found.size)
        self._rest = _first(self._into or [memoryview(self._data)], found.size)
        view = memoryview(rest)
        while view:
            size = min(len(view), len(self._rest[-1]))
            self._rest[-1][:size] = view[:size]
            self._filled(size)
            view = view[size:]


def _first(parts: Sequence[memoryview], size: int) -> list[memoryview]:
    """So many bytes of these, the first piece last."""
    found: list[memoryview] = []
    for part in parts:
        if size and len(part):
            found.append(part[:size])
            size -= len(found[-1])
    assert not size, "no more than was asked for"
    return found[::-1]


def _request_head(target: str, origin: _Origin, headers: Any) -> bytes:
    lines = [f"GET {target} HTTP/1.1"]
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port != _DEFAULT_PORTS[origin.scheme]:
        host += f":{origin.port}"
    given = {
        name: value.decode() if isinstance(value, bytes) else str(value)
        for name, value in headers.items()
        if name.lower() not in ("host", "accept-encoding", "connection")
    }
    lines += [f"{name}: {value}" for name, value in {"Host": host, **given, "Accept-Encoding": "identity"}.items()]
    head = "\r\n".join(lines)
    assert head.count("\n") == len(lines) - 1, "a header with a line break"
    return head.encode() + b"\r\n\r\n"


def _asked_for(byte_range: str | bytes) -> int:
    """How many bytes `bytes=5-9` or `bytes=-5` asks for; 0 for what this does not carry."""
    text = byte_range.decode() if isinstance(byte_range, bytes) else byte_range
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not last.isdecimal():
        return 0
    return int(last) - int(first) + 1 if first.isdecimal() else int(last)


def _parse_head(head: bytes) -> _Head:
    status, *lines = head.decode("latin-1").split("\r\n")
    if not status.startswith("HTTP/1.1 206"):
        raise _NotPlain(status)
    headers: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator or name != name.strip():
            raise _NotPlain(line)
        headers[name.lower()] = value.strip()
    size = headers.get("content-length", "")
    if "transfer-encoding" in headers or "content-encoding" in headers or not size.isdecimal():
        raise _NotPlain("no plain body")
    return _Head(headers, int(size), is_last=headers.get("connection", "").lower() == "close")


def _tls_context(verify: str | bool) -> ssl.SSLContext:
    context: ssl.SSLContext = create_urllib3_context()
    context.check_hostname = bool(verify)
    if verify:
        context.load_verify_locations(get_cert_path(verify))
    else:
        context.verify_mode = ssl.CERT_NONE
    return context
