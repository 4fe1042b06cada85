"""Compaction and collection over the real metadata log, whose invariants are checked at every commit."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.node_metadata import NodeMetadata
from s3stream.collector import Collector
from s3stream.compactor import Compactor
from s3stream.config import CollectionSettings, CompactionSettings, ReadSettings
from s3stream.memory import MemoryObjectStore
from s3stream.metadata import CommitObjects, StreamId
from s3stream.object_format import verify_object
from s3stream.object_reader import ObjectReader
from s3stream.object_writer import DataBlock, StreamData, StreamSource, build_object
from tests.s3stream.doubles import PATHS, PlainPayloads, offsets_of, payloads

KIB = 1 << 10
COMPACTION = CompactionSettings(
    fan_in=3,
    max_fan_in=3,
    max_sources=8,
    object_size_bytes=16 * KIB,
    stream_object_max_bytes=64 * KIB,
    rate_bytes_per_s=1 << 40,
)
COLLECTION = CollectionSettings(grace_ms=1000, orphan_age_ms=100_000)


class StateAlone(NamedTuple):
    """A state without data, as of what was uploaded before (a `StreamSource`)."""

    stream_id: StreamId
    leader_epoch: int
    base_offset: int
    state: bytes | None
    size_bytes: int = 0

    def blocks(self, block_size_bytes: int) -> Iterator[DataBlock]:
        return iter(())


class World:
    """A node's metadata, a bucket, and what works on them."""

    def __init__(self, store: MemoryObjectStore, controller: Controller, metadata: NodeMetadata) -> None:
        self.time_ms = 0
        self.store = store
        self.controller = controller
        self.metadata = metadata
        self.epochs: dict[StreamId, int] = {}
        self.ends: dict[StreamId, int] = {}
        self.starts: dict[StreamId, int] = {}
        self.states: dict[StreamId, tuple[int, bytes]] = {}
        self.compactor = Compactor(
            store=store, paths=PATHS, metadata=metadata, settings=COMPACTION, block_size_bytes=2000,
            rng=random.Random(0),
        )  # fmt: skip
        self.reader = ObjectReader(
            store=store, paths=PATHS, metadata=metadata, payload_format=PlainPayloads(), settings=ReadSettings()
        )
        self.collector = Collector(
            store=store, paths=PATHS, metadata=metadata, settings=COLLECTION, now_ms=lambda: self.time_ms,
            rng=random.Random(0),
        )  # fmt: skip

    async def open_all(self) -> None:
        tables = self.controller.image.state.tables
        for opened in await self.metadata.open_streams(sorted(tables.streams)):
            self.epochs[opened.stream_id] = opened.leader_epoch
            self.ends[opened.stream_id] = self.starts[opened.stream_id] = 0

    async def upload(self, counts: dict[StreamId, int], states: dict[StreamId, bytes]) -> None:
        (object_id,) = await self.metadata.new_object_ids(1)
        data: list[StreamSource] = [
            StateAlone(stream, self.epochs[stream], self.ends[stream], states[stream])
            if not counts[stream]
            else StreamData(
                stream_id=stream,
                leader_epoch=self.epochs[stream],
                payloads=payloads(self.ends[stream], self.ends[stream] + counts[stream]),
                state=states.get(stream),
            )
            for stream in sorted(counts)
        ]
        built = build_object(object_id, data, block_size_bytes=1000)
        await self.store.put(PATHS.data_object(object_id), built.parts, crc32c=built.crc32c)
        result = await self.metadata.commit_objects(CommitObjects(objects=(built.new_object,)))
        assert not result.skipped
        for stream, count in counts.items():
            self.ends[stream] += count
            if stream in states:
                self.states[stream] = self.ends[stream], states[stream]

    async def check(self) -> None:
        for stream, start in self.starts.items():
            offset, found = start, []
            while offset < self.ends[stream]:
                found += offsets_of(await self.reader.read(stream, offset, self.ends[stream], 10_000))
                offset = found[-1] + 1
            assert [each for each in found if each >= start] == [*range(start, self.ends[stream])]
            assert await self.reader.read_state(stream) == self.states.get(stream)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made: World | None = None
    store = MemoryObjectStore()
    controller = await Controller.start(
        store=store,
        paths=PATHS,
        settings=ControllerSettings(),
        now_ms=lambda: 0 if made is None else made.time_ms,
        rng=random.Random(1),
    )
    registration = await controller.register_node(1, "ab" * 16)
    made = World(store, controller, controller.bind(1, registration.node_epoch))
    try:
        await controller.create_topics([TopicSpec(name="topic", partition_count=4)])
        await made.open_all()
        yield made
    finally:
        await made.reader.close()
        await controller.close()


@pytest.mark.parametrize("seed", range(6))
async def test_any_history_reads_back_and_nothing_is_left_over(seed: int) -> None:
    rng = random.Random(seed)
    async with world() as made:
        for _ in range(50):
            made.time_ms += rng.randrange(600)
            action = rng.random()
            stream = rng.choice(sorted(made.starts))
            if action < 0.55:
                chosen = rng.sample(sorted(made.starts), rng.randint(1, len(made.starts)))
                states = {each: rng.randbytes(30) for each in chosen if rng.random() < 0.3}
                alone = {each for each in states if rng.random() < 0.3}
                await made.upload({each: 0 if each in alone else rng.randint(1, 20) for each in chosen}, states)
            elif action < 0.7:
                made.starts[stream] = rng.randint(made.starts[stream], made.ends[stream])
                await made.metadata.trim_streams({stream: made.starts[stream]})
            elif action < 0.9:
                await made.compactor.run_once()
            else:
                await made.collector.collect()
            await made.check()
        assert made.compactor.jobs > 1
        assert made.compactor.discarded_jobs == 0
        while await made.compactor.run_once():
            pass
        made.time_ms += COLLECTION.grace_ms + 1
        await made.collector.collect()
        await made.check()
        stored = [PATHS.object_id(found.key) async for found in made.store.list(PATHS.data_prefix)]
        live = [each.object_id for each in made.metadata.live_objects()]
        assert sorted(filter(None, stored)) == live
        for object_id in live:
            verify_object((await made.store.get(PATHS.data_object(object_id))).data, object_id)


async def test_deleting_the_topic_empties_the_bucket() -> None:
    async with world() as made:
        for _ in range(9):
            await made.upload(dict.fromkeys(made.starts, 5), {})
        await made.compactor.run_once()
        await made.controller.delete_topics(list(made.controller.image.state.tables.topics))
        made.time_ms += COLLECTION.grace_ms + 1
        await made.collector.collect()
        assert [found async for found in made.store.list(PATHS.data_prefix)] == []
