"""The lane of range reads: what it carries, and that what it does not carry goes the ordinary way, with the same outcome."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from unittest.mock import Mock

import pytest

from s3stream.config import ObjectStoreSettings
from s3stream.objectstore import AccessDenied, NotFound, Unavailable
from s3stream.open import open_object_store
from s3stream.s3 import S3ObjectStore
from s3stream.s3_ranges import RangeLane, _Connection
from s3stream.s3_streams import BodyStream
from tests.s3stream.moto import QUICK
from tests.s3stream.scripted import CUT_SHORT, Answer, Request, Server, answer, error, hang_up, listening, serving
from tests.s3stream.test_s3_tls import Authority
from tests.stores.s3_server import S3Server

BRIEF = ObjectStoreSettings(request_timeout_ms=200, deadline_ms=200, retry_first_delay_ms=1, retry_max_delay_ms=10)
CONTENT = random.Random(5).randbytes(3_000_000)
CONTENT = CONTENT[:400_000] + CUT_SHORT + CONTENT[400_000:]


def ranged(request: Request) -> bytes:
    """What S3 answers to a range read."""
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    begin, end = (int(first), int(last) + 1) if first else (len(CONTENT) - int(last), len(CONTENT))
    content_range = f"bytes {begin}-{end - 1}/{len(CONTENT)}"
    return answer("206 Partial Content", CONTENT[begin:end], ETag='"tag"', Content_Range=content_range)


@pytest.fixture
async def served(lanes: list[RangeLane]) -> AsyncIterator[tuple[Server, S3ObjectStore]]:
    async with serving() as (server, store):
        server.otherwise = ranged
        yield server, store


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[RangeLane]:
    """All that are made."""
    found: list[RangeLane] = []
    init = RangeLane.__init__

    def noted(self: RangeLane, **options: object) -> None:
        init(self, **options)  # type: ignore[arg-type]
        found.append(self)

    monkeypatch.setattr(RangeLane, "__init__", noted)
    return found


async def test_a_range_comes_whole_into_memory_of_its_own(
    served: tuple[Server, S3ObjectStore], lanes: list[RangeLane]
) -> None:
    _, store = served
    data = await store.get_range("key", 1000, 2_500_000)
    assert isinstance(data, bytearray)
    assert data == CONTENT[1000:2_500_000]
    assert await store.get_tail("key", 70_000) == (CONTENT[-70_000:], len(CONTENT))
    assert lanes[0].carried_count == 2


async def test_a_range_is_received_where_the_caller_wants_it(
    served: tuple[Server, S3ObjectStore], lanes: list[RangeLane]
) -> None:
    server, store = served
    parts = [memoryview(bytearray(size)) for size in (1, 700_000, 5, 900_000)]
    assert await store.get_range_into("key", 7, parts) == 1_600_006
    assert b"".join(parts) == CONTENT[7 : 7 + 1_600_006]
    assert lanes[0].carried_count == 1
    # Also when an attempt ends in the middle, and the next one goes by aiohttp.
    cut = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1600006\r\n\r\n" + bytes(900_000) + CUT_SHORT
    server.script = [lambda _: cut, error("503 Slow Down", "SlowDown"), ranged]
    assert await store.get_range_into("key", 9, parts) == 1_600_006
    assert b"".join(parts) == CONTENT[9 : 9 + 1_600_006]
    assert lanes[0].carried_count == 1
    # An object that is shorter.
    server.script = [lambda _: answer("206 Partial Content", CONTENT[:10])]
    assert await store.get_range_into("key", 0, parts) == 10
    assert b"".join(parts)[:10] == CONTENT[:10]


async def test_a_connection_is_kept_and_each_gets_its_own_answer(
    served: tuple[Server, S3ObjectStore], lanes: list[RangeLane]
) -> None:
    server, store = served
    for at in range(0, 100_000, 10_000):
        assert await store.get_range("key", at, at + 10_000) == CONTENT[at : at + 10_000]
    assert server.connections == 1

    async def read(at: int) -> None:
        assert await store.get_range("key", at, at + 200_000) == CONTENT[at : at + 200_000]

    await asyncio.gather(*(read(at) for at in range(0, 2_000_000, 200_000)))
    assert server.connections <= 10
    assert lanes[0].carried_count == 20


async def test_the_signature_is_taken(lanes: list[RangeLane], s3_server: S3Server) -> None:
    store = s3_server.open(s3_server.new_bucket())
    key = "a key/with spaces+and%signs/ümlaut"
    await store.put(key, [CONTENT])
    assert await store.get_range(key, 5, 1_000_005) == CONTENT[5:1_000_005]
    assert lanes[0].carried_count == 1
    with pytest.raises(NotFound):
        await store.get_range("nothing", 0, 10)
    assert await store.get_range(key, len(CONTENT), len(CONTENT) + 5) == b""
    await store.close()


async def test_it_speaks_tls_and_trusts_whom_it_was_told_to(
    tmp_path: Path, lanes: list[RangeLane], credentials: None
) -> None:
    authority = Authority(tmp_path, "own")
    async with listening(ranged, tls=authority.server()) as server:
        uri = f"s3://bucket?region=us-east-1&path_style=true&endpoint={server.url}"
        store = open_object_store(f"{uri}&ca={authority.path}", rng=random.Random(0), settings=QUICK).store
        assert await store.get_range("key", 0, 2_000_000) == CONTENT[:2_000_000]
        assert lanes[0].carried_count == 1
        await store.close()
        store = open_object_store(uri, rng=random.Random(0), settings=QUICK).store
        with pytest.raises(AccessDenied, match="certificate is not trusted"):
            await store.get_range("key", 0, 10)
        assert lanes[1].carried_count == 0
        await store.close()


@pytest.mark.parametrize(
    "odd",
    [
        error("503 Slow Down", "SlowDown"),
        lambda _: answer("200 OK", CONTENT[:10]),
        lambda _: b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\na\r\n" + CONTENT[:10] + b"\r\n0\r\n\r\n",
        lambda _: answer("206 Partial Content", CONTENT[:11]),  # more than was asked for
        lambda _: b"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nX: " + b"x" * 7000 + b"\r\n\r\n" + CONTENT[:10],
        lambda _: b"nonsense\r\n\r\n",
    ],
    ids=["error", "all of it", "chunked", "too much", "long head", "nonsense"],
)  # fmt: skip
async def test_what_is_not_plain_goes_the_ordinary_way(served: tuple[Server, S3ObjectStore], odd: Answer) -> None:
    server, store = served
    server.script = [odd]
    assert await store.get_range("key", 0, 10) == CONTENT[:10]
    assert await store.get_range("key", 10, 20) == CONTENT[10:20]


async def test_a_body_that_is_cut_short_is_read_again(served: tuple[Server, S3ObjectStore]) -> None:
    server, store = served
    server.script = [lambda _: b"HTTP/1.1 206 Partial Content\r\nContent-Length: 100\r\n\r\n" + CUT_SHORT]
    assert await store.get_range("key", 0, 100) == CONTENT[:100]
    assert store.retries == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced_without_a_pause(
    served: tuple[Server, S3ObjectStore],
) -> None:
    server, store = served
    assert await store.get_range("key", 0, 10) == CONTENT[:10]
    server.script = [hang_up]
    assert await store.get_range("key", 10, 20) == CONTENT[10:20]
    assert store.retries == 0
    assert server.connections == 2


async def test_a_connection_that_the_server_wants_closed_is_not_kept(served: tuple[Server, S3ObjectStore]) -> None:
    server, store = served
    server.script = [lambda _: answer("206 Partial Content", CONTENT[:10], Connection="close")]
    assert await store.get_range("key", 0, 10) == CONTENT[:10]
    assert await store.get_range("key", 10, 20) == CONTENT[10:20]
    assert server.connections == 2


async def test_who_gives_up_leaves_nothing_for_the_next(served: tuple[Server, S3ObjectStore]) -> None:
    server, store = served
    assert await store.get_range("key", 0, 10) == CONTENT[:10]
    server.delay_s = 0.2
    given_up = asyncio.create_task(store.get_range("key", 10, 20))
    while len(server.requests) < 2:
        await asyncio.sleep(0.001)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    server.delay_s = 0
    assert await store.get_range("key", 20, 30) == CONTENT[20:30]


async def test_what_comes_without_being_asked_for_ends_the_connection(served: tuple[Server, S3ObjectStore]) -> None:
    server, store = served
    server.script = [
        lambda request: ranged(request) + b"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\n\r\n" + bytes(10)
    ]
    first = await store.get_range("key", 0, 10)
    await asyncio.sleep(0.05)
    assert first == CONTENT[:10]
    assert await store.get_range("key", 10, 20) == CONTENT[10:20]


async def test_a_proxy_on_the_way_is_aiohttps_matter(
    served: tuple[Server, S3ObjectStore], lanes: list[RangeLane], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = served
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.url)
    assert await store.get_range("key", 0, 10) == CONTENT[:10]
    assert lanes[0].carried_count == 0


async def streamed(store: S3ObjectStore, start: int, end: int, *, buffer_bytes: int = 256 << 10) -> bytes:
    async with aclosing(store.get_stream("key", start, end, buffer_bytes=buffer_bytes)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def test_a_stream_is_one_request_however_long_its_reader_takes(
    served: tuple[Server, S3ObjectStore], lanes: list[RangeLane]
) -> None:
    server, store = served
    assert await streamed(store, 1000, 2_900_000) == CONTENT[1000:2_900_000]
    assert await streamed(store, 5, 10) == CONTENT[5:10]
    assert [request.headers["range"] for request in server.requests] == ["bytes=1000-2899999", "bytes=5-9"]
    assert server.connections == 1, "a body that was taken to its end leaves its connection to the next"
    assert lanes[0].carried_count == 2


async def test_what_waits_for_the_reader_of_a_stream_is_bounded(served: tuple[Server, S3ObjectStore]) -> None:
    server, store = served
    taken = 0
    async with aclosing(store.get_stream("key", 0, len(CONTENT), buffer_bytes=64 << 10)) as pieces:
        async for piece in pieces:
            assert 0 < len(piece) <= 16 << 10
            assert piece == CONTENT[taken : taken + len(piece)]
            taken += len(piece)
    assert taken == len(CONTENT)
    assert len(server.requests) == 1


def test_nothing_more_is_read_from_the_socket_while_pieces_wait() -> None:
    transport = Mock(asyncio.Transport)
    ends: list[bool] = []
    stream = BodyStream(200_000, buffer_bytes=64 << 10, transport=transport, url="", on_end=ends.append)

    def receive() -> None:
        stream.room()[:] = b"x" * len(stream.room())
        stream.filled(len(stream.room()))

    receive()
    assert not transport.pause_reading.called
    receive()
    assert transport.pause_reading.call_count == 1
    asyncio.run(stream.next())
    assert transport.resume_reading.call_count == 1
    stream.close()
    stream.close()
    assert ends == [False], "its connection is of no use to others"


async def test_a_stream_that_breaks_is_begun_again_where_it_broke_off(served: tuple[Server, S3ObjectStore]) -> None:
    server, store = served

    def break_off(request: Request) -> bytes:
        whole = ranged(request)
        return whole[: whole.index(CUT_SHORT) + len(CUT_SHORT)]

    server.script = [break_off, error("503 Slow Down", "SlowDown"), hang_up]
    assert await streamed(store, 100, 1_000_000) == CONTENT[100:1_000_000]
    broken_off = CONTENT.index(CUT_SHORT) + len(CUT_SHORT)
    assert {request.headers["range"] for request in server.requests[1:]} == {f"bytes={broken_off}-999999"}


async def test_a_stream_that_breaks_time_and_again_is_given_up() -> None:
    async with serving(BRIEF) as (server, store):
        head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\n\r\n"
        server.script = [lambda _: head + CUT_SHORT]
        server.otherwise = hang_up
        pieces = store.get_stream("key", 0, 1000, buffer_bytes=1000)
        assert await anext(pieces) == CUT_SHORT
        with pytest.raises(Unavailable, match="stream key from 15 on"):
            await anext(pieces)


async def test_a_stream_left_early_takes_nothing_with_it(served: tuple[Server, S3ObjectStore]) -> None:
    server, store = served
    pieces = store.get_stream("key", 0, len(CONTENT), buffer_bytes=64 << 10)
    await anext(pieces)
    await pieces.aclose()
    assert await store.get_range("key", 7, 17) == CONTENT[7:17]
    assert server.connections == 2


async def test_where_a_stream_cannot_be_carried_it_is_read_range_by_range(
    served: tuple[Server, S3ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = served
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.url)
    assert await streamed(store, 10, 250_000, buffer_bytes=100_000) == CONTENT[10:250_000]
    ranges = [request.headers["range"] for request in server.requests]
    assert ranges == [
        "bytes=10-249999",
        "bytes=10-249999",
        "bytes=10-100009",
        "bytes=100010-200009",
        "bytes=200010-249999",
    ]


async def test_a_server_that_is_not_there_is_told_as_ever(credentials: None) -> None:
    async with listening() as gone:
        url = gone.url
    uri = f"s3://bucket?region=us-east-1&path_style=true&endpoint={url}"
    store = open_object_store(uri, rng=random.Random(0), settings=BRIEF).store
    with pytest.raises(Unavailable):
        await store.get_range("key", 0, 10)
    await store.close()


async def test_there_is_always_room_for_the_end_of_a_stream() -> None:
    """Event loops ask for a buffer before they tell of an end, and close a connection that has none as broken."""
    connection = _Connection()
    connection.connection_made(Mock(asyncio.Transport))
    asked = asyncio.create_task(connection.get(b"GET / HTTP/1.1\r\n\r\n", 4))
    await asyncio.sleep(0)
    reply = answer("206 Partial Content", b"body")
    connection.get_buffer(-1)[: len(reply)] = reply
    connection.buffer_updated(len(reply))
    assert len(connection.get_buffer(-1)) > 0, "its task was not woken yet"
    connection.eof_received()
    assert (await asked)[1] == b"body"
    assert len(connection.get_buffer(-1)) > 0
