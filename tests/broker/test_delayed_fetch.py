"""One fetch over partitions that are stand-ins: in which order it reads, what it holds meanwhile, how long it waits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker import delayed_fetch
from broker.delayed_fetch import COLD_READS, FREE_PARTITIONS, DelayedFetch, FetchedPartition, WaitingFetches
from broker.fetch_session import SessionPartition
from s3stream.errors import NoMemory
from s3stream.log_cache import TailRead
from s3stream.stream import StreamRead


@dataclass
class Memory:
    """What all stand-ins read into."""

    free: int = 1 << 30
    reads: list[tuple[int, bool]] = field(default_factory=list)


class Cold:
    """A partition, and its stream, that only objects hold: one batch of 1,000 bytes."""

    closed = None
    log_start_offset = 0
    confirmed_offset = 10

    def __init__(self, memory: Memory, index: int) -> None:
        self.memory = memory
        self.index = index
        self.stream = self
        self.waiters: set[Any] = set()

    def read_cached(self, offset: int, max_bytes: int) -> TailRead | None:
        return None if offset < self.confirmed_offset else TailRead([], 0, None)

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
        "complete": lambda fetch: completed.set_result(None),
        "start_task": lambda fetch: asyncio.get_running_loop().create_task(fetch.read_cold()),
        "waiting": WaitingFetches(),
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
    fetch.wake()
    await completed
    assert fetch.total_bytes == 2000
