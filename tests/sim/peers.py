"""How simulated nodes ask each other: over simulated connections, and some of what they ask arrives twice.

Fault model: a connection was given up, or cut off, while a command was on its way, and the command was given again on another one; the first attempt waited
in the network meanwhile, and comes after the second, by milliseconds or by seconds. Nobody hears its answer. So it may be with whatever a node asks for
itself and `Command.REPEATABLE` allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any, Final

from controller.commands import Command, NodeCommand
from controller.peers import NotLeader, PeerUnavailable
from controller.tcp import PeerTraffic, TcpPeers
from controller.wire import Outcome

__all__ = ["SimPeers"]

_LATE_SHARE: Final = 0.1
_LATEST_S: Final = (0.01, 0.1, 1.0, 6.0)


class SimPeers(TcpPeers):
    """The port `Peers`, of one start of a node."""

    def __init__(self, *, cluster_id: str, node_id: int, traffic: PeerTraffic | None = None) -> None:
        super().__init__(cluster_id=cluster_id, node_id=node_id, traffic=traffic)
        self._rng = random.Random(f"{node_id} {asyncio.get_running_loop().time()}")
        self._on_their_way: set[asyncio.Task[None]] = set()

    async def submit(self, address: str, command: Command[Any]) -> Outcome:
        """See Peers."""
        try:
            return await super().submit(address, command)
        finally:
            if isinstance(command, NodeCommand) and command.REPEATABLE and self._rng.random() < _LATE_SHARE:
                late_s = self._rng.uniform(0, self._rng.choice(_LATEST_S))
                task = asyncio.get_running_loop().create_task(self._come_late(address, command, late_s))
                self._on_their_way.add(task)
                task.add_done_callback(self._on_their_way.discard)

    async def _come_late(self, address: str, command: Command[Any], late_s: float) -> None:
        await asyncio.sleep(late_s)
        with contextlib.suppress(NotLeader, PeerUnavailable):
            await super().submit(address, command)

    async def close(self) -> None:
        """See Peers."""
        on_their_way = list(self._on_their_way)
        for task in on_their_way:
            task.cancel()
        await asyncio.gather(*on_their_way, return_exceptions=True)
        await super().close()
