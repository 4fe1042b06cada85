"""Another would-be controller: a process that leads no partition, but changes metadata, and believes to lead whenever it wakes.

It takes the office from the broker's controller, which takes it back with its next commit; it is killed, and stands still at any await,
in the middle of a commit as well. What it was promised must be in the log at the end, and nothing that it was refused (I9).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.errors import ControllerError, TopicExists
from controller.state import State
from s3stream.errors import MetadataUnavailable
from s3stream.memory import Bucket, Faults, MemoryObjectStore
from s3stream.objectstore import ObjectStoreError
from s3stream.paths import Paths
from tests.sim.loop import Process, VirtualLoop
from tests.sim.store import ProcessStore

__all__ = ["Rival"]

NODE_ID = 99
"""Of a node that is never registered: its altered settings concern nobody."""
_KEY = "counter"


class Rival:
    """One after the other, until `stop`."""

    def __init__(
        self,
        *,
        loop: VirtualLoop,
        bucket: Bucket,
        paths: Paths,
        settings: ControllerSettings,
        faults: Callable[[], Faults],
        now_ms: Callable[[], int],
        rng: random.Random,
        problems: list[str],
    ) -> None:
        self._loop = loop
        self._bucket = bucket
        self._paths = paths
        self._settings = settings
        self._faults = faults
        self._now_ms = now_ms
        self._rng = rng
        self._problems = problems
        self._number = 0
        self._promised = -1
        """The highest number whose commit was confirmed: a later one may stand there, an earlier one may not."""
        self._created: set[str] = set()
        self._refused: set[str] = set()
        self.promises = 0

    async def run(self) -> None:
        """Live, stand still, and die."""
        rng = self._rng
        for life in range(1_000):
            process = Process(f"rival-{life}", f"rival-{life}")
            ended = asyncio.Event()
            process.on_death(ended.set)
            self._loop.spawn(process, self._live(process))
            try:
                while process.alive:
                    await asyncio.sleep(rng.expovariate(1.0))
                    choice = rng.random()
                    if choice < 0.3:
                        process.kill_after(rng.randint(0, 60))
                    elif choice < 0.8:
                        process.suspend_after(rng.randint(0, 60))
                        await asyncio.sleep(rng.choice((0.05, 1.0, 10.0)) * rng.random())
                        process.spare()
                        process.resume(self._loop)
            finally:
                process.kill()

    async def _live(self, process: Process) -> None:
        rng = random.Random(self._rng.getrandbits(64))
        inner = MemoryObjectStore(self._bucket, rng=random.Random(rng.getrandbits(64)), faults=self._faults())
        store = ProcessStore(inner, process, self._loop, self._problems)
        try:
            controller = await Controller.start(
                store=store, paths=self._paths, settings=self._settings, now_ms=self._now_ms, rng=rng
            )
        except (MetadataUnavailable, ObjectStoreError):
            process.exit()
            return
        while True:
            await asyncio.sleep(rng.expovariate(2.0))
            try:
                if rng.random() < 0.7:
                    await self._count(controller)
                else:
                    await self._create(controller)
            except MetadataUnavailable:
                continue

    async def _count(self, controller: Controller) -> None:
        self._number += 1
        number = self._number
        await controller.configure_broker(NODE_ID, {_KEY: str(number)})
        self._promised = max(self._promised, number)
        self.promises += 1

    async def _create(self, controller: Controller) -> None:
        """A topic, which the broker leads as soon as it hears of it; before the broker was registered, this is refused."""
        self._number += 1
        name = f"rival-{self._number}"
        made = (await controller.create_topics([TopicSpec(name=name, partition_count=1)]))[name]
        if isinstance(made, TopicExists):
            self._problems.append(f"rival: {name} existed before it was created (I9)")
        elif isinstance(made, ControllerError):
            self._refused.add(name)
        else:
            self._created.add(name)
            self.promises += 1

    def broken(self, state: State) -> Iterator[str]:
        """Promises that the log does not keep."""
        found = int(state.tables.broker_configs.get(NODE_ID, {}).get(_KEY, "-1"))
        if not self._promised <= found <= self._number:
            yield f"rival: the log says {found}, and {self._promised} was confirmed, of {self._number} (I9)"
        for name in self._created - state.tables.topic_ids.keys():
            yield f"rival: topic {name} was confirmed, and is not there (I9)"
        for name in self._refused & state.tables.topic_ids.keys():
            yield f"rival: topic {name} was refused, and is there (I9)"
