"""What is deleted, when, and what never is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from s3stream.collector import Collector
from s3stream.config import CLOCK_SLACK_MS, CollectionSettings
from s3stream.errors import ObjectExpired
from s3stream.memory import Bucket, Faults, MemoryObjectStore
from s3stream.metadata import CommitObjects, ObjectId, StreamId
from s3stream.object_writer import StreamData, build_object
from s3stream.objectstore import AccessDenied, ObjectStoreError, Unavailable
from tests.s3stream.doubles import PATHS, DictMetadata, payloads, upload

GRACE_MS, ORPHAN_AGE_MS = 1000, 10_000
SETTINGS = CollectionSettings(
    interval_ms=1, grace_ms=GRACE_MS, orphan_age_ms=ORPHAN_AGE_MS, orphan_scan_interval_ms=1, batch_size=3
)


class World:
    """A bucket, its metadata and a collector, on one clock that the test turns."""

    def __init__(self) -> None:
        self.time_ms = 1_000_000
        self.bucket = Bucket()
        self.store = MemoryObjectStore(self.bucket, now_ms=lambda: self.time_ms)
        self.metadata = DictMetadata()
        self.metadata.create(1)
        self.collector = self.new_collector()

    def new_collector(self, restore_window_ms: int = 0) -> Collector:
        return Collector(
            store=self.store,
            paths=PATHS,
            metadata=self.metadata,
            settings=replace(SETTINGS, restore_window_ms=restore_window_ms),
            now_ms=lambda: self.time_ms,
            rng=random.Random(0),
        )

    def pass_time(self, ms: int) -> None:
        self.time_ms += ms
        self.metadata.now_ms = self.time_ms

    async def upload(self, count: int = 1) -> list[ObjectId]:
        self.metadata.now_ms = self.time_ms
        found = []
        for _ in range(count):
            at = self.metadata.committed_end_offset(StreamId(1)) or 0
            found.append(await upload(self.store, self.metadata, {1: payloads(at, at + 10)}))
        return found

    async def trim(self, offset: int) -> None:
        await self.metadata.trim_streams({StreamId(1): offset})

    def stored(self) -> list[ObjectId]:
        found = [PATHS.object_id(key) for key in self.bucket.keys]
        return sorted(object_id for object_id in found if object_id is not None)


async def test_an_unreferenced_object_is_deleted_after_its_grace_period() -> None:
    world = World()
    first, second = await world.upload(2)
    world.pass_time(5)
    await world.trim(10)
    world.pass_time(GRACE_MS)
    assert await world.collector.collect() == 0
    world.pass_time(1)
    assert await world.collector.collect() == 1
    assert world.stored() == [second]
    assert (world.metadata.unreferenced, world.metadata.expired) == ({}, {})
    assert first in world.metadata.gone
    assert await world.collector.collect() == 0


async def test_within_the_restore_window_everything_stays() -> None:
    world = World()
    first, second = await world.upload(2)
    collector = world.new_collector(restore_window_ms=50_000)
    await world.trim(10)
    world.pass_time(50_000 + CLOCK_SLACK_MS)
    await collector.collect()
    await collector.collect_orphans()
    assert world.stored() == [first, second]
    world.pass_time(1)
    await collector.collect()
    assert world.stored() == [second]


async def test_the_restore_window_is_over_when_both_clocks_say_so() -> None:
    world = World()
    (object_id,) = await world.upload()
    await world.trim(10)
    store_ms = world.time_ms
    world.store._now_ms = lambda: store_ms
    collector = world.new_collector(restore_window_ms=50_000)
    world.pass_time(10**9)
    assert await collector.collect() == 0, "the clock here jumped ahead"
    assert world.stored() == [object_id]
    store_ms += 10**9
    assert await collector.collect() == 1


async def test_referenced_objects_stay_however_old() -> None:
    world = World()
    objects = await world.upload(5)
    world.pass_time(ORPHAN_AGE_MS * 1000)
    await world.collector.collect()
    await world.collector.collect_orphans()
    assert world.stored() == objects


async def test_many_are_deleted_in_batches() -> None:
    world = World()
    await world.upload(8)
    await world.trim(80)
    world.pass_time(GRACE_MS + 1)
    assert await world.collector.collect() == 8
    assert world.store.requests["delete_many"] == 3
    assert world.stored() == []


async def test_a_crash_between_expiry_and_deletion_is_made_up_for() -> None:
    world = World()
    (object_id,) = await world.upload()
    await world.trim(10)
    world.pass_time(GRACE_MS + 1)
    world.store.outage = True
    with pytest.raises(Unavailable):
        await world.collector.collect()
    assert list(world.metadata.expired) == [object_id]
    world.store.outage = False
    assert await world.new_collector().collect() == 1
    assert world.stored() == []
    assert world.metadata.expired == {}


async def orphan(world: World) -> tuple[ObjectId, CommitObjects]:
    """An object that was put and whose uploader then died, or took its time."""
    (object_id,) = await world.metadata.new_object_ids(1)
    at = world.metadata.committed_end_offset(StreamId(1)) or 0
    data = StreamData(stream_id=StreamId(1), leader_epoch=1, payloads=payloads(at, at + 10), state=None)
    built = build_object(object_id, [data], block_size_bytes=1000)
    await world.store.put(PATHS.data_object(object_id), built.parts)
    return object_id, CommitObjects(objects=(built.new_object,))


async def test_an_object_that_was_never_committed_is_found_when_it_is_old() -> None:
    world = World()
    (kept,) = await world.upload()
    await orphan(world)
    world.pass_time(ORPHAN_AGE_MS)
    young, _ = await orphan(world)
    world.pass_time(1)
    assert await world.collector.collect_orphans() == 1
    assert world.stored() == [kept, young]
    assert world.collector.orphans == 1


async def test_an_uploader_that_comes_too_late_is_refused_not_robbed() -> None:
    world = World()
    _, commit = await orphan(world)
    world.pass_time(ORPHAN_AGE_MS + 1)
    await world.collector.collect_orphans()
    with pytest.raises(ObjectExpired):
        await world.metadata.commit_objects(commit)


async def test_a_commit_during_the_scan_saves_the_object() -> None:
    world = World()
    object_id, commit = await orphan(world)
    world.pass_time(ORPHAN_AGE_MS + 1)
    expire = world.metadata.expire_objects

    async def commit_first(object_ids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        await world.metadata.commit_objects(commit)
        return await expire(object_ids)

    world.metadata.expire_objects = commit_first  # type: ignore[method-assign]
    assert await world.collector.collect_orphans() == 0
    assert world.stored() == [object_id]


async def test_the_scan_leaves_what_is_in_its_grace_period() -> None:
    world = World()
    (object_id,) = await world.upload()
    world.pass_time(ORPHAN_AGE_MS + 1)
    await world.trim(10)
    assert await world.collector.collect_orphans() == 0
    assert world.stored() == [object_id]


async def test_the_scan_leaves_what_a_clock_that_ran_ahead_un_referenced() -> None:
    world = World()
    first, second = await world.upload(2)
    world.pass_time(ORPHAN_AGE_MS + 1)
    ahead_ms = 3_600_000
    world.metadata.now_ms += ahead_ms
    await world.trim(10)
    world.metadata.now_ms -= ahead_ms  # the clock was put right
    collector = world.new_collector(restore_window_ms=50_000)
    assert await collector.collect_orphans() == 0, "it can be restored for as long as the window says"
    await collector.collect()
    assert world.stored() == [first, second]
    world.pass_time(ahead_ms + 50_000 + CLOCK_SLACK_MS + 1)
    assert await collector.collect() == 1
    assert world.stored() == [second]


async def test_an_un_reference_years_ahead_keeps_nothing_for_years() -> None:
    """I8: in bounded time."""
    world = World()
    first, second = await world.upload(2)
    world.pass_time(ORPHAN_AGE_MS + 1)
    world.metadata.now_ms += 10**12
    await world.trim(10)
    collector = world.new_collector(restore_window_ms=50_000)
    kept_ms = 50_000 + CLOCK_SLACK_MS
    for _ in range(3):
        assert await collector.collect_orphans() == 0
        assert await collector.collect() == 0
        assert world.stored() == [first, second]
        world.pass_time(kept_ms // 3)
    world.pass_time(3)
    assert await collector.collect_orphans() == 1
    assert world.stored() == [second]


async def test_a_delayed_put_of_a_collected_object_is_collected_again() -> None:
    world = World()
    object_id, _ = await orphan(world)
    world.pass_time(ORPHAN_AGE_MS + 1)
    await world.collector.collect_orphans()
    await world.store.put(PATHS.data_object(object_id), [b"late"])
    world.pass_time(ORPHAN_AGE_MS + 1)
    assert await world.collector.collect_orphans() == 1
    assert world.stored() == []


async def test_foreign_keys_and_unknown_ids_are_left_alone() -> None:
    world = World()
    foreign = [f"{PATHS.data_prefix}notes.txt", f"{PATHS.data_prefix}00/7x", PATHS.data_object(ObjectId(10**9))]
    for key in foreign:
        await world.store.put(key, [b"x"])
    world.pass_time(ORPHAN_AGE_MS + 1)
    assert await world.collector.collect_orphans() == 0
    assert world.bucket.keys == sorted(foreign)


async def test_abandoned_multipart_uploads_are_aborted() -> None:
    world = World()
    client = MemoryObjectStore(world.bucket, now_ms=lambda: world.time_ms)

    async def parts():  # type: ignore[no-untyped-def]
        yield b"x"
        client.die()
        yield b"y"

    with pytest.raises(Exception, match="upload_part"):
        await client.put_multipart(PATHS.data_object(ObjectId(1)), parts())
    assert len(world.bucket.multiparts) == 1
    world.pass_time(ORPHAN_AGE_MS + 1)
    await world.collector.collect_orphans()
    assert not world.bucket.multiparts


async def test_orphans_go_also_where_uploads_may_not_be_looked_at() -> None:
    world = World()
    await orphan(world)
    world.pass_time(ORPHAN_AGE_MS + 1)

    async def refuse(operation: str, key: str) -> None:
        if "multipart" in operation:
            raise AccessDenied("not allowed")

    world.store.hook = refuse
    with pytest.raises(AccessDenied):
        await world.collector.collect_orphans()
    assert world.collector.orphans == 1


async def test_in_the_background_everything_goes_in_the_end_whatever_fails() -> None:
    world = World()
    objects = await world.upload(12)
    await world.trim(60)
    for _ in range(4):
        await orphan(world)
    world.pass_time(ORPHAN_AGE_MS + 1)
    world.store.faults = Faults(refused=0.2, lost_reply=0.2)
    task = asyncio.create_task(world.collector.run())
    while world.stored() != objects[6:]:
        await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_random_histories_never_delete_what_is_referenced() -> None:
    rng = random.Random(9)
    world = World()
    committed_late = 0
    waiting: list[CommitObjects] = []
    for _ in range(400):
        world.pass_time(rng.randrange(400))
        action = rng.random()
        end = world.metadata.committed_end_offset(StreamId(1)) or 0
        if action < 0.3 and not waiting:
            await world.upload()
        elif action < 0.4 and not waiting:
            waiting.append((await orphan(world))[1])
        elif action < 0.45 and waiting:
            try:
                await world.metadata.commit_objects(waiting.pop())
                committed_late += 1
            except ObjectExpired:
                continue
        elif action < 0.6:
            await world.trim(rng.randint(world.metadata.log_starts[StreamId(1)], end))
        else:
            world.store.faults = Faults(refused=0.1, lost_reply=0.1)
            try:
                await (world.collector.collect() if rng.random() < 0.5 else world.collector.collect_orphans())
            except ObjectStoreError:
                continue
            finally:
                world.store.faults = Faults()
        assert set(world.metadata.objects) <= set(world.stored())
    assert committed_late
    waiting.clear()
    world.pass_time(ORPHAN_AGE_MS + 1)
    await world.collector.collect()
    await world.collector.collect_orphans()
    assert set(world.stored()) == set(world.metadata.objects)
