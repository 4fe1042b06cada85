"""The small HTTP server: what it understands, and what clients of ill will can do to it, which is little."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import http_server
from broker.http_server import HttpAnswer, HttpRequest, HttpServer, parse_request


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n", HttpRequest(method="GET", path="/metrics")),
        (b"HEAD / HTTP/1.0\r\n\r\n", HttpRequest(method="HEAD", path="/")),
        (b"GET /metrics?name[]=up HTTP/1.1\r\n\r\n", HttpRequest(method="GET", path="/metrics")),
    ],
)
def test_requests(head: bytes, wanted: HttpRequest) -> None:
    assert parse_request(head) == wanted


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: line\r\n\r\n", 400),
        (b"GET / SPDY/3\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 505),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 405),
        (b"\x00\x00\x00\x2a\x00\x12\x00\x03 ApiVersions \r\n\r\n", 400),
    ],
)
def test_what_is_refused(head: bytes, status: int) -> None:
    answer = parse_request(head)
    assert isinstance(answer, HttpAnswer)
    assert answer.status == status


async def page(path: str) -> HttpAnswer:
    if path == "/broken":
        raise RuntimeError("planted")
    return HttpAnswer(status=200 if path == "/large" else 404, body=b"x" * (1 << 20) if path == "/large" else b"")


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """A server on a free port."""
    one = socket.socket()
    one.bind(("127.0.0.1", 0))
    server = HttpServer([one], page)
    server.start()
    try:
        yield one.getsockname()[1]
    finally:
        await server.close()


async def exchange(port: int, sent: bytes, *, eof: bool = False) -> bytes:
    """Everything that is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        if eof:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_answers_have_a_length_and_end_the_connection() -> None:
    async with serving() as port:
        head, _, body = (await exchange(port, b"GET /large HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Length: 1048576\r\n" in head
        assert b"Connection: close" in head
        assert body == b"x" * (1 << 20)
        head, _, body = (await exchange(port, b"HEAD /large HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")
        assert b"Content-Length: 1048576\r\n" in head
        assert body == b""


async def test_a_failure_is_one_answer_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        assert (await exchange(port, b"GET /broken HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
        assert (await exchange(port, b"GET /none HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
    assert [record.getMessage() for record in caplog.records] == ["an HTTP request failed"]


async def test_a_head_has_a_size() -> None:
    async with serving() as port:
        endless = b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000
        with contextlib.suppress(
            ConnectionError
        ):  # what was not read resets the connection, on some kernels before the answer
            assert (await exchange(port, endless)).startswith(b"HTTP/1.1 431 ")
        assert (await exchange(port, b"GET /none HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")


async def test_who_says_nothing_is_told_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 0.05)
    async with serving() as port:
        assert (await exchange(port, b"GET / HTT")).startswith(b"HTTP/1.1 408 ")
        assert await exchange(port, b"GET / HTT", eof=True) == b""


async def test_silent_clients_take_all_places_and_only_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 0.2)
    async with serving() as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        assert (await exchange(port, b"GET /none HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        for _, writer in silent:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_who_does_not_take_the_answer_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(http_server, "ANSWER_TIMEOUT_S", 0.2)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with serving() as port:
        await asyncio.to_thread(deaf.connect, ("127.0.0.1", port))
        deaf.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        assert (await exchange(port, b"GET /none HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        deaf.close()


async def test_it_stops_with_connections_open() -> None:
    async with serving() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
