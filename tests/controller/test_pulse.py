"""Signs of life over real sockets: they find who leads without any help of the event loop, and end when that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller import pulse as pulse_module
from controller.commands import Command
from controller.peers import Balance, Followed, Following, NotLeader
from controller.pulse import Pulse
from controller.tcp import PeerServer
from controller.wire import Outcome

LIMIT_S = 30.0


class Peer:
    """A node that is told of signs of life."""

    def __init__(self, *, leads: bool) -> None:
        self.leads = leads
        self.heard: list[int] = []
        self.changed = asyncio.Event()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self._listener = listener
        self.server = PeerServer(self, cluster_id="c")

    async def start(self) -> None:
        await self.server.serve([self._listener])

    async def next_sign(self) -> int:
        """The node of the next sign of life."""
        count = len(self.heard)
        async with asyncio.timeout(LIMIT_S):
            while len(self.heard) == count:
                await self.changed.wait()
                self.changed.clear()
        return self.heard[-1]

    async def alive(self, node_id: int) -> None:
        self.heard.append(node_id)
        self.changed.set()
        if not self.leads:
            raise NotLeader("another one")

    async def submitted(self, command: Command[Any]) -> Outcome:
        raise NotLeader("no")

    async def followed(self, following: Following) -> Followed:
        raise NotLeader("no")

    async def balance(self) -> Balance:
        raise NotLeader("no")


@pytest.fixture
async def peers() -> AsyncIterator[tuple[Peer, Peer]]:
    found = Peer(leads=True), Peer(leads=False)
    for peer in found:
        await peer.start()
    yield found
    for peer in found:
        await peer.server.close()


@pytest.fixture
async def pulse() -> AsyncIterator[Pulse]:
    made = Pulse(cluster_id="c", node_id=7, interval_ms=10)
    made.start()
    yield made
    await asyncio.to_thread(made.close)


async def test_who_leads_is_told_on_and_on(peers: tuple[Peer, Peer], pulse: Pulse) -> None:
    leader, other = peers
    pulse.beat(leads=False, addresses=[leader.address, other.address])
    for _ in range(3):
        assert await leader.next_sign() == 7
    assert other.heard == []


async def test_a_new_leader_is_found_among_the_others(peers: tuple[Peer, Peer], pulse: Pulse) -> None:
    """The event loop of the node that shows life is blocked, so it says nothing new."""
    former, new = peers
    pulse.beat(leads=False, addresses=["127.0.0.1:1", former.address, new.address])
    assert await former.next_sign() == 7
    former.leads, new.leads = False, True
    assert await new.next_sign() == 7
    await former.server.close()
    for _ in range(3):
        assert await new.next_sign() == 7


async def test_a_leader_shows_life_to_all_others(peers: tuple[Peer, Peer], pulse: Pulse) -> None:
    """They may be about to replace it, since it does not answer them."""
    one, other = peers
    one.leads = False
    for _ in range(3):
        pulse.beat(leads=True, addresses=[one.address, other.address])
        assert await one.next_sign() == 7
        assert await other.next_sign() == 7


async def test_a_node_that_hangs_is_silent(
    peers: tuple[Peer, Peer], pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse_module, "HUNG_AFTER_S", 0.5)
    leader, other = peers
    pulse.beat(leads=False, addresses=[leader.address, other.address])
    assert await leader.next_sign() == 7
    await asyncio.sleep(1.0)
    count = len(leader.heard)
    await asyncio.sleep(0.5)
    assert len(leader.heard) == count
    pulse.beat(leads=False, addresses=[leader.address])
    assert await leader.next_sign() == 7


async def test_a_peer_that_talks_nonsense_is_asked_again(peers: tuple[Peer, Peer], pulse: Pulse) -> None:
    leader, _ = peers
    answering: set[asyncio.Task[None]] = set()

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        writer.write(b"\x00\x00\x00\x03abc")
        with contextlib.suppress(OSError):
            await writer.drain()
            await reader.read(-1)  # until it gives up
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pulse.beat(leads=False, addresses=[f"127.0.0.1:{port}", leader.address])
    for _ in range(3):
        assert await leader.next_sign() == 7
    server.close()
    await server.wait_closed()
    assert answering
    await asyncio.wait(answering)  # to the last of them: it asks again until here
