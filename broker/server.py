"""The sockets of one node, and what its connections share.

Always true:
- Memory for what is received is shared: one scratch buffer, one budget.
- Acknowledgements that became ready in one wake-up leave with one flush of each connection that has any.
- Producers that found no room in the log are resumed together, in the order in which they stopped.
- Every task that serves a request is owned here: cancelled when its connection is lost, awaited when the server closes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from broker.addresses import Listener
from broker.config import InvalidSettings
from broker.connection import Connection, Dispatcher
from broker.connection_limits import ConnectionLimits
from broker.large_requests import LargeRequests
from broker.listening import bind
from broker.receive import SCRATCH_BYTES, ReceiveBudget

if TYPE_CHECKING:
    from broker.metrics import Metrics

__all__ = ["Server"]

log = logging.getLogger("tidelog.server")

SWEEP_INTERVAL_S = 10.0
"""How often idle receive buffers are given back, and idle or stuck connections closed."""

MIN_RESPONSE_BYTES = 64 << 10
"""What a consumer gets at least, also while others have used the send budget up."""

LISTEN_BACKLOG = 1024
"""Connections that the kernel holds until they are accepted: a client application that starts opens hundreds at once."""


class Server:
    """The sockets of one node."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        max_request_bytes: int,
        receive_budget_bytes: int,
        send_budget_bytes: int,
        max_other_bytes_under_way: int,
        max_connections: int,
        max_connections_per_ip: int,
        max_connections_per_ip_overrides: Mapping[str, int],
        max_idle_ms: int,
    ) -> None:
        self.dispatcher: Dispatcher
        self.metrics = metrics
        self.max_request_bytes = max_request_bytes
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.budget = ReceiveBudget(receive_budget_bytes)
        self.unsent_bytes = 0
        """Copies of records in responses that sockets have not taken yet (views are pinned where they are instead)."""
        self.send_budget_bytes = send_budget_bytes
        self.loop = asyncio.get_running_loop()
        self.large_requests = LargeRequests(self.loop, max_other_bytes_under_way)
        self._limits = ConnectionLimits(most=max_connections, most_per_ip=max_connections_per_ip)
        self._overrides = max_connections_per_ip_overrides
        self._max_idle_s = max_idle_ms / 1000
        self._connections: dict[Connection, None] = {}
        self._dirty: list[Connection] = []
        self._waiting_for_room: dict[Connection, None] = {}
        self._waiting_to_send: dict[Connection, None] = {}
        self._send_resume_scheduled = False
        self._room_task: asyncio.Task[None] | None = None
        self._stalled_since_s = 0.0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._sockets: list[tuple[Listener, socket.socket]] = []
        self._servers: list[asyncio.Server] = []
        self.stopping = False

    async def listen(self, listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
        """Bind; returns the listeners with the ports that port 0 became.

        Raises:
            InvalidSettings: an address cannot be bound, or a host name not resolved; says which and what to do.
        """
        self._limits.override(await self._resolved(self._overrides))
        bound: list[Listener] = []
        for listener in listeners:
            try:
                sockets = await bind(self.loop, listener)
            except OSError as error:
                raise InvalidSettings(
                    f"cannot listen on {listener}: {error.strerror or error}. "
                    "Stop the program that has the port (ss -ltnp shows it), or choose another in listeners."
                ) from error
            place = Listener(name=listener.name, host=listener.host, port=sockets[0].getsockname()[1])
            bound.append(place)
            self._sockets.extend((place, one) for one in sockets)
        return tuple(bound)

    async def _resolved(self, limits: Mapping[str, int]) -> dict[str, int]:
        """The same by address: host names are looked up once, as Kafka does."""
        by_address: dict[str, int] = {}
        for host, limit in limits.items():
            try:
                found = await self.loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                raise InvalidSettings(
                    f"max.connections.per.ip.overrides: {host} cannot be resolved: {error}"
                ) from error
            by_address.update({str(address[0]): limit for *_, address in found})
        return by_address

    async def serve(self, dispatcher: Dispatcher) -> None:
        """Accept connections on what `listen` bound."""
        self.dispatcher = dispatcher
        for place, one in self._sockets:
            server = await self.loop.create_server(partial(Connection, self, place), sock=one, backlog=LISTEN_BACKLOG)
            self._servers.append(server)
        self.start_task(self._sweep())

    def stop_requests(self) -> None:
        """Accept no connection and start no request any more; what was submitted is still answered."""
        self.stopping = True
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.stop_reading()

    async def close(self) -> None:
        """Close every connection, cancel and await every task."""
        self.stop_requests()
        self._flush_dirty()
        for connection in list(self._connections):
            connection.close(None)
        await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.abort()  # does not read the rest
        for _, one in self._sockets:
            one.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def response_allowance_bytes(self) -> int:
        """How large the next response may be, so that what slow clients have not taken stays within the send budget."""
        return max(self.send_budget_bytes - self.unsent_bytes, MIN_RESPONSE_BYTES)

    def may_copy(self, size: int) -> bool:
        """Whether a response may carry copies of so many bytes, rather than views that pin their memory."""
        return self.unsent_bytes + size <= self.send_budget_bytes

    @property
    def holds_too_much(self) -> bool:
        """Sockets hold twice the send budget: nothing but Produce starts, until some of it was taken."""
        return self.unsent_bytes > 2 * self.send_budget_bytes

    def wait_to_send(self, connection: Connection) -> None:
        """Resume the connection, after those that wait already, when sockets hold less."""
        self._waiting_to_send[connection] = None

    def sent(self, size: int) -> None:
        """So many bytes of responses were taken, or given up."""
        self.unsent_bytes -= size
        if self._waiting_to_send and not self.holds_too_much and not self._send_resume_scheduled:
            self._send_resume_scheduled = True
            self.loop.call_soon(self._resume_senders)

    def _resume_senders(self) -> None:
        self._send_resume_scheduled = False
        waiting, self._waiting_to_send = self._waiting_to_send, {}
        for connection in waiting:
            if self.holds_too_much:
                self._waiting_to_send[connection] = None
            else:
                connection.resume()

    @property
    def waiting_for_room_count(self) -> int:
        """Connections whose producers are held back because the log is full."""
        return len(self._waiting_for_room)

    @property
    def waiting_to_send_count(self) -> int:
        """Connections whose requests are held back because sockets hold too much of others."""
        return len(self._waiting_to_send)

    @property
    def produce_stalled_s(self) -> float:
        """How long producers were held back since start, up to now."""
        now = self.loop.time() - self._stalled_since_s if self._room_task is not None else 0.0
        return self.metrics.produce_stalled_s + now

    @property
    def connection_count(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def limit(self, *, max_connections: int, max_connections_per_ip: int, max_idle_ms: int) -> None:
        """Change limits. Connections that are open already stay, unless they are idle for too long."""
        self._limits.most = max_connections
        self._limits.most_per_ip = max_connections_per_ip
        self._max_idle_s = max_idle_ms / 1000

    def add(self, connection: Connection) -> None:
        """A client connected."""
        self._connections[connection] = None
        self.metrics.connections_opened += 1
        exceeded = self._limits.opened(connection.address)
        if self.stopping:
            connection.close(None)
        elif exceeded is not None:
            connection.close(exceeded, "limit")

    def remove(self, connection: Connection) -> None:
        """A client is gone."""
        del self._connections[connection]
        self._limits.closed(connection.address)
        self._waiting_to_send.pop(connection, None)
        self.large_requests.forget(connection)

    def start_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task that this server owns."""
        task = self.loop.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def mark(self, connection: Connection) -> None:
        """Acknowledgements became ready: flush the connection once, at the end of this wake-up."""
        if not self._dirty:
            self.loop.call_soon(self._flush_dirty)
        self._dirty.append(connection)

    def _flush_dirty(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            try:
                connection.flush()
            except Exception:
                log.exception("acknowledging failed, closing the connection: %(client)s", {"client": connection.peer})
                connection.abort("fault")

    def wait_for_room(self, connection: Connection) -> None:
        """The log is full: resume the connection, after those that wait already, when there is room."""
        self._waiting_for_room[connection] = None
        if self._room_task is None:
            self._room_task = self.start_task(self._resume_with_room())

    async def _resume_with_room(self) -> None:
        self.metrics.produce_stalls += 1
        self._stalled_since_s = self.loop.time()
        try:
            while True:
                # Tried again and waited for without an await in between: room that appears meanwhile is not missed.
                waiting, self._waiting_for_room = self._waiting_for_room, {}
                for connection in waiting:
                    connection.resume()
                if not self._waiting_for_room:
                    return
                await self.dispatcher.room()
        finally:
            self.metrics.produce_stalled_s += self.loop.time() - self._stalled_since_s
            self._room_task = None

    async def _sweep(self) -> None:
        while True:
            interval_s = min(SWEEP_INTERVAL_S, self._max_idle_s / 2)
            await asyncio.sleep(interval_s)
            for connection in list(self._connections):
                connection.sweep(interval_s, self._max_idle_s)
