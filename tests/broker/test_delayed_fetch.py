"""One fetch over partitions that are stand-ins: in which order it reads, what it holds meanwhile, how long it waits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker import delayed_fetch
from broker.delayed_fetch import COLD_READS, FREE_PARTITIONS, DelayedFetch, FetchedPartition, WaitingFetches
from broker.fetch_session import SessionPartition
from broker.metrics import Metrics
from protocol.errors import ErrorCode
from s3stream.errors import NoMemory, StreamClosed
from s3stream.log_cache import TailRead
from s3stream.stream import StreamRead
from tests.broker.wire import batch


@dataclass
class Memory:
    """What all stand-ins read into."""

    free: int = 1 << 30
    reads: list[tuple[int, bool]] = field(default_factory=list)


class Cold:
    """A partition, and its stream, that only objects hold: one batch of 1,000 bytes."""

    withheld = None
    log_start_offset = 0
    confirmed_offset = 10
    gaps = ()

    def __init__(self, memory: Memory, index: int) -> None:
        self.memory = memory
        self.index = index
        self.stream = self
        self.waiters: set[Any] = set()

    def read_cached(self, offset: int, max_bytes: int, max_payloads: int) -> TailRead | None:
        return None if offset < self.confirmed_offset else TailRead([], 0, None)

    def confirmed_bytes_from(self, offset: int) -> int:
        return 1000

    async def read(self, offset: int, max_bytes: int, *, wait_for_memory: bool) -> StreamRead:
        self.memory.reads.append((self.index, wait_for_memory))
        if self.memory.free < 1000:
            if not wait_for_memory:
                raise NoMemory("others hold it")
            self.memory.free += 1000  # they let go
        self.memory.free -= 1000
        return StreamRead([bytes(1000)], 1000, None)

    def watch(self, waiter: Any) -> None:
        self.waiters.add(waiter)

    def unwatch(self, waiter: Any) -> None:
        self.waiters.discard(waiter)


def fetch_of(partitions: list[Cold], *, offset: int = 0, **changes: Any) -> tuple[DelayedFetch, asyncio.Future[None]]:
    """A fetch of all of them, and what is done when it is complete."""
    completed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wanted = [
        SessionPartition(topic="t", partition=at, fetch_offset=offset, max_bytes=1 << 20, current_leader_epoch=-1)
        for at in range(len(partitions))
    ]
    values: dict[str, Any] = {
        "entries": [
            FetchedPartition(wanted=one, partition=partition)  # type: ignore[arg-type]
            for one, partition in zip(wanted, partitions, strict=True)
        ],
        "max_bytes": 1 << 20,
        "allowance_bytes": lambda: 1 << 20,
        "min_bytes": 1,
        "max_wait_ms": 60_000,
        "max_cold_wait_ms": 60_000,
        "complete": lambda fetch: completed.set_result(None),
        "start_task": lambda fetch: asyncio.get_running_loop().create_task(fetch.read_cold()),
        "waiting": WaitingFetches(),
        "metrics": Metrics(),
        "resolve": None,
        "await_arrival": None,
        **changes,
    }
    return DelayedFetch(**values), completed


async def test_no_more_is_read_from_objects_than_it_takes_to_answer() -> None:
    memory = Memory()
    fetch, completed = fetch_of([Cold(memory, at) for at in range(100)])
    assert not fetch.start()
    await completed
    assert [index for index, _ in memory.reads] == list(range(COLD_READS))
    assert fetch.total_bytes == 1000 * COLD_READS


async def test_more_is_read_where_the_consumer_wants_more() -> None:
    memory = Memory()
    fetch, completed = fetch_of([Cold(memory, at) for at in range(100)], min_bytes=20_000)
    fetch.start()
    await completed
    assert fetch.total_bytes == 24_000


async def test_nothing_is_held_while_it_waits_for_memory() -> None:
    memory = Memory(free=3000)
    fetch, completed = fetch_of([Cold(memory, at) for at in range(20)], min_bytes=1 << 20)
    fetch.start()
    await completed
    # It answers with what there was memory for.
    assert fetch.total_bytes == 3000
    assert not any(waited for _, waited in memory.reads)
    assert not any(entry.error for entry in fetch.entries)


async def test_it_waits_for_memory_for_one_partition_so_that_it_gets_on() -> None:
    memory = Memory(free=0)
    fetch, completed = fetch_of([Cold(memory, at) for at in range(20)])
    fetch.start()
    await completed
    assert memory.reads[-1] == (0, True)
    assert fetch.total_bytes == 1000
    assert not any(entry.error for entry in fetch.entries)


async def test_what_waiting_fetches_remember_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delayed_fetch, "MAX_WAITING_PARTITIONS", 100)
    waiting = WaitingFetches()
    large = [Cold(Memory(), at) for at in range(FREE_PARTITIONS + 60)]
    first, _ = fetch_of(large, offset=10, waiting=waiting)
    assert not first.start()
    second, _ = fetch_of(large, offset=10, waiting=waiting)
    assert second.start(), "answered at once, with nothing"
    small, _ = fetch_of(large[:FREE_PARTITIONS], offset=10, waiting=waiting)
    assert not small.start(), "small ones may always wait"
    first.cancel()
    third, _ = fetch_of(large, offset=10, waiting=waiting)
    assert not third.start()
    for fetch in (small, third):
        fetch.cancel()
    assert waiting.partition_count == 0
    assert not any(partition.waiters for partition in large)


async def test_a_response_is_as_large_as_others_leave_it_at_the_moment_it_is_made() -> None:
    allowance = 1 << 20
    fetch, completed = fetch_of(
        [Cold(Memory(), at) for at in range(5)], offset=10, min_bytes=1, allowance_bytes=lambda: allowance
    )
    assert not fetch.start()
    allowance = 2500  # others were answered while it waited
    for entry in fetch.entries:
        entry.wanted.fetch_offset = 0
    fetch.wake(fetch.entries[0].partition)  # type: ignore[arg-type]
    await completed
    assert fetch.total_bytes == 2000


class Tail:
    """A partition, and its stream, whose log cache holds batches of one record each; it counts how often it is read."""

    withheld = None
    gaps = ()
    log_start_offset = 0

    def __init__(self) -> None:
        self.stream = self
        self.batches: list[bytes] = []
        self.reads = 0
        self.waiter: DelayedFetch | None = None

    @property
    def confirmed_offset(self) -> int:
        return len(self.batches)

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            self.batches.append(batch(bytes(100), base_offset=len(self.batches)))
        if self.waiter is not None:
            self.waiter.wake(self)  # type: ignore[arg-type]

    def read_cached(self, offset: int, max_bytes: int, max_payloads: int) -> TailRead:
        self.reads += 1
        fit = max(max_bytes // BATCH_BYTES, 1)
        found = [memoryview(one) for one in self.batches[offset:][: min(fit, max_payloads)]]
        return TailRead(found, sum(map(len, found)), None)

    def confirmed_bytes_from(self, offset: int) -> int:
        return sum(map(len, self.batches[offset:]))

    def watch(self, waiter: DelayedFetch) -> None:
        self.waiter = waiter

    def unwatch(self, waiter: DelayedFetch) -> None:
        self.waiter = None


BATCH_BYTES = len(batch(bytes(100)))


async def test_a_fetch_with_large_min_bytes_counts_what_arrives_and_reads_once_there_is_enough() -> None:
    tails = [Tail(), Tail()]
    tails[0].append(10)
    fetch, completed = fetch_of(tails, min_bytes=100 * BATCH_BYTES)  # type: ignore[arg-type]
    assert not fetch.start()
    assert not any(entry.payloads for entry in fetch.entries), "nothing is held while it waits"
    for _ in range(44):
        for tail in tails:
            tail.append()
        await asyncio.sleep(0)
    assert [tail.reads for tail in tails] == [1, 0]
    tails[0].append()
    await asyncio.sleep(0)
    assert not completed.done(), "99 of 100"
    tails[1].append()
    await completed
    assert fetch.total_bytes == 100 * BATCH_BYTES
    assert [tail.reads for tail in tails] == [2, 1]


async def test_what_a_limit_has_cut_is_not_read_again_for_more() -> None:
    tail = Tail()
    tail.append(50)
    fetch, completed = fetch_of([tail], min_bytes=1 << 19, max_bytes=10 * BATCH_BYTES, max_wait_ms=50)  # type: ignore[list-item]
    assert not fetch.start()
    for _ in range(20):
        tail.append(10)
        await asyncio.sleep(0)
    assert tail.reads == 1
    await completed  # when its time is up, with what it may have
    assert fetch.total_bytes == 10 * BATCH_BYTES


async def test_a_closed_partition_answers_a_fetch_that_waits_for_much() -> None:
    tail = Tail()
    fetch, completed = fetch_of([tail], min_bytes=1 << 19)  # type: ignore[list-item]
    assert not fetch.start()
    tail.withheld = StreamClosed("moved")  # type: ignore[assignment]
    fetch.wake(tail)  # type: ignore[arg-type]
    await completed
    assert fetch.entries[0].error == ErrorCode.NOT_LEADER_OR_FOLLOWER


async def test_a_response_has_no_more_batches_than_are_worth_their_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delayed_fetch, "MAX_BATCHES", 30)
    tails = [Tail(), Tail(), Tail()]
    for tail in tails:
        tail.append(20)
    fetch, _ = fetch_of(tails)  # type: ignore[arg-type]
    assert fetch.start()
    assert [len(entry.payloads) for entry in fetch.entries] == [20, 10, 0]
