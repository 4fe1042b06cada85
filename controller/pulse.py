"""Signs of life from a thread of its own, so that a node whose event loop is busy for seconds is not taken for dead.

Theory of operation. The event loop tells the thread now and then that it moves (`beat`), and where the other nodes are. The thread says
"alive" to the one that leads, over connections of its own with blocking calls; where that one does not lead any more, or does not
answer, it asks the others in turn. So it finds a new leader though its own event loop does not hear of it. The one that leads says so to
all others, which know by it that it lives, though it may not answer.

Which node is told, and in which order, is decided in `Rounds`, without a clock, a thread or a socket; `Pulse` is the thread.

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
from collections.abc import Callable, Generator, Sequence
from typing import Final

import msgspec

from controller.tcp import ALIVE, DONE, hello, split_address

__all__ = ["HUNG_AFTER_S", "TIMEOUT_S", "Pulse", "Rounds", "is_taken", "sign_of_life"]

HUNG_AFTER_S: Final = 30.0
"""An event loop that is blocked for longer is not busy: nothing that is done there takes so long."""

_FRESH_S: Final = 1.0
"""While the loop moved within this time, what it says of who leads holds."""
TIMEOUT_S: Final = 1.0
"""For connecting and for an answer."""
_SIZE: Final = struct.Struct(">I")
_MAX_ANSWER_BYTES: Final = 64 << 10


class Rounds:
    """Whom a node tells that it lives. Pure: times are those of any clock that only grows."""

    def __init__(self, *, interval_s: float, now_s: float) -> None:
        self._interval_s = interval_s
        self._beat: tuple[float, bool, tuple[str, ...]] = (now_s, False, ())
        self._led_by = ""

    @property
    def addresses(self) -> Sequence[str]:
        """Of the other nodes."""
        return self._beat[2]

    def beat(self, now_s: float, *, leads: bool, addresses: Sequence[str]) -> None:
        """The event loop moves. `addresses` are those of the other nodes, the one that leads first; `leads`: this one does."""
        self._beat = (now_s, leads, tuple(addresses))

    def round(self, clock: Callable[[], float]) -> Generator[str, bool, None]:
        """Whom to tell now, one after the other; is sent whether that one leads, and was told."""
        moved_s, leads, addresses = self._beat
        began_s = clock()
        silent_s = began_s - moved_s
        if silent_s > HUNG_AFTER_S:
            return
        deadline_s = began_s + self._interval_s + TIMEOUT_S
        is_fresh = silent_s < _FRESH_S
        # Whom it found to lead comes first, unless the loop says who does.
        first = [self._led_by] if self._led_by in addresses and not is_fresh else []
        for address in dict.fromkeys((*first, *addresses)):
            if clock() > deadline_s:
                return
            leads_there = yield address
            if leads_there and not (leads and is_fresh):
                self._led_by = address
                return


def sign_of_life(number: int, node_id: int) -> bytes:
    """A request that says so, framed."""
    body = msgspec.msgpack.encode((number, ALIVE, msgspec.msgpack.encode(node_id)))
    return _SIZE.pack(len(body)) + body


def is_taken(answer: bytes, number: int) -> bool:
    """Whether a node leads, and was told. Raises ValueError: it is no answer."""
    answered, state, _ = msgspec.msgpack.decode(answer, type=tuple[int, int, bytes])
    return answered == number and state == DONE


class Pulse:
    """One thread's work."""

    def __init__(self, *, cluster_id: str, node_id: int, interval_ms: int) -> None:
        self._greeting = hello(cluster_id, node_id)
        self._node_id = node_id
        self._interval_s = interval_ms / 1_000
        self._numbers = itertools.count()
        self._rounds = Rounds(interval_s=self._interval_s, now_s=time.monotonic())
        self._connections: dict[str, socket.socket] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, within the time that one exchange takes."""
        self._stop.set()
        self._thread.join(3 * TIMEOUT_S)

    def beat(self, *, leads: bool, addresses: Sequence[str]) -> None:
        """See `Rounds.beat`."""
        self._rounds.beat(time.monotonic(), leads=leads, addresses=addresses)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._show()
        for address in list(self._connections):
            self._disconnect(address)

    def _show(self) -> None:
        addresses = self._rounds.addresses
        to_tell = self._rounds.round(time.monotonic)
        address = next(to_tell, None)
        while address is not None and not self._stop.is_set():
            try:
                address = to_tell.send(self._say(address))
            except StopIteration:
                break
        for gone in self._connections.keys() - set(addresses):
            self._disconnect(gone)

    def _say(self, address: str) -> bool:
        """Whether a node leads, and was told."""
        try:
            connection = self._connections.get(address)
            if connection is None:
                connection = socket.create_connection(split_address(address), TIMEOUT_S)
                self._connections[address] = connection
                connection.sendall(self._greeting)
            number = next(self._numbers)
            connection.sendall(sign_of_life(number, self._node_id))
            return is_taken(self._answer(connection), number)
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
