"""Signs of life in the simulation: what `controller.pulse` does in a thread with blocking calls, as a task of the process.

Whom it tells, and what it says, are the real ones (`Rounds`, `sign_of_life`). The thread dies and stands still with its process; that it goes on while the
event loop is busy cannot be simulated where nothing takes time by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import Sequence

from controller.pulse import TIMEOUT_S, Rounds, is_taken, sign_of_life
from controller.tcp import hello, split_address

__all__ = ["SimPulse"]

_SIZE = struct.Struct(">I")


class SimPulse:
    """`controller.pulse.Pulse`, on virtual time."""

    def __init__(self, *, cluster_id: str, node_id: int, interval_ms: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._greeting = hello(cluster_id, node_id)
        self._node_id = node_id
        self._interval_s = interval_ms / 1_000
        self._numbers = itertools.count()
        self._rounds = Rounds(interval_s=self._interval_s, now_s=self._loop.time())
        self._connections: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._running = self._loop.create_task(self._run())

    def close(self) -> None:
        """End."""
        assert self._running is not None
        self._running.cancel()
        for _, writer in self._connections.values():
            writer.close()

    def beat(self, *, leads: bool, addresses: Sequence[str]) -> None:
        """See `Rounds.beat`."""
        self._rounds.beat(self._loop.time(), leads=leads, addresses=addresses)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            to_tell = self._rounds.round(self._loop.time)
            address = next(to_tell, None)
            with contextlib.suppress(StopIteration):
                while address is not None:
                    address = to_tell.send(await self._say(address))

    async def _say(self, address: str) -> bool:
        """Whether a node leads, and was told."""
        try:
            if address not in self._connections:
                async with asyncio.timeout(TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(*split_address(address))
                self._connections[address] = reader, writer
                writer.write(self._greeting)
            reader, writer = self._connections[address]
            number = next(self._numbers)
            writer.write(sign_of_life(number, self._node_id))
            async with asyncio.timeout(TIMEOUT_S):
                (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
                return is_taken(await reader.readexactly(size), number)
        except (OSError, EOFError, ValueError):
            if (connection := self._connections.pop(address, None)) is not None:
                connection[1].close()
            return False
