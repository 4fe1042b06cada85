"""The storage engine over a real file WAL: what a user of it relies on, and what faults leave."""

from __future__ import annotations

import asyncio

import pytest

from s3stream import storage as storage_module
from s3stream.config import MIB
from s3stream.errors import StorageError, StorageFenced, StreamClosed
from tests.s3stream.durable import ONE, TWO, Durable, contents, everywhere, put, put_durably


@everywhere
async def test_what_is_acknowledged_is_read_back_at_its_offset(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 100 + n) for n in range(50)]
        assert streams[ONE].confirmed_offset == streams[ONE].next_offset == 50
        assert await contents(streams[ONE]) == sent
        assert await contents(streams[ONE], 30) == sent[30:]
        assert await contents(streams[TWO]) == []


async def test_nothing_is_seen_before_it_is_durable(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        order: list[int] = []
        for n in range(5):
            put(storage, streams[ONE], on_done=lambda error, n=n: order.append(n))  # type: ignore[misc]
        assert streams[ONE].confirmed_offset == 0
        assert streams[ONE].next_offset == 5
        found = streams[ONE].read_cached(0, 1000)
        assert found is not None
        assert found.payloads == []
        await put_durably(storage, streams[TWO])
        assert order == [0, 1, 2, 3, 4]
        assert streams[ONE].confirmed_offset == 5


@everywhere
async def test_a_clean_close_leaves_everything_in_objects_and_an_empty_log(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[TWO], 5000) for _ in range(10)]
    assert durable.metadata.closed == {ONE: 0, TWO: 10}
    async with durable.engine() as (storage, streams):
        assert storage.recovered_bytes == 0
        assert await contents(streams[TWO]) == sent


@everywhere
async def test_the_ring_wraps_many_times_while_uploads_make_room(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE if n % 3 else TWO], 60_000) for n in range(400)]
        ones = [payload for n, payload in enumerate(sent) if n % 3]
        assert await contents(streams[ONE]) == ones
    assert sum(item.size_bytes for item in durable.metadata.objects.values()) > 5 * 4 * MIB
    async with durable.engine() as (storage, streams):
        assert await contents(streams[ONE]) == ones


@everywhere
async def test_an_outage_of_the_store_holds_producers_only_when_the_log_is_full(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        durable.store.outage = True
        acknowledged = 0

        def on_done(error: StorageError | None) -> None:
            nonlocal acknowledged
            acknowledged += error is None

        sent = []
        while (payload := put(storage, streams[ONE], 50_000, on_done=on_done)) is not None:
            sent.append(payload)
            await asyncio.sleep(0)
        assert len(sent) * 50_000 > 3 * MIB  # of a log of 4 MiB
        while acknowledged < len(sent):
            await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(put_durably(storage, streams[ONE], 50_000))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        durable.store.outage = False
        sent.append(await waiting)
        assert await contents(streams[ONE]) == sent


class Socket:
    """Holds memory, and is asked to let go of it."""

    revoked = False

    def revoke(self) -> None:
        self.revoked = True


async def test_pinned_memory_is_not_recycled_and_its_holder_is_asked_to_let_go(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        socket = Socket()
        first = await put_durably(storage, streams[ONE], 100_000)
        found = streams[ONE].read_cached(0, 1)
        assert found is not None
        assert found.block is not None
        found.block.pin(socket)
        filled = 0
        while not socket.revoked:
            if put(storage, streams[TWO], 100_000) is None:
                await storage.room()
            filled += 100_000
        assert found.payloads[0] == first
        found.block.unpin(socket)
        await put_durably(storage, streams[TWO], 100_000)


async def test_a_full_log_takes_neither_cache_nor_connection_from_readers(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        socket = Socket()
        first = await put_durably(storage, streams[ONE], 100_000)
        await storage.flush(ONE, 1)  # committed: it could be evicted
        found = streams[ONE].read_cached(0, 1)
        assert found is not None
        assert found.block is not None
        found.block.pin(socket)
        durable.store.outage = True
        while put(storage, streams[TWO], 100_000) is not None:
            await asyncio.sleep(0)
        assert put(storage, streams[TWO], 100_000) is None
        assert not socket.revoked
        found.block.unpin(socket)
        assert put(storage, streams[TWO], 100_000) is None
        still = streams[ONE].read_cached(0, 1)
        assert still is not None
        assert still.payloads == [first]
        durable.store.outage = False
        await put_durably(storage, streams[TWO], 100_000)


async def test_a_failed_write_fences_the_engine(durable: Durable) -> None:
    async with durable.engine(close=False) as (storage, streams):
        ends: list[StorageError | None] = []
        put(storage, streams[ONE], on_done=ends.append)
        storage._fail(OSError("the disk is gone"))
        assert len(ends) == 1
        assert isinstance(ends[0], StorageFenced)
        assert durable.failures == [storage.failed]
        with pytest.raises(StorageFenced):
            storage.reserve(10)
        with pytest.raises(StreamClosed):
            await streams[ONE].read(0, 10)


async def test_what_waits_for_the_log_is_bounded_however_small_it_is(
    durable: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "MAX_PENDING", 20)
    async with durable.engine() as (storage, streams):
        for _ in range(3):
            acknowledged: list[StorageError | None] = []
            for _ in range(20):
                assert put(storage, streams[ONE], on_done=acknowledged.append)
            assert put(storage, streams[ONE]) is None, "all of it came at once"
            await storage.room()
            assert len(acknowledged) >= 10
        await put_durably(storage, streams[ONE])
        assert streams[ONE].confirmed_offset == 61
