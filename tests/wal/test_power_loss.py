"""Power cuts, kills, torn and failed writes by the hundred: what was acknowledged is there, in order, and nothing made up."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from tests.wal.driving import append, open_file_wal, recover, turns
from tests.wal.memory_disk import MemoryDisk
from wal.errors import WalCorrupt, WalFenced

CAPACITY_BYTES = 64 << 10
SIZES = (0, 1, 30, 500, 1000, 4032, 4096, 9000)


@dataclass(slots=True)
class History:
    """What a user of the log did and was told, over all its crashes."""

    appended: dict[int, bytes] = field(default_factory=dict)
    """By base offset, which numbers the frames."""
    acknowledged: int = 0
    """All frames below this number were acknowledged."""
    trimmed: int = 0
    """All frames below this number may be gone."""
    next_number: int = 0


async def one_life(disk: MemoryDisk, history: History, rng: random.Random) -> MemoryDisk:
    """Recover, check, append and trim for a while, and die. Returns the disk for the next life."""
    wal = await open_file_wal(disk, arena_bytes=64 << 10)
    check(history, [(frame.base_offset, frame.payload) for frame in await recover(wal)])
    ends: dict[int, int] = {}

    def on_durable(offset: int) -> None:
        while history.acknowledged in ends and ends[history.acknowledged] <= offset:
            history.acknowledged += 1

    wal.set_listeners(on_durable, lambda failure: None)
    disk.shuffle = True
    disk.hold = rng.random() < 0.3
    failing = rng.random() < 0.2
    disk.fail_write = lambda position: failing and rng.random() < 0.1
    trims = []
    for _ in range(rng.randrange(30)):
        if rng.random() < 0.3:
            await turns(rng.randrange(1, 4))
            if disk.hold and disk.in_flight:
                disk.complete(rng.choice(disk.in_flight))
        arena = wal._arena
        if wal.durable_offset == wal.end_offset:
            arena.release_to(arena.head)
        if rng.random() < 0.2 and wal.durable_offset in ends.values():
            number = next(number for number, end in ends.items() if end == wal.durable_offset)
            history.trimmed = number + 1
            trims.append(wal._loop.create_task(wal.trim(wal.durable_offset)))
        payload = rng.randbytes(rng.choice(SIZES))
        try:
            view = wal.reserve(len(payload))
        except WalFenced:
            assert failing
            break
        if view is None:
            continue
        wal.cancel()
        number = history.next_number
        history.next_number += 1
        history.appended[number] = payload
        ends[number] = append(wal, payload, base_offset=number, record_count=1)
    await turns(rng.randrange(4))
    for trim in trims:
        trim.cancel()
    await asyncio.gather(*trims, return_exceptions=True)
    return disk.power_loss() if rng.random() < 0.5 else disk.kill()


def check(history: History, found: list[tuple[int, bytes]]) -> None:
    numbers = [number for number, _ in found]
    assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else True, "frames in order, none left out"
    assert all(payload == history.appended[number] for number, payload in found), "no frame was changed or made up"
    first = numbers[0] if numbers else history.next_number
    last = numbers[-1] + 1 if numbers else history.acknowledged
    assert first <= history.trimmed or not numbers, f"starts at {first}, trimmed below {history.trimmed}"
    assert last >= history.acknowledged, f"ends at {last}, acknowledged below {history.acknowledged}"
    if not numbers:
        assert history.trimmed >= history.acknowledged, "everything acknowledged is gone"
    history.next_number = history.acknowledged = last  # what was recovered counts from now on


async def many_lives(seed: int, *, lies: bool = False) -> History:
    rng = random.Random(seed)
    sector_bytes = rng.choice([512, 4096])
    disk = MemoryDisk.formatted(capacity_bytes=CAPACITY_BYTES, rng=rng, sector_bytes=sector_bytes)
    history = History()
    for _ in range(rng.randrange(2, 8)):
        disk.lies_about_durability = lies
        disk = await one_life(disk, history, rng)
    return history


@pytest.mark.parametrize("group", range(10))
async def test_what_was_acknowledged_survives_every_crash(group: int) -> None:
    acknowledged = 0
    for seed in range(group * 100, group * 100 + 100):
        try:
            acknowledged += (await many_lives(seed)).acknowledged
        except BaseException as failure:
            failure.add_note(f"seed {seed}")
            raise
    assert acknowledged > 100, "the test did something"


async def test_a_disk_that_lies_about_durability_is_found_out() -> None:
    """The check above is able to fail: it does within a few seeds when an O_DSYNC write is only in the cache."""
    found = 0
    for seed in range(20):
        try:
            await many_lives(seed, lies=True)
        except (AssertionError, WalCorrupt):
            found += 1
    assert found > 10
