"""Compaction of real bytes: everything stays readable, nothing damaged is carried on, and a lost race costs only work."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator

import pytest

from s3stream.compactor import Compactor
from s3stream.config import CompactionSettings, ReadSettings
from s3stream.errors import MetadataUnavailable, SourcesChanged
from s3stream.memory import Fault, Faults, MemoryObjectStore
from s3stream.metadata import CommitObjects, CommitResult, ObjectId, StreamId
from s3stream.object_format import ObjectIndex, verify_object
from s3stream.object_reader import ObjectReader
from s3stream.object_writer import Payload
from s3stream.objectstore import Archived, Buffer, Unavailable, WrittenObject
from tests.s3stream.doubles import PATHS, DictMetadata, PlainPayloads, new_world, offsets_of, payload, payloads, upload
from tests.sim.loop import VirtualLoop

KIB, MIB = 1 << 10, 1 << 20
SETTINGS = CompactionSettings(
    interval_ms=1,
    fan_in=3,
    max_fan_in=3,
    max_sources=8,
    object_size_bytes=16 * KIB,
    stream_object_max_bytes=64 * KIB,
    memory_bytes=256 * KIB,
    rate_bytes_per_s=1 << 40,
)


class World:
    """A bucket, its metadata, a compactor and a reader."""

    def __init__(self, settings: CompactionSettings = SETTINGS) -> None:
        self.store, self.metadata = new_world()
        self.metadata.create(1, 2, 3)
        self.compactor = Compactor(
            store=self.store,
            paths=PATHS,
            metadata=self.metadata,
            settings=settings,
            block_size_bytes=2000,
            rng=random.Random(0),
        )

    async def upload(self, streams: dict[int, list[Payload]], states: dict[int, bytes] | None = None) -> ObjectId:
        return await upload(self.store, self.metadata, streams, states=states)

    async def fill(self, count: int, *streams: int) -> None:
        """Upload `count` objects of ten payloads a stream."""
        for _ in range(count):
            await self.upload(
                {
                    stream: payloads(at, at + 10)
                    for stream in streams
                    if (at := self.metadata.committed_end_offset(StreamId(stream)) or 0) >= 0
                }
            )

    async def settle(self) -> None:
        while await self.compactor.run_once():
            pass

    async def contents(self, stream_id: int) -> list[int]:
        """Every offset that can be read, by a reader that has nothing cached."""
        reader = ObjectReader(
            store=self.store, paths=PATHS, metadata=self.metadata, payload_format=PlainPayloads(), settings=ReadSettings()
        )  # fmt: skip
        end = self.metadata.committed_end_offset(StreamId(stream_id)) or 0
        offset = self.metadata.log_start_offset(StreamId(stream_id)) or 0
        found: list[int] = []
        while offset < end:
            buffers = await reader.read(StreamId(stream_id), offset, end, 5000)
            found += offsets_of(buffers)
            offset = found[-1] + 1
        await reader.close()
        return found

    async def state(self, stream_id: int) -> tuple[int, bytes] | None:
        reader = ObjectReader(
            store=self.store, paths=PATHS, metadata=self.metadata, payload_format=PlainPayloads(), settings=ReadSettings()
        )  # fmt: skip
        found = await reader.read_state(StreamId(stream_id))
        await reader.close()
        return found

    async def verified(self, object_id: ObjectId) -> ObjectIndex:
        """An object, every byte of it checked."""
        return verify_object((await self.store.get(PATHS.data_object(object_id))).data, object_id)


async def test_merged_objects_hold_what_their_sources_held() -> None:
    world = World()
    await world.fill(3, 1, 2)
    sources = {each.object_id for each in world.metadata.live_objects()}

    assert await world.compactor.run_once()

    (merged,) = world.metadata.live_objects()
    assert set(world.metadata.unreferenced) == sources
    assert [(value.stream_id, value.base_offset, value.end_offset, value.record_count) for value in merged.ranges] == [
        (1, 0, 30, 30),
        (2, 0, 30, 30),
    ]
    index = await world.verified(merged.object_id)
    assert [entry.size_bytes for entry in index.data_entries(StreamId(1))] == [2000, 1000]  # small blocks are joined
    assert merged.ranges[0].max_timestamp_ms == 290
    assert await world.contents(1) == await world.contents(2) == [*range(30)]
    assert not await world.compactor.run_once()


async def test_what_retention_passed_is_left_out() -> None:
    world = World()
    await world.fill(4, 1)
    await world.metadata.trim_streams({StreamId(1): 25})
    await world.fill(1, 1)
    await world.settle()
    (merged,) = world.metadata.live_objects()
    assert (merged.ranges[0].base_offset, merged.ranges[0].record_count) == (20, 30)
    assert await world.contents(1) == [*range(25, 50)]


async def test_blocks_below_the_log_start_are_left_out() -> None:
    world = World()
    await world.upload({1: payloads(0, 50)})
    await world.upload({1: payloads(50, 100)})
    await world.metadata.trim_streams({StreamId(1): 35})
    await world.upload({1: payloads(100, 150)})
    await world.settle()
    (merged,) = world.metadata.live_objects()
    assert merged.ranges[0].base_offset == 0  # the range is that of its sources; what it still holds is less
    assert merged.ranges[0].record_count == 120
    assert (await world.contents(1))[-115:] == [*range(35, 150)]


async def test_the_newest_state_goes_along_and_older_ones_do_not() -> None:
    world = World()
    await world.upload({1: payloads(0, 10)}, {1: b"at 10"})
    await world.upload({1: payloads(10, 20)}, {1: b"at 20"})
    await world.upload({1: payloads(20, 30)})
    await world.settle()
    (merged,) = world.metadata.live_objects()
    assert await world.state(1) == (20, b"at 20")
    assert [entry.kind for entry in (await world.verified(merged.object_id)).entries()] == [1, 1, 2]


async def test_a_state_outlives_its_data() -> None:
    world = World()
    await world.upload({1: payloads(0, 10), 2: payloads(0, 10)}, {1: b"at 10"})
    await world.upload({2: payloads(10, 20)})
    await world.upload({2: payloads(20, 30)})
    await world.metadata.trim_streams({StreamId(1): 10})
    await world.settle()
    (merged,) = world.metadata.live_objects()
    assert await world.state(1) == (10, b"at 10")
    assert merged.ranges[0].record_count == merged.ranges[0].size_bytes == 0
    assert await world.contents(2) == [*range(30)]


async def test_deleted_streams_are_left_behind() -> None:
    world = World()
    await world.fill(3, 1, 2)
    world.metadata.delete(2)
    await world.settle()
    (merged,) = world.metadata.live_objects()
    assert [value.stream_id for value in merged.ranges] == [1]
    assert {entry.stream_id for entry in (await world.verified(merged.object_id)).entries()} == {1}


@pytest.mark.parametrize("seed", range(12))
async def test_any_history_reads_back(seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    metadata = world.metadata
    states: dict[int, tuple[int, bytes]] = {}
    starts = dict.fromkeys((1, 2, 3), 0)
    for _ in range(40):
        action = rng.random()
        stream = rng.choice(sorted(starts))
        end = metadata.committed_end_offset(StreamId(stream)) or 0
        if action < 0.6:
            uploads, fresh = {}, {}
            for each in rng.sample(sorted(starts), rng.randint(1, len(starts))):
                at = metadata.committed_end_offset(StreamId(each)) or 0
                uploads[each] = [
                    payload(offset, size=rng.choice([60, 300])) for offset in range(at, at + rng.randint(1, 20))
                ]
                if rng.random() < 0.3:
                    fresh[each] = rng.randbytes(40)
                    states[each] = (uploads[each][-1].end_offset, fresh[each])
            await world.upload(uploads, fresh)
        elif action < 0.7 and end > starts[stream]:
            starts[stream] = rng.randint(starts[stream], end)
            await metadata.trim_streams({StreamId(stream): starts[stream]})
        else:
            await world.compactor.run_once()
        for each, start in starts.items():
            found = await world.contents(each)
            assert [offset for offset in found if offset >= start] == [
                *range(start, metadata.committed_end_offset(StreamId(each)) or 0)
            ]
            assert await world.state(each) == states.get(each)
    for live in metadata.live_objects():
        await world.verified(live.object_id)


async def test_a_damaged_source_is_left_alone_and_the_rest_is_merged() -> None:
    world = World()
    await world.fill(8, 1)
    damaged = world.metadata.live_objects()[3].object_id
    world.store.bucket.flip_bit(PATHS.data_object(damaged), 777)
    await world.settle()
    live = [each.object_id for each in world.metadata.live_objects()]
    assert damaged in live
    assert len(live) == 3
    for object_id in live:
        if object_id != damaged:
            await world.verified(object_id)


async def test_a_damaged_index_is_no_reason_to_give_up() -> None:
    world = World()
    await world.fill(4, 1)
    damaged = world.metadata.live_objects()[0].object_id
    world.store.bucket.flip_bit(PATHS.data_object(damaged), 1000 * 8 + 3)
    await world.settle()
    assert len(world.metadata.live_objects()) == 2


async def test_an_object_in_an_archive_is_left_alone_and_the_rest_is_merged() -> None:
    world = World()
    await world.fill(8, 1)
    archived = world.metadata.live_objects()[3].object_id

    async def refuse(operation: str, key: str) -> None:
        if operation.startswith("get") and key == PATHS.data_object(archived):
            raise Archived(key)

    world.store.hook = refuse
    await world.settle()
    assert world.compactor.damaged_objects == 1
    assert len(world.metadata.live_objects()) == 3


async def test_an_object_that_lacks_committed_records_is_not_compacted_away() -> None:
    world = World()
    await world.fill(2, 1)
    first = world.metadata.live_objects()[0].object_id
    shadow = DictMetadata()
    shadow.create(1)
    shadow.next_id = first
    await upload(world.store, shadow, {1: payloads(0, 9)})  # one record less under the same id
    await world.fill(1, 1)
    await world.settle()
    assert first in {each.object_id for each in world.metadata.live_objects()}


class Racing(DictMetadata):
    """Metadata in which something happens before a commit of a compaction."""

    outcome: Exception | None = None

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        if commit.sources and self.outcome is not None:
            outcome, self.outcome = self.outcome, None
            raise outcome
        return await super().commit_objects(commit)


def racing_world(outcome: Exception) -> World:
    world = World()
    world.metadata = Racing()
    world.metadata.create(1, 2, 3)
    world.metadata.outcome = outcome
    world.compactor._metadata = world.metadata
    return world


async def test_a_refused_commit_costs_only_the_work() -> None:
    world = racing_world(SourcesChanged("a source is gone"))
    await world.fill(3, 1)
    before = world.metadata.live_objects()
    assert await world.compactor.run_once()
    assert world.metadata.live_objects() == before
    assert (world.compactor.jobs, world.compactor.discarded_jobs) == (0, 1)
    assert await world.compactor.run_once()
    assert world.compactor.jobs == 1


async def test_a_commit_without_an_answer_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3stream.compactor._FIRST_COMMIT_DELAY_S", 0.001)
    world = racing_world(MetadataUnavailable("no answer"))
    await world.fill(3, 1)
    assert await world.compactor.run_once()
    assert world.compactor.jobs == 1


async def test_a_source_that_is_gone_means_somebody_was_faster() -> None:
    world = World()
    await world.fill(3, 1)
    await world.store.delete_many([PATHS.data_object(world.metadata.live_objects()[1].object_id)])
    assert await world.compactor.run_once()
    assert world.compactor.discarded_jobs == 1


async def test_who_is_behind_reads_the_metadata_before_it_takes_an_object_for_lost() -> None:
    class Behind(DictMetadata):
        caught_up = 0

        async def catch_up(self) -> None:
            self.caught_up += 1
            self.stream_ranges[1] = [
                (object_id, each) for object_id, each in self.stream_ranges[1] if object_id != gone
            ]

    world = World()
    world.metadata = behind = Behind()
    world.compactor._metadata = behind
    world.metadata.create(1, 2, 3)
    await world.fill(3, 1)
    gone = world.metadata.live_objects()[1].object_id
    await world.store.delete_many([PATHS.data_object(gone)])
    assert await world.compactor.run_once()
    assert (behind.caught_up, world.compactor.discarded_jobs, world.compactor._missing) == (1, 1, {})


def test_a_job_that_was_discarded_is_tried_again_only_after_a_rest() -> None:
    # A source that is gone, and still referenced as far as this node knows, is planned again some times.
    with contextlib.closing(VirtualLoop()) as loop:

        async def compact() -> None:
            world = World(dataclasses.replace(SETTINGS, interval_ms=60_000))
            await world.fill(3, 1)
            await world.store.delete_many([PATHS.data_object(world.metadata.live_objects()[1].object_id)])
            task = asyncio.create_task(world.compactor.run())
            await asyncio.sleep(200)
            assert 1 < world.compactor.discarded_jobs <= 6, "once in a minute, give or take a half"
            await asyncio.sleep(3400)
            # In the end it is left alone, and does not keep the others from being compacted.
            assert (world.compactor.discarded_jobs, world.compactor.jobs) == (4, 0)
            await world.fill(3, 1)
            await asyncio.sleep(600)
            assert world.compactor.jobs > 0
            task.cancel()

        loop.run_until_complete(compact())


async def test_an_outage_is_passed_on_and_passes() -> None:
    world = World()
    await world.fill(3, 1)
    world.store.outage = True
    with pytest.raises(Unavailable):
        await world.compactor.run_once()
    world.store.outage = False
    assert await world.compactor.run_once()


async def test_it_goes_on_under_faults_until_cancelled() -> None:
    world = World()
    await world.fill(20, 1, 2)
    world.store.faults = Faults(refused=0.02, lost_reply=0.02)
    task = asyncio.create_task(world.compactor.run())
    while len(world.metadata.live_objects()) > 4:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.store.faults = Faults()
    assert await world.contents(1) == await world.contents(2) == [*range(200)]


async def test_a_source_is_read_in_few_requests() -> None:
    world = World(
        dataclasses.replace(SETTINGS, memory_bytes=4 * MIB, object_size_bytes=MIB, stream_object_max_bytes=MIB)
    )
    for base in range(0, 300, 100):
        await world.upload({stream: payloads(base, base + 100, size=1000) for stream in (1, 2)})
    sizes = [each.size_bytes for each in world.metadata.live_objects()]
    await world.settle()
    assert world.store.requests["get_tail"] == 3 + 1, "small ones are read at once; what was written is read back"
    assert world.store.requests["get_range"] == world.store.requests["get_stream"] == 0
    assert world.compactor.read_bytes == sum(sizes)


async def test_a_large_source_is_read_in_two_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3stream.compactor._LEAST_BUFFER_BYTES", 10_000)
    world = World(dataclasses.replace(SETTINGS, memory_bytes=1, object_size_bytes=40_000, stream_object_max_bytes=MIB))
    for base in range(0, 300, 100):
        await world.upload({stream: payloads(base, base + 100, size=1000) for stream in (1, 2, 3)})
    await world.settle()
    live = world.metadata.live_objects()
    assert len(live) == 3, "one a stream: all of them read of each source"
    assert world.store.requests["get_tail"] == 3 + 3, "indexes, and what was written"
    assert world.store.requests["get_stream"] == 3
    assert world.store.requests["get_range"] == 0
    for each in live:
        await world.verified(each.object_id)


async def test_what_is_dead_is_skipped_and_a_large_gap_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3stream.compactor._LEAST_BUFFER_BYTES", 10_000)
    for module in ("sequential", "compaction_source"):
        monkeypatch.setattr(f"s3stream.{module}.SKIPPED_BYTES", 50_000)
    world = World(dataclasses.replace(SETTINGS, memory_bytes=1, object_size_bytes=MIB, stream_object_max_bytes=MIB))
    world.metadata.create(4, 5)
    sizes = {1: 200, 2: 400, 3: 200, 4: 1000, 5: 200}
    for base in (0, 100, 200):
        await world.upload({stream: payloads(base, base + 100, size=size) for stream, size in sizes.items()})
    world.metadata.delete(2)
    world.metadata.delete(4)
    await world.settle()
    assert world.store.requests["get_stream"] == 3 * 2, "from 1 to 3, and 5"
    read = 3 * (20 + 40 + 20 + 20) * 1000
    assert read <= world.compactor.read_bytes <= read + 3 * 20_000, "and tails"
    (merged,) = world.metadata.live_objects()
    await world.verified(merged.object_id)


async def test_a_stream_that_fails_is_put_off_and_tried_again() -> None:
    world = World(dataclasses.replace(SETTINGS, memory_bytes=1, stream_object_max_bytes=MIB))
    for base in range(0, 300, 100):
        await world.upload({1: payloads(base, base + 100, size=2000)})
    left = [1]

    async def hook(operation: str, key: str) -> Fault | None:
        return Fault.REFUSED if operation == "stream_piece" and left and left.pop() else None

    world.store.hook = hook
    with pytest.raises(Unavailable):
        await world.compactor.run_once()
    assert await world.compactor.run_once()
    assert await world.contents(1) == [*range(300)]


async def test_what_the_store_confirmed_is_not_read_back() -> None:
    class Confirming(MemoryObjectStore):
        """Tells the CRC of what it has."""

        async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
            return dataclasses.replace(await super().put_multipart(key, parts), is_confirmed=True)

    world = World()
    world.store = world.compactor._store = Confirming()
    await world.fill(3, 1)
    await world.settle()
    assert world.store.requests["get_tail"] == 3
    assert await world.contents(1) == [*range(30)]


async def test_a_small_source_comes_with_its_index() -> None:
    world = World()
    await world.fill(3, 1, 2)
    await world.settle()
    assert len(world.metadata.live_objects()) == 1
    assert world.store.requests["get_range"] == 0


async def test_what_does_not_read_back_is_not_committed() -> None:
    world = World()
    await world.fill(3, 1)
    before = world.metadata.live_objects()

    async def hook(operation: str, key: str) -> Fault | None:
        if operation == "get_tail" and key == PATHS.data_object(ObjectId(world.metadata.next_id - 1)):
            return Fault.FLIPPED if world.store.requests["complete_multipart"] else None
        return None

    world.store.hook = hook
    with pytest.raises(Exception, match="does not read back as it was written"):
        await world.compactor.run_once()
    assert world.metadata.live_objects() == before
