"""What a start of the storage engine makes of its WAL: nothing that was acknowledged is missing, and what does not fit together is refused."""

from __future__ import annotations

import pytest

from s3stream.config import MIB
from s3stream.errors import StorageError
from s3stream.metadata import StreamId
from tests.s3stream.durable import ONE, TWO, Durable, contents, everywhere, put, put_durably


@everywhere
async def test_a_crash_loses_nothing_that_was_acknowledged(durable: Durable) -> None:
    sent = []
    for round_number in range(4):
        async with durable.engine(close=False) as (storage, streams):
            assert await contents(streams[ONE]) == sent
            assert streams[ONE].leader_epoch == round_number + 1
            sent += [await put_durably(storage, streams[ONE], 3000) for _ in range(10)]
    assert not durable.metadata.objects  # all of it came back from the WAL
    async with durable.engine() as (storage, streams):
        assert await contents(streams[ONE]) == sent


@everywhere
async def test_what_a_log_holds_of_times_before_a_stream_was_closed_is_left_out(durable: Durable) -> None:
    """Others recovered this log and went on: at offset 0, 1 and 2 is something else by now. So is what comes behind, though it would fit."""
    async with durable.engine(close=False) as (storage, streams):
        for _ in range(5):
            await put_durably(storage, streams[ONE], 3000)
        kept = [await put_durably(storage, streams[TWO], 3000)]
    durable.metadata.ends[ONE] = 3
    durable.metadata.starts[ONE] = 3  # where the test would look for objects otherwise
    durable.metadata.least_epochs[ONE] = durable.metadata.epochs[ONE] + 1
    async with durable.engine(close=False) as (storage, streams):
        assert (streams[ONE].confirmed_offset, streams[TWO].confirmed_offset) == (3, 1)
        assert await contents(streams[TWO]) == kept
        await put_durably(storage, streams[ONE], 3000)
    async with durable.engine(close=False) as (storage, streams):
        assert streams[ONE].confirmed_offset == 4, "what was appended since counts"


async def test_a_gap_between_objects_and_log_is_refused_not_papered_over(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        await put_durably(storage, streams[ONE])
    async with durable.engine(close=False) as (storage, streams):
        await put_durably(storage, streams[ONE])
    durable.metadata.ends[ONE] = 0  # the bucket was put back to an older copy
    durable.metadata.objects.clear()
    with pytest.raises(StorageError, match="data between is missing"):
        async with durable.engine():
            pass


async def test_records_of_a_stream_that_there_never_was_are_refused_not_dropped(durable: Durable) -> None:
    async with durable.engine(close=False) as (storage, streams):
        sent = await put_durably(storage, streams[ONE])
    durable.metadata.delete(ONE)
    durable.metadata.created.remove(ONE)  # the bucket was put back to an older copy
    with pytest.raises(StorageError, match="records of stream 1, and the metadata know of none"):
        async with durable.engine():
            pass
    durable.metadata.create([ONE])
    async with durable.engine() as (_, streams):
        assert await contents(streams[ONE]) == [sent]


@everywhere
async def test_recovery_of_more_than_memory_holds_uploads_as_it_goes(durable: Durable) -> None:
    durable.arena_bytes, durable.wal_capacity = 32 * MIB, "16MiB"
    durable.store.outage = True
    async with durable.engine(close=False) as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 200_000) for _ in range(70)]
    durable.store.outage = False
    durable.arena_bytes = 4 * MIB
    async with durable.engine() as (storage, streams):
        assert await contents(streams[ONE]) == sent
        sent.append(await put_durably(storage, streams[ONE]))
        assert await contents(streams[ONE]) == sent


@pytest.mark.parametrize("arena_bytes", [2 * MIB, 32 * MIB])
async def test_recovery_of_many_streams_in_turn_with_and_without_memory_for_them(
    durable: Durable, arena_bytes: int
) -> None:
    """One of them deleted meanwhile, and the first rounds in objects already, while the log was not trimmed yet."""
    durable.arena_bytes, durable.wal_capacity = 32 * MIB, "16MiB"
    durable.stream_ids = [StreamId(number) for number in range(1, 301)]
    durable.metadata.create(durable.stream_ids)
    sent: dict[StreamId, list[bytes]] = {stream_id: [] for stream_id in durable.stream_ids}

    async def rounds(count: int) -> None:
        for number in range(count):
            for stream_id in durable.stream_ids:
                payload = put(storage, streams[stream_id], 200 + stream_id % 7, count=1 + number % 3)
                assert payload is not None
                sent[stream_id].append(payload)
            await put_durably(storage, streams[deleted])

    deleted = StreamId(17)
    async with durable.engine(close=False) as (storage, streams):
        await rounds(5)
        trim, storage._want_trim = storage._want_trim, lambda wal_offset: None  # type: ignore[method-assign]
        await storage.flush(ONE, streams[ONE].confirmed_offset)
        await rounds(35)
        storage._want_trim = trim  # type: ignore[method-assign]
    durable.metadata.delete(deleted)
    del sent[deleted]

    durable.arena_bytes = arena_bytes
    for _ in range(2):  # the second life finds what the first one left
        async with durable.engine(close=False) as (storage, streams):
            assert deleted not in streams
            for stream_id, payloads in sent.items():
                assert await contents(streams[stream_id]) == payloads
            sent[ONE].append(await put_durably(storage, streams[ONE]))
            assert await contents(streams[ONE]) == sent[ONE]
