"""The simulation of a cluster: three brokers that recover each other's WALs, hand partitions over, and doubt each other.

Theory of operation. The same world as for one node (`simulation`), and the real code among nodes as well: the controllers' elections and long polls over simulated
connections (`links`), signs of life, suspicion and death, leases, failover, handover, balancing. Nodes are killed and stay away, stand still and wake, are
cut off from the bucket or from each other, are stopped in order, drained, and come back. A volume whose node stays away is attached to another computer,
as by an orchestrator.

Clients find leaders by Metadata and by what refusals name (`router`). With leases no answer may be stale, whoever gives it: high watermarks and latest
offsets never go back, over all clients (I3), and a broker that was deposed acknowledges nothing and calls no sequence wrong (I4, I11).

Then all faults end; some node may stay away for good. Within a bounded time every partition is led by a living node, a node can be drained, clients finish;
then all brokers are stopped and started one after the other, and everything is read.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from broker.node import Node
from controller.lease import Lease
from controller.nodes import DrainNode
from controller.records import NodeDead
from controller.tables import NodeStatus, StreamState, StreamStatus
from s3stream.metadata import StreamId
from tests.sim.admin import create_topic
from tests.sim.cluster_scenario import ClusterScenario, WalsAre, draw_cluster
from tests.sim.ends import Ends
from tests.sim.loop import Process, VirtualLoop
from tests.sim.machine import CLUSTER_ID, Machine, new_volume
from tests.sim.node import broker_settings
from tests.sim.reader import Reader
from tests.sim.run import FINISHED_WITHIN_S, PROBLEMS_ENOUGH, Outcome, Simulation, reads_were_wrong, run
from tests.sim.volumes import FileSystem
from tests.sim.world import Topic

__all__ = ["simulate_cluster"]

_PORT = 9092
_CONTROLLER_PORT = 9192
_WALS = Path("/wal")
_VOLUMES = Path("/volumes")
"""Where computers have the volumes of other nodes."""
_LED_WITHIN_S = 60.0
"""Virtual time after which every partition is led again, on a healthy system. A WAL that was not reached is looked for again and again."""
_SETTLED_AFTER_S = 90.0
"""Virtual time after which nothing unreferenced is left in the bucket."""
_STARTS_AFTER_HEALING = 5
"""A broker that cannot start on a healthy machine in so many attempts never will."""
_RECOVERY_IS_TRIED_AGAIN = ("not to be had here", "did not answer", "cannot be recovered here now")
"""What a node says of a WAL that it could not recover, through no fault of its own. That a WAL is damaged is not among it: no disk here loses anything."""


def simulate_cluster(
    seed: int, *, scenario: ClusterScenario | None = None, problems_enough: int = PROBLEMS_ENOUGH
) -> Outcome:
    """Run the simulation of a seed; give up when it has so many problems."""
    return run(lambda loop: _Cluster(loop, scenario or draw_cluster(seed), problems_enough))


class _Cluster(Simulation):
    def __init__(self, loop: VirtualLoop, scenario: ClusterScenario, problems_enough: int) -> None:
        nodes = range(1, scenario.nodes + 1)
        super().__init__(loop, scenario.base, problems_enough, ports=[_PORT + node_id for node_id in nodes])
        self.cluster = scenario
        self.network.request_timeout_s = scenario.request_timeout_s
        self.bucket.on_dead = self._died
        threads = self._rng("threads")
        loop.thread_s = lambda: threads.expovariate(1 / 0.001)
        shared: FileSystem = {}
        self.machines += [
            self._machine(node_id, shared if scenario.wals is WalsAre.ON_ONE_HOST else {}) for node_id in nodes
        ]
        self._ends = Ends(loop, scenario.base, lambda process: not self.healed)
        self._cut_off: Machine | None = None
        """It does not reach all others just now."""
        self._gone: Machine | None = None
        """It never comes back."""
        self._begun = asyncio.Event()
        """Things go wrong from then on."""
        self._away: dict[Machine, asyncio.Event] = {}
        """Nodes without a process, and what brings them back sooner."""

    def _died(self, record: NodeDead) -> None:
        """Whoever is taken for dead may answer nothing from that moment on, and knows that by its clock alone."""
        machine = self.machines[record.node_id - 1]
        if machine.node is None or machine.is_stopping:
            return
        lease = machine.node.running.broker.serving
        assert isinstance(lease, Lease)
        if lease.serves and lease._registration.node_epoch == record.node_epoch:
            self.problems.append(f"node {record.node_id} is dead, and holds a lease for {lease.remaining_s:.3f} s")

    def _machine(self, node_id: int, files: FileSystem) -> Machine:
        scenario = self.cluster
        rng = self._rng(f"machine-{node_id}")
        path = _WALS / f"node-{node_id}"
        volume = files[path] = new_volume(scenario.base, rng, node_id)
        in_bucket = scenario.wals is WalsAre.IN_BUCKET
        return Machine(
            loop=self.loop,
            bucket=self.bucket,
            port=_PORT + node_id,
            scenario=scenario.base,
            rng=rng,
            problems=self.problems,
            name=f"machine-{node_id}",
            volume=volume,
            host="host" if scenario.wals is WalsAre.ON_ONE_HOST else f"host-{node_id}",
            files=files,
            settings=broker_settings(
                node_id=node_id,
                cluster_id=CLUSTER_ID,
                port=_PORT + node_id,
                controller_listeners=f"CONTROLLER://localhost:{_CONTROLLER_PORT + node_id}",
                broker_session_timeout_ms=scenario.session_timeout_ms,
                broker_heartbeat_interval_ms=scenario.session_timeout_ms // 4,
                broker_lease_ms=scenario.lease_ms,
                shutdown_timeout_ms=5_000,
                wal_uri="objects+mem://wal" if in_bucket else path.as_uri(),
                wal_recovery_directories=str(_VOLUMES) if scenario.wals is WalsAre.ON_VOLUMES else "",
            ),
        )

    def forgives(self, record: logging.LogRecord) -> bool:
        """See Simulation."""
        if record.name == "tidelog.failover":
            return any(reason in record.getMessage() for reason in _RECOVERY_IS_TRIED_AGAIN)
        return reads_were_wrong(record, self.scenario)

    # ---- the course of things

    async def _course(self) -> None:
        if self.cluster.rough_start:
            self._begun.set()
        keepers = [asyncio.ensure_future(self._keep(machine)) for machine in self.machines]
        clients = asyncio.ensure_future(self._clients())
        await self._begun.wait()
        weather = asyncio.gather(
            self._weather(),
            self._cuts(),
            self._operator(),
            *(self._suspend(machine) for machine in self.machines),
            *(self._lose_store(machine) for machine in self.machines),
        )
        await asyncio.sleep(self.scenario.duration_s)
        weather.cancel()
        await asyncio.gather(weather, return_exceptions=True)
        if self.cluster.away_for_good:
            await self._lose_one()
        self._heal()
        try:
            if not await self._until(self._all_are_led, _LED_WITHIN_S):
                self.problems += self._not_led()
                return
            async with asyncio.timeout(FINISHED_WITHIN_S):
                await clients
        except TimeoutError:
            self.problems.append(f"clients did not come to an end within {FINISHED_WITHIN_S} s of a healthy system")
            return
        await self._drain_one()
        if self.cluster.settles:
            await asyncio.sleep(_SETTLED_AFTER_S)
        await self._restart_all()
        await self._read_everything()
        here = [machine for machine in self.machines if machine.node is not None]
        await self._stop(here)
        for keeper in keepers:
            keeper.cancel()
        for outcome in await asyncio.gather(*keepers, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        # Nobody trims the WAL of a node that is away.
        everything = self.cluster.settles and len(here) == len(self.machines)
        await self._inspect(last_digest=None, wals=len(here) if everything else None)

    def outcome(self) -> Outcome:
        """See Simulation."""
        counts = self.bucket.counts
        self.stats["deaths"] = counts["NodeDead"]
        self.stats["recoveries"] = counts["StreamsRecovering"]
        self.stats["reassignments"] = counts["StreamsReassigned"]
        self.stats["leaders"] = counts["LeaderChanged"]
        return super().outcome()

    def _heal(self) -> None:
        """See Simulation. Who is away comes back, unless it is away for good."""
        super()._heal()
        self.network.links.mend()
        for machine in self.machines:
            if (process := machine.process) is not None:
                process.spare()
                if process.suspended:
                    process.resume(self.loop)
        if not self.cluster.away_for_good or len(self._away) == len(self.machines):
            for back in self._away.values():
                back.set()
        elif self.cluster.wals is WalsAre.ON_VOLUMES:
            here = [machine for machine in self.machines if machine not in self._away]
            for machine in self._away:
                self._attach(machine, self._rng("volumes").choice(here))

    async def _lose_one(self) -> None:
        """If all nodes are there, one dies now."""
        living = [machine for machine in self.machines if machine.node is not None]
        if len(living) == len(self.machines):
            self._gone = self._rng("gone").choice(living)
            assert self._gone.process is not None
            self._gone.process.kill()
            await asyncio.sleep(0.1)

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something holds; False: it does not in time."""
        until_s = self.loop.time() + timeout_s
        while not holds():
            if self.loop.time() >= until_s:
                return False
            await asyncio.sleep(0.1)
        return True

    # ---- who leads what

    def _living(self) -> dict[int, Machine]:
        return {machine.settings.node_id: machine for machine in self.machines if machine.node is not None}

    def _is_led(self, stream: StreamState) -> bool:
        machine = self._living().get(stream.node_id)
        tables = self.bucket.state.tables
        return (
            machine is not None
            and stream.status is StreamStatus.OPEN
            and stream.target_node_id == -1
            and tables.node_status(stream.node_id) is NodeStatus.ALIVE
            and tables.nodes[stream.node_id].wal_id == stream.wal_id
        )

    def _all_are_led(self) -> bool:
        streams = self.bucket.state.tables.streams
        return bool(streams) and all(map(self._is_led, streams.values()))

    def _not_led(self) -> Iterator[str]:
        for stream in self.bucket.state.tables.streams.values():
            if not self._is_led(stream):
                yield (
                    f"partition {stream.partition} is not led {_LED_WITHIN_S} s after all faults ended: it is {stream.status.name} "
                    f"on node {stream.node_id}, to go to {stream.target_node_id}; living: {sorted(self._living())}"
                )

    # ---- the brokers' lives

    async def _keep(self, machine: Machine) -> None:
        """Start a node's process again and again, as whoever supervises it does."""
        rng = self._rng(f"keeper-{machine.name}")
        failed_starts = 0
        boots = 0
        while True:
            if self.cluster.wals is WalsAre.ON_VOLUMES:
                self._attach(machine, machine)
            boots += 1
            process = machine.boot(f"{machine.name}-{boots}")
            fate = asyncio.ensure_future(self._meet_fate(machine, process, rng))
            error = await machine.wait_ended()
            fate.cancel()
            self._ends.ended(process)
            if error is None:
                self.stats["stops" if process.exited else "crashes"] += 1
                failed_starts = 0
            else:
                self.stats[type(error).__name__] += 1
                failed_starts = failed_starts + 1 if self.healed else 0
                if not machine.may_fail_with(error):
                    self.problems.append(f"{process.name} failed: {type(error).__name__}: {error}")
                    failed_starts += 1
                if failed_starts >= _STARTS_AFTER_HEALING:
                    raise AssertionError(f"{machine.name} cannot start any more: {error!r}")
            if not process.exited and rng.random() < self.scenario.power_loss:
                machine.platter.power_loss()
            if self.healed or error is not None:
                await asyncio.sleep(self.scenario.restart_delay_s)
            else:
                await self._stay_away(machine, rng)

    async def _meet_fate(self, machine: Machine, process: Process, rng: random.Random) -> None:
        await self._begun.wait()
        while not self._may_go_wrong(machine):
            await asyncio.sleep(0.5)
        if not self.healed:
            self._ends.plan(machine, process, rng)

    def _may_go_wrong(self, machine: Machine) -> bool:
        """Where not all goes wrong at once, the others serve while one does not."""
        return self.cluster.all_at_once or all(
            self._is_itself(other) for other in self.machines if other is not machine
        )

    def _is_itself(self, machine: Machine) -> bool:
        process = machine.process
        return (
            machine.node is not None
            and process is not None
            and not process.suspended
            and not machine.has_outage
            and machine is not self._cut_off
        )

    async def _stay_away(self, machine: Machine, rng: random.Random) -> None:
        away_s = self.scenario.restart_delay_s
        if machine is self._gone:
            away_s = math.inf
        elif rng.random() < self.cluster.stay_away:
            away_s = self.cluster.death_s * rng.uniform(1.0, 3.0)
        back = self._away[machine] = asyncio.Event()
        try:
            if away_s > self.cluster.death_s and self.cluster.wals is WalsAre.ON_VOLUMES:
                await asyncio.sleep(rng.uniform(0.0, self.cluster.death_s))
                others = [other for other in self.machines if other is not machine and other not in self._away]
                self._attach(machine, rng.choice(others or self.machines))
            async with asyncio.timeout(None if math.isinf(away_s) else away_s):
                await back.wait()
        except TimeoutError:
            if self.healed and self.cluster.away_for_good and len(self._away) < len(self.machines):
                await back.wait()
        finally:
            del self._away[machine]

    def _attach(self, owner: Machine, to: Machine) -> None:
        """Attach a node's volume to a computer, whoever has it."""
        name = f"node-{owner.settings.node_id}"
        at = (_WALS if to is owner else _VOLUMES) / name
        if to.files.get(at) is owner.volume:
            return
        owner.volume.detach()
        for machine in self.machines:
            for path in [path for path, volume in machine.files.items() if volume is owner.volume]:
                del machine.files[path]
        to.files[at] = owner.volume

    async def _stop(self, machines: list[Machine]) -> None:
        for machine in machines:
            machine.stop()
        await asyncio.gather(*(machine.wait_ended() for machine in machines))

    async def _restart_all(self) -> None:
        """One after the other, so that partitions have somewhere to go."""
        for machine in [machine for machine in self.machines if machine.node is not None]:
            await self._stop([machine])
            if not await self._until(self._all_are_led, _LED_WITHIN_S):
                self.problems += self._not_led()

    # ---- what the world does

    async def _weather(self) -> None:
        """Outages of the bucket for all."""
        rng = self._rng("weather")
        while True:
            await asyncio.sleep(1.0)
            if rng.random() < self.scenario.outage:
                for machine in self.machines:
                    machine.outage(True)
                await asyncio.sleep(self.scenario.outage_s)
                for machine in self.machines:
                    machine.outage(False)
            for machine in self.machines:
                machine.check_replica()

    async def _lose_store(self, machine: Machine) -> None:
        """Outages for one node."""
        rng = self._rng(f"store-{machine.name}")
        while True:
            await asyncio.sleep(1.0)
            if rng.random() < self.cluster.store_cut and self._may_go_wrong(machine):
                self.stats["cut off from the bucket"] += 1
                machine.outage(True)
                await asyncio.sleep(rng.uniform(0.5, 2.0) * self.cluster.death_s)
                machine.outage(False)

    async def _cuts(self) -> None:
        """Cut two computers off from each other, or one from all others; at times from the bucket as well."""
        rng = self._rng("cuts")
        links = self.network.links
        while True:
            await asyncio.sleep(1.0)
            one, other, third = rng.sample(self.machines, 3)
            if rng.random() >= self.cluster.cut or not self._is_itself(one) or not self._may_go_wrong(one):
                continue
            self.stats["cuts"] += 1
            self._cut_off = one
            links.cut(one.name, other.name)
            if rng.random() < 0.7:
                links.cut(one.name, third.name)
                if rng.random() < 0.7:
                    one.outage(True)  # it serves clients on, and knows nothing of the others
            await asyncio.sleep(self.cluster.cut_s * rng.uniform(0.7, 1.3))
            self._cut_off = None
            links.mend()
            one.outage(False)

    async def _suspend(self, machine: Machine) -> None:
        """Let a broker stand still at any await, and go on later as if nothing had been."""
        rng = self._rng(f"suspend-{machine.name}")
        while True:
            await asyncio.sleep(1.0)
            process = machine.process
            if rng.random() >= self.scenario.suspend or not self._may_go_wrong(machine):
                continue
            if process is not None and process.alive:
                process.suspend_after(rng.randint(0, 60))
                await asyncio.sleep(rng.choice((0.1, 0.5, 2.0, 2.0)) * self.cluster.death_s * rng.uniform(0.5, 1.0))
                if process.suspended:
                    self.stats["suspensions"] += 1
                    process.resume(self.loop)

    async def _operator(self) -> None:
        """Have partitions moved, drain nodes, and take that back."""
        rng = self._rng("operator")
        while True:
            await asyncio.sleep(1.0)
            living = self._living()
            if rng.random() >= self.cluster.move or not living:
                continue
            machine = rng.choice([*living.values()])
            choice = rng.random()
            node_id = rng.randint(1, self.cluster.nodes)
            if choice < 0.6:
                streams = sorted(self.bucket.state.tables.streams)
                chosen = rng.sample(streams, rng.randint(0, len(streams)))
                targets = {stream_id: rng.choice([*living]) for stream_id in chosen}
                await machine.order(partial(_reassign, targets=targets))
            else:
                await machine.order(partial(_drain, node_id=node_id, is_drained=choice < 0.8))
            self.stats["operations"] += 1

    async def _drain_one(self) -> None:
        """On a healthy system a drained node soon leads nothing, and all is led by others."""
        living = self._living()
        if len(living) < 2:
            return
        rng = self._rng("drain")
        node_id, machine = rng.choice([*living.items()])

        def is_rid() -> bool:
            streams = self.bucket.state.tables.streams.values()
            return self._all_are_led() and all(stream.node_id != node_id for stream in streams)

        for other in range(1, self.cluster.nodes + 1):
            await machine.order(partial(_drain, node_id=other, is_drained=False))
        if not await machine.order(partial(_drain, node_id=node_id, is_drained=True)):
            self.problems.append(f"node {node_id} cannot be drained on a healthy system")
        if not await self._until(is_rid, _LED_WITHIN_S):
            self.problems.append(f"node {node_id} still leads {_LED_WITHIN_S} s after it was drained")
        await machine.order(partial(_drain, node_id=node_id, is_drained=False))

    # ---- clients

    async def _clients(self) -> None:
        scenario = self.scenario
        topic = Topic(name="steady", incarnation=0, partitions=scenario.partitions)
        await create_topic(self.world, topic)
        self.topics.append(topic)
        self._begun.set()
        async with asyncio.TaskGroup() as group:
            for partition in range(topic.partitions):
                for index in range(scenario.idempotent_producers + scenario.plain_producers):
                    idempotent = index < scenario.idempotent_producers
                    group.create_task(self._producer(topic, index, idempotent=idempotent, partition=partition).run())
                rng = self._rng(f"reader-{partition}")
                group.create_task(Reader(self.world, topic, partition, f"tail-{partition}", rng, slow=False).follow())
                group.create_task(
                    Reader(self.world, topic, partition, f"scan-{partition}", rng, slow=False).scan_again_and_again()
                )


async def _reassign(node: Node, *, targets: Mapping[StreamId, int]) -> None:
    await node.running.broker.controller.reassign(targets)


async def _drain(node: Node, *, node_id: int, is_drained: bool) -> None:
    await node.running.broker.controller.submit(DrainNode(node_id=node_id, is_drained=is_drained))
