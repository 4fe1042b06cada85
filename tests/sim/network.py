"""A simulated network: byte streams between clients, who never die, and brokers, who do. Those between brokers are in `links`.

Fault model:
- Bytes take a seeded time; each direction of a connection keeps its order, like TCP, and is cut into other pieces than it was
  written in.
- A connection may be reset at any moment. What was on its way is lost, in either direction, so the client cannot tell
  whether its request was served.
- When a broker is killed its connections are reset; answers that it had written may still arrive.
- The kernel takes `SEND_BUFFER_BYTES` of an answer, and the client takes it from there in its own time. What the kernel did
  not take stays in the broker's memory, as the views that it wrote: if that memory changes meanwhile, the client gets the change.
- A broker that stands still answers nothing, and its kernel goes on to take connections and bytes.
- Several brokers may listen under one address, each on a computer of its own: a client gets to any of them, as where an address
  was moved and not everybody knows.
- Not permitted: to change, reorder, duplicate or invent bytes.

Clients give up a connection on which an answer is due, and nothing came for `request_timeout_s`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.sim.links import Links
from tests.sim.loop import Process, VirtualLoop, context_of

__all__ = ["ClientConnection", "ConnectionReset", "Network", "NetworkFaults", "SimServer"]

SEND_BUFFER_BYTES = 32 << 10
REQUEST_TIMEOUT_S = 30.0
"""As `request.timeout.ms` of most clients."""
_FIRST_PORT = 10_000
_OUTDATED = 0.5
"""Probability that a client knows nothing of the newest one of several brokers under one address."""


class ConnectionReset(Exception):
    """The connection is gone; what became of the requests under way is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFaults:
    """How the network misbehaves."""

    mean_latency_s: float = 0.0005
    stall: float = 0.002
    """Probability per piece that it takes up to `max_stall_s`."""
    max_stall_s: float = 2.0
    reset: float = 0.0005
    """Probability per piece that the connection is reset instead."""
    max_piece_bytes: int = 16 << 10


class Network:
    """Where brokers listen and clients connect."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, faults: NetworkFaults) -> None:
        self.loop = loop
        self.rng = rng
        self.faults = faults
        self.request_timeout_s = REQUEST_TIMEOUT_S
        self.links = Links(self)
        """Between brokers."""
        self._servers: dict[int, list[SimServer]] = {}
        """By port, the one that came last at the end."""
        self._next_port = _FIRST_PORT

    def listen(self, process: Process, factory: Callable[[], Any], port: int) -> SimServer:
        """What `create_server` does in a simulated process."""
        process.check()
        if port == 0:
            port = self._next_port
            self._next_port += 1
        servers = self._servers.setdefault(port, [])
        if any(server.process.host == process.host for server in servers):
            raise OSError(98, f"port {port} is taken")
        server = SimServer(self, process, factory, port)
        servers.append(server)
        process.on_death(server.close)
        return server

    async def connect(self, port: int, *, slowness: float = 1.0) -> ClientConnection:
        """Connect a client that takes so many times longer than others to take what it is sent.

        Raises ConnectionReset where nobody listens.
        """
        await asyncio.sleep(self.latency_s())
        servers = self._servers.get(port)
        if not servers:
            raise ConnectionReset(f"nobody listens on port {port}")
        server = servers[-1]
        if len(servers) > 1 and self.rng.random() < _OUTDATED:
            server = self.rng.choice(servers)
        return server.accept(slowness)

    async def dial(
        self, process: Process, factory: Callable[[], asyncio.Protocol], port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """What `create_connection` does in a simulated process: connect it to a broker's port. Raises OSError where nobody listens."""
        process.check()
        protocol = factory()
        servers = self._servers.get(port, ())
        return await self.links.connect(process, protocol, servers[-1] if servers else None), protocol

    def closed(self, server: SimServer) -> None:
        if server in self._servers.get(server.port, ()):
            self._servers[server.port].remove(server)

    def latency_s(self, slowness: float = 1.0) -> float:
        if self.rng.random() < self.faults.stall:
            return self.rng.uniform(0.0, self.faults.max_stall_s)
        return self.rng.expovariate(1 / self.faults.mean_latency_s) * slowness

    def resets(self) -> bool:
        return self.rng.random() < self.faults.reset


class SimServer:
    """What `create_server` returns: as much of `asyncio.Server` as a broker uses."""

    def __init__(self, network: Network, process: Process, factory: Callable[[], Any], port: int) -> None:
        self.network = network
        self.process = process
        self.port = port
        self.serving = True
        self._factory = factory

    @property
    def sockets(self) -> tuple[SimServer, ...]:
        return (self,)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def close(self) -> None:
        self.serving = False
        self.network.closed(self)

    def listener(self) -> tuple[Process, Callable[[], Any]]:
        """Who listens, and what makes a protocol for each connection."""
        return self.process, self._factory

    async def wait_closed(self) -> None:
        """Nothing to wait for: closing is at once."""

    def accept(self, slowness: float) -> ClientConnection:
        context = context_of(self.process)
        transport = SimTransport(self.network, self.process, slowness)
        client = ClientConnection(self.network, transport, self.process)
        transport.client = client

        def made() -> None:
            transport.made(self._factory())

        self.network.loop.call_soon(made, context=context)
        self.process.on_death(transport.died)
        return client


class SimTransport(asyncio.Transport):
    """The broker's end of a connection."""

    def __init__(self, network: Network, process: Process, slowness: float) -> None:
        super().__init__()
        self._slowness = slowness
        self.protocol: asyncio.BufferedProtocol | None = None
        self.client: ClientConnection | None = None
        self._network = network
        self._process = process
        self._loop = network.loop
        self._context = context_of(process)
        self._arrived: deque[bytes] = deque()
        self._reading = True
        self._delivering = False
        self._in_kernel: deque[bytes] = deque()
        """Taken by the kernel, and not yet by the client."""
        self._kernel_bytes = 0
        self._unsent: deque[memoryview] = deque()
        self._paused = False
        self._closing = False
        self._lost = False
        self._arrives_at = 0.0

    def made(self, protocol: asyncio.BufferedProtocol) -> None:
        """The broker took the connection, which its kernel had; the client may have hung up meanwhile."""
        self.protocol = protocol
        gone = self._lost
        protocol.connection_made(self)
        if gone:
            self._loop.call_soon(protocol.connection_lost, None, context=self._context)

    # ---- what the broker calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0, "the broker is to know when nothing of its memory is referenced any more"

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._unsent))

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._deliver_soon()

    def write(self, data: Any) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self._process.check()
        if self._lost:
            return
        self._unsent.extend(memoryview(data).cast("B") for data in list_of_data if len(data))
        self._push()
        if self._unsent and not self._paused:
            self._paused = True
            assert self.protocol is not None
            self.protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._reading = False
            if not self._unsent:
                self._lose_soon()

    def abort(self) -> None:
        self._closing = True
        self._unsent.clear()
        self._lose_soon()

    # ---- towards the client

    def _push(self) -> None:
        """Give the kernel what it takes, cut into pieces."""
        network = self._network
        while self._unsent and self._kernel_bytes < SEND_BUFFER_BYTES:
            view = self._unsent.popleft()
            size = min(
                len(view),
                network.rng.randint(1, network.faults.max_piece_bytes),
                SEND_BUFFER_BYTES - self._kernel_bytes,
            )
            if size < len(view):
                self._unsent.appendleft(view[size:])
            self._kernel_bytes += size
            if network.resets():
                self.reset()
                return
            self._arrives_at = max(self._arrives_at, self._loop.time()) + network.latency_s(self._slowness)
            assert self.client is not None
            self._in_kernel.append(bytes(view[:size]))
            # The kernel has it: it gets there even if the broker dies.
            self._loop.call_at(self._arrives_at, self._taken, context=context_of(None))

    def _taken(self) -> None:
        assert self.client is not None
        piece = self._in_kernel.popleft()  # timers of one moment may come in any order, bytes may not
        self._kernel_bytes -= len(piece)
        self.client.received(piece)
        if self._unsent or self._paused or self._closing:
            self._loop.call_soon(self._drained, context=self._context)

    def _drained(self) -> None:
        if self._lost:
            return
        self._push()
        if not self._unsent:
            if self._paused:
                self._paused = False
                assert self.protocol is not None
                self.protocol.resume_writing()
            if self._closing and not self._unsent:
                self._lose_soon()

    # ---- from the client

    def arrived(self, piece: bytes) -> None:
        """A piece of a request has come through the network."""
        if not self._closing and not self._lost:
            self._arrived.append(piece)
            self._deliver_soon()

    def _deliver_soon(self) -> None:
        if not self._delivering and self._arrived:
            self._delivering = True
            self._loop.call_soon(self._deliver, context=self._context)

    def _deliver(self) -> None:
        self._delivering = False
        if not self._reading or self._lost or self.protocol is None or not self._arrived:
            return
        piece = self._arrived.popleft()
        buffer = memoryview(self.protocol.get_buffer(-1))
        assert len(buffer) > 0, "an empty buffer to read into is an error in asyncio"
        size = min(len(buffer), len(piece))
        buffer[:size] = piece[:size]
        if size < len(piece):
            self._arrived.appendleft(piece[size:])
        self.protocol.buffer_updated(size)
        self._deliver_soon()

    # ---- ends

    def reset(self) -> None:
        """The network breaks the connection: both ends hear of it."""
        self._unsent.clear()
        self._arrived.clear()
        self._lose_soon(ConnectionResetError("simulated reset"))

    def client_closed(self) -> None:
        """The client hung up."""
        self.reset()

    def died(self) -> None:
        """The broker was killed: the client hears of it, after what the kernel had already."""
        if not self._lost:
            self._lost = True
            self._hang_up()

    def _lose_soon(self, error: Exception | None = None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._hang_up()
        if self.protocol is not None:
            self._loop.call_soon(self.protocol.connection_lost, error, context=self._context)

    def _hang_up(self) -> None:
        client = self.client
        assert client is not None
        at = max(self._arrives_at, self._loop.time() + self._network.latency_s())
        self._loop.call_at(at, client.hung_up, context=context_of(None))


class ClientConnection:
    """The client's end: length-prefixed requests out, length-prefixed answers in, in order."""

    def __init__(self, network: Network, transport: SimTransport, broker: Process) -> None:
        self.broker = broker
        """Who answers here."""
        self._network = network
        self._transport = transport
        self._loop = network.loop
        self._received = bytearray()
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._heard_at = 0.0
        """When the last piece came, or the first of the answers that are due was asked for."""
        self._watch: asyncio.TimerHandle | None = None
        self._in_flight: deque[bytes] = deque()
        self._arrives_at = 0.0
        self.closed = False

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """Send a framed request. The future has its answer without the frame, or ConnectionReset: nobody knows what
        became of the request. Several may be under way.
        """
        answer = self._loop.create_future()
        if self.closed:
            answer.set_exception(ConnectionReset("the connection is closed"))
            answer.exception()
            return answer
        if not self._waiting:
            self._heard_at = self._loop.time()
        self._waiting.append(answer)
        if self._watch is None:
            self._watch = self._loop.call_later(self._network.request_timeout_s, self._look)
        self.send(request)
        return answer

    def _look(self) -> None:
        """Hang up where an answer is long overdue."""
        self._watch = None
        if self._waiting and not self.closed:
            due_at = self._heard_at + self._network.request_timeout_s
            if due_at <= self._loop.time():
                self.close()
            else:
                self._watch = self._loop.call_at(due_at, self._look)

    def send(self, data: bytes) -> None:
        """Send bytes that nobody answers."""
        if self.closed:
            raise ConnectionReset("the connection is closed")
        network = self._network
        start = 0
        while start < len(data):
            piece = data[start : start + network.rng.randint(1, network.faults.max_piece_bytes)]
            start += len(piece)
            if network.resets():
                self._transport.reset()
                return
            self._arrives_at = max(self._arrives_at, self._loop.time() + network.latency_s())
            self._in_flight.append(piece)
            self._loop.call_at(self._arrives_at, self._arrived, context=context_of(None))

    def _arrived(self) -> None:
        self._transport.arrived(self._in_flight.popleft())

    def close(self) -> None:
        """Hang up."""
        if not self.closed:
            self.hung_up()
            self._transport.client_closed()

    def received(self, piece: bytes) -> None:
        """A piece of an answer has come through the network."""
        if self.closed:
            return
        self._heard_at = self._loop.time()
        received = self._received
        received += piece
        while len(received) >= 4:
            end = 4 + int.from_bytes(received[:4], "big")
            if len(received) < end:
                break
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(bytes(received[4:end]))
            del received[:end]

    def hung_up(self) -> None:
        """The connection is over."""
        if self.closed:
            return
        self.closed = True
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(ConnectionReset("the connection was reset"))
                answer.exception()  # whoever waits still gets it; nobody may wait any more
        self._waiting.clear()
