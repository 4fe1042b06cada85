"""The WAL in a bucket: no local state at all. Group commit into numbered objects, several PUTs under way, acks in order.

Theory of operation. Frames gather in the arena; a *batch* is a stretch of the log, and the pieces of memory that it lies in. The first
append after a pause is sent at the end of its turn of the event loop; while PUTs are answered, what arrives gathers until
`batch_interval_ms` have passed since the last one was sent, or `batch_size_bytes` are together. Each batch goes to the next slot of this
epoch (see `wal.slot_log` for who may fill it), straight from the arena. A slot that takes long gets a second PUT beside the first.

Always true:
- What is durable is contiguous: a slot counts when it and all before it are filled by us. So nothing behind a fence is ever
  acknowledged, however late this process finds out that there is one: no clock and no second look is needed.
- At most `parallelism` slots are under way (twice as many PUTs, with hedges). What waits for them is bounded by the arena and the
  capacity; then `reserve` says no.
- Memory is not touched while a PUT reads it: a slot counts only when all of its PUTs have ended.
- A trim is durable once a durable batch carries it; where there is nothing else to write, an empty batch does. Only then are slots deleted, in
  the background.
- A PUT that fails is tried again for as long as it takes (it can happen once only); a slot taken by another ends this log.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import NamedTuple

from wal.arena import Arena
from wal.config import ObjectWalConfig
from wal.errors import PayloadTooLarge, WalCorrupt, WalDamaged, WalError, WalFenced, WalFencedByRecoverer
from wal.frame import FRAME_HEADER_SIZE_BYTES, crc_seed, frame_size, pack_frame
from wal.header import WalHeader
from wal.histogram import SIZE_BOUNDS_BYTES, Histogram
from wal.identity import WalIdentity, pack_identity, read_identity
from wal.log import RecoveredRun, ignore_durable, ignore_failed
from wal.objects import WalObjects
from wal.recovery import RUN_BYTES, FrameScan, Hole
from wal.slot import SLOT_HEADER_SIZE_BYTES, Position, SlotHeader, SlotKind, identity_key, new_writer_id
from wal.slot_log import End, Patience, SlotLog

__all__ = ["ObjectWal"]

_log = logging.getLogger("tidelog.wal")

CLOSE_TIMEOUT_S = 3.0
"""How long closing waits for a store that does not answer. What was not acknowledged by then is in doubt, as after a crash."""

_ID_BITS = 128


class _Held(NamedTuple):
    """A durable batch that is not trimmed."""

    position: Position
    end_offset: int


@dataclass(slots=True)
class _Batch:
    """A stretch of the log that goes into one slot."""

    base_offset: int
    end_offset: int
    pieces: list[list[int]]
    """Where its frames lie in the arena's memory: [start, end), each."""


@dataclass(slots=True)
class _Slot:
    """A slot under way."""

    header: SlotHeader
    began: float
    filled: bool = False


class ObjectWal:
    """`WriteAheadLog` in a bucket. Make one with `ObjectWal.open`, recover it, then append."""

    def __init__(
        self,
        *,
        arena: Arena,
        objects: WalObjects,
        identity: WalIdentity,
        log: SlotLog,
        newest: End,
        config: ObjectWalConfig,
        writer_id: str,
        clock: Callable[[], float] | None,
    ) -> None:
        """Not for callers: see `open`."""
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time if clock is None else clock
        self.commit_durations = Histogram()
        self.commit_sizes = Histogram(SIZE_BOUNDS_BYTES)
        self._arena = arena
        self._view = arena.view
        self._objects = objects
        self._identity = identity
        self._log = log
        self._config = config
        self._interval_s = config.batch_interval_ms / 1000
        self._writer_id = writer_id
        self._seed = crc_seed(identity.wal_id)

        self.wal_id = identity.wal_id
        self.cluster_id = identity.cluster_id
        self.wal_epoch = newest.wal_epoch
        """Grows by one at each opening."""
        self.capacity_bytes = config.capacity_bytes
        self.max_payload_bytes = min(arena.size_bytes // 4, config.capacity_bytes // 2) - FRAME_HEADER_SIZE_BYTES - 8
        """Largest payload that `reserve` takes: it must fit beside others both in the arena and in the capacity."""
        self.trim_offset = newest.trim_offset
        self.durable_offset = newest.trim_offset
        self.end_offset = newest.trim_offset

        self._on_durable: Callable[[int], None] = ignore_durable
        self._on_failed: Callable[[BaseException], None] = ignore_failed
        self._recovery_begun = False
        self._ready = False
        self._failure: WalFenced | None = None
        self._closing = False
        self._closed: asyncio.Future[None] | None = None

        # The open reservation: its payload, where its frame lies in memory, and the arena's head before it.
        self._reserved: memoryview | None = None
        self._reserved_index = 0
        self._head_before = 0

        self._gathering: _Batch | None = None
        self._full: deque[_Batch] = deque()
        """Batches that wait for nothing but their turn."""
        self._pump_handle: asyncio.Handle | None = None
        self._pump_at = 0.0
        self._send_not_before = 0.0
        self._next_number = 1
        self._confirmed_number = 0
        self._under_way: deque[_Slot] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

        self._held: deque[_Held] = deque()
        """In order; at most as many as batches fit the capacity."""
        self._trim_wanted = newest.trim_offset
        self._trim_sent = newest.trim_offset
        """What the newest slot under way carries."""
        self._waiters: list[asyncio.Future[None]] = []
        """Those who wait for whatever happens next: a durable slot, or a failure."""
        self._to_delete: list[Position] = []
        self._may_delete = asyncio.Event()
        self._deleted = asyncio.Event()
        self._deleted.set()

    @property
    def hedges(self) -> int:
        """PUTs that were sent twice because the first took long."""
        return self._log.hedges

    @classmethod
    async def open(
        cls,
        *,
        arena: Arena,
        objects: WalObjects,
        cluster_id: str,
        node_id: int,
        config: ObjectWalConfig,
        rng: random.Random,
        clock: Callable[[], float] | None = None,
    ) -> ObjectWal:
        """Find the node's WAL in the bucket, or begin one. Whoever else has it open goes on, until `recover`.

        Args:
            arena: Where payloads are laid out; empty, and nobody else's to take from.
            objects: Taken over: closed by `close`.
            cluster_id: What the WAL must be of.
            node_id: Likewise.
            config: Intervals and bounds.
            rng: Gives ids and jitter.
            clock: Seconds, for figures only; None takes the event loop's, which may be coarse.

        Raises:
            WalMismatch: another cluster's.
            WalUnsupportedFormat: a newer version wrote it.
            WalCorrupt: objects are missing or damaged.
            WalUnavailable: the store refuses this node.
        """
        identity = await _find_identity(objects, Patience(rng), cluster_id=cluster_id, node_id=node_id, rng=rng)
        log = SlotLog(objects=objects, wal_id=identity.wal_id, rng=rng, hedge_s=config.hedge_ms / 1000)
        return cls(
            arena=arena,
            objects=objects,
            identity=identity,
            log=log,
            newest=await log.newest(),
            config=config,
            writer_id=new_writer_id(rng),
            clock=clock,
        )

    def set_listeners(self, on_durable: Callable[[int], None], on_failed: Callable[[BaseException], None]) -> None:
        """See `WriteAheadLog`."""
        self._on_durable = on_durable
        self._on_failed = on_failed

    # -- recovery

    async def recover(self) -> AsyncIterator[RecoveredRun]:
        """See `WriteAheadLog`. Ends the epoch before, and with it whoever wrote there; the log takes appends once the last frame was asked for.

        Raises:
            WalCorrupt: acknowledged frames are provably missing.
            WalFenced: another process opened this WAL meanwhile.
        """
        assert not self._recovery_begun, "a WAL is recovered once"
        self._recovery_begun = True
        end = await self._log.fence(self.wal_epoch, self._writer_id)
        self.trim_offset = self._trim_wanted = self._trim_sent = end.trim_offset
        async with aclosing(self._log.batches(end)) as batches:
            async for header, data in batches:
                self._held.append(_Held(header.position, header.end_offset))
                for run in self._scan(header, memoryview(data)[SLOT_HEADER_SIZE_BYTES:]):
                    yield run
        self.end_offset = self.durable_offset = end.offset
        self.wal_epoch = end.wal_epoch + 1
        self._log.patience.bears_refusal = True
        self._ready = True
        self._deleted.clear()
        self._start(self._delete_in_background(end))

    def _scan(self, header: SlotHeader, frames: memoryview) -> Iterator[RecoveredRun]:
        """The runs of frames in one batch, but for what is trimmed."""
        start = max(self.trim_offset, header.base_offset)
        scan = FrameScan(
            WalHeader(
                wal_id=self.wal_id,
                cluster_id=self.cluster_id,
                node_id=self._identity.node_id,
                capacity_bytes=self.capacity_bytes,
                wal_epoch=header.position.wal_epoch,
                epoch_start_offset=header.base_offset,
                trim_offset=start,
                confirmed_offset=header.end_offset,
                closed=True,
            ),
            self._seed,
        )
        run_bytes = min(RUN_BYTES, self._arena.size_bytes // 8)
        while scan.next_offset < header.end_offset:
            found = scan.run(frames, header.base_offset, run_bytes)
            if not isinstance(found, RecoveredRun):
                reason = found.reason if isinstance(found, Hole) else "the last frame is cut short"
                raise WalDamaged(
                    f"{self._log.key(header.position)} is damaged at log offset {scan.next_offset}: {reason}. Restore the object, or "
                    "abandon this WAL and accept the loss"
                )
            yield found

    # -- appending

    @property
    def reserved_position(self) -> int:
        """See `WriteAheadLog`."""
        assert self._reserved is not None, "nothing is reserved"
        return self._reserved_index + FRAME_HEADER_SIZE_BYTES

    def reserve(self, payload_size: int) -> memoryview | None:
        """See `WriteAheadLog`.

        Raises:
            PayloadTooLarge: it is larger than `max_payload_bytes`.
            WalFenced: the log is fenced.
        """
        assert self._reserved is None, "the last reservation is still open: append or cancel it"
        if self._failure is not None:
            raise self._failure
        assert self._ready, "recover the WAL before the first append"
        assert not self._closing, "the WAL is closed"
        if payload_size > self.max_payload_bytes:
            raise PayloadTooLarge(payload_size, self.max_payload_bytes)
        arena = self._arena
        size = frame_size(payload_size)
        if self.end_offset + size - self.trim_offset > self.capacity_bytes:
            return None
        head_before = arena.head
        position = arena.reserve(size)
        if position is None:
            return None
        self._head_before = head_before
        self._reserved_index = index = position % arena.size_bytes
        payload_at = index + FRAME_HEADER_SIZE_BYTES
        self._reserved = payload = self._view[payload_at : payload_at + payload_size]
        return payload

    def append(
        self,
        *,
        stream_id: int,
        leader_epoch: int,
        base_offset: int,
        record_count: int,
        payload_crc32c: int | None = None,
    ) -> int:
        """See `WriteAheadLog`."""
        payload = self._reserved
        assert payload is not None, "nothing is reserved"
        self._reserved = None
        offset = self.end_offset
        index = self._reserved_index
        pack_frame(
            self._view,
            index,
            payload,
            self._seed,
            offset,
            self.durable_offset,
            self.wal_epoch,
            0,
            stream_id,
            leader_epoch,
            base_offset,
            record_count,
            payload_crc32c,
        )
        size = frame_size(len(payload))
        if padding := size - FRAME_HEADER_SIZE_BYTES - len(payload):
            self._view[index + size - padding : index + size] = _PADDING[:padding]
        self.end_offset = end = offset + size
        batch = self._gathering
        if batch is not None and end - batch.base_offset > self._config.batch_size_bytes:
            self._full.append(batch)
            batch = None
        if batch is None:
            self._gathering = _Batch(offset, end, [[index, index + size]])
        else:
            batch.end_offset = end
            last = batch.pieces[-1]
            if last[1] == index:
                last[1] = index + size
            else:
                batch.pieces.append([index, index + size])
        if len(self._under_way) < self._config.parallelism:
            self._pump_soon(self._loop.time() if self._full else self._send_not_before)
        return end

    def cancel(self) -> None:
        """See `WriteAheadLog`."""
        assert self._reserved is not None, "nothing is reserved"
        self._reserved = None
        self._arena.head = self._head_before

    # -- sending

    def _pump_soon(self, at: float) -> None:
        """Send what is due then, or at the end of this turn of the event loop."""
        if self._pump_handle is not None:
            if self._pump_at <= at:
                return
            self._pump_handle.cancel()
        self._pump_at = at
        if at <= self._loop.time():
            self._pump_handle = self._loop.call_soon(self._pump)
        else:
            self._pump_handle = self._loop.call_at(at, self._pump)

    def _pump(self) -> None:
        """Send what is due and may be under way."""
        self._pump_handle = None
        assert self._reserved is None, "a reservation stayed open across a turn of the event loop"
        while self._failure is None and len(self._under_way) < self._config.parallelism:
            if self._full:
                batch = self._full.popleft()
            elif self._gathering is not None or self._trim_wanted > self._trim_sent:
                if not self._closing and self._loop.time() < self._send_not_before:
                    self._pump_soon(self._send_not_before)
                    return
                end = self._under_way[-1].header.end_offset if self._under_way else self.durable_offset
                batch = self._gathering or _Batch(end, end, [])
                self._gathering = None
            else:
                return
            self._send(batch)

    def _send(self, batch: _Batch) -> None:
        self._send_not_before = self._loop.time() + self._interval_s
        self._trim_sent = self._trim_wanted
        header = SlotHeader(
            kind=SlotKind.BATCH,
            wal_id=self.wal_id,
            writer_id=self._writer_id,
            position=Position(self.wal_epoch, self._next_number),
            base_offset=batch.base_offset,
            end_offset=batch.end_offset,
            confirmed_number=self._confirmed_number,
            confirmed_offset=self.durable_offset,
            trim_offset=self._trim_wanted,
            trim=self._first_needed(self._trim_wanted),
        )
        self._next_number += 1
        slot = _Slot(header, self._clock())
        self._under_way.append(slot)
        self._start(self._fill(slot, [self._view[start:end] for start, end in batch.pieces]))

    def _first_needed(self, trim_offset: int) -> Position:
        """The first slot that is still needed when the log is trimmed there."""
        for held in self._held:
            if held.end_offset > trim_offset:
                return held.position
        return Position(self.wal_epoch, self._confirmed_number + 1)

    async def _fill(self, slot: _Slot, frames: list[memoryview]) -> None:
        try:
            is_ours = await self._log.occupy(slot.header, frames)
        except Exception as error:
            self._fail(error)
            return
        if not is_ours:
            self._fail(None, recovered=await self._is_recovered(slot.header.position))
        elif self._failure is None:
            slot.filled = True
            if self._under_way[0] is slot:
                self._settle()

    async def _is_recovered(self, position: Position) -> bool:
        """Whether it was a recoverer who took a slot away; False where that cannot be told."""
        try:
            return await self._log.is_recoverers(position)
        except WalError:
            return False

    def _settle(self) -> None:
        """Count the slots that are contiguous by now."""
        durable_before = self.durable_offset
        while self._under_way and self._under_way[0].filled:
            slot = self._under_way.popleft()
            header = slot.header
            self._confirmed_number = header.position.number
            self._held.append(_Held(header.position, header.end_offset))
            if header.end_offset > self.durable_offset:
                self.commit_durations.observe(self._clock() - slot.began)
                self.commit_sizes.observe(header.end_offset - self.durable_offset)
                self.durable_offset = header.end_offset
            if header.trim_offset > self.trim_offset:
                self.trim_offset = header.trim_offset
                while self._held[0].position < header.trim:
                    self._to_delete.append(self._held.popleft().position)
        if self._to_delete:
            self._deleted.clear()
            self._may_delete.set()
        self._wake()
        self._pump_soon(self._loop.time())
        if self.durable_offset > durable_before:
            self._on_durable(self.durable_offset)

    def _fail(self, error: BaseException | None, *, recovered: bool = False) -> None:
        if self._failure is not None:
            return
        if error is None:
            failure = (WalFencedByRecoverer if recovered else WalFenced)(
                f"WAL {self.wal_id} of epoch {self.wal_epoch} was fenced: somebody else recovers it; nothing more is acknowledged "
                "here. If two processes run as this node, stop one of them; else restart this one"
            )
        else:
            failure = WalFenced(
                f"WAL {self.wal_id} cannot be written ({error}): what was not acknowledged is in doubt; restart this node to recover"
            )
            failure.__cause__ = error
        self._failure = failure
        self._full.clear()
        self._gathering = None
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._wake()
        self._on_failed(failure)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _progress(self) -> None:
        """Wait for the next durable slot, or the failure."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    # -- trimming

    async def trim(self, offset: int) -> None:
        """See `WriteAheadLog`. `offset` is the end of a frame (or the present trim offset).

        Raises:
            WalFenced: the log is fenced, so the trim may or may not have become durable.
        """
        assert self._ready, "recover the WAL before the first trim"
        if offset > self.durable_offset:
            raise ValueError(f"cannot trim to {offset}: only {self.durable_offset} is durable")
        self._trim_wanted = max(self._trim_wanted, offset)
        while self.trim_offset < offset:
            if self._failure is not None:
                raise self._failure
            self._pump_soon(self._send_not_before)
            await self._progress()

    async def _delete_in_background(self, end: End) -> None:
        """Delete what was trimmed, and before that what former writers left."""
        try:
            await self._log.delete_leftovers(end, frozenset(held.position for held in self._held))
            while True:
                if not self._to_delete:
                    self._deleted.set()
                await self._may_delete.wait()
                self._may_delete.clear()
                positions, self._to_delete = self._to_delete, []
                await self._log.delete(positions)
        except Exception as error:
            self._fail(error)

    # -- closing

    async def close(self) -> None:
        """See `WriteAheadLog`. A fenced log is released as it is; a store that does not answer is given `CLOSE_TIMEOUT_S`."""
        if self._closed is not None:
            await asyncio.shield(self._closed)
            return
        self._closed = self._loop.create_future()
        self._closing = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    if self._ready:
                        await self._drain()
                    if self._failure is None:
                        await self._deleted.wait()
            if self._ready and self._failure is None and self.durable_offset < self.end_offset:
                _log.warning(
                    "closed before all was acknowledged: the bucket did not answer for %(size_bytes)d bytes (%(wal_id)s)",
                    {"size_bytes": self.end_offset - self.durable_offset, "wal_id": self.wal_id},
                )
        finally:
            if self._pump_handle is not None:
                self._pump_handle.cancel()
            tasks = [task for task in self._tasks if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._failure is None:  # for a trim that still waits for the store
                self._failure = WalFenced(f"WAL {self.wal_id} is closed")
            self._wake()
            await self._objects.close()
            self._closed.set_result(None)

    async def _drain(self) -> None:
        while self._failure is None and (self._under_way or self._full or self._gathering is not None):
            self._pump_soon(self._loop.time())
            await self._progress()


_PADDING = bytes(8)


async def _find_identity(
    objects: WalObjects, patience: Patience, *, cluster_id: str, node_id: int, rng: random.Random
) -> WalIdentity:
    """Which WAL is this node's; a new one where there was none."""
    key = identity_key(node_id)
    data = await patience.persist(lambda: objects.read(key))
    if data is None:
        new = pack_identity(WalIdentity(wal_id=_new_id(rng), cluster_id=cluster_id, node_id=node_id))
        await patience.persist(lambda: objects.create(key, [new]))
        data = await patience.persist(lambda: objects.read(key))  # perhaps another process was faster
        if data is None:
            raise WalCorrupt(
                f"{key} vanished just after it was written: does something else delete from {objects.uri}?"
            )
    identity = read_identity(data, key)
    identity.check(cluster_id=cluster_id, node_id=node_id, key=key)
    return identity


def _new_id(rng: random.Random) -> str:
    return f"{rng.getrandbits(_ID_BITS):032x}"
