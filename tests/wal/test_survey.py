"""Looking at a log that may be open elsewhere: what recovery would find, no write, and no false alarm beside a writer."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.wal.driving import append_durably, open_file_wal, recover, started
from tests.wal.memory_disk import MemoryDisk
from tests.wal.test_recovery import BLOCK, at, filled
from wal.directory import WalDirectory, lock_holder, open_read_only, read_fence
from wal.disk import OnDone
from wal.errors import WalCorrupt, WalUnavailable
from wal.header import RING_START_BYTES, WalHeader, slot_position
from wal.survey import WalSurvey, frames_of


async def payloads_seen(survey: WalSurvey) -> list[bytes]:
    return [bytes(frame.payload) async for run in survey.runs() for frame in frames_of(run)]


async def test_a_survey_sees_what_recovery_would_and_writes_nothing() -> None:
    disk, ends = await filled(b"a", b"b" * 5000, b"c")
    survey = WalSurvey(disk)

    assert await payloads_seen(survey) == [b"a", b"b" * 5000, b"c"]

    assert survey.end is not None
    assert (survey.end.offset, survey.end.loss) == (ends[-1], None)
    assert disk.written == []
    assert [frame.payload for frame in await recover(await open_file_wal(disk))] == [b"a", b"b" * 5000, b"c"]


async def test_damage_in_the_middle_is_a_loss_with_its_proof() -> None:
    disk, ends = await filled(b"first", b"second", b"third", b"fourth")
    disk.damage(at(BLOCK) + 64, b"?")
    survey = WalSurvey(disk)

    assert await payloads_seen(survey) == [b"first"]

    assert survey.end is not None
    assert survey.end.offset == ends[0]
    assert "was durable" in (survey.end.loss or "")


async def test_both_copies_of_the_header_are_told_and_one_may_be_damaged() -> None:
    disk, _ = await filled(b"a")
    newest = max(filter(None, await WalSurvey(disk).headers()), key=lambda header: header.generation)
    disk.damage(slot_position(newest.generation) + 100, b"?")

    damaged = [header is None for header in await WalSurvey(disk).headers()]

    assert sorted(damaged) == [False, True]
    disk.damage(slot_position(newest.generation + 1) + 100, b"?")
    with pytest.raises(WalCorrupt, match="neither copy"):
        await payloads_seen(WalSurvey(disk))


class BesideAWriter:
    """A disk on which somebody else writes and trims before each read."""

    def __init__(self, disk: MemoryDisk, writer: Callable[[int], Awaitable[None]]) -> None:
        self._disk = disk
        self._writer = writer
        self._one_at_a_time = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.reads = 0

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    def read(self, position: int, into: memoryview, on_done: OnDone) -> None:
        async def later() -> None:
            self.reads += 1
            try:
                async with self._one_at_a_time:
                    await self._writer(self.reads)
            except Exception as error:
                on_done(error)
            else:
                self._disk.read(position, into, on_done)

        self._tasks.append(asyncio.get_running_loop().create_task(later()))


@pytest.mark.parametrize("seed", range(20))
async def test_a_writer_that_writes_and_trims_meanwhile_makes_no_false_alarm(seed: int) -> None:
    rng = random.Random(seed)
    disk = MemoryDisk.formatted(capacity_bytes=64 << 10)
    wal, _, _ = await started(disk, arena_bytes=8 << 20)
    sent = 0
    ends: list[int] = []
    all_ends: set[int] = set()

    async def write(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            size = rng.choice((10, 100, 3000, 9000))
            while wal.end_offset + size + 2 * BLOCK - wal.trim_offset > wal.capacity_bytes:
                await wal.trim(ends.pop(0))
            ends.append(await append_durably(wal, b"%06d" % sent + bytes(size), base_offset=sent, record_count=1))
            all_ends.add(ends[-1])
            sent += 1

    async def beside(reads: int) -> None:
        if reads < 60:
            await write(rng.randrange(6))

    await write(8)
    survey = WalSurvey(BesideAWriter(disk, beside))  # type: ignore[arg-type]

    seen = [frame.base_offset async for run in survey.runs() for frame in frames_of(run)]

    assert survey.end is not None
    assert survey.end.loss is None, survey.end
    assert seen == sorted(set(seen))
    assert survey.end.offset in all_ends, "it ends where the log ended at some moment"
    assert len(seen) > 8, "it follows the writer"


async def test_without_o_direct_or_a_lock_a_directory_can_be_looked_at_while_it_is_open(tmp_path: Path) -> None:
    directory = WalDirectory(tmp_path / "wal")
    directory.create(WalHeader(wal_id="00" * 16, cluster_id="tide", node_id=1, capacity_bytes=1 << 20))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in directory.path.iterdir())

    fd, size_bytes = open_read_only(directory.path)

    os.close(fd)
    assert size_bytes == RING_START_BYTES + (1 << 20)
    assert read_fence(directory.path) == -1
    assert lock_holder(directory.path) in (os.getpid(), None)  # None: a file system whose locks are listed otherwise
    assert sorted((path.name, path.stat().st_mtime_ns) for path in directory.path.iterdir()) == before
    directory.close()
    assert lock_holder(directory.path) is None


def test_a_directory_without_a_wal_is_told_and_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(WalUnavailable, match="there is no WAL in"):
        open_read_only(tmp_path)
    assert read_fence(tmp_path) is None
    assert lock_holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
