"""What is still in memory is put into large objects from there, over the real metadata log, whose invariants are checked at every commit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.node_metadata import NodeMetadata
from s3stream.compactor import Compactor
from s3stream.config import MIB, CompactionSettings, StorageSettings
from s3stream.memory import Fault, MemoryObjectStore
from s3stream.metadata import StreamId
from s3stream.object_format import verify_object
from s3stream.object_reader import ObjectReader
from s3stream.second_upload import SecondUploads
from s3stream.storage import Storage
from s3stream.stream import Stream
from tests.s3stream.doubles import PATHS, PlainPayloads, offsets_of, payload
from wal.arena import Arena
from wal.null_wal import NullWal

KIB = 1 << 10
ARENA_BYTES = 1 * MIB
SETTINGS = StorageSettings(
    arena_bytes=ARENA_BYTES,
    upload_interval_ms=3_600_000,
    upload_size_bytes=256 * KIB,
    block_size_bytes=4 * KIB,
    compaction=CompactionSettings(fan_in=4, max_fan_in=100, rate_bytes_per_s=1 << 40),
)


class World:
    """A node's storage engine without a WAL, and what it has in its bucket."""

    def __init__(
        self, store: MemoryObjectStore, controller: Controller, metadata: NodeMetadata, storage: Storage
    ) -> None:
        self.store = store
        self.metadata = metadata
        self.controller = controller
        self.storage = storage
        self.streams: list[Stream] = []
        self.log_starts: dict[StreamId, int] = {}

    @property
    def second(self) -> SecondUploads:
        assert self.storage.second_uploads is not None
        return self.storage.second_uploads

    async def append(self, stream: Stream, size: int) -> None:
        while (view := self.storage.reserve(size)) is None:
            await self.storage.room()
        base_offset = stream.next_offset
        view[:] = payload(base_offset, size=size, timestamp_ms=base_offset * 10).data
        self.storage.append(stream, 1, base_offset * 10, None)

    async def upload(self, *sizes: int, count: int = 1) -> None:
        """One upload, of so many payloads for each stream."""
        for stream, size in zip(self.streams, sizes, strict=False):
            for _ in range(count if size else 0):
                await self.append(stream, size)
        self.storage.seal()
        await self.storage.uploads.drain()

    async def finished(self) -> None:
        """Nothing is under way."""
        async with asyncio.timeout(20):
            while self.second.is_busy:
                await asyncio.sleep(0.001)

    @property
    def range_counts(self) -> list[int]:
        return [len(self.metadata.ranges(stream.stream_id)) for stream in self.streams]

    async def check(self) -> None:
        """Read everything from objects, and compare."""
        for stream in self.streams:
            end = self.metadata.committed_end_offset(stream.stream_id)
            assert end is not None
            offset = start = self.log_starts.get(stream.stream_id, 0)
            found: list[int] = []
            while offset < end:
                found += offsets_of(await self.storage.reader.read(stream.stream_id, offset, end, 100_000))
                offset = found[-1] + 1
            assert [each for each in found if each >= start] == [*range(start, end)]
            state = await self.storage.reader.read_state(stream.stream_id)
            assert state is None or state == (end, b"as of %d" % end)
        for each in self.metadata.live_objects():
            verify_object((await self.store.get(PATHS.data_object(each.object_id))).data, each.object_id)


@asynccontextmanager
async def world(*, partitions: int = 2, states: bool = False, arena_bytes: int = ARENA_BYTES) -> AsyncIterator[World]:
    store = MemoryObjectStore()
    controller = await Controller.start(
        store=store, paths=PATHS, settings=ControllerSettings(), now_ms=lambda: 0, rng=random.Random(1)
    )
    arena = Arena(arena_bytes)
    wal = NullWal(arena=arena, wal_id="ab" * 16, cluster_id=controller.cluster_id)
    registration = await controller.register_node(1, wal.wal_id)
    metadata = controller.bind(1, registration.node_epoch)
    await controller.create_topics([TopicSpec(name="topic", partition_count=partitions)])
    failures: list[BaseException] = []
    storage = Storage(
        wal=wal,
        arena=arena,
        metadata=metadata,
        store=store,
        paths=PATHS,
        reader=ObjectReader(
            store=store, paths=PATHS, metadata=metadata, payload_format=PlainPayloads(), settings=SETTINGS.read
        ),
        payload_format=PlainPayloads(),
        settings=replace(SETTINGS, arena_bytes=arena_bytes, upload_size_bytes=arena_bytes // 4),
        rng=random.Random(2),
        on_failed=failures.append,
        second_store=store,
    )
    made = World(store, controller, metadata, storage)
    try:
        made.streams = list((await storage.start(controller.image.streams_led_by(1))).values())
        if states:
            for stream in made.streams:
                stream.state_source = lambda stream=stream: b"as of %d" % stream.next_offset  # type: ignore[misc]
        storage.run()
        yield made
    finally:
        await storage.close(timeout_s=20)
        await controller.close()
    assert not failures


async def test_what_comes_to_large_ranges_is_put_again_from_memory_and_nothing_is_read() -> None:
    async with world(states=True) as made:
        for _ in range(71):
            await made.upload(1000, 1000)
        assert made.range_counts == [71, 71]
        gets: list[str] = []

        async def hook(operation: str, key: str) -> Fault | None:
            if operation.startswith("get") and PATHS.data_prefix in key:
                gets.append(key)
            return None

        made.store.hook = hook
        await made.upload(1000, 1000)
        await made.finished()
        assert (made.second.jobs, made.range_counts, gets) == (1, [1, 1], [])
        made.store.hook = None
        await made.check()
        (only,) = made.metadata.live_objects()
        assert [value.record_count for value in only.ranges] == [72, 72]


async def test_small_payloads_are_joined_to_blocks_as_large_as_usual() -> None:
    async with world(partitions=1) as made:
        for _ in range(65):
            await made.upload(100, count=21)
        await made.finished()
        (only,) = made.metadata.live_objects()
        data = (await made.store.get(PATHS.data_object(only.object_id))).data
        assert [entry.size_bytes for entry in verify_object(data, only.object_id).entries()] == [4000] * 34 + [500]


async def test_what_does_not_come_to_enough_is_left_to_compaction() -> None:
    async with world() as made:
        for _ in range(6):  # as much as an object should have, and yet too little not to be merged once more
            await made.upload(70_000, 70_000)
        await made.finished()
        assert (made.second.jobs, made.range_counts) == (0, [6, 6])


async def test_large_ranges_stay_where_they_are() -> None:
    async with world(arena_bytes=64 * MIB) as made:
        for _ in range(9):
            await made.upload(30_000, 30_000)
        await made.upload(6_500_000)
        for _ in range(7):
            await made.upload(30_000, 30_000)
        assert made.range_counts == [17, 16]
        await made.upload(30_000, 30_000)
        await made.finished()
        assert (made.second.jobs, made.range_counts) == (1, [3, 1])
        await made.check()


async def test_no_object_becomes_much_larger_than_an_upload() -> None:
    async with world() as made:
        for _ in range(14):  # one partition has nearly all of it
            await made.upload(20_000, 50)
        await made.finished()
        assert (made.second.jobs, made.range_counts) == (1, [1, 1])
        assert max(each.size_bytes for each in made.metadata.live_objects()) < SETTINGS.upload_size_bytes * 1.2
        await made.check()


async def test_what_compaction_has_merged_already_is_left_alone() -> None:
    async with world() as made:
        for _ in range(71):
            await made.upload(1000, 1000)
        compactor = Compactor(
            store=made.store,
            paths=PATHS,
            metadata=made.metadata,
            settings=replace(SETTINGS.compaction, max_fan_in=10),
            block_size_bytes=SETTINGS.block_size_bytes,
            rng=random.Random(1),
        )
        assert await compactor.run_once()
        await made.upload(1000, 1000)
        await made.finished()
        assert (made.second.jobs, made.second.discarded_jobs, made.range_counts) == (0, 0, [2, 2])
        for _ in range(71):  # what came after that is one of the next
            await made.upload(1000, 1000)
        await made.finished()
        assert (made.second.jobs, made.second.discarded_jobs, made.range_counts) == (1, 0, [2, 2])
        await made.check()


async def test_deleted_trimmed_and_later_records_are_seen_to_while_it_goes_on() -> None:
    async with world(partitions=3, states=True) as made:
        first, second, third = made.streams
        reached, go_on = asyncio.Event(), asyncio.Event()
        holds = False

        async def hook(operation: str, key: str) -> Fault | None:
            if holds and operation == "put" and PATHS.data_prefix in key:
                reached.set()
                await go_on.wait()
            return None

        made.store.hook = hook
        for _ in range(71):
            await made.upload(1000, 1000, 50)
        await made.upload(1000, 1000, 50)
        holds = True
        await reached.wait()
        holds = False
        await first.trim(7)
        made.log_starts[first.stream_id] = 7
        await second.trim(72)  # all of it: only its state is still needed
        made.log_starts[second.stream_id] = 72
        await made.upload(0, 0, 50)
        go_on.set()
        await made.finished()
        assert (made.second.jobs, made.range_counts) == (1, [1, 0, 2])
        await made.check()
        assert third.confirmed_offset == 73


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST_REPLY])
async def test_what_fails_is_left_to_compaction(fault: Fault) -> None:
    async with world() as made:
        for _ in range(71):
            await made.upload(1000, 1000)
        puts = 0

        async def hook(operation: str, key: str) -> Fault | None:
            nonlocal puts
            if operation == "put" and PATHS.data_prefix in key:
                puts += 1
                return fault if puts == 2 else None
            return None

        made.store.hook = hook
        await made.upload(1000, 1000)
        await made.finished()
        assert (made.second.jobs, made.second.discarded_jobs, made.range_counts) == (0, 1, [72, 72])
        await made.check()


async def test_it_gives_way_to_appends_that_need_its_memory() -> None:
    async with world() as made:
        for _ in range(71):
            await made.upload(1000, 1000)
        never = asyncio.Event()
        puts = 0

        async def hook(operation: str, key: str) -> Fault | None:
            nonlocal puts
            puts += operation == "put" and PATHS.data_prefix in key
            if puts == 2:
                await never.wait()
            return None

        made.store.hook = hook
        await made.upload(1000, 1000)
        while puts < 2:
            await asyncio.sleep(0.001)
        puts = 3
        for _ in range(12):  # more than the arena
            await made.upload(100_000)
        await made.finished()
        assert (made.second.jobs, made.second.discarded_jobs) == (0, 1)
        await made.check()


async def test_memory_that_changed_is_never_put() -> None:
    async with world() as made:
        for _ in range(71):
            await made.upload(1000, 1000)
        part = made.streams[0].tail.parts[3]
        made.storage.arena.view[part.positions[0] + 50] ^= 1
        await made.upload(1000, 1000)
        await made.finished()
        assert (made.second.jobs, made.second.discarded_jobs, made.range_counts) == (0, 1, [72, 72])
        await made.check()


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_reads_back(seed: int) -> None:
    rng = random.Random(seed)
    async with world(partitions=3, states=True) as made:
        for _ in range(200):
            await made.upload(*(rng.choice((0, 50, 500, 2000)) for _ in made.streams), count=rng.randint(1, 3))
            if rng.random() < 0.1:
                stream = rng.choice(made.streams)
                start = rng.randint(stream.log_start_offset, stream.confirmed_offset)
                await stream.trim(start)
                made.log_starts[stream.stream_id] = start
            if rng.random() < 0.1:
                await made.check()
        await made.finished()
        await made.check()
        assert made.second.jobs >= 1
