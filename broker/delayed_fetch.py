"""One fetch: reads what is there, and waits for more where too little is (long poll).

Always true:
- What the log cache holds is read and answered in the callback that brought the request, without a task.
- A fetch that has too little waits for the high watermark of its partitions to advance, or for its time-out; there is no
  polling. It counts what arrives, and looks again only when that may be enough: one look for all of a turn of the event loop.
- While it waits it holds no view of what it found, and what it may find is bounded in batches as well as in bytes.
- Only what objects alone hold is read by a task, a few partitions at a time, and no more of them than it takes to answer.
  It waits for memory only while it holds none itself, and for objects only so long (KIP-1018): then it answers with what else there is, and
  what is under way is found by the fetch after it. So records of today do not wait for those of last week.
- The first batch of a response may exceed every limit, else a consumer with small limits would never get on (KIP-74);
  the batches of all other partitions stay within what is left.
- Offsets that were given up at the end of a log are passed with an empty batch, as Kafka's cleaner leaves them: else whoever reads to
  the high watermark would not arrive there before the next record comes.
- A partition that is about to be served here is waited for, as if it had nothing new yet; when the time is up it is refused.
- An error of any partition answers at once, as does a consumer's being sent to another broker, and so does data enough, or any data at all that had to come from objects.
- What waiting fetches remember is bounded in partitions; beyond that a large fetch is answered at once with what is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from broker.errors import code_of
from broker.fetch_session import SessionPartition
from broker.metrics import Metrics
from broker.partition import Partition
from broker.replica import Replica
from protocol.errors import ErrorCode
from protocol.records import batch_bounds, empty_batch
from s3stream.errors import NoMemory, ObjectCorrupt, StorageError, UnsupportedObjectFormat
from s3stream.log_cache import MAX_PAYLOADS, TailRead
from s3stream.objectstore import Buffer, ObjectStoreError

if TYPE_CHECKING:
    from broker.arrivals import Arrival
    from broker.topics import Topic
    from s3stream.committed_stream import CommittedStream
    from s3stream.log_cache import CacheBlock
    from s3stream.stream import Stream

__all__ = ["COLD_READS", "MAX_BATCHES", "MAX_WAIT_MS", "DelayedFetch", "FetchedPartition", "WaitingFetches"]

log = logging.getLogger("tidelog.fetch")

COLD_READS = 8
"""Partitions that one fetch reads from objects at the same time."""

MAX_WAIT_MS = 300_000
"""Longest wait for data, whatever the client asks for: nobody notices before then that a client is gone whose socket is not
read, because it sent more than is served. Clients ask for half a second."""

FREE_PARTITIONS = 16
"""Partitions that each waiting fetch may have without being counted: some 4 KB, for `max.connections` of them 40 MB."""

MAX_WAITING_PARTITIONS = 200_000
"""All others of waiting fetches together: some 50 MB."""


MAX_BATCHES = MAX_PAYLOADS
"""Batches in one response. With the smallest ones, views of 57 MB (`fetch.max.bytes`) would take hundreds."""


class WaitingFetches:
    """What the fetches that wait remember, counted in partitions."""

    __slots__ = ("fetch_count", "partition_count")

    def __init__(self) -> None:
        self.fetch_count = 0
        self.partition_count = 0
        """Of them, those that are counted."""

    def enter(self, partition_count: int) -> bool:
        """Count a fetch that is about to wait; False: it may not."""
        count = max(partition_count - FREE_PARTITIONS, 0)
        if count and self.partition_count + count > MAX_WAITING_PARTITIONS:
            return False
        self.partition_count += count
        self.fetch_count += 1
        return True

    def leave(self, partition_count: int) -> None:
        """It waits no more."""
        self.fetch_count -= 1
        self.partition_count -= max(partition_count - FREE_PARTITIONS, 0)


@dataclass(slots=True, kw_only=True, eq=False)
class FetchedPartition:
    """What is wanted of one partition, and what was found."""

    wanted: SessionPartition
    partition: Partition | Replica | None
    error: ErrorCode = ErrorCode.NONE
    """Set before reading where the partition cannot be read at all."""
    arriving: Topic | None = None
    """The partition is about to be served here: the error holds only if that takes too long."""
    preferred: int = -1
    """The broker that the consumer is to read from instead (KIP-392): nothing is read here. -1: this one."""
    payloads: list[memoryview] | list[Buffer] = field(default_factory=list)
    size_bytes: int = 0
    block: CacheBlock | None = None
    """To be pinned while the payloads are out."""
    is_cut: bool = False
    """A limit, and not the high watermark, ended what was found: more data would change nothing."""


@dataclass(slots=True, kw_only=True, eq=False)
class DelayedFetch:
    """A fetch under way."""

    entries: list[FetchedPartition]
    max_bytes: int
    allowance_bytes: Callable[[], int]
    """What a response may have at most now; asked again at each look."""
    min_bytes: int
    max_wait_ms: int
    max_cold_wait_ms: int
    """How long it waits for what only objects hold."""
    complete: Callable[[DelayedFetch], None]
    """Called once, when `entries` hold the answer and `start` said False."""
    start_task: Callable[[DelayedFetch], asyncio.Task[None]]
    """Runs `read_cold` as a task that somebody owns."""
    waiting: WaitingFetches
    metrics: Metrics
    resolve: Callable[[SessionPartition], FetchedPartition]
    """Finds a partition again that arrived."""
    await_arrival: Callable[[Topic, int, Callable[[bool], None]], Arrival]
    """See `Arrivals.wait`."""
    total_bytes: int = 0
    """Record bytes in the answer."""
    waited_s: float = 0.0
    """How long it waited for data."""
    _timer: asyncio.TimerHandle | None = None
    _look_handle: asyncio.Handle | None = None
    _task: asyncio.Task[None] | None = None
    _cold: list[FetchedPartition] = field(default_factory=list)
    _limit_bytes: int = 0
    _missing_bytes: int = 0
    """What has to arrive before it is worth looking again."""
    _counted: dict[Partition | Replica, int] = field(default_factory=dict)
    """Up to which offset it was counted, for each partition that can still add to the answer."""
    _entered: bool = False
    _waits_since: float = 0.0
    _arrivals: list[Arrival] = field(default_factory=list)

    def start(self) -> bool:
        """Read; True: answer now. False: `complete` is called later, unless `cancel` comes first."""
        if self._look() or not self.waiting.enter(len(self.entries)):
            return True
        self._entered = True
        if self._cold:
            self._task = self.start_task(self)
        else:
            self._expect_more()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(self.max_wait_ms, MAX_WAIT_MS) / 1000, self._expire)
            self._watch()
        return False

    def cancel(self) -> None:
        """The client is gone."""
        self._stop_waiting()
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def refuse(self, error: ErrorCode) -> None:
        """Answer nothing that was found, but an error for every partition that has none."""
        self._let_go()
        self.total_bytes = 0
        for entry in self.entries:
            entry.error = entry.error or error

    def _complete(self) -> None:
        self._leave()
        self.complete(self)

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self.waiting.leave(len(self.entries))

    # ---- looking ------------------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Read what the log cache holds; True: answer. `_cold` is left with what only objects hold."""
        self._cold = []
        self._let_go()
        self.total_bytes = 0
        self._limit_bytes = min(self.max_bytes, self.allowance_bytes())
        self._read_cached(self.entries, self._cold)
        if self._cold:
            return False
        return self.total_bytes >= self.min_bytes or self.max_wait_ms <= 0 or self._failed() or not self.entries

    def _let_go(self) -> None:
        for entry in self.entries:
            entry.payloads, entry.size_bytes, entry.block, entry.is_cut = [], 0, None, False

    def _expect_more(self) -> None:
        """Remember what would make another look worth it, and let go of what this one found."""
        self._missing_bytes = self.min_bytes - self.total_bytes
        self._counted = {
            entry.partition: entry.partition.stream.confirmed_offset
            for entry in self.entries
            if entry.partition is not None and not entry.is_cut
        }
        self._let_go()

    def _read_cached(self, entries: list[FetchedPartition], cold: list[FetchedPartition]) -> None:
        total = self.total_bytes
        batches = sum(len(entry.payloads) for entry in self.entries)
        found_count = cold_count = 0
        for entry in entries:
            left = self._limit_bytes - total
            if not self._has_data(entry):
                continue
            if (total and left <= 0) or batches >= MAX_BATCHES:
                entry.is_cut = True
                continue
            assert entry.partition is not None
            wanted = entry.wanted
            limit = min(wanted.max_bytes, left)
            stream = entry.partition.stream
            found = self._given_up(stream, wanted.fetch_offset) if stream.gaps else None
            found = found or stream.read_cached(wanted.fetch_offset, limit, MAX_BATCHES - batches)
            if found is None:
                cold_count += 1
                cold.append(entry)
            elif found.size_bytes <= limit or not total:
                entry.payloads, entry.size_bytes, entry.block = found
                entry.is_cut = batch_bounds(found.payloads[-1]).end_offset < stream.confirmed_offset
                total += found.size_bytes
                batches += len(found.payloads)
                found_count += 1
            else:
                entry.is_cut = True
        self.total_bytes = total
        self.metrics.fetch_reads_cached += found_count
        self.metrics.fetch_reads_cold += cold_count

    def _given_up(self, stream: Stream | CommittedStream, offset: int) -> TailRead | None:
        """An empty batch for offsets that nothing follows yet; None where it is not there that the log ends."""
        if stream.past_gap(offset) != stream.confirmed_offset:
            return None
        batch = empty_batch(offset, stream.confirmed_offset, stream.leader_epoch)
        return TailRead([memoryview(batch)], len(batch), None)

    def _has_data(self, entry: FetchedPartition) -> bool:
        """Whether there is something to read; sets the error where the offset, or the partition, is no good (any more)."""
        partition = entry.partition
        if partition is None or entry.error or entry.preferred >= 0:
            return False
        stream = partition.stream
        offset = entry.wanted.fetch_offset
        if stream.withheld is not None:
            entry.error = code_of(stream.withheld)
        elif not stream.log_start_offset <= offset <= stream.confirmed_offset:
            entry.error = ErrorCode.OFFSET_OUT_OF_RANGE
        else:
            return offset != stream.confirmed_offset
        return False

    def _failed(self) -> bool:
        return any((entry.error and entry.arriving is None) or entry.preferred >= 0 for entry in self.entries)

    async def read_cold(self) -> None:
        """Read what only objects hold, then what fits beside it from the log cache, and answer, however little it is."""
        cold = self._cold
        self._let_go()
        try:
            async with asyncio.timeout(self.max_cold_wait_ms / 1000):
                await self._read_objects(cold)
        except TimeoutError:
            self.metrics.fetches_late += 1
        self.total_bytes = self._fitting(cold)
        # From here to the response there is no await: views of the log cache stay valid.
        from_objects = set(cold)
        self._read_cached([entry for entry in self.entries if entry not in from_objects], [])
        self._complete()

    async def _read_objects(self, cold: list[FetchedPartition]) -> None:
        total = 0
        for at in range(0, len(cold), COLD_READS):
            part = cold[at : at + COLD_READS]
            left = self._limit_bytes - total
            # Together, so none of them may wait for memory: those that have theirs would hold it meanwhile.
            gave_up = await asyncio.gather(*(self._read_one(entry, left, wait_for_memory=False) for entry in part))
            total += self._fitting(part, total)
            if total >= min(max(self.min_bytes, 1), self._limit_bytes) or any(gave_up):
                return
        if not total and not self._failed():
            await self._read_one(cold[0], self._limit_bytes, wait_for_memory=True)

    def _fitting(self, entries: list[FetchedPartition], total: int = 0) -> int:
        """Bytes of these beside `total`. Each was read as if it were alone: what does not fit is asked for again."""
        before = total
        for entry in entries:
            if total and entry.size_bytes > self._limit_bytes - total:
                entry.payloads, entry.size_bytes = [], 0
            total += entry.size_bytes
        return total - before

    async def _read_one(self, entry: FetchedPartition, limit: int, *, wait_for_memory: bool) -> bool:
        """Read one partition; True: the error that it got may be that of the next ones too, and take as long."""
        assert entry.partition is not None
        wanted = entry.wanted
        try:
            found = await entry.partition.stream.read(
                wanted.fetch_offset, min(wanted.max_bytes, limit), wait_for_memory=wait_for_memory
            )
        except NoMemory:
            return False  # others are served before it; nothing is wrong with the partition, and the client asks again
        except (StorageError, ObjectStoreError) as error:
            entry.error = code_of(error)
            if isinstance(error, ObjectStoreError | UnsupportedObjectFormat):
                log.warning(
                    "records cannot be read: %(error)s (%(partition)s)", {"partition": entry.partition, "error": error}
                )
            return not isinstance(error, ObjectCorrupt)  # which is this partition's alone: no other goes hungry for it
        # Where the log cache had it after all, the memory is the arena's: others are awaited still, so copy.
        copied: list[Buffer] = (
            [bytes(payload) for payload in found.buffers] if found.block is not None else found.buffers
        )
        entry.payloads = copied
        entry.size_bytes = found.size_bytes
        return False

    # ---- waiting ------------------------------------------------------------------------------------------------

    def wake(self, partition: Partition) -> None:
        """A partition advanced, is withheld or closed (`PartitionWaiter`): look again where it matters, once for all of this turn."""
        if self._look_handle is not None:
            return
        stream = partition.stream
        if stream.withheld is None:
            counted = self._counted.get(partition)
            if counted is None:
                return
            self._missing_bytes -= stream.confirmed_bytes_from(counted)
            self._counted[partition] = stream.confirmed_offset
            if self._missing_bytes > 0:
                return
        self._look_handle = asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._look_handle = None
        if self._look():
            self._stop_waiting()
            self._complete()
        elif self._cold:
            self._stop_waiting()
            self._task = self.start_task(self)
        else:
            self._expect_more()

    def _expire(self) -> None:
        self._timer = None
        self._stop_waiting()
        self._look()
        if self._cold:
            self._task = self.start_task(self)
        else:
            self._complete()

    def _watch(self) -> None:
        self._waits_since = self.metrics.clock()
        for entry in self.entries:
            if entry.partition is not None:
                entry.partition.watch(self)
            elif entry.arriving is not None:
                arrived = partial(self._arrived, entry)
                self._arrivals.append(self.await_arrival(entry.arriving, entry.wanted.partition, arrived))

    def _arrived(self, entry: FetchedPartition, in_time: bool) -> None:
        """A partition is here, or did not come: look again."""
        found = self.resolve(entry.wanted)
        entry.partition, entry.error, entry.preferred, entry.arriving = (
            found.partition,
            found.error,
            found.preferred,
            None,
        )
        if entry.partition is not None:
            entry.partition.watch(self)
        if self._look_handle is None:
            self._look_handle = asyncio.get_running_loop().call_soon(self._look_again)

    def _stop_waiting(self) -> None:
        if self._waits_since:
            self.waited_s += self.metrics.clock() - self._waits_since
            self._waits_since = 0.0
            self.metrics.fetch_waits.observe(self.waited_s)
        for entry in self.entries:
            if entry.partition is not None:
                entry.partition.unwatch(self)
        arrivals, self._arrivals = self._arrivals, []
        for arrival in arrivals:
            arrival.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._look_handle is not None:
            self._look_handle.cancel()
            self._look_handle = None
