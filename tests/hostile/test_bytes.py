"""Bytes that are no request: each closes its own connection, with one line in the log, and nobody else notices (I14)."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from protocol.apis import encode_request
from protocol.messages.api_versions import ApiVersionsRequest
from protocol.messages.metadata import MetadataRequest
from protocol.record_set import Record, build_batch
from tests.broker.wire import produce_request
from tests.hostile.conftest import Connect, Logged

PRODUCE, FETCH, METADATA, API_VERSIONS = 0, 1, 3, 18


def framed(body: bytes) -> bytes:
    """A body behind its size."""
    return struct.pack(">i", len(body)) + body


def header(key: int, version: int, client_id_size: int = -1) -> bytes:
    """Request header v1."""
    return struct.pack(">hhih", key, version, 1, client_id_size)


CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(32)) + bytes(500)
BILLION = b"\xff\xff\xff\xff\x07"  # as a compact length
NOT_REQUESTS = {
    # what comes where the size should be
    "HTTP": (b"GET / HTTP/1.1\r\nHost: broker:9092\r\n\r\n", "HTTP"),
    "HTTP POST": (b"POST /topics/t HTTP/1.1\r\n\r\n", "HTTP"),
    "TLS": (CLIENT_HELLO, "TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "socket.request.max.bytes"),
    "garbage": (random.Random(1).randbytes(5000), "a request of"),
    "zeros": (bytes(1000), "a request of 0 bytes"),
    "negative size": (struct.pack(">i", -1) + bytes(100), "a request of -1 bytes"),
    "smallest size": (struct.pack(">i", -(1 << 31)), "a request of -2147483648 bytes"),
    "size over the limit": (struct.pack(">i", 104_857_601), "socket.request.max.bytes = 104857600"),
    "largest size": (b"\x7f\xff\xff\xff" + bytes(100), "a request of 2147483647 bytes"),
    "size below a header": (framed(b"\x00\x03\x00\x09"), "a request of 4 bytes"),
    # what is not served
    "unknown API": (framed(header(999, 0) + bytes(20)), "API key 999 v0 is not served"),
    "negative API": (framed(header(-7, 0) + bytes(20)), "API key -7 v0 is not served"),
    "version too new": (framed(header(METADATA, 99) + bytes(20)), "v99 is not served"),
    "negative version": (framed(header(METADATA, -1) + bytes(20)), "v-1 is not served"),
    "old Produce": (framed(header(PRODUCE, 2) + bytes(20)), "Produce v2 is not served"),
    "new Produce": (framed(header(PRODUCE, 99) + bytes(20)), "Produce v99 is not served"),
    "an inter-broker API": (framed(header(4, 0) + bytes(20)), "is not served"),
    # headers that lie
    "client id past the end": (framed(header(METADATA, 1, 30_000) + b"abc"), "client id"),
    "client id is no UTF-8": (framed(header(METADATA, 1, 2) + b"\xff\xfe" + bytes(4)), "header"),
    "header tags past the end": (framed(header(METADATA, 9) + b"\x01\x05\x7f"), "tag 5"),
    "many header tags": (framed(header(METADATA, 9) + b"\xff\xff\x7f" + bytes(2000)), "header tags"),
    # bodies that lie
    "nothing after the header": (framed(header(METADATA, 1)), "MetadataRequest"),
    "array longer than the frame": (framed(header(METADATA, 1) + struct.pack(">i", 1000) + bytes(30)), "1000 elements"),
    "array of two billion": (framed(header(METADATA, 1) + b"\x7f\xff\xff\xff" + bytes(30)), "2147483647 elements"),
    "compact array of two billion": (framed(header(METADATA, 9) + b"\0" + BILLION + bytes(30)), "2147483646 elements"),
    "compact length of six bytes": (framed(header(METADATA, 9) + b"\0" + b"\xff" * 6), "varint"),
    "string longer than the frame": (framed(header(METADATA, 1) + struct.pack(">ih", 1, 9000) + b"t"), "past the end"),
    "string that is no UTF-8": (framed(header(METADATA, 1) + struct.pack(">ih", 1, 2) + b"\xc3\x28"), "utf-8"),
    "null where none may be": (framed(header(METADATA, 1) + struct.pack(">ih", 1, -1)), "is null"),
    "many tags": (framed(header(METADATA, 9) + b"\0\0\0\0\0" + b"\xff\xff\x7f" + b"\x7f\0" * 2000), "tag"),
    "records longer than the frame": (
        framed(header(PRODUCE, 3) + struct.pack(">hhiih1sii i", -1, -1, 100, 1, 1, b"t", 1, 0, 1 << 30) + bytes(90)),
        "past the end",
    ),
    "Produce without an end": (framed(header(PRODUCE, 9) + b"\0\0\xff\xff" + bytes(4) + BILLION), "elements"),
}


@pytest.mark.parametrize(("data", "says"), NOT_REQUESTS.values(), ids=NOT_REQUESTS)
def test_no_request(connect: Connect, logged: Logged, data: bytes, says: str) -> None:
    with connect() as hostile:
        hostile.send(data)
        assert hostile.answer() == b""
        (line,) = logged.lines(hostile.name)
    assert says in line
    assert len(line) < 600
    assert len(logged.lines("WARNING")) == len(logged.lines("tidelog")) == 1


@pytest.mark.parametrize("size", [0, 1, 3, 4, 9, 14, 40])
def test_truncated_request(connect: Connect, logged: Logged, size: int) -> None:
    """The client goes away, or dies, in the middle of a request: that happens, and is not worth a line."""
    whole = b"".join(encode_request(METADATA, 9, 1, "a client with a long name", MetadataRequest(topics=None)))
    with connect() as hostile:
        hostile.send(whole[:size])
        hostile.socket.shutdown(socket.SHUT_WR)
        assert hostile.answer() == b""
    assert not logged.lines()


def test_what_comes_before_the_garbage_is_answered(connect: Connect, logged: Logged) -> None:
    request = b"".join(encode_request(API_VERSIONS, 0, 5, "x", ApiVersionsRequest()))
    with connect() as hostile:
        hostile.send(request + b"\xff" * 100)
        assert hostile.frame()[:6] == struct.pack(">ih", 5, 0)
        assert hostile.answer() == b""
    assert len(logged.lines()) == 1


def test_what_a_client_calls_itself_cannot_forge_log_lines(connect: Connect, logged: Logged) -> None:
    """A topic's name appears in a message; it may hold line breaks and terminal codes, and be long."""
    name = "x\n2026-01-01 ERROR tidelog: all is lost \x1b[31m" + "y" * 20_000
    request = produce_request(name, build_batch([Record(value=b"v")]), acks=0)
    with connect() as hostile:
        hostile.send(b"".join(encode_request(PRODUCE, 9, 1, "a\nb", request)))
        assert hostile.answer() == b""
    (line,) = logged.lines()
    assert "\x1b" not in line
    assert len(line) < 1000


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes(connect: Connect, logged: Logged, seed: int) -> None:
    rng = random.Random(seed)
    for count in range(30):
        with connect() as hostile:
            data = rng.randbytes(rng.randrange(1, 2000))
            hostile.send(data if count % 2 else framed(data))
            hostile.socket.shutdown(socket.SHUT_WR)
            hostile.answer()
    assert not logged.lines("ERROR")
    assert not logged.lines("Traceback")
