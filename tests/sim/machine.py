"""The simulated computer that the broker runs on: a disk, a clock and a process, again and again.

Another computer may be given its node id, while the broker here stands still or goes on, as an orchestrator does that believes a
machine to be dead (`successor`). What that one has of the WAL:
- a WAL in the bucket: the same, to fence it there;
- the volume, taken from here: whatever is written here from then on fails;
- what a recoverer on this host has: it sets the fence word, and then reads the WAL, whoever goes on writing.

What is the broker's own is real: controller, WAL, storage engine, partitions, handlers, connections. Only what lies behind
its ports is simulated: disk, bucket, network, clocks, randomness.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from broker.config import BrokerSettings
from broker.node import Node
from controller.errors import ControllerError, NodeRefused
from s3stream.errors import MetadataUnavailable, NodeFenced, StorageError, StorageFenced, TakenForDead
from s3stream.memory import Faults, MemoryObjectStore
from s3stream.objectstore import ObjectStoreError
from s3stream.paths import Paths
from tests.sim.bounds import over_bounds
from tests.sim.bucket import WatchedBucket
from tests.sim.clock import WallClock
from tests.sim.disk import Platter, SimDisk
from tests.sim.loop import Process, VirtualLoop, context_of
from tests.sim.node import Ports, broker_settings, metadata_digest
from tests.sim.scenario import Scenario
from tests.sim.store import ProcessStore
from tests.sim.volumes import FileSystem, Volume
from wal.errors import WalFenced, WalUnavailable
from wal.header import RING_START_BYTES, WalHeader, initial_image

__all__ = ["CLOCK_ERRORS_MS", "CLUSTER_ID", "NODE_ID", "PATHS", "Machine", "first_of", "new_volume"]

CLUSTER_ID = "simulated"
NODE_ID = 1
PATHS = Paths("sim")
CLOCK_ERRORS_MS = (0, 0, 1_200_000, -1_200_000, 10_800_000, -10_800_000, 36_000_000, -36_000_000)
"""By how much a clock may be wrong: less than a day, after which a broker that goes by it forgets idempotent producers, as Kafka does."""


class Machine:
    """One computer. At most one process of it is alive."""

    def __init__(
        self,
        *,
        loop: VirtualLoop,
        bucket: WatchedBucket,
        port: int,
        scenario: Scenario,
        rng: random.Random,
        problems: list[str],
        name: str = "host-0",
        volume: Volume | None = None,
        host: str = "",
        files: FileSystem | None = None,
        settings: BrokerSettings | None = None,
    ) -> None:
        """Build one.

        Args:
            volume: Where its WAL is; None makes an empty one, with a formatted WAL.
            host: By what others on the same computer know it; they share `files`.
            settings: Of its broker; None: of one that is alone.
        """
        self.name = name
        self.settings = settings or broker_settings(
            node_id=NODE_ID,
            cluster_id=CLUSTER_ID,
            port=port,
            # Clocks are wrong for seconds, and brokers live no longer.
            log_retention_check_interval_ms=300 if scenario.clock_errors and scenario.retention else 2_000,
        )
        self.files = {} if files is None else files
        self.paths = PATHS
        self.clock = WallClock(
            loop, drift=scenario.clock_drift, offset_ms=rng.choice(CLOCK_ERRORS_MS) if scenario.clock_errors else 0
        )
        self.volume = new_volume(scenario, rng, self.settings.node_id) if volume is None else volume
        self.predecessor: Machine | None = None
        self.successor: Machine | None = None
        """The computer that has its node id by now."""
        self.relieved = asyncio.Event()
        """Set when there is one."""
        self.process: Process | None = None
        self.last_digest: str | None = None
        """Of the metadata that the last broker ended with, if it ended in good order."""
        self.requests: Counter[str] = Counter()
        self._loop = loop
        self._host = host
        self._drift = 1.0 + scenario.clock_drift
        self._bucket = bucket
        self._port = port
        self._scenario = scenario
        self._rng = rng
        self._problems = problems
        self._faults = scenario.store
        self._outage = False
        self._store: MemoryObjectStore | None = None
        self._node: Node | None = None
        self._disk: SimDisk | None = None
        self._has_wal_open = False
        self._had_a_rival = False
        """A process on the computer that had the node id before lived when this one was started."""
        self._stop = asyncio.Event()
        self._ended: asyncio.Future[BaseException | None] = loop.create_future()

    @property
    def platter(self) -> Platter:
        """Its disk."""
        return self.volume.platter

    @property
    def node(self) -> Node | None:
        """The broker that serves; None while there is none."""
        return self._node if self.process is not None and self.process.alive else None

    @property
    def is_alone(self) -> bool:
        """There are no other nodes."""
        return not self.settings.controller_listeners

    @property
    def is_stopping(self) -> bool:
        """Its broker was asked to end in good order."""
        return self._stop.is_set()

    @property
    def has_outage(self) -> bool:
        """It cannot reach the bucket."""
        return self._outage

    # ---- processes

    def boot(self, name: str) -> Process:
        """Start a broker."""
        process = self.process = self.volume.opened_by = Process(name, self.name)
        self._stop = asyncio.Event()
        self._ended = self._loop.create_future()
        self._node = None
        self._has_wal_open = False
        former = None if self.predecessor is None else self.predecessor.process
        self._had_a_rival = former is not None and former.alive
        process.on_death(self._died)
        task = self._loop.spawn(process, self._serve(process, self._stop))
        task.add_done_callback(lambda task: self._returned(process, task), context=context_of(None))
        return process

    def stop(self) -> None:
        """Ask the broker to end in good order (SIGTERM)."""
        self._stop.set()

    async def wait_ended(self) -> BaseException | None:
        """Return when the process has ended, with the error that ended it, if it was one."""
        return await asyncio.shield(self._ended)

    def _returned(self, process: Process, task: asyncio.Task[None]) -> None:
        if process.alive:
            error = None if task.cancelled() else task.exception()
            if not self._ended.done():
                self._ended.set_result(error)
            process.exit()

    def _opened(self) -> None:
        self._has_wal_open = True

    def _died(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def _serve(self, process: Process, stop: asyncio.Event) -> None:
        """The process's `main`."""
        rng = random.Random(self._rng.getrandbits(64))
        inner = MemoryObjectStore(
            self._bucket,
            rng=random.Random(rng.getrandbits(64)),
            faults=self._faults,
            now_ms=WallClock(self._loop),  # the store's own clock is a good one
        )
        inner.outage = self._outage
        inner.requests = self.requests
        self._store = inner
        self._disk = self.volume.disk(process, self._loop)
        process.ports = Ports(
            store=ProcessStore(inner, process, self._loop, self._problems),
            paths=self.paths,
            host=self._host,
            files=self.files,
            boottime=lambda: self._loop.time() * self._drift,
            disk=self._disk,
            fenced_epoch=lambda: self.volume.fenced_epoch,
            on_wal_open=self._opened,
            # An operator may give less memory than before: recovery then meets more than fits. What others have written may then be
            # too large for good.
            arena_bytes=self._scenario.arena_bytes // (self._rng.choice((1, 1, 2)) if self.is_alone else 1),
            scenario=self._scenario,
        )
        async with Node(self.settings, now_ms=self.clock, rng=rng) as node:
            self._node = node
            self._depose_successors(node)
            process.inspect = partial(self._inspect, node)
            believed = metadata_digest(node)
            failure = await first_of(stop.wait(), node.wait_failed())
            self._node = process.inspect = None
        self.last_digest = believed()
        if isinstance(failure, BaseException):
            raise failure

    def _depose_successors(self, node: Node) -> None:
        """Who was still starting when its node id was given away may have registered last: then it is the other one that is deposed."""
        registered = self._bucket.state.tables.nodes.get(self.settings.node_id)
        if registered is None or registered.node_epoch != node.running.node_epoch:
            return
        successor = self.successor
        while successor is not None:
            if successor.process is not None:
                successor.process.deposed = True
            successor = successor.successor

    def _inspect(self, node: Node) -> None:
        """Between two steps of the process."""
        assert self.process is not None
        for problem in over_bounds(node, self._scenario):
            self._problems.append(f"{self.process.name}: {problem}")

    def check_replica(self) -> None:
        """Hold what the broker knows of the metadata against the log (I9)."""
        if self._node is not None and self.process is not None and self.process.alive:
            self._bucket.check_replica(self.process.name, self._node.running.broker.controller)

    def may_fail_with(self, error: BaseException) -> bool:
        """Whether a broker may give up with this on a machine whose parts fail: the next start sees to the rest."""
        if not self.is_alone:
            # Others take it for dead, and go on with its WAL, whenever it is silent for long.
            reasons = ObjectStoreError | MetadataUnavailable | OSError | TimeoutError
            return isinstance(error, reasons) or _caused_by_a_fence(error) or _caused_by_disk(error)
        if isinstance(error, NodeFenced) or (
            isinstance(error, StorageFenced | WalFenced) and _caused_by_a_fence(error)
        ):
            # The node id was given to another computer, which may be gone by now: its registration, or its fence, came late.
            return self._scenario.wal_in_bucket or self._scenario.takeover > 0
        if isinstance(error, NodeRefused):
            # Another one was registered, or recovered the WAL, while this one had only looked at it.
            return self.successor is not None or self._had_a_rival
        if isinstance(error, StorageFenced | WalFenced | WalUnavailable):
            # In a bucket, the fence of a former process may arrive late, and stop the one that came after it.
            return _caused_by_a_fence(error) if self._scenario.wal_in_bucket else _caused_by_disk(error)
        return isinstance(error, ObjectStoreError | MetadataUnavailable | OSError | TimeoutError)

    # ---- what the world does to it

    def store_faults(self, faults: Faults) -> None:
        """Change how the bucket behaves."""
        self._faults = faults
        if self._store is not None:
            self._store.faults = faults

    def outage(self, outage: bool) -> None:
        """Make the bucket unreachable, or reachable again."""
        self._outage = outage
        if self._store is not None:
            self._store.outage = outage

    def hand_over(self, name: str) -> Machine:
        """Give its node id, and what it has of the WAL, to another computer; nobody tells the process here."""
        rng = random.Random(self._rng.getrandbits(64))
        volume = Volume(self.platter)
        if not self._scenario.wal_in_bucket:
            # A process that opens the WAL after the fence was set is not fenced by it: that is the metadata's to do.
            if self._disk is not None and (rng.random() < 0.5 or not self._has_wal_open):
                self._disk.detach()
            else:
                self.volume.fenced_epoch = volume.header.wal_epoch
                volume = Volume(self.platter.copy(random.Random(rng.getrandbits(64))))
        self.successor = Machine(
            loop=self._loop,
            bucket=self._bucket,
            port=self._port,
            scenario=self._scenario,
            rng=rng,
            problems=self._problems,
            name=name,
            volume=volume,
        )
        self.successor.predecessor = self
        self.successor._faults, self.successor._outage = self._faults, self._outage
        if self.process is not None:
            self.process.deposed = True
        self.relieved.set()
        return self.successor

    async def order(self, command: Callable[[Node], Awaitable[object]]) -> bool:
        """Have the broker do something, and wait for it. False: it was refused or failed, or no broker serves that anybody would wait for."""
        node, process = self.node, self.process
        if node is None or process is None:
            return False
        outcome: asyncio.Future[bool] = self._loop.create_future()

        async def do() -> None:
            if self._node is not node:  # it stood still, and ended, before it came to this
                return
            with suppress(ControllerError, StorageError, ObjectStoreError):
                await command(node)
                end(True)

        def end(is_done: bool) -> None:
            if not outcome.done():
                outcome.set_result(is_done)

        process.on_death(lambda: end(False))
        task = self._loop.spawn(process, do())
        task.add_done_callback(lambda task: end(False), context=context_of(None))
        await first_of(asyncio.shield(outcome), self.relieved.wait())
        return outcome.done() and outcome.result()

    # ---- what came of it

    def objects_written(self) -> int:
        """PUTs of data objects."""
        return self.requests["put"]

    def wal_bytes_written(self) -> int:
        """Bytes written to the ring and its headers."""
        return self.platter.written_bytes


async def first_of(*coroutines: Coroutine[Any, Any, object]) -> object:
    """What the first of them returns; the others are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()


def new_volume(scenario: Scenario, rng: random.Random, node_id: int) -> Volume:
    """One with a formatted WAL of a node."""
    size_bytes = RING_START_BYTES + scenario.wal_capacity_bytes
    platter = Platter(size_bytes, random.Random(rng.getrandbits(64)), scenario.disk)
    header = WalHeader(
        wal_id=f"{rng.getrandbits(128):032x}",
        cluster_id=CLUSTER_ID,
        node_id=node_id,
        capacity_bytes=scenario.wal_capacity_bytes,
    )
    image = initial_image(header)
    platter.content[: len(image)] = image
    return Volume(platter)


def _caused_by_a_fence(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, WalFenced | NodeFenced):
        error = error.__cause__
    return error is not None and (error.__cause__ is None or isinstance(error, TakenForDead))


def _caused_by_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__
    return False
