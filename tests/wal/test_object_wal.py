"""The WAL in a bucket: what happens to each request, and to writers that are stopped."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from s3stream.memory import Bucket, Fault, Faults, MemoryObjectStore
from s3stream.objectstore import AccessDenied, Buffer
from s3stream.wal_objects import StoreForWal
from tests.wal.driving import Listener, append, append_durably, recover, turns
from tests.wal.slot_simulation import batches_in
from wal.arena import Arena
from wal.config import ObjectWalConfig
from wal.errors import PayloadTooLarge, WalCorrupt, WalFenced, WalMismatch, WalUnavailable
from wal.log import WriteAheadLog
from wal.object_wal import ObjectWal
from wal.objects import ObjectsUnavailable
from wal.slot import SLOT_HEADER_SIZE_BYTES, SlotKind, read_slot_header

CONFIG = ObjectWalConfig(
    store_uri="mem://", capacity_bytes=64 << 10, batch_interval_ms=0, batch_size_bytes=4 << 10, hedge_ms=0
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again soon."""
    monkeypatch.setattr("wal.slot_log.FIRST_DELAY_S", 0.001)


async def opened(
    store: MemoryObjectStore, config: ObjectWalConfig = CONFIG, *, cluster_id: str = "tide", seed: int | None = None
) -> ObjectWal:
    return await ObjectWal.open(
        arena=Arena(256 << 10),
        objects=StoreForWal(store),
        cluster_id=cluster_id,
        node_id=1,
        config=config,
        rng=random.Random(seed),
    )


async def started(store: MemoryObjectStore, config: ObjectWalConfig = CONFIG) -> tuple[ObjectWal, Listener]:
    """A log that takes appends, and where it tells what becomes of them."""
    wal = await opened(store, config)
    await recover(wal)
    return wal, Listener().listen(wal)


async def payloads_of(bucket: Bucket) -> list[bytes]:
    """What the next process recovers."""
    wal = await opened(MemoryObjectStore(bucket))
    frames = await recover(wal)
    await wal.close()
    return [frame.payload for frame in frames]


def is_put_of(number: int) -> Callable[[str, str], bool]:
    return lambda operation, key: operation == "put_if_absent" and key.endswith(f"/{number:020d}")


class Gate:
    """Holds the requests of a store that match, until it is opened."""

    def __init__(self, store: MemoryObjectStore, matches: Callable[[str, str], bool]) -> None:
        self.waiting = 0
        self._matches = matches
        self._open = asyncio.Event()
        store.hook = self._hook

    def open(self) -> None:
        self._open.set()

    async def _hook(self, operation: str, key: str) -> Fault | None:
        if self._matches(operation, key):
            self.waiting += 1
            await self._open.wait()
        return None


def failing_once(store: MemoryObjectStore, fault: Fault) -> None:
    """Let the first PUT of a slot go wrong."""
    faults = [fault]

    async def hook(operation: str, key: str) -> Fault | None:
        return faults.pop() if faults and is_put_of(1)(operation, key) else None

    store.hook = hook


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST_REPLY, Fault.REPEATED, Fault.CONFLICT, Fault.DELAYED])
async def test_whatever_becomes_of_a_put_its_frames_are_durable_once(fault: Fault) -> None:
    store = MemoryObjectStore(faults=Faults(delay_ms=1))
    wal, told = await started(store)
    failing_once(store, fault)
    await append_durably(wal, b"once")
    assert told.failures == []
    await wal.close()
    assert len(batches_in(store.bucket)) == 1
    assert await payloads_of(store.bucket) == [b"once"]


async def test_what_gathers_in_a_turn_is_one_object_and_a_full_batch_is_another() -> None:
    store = MemoryObjectStore()
    wal, _ = await started(store, replace(CONFIG, batch_interval_ms=60_000))
    store.requests.clear()
    for _ in range(10):
        append(wal, bytes(100))
    while wal.durable_offset < wal.end_offset:
        await asyncio.sleep(0)
    assert store.requests["put_if_absent"] == 1
    for _ in range(3):
        append(wal, bytes(1500))  # the third does not fit beside the others: they do not wait for the minute
    while wal.durable_offset < wal.end_offset - 2000:
        await asyncio.sleep(0)
    assert store.requests["put_if_absent"] == 2
    await wal.close()
    assert wal.durable_offset == wal.end_offset, "nor does anything wait when the log is closed"


async def test_a_slot_counts_only_when_all_before_it_are_filled() -> None:
    """Holes: PUTs are parallel, so slot 2 may be there without slot 1. It was never acknowledged, and is never recovered."""
    store = MemoryObjectStore()
    wal, told = await started(store)
    gate = Gate(store, is_put_of(1))
    append(wal, b"held up")
    await turns()
    append(wal, b"faster")
    while len(batches_in(store.bucket)) < 1:
        await asyncio.sleep(0)
    await turns()
    assert (told.durable, wal.durable_offset) == ([], 0)

    assert await payloads_of(store.bucket) == [], "the log ends at the hole"

    gate.open()
    while not told.failures:
        await asyncio.sleep(0)
    assert isinstance(told.failures[0], WalFenced)
    assert told.durable == [], "nothing past the fence is ever acknowledged"
    with pytest.raises(WalFenced, match="was fenced"):
        wal.reserve(1)
    await wal.close()
    assert await payloads_of(store.bucket) == []


async def test_a_writer_that_wakes_up_after_it_was_fenced_acknowledges_nothing() -> None:
    store = MemoryObjectStore()
    wal, told = await started(store)
    first = await append_durably(wal, b"acknowledged")
    gate = Gate(store, lambda operation, key: True)  # every request of this process sleeps
    append(wal, b"in its sleep")
    await turns()

    successor, _ = await started(MemoryObjectStore(store.bucket))
    await append_durably(successor, b"by another")
    await successor.trim(successor.durable_offset)
    await successor._deleted.wait()

    gate.open()
    while not told.failures:
        await asyncio.sleep(0)
    assert told.durable == [first]
    await wal.close()
    await successor.close()


async def test_a_write_that_arrived_before_the_fence_is_recovered_though_its_writer_never_knew() -> None:
    store = MemoryObjectStore()
    wal, _ = await started(store)

    async def hook(operation: str, key: str) -> Fault | None:
        return Fault.LOST_REPLY if operation == "put_if_absent" else Fault.REFUSED  # and nothing is heard ever after

    store.hook = hook
    append(wal, b"arrived")
    await turns(20)
    assert wal.durable_offset == 0
    assert await payloads_of(store.bucket) == [b"arrived"]
    store.die()
    await wal.close()


async def test_a_slow_put_is_hedged_and_its_memory_is_let_go_before_it_counts() -> None:
    released: list[int] = []

    class Slow(MemoryObjectStore):
        async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
            try:
                return await super().put_if_absent(key, parts)
            except asyncio.CancelledError:
                released.append(wal.durable_offset)
                raise

    store = Slow()
    wal, _ = await started(store, replace(CONFIG, hedge_ms=1))
    held = [True]

    async def hook(operation: str, key: str) -> Fault | None:
        if is_put_of(1)(operation, key) and held:
            held.pop()
            await asyncio.Event().wait()
        return None

    store.hook = hook
    await append_durably(wal, b"in time")
    assert wal.hedges == 1
    assert released == [0], "the slow one was ended before its frames counted as durable"
    await wal.close()
    assert await payloads_of(store.bucket) == [b"in time"]


async def test_both_of_a_hedged_pair_may_arrive() -> None:
    """The first PUT took effect, its answer is slow; the second is refused, and reading tells that the slot is ours."""
    store = MemoryObjectStore()
    wal, _ = await started(store, replace(CONFIG, hedge_ms=1))
    inner = StoreForWal(store)
    calls = 0

    async def create(key: str, parts: Sequence[Buffer]) -> bool:
        nonlocal calls
        calls += 1
        created = await inner.create(key, parts)
        if calls == 1:
            await asyncio.Event().wait()
        return created

    wal._objects.create = create  # type: ignore[method-assign]
    end = await append_durably(wal, b"twice")
    assert (calls, wal.durable_offset) == (2, end)
    await wal.close()


async def test_a_trim_deletes_all_slots_but_the_last_that_says_so() -> None:
    store = MemoryObjectStore()
    wal, _ = await started(store)
    ends = [await append_durably(wal, b"%d" % n) for n in range(20)]
    await wal.trim(ends[9])
    await wal._deleted.wait()
    assert len(batches_in(store.bucket)) == 11, "ten that are needed, and an empty one that carries the trim"
    await wal.trim(ends[-1])
    await wal._deleted.wait()
    (last,) = batches_in(store.bucket)
    header = read_slot_header(store.bucket.objects[last].data, last)
    assert (header.trim_offset, header.base_offset, header.end_offset) == (ends[-1],) * 3
    await wal.close()


async def test_duplicates_that_arrive_after_the_deletion_count_for_nothing_and_are_cleaned_up() -> None:
    store = MemoryObjectStore()
    bucket = store.bucket
    wal, _ = await started(store)
    for n in range(5):
        await append_durably(wal, b"%d" % n)
    duplicates = {key: bucket.objects[key].data for key in batches_in(bucket)}
    await wal.trim(wal.durable_offset)
    await wal._deleted.wait()
    await append_durably(wal, b"last")
    await wal.close()
    for key, data in duplicates.items():
        await store.put_if_absent(key, [data])

    wal, _ = await started(MemoryObjectStore(bucket))
    await wal._deleted.wait()
    assert not {*batches_in(bucket)} & {*duplicates}
    assert [held.end_offset for held in wal._held][-1] == wal.durable_offset
    await wal.close()
    assert await payloads_of(bucket) == [b"last"]


async def test_a_fence_outlives_everything_else_of_its_epoch() -> None:
    """Its writer may sleep for a year, and wake up with a PUT of the slot that the fence is in."""
    store = MemoryObjectStore()
    for _ in range(4):
        wal, _ = await started(store)
        await append_durably(wal, b"x")
        await wal.trim(wal.durable_offset)
        await wal.close()
    headers = [
        read_slot_header(stored.data, key) for key, stored in store.bucket.objects.items() if key.startswith("wal/log/")
    ]
    fences = [header.position.wal_epoch for header in headers if header.kind is SlotKind.FENCE]
    assert sorted(fences) == [0, 1, 2, 3]
    assert len(headers) == len(fences) + 1


async def test_the_log_is_full_at_its_capacity_and_has_room_after_a_trim() -> None:
    store = MemoryObjectStore()
    wal, _ = await started(store)
    taken = 0
    while (view := wal.reserve(4000)) is not None:
        assert len(view) == 4000
        wal.append(stream_id=1, leader_epoch=1, base_offset=0, record_count=1)
        taken += 1
    assert taken == CONFIG.capacity_bytes // 4064
    while wal.durable_offset < wal.end_offset:
        await asyncio.sleep(0)
    assert wal.reserve(4000) is None, "durable is not enough: it holds what is not trimmed"
    await wal.trim(wal.durable_offset)
    append(wal, bytes(4000))
    with pytest.raises(PayloadTooLarge):
        wal.reserve(CONFIG.capacity_bytes)
    await wal.close()


async def test_a_fencer_stops_a_writer_that_is_faster_than_it() -> None:
    bucket = Bucket()
    wal, told = await started(MemoryObjectStore(bucket), replace(CONFIG, capacity_bytes=1 << 30))
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        with suppress(WalFenced):
            while True:
                end = await append_durably_or_fail(wal, told)
                acknowledged = end

    writer = asyncio.create_task(write())
    slow = MemoryObjectStore(bucket, rng=random.Random(1), faults=Faults(latency_ms=4))
    successor = await opened(slow)
    frames = await recover(successor)
    await writer
    assert acknowledged > 0
    assert acknowledged <= frames[-1].end_offset
    await wal.close()
    await successor.close()


async def append_durably_or_fail(wal: WriteAheadLog, told: Listener) -> int:
    wal._arena.release_to(wal._arena.head)  # type: ignore[attr-defined]
    end = append(wal, b"fast")
    while wal.durable_offset < end:
        if told.failures:
            raise told.failures[0]
        await asyncio.sleep(0)
    return end


async def test_of_two_that_open_at_the_same_time_one_wins() -> None:
    bucket = Bucket()
    wals = [await opened(MemoryObjectStore(bucket)) for _ in range(2)]
    assert wals[0].wal_id == wals[1].wal_id, "they found each other's"
    results = await asyncio.gather(*(recover(wal) for wal in wals), return_exceptions=True)
    assert sorted(type(result) for result in results if result != []) == [WalFenced]
    for wal in wals:
        await wal.close()


async def test_recovery_goes_through_epochs_of_which_some_are_empty() -> None:
    store = MemoryObjectStore()
    expected = []
    for life in range(6):
        wal = await opened(store)
        assert [frame.payload for frame in await recover(wal)] == expected
        assert wal.wal_epoch == life + 1
        if life % 2:
            expected.append(b"life %d" % life)
            await append_durably(wal, expected[-1])
        await wal.close()
    assert await payloads_of(store.bucket) == expected


async def test_a_slot_that_was_deleted_by_hand_is_missed() -> None:
    store = MemoryObjectStore()
    wal, _ = await started(store)
    for n in range(5):
        await append_durably(wal, b"%d" % n)
    await wal.close()
    gone = batches_in(store.bucket)[2]
    store.bucket.delete([gone])
    with pytest.raises(WalCorrupt, match=f"acknowledged data is missing: {gone}"):
        await payloads_of(store.bucket)


async def test_a_damaged_frame_is_named_with_its_offset() -> None:
    store = MemoryObjectStore()
    wal, _ = await started(store)
    first = await append_durably(wal, b"whole")
    await append_durably(wal, b"to be damaged")
    await append_durably(wal, b"behind it")
    await wal.close()
    damaged = batches_in(store.bucket)[1]
    store.bucket.flip_bit(damaged, (SLOT_HEADER_SIZE_BYTES + 70) * 8)
    with pytest.raises(WalCorrupt, match=f"{damaged} is damaged at log offset {first}"):
        await payloads_of(store.bucket)


async def test_closing_does_not_wait_for_ever_for_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wal.object_wal.CLOSE_TIMEOUT_S", 0.01)
    store = MemoryObjectStore()
    wal, told = await started(store)
    end = await append_durably(wal, b"acknowledged")
    store.outage = True
    append(wal, b"in doubt")
    trim = asyncio.create_task(wal.trim(end))
    await turns()
    await wal.close()
    assert told.durable == [end]
    with pytest.raises(WalFenced, match="is closed"):
        await trim
    store.outage = False
    assert await payloads_of(store.bucket) == [b"acknowledged"]


async def test_appends_go_on_after_an_outage_and_a_renewal_of_credentials() -> None:
    store = MemoryObjectStore()
    wal, told = await started(store)
    refusals = [AccessDenied("expired"), AccessDenied("expired")]

    async def hook(operation: str, key: str) -> None:
        if refusals:
            raise refusals.pop()

    store.hook = hook
    store.outage = True
    append(wal, b"patient")
    await asyncio.sleep(0.01)
    assert told.durable == []
    store.outage = False
    while wal.durable_offset < wal.end_offset:
        await asyncio.sleep(0)
    assert told.failures == []
    await wal.close()


async def test_a_store_that_refuses_us_at_the_start_is_an_error() -> None:
    store = MemoryObjectStore()

    async def hook(operation: str, key: str) -> None:
        raise AccessDenied("no")

    store.hook = hook
    with pytest.raises(WalUnavailable, match="allow it to put, get, list and delete"):
        await opened(store)


async def test_another_clusters_log_is_refused() -> None:
    store = MemoryObjectStore()
    await (await opened(store)).close()
    with pytest.raises(WalMismatch, match="belongs to node 1 of cluster 'tide', this is node 1 of cluster 'other'"):
        await opened(store, cluster_id="other")


async def test_an_error_that_nobody_expects_fences_the_log() -> None:
    store = MemoryObjectStore()
    wal, told = await started(store)

    async def hook(operation: str, key: str) -> None:
        raise ValueError("a bug")

    store.hook = hook
    append(wal, b"x")
    await turns(10)
    assert "cannot be written (a bug)" in str(told.failures[0])
    with pytest.raises(WalFenced):
        await wal.trim(0) if wal.trim_offset else wal.reserve(1)
    await wal.close()


async def test_the_port_tells_apart_what_the_wal_must() -> None:
    store = MemoryObjectStore()
    objects = StoreForWal(store, "a/prefix")
    assert await objects.create("k", [b"one", b"two"])
    assert not await objects.create("k", [b"three"])
    assert await objects.read("k") == b"onetwo"
    assert await objects.read_head("k", 2) == b"on"
    assert (await objects.read("none"), await objects.read_head("none", 1)) == (None, None)
    assert [found async for found in objects.list("")] == [("k", 6)]
    assert list(store.bucket.keys) == ["a/prefix/k"]
    await objects.delete(["k", "none"])
    assert [found async for found in objects.list("")] == []
    store.outage = True
    with pytest.raises(ObjectsUnavailable):
        await objects.create("k", [b""])
