"""Nodes that upload, delete, trim, compact, collect and snapshot, killed at any await, on a store that does its worst: at any time, every point
within the restore window can be restored. The metadata leads there, and every object that would be referenced is in the bucket.

And I8's other half: what nothing references goes in the end, and so does the metadata's history.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from controller.controller import Controller, TopicSpec
from controller.history import compare, read_history
from controller.image import Topic
from controller.log import MetadataLog
from controller.node_metadata import NodeMetadata
from controller.restoration import RestoreTopics, plan_restore
from s3stream.collector import Collector
from s3stream.config import CollectionSettings
from s3stream.errors import MetadataUnavailable, SourcesChanged
from s3stream.memory import MemoryObjectStore
from s3stream.metadata import CommitObjects, ObjectId, StreamId
from s3stream.objectstore import ObjectStoreError
from tests.controller.machine import new_object, stream_range
from tests.controller.test_simulation import PATHS, SETTINGS, Simulation
from tests.sim.store import ProcessStore

WINDOW_MS = 25_000
SLACK_MS = 25_000
"""An un-reference is stamped when it is asked for; here its entry may take that long to get through."""
COLLECTION = CollectionSettings(grace_ms=1, restore_window_ms=WINDOW_MS, orphan_age_ms=60_000, batch_size=3)


@pytest.fixture(autouse=True)
def _little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3stream.config.CLOCK_SLACK_MS", SLACK_MS)


class WindowSimulation(Simulation):
    settings = replace(SETTINGS, restore_window_ms=WINDOW_MS)
    collection = COLLECTION

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.restored = 0
        self.deleted = 0
        self.truncated = 0
        """Checks that found the beginning of the log gone."""

    async def whole(self) -> None:
        checking = asyncio.create_task(self.keep_checking())
        await asyncio.gather(*(self.lives(node_id) for node_id in (1, 2)))
        checking.cancel()
        await asyncio.sleep(60)
        await self.check_the_end()

    async def serve(self, controller: Controller, node_id: int) -> None:
        rng, store = self.rng, controller._log._store
        registration = await controller.register_node(node_id, f"wal-{node_id}")
        metadata = controller.bind(node_id, registration.node_epoch)
        held: dict[StreamId, list[int]] = {}

        async def open_all() -> None:
            for each in await metadata.open_streams(controller.image.streams_led_by(node_id)):
                held[each.stream_id] = [each.leader_epoch, each.committed_end_offset]

        async def put(object_id: ObjectId) -> None:
            await store.put(PATHS.data_object(object_id), [b"object %d" % object_id])

        async def upload() -> None:
            picked = sorted(rng.sample(sorted(held), min(len(held), 3)))
            if not picked:
                return
            (object_id,) = await metadata.new_object_ids(1)
            await put(object_id)
            ranges = [stream_range(s, held[s][1], held[s][1] + 5, leader_epoch=held[s][0]) for s in picked]
            for each in picked:
                held[each][1] += 5
            result = await metadata.commit_objects(CommitObjects(objects=(new_object(object_id, *ranges),)))
            for stream_id in result.skipped:
                held.pop(stream_id, None)

        async def compact() -> None:
            objects = metadata.live_objects()
            if not objects:
                return
            source = rng.choice(objects)
            (object_id,) = await metadata.new_object_ids(1)
            await put(object_id)
            commit = CommitObjects(objects=(replace(source, object_id=object_id),), sources=(source.object_id,))
            try:
                await metadata.commit_objects(commit)
            except SourcesChanged:
                return

        async def trim() -> None:
            for stream_id in rng.sample(sorted(held), min(len(held), 1)):
                await metadata.trim_streams({stream_id: rng.randint(0, held[stream_id][1])})

        async def create() -> None:
            await controller.create_topics([TopicSpec(name=f"t{rng.randrange(10**9)}", partition_count=2)])
            await open_all()

        async def delete() -> None:
            names = controller.image.topic_names()
            topic = controller.image.topic(rng.choice(names)) if len(names) > 2 else None
            if isinstance(topic, Topic):
                await controller.delete_topics([topic.topic_id])

        async def collect() -> None:
            await self.collect(metadata, store, orphans=rng.random() < 0.2)

        await open_all()
        for _ in range(rng.randrange(5, 40)):
            work = rng.choices([upload, compact, trim, create, delete, collect], [6, 2, 1, 1, 1, 2])
            outcomes = await asyncio.gather(*(each() for each in work), return_exceptions=True)
            self.note([None if isinstance(each, ObjectStoreError) else each for each in outcomes])
            await asyncio.sleep(rng.expovariate(4))

    async def collect(self, metadata: NodeMetadata, store: MemoryObjectStore | ProcessStore, *, orphans: bool) -> None:
        collector = Collector(
            store=store,
            paths=PATHS,
            metadata=metadata,
            settings=self.collection,
            now_ms=self.now_ms,
            rng=self.rng,
        )
        try:
            await collector.collect()
            if orphans:
                await collector.collect_orphans()
        finally:
            self.deleted += collector.deleted_objects

    async def keep_checking(self) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(2, 8))
            await self.check_window()

    async def check_window(self) -> None:
        """Somebody restores, to the beginning of the window, to its end, and somewhere between."""
        store = MemoryObjectStore(self.history.bucket)
        log = MetadataLog(store=store, paths=PATHS, settings=self.settings, rng=random.Random(0))
        if await log.read_marker() is None or (await log.read(0)) is None or not self.has_entries():
            return
        history = await read_history(store, PATHS, log)
        first, last = history.points[0], history.points[-1]
        began_ms = self.now_ms() - WINDOW_MS
        self.truncated += first.index > 0
        if first.index > 0 and first.at_ms > began_ms:
            self.history.problems.append(f"the history begins at {first}, within the window that began at {began_ms}")
        inside = [point for point in history.points if point.at_ms >= began_ms]
        oldest = history.at_time(began_ms) if first.at_ms <= began_ms else first
        for point in {oldest, last, *self.rng.sample(inside, min(len(inside), 2))}:
            found = await compare(log, history, point.index)
            command = RestoreTopics(
                index=point.index,
                target=found.then.tables,
                last_seen=found.last_seen,
                slack_offsets=1,
                at_ms=self.now_ms(),
            )
            plan = plan_restore(found.now.tables, command)
            missing = list(plan.missing)
            for entry in plan.record.objects:
                if PATHS.data_object(entry.object_id) not in self.history.bucket.objects:
                    missing.append(entry.object_id)
            if missing:
                self.history.problems.append(f"at {self.now_ms()} ms, {point} cannot be restored: {missing} are gone")
            self.restored += len(plan.partitions)

    def has_entries(self) -> bool:
        return any(key.startswith(PATHS.log_prefix) for key in self.history.bucket.objects)

    async def check_the_end(self) -> None:
        """What was deleted, was not only kept: with everything at rest nothing is left but what is referenced."""
        store = MemoryObjectStore(self.history.bucket)
        controller = await self.controller(store)
        registration = await controller.register_node(3, "wal-3")
        metadata = controller.bind(3, registration.node_epoch)
        await asyncio.sleep((WINDOW_MS + SLACK_MS) / 1_000 + 1)
        for _ in range(5):
            await self.collect(metadata, store, orphans=True)
            await asyncio.sleep(20)
        left = {PATHS.object_id(key) for key in self.history.bucket.objects if key.startswith(PATHS.data_prefix)}
        assert left == set(controller.image.state.tables.objects)
        await controller.close()

    async def controller(self, store: MemoryObjectStore | ProcessStore) -> Controller:
        try:
            return await Controller.start(
                store=store,
                paths=PATHS,
                settings=self.settings,
                now_ms=self.now_ms,
                rng=random.Random(self.rng.random()),
                on_failure=lambda error: self.history.problems.append(f"a controller failed: {error!r}"),
            )
        except ObjectStoreError as error:
            raise MetadataUnavailable(str(error)) from error


@pytest.mark.parametrize("seed", range(6))
def test_every_point_within_the_window_can_be_restored_at_any_time(seed: int) -> None:
    simulation = WindowSimulation(seed)
    assert simulation.run().problems == []
    assert simulation.restored > 100, "something was there to be restored"
    assert simulation.deleted > 10, "something was deleted meanwhile"
    assert simulation.truncated > 3, "the metadata log was cut meanwhile"


class ShortKeeping(WindowSimulation):
    """A planted bug: objects are kept for less than the window."""

    collection = replace(COLLECTION, restore_window_ms=0, grace_ms=WINDOW_MS // 3)


class ShortHistory(WindowSimulation):
    """A planted bug: the metadata's history is kept for less than the window."""

    settings = replace(SETTINGS, restore_window_ms=WINDOW_MS // 3)


@pytest.mark.parametrize(
    ("planted", "told"), [(ShortKeeping, "cannot be restored"), (ShortHistory, "the history begins at")]
)
def test_planted_bugs_are_found(planted: type[WindowSimulation], told: str) -> None:
    assert any(told in problem for seed in range(3) for problem in planted(seed).run().problems)
