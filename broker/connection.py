"""One client's connection: bytes in, requests started, responses out in order.

Theory of operation. A connection is an `asyncio.BufferedProtocol`. All requests that one read brought are started in
that same callback, and what they answer at once leaves in one write at its end. Produce requests are
submitted without waiting for each other; they are acknowledged when the WAL calls back, and all acknowledgements of
one wake-up leave in one write as well. There is no task and no future per produce request.

Always true:
- Responses leave in the order of their requests. Produce may be pipelined behind Produce; any other request starts only
  when everything before it has been answered, and nothing starts behind it before it is (Kafka's muting of channels).
- What cannot start stays in the receive buffer, and the socket is not read meanwhile: back-pressure reaches the client
  when the log is full, when it does not read its responses (or many others do not), and when it pipelines more than is
  served.
- Malformed input closes its own connection with one line in the log (I14); nothing else is touched.
- Views into the arena that a socket still holds are pinned. A client too slow for the memory it holds is disconnected.
- Tasks of a connection are cancelled when it is lost, and awaited when the server closes.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast

from broker.ack_queue import AckQueue
from broker.addresses import Listener
from broker.connection_limits import plain_address
from broker.receive import ReceiveBuffer
from protocol.errors import ProtocolError

if TYPE_CHECKING:
    from broker.metrics import ProducedBytes
    from broker.server import Server
    from s3stream.log_cache import CacheBlock

__all__ = ["MAX_OTHER_REQUEST_BYTES", "STUCK_TIMEOUT_S", "CloseConnection", "Connection", "Dispatcher", "name_of"]

log = logging.getLogger("tidelog.connection")

_INT32 = struct.Struct(">i").unpack_from
_INT16 = struct.Struct(">h").unpack_from
_PRODUCE_KEY = 0
_MIN_REQUEST_BYTES = 10
"""API key, version, correlation id and client id: the shortest header of what is served."""

MAX_OTHER_REQUEST_BYTES = 8 << 20
"""Largest request other than Produce. What Produce carries stays bytes; anything else becomes objects, a two-byte element of an
array some hundred bytes of them. A Fetch of 200,000 partitions, the most that a broker has by default, takes 7 MB."""

STUCK_TIMEOUT_S = 60.0
"""A client that takes nothing of its response, or does not go on with a large request while others wait for its memory, for so
long, is gone: clients themselves give up after 30 s (`request.timeout.ms`)."""


MAX_REASON_LENGTH = 400
"""Of what the log says of a connection that is closed: some errors quote names, which may have 32 KB."""

_HTTP = {b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI "}


class CloseConnection(Exception):
    """This request ends its connection; the message says why, for the log."""


class Dispatcher(Protocol):
    """Starts requests. What the server needs to know of the Kafka protocol."""

    def produce(self, connection: Connection, frame: memoryview) -> bool:
        """Submit a Produce request of at least ten bytes; False: no room in the log, keep the frame and try again after `room`.

        Raises:
            ProtocolError, CloseConnection: close the connection.
        """

    def request(self, connection: Connection, frame: memoryview) -> None:
        """Start any other request: respond at once, or mark the connection busy until it responds.

        Raises:
            ProtocolError, CloseConnection: close the connection.
        """

    async def room(self) -> None:
        """Return when a produce request that found no room is worth trying again."""


class Connection(asyncio.BufferedProtocol):
    """One client."""

    __slots__ = (
        "__weakref__",
        "_blocks",
        "_buffer",
        "_busy",
        "_closing",
        "_copied_bytes",
        "_holding_s",
        "_idle_s",
        "_on_lost",
        "_out",
        "_processing",
        "_reading",
        "_served",
        "_stuck_s",
        "_unsent_bytes",
        "_waits_for_memory",
        "_write_paused",
        "acks",
        "active",
        "address",
        "flush_scheduled",
        "listener",
        "peer",
        "produced",
        "server",
        "transport",
    )

    def __init__(self, server: Server, listener: Listener) -> None:
        self.server = server
        self.listener = listener
        """The listener that the client came in by: Metadata answers with that one's advertised address."""
        self.peer = "?"
        self.address = ""
        """The client's address, without its port."""
        self.transport: asyncio.Transport | None = None
        self.acks = AckQueue(self)
        """Produce requests that are not answered yet."""
        self.produced: ProducedBytes | None = None
        """Where its record batches are counted, by the producer's zone; None before the first."""
        self.flush_scheduled = False
        self.active = True
        """Something was received or sent since the last sweep."""
        self._buffer = ReceiveBuffer(server.scratch, server.budget)
        self._out: list[bytes | memoryview] = []
        self._blocks: list[CacheBlock] = []
        """Blocks of the log cache that the socket still holds views of, each pinned once."""
        self._copied_bytes = 0
        """Bytes of responses, other than acknowledgements, that the socket still holds copies of."""
        self._busy = False
        """A request other than Produce is under way."""
        self._on_lost: Callable[[], None] | None = None
        self._closing = False
        self._processing = False
        self._reading = True
        self._waits_for_memory = False
        self._write_paused = False
        self._served = False
        """A request was started since the last sweep."""
        self._idle_s = 0.0
        self._stuck_s = 0.0
        self._holding_s = 0.0
        self._unsent_bytes = 0

    @property
    def client_host(self) -> str:
        """Where the client is, as Kafka's tools show it; empty when it is gone."""
        peer = None if self.transport is None else self.transport.get_extra_info("peername")
        return f"/{peer[0]}" if peer else ""

    # ---- the transport calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = stream = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        peer = transport.get_extra_info("peername")
        self.peer = name_of(peer)
        self.address = plain_address(str(peer[0])) if peer else ""
        # No queue of our own making in the transport: whatever the kernel does not take pauses this connection,
        # and resume_writing means that nothing of ours is referenced any more.
        stream.set_write_buffer_limits(high=0)
        self.server.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._closing = True
        self.server.remove(self)
        self.server.budget.forget(self._memory_freed)
        self._buffer.release()
        self._out.clear()
        self._sent()
        if self._on_lost is not None:
            on_lost, self._on_lost = self._on_lost, None
            on_lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer.writable()

    def buffer_updated(self, nbytes: int) -> None:
        self.active = True
        self._buffer.end += nbytes
        self._process()

    def eof_received(self) -> bool:
        return False  # the transport closes itself; a half-closed client gets no more answers, as with Kafka

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._sent()
        self.flush()

    # ---- requests ---------------------------------------------------------------------------------------------

    def _process(self) -> None:
        """Start every request that is there and may start, then write what they answered."""
        if self._processing or self._closing or self.server.stopping:
            return
        self._processing = True
        metrics = self.server.metrics
        metrics.arrived = metrics.clock()
        buffer = self._buffer
        view = buffer.view
        start, end = buffer.start, buffer.end
        server = self.server
        need = 0
        blocked = False
        try:
            while end - start >= 4:
                (size,) = _INT32(view, start)
                if not _MIN_REQUEST_BYTES <= size <= server.max_request_bytes:
                    raise CloseConnection(_no_size(size, server.max_request_bytes))
                if size > MAX_OTHER_REQUEST_BYTES and end - start >= 6:
                    (key,) = _INT16(view, start + 4)
                    if key != _PRODUCE_KEY:
                        raise CloseConnection(
                            f"a request of {size} bytes with API key {key}; only Produce may have more than "
                            f"{MAX_OTHER_REQUEST_BYTES}"
                        )
                need = size + 4
                if end - start < need:
                    break
                if self._busy or self._write_paused:
                    blocked = True
                    break
                frame = view[start + 4 : start + need]
                (key,) = _INT16(frame)
                if key == _PRODUCE_KEY:
                    if not server.dispatcher.produce(self, frame):
                        stalled = self.acks.stalled
                        if stalled is None or stalled.parked is None:
                            server.wait_for_room(self)
                        blocked = True
                        break
                elif self.acks.pending:
                    blocked = True
                    break
                elif server.holds_too_much:
                    server.wait_to_send(self)
                    blocked = True
                    break
                elif not server.large_requests.may_start(self, size):
                    blocked = True
                    break
                else:
                    server.dispatcher.request(self, frame)
                    if self._out:
                        self._write()  # at once: it may be large, and nothing follows while the socket is full
                start += need
                need = 0
                buffer.consumed(size)
        except (ProtocolError, CloseConnection) as error:
            self.close(str(error), "request")
            return
        except Exception:
            log.exception("a request failed, closing its connection: %(client)s", {"client": self.peer})
            self.close(None, "fault")
            return
        finally:
            self._processing = False
        if start != buffer.start:
            self._served = True
            buffer.start = start
        room = buffer.settle(need)
        if not room and not self._waits_for_memory:
            self._waits_for_memory = True
            server.budget.wait(self._memory_freed)
        self._set_reading(room and not blocked)
        if self._out:
            self._write()

    def _set_reading(self, reading: bool) -> None:
        if reading is not self._reading:
            assert self.transport is not None
            self._reading = reading
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def stop_reading(self) -> None:
        """The server stops: nothing more is started, so nothing more may fill the receive buffer."""
        if not self._closing:
            self._set_reading(False)

    def _memory_freed(self) -> None:
        self._waits_for_memory = False
        self._process()

    def resume(self) -> None:
        """Something that held requests back is over: go on with those in the buffer."""
        if self._buffer.own or not self._reading:
            self._process()

    # ---- responses --------------------------------------------------------------------------------------------

    def respond(self, parts: list[bytes | memoryview], block: CacheBlock | None = None) -> None:
        """Queue a response to the request that is being started; it leaves with the others of this callback."""
        self._out.extend(parts)
        copied = sum(len(part) for part in parts if type(part) is bytes)
        self._copied_bytes += copied
        self.server.unsent_bytes += copied
        if block is not None:
            block.pin(self)
            self._blocks.append(block)

    def begin(self, on_lost: Callable[[], None]) -> None:
        """The request cannot be answered in this callback: nothing else starts until `finish`."""
        self._busy = True
        self._on_lost = on_lost

    def finish(self, parts: list[bytes | memoryview], block: CacheBlock | None = None) -> None:
        """Answer the request that `begin` was called for, and go on with those behind it."""
        self._busy = False
        self._on_lost = None
        self.server.large_requests.end(self)
        if self._closing:
            return
        self.respond(parts, block)
        self._write()
        self.resume()

    def run(self, handler: Coroutine[Any, Any, list[bytes | memoryview]]) -> None:
        """Answer the request with the frame that a coroutine returns. It is cancelled when the client goes away."""

        async def answer() -> None:
            self.finish(await handler)

        task = self.server.start_task(answer())

        def cancel() -> None:
            task.cancel()

        self.begin(cancel)
        task.add_done_callback(self.check_task)

    def check_task(self, task: asyncio.Task[None]) -> None:
        """A task that was to answer a request has ended: where it failed, the connection ends."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ProtocolError | CloseConnection):
            self.close(str(error), "request")
        elif error is not None:
            log.error("a request failed, closing its connection: %(client)s", {"client": self.peer}, exc_info=error)
            self.close(None, "fault")

    def flush(self) -> None:
        """Send the acknowledgements that are ready, in order; then start what waited for them."""
        self.flush_scheduled = False
        if self._closing:
            return
        self.acks.take_ready(self._out)
        if self._out:
            self._write()
        self.resume()

    def _write(self) -> None:
        out, self._out = self._out, []
        transport = self.transport
        assert transport is not None
        self.active = True
        if len(out) == 1:
            transport.write(out[0])
        elif self._blocks:
            transport.writelines(out)
        else:
            transport.write(b"".join(out))
        if not self._write_paused:
            self._sent()

    # ---- memory that the socket holds -----------------------------------------------------------------------------

    def _sent(self) -> None:
        """The socket has everything: nothing of ours is referenced any more."""
        if self._copied_bytes:
            copied, self._copied_bytes = self._copied_bytes, 0
            self.server.sent(copied)
        if self._blocks:
            blocks, self._blocks = self._blocks, []
            for block in blocks:
                block.unpin(self)

    def revoke(self) -> None:
        """The arena needs the memory that this slow client holds (a `PinHolder` of the log cache)."""
        if not self._closing:
            self._log_closing("it reads too slowly for the memory that its response holds")
            self.abort("slow")

    # ---- end --------------------------------------------------------------------------------------------------

    def close(self, reason: str | None, cause: str | None = None) -> None:
        """Close for good; `reason` goes to the log in one line, unless None (already logged, or ours).

        `cause` is counted, unless None (nothing is wrong).
        """
        if self._closing:
            return
        if cause is not None:
            self.server.metrics.connections_closed[cause] += 1
        if reason is not None:
            self._log_closing(one_line(reason))
        self.acks.take_ready(self._out)
        if self._out:
            self._write()  # what was answered before the bad request still reaches the client
        self._closing = True
        assert self.transport is not None
        self.transport.close()

    def _log_closing(self, reason: str) -> None:
        log.warning("closing a connection: %(reason)s (%(client)s)", {"client": self.peer, "reason": reason})

    def abort(self, cause: str | None = None) -> None:
        """Close at once, giving up what the socket did not take; `cause` is counted, unless None (nothing is wrong)."""
        if cause is not None and not self._closing:
            self.server.metrics.connections_closed[cause] += 1
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    def sweep(self, elapsed_s: float, max_idle_s: float) -> None:
        """Give an idle buffer back; end what has been idle or stuck for too long."""
        self._idle_s = 0.0 if self.active else self._idle_s + elapsed_s
        self.active = False
        if self.transport is None:
            return
        unsent_bytes = self.transport.get_write_buffer_size()
        stuck = unsent_bytes > 0 and unsent_bytes >= self._unsent_bytes
        self._stuck_s = self._stuck_s + elapsed_s if stuck else 0.0
        self._unsent_bytes = unsent_bytes
        buffer = self._buffer
        # However slowly bytes drip in or out; but who waits for us, for memory or for room in the log, holds nobody up.
        ours = self._waits_for_memory or self.acks.stalled is not None or self.server.large_requests.waits(self)
        receives = buffer.charged_bytes and self.server.budget.contended and not self._served and not ours
        sends = self._copied_bytes and self.server.holds_too_much
        self._holding_s = self._holding_s + elapsed_s if receives or sends else 0.0
        self._served = False
        if self._stuck_s >= STUCK_TIMEOUT_S:
            self._log_closing(f"it did not take a byte of its response for {self._stuck_s:.0f} s")
            self.abort("stuck")
        elif self._holding_s >= STUCK_TIMEOUT_S:
            self._log_closing("it holds memory that others wait for")
            self.abort("memory")
        elif self._idle_s >= max_idle_s and not (self._busy or self.acks.pending or ours):
            self.abort("idle")  # silently, as Kafka does: an idle client reconnects
        elif self._idle_s and buffer.own and buffer.start == buffer.end:
            buffer.release()


def _no_size(size: int, max_request_bytes: int) -> str:
    """What to say of four bytes that are no size of a request; the usual mistakes are called by their names."""
    first = size.to_bytes(4, "big", signed=True)
    if first[:2] == b"\x16\x03":
        return "a TLS handshake on a listener without TLS: security.protocol of the client must be PLAINTEXT"
    if first in _HTTP:
        return "an HTTP request: this port speaks the Kafka protocol"
    return f"a request of {size} bytes (socket.request.max.bytes = {max_request_bytes})"


def name_of(address: Any) -> str:
    """`host:port` of a socket's address, as it stands in the log."""
    if not address:
        return "?"
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def one_line(text: str) -> str:
    """Text that a client may have had a hand in, made fit for one line of the log: it can forge no other, and has its limit."""
    if len(text) > MAX_REASON_LENGTH:
        text = f"{text[:MAX_REASON_LENGTH]}… ({len(text)} characters)"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
