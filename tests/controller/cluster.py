"""Several controllers on one bucket, and the network between them, on virtual time, for tests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from controller.commands import Command
from controller.config import ControllerSettings
from controller.controller import Controller
from controller.peers import Balance, Followed, Following, PeerUnavailable
from controller.snapshot import digest
from controller.wire import Outcome, decode_command, decode_outcome, encode_command, encode_outcome
from s3stream.memory import Bucket, MemoryObjectStore
from tests.controller.machine import T0_MS
from tests.controller.world import PATHS
from tests.sim.loop import VirtualLoop


class Network:
    """The port `Peers` between controllers of one process: everything that is said is encoded, some of it is lost."""

    def __init__(self) -> None:
        self.services: dict[str, Controller] = {}
        self.silent: set[str] = set()
        """Takes requests, and answers none: killed, paused or cut off."""
        self.mute: set[str] = set()
        """Nobody receives its requests."""
        self.loses_answers = False
        self.submitted = 0

    async def submit(self, address: str, command: Command[Any]) -> Outcome:
        await self._arrive(address)
        self.submitted += 1
        received = decode_command(encode_command(command))
        outcome = await self.services[address].submitted(received)
        if self.loses_answers:
            self.loses_answers = False
            raise PeerUnavailable("lost", sent=True)
        return decode_outcome(type(command), encode_outcome(type(received), outcome))

    async def follow(self, address: str, following: Following) -> Followed:
        await self._arrive(address)
        found = await self.services[address].followed(following)
        await self._arrive(address)
        return found

    async def balance(self, address: str) -> Balance:
        await self._arrive(address)
        return await self.services[address].balance()

    async def alive(self, address: str, node_id: int) -> None:
        await self._arrive(address)
        await self.services[address].alive(node_id)

    async def close(self) -> None:
        """Nothing is held."""

    async def _arrive(self, address: str) -> None:
        await asyncio.sleep(0.001)
        if address in self.silent:
            await asyncio.sleep(0.5)
            raise PeerUnavailable("no answer", sent=False)


class Link:
    """A node's access to the network."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address

    async def submit(self, address: str, command: Command[Any]) -> Outcome:
        await self._leave()
        return await self._network.submit(address, command)

    async def follow(self, address: str, following: Following) -> Followed:
        await self._leave()
        return await self._network.follow(address, following)

    async def balance(self, address: str) -> Balance:
        await self._leave()
        return await self._network.balance(address)

    async def alive(self, address: str, node_id: int) -> None:
        """A sign of life, as `controller.pulse` sends them."""
        await self._leave()
        await self._network.alive(address, node_id)

    async def close(self) -> None:
        """Nothing is held."""

    async def _leave(self) -> None:
        if self._address in self._network.mute:
            await asyncio.sleep(0.5)
            raise PeerUnavailable("nobody is reached", sent=False)


class Cluster:
    """A bucket, a network, and nodes 1, 2, 3 …"""

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.network = Network()
        self.stores: list[MemoryObjectStore] = []
        self.nodes: list[Controller] = []
        self.failures: list[BaseException] = []

    async def start(self, **settings: Any) -> Controller:
        number = len(self.nodes) + 1
        address = f"node{number}:9093"
        store = MemoryObjectStore(self.bucket)
        node = await Controller.start(
            store=store,
            paths=PATHS,
            settings=ControllerSettings(leader_address=address, **settings),
            now_ms=lambda: T0_MS,
            rng=random.Random(number),
            on_failure=self.failures.append,
            clock=asyncio.get_running_loop().time,
        )
        self.network.services[address] = node.membership
        node.join(Link(self.network, address), node_id=number)
        self.nodes.append(node)
        self.stores.append(store)
        return node

    def cut_off(self, node: Controller) -> None:
        """Nobody hears of this node any more; it reaches the bucket still."""
        self.network.silent.add(f"node{self.nodes.index(node) + 1}:9093")

    def isolate(self, node: Controller) -> None:
        """As if it were paused: it reaches nothing, and nobody reaches it."""
        number = self.nodes.index(node)
        self.network.silent.add(f"node{number + 1}:9093")
        self.network.mute.add(f"node{number + 1}:9093")
        self.stores[number].outage = True

    def connect(self, node: Controller) -> None:
        """It reaches everything again."""
        number = self.nodes.index(node)
        self.network.silent.discard(f"node{number + 1}:9093")
        self.network.mute.discard(f"node{number + 1}:9093")
        self.stores[number].outage = False

    async def leader_among(self, nodes: list[Controller]) -> Controller:
        while True:
            leading = [node for node in nodes if node.is_leader]
            if len(leading) == 1:
                return leading[0]
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()
        assert self.failures == []


def run(scenario: Callable[[Cluster], Awaitable[None]]) -> Cluster:
    """Run a scenario on virtual time."""
    loop = VirtualLoop()
    cluster = Cluster()

    async def whole() -> None:
        await scenario(cluster)
        await cluster.close()

    try:
        loop.run_until_complete(whole())
    finally:
        loop.close()
    return cluster


async def settled(nodes: list[Controller]) -> None:
    """Return when all nodes have applied the same, and it is the same."""
    while len({node.applied_index for node in nodes}) > 1:
        await asyncio.sleep(0.01)
    assert len({digest(node.image.state) for node in nodes}) == 1
