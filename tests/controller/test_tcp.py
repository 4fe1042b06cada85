"""Connections between nodes that break at any moment, on the event loop that brokers run on."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
import uvloop

from controller.peers import Following, PeerUnavailable
from controller.tcp import TcpPeers

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ATTEMPTS = 300
_RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def resetting_port() -> Iterator[int]:
    """Of a server that resets each connection: at once, or when it has read something, which is when the next request may be on its way."""
    server = socket.create_server(("127.0.0.1", 0))
    rng = random.Random(1)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # it was closed
            with connection:
                if rng.random() < 0.5:
                    connection.recv(rng.randrange(1, 100))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_that_is_reset_is_a_peer_that_is_unavailable(loop: str, resetting_port: int) -> None:
    async def ask() -> None:
        peers = TcpPeers(cluster_id="c", node_id=1)
        following = Following(node_id=1, next_index=0, wait_ms=1_000)
        for _ in range(ATTEMPTS):
            answers = await asyncio.gather(
                *(peers.follow(f"127.0.0.1:{resetting_port}", following) for _ in range(3)), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [PeerUnavailable] * 3, answers
        await peers.close()

    _run(ask, LOOPS[loop])


def _run(work: Callable[[], object], loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())  # type: ignore[arg-type]
