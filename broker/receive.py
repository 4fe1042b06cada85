"""Where the bytes of requests arrive: one shared scratch buffer, and a buffer of its own for who needs one.

Theory of operation. Event loops read and call back in one go, so all connections can read into the same scratch
buffer: whole requests are served from there, and an idle connection costs nothing. Only what is left over, a part of a
request or a request that may not start yet, moves to a buffer of the connection's own. A connection that sends
large requests keeps its own buffer and reads into it directly, each request placed so that it need not be moved.

Always true:
- Own buffers grow as data arrives, never because a length was announced, and never beyond the announced request.
- All of them but `UNCHARGED_BYTES` is charged to a budget that all connections share (`queued.max.request.bytes`). When it
  is spent, connections wait in line; the first in line may overdraw it, so that somebody always gets on.
- No more is read into the scratch buffer than could be kept: left-overs never have to be taken against the budget.
- `[start, end)` is what was received and not consumed yet. Views of it die with the next call of `writable`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["SCRATCH_BYTES", "STASH_BYTES", "UNCHARGED_BYTES", "ReceiveBudget", "ReceiveBuffer"]

SCRATCH_BYTES = 256 << 10
"""One read takes at most this much: enough to spread a system call over many small requests, small enough for the L2 cache."""

STASH_BYTES = SCRATCH_BYTES
"""An own buffer starts at most this large, whatever was announced."""

_PAGE_BYTES = 4096

UNCHARGED_BYTES = _PAGE_BYTES
"""What a connection may keep free of charge: so that the beginning of a request can be read, and small requests are served,
while others have spent the budget. Ten thousand connections (`max.connections`) hold 40 MB so."""

_SHRINK_AFTER_REQUESTS = 64
"""So many requests in a row that would fit a quarter of an own buffer, and it is given back."""


class ReceiveBudget:
    """Receive memory that all connections share."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._free_bytes = size_bytes
        self._waiting: deque[Callable[[], None]] = deque()
        self._overdrawn_by: object | None = None

    @property
    def free_bytes(self) -> int:
        """What is left; below zero while somebody overdraws."""
        return self._free_bytes

    @property
    def waiting_count(self) -> int:
        """Connections that wait for memory."""
        return len(self._waiting)

    @property
    def contended(self) -> bool:
        """Somebody waits: give back what is not needed."""
        return bool(self._waiting)

    def take(self, size: int, taker: object) -> bool:
        """Charge `size` bytes, or say no: then `wait`."""
        if self._free_bytes < size:
            if self._overdrawn_by is None and not self._waiting:
                self._overdrawn_by = taker
            elif self._overdrawn_by is not taker:
                return False
        self._free_bytes -= size
        return True

    def take_anyway(self, size: int) -> int:
        """Charge `size` bytes that are held already; returns them."""
        self._free_bytes -= size
        return size

    def wait(self, callback: Callable[[], None]) -> None:
        """Be called once it is worth asking again."""
        self._waiting.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Leave the line (the connection is gone)."""
        if callback in self._waiting:
            self._waiting.remove(callback)

    def give(self, size: int, taker: object) -> None:
        """Give `size` bytes back."""
        self._free_bytes += size
        if self._overdrawn_by is taker:
            self._overdrawn_by = None
        # Asked in order, until one finds nothing and lines up once more: it stays the first.
        waiting, self._waiting = self._waiting, deque()
        try:
            while waiting and not self._waiting:
                waiting.popleft()()
        finally:
            self._waiting.extend(waiting)


class ReceiveBuffer:
    """What one connection received."""

    __slots__ = ("_budget", "_charged", "_need", "_scratch", "_small_requests", "_view", "end", "own", "start")

    def __init__(self, scratch: memoryview, budget: ReceiveBudget) -> None:
        self._scratch = scratch
        self._budget = budget
        self._view = scratch
        self._need = 0
        """Where the request that is arriving will end, relative to `start`; 0 when not known."""
        self._small_requests = 0
        self._charged = 0
        self.own = False
        """`view` is this connection's own memory; False: the scratch buffer, to be emptied before returning to the loop."""
        self.start = 0
        self.end = 0

    @property
    def view(self) -> memoryview:
        """The memory that `start` and `end` point into."""
        return self._view

    @property
    def capacity_bytes(self) -> int:
        """Size of the own buffer, 0 without one."""
        return len(self._view) if self.own else 0

    @property
    def charged_bytes(self) -> int:
        """What it took of the shared budget."""
        return self._charged

    def writable(self) -> memoryview:
        """Where the next bytes go; never empty unless `settle` said that there is no room."""
        if not self.own:
            room = self._budget.free_bytes + UNCHARGED_BYTES
            return self._view if room >= SCRATCH_BYTES else self._view[: max(room, UNCHARGED_BYTES)]
        need = self._need
        if need > len(self._view) >> 1:
            # Stop at the end of a large request: the next one then starts at the front and is never moved.
            return self._view[self.end : min(self.start + need, len(self._view))]
        return self._view[self.end :]

    def settle(self, need: int) -> bool:
        """After a round of requests: keep what is left, make room for `need` bytes in all of the request that comes next.

        `need` is its announced size with the length prefix, or 0 where that is not known yet. False: the budget is spent;
        do not read on before it has room and `settle` said True.
        """
        left = self.end - self.start
        self._need = need
        if left == 0:
            self.start = self.end = 0
            if self.own and (self._small_requests >= _SHRINK_AFTER_REQUESTS or self._budget.contended):
                self.release()
            return True
        if not self.own:
            self._adopt(min(need, STASH_BYTES))
        capacity = len(self._view)
        if self.end < capacity and (need <= capacity - self.start or not need):
            return True
        if self.start:
            self._view[:left] = self._view[self.start : self.end]
            self.start, self.end = 0, left
        if left < capacity:
            return True
        # The buffer is full of one unfinished request, or of requests that may not start yet.
        return need <= capacity or self._grow(need)

    def consumed(self, size: int) -> None:
        """Note the size of a request that was served."""
        if self.own:
            if size > len(self._view) >> 2:
                self._small_requests = 0
            else:
                self._small_requests += 1

    def release(self) -> None:
        """Give the own buffer back; only while it is empty, or with the connection."""
        self._view = self._scratch
        self.own = False
        self.start = self.end = 0
        self._small_requests = 0
        charged, self._charged = self._charged, 0
        if charged:
            self._budget.give(charged, self)

    def _adopt(self, wanted: int) -> None:
        left = self.end - self.start
        # Where the budget has no more, what is left is kept, of which `writable` saw to it that there is room.
        size = _pages(max(left, wanted))
        if not self._charge(size):
            size = _pages(left)
            self._charged = self._budget.take_anyway(max(size - UNCHARGED_BYTES, 0))
        own = memoryview(bytearray(size))
        own[:left] = self._view[self.start : self.end]
        self._view = own
        self.own = True
        self._small_requests = 0
        self.start, self.end = 0, left

    def _grow(self, need: int) -> bool:
        size = min(max(2 * len(self._view), STASH_BYTES), _pages(need))
        if not self._charge(size):
            return False
        own = memoryview(bytearray(size))
        own[: self.end] = self._view[: self.end]
        self._view = own
        return True

    def _charge(self, size: int) -> bool:
        charge = max(size - UNCHARGED_BYTES, 0) - self._charged
        if charge > 0:
            if not self._budget.take(charge, self):
                return False
            self._charged += charge
        return True


def _pages(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES
