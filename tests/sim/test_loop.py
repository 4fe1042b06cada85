"""The virtual loop: time is free, order is fixed, waiting for nothing is an error, and the dead do nothing."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.sim.loop import Deadlock, NotSimulated, Process, ProcessKilled, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.bury()
    loop.close()


def test_a_virtual_day_passes_at_once(loop: VirtualLoop) -> None:
    start_s = loop.time()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.time() - start_s == pytest.approx(86_400)


def test_timers_fire_in_order_of_their_time_and_ready_callbacks_in_order_of_their_call(loop: VirtualLoop) -> None:
    trace: list[str] = []

    async def main() -> None:
        loop.call_later(2, trace.append, "at two")
        loop.call_later(1, trace.append, "at one")
        loop.call_soon(trace.append, "soon")
        loop.call_soon(trace.append, "soon as well")
        await asyncio.sleep(3)

    loop.run_until_complete(main())
    assert trace == ["soon", "soon as well", "at one", "at two"]


def test_waiting_for_nothing_is_a_deadlock(loop: VirtualLoop) -> None:
    with pytest.raises(Deadlock):
        loop.run_until_complete(asyncio.Event().wait())


def test_a_stray_socket_is_a_deadlock(loop: VirtualLoop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        loop.call_later(1, theirs.sendall, b"ready in real time, never in virtual time")
        with pytest.raises(Deadlock):
            loop.run_until_complete(loop.sock_recv(ours, 10))
        loop.bury()


def test_a_thread_is_refused(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.to_thread(len, "x")

    with pytest.raises(NotSimulated):
        loop.run_until_complete(main())


def test_a_killed_process_runs_neither_finally_nor_timer_nor_callback(loop: VirtualLoop) -> None:
    trace: list[str] = []
    process = Process("broker")
    ports_refused: list[bool] = []

    async def child() -> None:
        try:
            await asyncio.sleep(10)
            trace.append("child went on")
        finally:
            trace.append("child cleaned up")

    async def victim() -> None:
        loop.call_later(2, trace.append, "timer")
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            trace.append("started")
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                try:
                    process.check()
                except ProcessKilled:
                    ports_refused.append(True)
                raise

    async def main() -> None:
        loop.spawn(process, victim())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(100)

    loop.run_until_complete(main())
    assert trace == ["started"]
    loop.bury()
    assert ports_refused == [True]
    assert loop.problems == []


def test_what_the_world_does_goes_on_when_its_caller_is_dead(loop: VirtualLoop) -> None:
    trace: list[str] = []
    process = Process("broker")
    process.on_death(lambda: trace.append("died"))

    async def request() -> None:
        await asyncio.sleep(2)
        trace.append("applied")

    async def victim() -> None:
        await loop.spawn_outside(request())
        trace.append("got the reply")

    async def main() -> None:
        loop.spawn(process, victim())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert trace == ["died", "applied"]


@pytest.mark.parametrize("steps", range(6))
def test_a_process_can_be_killed_at_each_of_its_callbacks(loop: VirtualLoop, steps: int) -> None:
    trace: list[int] = []
    process = Process("broker")

    async def victim() -> None:
        for number in range(6):
            trace.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        process.kill_after(steps)
        loop.spawn(process, victim())
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert trace == list(range(steps))
    assert not process.alive


def test_an_error_that_nobody_handles_is_a_problem(loop: VirtualLoop) -> None:
    async def main() -> None:
        loop.call_soon(int, "not a number")
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert len(loop.problems) == 1
    assert "not a number" in loop.problems[0]


def trace_of(seed: int) -> str:
    """Eight writers contend for one lock over a thousand virtual seconds, with seeded delays."""
    loop = VirtualLoop()
    rng = random.Random(seed)
    trace: list[tuple[float, str]] = []

    async def writer(name: str, lock: asyncio.Lock) -> None:
        while loop.time() < 2_000:
            async with lock:
                trace.append((loop.time(), name))
                await asyncio.sleep(rng.expovariate(2))
            await asyncio.sleep(rng.expovariate(1))

    async def main() -> None:
        lock = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(writer(f"writer-{number}", lock))

    loop.run_until_complete(main())
    loop.close()
    return repr(trace)


def test_a_seed_gives_one_trace_whatever_the_hash_seed() -> None:
    script = "import hashlib; from tests.sim.test_loop import trace_of; print(hashlib.sha256(trace_of(7).encode()).hexdigest())"
    traces = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": str(hash_seed), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in (1, 2)
    }
    assert len(traces) == 1
    assert trace_of(7) != trace_of(8)
