"""A network that fails as it is told: every link between clients, brokers and store is a TCP proxy, which slows down, breaks or swallows.

What it does, and what of real networks that stands for:

- *slow*: each chunk, and each new connection, is late by so much, both ways;
- *reset*: all connections end at once, by RST; new ones are made as ever (a middlebox that restarts, a failover of an address);
- *cut*: nothing passes and nothing ends: what was sent meanwhile arrives when the cut is over, as TCP sends it again. A new connection is
  accepted and says nothing. Between controllers a cut may be for one node that asks, which its first frame names, or for all;
- *trap*: a cut that begins at the very moment at which a certain request comes by, before it passes, or before it is answered.

Not simulated: packets lost within a stream (TCP hides that), a cut that is refused by a router (that is a reset).

It runs on an event loop in a thread of its own; its methods may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec

__all__ = ["Link", "Network", "Trap", "running_network"]

_CHUNK_BYTES = 64 << 10
_LOOK_EVERY_S = 0.02
"""How soon it is noticed that a cut is over."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER by which a close is a reset."""


class Trap:
    """Waits for bytes that a client sends; see `Link.trap`."""

    def __init__(self, pattern: bytes, *, passes: bool) -> None:
        self.pattern = pattern
        """Within one chunk, as the head of a request is."""
        self.passes = passes
        """The request reaches the server, and only what it answers is held."""
        self.sprung = threading.Event()


class Link:
    """All connections to one server by one way."""

    def __init__(self, name: str, target_port: int, *, among_nodes: bool) -> None:
        self.name = name
        self.port = 0
        """Where it listens on 127.0.0.1."""
        self.delay_s = 0.0
        self.is_cut = False
        self.cut_nodes: frozenset[int] = frozenset()
        """Nodes that ask in vain, where nodes ask each other."""
        self.trap: Trap | None = None
        """Is sprung once, and holds until `Network.heal`."""
        self.is_deaf = False
        """Nothing passes back: what is asked is done, and not answered."""
        self.connections = 0
        """Since the start."""
        self.passed_bytes = 0
        self._target_port = target_port
        self._among_nodes = among_nodes
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> asyncio.Server:
        """Listen on any free port."""
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def close(self) -> None:
        """End all connections, and what they still had to send."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # a transport is closed in the next turn of the loop

    def break_off(self) -> None:
        """Reset all connections. On the event loop."""
        for writer in tuple(self._writers):
            one = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.get_running_loop().create_task(self._connected(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            first, node_id = await _hello(reader) if self._among_nodes else (b"", -1)
            await self._passable(node_id)
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(back)
            try:
                back.write(first)
                await self._pump_both(reader, writer, there, back, node_id)
            finally:
                self._end(back)
        except (OSError, EOFError):
            with contextlib.suppress(OSError):  # the server is away, or one of the two went: the other hears the same
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        finally:
            self._end(writer)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        """Close once all is sent; what a peer that stands still never takes is given up with the link."""
        writer.close()
        if not writer.transport.get_write_buffer_size():
            self._writers.discard(writer)

    async def _pump_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        node_id: int,
    ) -> None:
        ways = [
            asyncio.ensure_future(self._pump(reader, back, node_id, is_answer=False)),
            asyncio.ensure_future(self._pump(there, writer, node_id, is_answer=True)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: int, *, is_answer: bool
    ) -> None:
        while True:
            data = await reader.read(_CHUNK_BYTES)
            if not is_answer and self.trap is not None and self.trap.pattern in data:
                self._spring(self.trap)
            await self._passable(node_id)
            while is_answer and self.is_deaf:
                await asyncio.sleep(_LOOK_EVERY_S)
            if not data:
                raise EOFError
            self.passed_bytes += len(data)
            writer.write(data)
            await writer.drain()

    def _spring(self, trap: Trap) -> None:
        self.trap = None
        if trap.passes:
            self.is_deaf = True
        else:
            self.is_cut = True
        trap.sprung.set()

    async def _passable(self, node_id: int) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        while self.is_cut or node_id in self.cut_nodes:
            await asyncio.sleep(_LOOK_EVERY_S)


async def _hello(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    """The first frame between nodes, and who sent it (controller/tcp.py)."""
    size = await reader.readexactly(4)
    body = await reader.readexactly(int.from_bytes(size, "big"))
    _, _, node_id = msgspec.msgpack.decode(body, type=tuple[int, str, int])
    return size + body, node_id


class Network:
    """Links, and the thread that they run on."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()

    def link(self, name: str, target_port: int, *, among_nodes: bool = False) -> Link:
        """A new way to a server on the loopback interface; its `port` is open."""
        link = Link(name, target_port, among_nodes=among_nodes)
        self._servers.append(asyncio.run_coroutine_threadsafe(link.serve(), self._loop).result())
        self.links.append(link)
        return link

    def reset(self, link: Link) -> None:
        """End all connections of a link, by RST."""
        self._loop.call_soon_threadsafe(link.break_off)

    def heal(self) -> None:
        """End all faults."""
        for link in self.links:
            link.delay_s, link.is_cut, link.is_deaf, link.cut_nodes, link.trap = 0.0, False, False, frozenset(), None

    def close(self) -> None:
        """End it all."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for link in self.links:
                await link.close()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def running_network() -> Iterator[Network]:
    """A network that ends with the block."""
    network = Network()
    try:
        yield network
    finally:
        network.close()
