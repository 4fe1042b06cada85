"""Controllers that fight over one bucket, are killed at any await and start again, on a store that does its worst.

Checked, for every seed: what was acknowledged is in the log at the end; ids never went out twice; every replica applied
the same records at the same index (I9) and ends in the same state; invariants hold in it; nothing went wrong unheard.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.errors import ControllerError
from controller.image import Applied, Topic
from controller.invariants import check_all
from controller.records import encode_records
from controller.snapshot import digest
from s3stream.errors import MetadataUnavailable, NodeFenced, StorageError
from s3stream.memory import Bucket, Faults, MemoryObjectStore
from s3stream.metadata import CommitObjects, SkipReason
from s3stream.paths import Paths
from tests.controller.machine import new_object, stream_range
from tests.sim.loop import Process, VirtualLoop
from tests.sim.store import ProcessStore

PATHS = Paths("sim")
FAULTS = Faults(
    latency_ms=20,
    slow_probability=0.02,
    slow_latency_ms=3_000,
    refused=0.03,
    lost_reply=0.03,
    delayed=0.03,
    repeated=0.03,
    conflict=0.02,
)
SETTINGS = ControllerSettings(
    snapshot_interval_entries=12,
    retained_entries=3,
    entry_min_age_ms=0,
    object_id_block_size=7,
    command_timeout_ms=20_000,
)
LIVES = 4
SECONDS_PER_LIFE = 40


@dataclass
class History:
    """What everybody saw, whoever died since."""

    bucket: Bucket = field(default_factory=Bucket)
    records: dict[int, int] = field(default_factory=dict)
    """Checksum of what was applied, by log index."""
    topics: dict[str, bytes] = field(default_factory=dict)
    producer_ids: list[range] = field(default_factory=list)
    object_ids: list[int] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    """Highest acknowledged committed end, by stream."""
    node_epochs: list[int] = field(default_factory=list)
    leader_epochs: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    replies: int = 0

    def applied(self, applied: Applied) -> None:
        if not applied.is_reset:
            checksum = zlib.crc32(encode_records(applied.records))
            if self.records.setdefault(applied.index, checksum) != checksum:
                self.problems.append(f"entry {applied.index} was applied differently (I9)")


class Simulation:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.history = History()

    def run(self) -> History:
        try:
            self.loop.run_until_complete(self.whole())
            self.history.problems += self.loop.problems
        finally:
            self.loop.bury()
            self.loop.close()
        return self.history

    def now_ms(self) -> int:
        return int(self.loop.time() * 1_000)

    async def whole(self) -> None:
        await asyncio.gather(*(self.lives(node_id) for node_id in (1, 2)))
        self.history.bucket.delete([])  # delayed requests had a minute to land
        await asyncio.sleep(60)
        finals = [await self.controller(MemoryObjectStore(self.history.bucket)) for _ in range(2)]
        await finals[0].register_node(3, "wal-3")
        await finals[1].refresh()
        assert len({digest(final.image.state) for final in finals}) == 1
        self.check(finals[0])
        for final in finals:
            await final.close()

    async def lives(self, node_id: int) -> None:
        """A node that is killed and starts again, several times."""
        for life in range(LIVES):
            process = Process(f"node {node_id}, life {life}")
            inner = MemoryObjectStore(self.history.bucket, rng=random.Random(self.rng.random()), faults=FAULTS)
            store = ProcessStore(inner, process, self.loop, self.history.problems)
            self.loop.spawn(process, self.life(node_id, store))
            process.kill_after(self.rng.randrange(50, 6_000))
            for _ in range(SECONDS_PER_LIFE):
                await asyncio.sleep(1)
                if not process.alive:
                    break
            process.kill()

    async def controller(self, store: MemoryObjectStore | ProcessStore) -> Controller:
        controller = await Controller.start(
            store=store,
            paths=PATHS,
            settings=SETTINGS,
            now_ms=self.now_ms,
            rng=random.Random(self.rng.random()),
            on_failure=lambda error: self.history.problems.append(f"a controller failed: {error!r}"),
        )
        controller.subscribe(self.history.applied)
        return controller

    async def life(self, node_id: int, store: ProcessStore) -> None:
        while True:
            try:
                controller = await self.controller(store)
                break
            except MetadataUnavailable:
                continue
        while True:
            try:
                await self.serve(controller, node_id)
            except (MetadataUnavailable, NodeFenced):
                await asyncio.sleep(1)

    async def serve(self, controller: Controller, node_id: int) -> None:
        history, rng = self.history, self.rng
        registration = await controller.register_node(node_id, f"wal-{node_id}")
        history.node_epochs.append(registration.node_epoch)
        metadata = controller.bind(node_id, registration.node_epoch)
        streams = await metadata.open_streams(controller.image.streams_led_by(node_id))
        history.leader_epochs += [(each.stream_id, each.leader_epoch) for each in streams]
        held = {each.stream_id: [each.leader_epoch, each.committed_end_offset] for each in streams}
        for stream_id, (_, end_offset) in held.items():
            if end_offset < history.committed.get(stream_id, 0):
                history.problems.append(f"stream {stream_id} was opened at {end_offset}, below an acknowledged commit")

        async def upload() -> None:
            if not held:
                return
            (object_id,) = await metadata.new_object_ids(1)
            history.object_ids.append(object_id)
            picked = sorted(rng.sample(sorted(held), min(len(held), 3)))
            ranges = [
                stream_range(each, held[each][1], held[each][1] + 5, leader_epoch=held[each][0]) for each in picked
            ]
            for each in picked:
                held[each][1] += 5
            result = await metadata.commit_objects(CommitObjects(objects=(new_object(object_id, *ranges),)))
            for value in ranges:
                if value.stream_id not in result.skipped:
                    history.committed[value.stream_id] = max(
                        value.end_offset, history.committed.get(value.stream_id, 0)
                    )
                elif result.skipped[value.stream_id] is not SkipReason.NOT_CONTIGUOUS:
                    history.problems.append(f"{result.skipped[value.stream_id]} for {value}")

        async def create() -> None:
            name = f"t{rng.randrange(10**9)}"
            (made,) = (await controller.create_topics([TopicSpec(name=name, partition_count=2)])).values()
            if isinstance(made, Topic):
                history.topics[name] = made.topic_id
            else:
                history.problems.append(f"a command was carried out twice: {made!r}")

        async def take_producer_ids() -> None:
            history.producer_ids.append(await metadata.allocate_producer_ids(10))

        for _ in range(rng.randrange(5, 30)):
            work = rng.choices([upload, create, take_producer_ids], [6, 1, 2], k=rng.randrange(1, 6))
            outcomes = await asyncio.gather(*(each() for each in work), return_exceptions=True)
            history.replies += sum(outcome is None for outcome in outcomes)
            self.note(outcomes)
            await asyncio.sleep(rng.expovariate(2))

    def note(self, outcomes: Sequence[BaseException | None]) -> None:
        """Foreseen errors end a term of service; others are problems."""
        for outcome in outcomes:
            if isinstance(outcome, StorageError):
                raise outcome
            if isinstance(outcome, ControllerError | AssertionError):
                self.history.problems.append(repr(outcome))
            elif outcome is not None:
                raise outcome

    def check(self, final: Controller) -> None:
        history, tables = self.history, final.image.state.tables
        check_all(tables)
        assert {name: tables.topic_ids.get(name) for name in history.topics} == history.topics
        for stream_id, end_offset in history.committed.items():
            assert tables.streams[stream_id].committed_end_offset >= end_offset  # type: ignore[index]
        given = [producer_id for block in history.producer_ids for producer_id in block]
        for ids in (given, history.object_ids, history.node_epochs, history.leader_epochs):
            assert len(set(ids)) == len(ids), "ids and epochs are given out once"
        assert all(producer_id < tables.next_producer_id for producer_id in given)


@pytest.mark.parametrize("seed", range(12))
def test_controllers_survive_each_other_crashes_and_a_nasty_store(seed: int) -> None:
    history = Simulation(seed).run()
    assert history.problems == []
    assert history.replies > 20, "something happened"


def test_one_seed_gives_one_history() -> None:
    assert Simulation(3).run().records == Simulation(3).run().records
