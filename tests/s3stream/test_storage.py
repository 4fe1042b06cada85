"""The storage engine over a real file WAL: what a user of it relies on, and what faults leave. The store is in memory where
faults are made in it; what holds without any is held on real stores as well.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from s3stream import storage as storage_module
from s3stream import upload
from s3stream.config import MIB, StorageSettings
from s3stream.errors import OffsetOutOfRange, StorageError, StorageFenced, StreamClosed
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.memory import Bucket, Fault, MemoryObjectStore
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    NewObject,
    ObjectId,
    ObjectRange,
    OpenedStream,
    SkipReason,
    StreamId,
)
from s3stream.object_reader import ObjectReader
from s3stream.paths import Paths
from s3stream.payload import PayloadBounds
from s3stream.storage import Storage
from s3stream.stream import Stream
from tests.stores.process import PROCESSES
from tests.stores.s3_server import S3Server
from wal.arena import Arena
from wal.open import open_wal

_HEADER = struct.Struct("<qiiq")
ONE, TWO = StreamId(1), StreamId(2)


class TestFormat:
    """Payloads of a test: base offset, size, record count, timestamp, filler."""

    __test__ = False

    def bounds(self, buffer: bytes | bytearray | memoryview, position: int) -> PayloadBounds:
        base, size, count, timestamp_ms = _HEADER.unpack_from(buffer, position)
        return PayloadBounds(base, base + count, size, count, timestamp_ms)

    def max_timestamps_ms(self, buffer: bytes | bytearray | memoryview, positions: Sequence[int]) -> list[int]:
        return [self.bounds(buffer, position).max_timestamp_ms for position in positions]


class Metadata:
    """The metadata port in a dictionary, with the commit rules of the real one. Outlives the engines of a test."""

    def __init__(self) -> None:
        self.starts: dict[StreamId, int] = {ONE: 0, TWO: 0}
        self.ends: dict[StreamId, int] = {ONE: 0, TWO: 0}
        self.epochs: dict[StreamId, int] = {ONE: 0, TWO: 0}
        self.objects: dict[ObjectId, NewObject] = {}
        self.closed: dict[StreamId, int] = {}
        self.least_epochs: dict[StreamId, int] = {}
        self.created = {ONE, TWO}
        self._next_id = 0

    def was_created(self, stream_id: StreamId) -> bool:
        return stream_id in self.created

    def create(self, stream_ids: Sequence[StreamId]) -> None:
        self.created.update(stream_ids)
        for known in (self.starts, self.ends, self.epochs):
            known.update(dict.fromkeys(stream_ids, 0))

    def delete(self, stream_id: StreamId) -> None:
        for known in (self.starts, self.ends, self.epochs):
            del known[stream_id]

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        self._next_id += count
        return [ObjectId(number) for number in range(self._next_id - count, self._next_id)]

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        skipped: dict[StreamId, SkipReason] = {}
        for item in commit.objects:
            for found in item.ranges:
                if found.stream_id not in self.ends:
                    skipped[found.stream_id] = SkipReason.DELETED
                elif found.leader_epoch != self.epochs[found.stream_id]:
                    skipped[found.stream_id] = SkipReason.FENCED
                elif found.base_offset != self.ends[found.stream_id]:
                    skipped[found.stream_id] = SkipReason.NOT_CONTIGUOUS
                else:
                    self.ends[found.stream_id] = found.end_offset
            self.objects[item.object_id] = item
        return CommitResult(skipped=skipped)

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> Sequence[OpenedStream]:
        opened = []
        for stream_id in stream_ids:
            if stream_id in self.ends:
                self.epochs[stream_id] += 1
                opened.append(
                    OpenedStream(
                        stream_id=stream_id,
                        leader_epoch=self.epochs[stream_id],
                        log_start_offset=self.starts[stream_id],
                        committed_end_offset=self.ends[stream_id],
                        least_leader_epoch=self.least_epochs.get(stream_id, 0),
                    )
                )
        return opened

    async def close_streams(self, end_offsets: Mapping[StreamId, int], leader_epochs: Mapping[StreamId, int]) -> None:
        assert leader_epochs == {
            stream_id: self.epochs[stream_id] for stream_id in end_offsets if stream_id in self.ends
        }
        self.closed.update(end_offsets)

    async def trim_streams(self, log_start_offsets: Mapping[StreamId, int]) -> None:
        for stream_id, offset in log_start_offsets.items():
            assert offset <= self.ends[stream_id], "trimmed past what is committed"
        self.starts.update(log_start_offsets)

    def locate(self, stream_id: StreamId, offset: int, *, limit: int = 16) -> Sequence[ObjectRange]:
        return [found for found in self.ranges(stream_id) if found.range.end_offset > offset][:limit]

    def ranges(self, stream_id: StreamId) -> Sequence[ObjectRange]:
        if stream_id not in self.ends:
            return []
        return sorted(
            (
                ObjectRange(object_id=item.object_id, size_bytes=item.size_bytes, range=found)
                for item in self.objects.values()
                for found in item.ranges
                if found.stream_id == stream_id
            ),
            key=lambda found: found.range.base_offset,
        )

    def newest_state(self, stream_id: StreamId) -> ObjectRange | None:
        return next((found for found in reversed(self.ranges(stream_id)) if found.range.has_state), None)

    def live_objects(self) -> Sequence[NewObject]:
        return list(self.objects.values())

    def committed_end_offset(self, stream_id: StreamId) -> int | None:
        return self.ends.get(stream_id)


class World:
    """What outlives an engine: the WAL's directory, the bucket, the metadata. `engine` starts one incarnation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bucket = Bucket()
        self.metadata = Metadata()
        self.store: Any = MemoryObjectStore(self.bucket)
        self.failures: list[BaseException] = []
        self.wal_capacity = "4MiB"
        self.arena_bytes = 8 * MIB
        self.upload_interval_ms = 60_000
        self.stream_ids = [ONE, TWO]

    @asynccontextmanager
    async def engine(self, *, close: bool = True) -> AsyncIterator[tuple[Storage, dict[StreamId, Stream]]]:
        """One incarnation; with close=False it ends as a crash does, without upload."""
        settings = StorageSettings(
            arena_bytes=self.arena_bytes,
            upload_interval_ms=self.upload_interval_ms,
            upload_size_bytes=1 * MIB,
            stream_object_min_bytes=512 << 10,
        )
        arena = Arena(self.arena_bytes)
        wal = await open_wal(
            f"file://{self.path}?capacity={self.wal_capacity}",
            arena=arena,
            cluster_id="test",
            node_id=0,
            rng=random.Random(1),
        )
        paths = Paths("p")
        reader = ObjectReader(
            store=self.store,
            paths=paths,
            metadata=self.metadata,
            payload_format=TestFormat(),
            settings=settings.read,
        )
        storage = Storage(
            wal=wal,
            arena=arena,
            metadata=self.metadata,
            store=self.store,
            paths=paths,
            reader=reader,
            payload_format=TestFormat(),
            settings=settings,
            rng=random.Random(2),
            on_failed=self.failures.append,
        )
        try:
            streams = await storage.start(self.stream_ids)
            storage.run()
            yield storage, streams
        finally:
            outage, self.store.outage = self.store.outage, self.store.outage or not close
            await storage.close(timeout_s=20 if close else 0)
            self.store.outage = outage


class RealStore(InstrumentedObjectStore):
    """A bucket with the switch that the store in memory has."""

    @property
    def outage(self) -> bool:
        return self.failing

    @outage.setter
    def outage(self, value: bool) -> None:
        self.failing = value


@pytest.fixture
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server_named: Callable[[str], S3Server]
) -> AsyncIterator[World]:
    """With its store in memory, but for tests that are held `everywhere`."""
    made = World(tmp_path / "wal")
    if (name := getattr(request, "param", "memory")) != "memory":
        server = s3_server_named(name)
        made.store = RealStore(server.open(server.new_bucket()))
    yield made
    await made.store.close()


everywhere = pytest.mark.parametrize("world", ["memory", *PROCESSES], indirect=True)


def put(
    storage: Storage,
    stream: Stream,
    size: int = 100,
    *,
    count: int = 1,
    timestamp_ms: int = 0,
    on_done: Callable[[StorageError | None], None] | None = None,
) -> bytes | None:
    """Append one payload; None where there is no room."""
    view = storage.reserve(size)
    if view is None:
        return None
    payload = _HEADER.pack(stream.next_offset, size, count, timestamp_ms).ljust(size, bytes([stream.next_offset % 251]))
    view[:] = payload
    storage.append(stream, count, timestamp_ms, on_done)
    return payload


async def put_durably(storage: Storage, stream: Stream, size: int = 100, **how: int) -> bytes:
    """Append one payload and wait for its acknowledgement, and for room before that."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_done(error: StorageError | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    while (payload := put(storage, stream, size, on_done=on_done, **how)) is None:
        await storage.room()
    await done
    return payload


async def contents(stream: Stream, offset: int = 0) -> list[bytes]:
    """Everything from an offset on."""
    return [
        bytes(buffer[position : position + TestFormat().bounds(buffer, position).size_bytes])
        async for buffer, positions in stream.replay(offset)
        for position in positions
    ]


@everywhere
async def test_what_is_acknowledged_is_read_back_at_its_offset(world: World) -> None:
    async with world.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 100 + n) for n in range(50)]
        assert streams[ONE].confirmed_offset == streams[ONE].next_offset == 50
        assert await contents(streams[ONE]) == sent
        assert await contents(streams[ONE], 30) == sent[30:]
        assert await contents(streams[TWO]) == []


async def test_nothing_is_seen_before_it_is_durable(world: World) -> None:
    async with world.engine() as (storage, streams):
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


async def test_reads_outside_the_log_are_refused(world: World) -> None:
    async with world.engine() as (storage, streams):
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
async def test_a_trim_has_the_state_written_anew_where_it_does_not_account_for_what_is_to_go(world: World) -> None:
    async with world.engine() as (storage, streams):
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
    async with world.engine() as (storage, streams):
        assert streams[ONE].log_start_offset == 3
        assert await contents(streams[ONE], 3) == [sent]
        state = await streams[ONE].newest_state()
        assert state is not None
        assert (state.end_offset, state.data) == (4, b"as of 4")


@everywhere
async def test_a_state_by_itself_comes_after_what_is_under_way(world: World) -> None:
    async with world.engine() as (storage, streams):
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
async def test_a_crash_loses_nothing_that_was_acknowledged(world: World) -> None:
    sent = []
    for round_number in range(4):
        async with world.engine(close=False) as (storage, streams):
            assert await contents(streams[ONE]) == sent
            assert streams[ONE].leader_epoch == round_number + 1
            sent += [await put_durably(storage, streams[ONE], 3000) for _ in range(10)]
    assert not world.metadata.objects  # all of it came back from the WAL
    async with world.engine() as (storage, streams):
        assert await contents(streams[ONE]) == sent


@everywhere
async def test_what_a_log_holds_of_times_before_a_stream_was_closed_is_left_out(world: World) -> None:
    """Others recovered this log and went on: at offset 0, 1 and 2 is something else by now. So is what comes behind, though it would fit."""
    async with world.engine(close=False) as (storage, streams):
        for _ in range(5):
            await put_durably(storage, streams[ONE], 3000)
        kept = [await put_durably(storage, streams[TWO], 3000)]
    world.metadata.ends[ONE] = 3
    world.metadata.starts[ONE] = 3  # where the test would look for objects otherwise
    world.metadata.least_epochs[ONE] = world.metadata.epochs[ONE] + 1
    async with world.engine(close=False) as (storage, streams):
        assert (streams[ONE].confirmed_offset, streams[TWO].confirmed_offset) == (3, 1)
        assert await contents(streams[TWO]) == kept
        await put_durably(storage, streams[ONE], 3000)
    async with world.engine(close=False) as (storage, streams):
        assert streams[ONE].confirmed_offset == 4, "what was appended since counts"


@everywhere
async def test_a_clean_close_leaves_everything_in_objects_and_an_empty_log(world: World) -> None:
    async with world.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[TWO], 5000) for _ in range(10)]
    assert world.metadata.closed == {ONE: 0, TWO: 10}
    async with world.engine() as (storage, streams):
        assert storage.recovered_bytes == 0
        assert await contents(streams[TWO]) == sent


@everywhere
async def test_the_ring_wraps_many_times_while_uploads_make_room(world: World) -> None:
    async with world.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE if n % 3 else TWO], 60_000) for n in range(400)]
        ones = [payload for n, payload in enumerate(sent) if n % 3]
        assert await contents(streams[ONE]) == ones
    assert sum(item.size_bytes for item in world.metadata.objects.values()) > 5 * 4 * MIB
    async with world.engine() as (storage, streams):
        assert await contents(streams[ONE]) == ones


@everywhere
async def test_an_outage_of_the_store_holds_producers_only_when_the_log_is_full(world: World) -> None:
    async with world.engine() as (storage, streams):
        world.store.outage = True
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
        world.store.outage = False
        sent.append(await waiting)
        assert await contents(streams[ONE]) == sent


async def test_lost_replies_of_puts_and_commits_change_nothing(world: World) -> None:
    lose = iter([Fault.LOST_REPLY, Fault.REFUSED, None, Fault.LOST_REPLY] * 3)

    async def hook(operation: str, key: str) -> Fault | None:
        return next(lose, None) if operation == "put" else None

    world.store.hook = hook
    async with world.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 100_000) for _ in range(60)]
    world.store.hook = None
    async with world.engine() as (storage, streams):
        assert await contents(streams[ONE]) == sent


async def test_commits_stay_in_order_when_puts_finish_out_of_order(world: World) -> None:
    delays = iter([0.2, 0.0] * 50)

    async def hook(operation: str, key: str) -> None:
        if operation == "put":
            await asyncio.sleep(next(delays))

    world.store.hook = hook
    async with world.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 100_000) for _ in range(60)]
        assert await contents(streams[ONE]) == sent
    ends = [item.ranges[0].end_offset for item in world.metadata.objects.values()]
    assert ends == sorted(ends)


@everywhere
async def test_a_deleted_stream_does_not_hold_up_the_others(world: World) -> None:
    async with world.engine() as (storage, streams):
        await put_durably(storage, streams[ONE])
        sent = [await put_durably(storage, streams[TWO])]
        del world.metadata.ends[ONE]
        await storage.flush(TWO, 1)
        assert isinstance(streams[ONE].closed, StreamClosed)
        sent.append(await put_durably(storage, streams[TWO]))
        with pytest.raises(StreamClosed):
            put(storage, streams[ONE])
        sent.append(await put_durably(storage, streams[TWO]))
        assert await contents(streams[TWO]) == sent


async def test_a_gap_between_objects_and_log_is_refused_not_papered_over(world: World) -> None:
    async with world.engine() as (storage, streams):
        await put_durably(storage, streams[ONE])
    async with world.engine(close=False) as (storage, streams):
        await put_durably(storage, streams[ONE])
    world.metadata.ends[ONE] = 0  # the bucket was put back to an older copy
    world.metadata.objects.clear()
    with pytest.raises(StorageError, match="data between is missing"):
        async with world.engine():
            pass


async def test_records_of_a_stream_that_there_never_was_are_refused_not_dropped(world: World) -> None:
    async with world.engine(close=False) as (storage, streams):
        sent = await put_durably(storage, streams[ONE])
    world.metadata.delete(ONE)
    world.metadata.created.remove(ONE)  # the bucket was put back to an older copy
    with pytest.raises(StorageError, match="records of stream 1, and the metadata know of none"):
        async with world.engine():
            pass
    world.metadata.create([ONE])
    async with world.engine() as (_, streams):
        assert await contents(streams[ONE]) == [sent]


@everywhere
async def test_state_travels_with_the_data_it_describes(world: World) -> None:
    async with world.engine() as (storage, streams):
        stream = streams[ONE]
        stream.state_source = lambda: b"as of %d" % stream.next_offset
        for _ in range(3):
            await put_durably(storage, stream)
        await storage.flush(ONE, 3)
        await put_durably(storage, stream)
    async with world.engine() as (storage, streams):
        state = await streams[ONE].newest_state()
        assert state == (4, b"as of 4")
        assert await streams[TWO].newest_state() is None


@everywhere
async def test_time_lookup_finds_the_payload_in_objects_and_in_the_log_cache(world: World) -> None:
    async with world.engine() as (storage, streams):
        stream = streams[ONE]
        sent = [await put_durably(storage, stream, timestamp_ms=1000 * n) for n in range(10)]
        await storage.flush(ONE, 10)
        sent += [await put_durably(storage, stream, timestamp_ms=1000 * n) for n in range(10, 20)]
        assert await stream.payload_for_timestamp(3500) == sent[4]
        assert await stream.payload_for_timestamp(10500) == sent[11]
        assert await stream.payload_for_timestamp(99_999) is None
        assert await stream.max_timestamp() == 19_000
    async with world.engine() as (storage, streams):
        assert await streams[ONE].payload_for_timestamp(3500) == sent[4]
        assert await streams[ONE].payload_for_timestamp(18_001) == sent[19]


class Socket:
    """Holds memory, and is asked to let go of it."""

    revoked = False

    def revoke(self) -> None:
        self.revoked = True


async def test_pinned_memory_is_not_recycled_and_its_holder_is_asked_to_let_go(world: World) -> None:
    async with world.engine() as (storage, streams):
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


async def test_a_full_log_takes_neither_cache_nor_connection_from_readers(world: World) -> None:
    async with world.engine() as (storage, streams):
        socket = Socket()
        first = await put_durably(storage, streams[ONE], 100_000)
        await storage.flush(ONE, 1)  # committed: it could be evicted
        found = streams[ONE].read_cached(0, 1)
        assert found is not None
        assert found.block is not None
        found.block.pin(socket)
        world.store.outage = True
        while put(storage, streams[TWO], 100_000) is not None:
            await asyncio.sleep(0)
        assert put(storage, streams[TWO], 100_000) is None
        assert not socket.revoked
        found.block.unpin(socket)
        assert put(storage, streams[TWO], 100_000) is None
        still = streams[ONE].read_cached(0, 1)
        assert still is not None
        assert still.payloads == [first]
        world.store.outage = False
        await put_durably(storage, streams[TWO], 100_000)


async def test_a_failed_write_fences_the_engine(world: World) -> None:
    async with world.engine(close=False) as (storage, streams):
        ends: list[StorageError | None] = []
        put(storage, streams[ONE], on_done=ends.append)
        storage._fail(OSError("the disk is gone"))
        assert len(ends) == 1
        assert isinstance(ends[0], StorageFenced)
        assert world.failures == [storage.failed]
        with pytest.raises(StorageFenced):
            storage.reserve(10)
        with pytest.raises(StreamClosed):
            await streams[ONE].read(0, 10)


@everywhere
async def test_recovery_of_more_than_memory_holds_uploads_as_it_goes(world: World) -> None:
    world.arena_bytes, world.wal_capacity = 32 * MIB, "16MiB"
    world.store.outage = True
    async with world.engine(close=False) as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 200_000) for _ in range(70)]
    world.store.outage = False
    world.arena_bytes = 4 * MIB
    async with world.engine() as (storage, streams):
        assert await contents(streams[ONE]) == sent
        sent.append(await put_durably(storage, streams[ONE]))
        assert await contents(streams[ONE]) == sent


@pytest.mark.parametrize("arena_bytes", [2 * MIB, 32 * MIB])
async def test_recovery_of_many_streams_in_turn_with_and_without_memory_for_them(
    world: World, arena_bytes: int
) -> None:
    """One of them deleted meanwhile, and the first rounds in objects already, while the log was not trimmed yet."""
    world.arena_bytes, world.wal_capacity = 32 * MIB, "16MiB"
    world.stream_ids = [StreamId(number) for number in range(1, 301)]
    world.metadata.create(world.stream_ids)
    sent: dict[StreamId, list[bytes]] = {stream_id: [] for stream_id in world.stream_ids}

    async def rounds(count: int) -> None:
        for number in range(count):
            for stream_id in world.stream_ids:
                payload = put(storage, streams[stream_id], 200 + stream_id % 7, count=1 + number % 3)
                assert payload is not None
                sent[stream_id].append(payload)
            await put_durably(storage, streams[deleted])

    deleted = StreamId(17)
    async with world.engine(close=False) as (storage, streams):
        await rounds(5)
        trim, storage._want_trim = storage._want_trim, lambda wal_offset: None  # type: ignore[method-assign]
        await storage.flush(ONE, streams[ONE].confirmed_offset)
        await rounds(35)
        storage._want_trim = trim  # type: ignore[method-assign]
    world.metadata.delete(deleted)
    del sent[deleted]

    world.arena_bytes = arena_bytes
    for _ in range(2):  # the second life finds what the first one left
        async with world.engine(close=False) as (storage, streams):
            assert deleted not in streams
            for stream_id, payloads in sent.items():
                assert await contents(streams[stream_id]) == payloads
            sent[ONE].append(await put_durably(storage, streams[ONE]))
            assert await contents(streams[ONE]) == sent[ONE]


async def test_what_waits_for_the_log_is_bounded_however_small_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "MAX_PENDING", 20)
    async with world.engine() as (storage, streams):
        for _ in range(3):
            acknowledged: list[StorageError | None] = []
            for _ in range(20):
                assert put(storage, streams[ONE], on_done=acknowledged.append)
            assert put(storage, streams[ONE]) is None, "all of it came at once"
            await storage.room()
            assert len(acknowledged) >= 10
        await put_durably(storage, streams[ONE])
        assert streams[ONE].confirmed_offset == 61


async def test_copies_of_small_payloads_are_bounded_while_they_are_put(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_object = world.store.put
    take = upload._CopyBudget.take
    held: list[tuple[int, int]] = []
    """In all, and by who came last."""

    async def slowly(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0.02)  # so that PUTs would be under way together
        return await put_object(*arguments, **named)

    async def noting(budget: upload._CopyBudget, size: int) -> None:
        await take(budget, size)
        held.append((budget._held_bytes, size))

    monkeypatch.setattr(world.store, "put", slowly)
    monkeypatch.setattr(upload._CopyBudget, "take", noting)
    async with world.engine() as (storage, streams):
        storage._upload_size_bytes = 64 << 10
        storage.uploads.copies = upload._CopyBudget(100 << 10)
        for _ in range(400):
            await put_durably(storage, streams[ONE], 1000)
        storage.seal()
        await storage.uploads.drain()
        assert len(held) > 3
        assert all(0 < in_all <= max(100 << 10, size) for in_all, size in held), "no second block beyond the bound"
        held.clear()
        for _ in range(20):
            await put_durably(storage, streams[ONE], 40_000)
        storage.seal()
        await storage.uploads.drain()
        assert {size for _, size in held} == {0}, "large payloads are not copied"
