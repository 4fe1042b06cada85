"""The simulated disk keeps what it announced, and nothing else can be relied on."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.sim.disk import DiskFaults, Platter, SimDisk
from tests.sim.loop import Process, ProcessKilled, VirtualLoop

SIZE_BYTES = 64 << 10
BLOCK = 4096


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.bury()
    loop.close()


def disk_of(loop: VirtualLoop, seed: int, faults: DiskFaults | None = None) -> tuple[Platter, Process, SimDisk]:
    platter = Platter(SIZE_BYTES, random.Random(seed), faults or DiskFaults())
    process = Process("broker")
    return platter, process, SimDisk(platter, process, loop)


async def until_done(loop: VirtualLoop, start: object, *args: object) -> BaseException | None:
    done = loop.create_future()
    start(*args, done.set_result)  # type: ignore[operator]
    return await done


def test_what_was_announced_survives_a_crash_and_a_power_loss(loop: VirtualLoop) -> None:
    platter, process, disk = disk_of(loop, seed=1)
    block = memoryview(b"a" * BLOCK)
    assert loop.run_until_complete(until_done(loop, disk.write, 0, block)) is None
    process.kill()
    platter.power_loss()
    found = bytearray(BLOCK)
    after = SimDisk(platter, Process("its successor"), loop)
    assert loop.run_until_complete(until_done(loop, after.read, 0, memoryview(found))) is None
    assert found == block


def outcomes(loop: VirtualLoop, *, sync: bool) -> set[str]:
    """How a write of eight blocks looks after a kill and then a power loss, over many seeds."""
    seen = set()
    for seed in range(100):
        platter, process, disk = disk_of(loop, seed)
        disk.write(0, memoryview(b"n" * 8 * BLOCK), lambda error: None)
        process.kill()
        visible = bytes(platter.content[: 8 * BLOCK])
        if sync:
            platter.sync()
        platter.power_loss()
        kept = bytes(platter.content[: 8 * BLOCK])
        new = visible.count(b"n")
        seen.add("all" if new == len(visible) else "none" if not new else "torn")
        if kept != visible:
            seen.add("gone after power loss")
    return seen


def test_a_write_in_flight_may_be_there_or_torn_or_not(loop: VirtualLoop) -> None:
    assert outcomes(loop, sync=False) == {"all", "none", "torn", "gone after power loss"}
    assert outcomes(loop, sync=True) == {"all", "none", "torn"}


def test_no_sector_is_ever_torn(loop: VirtualLoop) -> None:
    for seed in range(50):
        platter, process, disk = disk_of(loop, seed)
        disk.write(BLOCK, memoryview(b"n" * 2 * BLOCK), lambda error: None)
        process.kill()
        for start in range(0, 4 * BLOCK, 512):
            assert len(set(platter.content[start : start + 512])) == 1


def test_a_failed_write_says_so(loop: VirtualLoop) -> None:
    _, _, disk = disk_of(loop, 1, DiskFaults(fail=1.0))
    assert isinstance(loop.run_until_complete(until_done(loop, disk.write, 0, memoryview(b"n" * BLOCK))), OSError)


def test_memory_that_changes_under_a_write_is_noticed(loop: VirtualLoop) -> None:
    platter, _, disk = disk_of(loop, 1)
    memory = bytearray(BLOCK)

    async def main() -> None:
        done = loop.create_future()
        disk.write(0, memoryview(memory), done.set_result)
        memory[7] = 1
        await done

    loop.run_until_complete(main())
    assert platter.problems == ["memory changed under a write of 4096 bytes at 0"]


def test_the_dead_do_not_write(loop: VirtualLoop) -> None:
    platter, process, disk = disk_of(loop, 1)
    process.kill()
    with pytest.raises(ProcessKilled):
        disk.write(0, memoryview(b"n" * BLOCK), lambda error: None)
    assert not any(platter.content)
