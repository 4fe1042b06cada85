"""Appends to the log of groups: gathered, in order, bounded."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.groups import writer as writer_module
from broker.groups.events import Row
from broker.groups.writer import Writer
from broker.partition import NO_ROOM, Partition
from protocol.errors import ErrorCode
from protocol.record_set import iter_records
from s3stream.errors import StorageFenced, StreamClosed
from s3stream.storage import OnDone

E = ErrorCode


class FakePartition:
    """Takes batches while there is room; a test says when each is durable."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(max_message_bytes=10_000)
        self.has_room = True
        self.refusal: Exception | None = None
        self.batches: list[list[bytes | None]] = []
        """The keys of each."""
        self.on_done: list[OnDone] = []

    def append_own(self, batch: bytes, record_count: int, timestamp_ms: int, on_done: OnDone) -> int:
        if self.refusal is not None:
            raise self.refusal
        if not self.has_room:
            return NO_ROOM
        keys = [record.key for record in iter_records(batch, max_output_bytes=1 << 20)]
        assert len(keys) == record_count
        self.batches.append(keys)
        self.on_done.append(on_done)
        return 0


class World:
    """A writer with what it needs."""

    def __init__(self) -> None:
        self.partition = FakePartition()
        self.ends: list[ErrorCode] = []
        self.room = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.writer = Writer(
            partition=cast(Partition, self.partition),
            on_ended=self.ends.append,
            room=self.wait_for_room,
            start_task=lambda work, name: self.tasks.append(asyncio.get_running_loop().create_task(work)),
            wall_ms=lambda: 1_000,
        )

    async def wait_for_room(self) -> None:
        await self.room.wait()

    def append(self, *keys: bytes, value: bytes = b"v") -> None:
        self.writer.append([Row(key, value) for key in keys])


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_one_turn_appends_is_one_batch() -> None:
    world = World()
    world.append(b"a", b"b")
    world.append(b"c")
    assert world.partition.batches == []
    await turns()
    world.append(b"d")
    await turns()
    assert world.partition.batches == [[b"a", b"b", b"c"], [b"d"]]
    assert world.ends == []
    world.partition.on_done[0](None)
    assert world.ends == []  # not in the WAL's callback
    await turns()
    assert world.ends == [0, 0]
    assert world.writer.records == 4


async def test_gathering_makes_no_batch_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_GATHERED_BYTES", 200)
    world = World()
    for number in range(4):
        world.append(b"%d" % number, value=bytes(50))
    await turns()
    assert world.partition.batches == [[b"0", b"1"], [b"2", b"3"]]


async def test_ends_are_told_in_order() -> None:
    world = World()
    world.append(b"a")
    await turns()
    world.append(b"too large", value=bytes(10_000))
    await turns()
    assert world.ends == []  # the first one has not ended
    world.partition.on_done[0](None)
    await turns()
    assert world.ends == [0, E.MESSAGE_TOO_LARGE]


@pytest.mark.parametrize(
    ("error", "code"),
    [(StreamClosed("moved"), E.NOT_COORDINATOR), (StorageFenced("fenced"), E.COORDINATOR_NOT_AVAILABLE)],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_refused_ends_with_an_error(error: Any, code: ErrorCode, at_once: bool) -> None:
    world = World()
    if at_once:
        world.partition.refusal = error
    world.append(b"a")
    world.append(b"b")
    await turns()
    if not at_once:
        world.partition.on_done[0](error)
        await turns()
    assert world.ends == [code, code]


async def test_what_finds_no_room_waits_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_WAITING_BYTES", 120)
    world = World()
    world.partition.has_room = False
    for key in (b"a", b"b", b"c", b"d"):  # 34 bytes each
        world.append(key)
        await turns()
    assert world.ends == []
    world.partition.has_room = True
    world.append(b"too late")
    world.room.set()
    await turns(6)
    assert world.partition.batches == [[b"a"], [b"b"], [b"c"]]
    for on_done in world.partition.on_done:
        on_done(None)
    await turns()
    assert world.ends == [0, 0, 0, E.COORDINATOR_NOT_AVAILABLE, E.COORDINATOR_NOT_AVAILABLE]
    world.append(b"e")
    await turns()
    assert world.partition.batches[-1] == [b"e"]
    assert all(task.done() for task in world.tasks)


async def test_a_snapshot_does_not_wait_for_room() -> None:
    world = World()
    world.partition.has_room = False
    assert not await world.writer.append_now([Row(b"a", b"v")])
    world.partition.has_room = True
    now = asyncio.ensure_future(world.writer.append_now([Row(b"a", b"v")]))
    await turns()
    world.partition.on_done[0](None)
    assert await now
    assert world.ends == []


async def test_closing_ends_everything() -> None:
    world = World()
    world.append(b"a")
    await turns()
    world.append(b"b")
    world.writer.close(E.NOT_COORDINATOR)
    assert world.ends == [E.NOT_COORDINATOR, E.NOT_COORDINATOR]
    world.partition.on_done[0](None)
    await turns()
    assert len(world.ends) == 2
    assert world.partition.batches == [[b"a"]]
