"""Streams of the storage engine: what is read of them, how they are trimmed, and the state that travels with them."""

from __future__ import annotations

import asyncio

import pytest

from s3stream.errors import OffsetOutOfRange
from tests.s3stream.durable import ONE, TWO, Durable, contents, everywhere, put_durably


async def test_reads_outside_the_log_are_refused(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        await put_durably(storage, streams[ONE])
        assert (await streams[ONE].read(1, 100)).buffers == []
        with pytest.raises(OffsetOutOfRange):
            await streams[ONE].read(2, 100)
        await streams[ONE].trim(1)
        with pytest.raises(OffsetOutOfRange):
            await streams[ONE].read(0, 100)
        with pytest.raises(OffsetOutOfRange):
            await streams[ONE].trim(5)


@everywhere
async def test_a_trim_has_the_state_written_anew_where_it_does_not_account_for_what_is_to_go(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        stream = streams[ONE]
        for _ in range(3):
            await put_durably(storage, stream)
        await storage.flush(ONE, 3)  # put before anybody could give the state, as after a recovery
        stream.state_source = lambda: b"as of %d" % stream.next_offset
        await stream.trim(2)
        assert stream.log_start_offset == 2
        state = await stream.newest_state()
        assert state is not None
        assert (state.end_offset, state.data) == (3, b"as of 3")
        sent = await put_durably(storage, stream)
        await stream.trim(3)
        assert await contents(stream, 3) == [sent]
    async with durable.engine() as (storage, streams):
        assert streams[ONE].log_start_offset == 3
        assert await contents(streams[ONE], 3) == [sent]
        state = await streams[ONE].newest_state()
        assert state is not None
        assert (state.end_offset, state.data) == (4, b"as of 4")


@everywhere
async def test_a_state_by_itself_comes_after_what_is_under_way(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        stream = streams[ONE]
        stream.state_source = lambda: b"as of %d" % stream.next_offset
        await put_durably(storage, stream)
        storage.seal()
        flushed = asyncio.ensure_future(storage.flush_state(stream))
        await asyncio.sleep(0)
        sent = await put_durably(storage, stream)
        await flushed
        await storage.flush(ONE, 2)
        state = await stream.newest_state()
        assert state is not None
        assert (state.end_offset, state.data) == (2, b"as of 2")
        assert await contents(stream, 1) == [sent]


@everywhere
async def test_state_travels_with_the_data_it_describes(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        stream = streams[ONE]
        stream.state_source = lambda: b"as of %d" % stream.next_offset
        for _ in range(3):
            await put_durably(storage, stream)
        await storage.flush(ONE, 3)
        await put_durably(storage, stream)
    async with durable.engine() as (storage, streams):
        state = await streams[ONE].newest_state()
        assert state == (4, b"as of 4")
        assert await streams[TWO].newest_state() is None


@everywhere
async def test_time_lookup_finds_the_payload_in_objects_and_in_the_log_cache(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        stream = streams[ONE]
        sent = [await put_durably(storage, stream, timestamp_ms=1000 * n) for n in range(10)]
        await storage.flush(ONE, 10)
        sent += [await put_durably(storage, stream, timestamp_ms=1000 * n) for n in range(10, 20)]
        assert await stream.payload_for_timestamp(3500) == sent[4]
        assert await stream.payload_for_timestamp(10500) == sent[11]
        assert await stream.payload_for_timestamp(99_999) is None
        assert await stream.max_timestamp() == 19_000
    async with durable.engine() as (storage, streams):
        assert await streams[ONE].payload_for_timestamp(3500) == sent[4]
        assert await streams[ONE].payload_for_timestamp(18_001) == sent[19]
