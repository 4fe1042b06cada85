"""One bucket and the controllers on it, on virtual time, for tests."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.image import Topic
from controller.node_metadata import NodeMetadata
from s3stream.memory import Bucket, MemoryObjectStore
from s3stream.metadata import CommitObjects, StreamId
from s3stream.paths import Paths
from tests.controller.machine import T0_MS, new_object, stream_range
from tests.sim.loop import VirtualLoop

PATHS = Paths("here")


class World:
    """One bucket, and controllers on it, each with a store client of its own."""

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.controllers: list[Controller] = []
        self.stores: list[MemoryObjectStore] = []
        self.failures: list[BaseException] = []

    async def start(self, **settings: Any) -> Controller:
        store = MemoryObjectStore(self.bucket)
        controller = await Controller.start(
            store=store,
            paths=PATHS,
            settings=ControllerSettings(**{"entry_min_age_ms": 0, **settings}),
            now_ms=lambda: T0_MS,
            rng=random.Random(len(self.controllers)),
            on_failure=self.failures.append,
        )
        self.controllers.append(controller)
        self.stores.append(store)
        return controller

    async def close(self) -> None:
        for controller in self.controllers:
            await controller.close()


def run(scenario: Callable[[World], Awaitable[None]]) -> World:
    """Run a scenario on virtual time."""
    loop = VirtualLoop()
    world = World()

    async def main() -> None:
        await scenario(world)
        await world.close()

    try:
        loop.run_until_complete(main())
        assert not loop.problems
    finally:
        loop.bury()
        loop.close()
    return world


async def with_topic(
    controller: Controller, name: str = "orders", partitions: int = 1
) -> tuple[NodeMetadata, list[StreamId]]:
    """Register node 1, create a topic and open it under leader epoch 0."""
    registration = await controller.register_node(1, "wal-1", address="localhost:9092")
    metadata = controller.bind(1, registration.node_epoch)
    made = await controller.create_topics([TopicSpec(name=name, partition_count=partitions)])
    topic = made[name]
    assert isinstance(topic, Topic)
    streams = [partition.stream_id for partition in topic.partitions]
    await metadata.open_streams(streams)
    return metadata, streams


async def upload(
    metadata: NodeMetadata, stream_id: int, base: int, end: int, *, leader_epoch: int = 0, has_state: bool = False
) -> int:
    (object_id,) = await metadata.new_object_ids(1)
    value = stream_range(stream_id, base, end, leader_epoch=leader_epoch, has_state=has_state)
    result = await metadata.commit_objects(CommitObjects(objects=(new_object(object_id, value),)))
    assert not result.skipped
    return object_id
