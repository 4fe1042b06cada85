"""Uploads, compactors, collectors and readers beside each other, step by step in any order, over the real metadata log.

The store asks before each request of whoever works in the background: so Hypothesis decides who goes on, and between which two
requests of a job everything else happens. After each step every offset that should be there is read by a reader without a cache
(I1, I5), and at the end nothing is left in the bucket that nobody needs (I8), and nothing that is still rewritten.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.node_metadata import NodeMetadata
from s3stream.collector import Collector
from s3stream.compactor import Compactor
from s3stream.config import CollectionSettings, CompactionSettings, ReadSettings
from s3stream.memory import Bucket, Fault, MemoryObjectStore
from s3stream.metadata import CommitObjects, StreamId
from s3stream.object_format import verify_object
from s3stream.object_reader import ObjectReader
from s3stream.object_writer import StreamData, StreamSource, build_object
from tests.s3stream.doubles import PATHS, PlainPayloads, offsets_of, payloads
from tests.s3stream.test_with_controller import StateAlone
from tests.sim.loop import VirtualLoop

COMPACTION = CompactionSettings(
    fan_in=2, max_sources=6, object_size_bytes=3000, stream_object_max_bytes=8000, rate_bytes_per_s=1 << 40
)
COLLECTION = CollectionSettings(grace_ms=1000, orphan_age_ms=10_000)
NAMES = ("a", "b", "c", "d")


class Worker:
    """Something that goes on in the background, a request at a time."""

    def __init__(self, bucket: Bucket, now_ms: Callable[[], int]) -> None:
        self.store = MemoryObjectStore(bucket, now_ms=now_ms)
        self.store.hook = self._ask
        self._waiting: list[asyncio.Future[None]] = []
        self.free = False
        self.task: asyncio.Task[Any] | None = None

    async def _ask(self, operation: str, key: str) -> Fault | None:
        if not self.free:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        return None

    @property
    def is_busy(self) -> bool:
        return self.task is not None and not self.task.done()

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        self.task = asyncio.get_running_loop().create_task(work)

    async def go_on(self, requests: int) -> None:
        for _ in range(requests):
            await _settled()
            if self._waiting:
                self._waiting.pop(0).set_result(None)
        await _settled()

    async def finish(self) -> Any:
        """Let it come to its end; what it failed with is raised."""
        self.free = True
        while self._waiting:
            self._waiting.pop(0).set_result(None)
        assert self.task is not None
        result = await self.task
        self.free = False
        return result

    async def kill(self) -> None:
        assert self.task is not None
        self.store.die()  # it cannot even clean up
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def _settled() -> None:
    """Let everything come to where it waits for a request."""
    for _ in range(30):
        await asyncio.sleep(0)


class Lifecycle(RuleBasedStateMachine):
    """One node's metadata and a bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.time_ms = 0
        self.bucket = Bucket()
        self.starts: dict[StreamId, int] = {}
        self.ends: dict[StreamId, int] = {}
        self.states: dict[StreamId, tuple[int, bytes]] = {}
        self.epochs: dict[StreamId, int] = {}
        self.topics: dict[StreamId, bytes] = {}
        self.compactors = [self.new_worker() for _ in range(2)]
        self.collecting = self.new_worker()
        self.reading = self.new_worker()
        self.read: tuple[StreamId, int] | None = None

    def new_worker(self) -> Worker:
        return Worker(self.bucket, lambda: self.time_ms)

    def do(self, work: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await work

        return self.loop.run_until_complete(run())

    @initialize()
    def start(self) -> None:
        self.do(self._start())

    async def _start(self) -> None:
        self.store = MemoryObjectStore(self.bucket, now_ms=lambda: self.time_ms)
        self.controller = await Controller.start(
            store=self.store, paths=PATHS, settings=ControllerSettings(), now_ms=lambda: self.time_ms,
            rng=random.Random(1),
        )  # fmt: skip
        registration = await self.controller.register_node(1, "ab" * 16)
        self.metadata: NodeMetadata = self.controller.bind(1, registration.node_epoch)
        await self.controller.create_topics([TopicSpec(name=name, partition_count=1) for name in NAMES])
        for topic in self.controller.image.topics():
            self.topics[topic.partitions[0].stream_id] = topic.topic_id
        for opened in await self.metadata.open_streams(sorted(self.topics)):
            self.epochs[opened.stream_id] = opened.leader_epoch
            self.starts[opened.stream_id] = self.ends[opened.stream_id] = 0

    # ---- what clients and time do

    @rule(
        counts=st.dictionaries(st.integers(0, 3), st.integers(0, 12), min_size=1),
        states=st.sets(st.integers(0, 3)),
        times=st.integers(1, 4),
    )
    def upload(self, counts: dict[int, int], states: set[int], times: int) -> None:
        for _ in range(times):
            self.do(self._upload(counts, states))

    async def _upload(self, counts: dict[int, int], states: set[int]) -> None:
        sources: list[StreamSource] = []
        for number, count in sorted(counts.items()):
            stream = sorted(self.topics)[number]
            if stream not in self.starts or not (count or number in states):
                continue
            base = self.ends[stream]
            self.ends[stream] += count
            state = b"%d: state at %d" % (len(self.bucket.keys), self.ends[stream]) if number in states else None
            if state is not None:
                self.states[stream] = self.ends[stream], state
            sources.append(
                StreamData(
                    stream_id=stream, leader_epoch=self.epochs[stream],
                    payloads=payloads(base, base + count), state=state,
                )
                if count
                else StateAlone(stream, self.epochs[stream], base, state)
            )  # fmt: skip
        if sources:
            (object_id,) = await self.metadata.new_object_ids(1)
            built = build_object(object_id, sources, block_size_bytes=500)
            await self.store.put(PATHS.data_object(object_id), built.parts, crc32c=built.crc32c)
            assert not (await self.metadata.commit_objects(CommitObjects(objects=(built.new_object,)))).skipped

    @rule(number=st.integers(0, 3), part=st.floats(0, 1))
    def trim(self, number: int, part: float) -> None:
        stream = sorted(self.topics)[number]
        if stream in self.starts:
            self.starts[stream] += int((self.ends[stream] - self.starts[stream]) * part)
            self.do(self.metadata.trim_streams({stream: self.starts[stream]}))

    @rule(number=st.integers(0, 3))
    def delete(self, number: int) -> None:
        stream = sorted(self.topics)[number]
        if self.starts.pop(stream, None) is not None:
            self.states.pop(stream, None)
            self.do(self.controller.delete_topics([self.topics[stream]]))

    @rule(passed_ms=st.sampled_from([10, 600, 1100, 11_000]))
    def wait(self, passed_ms: int) -> None:
        self.time_ms += passed_ms

    # ---- what goes on in the background

    @rule(number=st.integers(0, 1), requests=st.integers(0, 12))
    def compact(self, number: int, requests: int) -> None:
        self.do(self._go_on(self.compactors[number], lambda worker: self.compactor(worker).run_once(), requests))

    @rule(requests=st.integers(0, 12))
    def collect(self, requests: int) -> None:
        self.do(self._go_on(self.collecting, lambda worker: self.everything_collected(worker), requests))

    @rule(number=st.integers(0, 3), part=st.floats(0, 1), requests=st.integers(0, 2))
    def fetch(self, number: int, part: float, requests: int) -> None:
        """Begin to read somewhere, and be overtaken by whatever happens."""
        stream = sorted(self.topics)[number]
        if not self.reading.is_busy and stream in self.starts and self.starts[stream] < self.ends[stream]:
            offset = self.starts[stream] + int((self.ends[stream] - 1 - self.starts[stream]) * part)
            self.read = stream, offset
        if self.read is not None:
            self.do(self._go_on(self.reading, self.reader, requests))

    @rule()
    def fetched(self) -> None:
        if self.reading.is_busy:
            self.do(self._fetched())

    async def _fetched(self) -> None:
        buffers = await self.reading.finish()
        assert self.read is not None
        (stream, offset), self.read = self.read, None
        if stream in self.starts and self.starts[stream] <= offset:
            found = offsets_of(buffers)
            assert offset in found, "compaction and collection under a read do not end it"
            assert found == [*range(found[0], found[0] + len(found))]

    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        """A process ends, in the middle of whatever it does."""
        worker = [*self.compactors, self.collecting][which]
        if worker.is_busy:
            self.do(worker.kill())
            fresh = self.new_worker()
            if which == 2:
                self.collecting = fresh
            else:
                self.compactors[which] = fresh

    async def _go_on(self, worker: Worker, work: Callable[[Worker], Coroutine[Any, Any, Any]], requests: int) -> None:
        if not worker.is_busy:
            if worker.task is not None:
                worker.task.result()  # what it failed with
            worker.begin(work(worker))
        await worker.go_on(requests)

    def compactor(self, worker: Worker) -> Compactor:
        return Compactor(
            store=worker.store, paths=PATHS, metadata=self.metadata, settings=COMPACTION, block_size_bytes=1000,
            rng=random.Random(0),
        )  # fmt: skip

    async def everything_collected(self, worker: Worker) -> None:
        collector = Collector(
            store=worker.store, paths=PATHS, metadata=self.metadata, settings=COLLECTION,
            now_ms=lambda: self.time_ms, rng=random.Random(0),
        )  # fmt: skip
        await collector.collect()
        await collector.collect_orphans()

    async def reader(self, worker: Worker) -> list[Any]:
        assert self.read is not None
        stream, offset = self.read
        reader = ObjectReader(
            store=worker.store, paths=PATHS, metadata=self.metadata, payload_format=PlainPayloads(),
            settings=ReadSettings(),
        )  # fmt: skip
        try:
            return list(await reader.read(stream, offset, self.ends[stream], 700))
        finally:
            await reader.close()

    # ---- what is always true

    @invariant()
    def everything_reads_back(self) -> None:
        if self.starts:
            self.do(self._check())

    async def _check(self) -> None:
        reader = ObjectReader(
            store=self.store, paths=PATHS, metadata=self.metadata, payload_format=PlainPayloads(),
            settings=ReadSettings(),
        )  # fmt: skip
        for stream, start in self.starts.items():
            offset, found = start, []
            while offset < self.ends[stream]:
                found += offsets_of(await reader.read(stream, offset, self.ends[stream], 100_000))
                offset = found[-1] + 1
            assert [each for each in found if each >= start] == [*range(start, self.ends[stream])]
            assert await reader.read_state(stream) == self.states.get(stream)
        await reader.close()

    def teardown(self) -> None:
        try:
            if self.epochs:
                self.do(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        for worker in (*self.compactors, self.collecting):
            if worker.is_busy:
                await worker.finish()
        if self.reading.is_busy:
            await self._fetched()
        last = self.new_worker()
        last.free = True
        compactor = self.compactor(last)
        objects = self.metadata.live_objects()
        most_jobs = len(objects) + sum(len(each.ranges) for each in objects)
        jobs = 0
        while await compactor.run_once():
            jobs += 1
            assert jobs <= most_jobs, "each job leaves fewer objects or ranges: something is rewritten for ever"
        assert compactor.discarded_jobs == compactor.damaged_objects == 0
        # The bounded time of I8: the grace of what was replaced, the age of what was never committed.
        self.time_ms += COLLECTION.orphan_age_ms + COLLECTION.grace_ms + 1
        await self.everything_collected(last)
        live = [each.object_id for each in self.metadata.live_objects()]
        stored = [PATHS.object_id(found.key) async for found in self.store.list(PATHS.data_prefix)]
        assert sorted(filter(None, stored)) == live
        assert not self.bucket.multiparts
        for object_id in live:
            verify_object((await self.store.get(PATHS.data_object(object_id))).data, object_id)
        await self._check()
        await self.controller.close()


Lifecycle.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLifecycle = Lifecycle.TestCase
