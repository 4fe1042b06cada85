"""Appends to one partition of `__consumer_offsets`: gathered, in order, and each with an end that is told.

Theory of operation. What one turn of the event loop appends leaves as one batch: members of a group commit at the same time, and a batch
costs more than a record, in the log as well as on the way there. Appends that find no room in the log wait for it, in order.

Always true:
- Ends are told in the order of the appends, outside of the WAL's callback, once for all that ended in it.
- One append's records are in one batch; a batch holds whole appends.
- What waits for room is bounded; beyond that it is refused with an error that clients try again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from broker.errors import KafkaError
from broker.groups.events import Row
from broker.partition import NO_ROOM
from protocol.errors import ErrorCode
from protocol.record_set import Record, build_batch
from protocol.records import HEADER_BYTES
from s3stream.errors import StorageError, StreamClosed
from wal.errors import PayloadTooLarge, WalError

if TYPE_CHECKING:
    from broker.partition import Partition

__all__ = ["MAX_WAITING_BYTES", "Writer"]

log = logging.getLogger("tidelog.groups")

MAX_GATHERED_BYTES = 64 << 10
"""A batch is not made larger by gathering: what is read back of it later comes as a whole."""

MAX_WAITING_BYTES = 16 << 20
"""Records that wait for room in the log; more are refused."""

_RECORD_BYTES = 32
"""At most what a record of a batch takes besides key and value."""

_REFUSALS = (StorageError, WalError, KafkaError)


class _Append:
    """One append that has not ended."""

    __slots__ = ("error", "rows", "size_bytes", "waiter")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.size_bytes = sum(len(row.key) + len(row.value or b"") + _RECORD_BYTES for row in rows)
        self.error: ErrorCode | None = None
        """None: not known yet."""
        self.waiter: asyncio.Future[None] | None = None
        """Waits until its end was told."""

    def told(self) -> None:
        """Its end was told."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Writer:
    """See the module."""

    def __init__(
        self,
        *,
        partition: Partition,
        on_ended: Callable[[ErrorCode], None],
        room: Callable[[], Awaitable[None]],
        start_task: Callable[[Coroutine[Any, Any, None], str], object],
        wall_ms: Callable[[], int],
    ) -> None:
        self._partition = partition
        self._on_ended = on_ended
        self._room = room
        self._start_task = start_task
        self._wall_ms = wall_ms
        self.records = 0
        self.bytes = 0
        """What was appended, and what the owner counts as there from before."""
        self.failures = 0
        """Appends that ended with an error."""
        self._appends: deque[_Append] = deque()
        """All that have not ended, oldest first."""
        self._gathered: list[_Append] = []
        self._gathered_bytes = 0
        self._waiting: deque[list[_Append]] = deque()
        """Batches that found no room."""
        self._waiting_bytes = 0
        self._write_scheduled = False
        self._settle_scheduled = False
        self._closed = False

    # ---- append -------------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[Row]) -> None:
        """Append at the end of this turn. How that ended is told later."""
        append = _Append(rows)
        self._appends.append(append)
        if append.size_bytes + HEADER_BYTES > self._partition.config.max_message_bytes:
            self._end([append], ErrorCode.MESSAGE_TOO_LARGE)
            return
        if self._waiting_bytes and self._waiting_bytes + self._gathered_bytes + append.size_bytes > MAX_WAITING_BYTES:
            self._end([append], ErrorCode.COORDINATOR_NOT_AVAILABLE)
            return
        if self._gathered_bytes + append.size_bytes > MAX_GATHERED_BYTES:
            self._write()
        self._gathered.append(append)
        self._gathered_bytes += append.size_bytes
        if not self._write_scheduled:
            self._write_scheduled = True
            asyncio.get_running_loop().call_soon(self._write_scheduled_now)

    def _write_scheduled_now(self) -> None:
        self._write_scheduled = False
        self._write()

    def _write(self) -> None:
        appends, self._gathered = self._gathered, []
        size_bytes, self._gathered_bytes = self._gathered_bytes, 0
        if not appends or self._closed:
            return
        if self._waiting or not self._try(appends):
            self._waiting.append(appends)
            self._waiting_bytes += size_bytes
            if len(self._waiting) == 1:
                self._start_task(self._write_with_room(), f"groups: room {self._partition}")

    def _try(self, appends: list[_Append]) -> bool:
        """Append one batch, or end its appends with an error; False: no room in the log."""
        partition = self._partition
        rows = appends[0].rows if len(appends) == 1 else [row for append in appends for row in append.rows]
        timestamp_ms = self._wall_ms()
        batch = build_batch([Record(key=row.key, value=row.value, timestamp_ms=timestamp_ms) for row in rows])

        def done(error: StorageError | None) -> None:
            self._end(appends, ErrorCode.NONE if error is None else _code_of(error))

        try:
            if partition.append_own(batch, len(rows), timestamp_ms, done) == NO_ROOM:
                return False
        except _REFUSALS as error:
            log.warning(
                "records of groups are refused: %(error)s (%(partition)s)", {"partition": partition, "error": error}
            )
            self._end(appends, _code_of(error))
            return True
        self.records += len(rows)
        self.bytes += len(batch)
        return True

    async def _write_with_room(self) -> None:
        while self._waiting and not self._closed:
            if self._try(self._waiting[0]):
                self._waiting_bytes -= sum(append.size_bytes for append in self._waiting.popleft())
            else:
                await self._room()

    async def append_now(self, rows: Sequence[Row]) -> bool:
        """Append rows as they are now, for nobody, and return when they are durable; False: there is no room.

        Raises:
            StorageError, WalError, KafkaError: refused.
        """
        ended: asyncio.Future[StorageError | None] = asyncio.get_running_loop().create_future()

        def done(error: StorageError | None) -> None:
            if not ended.done():
                ended.set_result(error)

        timestamp_ms = self._wall_ms()
        batch = build_batch([Record(key=row.key, value=row.value, timestamp_ms=timestamp_ms) for row in rows])
        if self._waiting or self._partition.append_own(batch, len(rows), timestamp_ms, done) == NO_ROOM:
            return False
        self.records += len(rows)
        self.bytes += len(batch)
        error = await ended
        if error is not None:
            raise error
        return True

    # ---- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, appends: Sequence[_Append], error: ErrorCode) -> None:
        for append in appends:
            append.error = error
        if not self._settle_scheduled:
            self._settle_scheduled = True
            asyncio.get_running_loop().call_soon(self.settle)

    def settle(self) -> None:
        """Tell of appends that ended; those that come after one that did not must wait."""
        self._settle_scheduled = False
        while self._appends and self._appends[0].error is not None:
            append = self._appends.popleft()
            assert append.error is not None
            if append.error:
                self.failures += 1
            self._on_ended(append.error)
            append.told()

    async def all_ended(self) -> None:
        """Return when the end of every append so far was told."""
        if self._appends:
            last = self._appends[-1]
            if last.waiter is None:
                last.waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(last.waiter)

    def close(self, error: ErrorCode) -> None:
        """End everything with an error: what is durable nevertheless is in the log."""
        self._closed = True
        self._waiting.clear()
        self._gathered.clear()
        while self._appends:
            append = self._appends.popleft()
            self._on_ended(error)
            append.told()


def _code_of(error: BaseException) -> ErrorCode:
    if isinstance(error, StreamClosed):
        return ErrorCode.NOT_COORDINATOR
    if isinstance(error, PayloadTooLarge):
        return ErrorCode.MESSAGE_TOO_LARGE
    return ErrorCode.COORDINATOR_NOT_AVAILABLE
