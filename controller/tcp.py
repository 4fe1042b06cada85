"""Nodes talk over TCP: one connection to each node that is asked, many requests on it at a time, answered in any order.

Frames, both ways: size (4 bytes, big-endian), then MessagePack. The first one says who is there: `[version, cluster id, node id]`;
the answerer closes the connection with a line in its log where it is of another cluster or version. A request is `[number, kind, body]`
(kind: 1 submit, 2 follow, 3 balance, 4 alive), an answer `[number, state, body]` (state: 0 done, 1 not the leader, 2 not understood).

Always true:
- A peer that sends what this node does not understand loses its connection, nothing else.
- Frames, requests under way and connections are bounded; a node that asks for more waits.
- Every request ends: with an answer, with its connection, or with its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from controller.commands import Command
from controller.peers import Balance, Followed, Following, NotLeader, PeerService, PeerUnavailable
from controller.wire import Malformed, Outcome, decode_command, decode_outcome, encode_command, encode_outcome

__all__ = ["ALIVE", "DONE", "PeerServer", "PeerTraffic", "TcpPeers", "hello", "split_address"]

R = TypeVar("R")

_log: Final = logging.getLogger("tidelog.controller")

_VERSION: Final = 1
_SIZE: Final = struct.Struct(">I")
_MAX_FRAME_BYTES: Final = 64 << 20
"""An entry or a commit of some hundred thousand ranges."""
_MAX_UNDER_WAY: Final = 256
"""Requests of one peer."""
_MAX_CONNECTIONS: Final = 1_000
_CONNECT_TIMEOUT_S: Final = 2.0
_GRACE_S: Final = 1.0
"""Beyond the time in which a peer wants to answer: it hangs, or the network is cut."""
_SUBMIT, _FOLLOW, _BALANCE, ALIVE = 1, 2, 3, 4
DONE, _NOT_LEADER, _REFUSED = 0, 1, 2


@dataclass(slots=True)
class PeerTraffic:
    """What a node exchanged with others: commands, entries of the metadata log, and nothing that clients sent."""

    sent_bytes: int = 0
    received_bytes: int = 0


_Hello = tuple[int, str, int]
_Request = tuple[int, int, bytes]
_Answer = tuple[int, int, bytes]


def split_address(address: str) -> tuple[str, int]:
    """`host:port`, the host possibly in brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def _read(reader: asyncio.StreamReader, kind: Any, traffic: PeerTraffic) -> Any:
    (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
    if size > _MAX_FRAME_BYTES:
        raise Malformed(f"a frame of {size} bytes; at most {_MAX_FRAME_BYTES} are read")
    body = await reader.readexactly(size)
    traffic.received_bytes += _SIZE.size + size
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not a message between nodes: {error}") from error


def _frame(message: object, traffic: PeerTraffic) -> bytes:
    body = msgspec.msgpack.encode(message)
    traffic.sent_bytes += _SIZE.size + len(body)
    return _SIZE.pack(len(body)) + body


def hello(cluster_id: str, node_id: int) -> bytes:
    """The first frame of a connection."""
    return _frame((_VERSION, cluster_id, node_id), PeerTraffic())


async def _send(writer: asyncio.StreamWriter, frame: bytes) -> None:
    """Raises OSError: the connection is gone."""
    if writer.is_closing():  # uvloop raises RuntimeError where asyncio keeps silent
        raise ConnectionResetError("the connection was lost")
    writer.write(frame)
    await writer.drain()


class PeerServer:
    """Answers other nodes."""

    def __init__(self, service: PeerService, *, cluster_id: str, traffic: PeerTraffic | None = None) -> None:
        self._traffic = traffic or PeerTraffic()
        self._service = service
        self._cluster_id = cluster_id
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on bound sockets."""
        for one in sockets:
            self._servers.append(await asyncio.start_server(self._connected, sock=one))

    async def close(self) -> None:
        """Accept nothing more, end all connections."""
        for server in self._servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= _MAX_CONNECTIONS:
            writer.close()
            return
        self._start(self._converse(reader, writer))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        under_way = asyncio.Semaphore(_MAX_UNDER_WAY)
        answering: set[asyncio.Task[None]] = set()
        try:
            version, cluster_id, _ = await _read(reader, _Hello, self._traffic)
            if version != _VERSION:
                raise Malformed(f"protocol version {version} between nodes, this one speaks {_VERSION}")
            if cluster_id != self._cluster_id:
                raise Malformed(f"a node of cluster {cluster_id!r}, this one is of {self._cluster_id!r}")
            while True:
                number, kind, body = await _read(reader, _Request, self._traffic)
                await under_way.acquire()
                task = asyncio.get_running_loop().create_task(self._answer(writer, number, kind, body))
                answering.add(task)
                task.add_done_callback(answering.discard)
                task.add_done_callback(lambda _: under_way.release())
        except Malformed as error:
            _log.warning(
                "closing a connection of another node: %(reason)s (%(client)s)", {"reason": error, "client": peer}
            )
        except (OSError, EOFError):
            return  # it went away
        finally:
            for task in answering:
                task.cancel()
            await asyncio.gather(*answering, return_exceptions=True)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, number: int, kind: int, body: bytes) -> None:
        try:
            state, answer = DONE, await self._answered(kind, body)
        except NotLeader as error:
            state, answer = _NOT_LEADER, str(error).encode()
        except Malformed as error:
            state, answer = _REFUSED, str(error).encode()
        with contextlib.suppress(OSError):  # it went away meanwhile
            await _send(writer, _frame((number, state, answer), self._traffic))

    async def _answered(self, kind: int, body: bytes) -> bytes:
        if kind == _SUBMIT:
            command = decode_command(body)
            return encode_outcome(type(command), await self._service.submitted(command))
        if kind == _FOLLOW:
            try:
                following = msgspec.msgpack.decode(body, type=Following)
            except msgspec.DecodeError as error:
                raise Malformed(f"not a request to follow: {error}") from error
            return msgspec.msgpack.encode(await self._service.followed(following))
        if kind == _BALANCE:
            return msgspec.msgpack.encode(await self._service.balance())
        if kind == ALIVE:
            try:
                node_id = msgspec.msgpack.decode(body, type=int)
            except msgspec.DecodeError as error:
                raise Malformed(f"not a sign of life: {error}") from error
            await self._service.alive(node_id)
            return b""
        raise Malformed(f"a request of kind {kind} is not known here")


class _Connection:
    """To one node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, traffic: PeerTraffic) -> None:
        self._traffic = traffic
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self.lost = False
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def ask(self, kind: int, body: bytes, timeout_s: float | None) -> tuple[int, bytes]:
        """Send a request and wait for its answer. Raises PeerUnavailable."""
        if self.lost:
            raise PeerUnavailable("the connection was lost", sent=False)
        number = next(self._numbers)
        future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(timeout_s):
                await _send(self._writer, _frame((number, kind, body), self._traffic))
                return await future
        except TimeoutError as error:
            self.end()  # it hangs: whoever else waits should not wait for it as well
            raise PeerUnavailable(f"no answer within {timeout_s} s", sent=True) from error
        except OSError as error:
            raise PeerUnavailable(str(error), sent=True) from error
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # seen

    def end(self) -> None:
        """Close; who waits hears of it."""
        self._reading.cancel()

    async def ended(self) -> None:
        """Close, and return when that is done."""
        self.end()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        reason = "the connection was closed"
        try:
            while True:
                number, state, body = await _read(self._reader, _Answer, self._traffic)
                future = self._waiting.get(number)
                if future is not None and not future.done():
                    future.set_result((state, body))
        except (OSError, EOFError, Malformed) as error:
            reason = str(error) or reason
        finally:
            self.lost = True
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(PeerUnavailable(reason, sent=True))


class TcpPeers:
    """The port `Peers` over TCP."""

    def __init__(self, *, cluster_id: str, node_id: int, traffic: PeerTraffic | None = None) -> None:
        self._traffic = traffic or PeerTraffic()
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._connections: dict[str, _Connection] = {}
        self._connecting = asyncio.Lock()

    async def submit(self, address: str, command: Command[Any]) -> Outcome:
        """See Peers. The caller bounds the time."""
        body = await self._ask(address, _SUBMIT, encode_command(command), None)
        return decode_outcome(type(command), body)

    async def follow(self, address: str, following: Following) -> Followed:
        """See Peers."""
        body = await self._ask(
            address, _FOLLOW, msgspec.msgpack.encode(following), following.wait_ms / 1_000 + _GRACE_S
        )
        return _decoded(address, body, Followed)

    async def balance(self, address: str) -> Balance:
        """See Peers."""
        return _decoded(address, await self._ask(address, _BALANCE, b"", _GRACE_S), Balance)

    async def close(self) -> None:
        """See Peers."""
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.ended()

    async def _ask(self, address: str, kind: int, body: bytes, timeout_s: float | None) -> bytes:
        connection = await self._connected(address)
        try:
            state, answer = await connection.ask(kind, body, timeout_s)
        except PeerUnavailable as error:
            raise PeerUnavailable(f"{address}: {error}", sent=error.sent) from error
        if state == DONE:
            return answer
        text = answer.decode(errors="replace")
        if state == _NOT_LEADER:
            raise NotLeader(text)
        raise PeerUnavailable(f"{address} refuses: {text}", sent=False)

    async def _connected(self, address: str) -> _Connection:
        found = self._connections.get(address)
        if found is not None and not found.lost:
            return found
        async with self._connecting:
            found = self._connections.get(address)
            if found is not None and not found.lost:
                return found
            try:
                host, port = split_address(address)
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(host, port)
                    await _send(writer, _frame((_VERSION, self._cluster_id, self._node_id), self._traffic))
            except (OSError, ValueError, TimeoutError) as error:
                raise PeerUnavailable(f"{address}: {error or 'it does not accept'}", sent=False) from error
            found = self._connections[address] = _Connection(reader, writer, self._traffic)
            return found


def _decoded(address: str, body: bytes, kind: type[R]) -> R:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise PeerUnavailable(f"{address} answers what is not understood here: {error}", sent=True) from error
