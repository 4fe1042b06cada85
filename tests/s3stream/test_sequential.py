"""Reading one object front to back."""

from __future__ import annotations

import random

import pytest

from s3stream import sequential
from s3stream.memory import MemoryObjectStore
from s3stream.sequential import SequentialReader

CONTENT = random.Random(4).randbytes(100_000)


class World:
    """An object and its reader."""

    def __init__(self) -> None:
        self.store = MemoryObjectStore()
        self.received = 0
        self.reader = SequentialReader(self.store, "key", buffer_bytes=1000, on_received=self.note)

    async def note(self, size: int) -> None:
        self.received += size

    def requests(self) -> tuple[int, int]:
        return self.store.requests["get_stream"], self.store.requests["get_range"]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sequential, "SKIPPED_BYTES", 500)
    world = World()
    await world.store.put("key", [CONTENT])
    return world


async def test_what_follows_comes_with_the_same_request(world: World) -> None:
    for start in range(0, 50_000, 700):
        assert await world.reader.read(start, start + 700, until=60_000) == CONTENT[start : start + 700]
    assert await world.reader.read(52_000 - 1200, 53_000, until=60_000) == CONTENT[50_800:53_000]  # a small gap
    assert world.requests() == (1, 0)
    assert world.received <= 53_000 + 1000
    await world.reader.close()


async def test_what_fits_in_the_buffer_is_an_ordinary_read(world: World) -> None:
    assert await world.reader.read(10, 20, until=900) == CONTENT[10:20]
    assert await world.reader.read(100, 900, until=900) == CONTENT[100:900]
    assert world.requests() == (0, 1)
    assert world.received == 890


async def test_going_back_or_far_ahead_or_past_what_was_asked_for_begins_anew(world: World) -> None:
    assert await world.reader.read(5000, 6000, until=9000) == CONTENT[5000:6000]
    assert await world.reader.read(5999, 6001, until=9000) == CONTENT[5999:6001]
    assert await world.reader.read(6502, 6510, until=9000) == CONTENT[6502:6510]
    assert await world.reader.read(8999, 9001, until=20_000) == CONTENT[8999:9001]
    assert world.requests() == (4, 0)
    await world.reader.close()


async def test_an_object_that_is_shorter_gives_what_it_has(world: World) -> None:
    assert await world.reader.read(99_000, 102_000, until=110_000) == CONTENT[99_000:]
    assert await world.reader.read(102_000, 102_010, until=110_000) == b""
    assert await world.reader.read(200, 210, until=0) == CONTENT[200:210]
    await world.reader.close()


@pytest.mark.parametrize("seed", range(5))
async def test_any_reads_are_of_the_bytes_asked_for(world: World, seed: int) -> None:
    rng = random.Random(seed)
    at = 0
    for _ in range(300):
        start = rng.choice([at, at + rng.randrange(600), rng.randrange(99_000)]) % 99_000
        end = start + rng.randrange(1, 3000)
        assert await world.reader.read(start, end, until=end + rng.randrange(20_000)) == CONTENT[start:end]
        at = min(end, 99_000)
        if rng.random() < 0.05:
            await world.reader.close()
    await world.reader.close()
