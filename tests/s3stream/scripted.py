"""A server that misbehaves on demand, and what its tests share."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from s3stream.config import ObjectStoreSettings
from s3stream.s3 import S3ObjectStore
from tests.s3stream.moto import QUICK, open_bucket

PIECE_BYTES = 64 << 10
CUT_SHORT = b"this is not all"


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Request], bytes | None]
"""What to send; None: close the connection without an answer."""


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    """An HTTP response."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


def error(status: str, code: str, message: str = "because") -> Answer:
    """S3's way to say no."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return lambda _: answer(status, body)


def ok(request: Request) -> bytes:
    return answer("200 OK", b"content" if request.method == "GET" else b"", ETag='"tag"')


def hang_up(_: Request) -> None:
    return None


@dataclass
class Server:
    """Speaks just enough HTTP; answers as scripted, then as `otherwise` says."""

    url: str = ""
    script: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    otherwise: Answer = ok
    delay_s: float = 0.0
    pause_s: float = 0.0
    """After each 64 KiB of a body that it reads."""
    write_pause_s: float = 0.0
    """After each 64 KiB of an answer."""
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                pieces = []
                for left in range(int(headers.get("content-length", "0")), 0, -PIECE_BYTES):
                    pieces.append(await reader.readexactly(min(left, PIECE_BYTES)))
                    if self.pause_s:
                        await asyncio.sleep(self.pause_s)
                request = Request(method, target, headers, b"".join(pieces))
                self.requests.append(request)
                await asyncio.sleep(self.delay_s)
                reply = (self.script.pop(0) if self.script else self.otherwise)(request)
                if reply is None:
                    break
                for begin in range(0, len(reply), PIECE_BYTES):
                    writer.write(reply[begin : begin + PIECE_BYTES])
                    await writer.drain()
                    if self.write_pause_s:
                        await asyncio.sleep(self.write_pause_s)
                if reply.endswith(CUT_SHORT):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client has left, or the test is over
        finally:
            writer.close()


@asynccontextmanager
async def listening(otherwise: Answer = ok, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server alone."""
    server = Server(otherwise=otherwise)
    bound = socket.create_server(("127.0.0.1", 0))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)  # so that a client notices how slowly it is read
    listener = await asyncio.start_server(server.serve, sock=bound, ssl=tls)
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()


@asynccontextmanager
async def serving(settings: ObjectStoreSettings = QUICK) -> AsyncIterator[tuple[Server, S3ObjectStore]]:
    """A server, and a client of a bucket there."""
    async with listening() as server:
        store = open_bucket("bucket", settings, url=server.url)
        try:
            yield server, store
        finally:
            await store.close()
