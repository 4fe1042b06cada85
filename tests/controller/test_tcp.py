"""Connections between nodes: what goes over them, who is turned away, and that they break at any moment, on the event loop that brokers run on."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from controller.commands import Command
from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.peers import Balance, Followed, Following, NotLeader, PeerUnavailable
from controller.tcp import PeerServer, TcpPeers
from controller.wire import Outcome
from s3stream.memory import Bucket, MemoryObjectStore
from tests.controller.machine import T0_MS
from tests.controller.world import PATHS

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ATTEMPTS = 300
_RESET = struct.pack("ii", 1, 0)


class Nobody:
    """A node that never leads."""

    async def submitted(self, command: Command[Any]) -> Outcome:
        raise NotLeader("no")

    async def followed(self, following: Following) -> Followed:
        raise NotLeader("no")

    async def balance(self) -> Balance:
        raise NotLeader("no")

    async def alive(self, node_id: int) -> None:
        raise NotLeader("no")


async def test_nodes_talk_over_tcp() -> None:
    bucket = Bucket()
    nodes: list[Controller] = []
    servers: list[PeerServer] = []
    peers: list[TcpPeers] = []
    for number in (1, 2):
        listener = _bound()
        port = listener.getsockname()[1]
        node = await Controller.start(
            store=MemoryObjectStore(bucket),
            paths=PATHS,
            settings=ControllerSettings(leader_address=f"127.0.0.1:{port}", election_timeout_ms=300, cluster_id="c"),
            now_ms=lambda: T0_MS,
            rng=random.Random(number),
        )
        server = PeerServer(node.membership, cluster_id="c")
        await server.serve([listener])
        own = TcpPeers(cluster_id="c", node_id=number)
        node.join(own, node_id=number)
        nodes.append(node)
        servers.append(server)
        peers.append(own)
    try:
        while not nodes[0].is_leader:
            await asyncio.sleep(0.01)
        await nodes[1].register_node(2, "w2")
        assert nodes[0].image.node(2) is not None

        await servers[0].close()  # as if it were gone
        made = await nodes[1].create_topics([TopicSpec(name="later", partition_count=1)])
        assert not isinstance(made["later"], Exception)
        assert nodes[1].is_leader
    finally:
        for node in nodes:
            await node.close()
        for each in peers:
            await each.close()
        for server in servers:
            await server.close()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of"),
        (b"\x00\x00\x00\x03abc", "not a message"),
        (b"\x00\x00\x00\x08\x93\x01\xa5other", "not a message"),
        (b"\x00\x00\x00\x09\x93\x01\xa5other\x07", "cluster 'other'"),
        (b"\x00\x00\x00\x05\x93\x63\xa1c\x07", "version 99"),
    ],
)
async def test_strangers_lose_their_connection(sent: bytes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    server = PeerServer(Nobody(), cluster_id="c")
    listener = _bound()
    port = listener.getsockname()[1]
    await server.serve([listener])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await reader.read() == b""
    writer.close()
    await server.close()
    assert reason in caplog.text


async def test_a_closed_server_accepts_on_none_of_its_addresses() -> None:
    """A name such as localhost has several."""
    listeners = [_bound(), _bound()]
    ports = [each.getsockname()[1] for each in listeners]
    server = PeerServer(Nobody(), cluster_id="c")
    await server.serve(listeners)
    for port in ports:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
    await server.close()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


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


def _bound(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def _run(work: Callable[[], object], loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())  # type: ignore[arg-type]
