"""Clients of the simulation. They do what real ones do, write everything down, and say at once what may not be.

A producer has up to five batches of a partition under way (`max.in.flight.requests.per.connection`). After anything but
a success it waits for the rest, then sends again, in order and one by one, like Kafka's Java client.

A broker that was deposed while it stood still answers until it finds out (leases, which would end that, are not written yet). So it
may tell an older high watermark than others have told (I3 is held against everybody else), know a topic's former namesake, or miss
what a producer has sent since. What it says is at an offset must be there all the same, and it must acknowledge nothing (I4): that
shows as a loss.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocol.apis import encode_request
from protocol.messages import create_topics, delete_topics, init_producer_id, produce
from tests.checker.history import FinalLog, Found, History
from tests.sim.batches import BadBatch, encode_batch
from tests.sim.client import EARLIEST, LATEST, Client, KafkaError, found_in, record_digest, record_of
from tests.sim.network import ConnectionReset, Network
from wal.frame import BLOCK_SIZE_BYTES, FRAME_HEADER_SIZE_BYTES

__all__ = ["Hoarder", "Producer", "Reader", "Topic", "World", "create_topic", "delete_topic", "read_whole"]

_IN_FLIGHT = 5
_BACK_OFF_S = 0.1
_SLOWNESS = 300.0
"""How much longer a slow reader takes for each piece of an answer: while it does, the broker's memory is held."""
_PRODUCE_VERSION = 9
_INIT_PRODUCER_ID_VERSION = 4
_CREATE_TOPICS_VERSION = 7
_DELETE_TOPICS_VERSION = 6
_HOARDED = 12
_HOARDED_BYTES = 40_000
"""So many requests of this size are begun together: several times what a broker with little memory has for them."""
_COLD_WAIT_S = 0.5
"""After so long a fetch may be answered without what only objects hold (KIP-1018, `remote.fetch.max.wait.ms`)."""

_OFFSET_OUT_OF_RANGE = 1
_UNKNOWN_TOPIC = 3
_OUT_OF_ORDER_SEQUENCE = 45
_TOPIC_EXISTS = 36
RETRIABLE = frozenset({3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56, 74, 75, 78})
"""What a client tries again on (UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, …)."""


@dataclass(eq=False, slots=True, kw_only=True)
class Topic:
    """A topic as its clients know it. One that is created again under the same name is another topic."""

    name: str
    incarnation: int
    partitions: int
    deleted: bool = False
    may_be_trimmed: bool = False
    retention_ms: int | None = None
    """How long it keeps records: it then gets some that are twice as old, and later some of today."""

    def key(self, partition: int) -> str:
        """What the history calls a partition."""
        return f"{self.name}#{self.incarnation}-{partition}"


@dataclass(eq=False, slots=True, kw_only=True)
class World:
    """What all actors share."""

    network: Network
    port: int
    history: History
    now_ms: Callable[[], int]
    problems: list[str] = field(default_factory=list)
    finishing: bool = False
    lull: float = 1.0
    """How much longer than usually clients pause: while nothing is waited for but a process that stands still for hours."""
    """Send nothing new, but bring to an end what was begun."""
    high_watermarks: dict[str, int] = field(default_factory=dict)
    """The highest that any client was told, by partition."""
    kept_from: dict[str, int] = field(default_factory=dict)
    """The first offset of a partition that retention must leave alone."""

    def client(self, name: str, slowness: float = 1.0) -> Client:
        return Client(self.network, self.port, name, slowness)


@dataclass(eq=False, slots=True, kw_only=True)
class _Outgoing:
    """A batch that is not acknowledged yet."""

    partition: int
    numbers: range
    data: bytes
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
    """Sends to one topic until the world is finishing, and then until everything is acknowledged."""

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
        self._client = world.client(name)
        self._producer_id = -1
        self._producer_epoch = -1
        self._partitions = [_PartitionState() for _ in range(topic.partitions)]
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
                        await asyncio.sleep(_BACK_OFF_S * self._rng.random())
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
            await asyncio.sleep(_BACK_OFF_S)

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
                elif self._world.finishing and not any(state.outgoing for state in self._partitions):
                    return
                else:
                    await asyncio.sleep(_BACK_OFF_S * self._world.lull)
        finally:
            for state in self._partitions:
                state.retrying = bool(state.outgoing)
                for batch in state.outgoing:
                    batch.in_flight = False
            for _, answer in requests:
                answer.cancel()
            await asyncio.gather(*(answer for _, answer in requests), return_exceptions=True)

    def _next_batches(self) -> list[_Outgoing]:
        """At most one batch of each of some partitions, for one request."""
        order = list(range(self._topic.partitions))
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
        data = encode_batch(
            records,
            timestamp_ms=self._world.now_ms() - (2 * retention_ms if is_old and retention_ms is not None else 0),
            producer_id=self._producer_id,
            producer_epoch=self._producer_epoch,
            base_sequence=state.next_sequence if self._idempotent else -1,
        )
        state.next_number = numbers.stop
        state.next_sequence = (state.next_sequence + len(numbers)) & 0x7FFF_FFFF
        batch = _Outgoing(partition=partition, numbers=numbers, data=data, is_old=is_old)
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
        return self._client.start(produce.API, _PRODUCE_VERSION, request)

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
                    kept_from = self._world.kept_from
                    key = self._topic.key(batch.partition)
                    kept_from[key] = min(answer.base_offset, kept_from.get(key, answer.base_offset))
                if answer.base_offset < 0:
                    self._problem(batch, f"was acknowledged at offset {answer.base_offset}")
                for offset, number in enumerate(batch.numbers, start=answer.base_offset):
                    self.acknowledged += 1
                    self._world.history.acknowledged(self._topic.key(batch.partition), self._name, number, offset)
                continue
            state.retrying = True
            may_follow_a_failure = answer.error_code == _OUT_OF_ORDER_SEQUENCE and not oldest
            if answer.error_code == _OUT_OF_ORDER_SEQUENCE and self._client.broker.deposed:
                self._client.close()
            elif answer.error_code not in RETRIABLE and not may_follow_a_failure and not self._topic.deleted:
                self._problem(batch, f"was refused for good: error {answer.error_code}, {answer.error_message}")
                state.outgoing.remove(batch)

    def _problem(self, batch: _Outgoing, what: str) -> None:
        key = self._topic.key(batch.partition)
        self._world.problems.append(f"{self._name}: {key} records {batch.numbers} {what}")


class Hoarder:
    """Begins large requests on many connections, and does not go on with them: the broker holds what came until it hangs up (I13)."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng

    async def run(self) -> None:
        """Again and again, until the world is finishing."""
        while not self._world.finishing:
            await asyncio.sleep(self._rng.expovariate(0.5) * self._world.lull)
            await asyncio.gather(*(self._begin_a_request(index) for index in range(_HOARDED)))

    async def _begin_a_request(self, index: int) -> None:
        request = produce.ProduceRequest(
            acks=-1,
            timeout_ms=30_000,
            topic_data=[
                produce.TopicProduceData(
                    name="hoarded",
                    partition_data=[produce.PartitionProduceData(index=0, records=bytes(_HOARDED_BYTES))],
                )
            ],
        )
        client = self._world.client(f"hoarder-{index}")
        frame = b"".join(encode_request(produce.API.key, _PRODUCE_VERSION, 1, client.name, request))
        try:
            (await client.connect()).send(frame[: -self._rng.randint(1, _HOARDED_BYTES // 4)])
            await asyncio.sleep(self._rng.uniform(0.5, 2.0))
        except ConnectionReset:
            return
        finally:
            client.close()


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
        self._client = world.client(name, _SLOWNESS if slow else 1.0)

    async def follow(self) -> None:
        """Read at the tail until the world is finishing."""
        offset: int | None = None
        while not self._world.finishing and not self._topic.deleted:
            try:
                if offset is None:
                    offset = await self._client.offset_at(
                        self._topic.name, self._partition, self._rng.choice((EARLIEST, LATEST))
                    )
                _, offset = await self.read_from(offset, max_wait_ms=int(500 * self._world.lull))
                if self._slow:
                    await asyncio.sleep(self._rng.expovariate(1))
            except ConnectionReset:
                await asyncio.sleep(_BACK_OFF_S * self._rng.random())
            except KafkaError as error:
                offset = await self._failed(error, offset)
        self._client.close()

    async def scan_again_and_again(self) -> None:
        """Read everything from the start, wait, and read it all again, until the world is finishing."""
        while not self._world.finishing and not self._topic.deleted:
            offset: int | None = None
            try:
                offset = await self._client.offset_at(self._topic.name, self._partition, EARLIEST)
                end = await self._client.offset_at(self._topic.name, self._partition, LATEST)
                while offset < end and not self._world.finishing:
                    _, offset = await self.read_from(offset, max_wait_ms=0)
            except ConnectionReset:
                pass
            except KafkaError as error:
                await self._failed(error, offset)
            await asyncio.sleep(self._rng.expovariate(0.5) * self._world.lull)
        self._client.close()

    async def read_from(self, offset: int, *, max_wait_ms: int) -> tuple[list[Found], int]:
        """One fetch: what it found, and where the next goes on. Raises ConnectionReset, KafkaError."""
        problems = self._world.problems
        floor = self._world.high_watermarks.get(self._key, 0)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            answer = await self._client.fetch(
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
        deposed = self._client.broker.deposed
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
        if answer.log_start_offset > self._world.kept_from.get(self._key, answer.log_start_offset):
            problems.append(
                f"{self._key}: the log starts at {answer.log_start_offset}, and offset {self._world.kept_from[self._key]} is of "
                "today (retention by a wrong clock)"
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
        if self._topic.deleted:
            return None
        if error.code == _OFFSET_OUT_OF_RANGE and self._topic.may_be_trimmed:
            return None
        if error.code == _OFFSET_OUT_OF_RANGE and self._client.broker.deposed:
            self._client.close()
            return offset
        if error.code not in RETRIABLE:
            self._world.problems.append(f"{self._key}: reading from {offset} failed: {error}")
            return None
        await asyncio.sleep(_BACK_OFF_S)
        return offset


async def read_whole(world: World, topic: Topic, partition: int, rng: random.Random) -> FinalLog:
    """A partition from start to end, at the end of a simulation."""
    reader = Reader(world, topic, partition, "final", rng, slow=False)
    client = world.client("final")
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
            if isinstance(error, KafkaError) and error.code not in RETRIABLE:
                world.problems.append(f"{topic.key(partition)}: the last read failed: {error}")
                return FinalLog(log_start_offset=0, log_end_offset=0, found=[])
            await asyncio.sleep(_BACK_OFF_S)


async def create_topic(world: World, topic: Topic) -> None:
    """Create a topic, until it is there."""
    client = world.client("admin")
    request = create_topics.CreateTopicsRequest(
        topics=[
            create_topics.CreatableTopic(
                name=topic.name,
                num_partitions=topic.partitions,
                replication_factor=1,
                configs=[]
                if topic.retention_ms is None
                else [create_topics.CreatableTopicConfig(name="retention.ms", value=str(topic.retention_ms))],
            )
        ],
        timeout_ms=30_000,
    )
    tried = False
    while True:
        try:
            answer = await client.call(create_topics.API, _CREATE_TOPICS_VERSION, request)
            code = answer.topics[0].error_code
            if code == 0 or (code == _TOPIC_EXISTS and tried):
                break
            if code == _TOPIC_EXISTS and client.broker.deposed:
                client.close()  # it means an earlier topic of this name
            elif code not in RETRIABLE:
                world.problems.append(f"creating {topic.name} failed: {code}, {answer.topics[0].error_message}")
                break
        except ConnectionReset:
            pass
        tried = True  # it may be there, and the answer was lost
        await asyncio.sleep(_BACK_OFF_S)
    client.close()


async def delete_topic(world: World, topic: Topic) -> None:
    """Delete a topic, until it is gone."""
    topic.deleted = True
    client = world.client("admin")
    request = delete_topics.DeleteTopicsRequest(
        topics=[delete_topics.DeleteTopicState(name=topic.name)], timeout_ms=30_000
    )
    tried = False
    while True:
        try:
            answer = await client.call(delete_topics.API, _DELETE_TOPICS_VERSION, request)
            code = answer.responses[0].error_code
            if code == 0 or (code == _UNKNOWN_TOPIC and tried and not client.broker.deposed):
                break
            if code not in RETRIABLE:
                world.problems.append(f"deleting {topic.name} failed: {code}")
                break
        except ConnectionReset:
            pass
        tried = True
        await asyncio.sleep(_BACK_OFF_S)
    client.close()
