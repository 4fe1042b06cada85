"""Readers of the simulation: they check every answer, and write down what they saw."""

from __future__ import annotations

import asyncio
import random

from tests.checker.history import FinalLog, Found
from tests.sim.batches import BadBatch
from tests.sim.client import EARLIEST, LATEST, KafkaError, found_in
from tests.sim.network import ConnectionReset
from tests.sim.world import BACK_OFF_S, RETRIABLE, Topic, World

__all__ = ["Reader", "read_whole"]

_SLOWNESS = 300.0
"""How much longer a slow reader takes for each piece of an answer: while it does, the broker's memory is held."""
_COLD_WAIT_S = 0.5
"""After so long a fetch may be answered without what only objects hold (KIP-1018, `remote.fetch.max.wait.ms`)."""
_OFFSET_OUT_OF_RANGE = 1


class Reader:
    """Follows one partition, from its start or its end on, and checks every answer."""

    def __init__(
        self, world: World, topic: Topic, partition: int, name: str, rng: random.Random, *, slow: bool
    ) -> None:
        self._world = world
        self._topic = topic
        self._partition = partition
        self._key = topic.key(partition)
        self._rng = rng
        self._slow = slow
        self.client = world.client(name, _SLOWNESS if slow else 1.0, of=(topic.name, partition))

    async def follow(self) -> None:
        """Read at the tail until the world is finishing."""
        offset: int | None = None
        while not self._world.finishing and not self._topic.deleted:
            try:
                if offset is None:
                    offset = await self.client.offset_at(
                        self._topic.name, self._partition, self._rng.choice((EARLIEST, LATEST))
                    )
                _, offset = await self.read_from(offset, max_wait_ms=int(500 * self._world.lull))
                if self._slow:
                    await asyncio.sleep(self._rng.expovariate(1))
            except ConnectionReset:
                await asyncio.sleep(BACK_OFF_S * self._rng.random())
            except KafkaError as error:
                offset = await self._failed(error, offset)
        self.client.close()

    async def scan_again_and_again(self) -> None:
        """Read everything from the start, wait, and read it all again, until the world is finishing."""
        while not self._world.finishing and not self._topic.deleted:
            offset: int | None = None
            try:
                offset = await self.client.offset_at(self._topic.name, self._partition, EARLIEST)
                end = await self._end()
                while offset < end and not self._world.finishing:
                    _, offset = await self.read_from(offset, max_wait_ms=0)
            except ConnectionReset:
                pass
            except KafkaError as error:
                await self._failed(error, offset)
            if len(self._world.ports) > 1:
                self.client.close()  # the next one is another reader, who asks anew where to go
            await asyncio.sleep(self._rng.expovariate(0.5) * self._world.lull)
        self.client.close()

    async def _end(self) -> int:
        """Where the partition ends for a reader. Raises ConnectionReset, KafkaError."""
        floor = self._world.high_watermarks.get(self._key, 0)
        end = await self.client.offset_at(self._topic.name, self._partition, LATEST)
        if end < floor and not self.client.broker.deposed and not self._topic.deleted:
            self._world.problems.append(f"{self._key}: the latest offset is {end}, after {floor} (I3)")
        return end

    async def read_from(self, offset: int, *, max_wait_ms: int) -> tuple[list[Found], int]:
        """One fetch: what it found, and where the next goes on. Raises ConnectionReset, KafkaError."""
        problems = self._world.problems
        floor = self._world.high_watermarks.get(self._key, 0)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            answer = await self.client.fetch(
                self._topic.name,
                self._partition,
                offset,
                max_wait_ms=max_wait_ms,
                max_bytes=self._rng.choice((1, 2_000, 20_000, 200_000)),
            )
        except BadBatch as error:
            problems.append(f"corruption: {self._key} from {offset}: {error} (I7)")
            raise KafkaError(2, str(error)) from error
        if self._topic.deleted:
            return [], offset  # the name may belong to another topic by now
        deposed = self.client.broker.deposed
        if deposed and self._topic.incarnation > 0:
            return [], offset  # it may mean an earlier topic of this name
        high_watermark = answer.high_watermark
        if high_watermark < floor and not deposed:
            problems.append(f"{self._key}: high watermark {high_watermark} after {floor} (I3)")
        self._world.high_watermarks[self._key] = max(high_watermark, self._world.high_watermarks.get(self._key, 0))
        if not answer.log_start_offset <= answer.last_stable_offset <= high_watermark:
            problems.append(
                f"{self._key}: log start {answer.log_start_offset}, last stable {answer.last_stable_offset}, "
                f"high watermark {high_watermark} (I10)"
            )
        kept_from = self._world.kept_from(self._topic, self._partition)
        if kept_from is not None and answer.log_start_offset > kept_from:
            problems.append(
                f"{self._key}: the log starts at {answer.log_start_offset}, and offset {kept_from} is of today (retention by a wrong "
                "clock)"
            )
        found: list[Found] = []
        expected = offset
        epoch = -1
        for batch in answer.batches:
            first = expected == offset and batch.base_offset <= offset < batch.end_offset
            if not first and batch.base_offset != expected:
                problems.append(f"{self._key}: a batch at {batch.base_offset} where {expected} was next (I2)")
            if batch.end_offset > high_watermark:
                problems.append(f"{self._key}: a batch up to {batch.end_offset}, past {high_watermark}")
            if batch.leader_epoch < epoch:
                problems.append(
                    f"{self._key}: leader epoch {batch.leader_epoch} at {batch.base_offset} after {epoch} (I4)"
                )
            expected, epoch = batch.end_offset, batch.leader_epoch
            found += [record for record in found_in(batch) if record.offset >= offset]
        if not found and offset < high_watermark and clock() - began < _COLD_WAIT_S:
            problems.append(f"{self._key}: nothing at {offset}, below the high watermark {high_watermark}")
        self._world.history.seen(self._key, found)
        return found, expected

    async def _failed(self, error: KafkaError, offset: int | None) -> int | None:
        """Where to go on after an error; None: look for a place."""
        self.client.misled(error.code)
        if self._topic.deleted:
            return None
        if error.code == _OFFSET_OUT_OF_RANGE and self._topic.may_be_trimmed:
            return None
        if error.code == _OFFSET_OUT_OF_RANGE and self.client.broker.deposed:
            self.client.close()
            return offset
        if error.code not in RETRIABLE:
            self._world.problems.append(f"{self._key}: reading from {offset} failed: {error}")
            return None
        await asyncio.sleep(BACK_OFF_S)
        return offset


async def read_whole(world: World, topic: Topic, partition: int, rng: random.Random) -> FinalLog:
    """A partition from start to end, at the end of a simulation."""
    reader = Reader(world, topic, partition, "final", rng, slow=False)
    client = world.client("final", of=(topic.name, partition))
    while True:
        try:
            start = await client.offset_at(topic.name, partition, EARLIEST)
            end = await client.offset_at(topic.name, partition, LATEST)
            offset = start
            found: list[Found] = []
            while offset < end:
                records, after = await reader.read_from(offset, max_wait_ms=0)
                found += records
                offset = after
            return FinalLog(log_start_offset=start, log_end_offset=end, found=found)
        except (ConnectionReset, KafkaError) as error:
            if isinstance(error, KafkaError):
                for one in (client, reader.client):
                    one.misled(error.code)
            if isinstance(error, KafkaError) and error.code not in RETRIABLE:
                world.problems.append(f"{topic.key(partition)}: the last read failed: {error}")
                return FinalLog(log_start_offset=0, log_end_offset=0, found=[])
            await asyncio.sleep(BACK_OFF_S)
