"""The network that fails does what it is told: what the other tests build on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from tests.faults.network import Link, Network, Trap, running_network

WITHIN_S = 30.0
SILENCE_S = 0.2


@pytest.fixture
def network() -> Iterator[Network]:
    with running_network() as found:
        yield found


@pytest.fixture
def echo_port() -> Iterator[int]:
    """Of a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):  # the test resets it
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # it was closed
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def connected(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=WITHIN_S)


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENCE_S)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(WITHIN_S)
    return False


def test_what_is_sent_passes(network: Network, echo_port: int) -> None:
    link = network.link("echo", echo_port)
    with connected(link) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"
    assert (link.connections, link.passed_bytes) == (1, 10)


def test_slow_is_late_both_ways(network: Network, echo_port: int) -> None:
    link = network.link("echo", echo_port)
    with connected(link) as connection:
        link.delay_s = 0.1
        began = time.monotonic()
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"
        assert time.monotonic() - began >= 0.2


def test_a_cut_holds_what_is_sent_until_it_is_over(network: Network, echo_port: int) -> None:
    link = network.link("echo", echo_port)
    with connected(link) as before:
        before.sendall(b"x")
        assert before.recv(1) == b"x"
        link.is_cut = True
        before.sendall(b"late")
        with connected(link) as new:
            new.sendall(b"new")
            assert is_silent(before)
            assert is_silent(new)
            network.heal()
            assert before.recv(100) == b"late"
            assert new.recv(100) == b"new"


def test_a_reset_ends_all_connections_and_new_ones_are_made(network: Network, echo_port: int) -> None:
    link = network.link("echo", echo_port)
    with connected(link) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        network.reset(link)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connected(link) as connection:
        connection.sendall(b"y")
        assert connection.recv(1) == b"y"


@pytest.mark.parametrize("passes", [False, True])
def test_a_trap_is_sprung_by_one_request(passes: bool, network: Network, echo_port: int) -> None:
    link = network.link("echo", echo_port)
    link.trap = trap = Trap(b"PUT /this", passes=passes)
    with connected(link) as connection:
        connection.sendall(b"PUT /that")
        assert connection.recv(100) == b"PUT /that"
        assert not trap.sprung.is_set()
        passed_bytes = link.passed_bytes
        connection.sendall(b"PUT /this")
        assert trap.sprung.wait(WITHIN_S)
        assert is_silent(connection)
        assert link.passed_bytes == passed_bytes + (len(b"PUT /this") if passes else 0)
        network.heal()
        assert connection.recv(100) == b"PUT /this"


def test_between_nodes_a_cut_may_be_for_one_that_asks(network: Network, echo_port: int) -> None:
    link = network.link("controller", echo_port, among_nodes=True)

    def hello(node_id: int) -> bytes:
        body = msgspec.msgpack.encode((1, "cluster", node_id))
        return len(body).to_bytes(4) + body

    link.cut_nodes = frozenset({2})
    with connected(link) as one, connected(link) as other:
        one.sendall(hello(1))
        other.sendall(hello(2))
        assert one.recv(100) == hello(1)
        assert is_silent(other)
        network.heal()
        assert other.recv(100) == hello(2)


def test_a_server_that_is_away_is_a_reset(network: Network) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    link = network.link("nobody", port)
    with pytest.raises(ConnectionResetError), connected(link) as connection:  # it may come before connect() returns
        connection.recv(1)
