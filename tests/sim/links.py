"""The simulated network between brokers: byte streams between two processes, each of which may die, stand still, or be cut off.

Fault model:
- Bytes take a seeded time; each direction keeps its order. A connection may be reset at any moment; what was on its way is lost.
- When a process dies, the other end hears of it after what had been sent.
- Two computers may be cut off from each other. What was sent between them then waits in the kernels, as TCP keeps it, and arrives when the cut ends;
  nothing is heard of a death meanwhile, and who connects waits, too.
- A process that stands still sends nothing; what is sent to it waits.
- Not permitted: to change, reorder, duplicate or invent bytes. Of what is asked on two connections, either may come first (`peers`).
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tests.sim.loop import Process, VirtualLoop, context_of

__all__ = ["LinkTransport", "Links"]


class Weather(Protocol):
    """The network that these links are part of."""

    loop: VirtualLoop
    rng: random.Random

    def latency_s(self, slowness: float = 1.0) -> float:
        """Of a piece of bytes."""

    def resets(self) -> bool:
        """Whether the network breaks a connection now."""


class Listener(Protocol):
    """A port that a process listens on."""

    def listener(self) -> tuple[Process, Callable[[], Any]]:
        """Who listens, and what makes a protocol for each connection."""


class Links:
    """All connections between brokers, and which computers are cut off from each other."""

    def __init__(self, network: Weather) -> None:
        self._network = network
        self._cuts: set[frozenset[str]] = set()
        self._held: list[LinkTransport] = []
        """Ends to which something waits to be delivered."""
        self._connecting: list[asyncio.Future[None]] = []

    def cut(self, one: str, other: str) -> None:
        """Nothing gets through between two computers from now on."""
        self._cuts.add(frozenset((one, other)))

    def mend(self) -> None:
        """All cuts end."""
        self._cuts.clear()
        held, self._held = self._held, []
        for end in held:
            self._network.loop.call_later(self._network.latency_s(), end.deliver, context=context_of(None))
        waiting, self._connecting = self._connecting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def is_cut(self, one: str, other: str) -> bool:
        """Whether nothing gets through."""
        return frozenset((one, other)) in self._cuts

    def hold(self, end: LinkTransport) -> None:
        """Something is on its way to an end, and cannot get there before the cut ends."""
        self._held.append(end)

    async def connect(self, process: Process, protocol: asyncio.Protocol, server: Listener | None) -> LinkTransport:
        """Connect a process. Raises OSError where nobody listens."""
        network = self._network
        await asyncio.sleep(2 * network.latency_s())
        if server is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there")
        listens, factory = server.listener()
        while self.is_cut(process.host, listens.host):
            mended: asyncio.Future[None] = network.loop.create_future()
            self._connecting.append(mended)
            await mended
            await asyncio.sleep(2 * network.latency_s())
        if not listens.alive:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there any more")
        near = LinkTransport(network, self, process)
        far = LinkTransport(network, self, listens)
        near.peer, far.peer = far, near
        near.protocol = protocol
        protocol.connection_made(near)

        def accepted() -> None:
            far.protocol = factory()
            far.protocol.connection_made(far)
            far.deliver_here()

        network.loop.call_soon(accepted, context=context_of(listens))
        process.on_death(near.died)
        listens.on_death(far.died)
        return near


class LinkTransport(asyncio.Transport):
    """One end of a connection."""

    peer: LinkTransport

    def __init__(self, network: Weather, links: Links, process: Process) -> None:
        super().__init__()
        self.process = process
        self.protocol: asyncio.Protocol | None = None
        self._network = network
        self._loop = network.loop
        self._links = links
        self._in_flight: deque[bytes | None] = deque()
        """To this end, in order; None: the other one hung up, or died."""
        self._arrived: deque[bytes | None] = deque()
        """At this computer, and not yet read."""
        self._arrives_at = 0.0
        self._is_held = False
        self._reading = True
        self._closing = False
        self._lost = False

    # ---- what the process calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The kernel takes all."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self.deliver_here, context=context_of(self.process))

    def can_write_eof(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        self.process.check()
        if self._closing:
            return
        if self._network.resets():
            self._reset()
        else:
            self.peer.send(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.peer.send(None)
            self._lose_soon(None)

    def abort(self) -> None:
        self.close()

    # ---- what the network does

    def send(self, data: bytes | None) -> None:
        """Bytes begin their way to this end."""
        network = self._network
        self._arrives_at = max(self._arrives_at, self._loop.time() + network.latency_s())
        self._in_flight.append(data)
        self._loop.call_at(self._arrives_at, self._arrive, context=context_of(None))

    def _arrive(self) -> None:
        """One more piece has come as far as the cut, if there is one."""
        if self._is_held or self._links.is_cut(self.process.host, self.peer.process.host):
            if not self._is_held:
                self._is_held = True
                self._links.hold(self)
        elif self._in_flight:
            self._arrived.append(self._in_flight.popleft())
            self._loop.call_soon(self.deliver_here, context=context_of(self.process))

    def deliver(self) -> None:
        """The cut has ended: what waited arrives, unless there is another cut."""
        self._is_held = False
        while self._in_flight and not self._is_held:
            self._arrive()

    def deliver_here(self) -> None:
        """In the process: read what has arrived."""
        while self._arrived and self._reading and self.protocol is not None and not self._lost:
            data = self._arrived.popleft()
            if data is None:
                self._closing = True
                self._lose_soon(ConnectionResetError(errno.ECONNRESET, "the other end is gone"))
                return
            self.protocol.data_received(data)

    def _reset(self) -> None:
        """The network breaks the connection: both ends hear of it, if they can."""
        self.peer.send(None)
        self._closing = True
        self._lose_soon(ConnectionResetError(errno.ECONNRESET, "simulated reset"))

    def died(self) -> None:
        """The process at this end was killed: the other one hears of it, after what was sent before."""
        if not self._closing:
            self._closing = True
            self.peer.send(None)

    def _lose_soon(self, error: Exception | None) -> None:
        if not self._lost and self.protocol is not None:
            self._lost = True
            self._loop.call_soon(self.protocol.connection_lost, error, context=context_of(self.process))
