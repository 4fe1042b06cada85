"""A producer of the simulation: it does what real ones do, writes everything down, and says at once what may not be.

It has up to five batches of a partition under way (`max.in.flight.requests.per.connection`). After anything but
a success it waits for the rest, then sends again, in order and one by one, like Kafka's Java client.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.messages import init_producer_id, produce
from tests.sim.batches import encode_batch
from tests.sim.client import record_digest, record_of
from tests.sim.network import ConnectionReset
from tests.sim.world import BACK_OFF_S, RETRIABLE, Topic, World
from wal.frame import BLOCK_SIZE_BYTES, FRAME_HEADER_SIZE_BYTES

__all__ = ["PRODUCE_VERSION", "Producer"]

_IN_FLIGHT = 5
PRODUCE_VERSION = 10
"""The first whose answers name the leader (KIP-951)."""
_INIT_PRODUCER_ID_VERSION = 4
_OUT_OF_ORDER_SEQUENCE = 45


@dataclass(eq=False, slots=True, kw_only=True)
class _Outgoing:
    """A batch that is not acknowledged yet."""

    partition: int
    numbers: range
    data: bytes
    timestamp_ms: int
    is_old: bool
    in_flight: bool = False


@dataclass(eq=False, slots=True, kw_only=True)
class _PartitionState:
    next_number: int = 0
    next_sequence: int = 0
    outgoing: deque[_Outgoing] = field(default_factory=deque)
    retrying: bool = False
    begun: bool = False
    """Something was acknowledged: only then may several batches be under way."""


class Producer:
    """Sends to a topic, or to one partition of it, until the world is finishing, and then until everything is acknowledged."""

    def __init__(
        self,
        world: World,
        topic: Topic,
        name: str,
        rng: random.Random,
        *,
        idempotent: bool,
        pause_s: float,
        max_batches: int,
        max_value_bytes: int,
        block_sized: bool,
        partition: int | None = None,
    ) -> None:
        self.acknowledged = 0
        self._world = world
        self._topic = topic
        self._name = name
        self._rng = rng
        self._idempotent = idempotent
        self._pause_s = pause_s
        self._max_batches = self._batches_left = max_batches
        self._max_value_bytes = max_value_bytes
        self._block_sized = block_sized
        self._client = world.client(name, of=None if partition is None else (topic.name, partition))
        self._producer_id = -1
        self._producer_epoch = -1
        indexes = range(topic.partitions) if partition is None else (partition,)
        self._partitions = {index: _PartitionState() for index in indexes}
        self._noise = rng.randbytes(2 * max(max_value_bytes, BLOCK_SIZE_BYTES))
        if idempotent:
            world.history.idempotent(name)

    async def run(self) -> None:
        """Until everything is acknowledged, or the topic is deleted."""
        try:
            while not self._topic.deleted:
                try:
                    await self._client.connect()
                    if self._idempotent and self._producer_id < 0:
                        await self._init_producer_id()
                    await self._send()
                except ConnectionReset:
                    if self._rng.random() < 0.7:  # else at once: the first attempt may not be durable yet
                        await asyncio.sleep(BACK_OFF_S * self._rng.random())
                else:
                    return
        finally:
            self._client.close()  # nothing that is still on its way gets there any more

    async def _init_producer_id(self) -> None:
        while True:
            answer = await self._client.call(
                init_producer_id.API,
                _INIT_PRODUCER_ID_VERSION,
                init_producer_id.InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000),
            )
            if answer.error_code == 0:
                self._producer_id, self._producer_epoch = answer.producer_id, answer.producer_epoch
                return
            if answer.error_code not in RETRIABLE:
                self._world.problems.append(f"{self._name}: InitProducerId failed with {answer.error_code}")
            await asyncio.sleep(BACK_OFF_S)

    async def _send(self) -> None:
        """Over one connection, until it breaks or everything is done."""
        requests: deque[tuple[list[_Outgoing], asyncio.Task[produce.ProduceResponse]]] = deque()
        try:
            while not self._topic.deleted:
                if len(requests) < _IN_FLIGHT and (batches := self._next_batches()):
                    requests.append((batches, self._start(batches)))
                    if self._rng.random() < 0.5:
                        await asyncio.sleep(self._rng.expovariate(1 / self._pause_s))
                elif requests:
                    batches, answer = requests.popleft()
                    self._answered(batches, await answer)
                elif self._world.finishing and not any(state.outgoing for state in self._partitions.values()):
                    return
                else:
                    await asyncio.sleep(BACK_OFF_S * self._world.lull)
        finally:
            for state in self._partitions.values():
                state.retrying = bool(state.outgoing)
                for batch in state.outgoing:
                    batch.in_flight = False
            for _, answer in requests:
                answer.cancel()
            await asyncio.gather(*(answer for _, answer in requests), return_exceptions=True)

    def _next_batches(self) -> list[_Outgoing]:
        """At most one batch of each of some partitions, for one request."""
        order = list(self._partitions)
        self._rng.shuffle(order)
        batches: list[_Outgoing] = []
        for partition in order[: self._rng.randint(1, len(order))] if not self._world.finishing else order:
            batch = self._next_batch(partition)
            if batch is not None:
                batch.in_flight = True
                batches.append(batch)
        return batches

    def _next_batch(self, partition: int) -> _Outgoing | None:
        state = self._partitions[partition]
        if state.outgoing and (state.retrying or not state.begun):
            if any(batch.in_flight for batch in state.outgoing):
                return None
            return state.outgoing[0]
        if self._world.finishing or not self._batches_left or len(state.outgoing) >= _IN_FLIGHT:
            return None
        self._batches_left -= 1
        rng = self._rng
        numbers = range(state.next_number, state.next_number + (1 if self._block_sized else rng.randint(1, 8)))
        records = [self._record(number) for number in numbers]
        for number, (key, value) in zip(numbers, records, strict=True):
            self._world.history.sent(self._topic.key(partition), self._name, number, record_digest(key, value))
        retention_ms = self._topic.retention_ms
        is_old = retention_ms is not None and self._batches_left > self._max_batches // 2
        timestamp_ms = self._world.now_ms() - (2 * retention_ms if is_old and retention_ms is not None else 0)
        data = encode_batch(
            records,
            timestamp_ms=timestamp_ms,
            producer_id=self._producer_id,
            producer_epoch=self._producer_epoch,
            base_sequence=state.next_sequence if self._idempotent else -1,
        )
        state.next_number = numbers.stop
        state.next_sequence = (state.next_sequence + len(numbers)) & 0x7FFF_FFFF
        batch = _Outgoing(partition=partition, numbers=numbers, data=data, timestamp_ms=timestamp_ms, is_old=is_old)
        state.outgoing.append(batch)
        return batch

    def _record(self, number: int) -> tuple[bytes, bytes]:
        rng = self._rng
        key, _ = record_of(self._name, number, b"")
        if self._block_sized:
            size = BLOCK_SIZE_BYTES - FRAME_HEADER_SIZE_BYTES - len(encode_batch([(key, b"")], timestamp_ms=0)) - 2
        else:
            size = rng.randrange(self._max_value_bytes if rng.random() < 0.2 else 200)
        start = rng.randrange(len(self._noise) - size)
        return record_of(self._name, number, self._noise[start : start + size])

    def _start(self, batches: Sequence[_Outgoing]) -> asyncio.Task[produce.ProduceResponse]:
        request = produce.ProduceRequest(
            acks=-1 if self._idempotent else self._rng.choice((1, -1)),
            timeout_ms=30_000,
            topic_data=[
                produce.TopicProduceData(
                    name=self._topic.name,
                    partition_data=[
                        produce.PartitionProduceData(index=batch.partition, records=batch.data) for batch in batches
                    ],
                )
            ],
        )
        return self._client.start(produce.API, PRODUCE_VERSION, request)

    def _answered(self, batches: Sequence[_Outgoing], response: produce.ProduceResponse) -> None:
        answers = {answer.index: answer for topic in response.responses for answer in topic.partition_responses}
        for batch in batches:
            answer = answers[batch.partition]
            state = self._partitions[batch.partition]
            oldest = state.outgoing[0] is batch
            batch.in_flight = False
            if answer.error_code == 0:
                state.outgoing.remove(batch)
                state.begun = True
                if state.retrying and not state.outgoing:
                    state.retrying = False
                if self._topic.retention_ms is not None and not batch.is_old:
                    aging = self._world.aging.setdefault(self._topic.key(batch.partition), deque())
                    aging.append((batch.timestamp_ms, answer.base_offset))
                if answer.base_offset < 0:
                    self._problem(batch, f"was acknowledged at offset {answer.base_offset}")
                for offset, number in enumerate(batch.numbers, start=answer.base_offset):
                    self.acknowledged += 1
                    self._world.history.acknowledged(self._topic.key(batch.partition), self._name, number, offset)
                continue
            state.retrying = True
            self._client.misled(answer.error_code, response.node_endpoints)
            may_follow_a_failure = answer.error_code == _OUT_OF_ORDER_SEQUENCE and not oldest
            if answer.error_code == _OUT_OF_ORDER_SEQUENCE and self._client.broker.deposed:
                self._client.close()
            elif answer.error_code not in RETRIABLE and not may_follow_a_failure and not self._topic.deleted:
                self._problem(batch, f"was refused for good: error {answer.error_code}, {answer.error_message}")
                state.outgoing.remove(batch)

    def _problem(self, batch: _Outgoing, what: str) -> None:
        key = self._topic.key(batch.partition)
        self._world.problems.append(f"{self._name}: {key} records {batch.numbers} {what}")
