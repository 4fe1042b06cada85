"""One simulation: brokers that crash, on disks, a network and a bucket that fail, under clients that never give up.

Theory of operation. Everything runs on one virtual-time loop. For a while things go wrong as the scenario says. Then all
faults end, the clients bring to an end what they began, the broker is stopped in good order and started again with empty
caches, and everything is read from objects. What clients sent, were promised and saw is held against that by
`tests.checker`; actors say at once what no single answer may look like; metadata, bucket and disk are inspected at the end.

One broker serves at a time, on the computer that has the node id. Where another one is given it, the former process may live on: sound,
standing still, or still starting; see `_take_over` and `_retire`.

Checked: I1, I2, I3, I7, I11 by the clients' history · I4 and I6 by what a violation of them loses, I4 also by leader epochs · I5, I8
and I9 on each write and deletion (`tests.sim.bucket`), and on the bucket at the end · I10 in every answer · I13 between any two steps
(`tests.sim.bounds`) · retention by what must stay, and by what must go once clocks are right.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from controller.config import ControllerSettings
from tests.checker.history import FinalLog, History
from tests.sim.actors import Hoarder, Producer, Reader, Topic, World, create_topic, delete_topic, read_whole
from tests.sim.bucket import WatchedBucket
from tests.sim.clock import WallClock
from tests.sim.disk import DiskFaults
from tests.sim.inspection import inspect_bucket
from tests.sim.loop import Deadlock, Process, VirtualLoop, current_process
from tests.sim.machine import CLOCK_ERRORS_MS, CLUSTER_ID, PATHS, Machine, first_of
from tests.sim.network import Network, NetworkFaults
from tests.sim.node import simulated_ports
from tests.sim.rival import Rival
from tests.sim.scenario import HEALTHY_STORE, Scenario, draw
from wal import crashpoint

__all__ = ["Outcome", "simulate"]

PORT = 9092
_LOGGER = logging.getLogger()
_FINISHED_WITHIN_S = 600.0
"""Virtual time that clients get to finish in once everything is healed."""
_LULL = 20.0
"""Else simulations in which something stands still for hours would take as long as a hundred others."""
_SETTLED_AFTER_S = 90.0
"""Virtual time after which nothing unreferenced is left in the bucket."""
_PROBLEMS_ENOUGH = 20
"""One fault can show in everything that follows it: the first ones tell it all."""
_FOR_HOURS = 0.03
"""Share of brokers that stand still which do so for hours."""
_STARTS_AFTER_HEALING = 5
"""A broker that cannot start on a healthy machine in so many attempts never will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a simulation went."""

    seed: int
    problems: tuple[str, ...]
    """Every broken promise; empty: none."""
    crashes: int
    stops: int
    suspensions: int
    """Times that a broker stood still and went on."""
    takeovers: int
    """Times that another computer was given the node id of one whose process lived."""
    litter: int
    """Writes that landed after their key had been deleted."""
    acknowledged: int
    seen: int
    objects: int
    """Data objects written to the bucket."""
    ring_laps: float
    virtual_s: float
    trace: str
    """Differs when anything differed."""


def simulate(seed: int, *, scenario: Scenario | None = None, problems_enough: int = _PROBLEMS_ENOUGH) -> Outcome:
    """Run the simulation of a seed; give up when it has so many problems."""
    gc.disable()  # so that finalizers run at the same places in every run
    gc.freeze()  # what is there before is no garbage of this run, and a third of its time to look through
    loop = VirtualLoop()
    simulation = _Simulation(loop, scenario or draw(seed), problems_enough)
    log = _ErrorLog(
        simulation.problems,
        reads_may_be_wrong=simulation.scenario.store.flipped > 0,
        clocks_are_wrong=simulation.scenario.clock_errors or simulation.scenario.clock_jumps,
    )
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
        _LOGGER.removeHandler(log)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that died before their first step
            loop.bury()
            asyncio.set_event_loop(None)
            loop.close()
            outcome = simulation.outcome()
            del simulation, loop
            gc.collect()
        gc.enable()
    return outcome


class _GivenUp(Exception):
    """There are problems enough."""


class _ErrorLog(logging.Handler):
    """What the broker logs as an error is its own fault, whatever becomes of it. Warnings are about the world."""

    def __init__(self, problems: list[str], *, reads_may_be_wrong: bool, clocks_are_wrong: bool) -> None:
        super().__init__(logging.ERROR)
        self._clocks_are_wrong = clocks_are_wrong
        self._problems = problems
        self._reads_may_be_wrong = reads_may_be_wrong

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "tidelog.retention" and self._clocks_are_wrong:
            return  # rightly it goes by none of them
        if self._reads_may_be_wrong and (
            record.name == "tidelog.compaction" or (record.name == "tidelog.damage" and "CRC" in record.getMessage())
        ):
            return  # it was given wrong bytes of the same object twice: rightly it does not trust them
        self._problems.append(f"logged by {record.name}: {self.format(record)}")


class _Simulation:
    def __init__(self, loop: VirtualLoop, scenario: Scenario, problems_enough: int) -> None:
        self.loop = loop
        self._problems_enough = problems_enough
        self.scenario = scenario
        self.problems: list[str] = []
        self.rng = random.Random(f"{scenario.seed}/world")
        self.network = Network(loop, self._rng("network"), scenario.network)
        loop.network = self.network
        self.bucket = WatchedBucket(PATHS, self.problems)
        self.machine = Machine(
            loop=loop,
            bucket=self.bucket,
            port=PORT,
            scenario=scenario,
            rng=self._rng("machine"),
            problems=self.problems,
        )
        self.machines = [self.machine]
        """All there ever were; `machine` is the one that has the node id."""
        self.rival: Rival | None = None
        self._retired: list[asyncio.Task[None]] = []
        self.history = History()
        self.world = World(
            network=self.network,
            port=PORT,
            history=self.history,
            now_ms=WallClock(loop),
            problems=self.problems,
        )
        self.topics: list[Topic] = []
        self.stats: Counter[str] = Counter()
        self.healed = False
        self.asleep_until_s = 0.0
        """Until then, at least, a broker stands still, `undisturbed`: it is not killed meanwhile."""
        self.undisturbed: Process | None = None
        self._final: dict[str, FinalLog] = {}

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.scenario.seed}/{purpose}")

    def outcome(self) -> Outcome:
        problems = [*self.problems, *self.loop.problems]
        problems += map(str, self.history.check(self._final))
        return Outcome(
            seed=self.scenario.seed,
            problems=tuple(problems),
            crashes=self.stats["crashes"],
            stops=self.stats["stops"],
            acknowledged=self.history.acknowledged_count,
            seen=self.history.seen_count,
            suspensions=self.stats["suspensions"],
            takeovers=self.stats["takeovers"],
            litter=self.bucket.litter,
            objects=sum(machine.objects_written() for machine in self.machines),
            ring_laps=sum({id(m.platter): m.wal_bytes_written() for m in self.machines}.values())
            / self.scenario.wal_capacity_bytes,
            virtual_s=self.loop.time(),
            trace=f"{self.loop.time()!r} {self.bucket.writes} {self.stats} {self._final!r}",
        )

    # ---- the course of things

    async def run(self) -> None:
        """Everything; raises _GivenUp where it is no use to go on."""
        course = asyncio.ensure_future(self._course())
        while not course.done():
            await asyncio.wait({course}, timeout=1.0)
            if len(self.problems) + len(self.loop.problems) >= self._problems_enough:
                raise _GivenUp
        course.result()

    async def _course(self) -> None:
        supervisor = asyncio.ensure_future(self._supervise())
        weather = asyncio.gather(self._weather(), self._suspend(), self._take_over(), self._fight_for_office())
        clients = asyncio.ensure_future(self._clients())
        await asyncio.sleep(self.scenario.duration_s)
        self.world.lull = _LULL
        await asyncio.sleep(max(0.0, self.asleep_until_s - self.loop.time()))
        self.world.lull = 1.0
        weather.cancel()
        self._heal()
        try:
            async with asyncio.timeout(_FINISHED_WITHIN_S):
                await clients
        except TimeoutError:
            self.problems.append(f"clients did not come to an end within {_FINISHED_WITHIN_S} s of a healthy system")
            supervisor.cancel()
            return
        await asyncio.gather(*self._retired)
        await asyncio.sleep(_SETTLED_AFTER_S)
        await self._stop_in_order()
        try:
            async with asyncio.timeout(_FINISHED_WITHIN_S):
                for topic in self.topics:
                    for partition in range(topic.partitions):
                        key = topic.key(partition)
                        self._final[key] = await read_whole(self.world, topic, partition, self._rng("final"))
        except TimeoutError:
            self.problems.append(f"the last read did not come to an end within {_FINISHED_WITHIN_S} s")
        await self._stop_in_order()
        supervisor.cancel()
        for outcome in await asyncio.gather(supervisor, weather, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        self.problems += await inspect_bucket(self.bucket, self.machine.paths, last_digest=self.machine.last_digest)
        if self.rival is not None:
            self.problems += self.rival.broken(self.bucket.state)
        self.problems += self._kept_too_long()
        for platter in {id(machine.platter): machine.platter for machine in self.machines}.values():
            self.problems += platter.problems

    def _kept_too_long(self) -> Iterator[str]:
        """Ranges that retention should have taken once the clocks were right."""
        tables = self.bucket.state.tables
        for topic in self.topics:
            if topic.retention_ms is None:
                continue
            oldest_ms = self.world.now_ms() - topic.retention_ms
            for stream_id in tables.topics[tables.topic_ids[topic.name]].stream_ids:
                ranges = tables.streams[stream_id].ranges
                if ranges and ranges[0].max_timestamp_ms < oldest_ms:
                    yield f"{topic.name}: offsets up to {ranges[0].end_offset} are too old, and still there"

    def _heal(self) -> None:
        self.healed = True
        self.network.faults = NetworkFaults(stall=0.0, reset=0.0)
        for machine in self.machines:
            machine.platter.on_write = None
            machine.platter.faults = DiskFaults(stall=0.0)
            machine.store_faults(HEALTHY_STORE)
            machine.outage(False)
            machine.clock.set_wrong(0)
        crashpoint.arm(None)
        if (process := self.machine.process) is not None:
            process.spare()
            if process.suspended:
                process.resume(self.loop)
        self.world.finishing = True

    async def _stop_in_order(self) -> None:
        """Stop the broker; the supervisor starts it again."""
        self.machine.stop()
        await self.machine.wait_ended()

    # ---- the broker's life

    async def _supervise(self) -> None:
        rng = self._rng("supervisor")
        failed_starts = 0
        while True:
            machine = self.machine
            process = machine.boot(f"broker-{self.stats['boots']}")
            self.stats["boots"] += 1
            if not self.healed and self.loop.time() >= self.asleep_until_s:
                self._plan_end(process, rng)
            await first_of(machine.wait_ended(), machine.relieved.wait())
            if machine.successor is not None:
                continue  # another computer goes on, see `_take_over`; what becomes of this process, see `_retire`
            error = await machine.wait_ended()
            crashpoint.arm(None)
            if error is None:
                self.stats["stops" if process.exited else "crashes"] += 1
                failed_starts = 0
            else:
                self.stats[type(error).__name__] += 1
                failed_starts = failed_starts + 1 if self.healed else 0
                if not self._may_fail(machine, process, error):
                    failed_starts += 1
                if failed_starts >= _STARTS_AFTER_HEALING:
                    raise AssertionError(f"the broker cannot start any more: {error!r}")
            if not process.exited and rng.random() < self.scenario.power_loss:
                machine.platter.power_loss()
            await asyncio.sleep(self.scenario.restart_delay_s)

    def _may_fail(self, machine: Machine, process: Process, error: BaseException) -> bool:
        allowed = machine.may_fail_with(error)
        if not allowed:
            self.problems.append(f"{process.name} failed: {type(error).__name__}: {error}")
        return allowed

    def _plan_end(self, process: Process, rng: random.Random) -> None:
        """Decide when and how this incarnation ends."""
        scenario = self.scenario
        self.machine.platter.on_write = None
        after_s = rng.expovariate(1 / scenario.crash_interval_s)
        if rng.random() < scenario.orderly_stop:
            self._after(after_s, process, self.machine.stop)
        elif rng.random() < scenario.kill_within_write:
            self._kill_within_write(process, rng)
        elif rng.random() < 0.5:
            self._kill_at_point(process, rng)
            self._after(3 * scenario.crash_interval_s, process, process.kill)  # it may never get there
        else:
            # Not at the timer's own place in the queue, but somewhere among the callbacks that follow.
            steps = rng.randint(0, 40)
            self._after(after_s, process, lambda: process.kill_after(steps))

    def _kill_at_point(self, process: Process, rng: random.Random) -> None:
        point, times = rng.choice(crashpoint.POINTS), rng.choice((1, 2, 5, 20))

        def reached(name: str) -> None:
            nonlocal times
            if name == point and process.alive and current_process() is process:
                times -= 1
                if times == 0:
                    process.die_here()

        crashpoint.arm(reached)

    def _kill_within_write(self, process: Process, rng: random.Random) -> None:
        """Kill while a write is under way: one of the first, or one that comes later."""
        platter = self.machine.platter
        skip = rng.choice((2, 4, 5, 6, 8, 20, 50, 100))

        def written() -> None:
            nonlocal skip
            skip -= 1
            if skip == 0:
                self._after(rng.uniform(0, platter.faults.mean_latency_s), process, process.kill)

        platter.on_write = written

    def _after(self, delay_s: float, process: Process, action: Callable[[], None]) -> None:
        def act() -> None:
            if process.alive and not self.healed and self.machine.process is process is not self.undisturbed:
                action()

        self.loop.call_later(delay_s, act)

    async def _weather(self) -> None:
        """Outages of the bucket, and clocks that are set."""
        rng = self._rng("weather")
        while True:
            await asyncio.sleep(1.0)
            if rng.random() < self.scenario.outage:
                self.machine.outage(True)
                if (process := self.machine.process) is not None and rng.random() < 0.3:
                    # With a log full of what could not be uploaded.
                    self._after(rng.uniform(0.5, 1.2) * self.scenario.outage_s, process, process.kill)
                await asyncio.sleep(self.scenario.outage_s)
                self.machine.outage(False)
            if self.scenario.clock_jumps and rng.random() < 0.2:
                self.machine.clock.jump(rng.choice((-5_000, -1_000, 1_000, 60_000)))
            if self.scenario.clock_errors and rng.random() < 0.2:
                self.machine.clock.set_wrong(rng.choice(CLOCK_ERRORS_MS))
            self.machine.check_replica()

    async def _suspend(self) -> None:
        """Let the broker stand still at any await, and go on later as if nothing had been."""
        rng = self._rng("suspend")
        while True:
            await asyncio.sleep(1.0)
            process = self.machine.process
            if rng.random() < self.scenario.suspend and process is not None and process.alive:
                process.suspend_after(rng.randint(0, 60))
                sleep_s = rng.choice((0.05, 1.0, 10.0)) * rng.random()
                if rng.random() < _FOR_HOURS:
                    sleep_s = rng.uniform(0.5, 2.0) * 3_600
                    self.asleep_until_s = self.loop.time() + sleep_s
                    self.undisturbed = process
                await asyncio.sleep(sleep_s)
                self._go_on(process)

    def _go_on(self, process: Process) -> None:
        if process.suspended:
            self.stats["suspensions"] += 1
            process.resume(self.loop)

    async def _take_over(self) -> None:
        """Give the node id to another computer, while a process lives that has it: sound, standing still, or still starting."""
        rng = self._rng("takeover")
        while True:
            await asyncio.sleep(1.0)
            process = self.machine.process
            if rng.random() >= self.scenario.takeover or process is None or not process.alive:
                continue
            if self.loop.time() < self.asleep_until_s and process is not self.undisturbed:
                continue  # for hours: one is enough
            if rng.random() < 0.7:
                process.suspend_after(rng.randint(0, 60))
                await asyncio.sleep(rng.random())
            if process.alive and self.machine.process is process:
                self.stats["takeovers"] += 1
                former = self.machine
                self.machine = former.hand_over(f"host-{len(self.machines)}")
                self.machines.append(self.machine)
                mean_s = 3_600 if rng.random() < _FOR_HOURS else rng.choice((1.0, 10.0, 60.0))
                self._retired.append(asyncio.ensure_future(self._retire(former, process, mean_s)))

    async def _fight_for_office(self) -> None:
        if self.scenario.rival:
            self.rival = Rival(
                loop=self.loop,
                bucket=self.bucket,
                paths=PATHS,
                settings=ControllerSettings(
                    cluster_id=CLUSTER_ID,
                    command_timeout_ms=5_000,
                    snapshot_interval_entries=self.scenario.snapshot_interval_entries,
                    retained_entries=3,
                    entry_min_age_ms=0,
                ),
                faults=lambda: self.scenario.store,
                now_ms=WallClock(self.loop),
                rng=self._rng("rival"),
                problems=self.problems,
            )
            await self.rival.run()

    async def _retire(self, machine: Machine, process: Process, mean_s: float) -> None:
        """The rest of a process's life whose node id another one has: it wakes, finds out or not, and ends at last."""
        rng = self._rng(f"retire-{machine.name}")
        await asyncio.sleep(rng.expovariate(1 / mean_s))
        self._go_on(process)
        process.spare()
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.choice((5.0, 30.0))):
                error = await machine.wait_ended()
                if error is None or self._may_fail(machine, process, error):
                    self.stats["retired by themselves"] += process.exited
        process.kill()

    # ---- clients

    async def _clients(self) -> None:
        scenario = self.scenario
        topic = Topic(name="steady", incarnation=0, partitions=scenario.partitions, may_be_trimmed=scenario.trim)
        self.topics.append(topic)
        await create_topic(self.world, topic)
        async with asyncio.TaskGroup() as group:
            start: Callable[[Coroutine[Any, Any, None]], object] = group.create_task
            for index in range(scenario.idempotent_producers + scenario.plain_producers):
                start(self._producer(topic, index, idempotent=index < scenario.idempotent_producers).run())
            for partition in range(topic.partitions):
                rng = self._rng(f"reader-{partition}")
                slow = rng.random() < 0.3
                start(Reader(self.world, topic, partition, f"tail-{partition}", rng, slow=slow).follow())
                start(Reader(self.world, topic, partition, f"scan-{partition}", rng, slow=False).scan_again_and_again())
            if scenario.churn:
                start(self._churn())
            if scenario.little_memory:
                start(Hoarder(self.world, self._rng("hoarder")).run())
            if scenario.retention:
                start(self._age())
            if scenario.trim:
                start(self._trim(topic))

    def _producer(self, topic: Topic, index: int, *, idempotent: bool) -> Producer:
        name = f"{topic.name}#{topic.incarnation}-{'idempotent' if idempotent else 'plain'}-{index}"
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
        )

    async def _churn(self) -> None:
        """Create a topic, use it, delete it, and begin again under the same name."""
        rng = self._rng("churn")
        incarnation = 0
        while not self.world.finishing:
            topic = Topic(name="churned", incarnation=incarnation, partitions=rng.randint(1, 3))
            await create_topic(self.world, topic)
            producer = asyncio.ensure_future(self._producer(topic, 0, idempotent=rng.random() < 0.7).run())
            reader = asyncio.ensure_future(
                Reader(self.world, topic, 0, f"churn-{incarnation}", self._rng("churn-reader"), slow=False).follow()
            )
            await asyncio.sleep(rng.expovariate(0.3) * self.world.lull)
            if self.world.finishing:
                # This one stays, and is read at the end.
                self.topics.append(topic)
                await asyncio.gather(producer, reader)
                return
            topic.deleted = True
            await asyncio.gather(producer, reader)  # nobody writes to the name any more
            await delete_topic(self.world, topic)
            incarnation += 1

    async def _age(self) -> None:
        """A topic whose first records are too old to be kept, and whose later ones are not."""
        topic = Topic(name="aged", incarnation=0, partitions=1, may_be_trimmed=True, retention_ms=3_600_000)
        await create_topic(self.world, topic)
        self.topics.append(topic)
        reader = Reader(self.world, topic, 0, "aged", self._rng("aged-reader"), slow=False)
        await asyncio.gather(self._producer(topic, 0, idempotent=True).run(), reader.scan_again_and_again())

    async def _trim(self, topic: Topic) -> None:
        """Raise log start offsets now and then, to what is below the high watermark by some."""
        rng = self._rng("trim")
        while not self.world.finishing:
            await asyncio.sleep(rng.expovariate(0.5) * self.world.lull)
            partition = rng.randrange(topic.partitions)
            high_watermark = self.world.high_watermarks.get(topic.key(partition), 0)
            await self.machine.trim(topic.name, partition, rng.randint(0, high_watermark))
