"""What every simulation has: a virtual-time loop, the world behind a broker's ports, what clients write down, and an end.

Always true: one seed gives one history. What is wrong is in the outcome's `problems`, whether a client, a fake, the broker's log or a checker
found it; a simulation gives up when it has enough of them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.checker.history import FinalLog, History
from tests.sim.bucket import WatchedBucket
from tests.sim.clock import WallClock
from tests.sim.disk import DiskFaults
from tests.sim.inspection import inspect_bucket
from tests.sim.loop import Deadlock, VirtualLoop
from tests.sim.machine import PATHS, Machine
from tests.sim.network import Network, NetworkFaults
from tests.sim.node import simulated_ports
from tests.sim.producer import Producer
from tests.sim.reader import read_whole
from tests.sim.scenario import HEALTHY_STORE, Scenario
from tests.sim.world import Topic, World
from wal import crashpoint

__all__ = ["FINISHED_WITHIN_S", "PROBLEMS_ENOUGH", "Outcome", "Simulation", "reads_were_wrong", "run"]

PROBLEMS_ENOUGH = 20
"""One fault can show in everything that follows it: the first ones tell it all."""
FINISHED_WITHIN_S = 600.0
"""Virtual time that clients get to finish in once everything is healed."""
_LOGGER = logging.getLogger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a simulation went."""

    seed: int
    problems: tuple[str, ...]
    """Every broken promise; empty: none."""
    stats: Mapping[str, int]
    """How often things happened, by what they are called."""
    acknowledged: int
    seen: int
    litter: int
    """Writes that landed after their key had been deleted."""
    objects: int
    """Data objects written to the bucket."""
    ring_laps: float
    virtual_s: float
    trace: str
    """Differs when anything differed."""


class _GivenUp(Exception):
    """There are problems enough."""


class Simulation:
    """What a course of things is made of; a subclass has the course."""

    def __init__(self, loop: VirtualLoop, scenario: Scenario, problems_enough: int, *, ports: Sequence[int]) -> None:
        self.loop = loop
        self._problems_enough = problems_enough
        self.scenario = scenario
        self.problems: list[str] = []
        self.network = Network(loop, self._rng("network"), scenario.network)
        loop.network = self.network
        self.bucket = WatchedBucket(PATHS, self.problems)
        self.machines: list[Machine] = []
        """All there ever were."""
        self.history = History()
        self.world = World(
            network=self.network,
            ports=ports,
            history=self.history,
            now_ms=WallClock(loop),
            problems=self.problems,
        )
        self.topics: list[Topic] = []
        """Those that are there at the end."""
        self.stats: Counter[str] = Counter()
        self.healed = False
        self._final: dict[str, FinalLog] = {}

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.scenario.seed}/{purpose}")

    async def _course(self) -> None:
        """Everything that happens."""
        raise NotImplementedError

    def forgives(self, record: logging.LogRecord) -> bool:
        """Whether a broker may log this as an error, though it did nothing wrong."""
        raise NotImplementedError

    async def run(self) -> None:
        """Everything; raises _GivenUp where it is no use to go on."""
        course = asyncio.ensure_future(self._course())
        while not course.done():
            await asyncio.wait({course}, timeout=1.0)
            if len(self.problems) + len(self.loop.problems) >= self._problems_enough:
                raise _GivenUp
        course.result()

    def outcome(self) -> Outcome:
        """What came of it."""
        problems = [*self.problems, *self.loop.problems]
        problems += map(str, self.history.check(self._final))
        return Outcome(
            seed=self.scenario.seed,
            problems=tuple(problems),
            stats=self.stats,
            acknowledged=self.history.acknowledged_count,
            seen=self.history.seen_count,
            litter=self.bucket.litter,
            objects=sum(machine.objects_written() for machine in self.machines),
            ring_laps=sum({id(m.platter): m.wal_bytes_written() for m in self.machines}.values())
            / self.scenario.wal_capacity_bytes,
            virtual_s=self.loop.time(),
            trace=f"{self.loop.time()!r} {self.bucket.writes} {self.stats} {self._final!r}",
        )

    # ---- steps of a course

    def _producer(self, topic: Topic, index: int, *, idempotent: bool, partition: int | None = None) -> Producer:
        of = "" if partition is None else f"-of-{partition}"
        name = f"{topic.name}#{topic.incarnation}-{'idempotent' if idempotent else 'plain'}-{index}{of}"
        return Producer(
            self.world,
            topic,
            name,
            self._rng(name),
            idempotent=idempotent,
            pause_s=self.scenario.pause_s,
            max_batches=self.scenario.max_batches,
            max_value_bytes=self.scenario.max_value_bytes,
            block_sized=self.scenario.block_sized,
            partition=partition,
        )

    def _heal(self) -> None:
        """All faults end, and clients send nothing new."""
        self.healed = True
        self.network.faults = NetworkFaults(stall=0.0, reset=0.0)
        for machine in self.machines:
            machine.platter.on_write = None
            machine.platter.faults = DiskFaults(stall=0.0)
            machine.store_faults(HEALTHY_STORE)
            machine.outage(False)
            machine.clock.set_wrong(0)
        crashpoint.arm(None)
        self.world.finishing = True

    async def _read_everything(self) -> None:
        """Each partition from its start to its end, for the checker."""
        try:
            async with asyncio.timeout(FINISHED_WITHIN_S):
                for topic in self.topics:
                    for partition in range(topic.partitions):
                        key = topic.key(partition)
                        self._final[key] = await read_whole(self.world, topic, partition, self._rng("final"))
        except TimeoutError:
            self.problems.append(f"the last read did not come to an end within {FINISHED_WITHIN_S} s")

    async def _inspect(self, *, last_digest: str | None, wals: int | None = 1) -> None:
        """What is left of bucket and disks."""
        self.problems += await inspect_bucket(self.bucket, PATHS, last_digest=last_digest, wals=wals)
        for platter in {id(machine.platter): machine.platter for machine in self.machines}.values():
            self.problems += platter.problems


def run(make: Callable[[VirtualLoop], Simulation]) -> Outcome:
    """Run a simulation to its end."""
    gc.disable()  # so that finalizers run at the same places in every run
    gc.freeze()  # what is there before is no garbage of this run, and a third of its time to look through
    loop = VirtualLoop()
    simulation = make(loop)
    log = _ErrorLog(simulation)
    _LOGGER.addHandler(log)
    try:
        asyncio.set_event_loop(loop)
        with simulated_ports():
            loop.run_until_complete(simulation.run())
    except _GivenUp:
        pass  # the problems say why
    except Deadlock as error:
        simulation.problems.append(f"deadlock: {error}")
    finally:
        crashpoint.arm(None)
        mute = logging.NullHandler()
        _LOGGER.addHandler(mute)  # what tasks log while they are taken apart is of no account
        _LOGGER.removeHandler(log)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that died before their first step
            loop.bury()
            asyncio.set_event_loop(None)
            loop.close()
            _LOGGER.removeHandler(mute)
            outcome = simulation.outcome()
            del simulation, log, loop
            gc.collect()
        gc.enable()
    return outcome


class _ErrorLog(logging.Handler):
    """What the broker logs as an error is its own fault, whatever becomes of it. Warnings are about the world."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(logging.ERROR)
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        if not self._simulation.forgives(record):
            self._simulation.problems.append(f"logged by {record.name}: {self.format(record)}")


def reads_were_wrong(record: logging.LogRecord, scenario: Scenario) -> bool:
    """Whether a broker rightly does not trust what it was given: wrong bytes of the same object, twice."""
    return scenario.store.flipped > 0 and (
        record.name == "tidelog.compaction" or (record.name == "tidelog.damage" and "CRC" in record.getMessage())
    )
