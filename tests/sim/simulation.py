"""The simulation of one node: brokers that crash, on disks, a network and a bucket that fail, under clients that never give up.

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
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from controller.config import ControllerSettings
from tests.sim.admin import Hoarder, create_topic, delete_topic
from tests.sim.clock import WallClock
from tests.sim.ends import Ends
from tests.sim.loop import Process, VirtualLoop
from tests.sim.machine import CLOCK_ERRORS_MS, CLUSTER_ID, PATHS, Machine, first_of
from tests.sim.node import trim
from tests.sim.reader import Reader
from tests.sim.rival import Rival
from tests.sim.run import FINISHED_WITHIN_S, PROBLEMS_ENOUGH, Outcome, Simulation, reads_were_wrong, run
from tests.sim.scenario import Scenario, draw
from tests.sim.world import Topic

__all__ = ["simulate"]

PORT = 9092
_LULL = 20.0
"""Else simulations in which something stands still for hours would take as long as a hundred others."""
_SETTLED_AFTER_S = 90.0
"""Virtual time after which nothing unreferenced is left in the bucket."""
_FOR_HOURS = 0.03
"""Share of brokers that stand still which do so for hours."""
_STARTS_AFTER_HEALING = 5
"""A broker that cannot start on a healthy machine in so many attempts never will."""


def simulate(seed: int, *, scenario: Scenario | None = None, problems_enough: int = PROBLEMS_ENOUGH) -> Outcome:
    """Run the simulation of a seed; give up when it has so many problems."""
    return run(lambda loop: _OneBroker(loop, scenario or draw(seed), problems_enough))


class _OneBroker(Simulation):
    def __init__(self, loop: VirtualLoop, scenario: Scenario, problems_enough: int) -> None:
        super().__init__(loop, scenario, problems_enough, ports=(PORT,))
        self.machine = Machine(
            loop=loop,
            bucket=self.bucket,
            port=PORT,
            scenario=scenario,
            rng=self._rng("machine"),
            problems=self.problems,
        )
        """The one that has the node id."""
        self.machines.append(self.machine)
        self.rival: Rival | None = None
        self._retired: list[asyncio.Task[None]] = []
        self.asleep_until_s = 0.0
        """Until then, at least, a broker stands still, `undisturbed`: it is not killed meanwhile."""
        self.undisturbed: Process | None = None
        self._ends = Ends(
            loop,
            scenario,
            lambda process: not self.healed and self.machine.process is process is not self.undisturbed,
        )

    def forgives(self, record: logging.LogRecord) -> bool:
        """See Simulation."""
        clocks_are_wrong = self.scenario.clock_errors or self.scenario.clock_jumps
        if record.name == "tidelog.retention" and clocks_are_wrong:
            return True  # rightly it goes by none of them
        return reads_were_wrong(record, self.scenario)

    # ---- the course of things

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
            async with asyncio.timeout(FINISHED_WITHIN_S):
                await clients
        except TimeoutError:
            self.problems.append(f"clients did not come to an end within {FINISHED_WITHIN_S} s of a healthy system")
            supervisor.cancel()
            return
        await asyncio.gather(*self._retired)
        await asyncio.sleep(_SETTLED_AFTER_S)
        await self._stop_in_order()
        await self._read_everything()
        await self._stop_in_order()
        supervisor.cancel()
        for outcome in await asyncio.gather(supervisor, weather, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await self._inspect(last_digest=self.machine.last_digest)
        if self.rival is not None:
            self.problems += self.rival.broken(self.bucket.state)
        self.problems += self._kept_too_long()

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
        """See Simulation."""
        super()._heal()
        if (process := self.machine.process) is not None:
            process.spare()
            if process.suspended:
                process.resume(self.loop)

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
                self._ends.plan(machine, process, rng)
            await first_of(machine.wait_ended(), machine.relieved.wait())
            if machine.successor is not None:
                continue  # another computer goes on, see `_take_over`; what becomes of this process, see `_retire`
            error = await machine.wait_ended()
            self._ends.ended(process)
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

    async def _weather(self) -> None:
        """Outages of the bucket, and clocks that are set."""
        rng = self._rng("weather")
        while True:
            await asyncio.sleep(1.0)
            if rng.random() < self.scenario.outage:
                self.machine.outage(True)
                if (process := self.machine.process) is not None and rng.random() < 0.3:
                    # With a log full of what could not be uploaded.
                    self._ends.after(rng.uniform(0.5, 1.2) * self.scenario.outage_s, process, process.kill)
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
            offset = rng.randint(0, high_watermark)
            await self.machine.order(partial(trim, topic=topic.name, partition=partition, offset=offset))
