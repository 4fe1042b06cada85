"""Signs of life from a thread of its own, so that a node whose event loop is busy for seconds is not taken for dead.

Theory of operation. The event loop tells the thread now and then that it moves (`beat`), and where the other nodes are. The thread says
"alive" to the one that leads, over connections of its own with blocking calls; where that one does not lead any more, or does not
answer, it asks the others in turn. So it finds a new leader though its own event loop does not hear of it. The one that leads says so to
all others, which know by it that it lives, though it may not answer.

Always true:
- A node whose event loop has not moved for `HUNG_AFTER_S` is silent: it hangs, and others are to take over.
- Nothing else is done here, and nothing is shared but values that are replaced as a whole. The thread ends with `close`, or with the process.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from controller.tcp import ALIVE, DONE, hello, split_address

__all__ = ["HUNG_AFTER_S", "Pulse"]

HUNG_AFTER_S: Final = 30.0
"""An event loop that is blocked for longer is not busy: nothing that is done there takes so long."""

_FRESH_S: Final = 1.0
"""While the loop moved within this time, what it says of who leads holds."""
_TIMEOUT_S: Final = 1.0
"""For connecting and for an answer."""
_SIZE: Final = struct.Struct(">I")
_MAX_ANSWER_BYTES: Final = 64 << 10


class Pulse:
    """One thread's work."""

    def __init__(self, *, cluster_id: str, node_id: int, interval_ms: int) -> None:
        self._greeting = hello(cluster_id, node_id)
        self._node_id = node_id
        self._interval_s = interval_ms / 1_000
        self._numbers = itertools.count()
        self._beat: tuple[float, bool, tuple[str, ...]] = (time.monotonic(), False, ())
        self._connections: dict[str, socket.socket] = {}
        self._led_by = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, within the time that one exchange takes."""
        self._stop.set()
        self._thread.join(3 * _TIMEOUT_S)

    def beat(self, *, leads: bool, addresses: Sequence[str]) -> None:
        """The event loop moves. `addresses` are those of the other nodes, the one that leads first; `leads`: this one does."""
        self._beat = (time.monotonic(), leads, tuple(addresses))

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._show()
        for address in list(self._connections):
            self._disconnect(address)

    def _show(self) -> None:
        moved_s, leads, addresses = self._beat
        silent_s = time.monotonic() - moved_s
        if silent_s > HUNG_AFTER_S:
            return
        deadline_s = time.monotonic() + self._interval_s + _TIMEOUT_S
        is_fresh = silent_s < _FRESH_S
        # Whom it found to lead comes first, unless the loop says who does.
        first = [self._led_by] if self._led_by in addresses and not is_fresh else []
        for address in dict.fromkeys((*first, *addresses)):
            if self._stop.is_set() or time.monotonic() > deadline_s:
                return
            if self._say(address) and not (leads and is_fresh):
                self._led_by = address
                return
        for address in self._connections.keys() - set(addresses):
            self._disconnect(address)

    def _say(self, address: str) -> bool:
        """Whether a node leads, and was told."""
        try:
            connection = self._connections.get(address)
            if connection is None:
                connection = socket.create_connection(split_address(address), _TIMEOUT_S)
                self._connections[address] = connection
                connection.sendall(self._greeting)
            number = next(self._numbers)
            body = msgspec.msgpack.encode((number, ALIVE, msgspec.msgpack.encode(self._node_id)))
            connection.sendall(_SIZE.pack(len(body)) + body)
            answered, state, _ = msgspec.msgpack.decode(self._answer(connection), type=tuple[int, int, bytes])
            return answered == number and state == DONE
        except (OSError, EOFError, ValueError):  # of msgspec, too
            self._disconnect(address)
            return False

    def _answer(self, connection: socket.socket) -> bytes:
        (size,) = _SIZE.unpack(self._exactly(connection, _SIZE.size))
        if size > _MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {size} bytes")
        return self._exactly(connection, size)

    def _exactly(self, connection: socket.socket, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = connection.recv(size - len(found))
            if not part:
                raise EOFError("the connection was closed")
            found += part
        return found

    def _disconnect(self, address: str) -> None:
        connection = self._connections.pop(address, None)
        if connection is not None:
            connection.close()
