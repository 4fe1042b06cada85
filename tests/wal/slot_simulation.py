"""Incarnations of one WAL in a bucket that does what buckets do, at its worst, under virtual time; and what must hold of it.

One seed is one history: incarnations open, append, trim, sleep for long in the middle of requests, crash, or are still at work when the
next one takes over. What each was told (durable offsets) and what each recovered is kept, and `History.check` compares:

- what was acknowledged is in every later recovery, but for what was trimmed (I1), and so nothing past a fence was acknowledged (I4);
- what is recovered was appended there, by one incarnation after the other, without a gap (I2);
- the log starts no later than somebody trimmed it (I6).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from s3stream.memory import Bucket, Faults, MemoryObjectStore
from s3stream.wal_objects import StoreForWal
from tests.sim.loop import VirtualLoop
from tests.wal.driving import Frame, frames_of
from wal.arena import Arena
from wal.config import ObjectWalConfig
from wal.errors import WalFenced
from wal.object_wal import ObjectWal
from wal.slot import SlotKind, read_slot_header

__all__ = ["Violation", "batches_in", "simulate"]

MAX_INCARNATIONS = 5
CALM = Faults(latency_ms=5)


class Violation(AssertionError):
    """What must not happen."""


@dataclass(slots=True)
class Incarnation:
    """What one opening of the log did, and was told."""

    number: int
    wal_epoch: int = -1
    """After its recovery."""
    trim_offset: int = 0
    """Likewise."""
    recovered: list[Frame] = field(default_factory=list)
    start_offset: int = 0
    appended: dict[int, bytes] = field(default_factory=dict)
    """Payload by end offset."""
    acknowledged: int = 0
    """Exclusive; from `start_offset` on."""


@dataclass(slots=True)
class History:
    """All incarnations, and what they wanted trimmed."""

    incarnations: list[Incarnation] = field(default_factory=list)
    trim_wanted: int = 0

    def check(self) -> None:
        """Raises Violation."""
        ready = sorted((one for one in self.incarnations if one.wal_epoch >= 0), key=lambda one: one.wal_epoch)
        if len({one.wal_epoch for one in ready}) != len(ready):
            raise Violation("two incarnations have the same WAL epoch")
        truth: dict[int, bytes] = {}
        for one in ready:
            recovered = {frame.end_offset: frame.payload for frame in one.recovered}
            if one.trim_offset > self.trim_wanted:
                raise Violation(f"{one.number} starts at {one.trim_offset}, trimmed was {self.trim_wanted}")
            at = one.trim_offset
            for frame in one.recovered:
                if frame.offset != at:
                    raise Violation(f"{one.number} recovered a gap from {at} to {frame.offset}")
                at = frame.end_offset
            if at != one.start_offset:
                raise Violation(f"{one.number} goes on at {one.start_offset}, its last frame ends at {at}")
            for end_offset, payload in recovered.items():
                if truth.get(end_offset) != payload:
                    raise Violation(f"{one.number} recovered at {end_offset} what was not appended there")
            for earlier in ready:
                if earlier.wal_epoch >= one.wal_epoch:
                    continue
                for end_offset, payload in earlier.appended.items():
                    if one.trim_offset < end_offset <= earlier.acknowledged and recovered.get(end_offset) != payload:
                        raise Violation(
                            f"{earlier.number} acknowledged {end_offset}, and {one.number}, which took over, has not got it"
                        )
            # What it gave up is appended anew by itself.
            truth = {end: payload for end, payload in truth.items() if end <= one.start_offset} | one.appended


def batches_in(bucket: Bucket) -> list[str]:
    """Keys of all batches that a bucket holds."""
    slots = {key: stored.data for key, stored in bucket.objects.items() if key.startswith("wal/log/")}
    return [key for key, data in slots.items() if read_slot_header(data, key).kind is SlotKind.BATCH]


def simulate(seed: int) -> History:
    """Run one history, and check it."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_Simulation(seed).run())
    finally:
        loop.bury()
        loop.close()


class _Simulation:
    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        self._bucket = Bucket()
        self._history = History()
        self._faults = Faults(
            latency_ms=rng.choice([1, 10, 50]),
            slow_probability=rng.choice([0, 0.02, 0.2]),
            slow_latency_ms=rng.choice([300, 3_000, 30_000]),
            delay_ms=rng.choice([100, 5_000, 60_000]),
            refused=rng.choice([0, 0.05, 0.2]),
            lost_reply=rng.choice([0, 0.05, 0.2]),
            delayed=rng.choice([0, 0.05, 0.2]),
            repeated=rng.choice([0, 0.1]),
            conflict=rng.choice([0, 0.05]),
            flipped=rng.choice([0, 0, 0.01]),
        )
        self._config = ObjectWalConfig(
            store_uri="mem://",
            capacity_bytes=64 << 10,
            batch_interval_ms=rng.choice([0, 1, 20]),
            batch_size_bytes=rng.choice([100, 1_000, 10_000]),
            parallelism=rng.choice([1, 2, 8]),
            hedge_ms=rng.choice([0, 20, 200]),
        )

    async def run(self) -> History:
        rng = self._rng
        async with asyncio.TaskGroup() as group:
            for _ in range(rng.randint(2, MAX_INCARNATIONS)):
                incarnation = Incarnation(len(self._history.incarnations))
                self._history.incarnations.append(incarnation)
                group.create_task(self._live(incarnation))
                await asyncio.sleep(rng.expovariate(1 / rng.choice([0.001, 0.1, 1, 10])))
        await asyncio.sleep(200)  # whatever was delayed arrives
        self._faults = CALM
        last = Incarnation(len(self._history.incarnations))
        self._history.incarnations.append(last)
        await self._live(last, is_last=True)
        self._history.check()
        if len(left := batches_in(self._bucket)) > 1:
            raise Violation(f"litter stays for ever: {left}")
        return self._history

    async def _live(self, me: Incarnation, *, is_last: bool = False) -> None:
        rng = self._rng
        store = MemoryObjectStore(self._bucket, rng=random.Random(rng.random()), faults=self._faults)
        wal: ObjectWal | None = None
        try:
            wal = await ObjectWal.open(
                arena=Arena(1 << 20),
                objects=StoreForWal(store),
                cluster_id="tide",
                node_id=1,
                config=self._config,
                rng=random.Random(rng.random()),
            )
            failed = asyncio.Event()
            wal.set_listeners(lambda offset: _acknowledge(me, offset), lambda error: failed.set())
            recovered = [frame async for run in wal.recover() for frame in frames_of(run)]
            me.recovered, me.trim_offset, me.start_offset = recovered, wal.trim_offset, wal.end_offset
            me.wal_epoch = wal.wal_epoch
            await self._work(me, wal, steps=20 if is_last else rng.choice([0, 5, 50, 200]))
            if is_last:
                while wal.durable_offset < wal.end_offset:
                    await asyncio.sleep(0.01)
                await self._trim(me, wal, wal.durable_offset)
                await wal._deleted.wait()
        except WalFenced:
            if is_last:
                raise
        if wal is None or rng.random() < 0.5:
            store.die()  # what was under way arrives, or does not
        if wal is not None:
            await wal.close()

    async def _work(self, me: Incarnation, wal: ObjectWal, *, steps: int) -> None:
        rng = self._rng
        for step in range(steps):
            payload = b"%d/%d " % (me.number, step) + bytes(rng.choice([0, 10, 200]))
            view = wal.reserve(len(payload))
            if view is not None:
                view[:] = payload
                end = wal.append(stream_id=1, leader_epoch=1, base_offset=step, record_count=1)
                me.appended[end] = payload
            if rng.random() < 0.3:
                await asyncio.sleep(rng.expovariate(1 / rng.choice([0.001, 0.02, 0.2])))
            if rng.random() < 0.1:
                ends = [end for end in me.appended if end <= wal.durable_offset]
                ends += [frame.end_offset for frame in me.recovered]
                if ends:
                    await self._trim(me, wal, rng.choice([max(ends), rng.choice(ends)]))

    async def _trim(self, me: Incarnation, wal: ObjectWal, offset: int) -> None:
        self._history.trim_wanted = max(self._history.trim_wanted, offset)
        await wal.trim(offset)


def _acknowledge(me: Incarnation, offset: int) -> None:
    me.acknowledged = offset
