"""How processes of brokers end: in good order, or killed: at any time, in the middle of a write, or at a point that the code names.

Always true: what was planned for a process happens to that process or to none, and only as long as `may_end` says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.sim.loop import Process, VirtualLoop, current_process
from tests.sim.machine import Machine
from tests.sim.scenario import Scenario
from wal import crashpoint

__all__ = ["Ends"]


class Ends:
    """The plans of one simulation."""

    def __init__(self, loop: VirtualLoop, scenario: Scenario, may_end: Callable[[Process], bool]) -> None:
        self._loop = loop
        self._scenario = scenario
        self._may_end = may_end
        self._at_points: dict[Process, tuple[str, int]] = {}
        """Where a process is to die, and how many times it gets there before."""

    def plan(self, machine: Machine, process: Process, rng: random.Random) -> None:
        """Decide when and how this incarnation ends."""
        scenario = self._scenario
        machine.platter.on_write = None
        after_s = rng.expovariate(1 / scenario.crash_interval_s)
        if rng.random() < scenario.orderly_stop:
            self.after(after_s, process, machine.stop)
        elif rng.random() < scenario.kill_within_write:
            self._kill_within_write(machine, process, rng)
        elif rng.random() < 0.5:
            self._kill_at_point(process, rng)
            self.after(3 * scenario.crash_interval_s, process, process.kill)  # it may never get there
        else:
            # Not at the timer's own place in the queue, but somewhere among the callbacks that follow.
            steps = rng.randint(0, 40)
            self.after(after_s, process, lambda: process.kill_after(steps))

    def after(self, delay_s: float, process: Process, action: Callable[[], None]) -> None:
        """Do something to a process later, if it is still to end then."""

        def act() -> None:
            if process.alive and self._may_end(process):
                action()

        self._loop.call_later(delay_s, act)

    def ended(self, process: Process) -> None:
        """Nothing more is to happen to it."""
        self._at_points.pop(process, None)
        if not self._at_points:
            crashpoint.arm(None)

    def _kill_at_point(self, process: Process, rng: random.Random) -> None:
        self._at_points[process] = rng.choice(crashpoint.POINTS), rng.choice((1, 2, 5, 20))
        crashpoint.arm(self._reached)

    def _reached(self, name: str) -> None:
        process = current_process()
        if process is None or process not in self._at_points or not process.alive:
            return
        point, times = self._at_points[process]
        if name == point:
            self._at_points[process] = point, times - 1
            if times == 1:
                process.die_here()

    def _kill_within_write(self, machine: Machine, process: Process, rng: random.Random) -> None:
        """Kill while a write is under way: one of the first, or one that comes later."""
        platter = machine.platter
        skip = rng.choice((2, 4, 5, 6, 8, 20, 50, 100))

        def written() -> None:
            nonlocal skip
            skip -= 1
            if skip == 0:
                self.after(rng.uniform(0, platter.faults.mean_latency_s), process, process.kill)

        platter.on_write = written
