"""One broker for all hostile clients, one well-behaved client beside them, and what the broker logged of each."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.connection import name_of
from broker.testing import TidelogServer
from protocol.apis import api_named, decode_response, encode_request
from protocol.frames import parse_response_header
from tests.hostile.bystander import Bystander

__all__ = ["Connect", "Hostile", "Logged"]


class Hostile:
    """A connection that sends what it likes."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=60)

    @property
    def name(self) -> str:
        """As it stands in the broker's log."""
        return name_of(self.socket.getsockname())

    def __enter__(self) -> Hostile:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are; that the broker closes meanwhile is part of the game."""
        try:
            self.socket.sendall(data)
        except OSError:
            return

    def send_frame(self, body: bytes) -> None:
        """Send bytes behind their size."""
        self.send(struct.pack(">i", len(body)) + body)

    def answer(self) -> bytes:
        """What the broker sent until now or the end of the connection; b"" where it closed without a word."""
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""

    def frame(self) -> bytes:
        """One response, without its size.

        Raises:
            ConnectionError: the broker closed the connection.
        """
        (size,) = struct.unpack(">i", self._exactly(4))
        return self._exactly(size)

    def call(self, name: str, version: int, request: Any) -> Any:
        """Send a request and wait for its response.

        Raises:
            ConnectionError: the broker closed the connection instead.
        """
        key = api_named(name).key
        self.send(b"".join(encode_request(key, version, 7, "hostile", request)))
        frame = self.frame()
        _, position = parse_response_header(key, version, frame)
        return decode_response(key, version, frame, position)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.socket.recv(min(size - len(data), 1 << 20))
            if not part:
                raise ConnectionError("closed by the broker")
            data += part
        return bytes(data)


Connect = Callable[[], Hostile]


class Logged:
    """What the broker logged, at INFO or above, since the test began."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def lines(self, word: str = "") -> list[str]:
        """Lines, with `word` in them; a traceback counts as more lines."""
        return [
            line
            for record in self._caplog.records
            if record.name.startswith("tidelog")
            for line in self._caplog.handler.format(record).splitlines()
            if word in line
        ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TidelogServer]:
    """A broker with little memory and few partitions."""
    running = TidelogServer(
        tmp_path_factory.mktemp("hostile"),
        num_partitions=3,
        max_partitions_per_broker=300,
        max_partitions_per_request=200,
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def good_client(server: TidelogServer) -> Iterator[Bystander]:
    """A real client at work during all of it; fails in the end when it lost, repeated or reordered anything."""
    bystander = Bystander(server.bootstrap_servers)
    yield bystander
    bystander.finish()


@pytest.fixture(autouse=True)
def nobody_is_harmed(good_client: Bystander) -> Iterator[None]:
    """After each test the well-behaved client must be well."""
    yield
    good_client.check()


@pytest.fixture
def connect(server: TidelogServer) -> Connect:
    """Opens connections to the broker."""
    listener = server.node.listeners[0]
    return lambda: Hostile((listener.host, listener.port))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    """What the broker logs during the test."""
    caplog.set_level(logging.INFO)
    return Logged(caplog)
