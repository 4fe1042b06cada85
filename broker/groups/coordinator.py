"""The coordinator of consumer groups: a thin shell around one `Shard` for each partition of `__consumer_offsets` that is open here.

Theory of operation. A group belongs to the partition that the hash of its id says, and is coordinated by who leads that partition. When
the partition opens, its log is replayed into a shard; then requests become events, and the shard's effects become answers and
appends. An append (`writer`) goes through the partition like any record, without a task or a future; when the WAL says that it is
durable, the shard hears of it, and answers.

The log would grow for ever with every commit. So, when it holds many times more records than the state it stands for, the state is written
once more, bit by bit between requests, and the log is trimmed to where that began. See decision 0015.

Always true:
- A shard gets its events one by one, and the ends of its appends in their order.
- While a shard is loaded, and when it is not here, nothing is answered from it.
- No deadline passes unheard of: a timer is set for the earliest. When the event loop was blocked, members' heartbeats that wait in
  sockets are read before anybody is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from broker.errors import KafkaError
from broker.groups.events import Append, Effect, Event, Expire, Now, Reply, Stored, Tick, TopicDeleted
from broker.groups.group import Group
from broker.groups.membership import GroupLimits
from broker.groups.shard import Budget, OffsetLimits, Shard
from broker.groups.writer import Writer
from controller.controller import TopicSpec
from controller.errors import ControllerError, TopicExists
from controller.lease import ALWAYS, Serving
from protocol.errors import ErrorCode, Malformed
from protocol.record_set import iter_records
from protocol.records import batch_bounds
from s3stream.errors import MetadataUnavailable, StorageError, StreamClosed
from s3stream.objectstore import Buffer, ObjectStoreError
from wal.errors import WalError

if TYPE_CHECKING:
    from broker.partition import Partition
    from broker.partitions import Partitions
    from broker.topics import Topics
    from controller.controller import Controller
    from s3stream.storage import Storage

__all__ = ["OFFSETS_TOPIC", "CoordinatorSettings", "GroupCoordinator", "partition_of"]

log = logging.getLogger("tidelog.groups")

OFFSETS_TOPIC = "__consumer_offsets"

LOADERS = 8
"""Partitions replayed at the same time: enough to hide the object store's latency."""

RETRY_DELAY_S = 1.0

MAX_REPLAYED_BATCH_BYTES = 64 << 20
"""Cap on what one batch of the log may inflate to. Ours are not compressed."""

REPLAY_BATCHES_AT_A_TIME = 200
"""Batches replayed before other work gets its turn."""

SNAPSHOT_ROWS = 500
"""Records of a snapshot written before other work gets its turn: some milliseconds."""

SNAPSHOT_MIN_RECORDS = 10_000
SNAPSHOT_MIN_BYTES = 4 << 20
"""Below that a log is replayed in a moment, however little of it is live."""

SNAPSHOT_POLL_S = 0.01

SNAPSHOT_RETRY_DELAY_S = 30.0
"""Between two snapshots of one partition, also where the first one failed: its trim needs the object store."""

SNAPSHOT_RATIO = 8
"""A log is written anew when it holds so many times what is live: every record is then written at most once more for eight that
came, and a replay reads at most about nine times what it keeps."""

KNOWN_HASHES = 4096
"""Group ids whose partition is remembered: each request asks for it, and the hash takes microseconds."""

LATE_TICK_S = 0.5
LATE_TICK_DELAY_S = 1.0
"""A deadline noticed so late means that the loop was blocked: what waits in sockets is read first, for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """What an operator can set; see `broker.config`."""

    limits: GroupLimits
    offset_limits: OffsetLimits
    partition_count: int
    check_interval_ms: int
    memory_bytes: int
    create_timeout_ms: int


@lru_cache(KNOWN_HASHES)
def partition_of(group_id: str, partition_count: int) -> int:
    """Where a group lives: Java's `abs(groupId.hashCode()) % partitions`, over UTF-16 units."""
    value = 0
    for unit in memoryview(group_id.encode("utf-16-le")).cast("H"):
        value = (31 * value + unit) & 0xFFFFFFFF
    value = value - (1 << 32) if value >= 1 << 31 else value
    return (0 if value == -(1 << 31) else abs(value)) % partition_count


class GroupCoordinator:
    """See the module."""

    def __init__(
        self,
        *,
        settings: CoordinatorSettings,
        topics: Topics,
        partitions: Partitions,
        storage: Storage,
        controller: Controller,
        now_ms: Callable[[], int],
        serving: Serving = ALWAYS,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._partitions = partitions
        self._storage = storage
        self._controller = controller
        self._serving = serving
        self._now_ms = now_ms
        self._budget = Budget(settings.memory_bytes)
        self._places: dict[int, _Place] = {}
        self._loading = asyncio.Semaphore(LOADERS)
        self._creating: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # ---- what handlers ask ------------------------------------------------------------------------------------------

    def partition_of(self, group_id: str) -> int | None:
        """The partition of `__consumer_offsets` that a group belongs to; None while there is no such topic."""
        topic = self._topics.by_name.get(OFFSETS_TOPIC)
        return None if topic is None else partition_of(group_id, len(topic.partitions))

    def submit(self, group_id: str, event: Event) -> None:
        """Give an event to the shard of a group, whose token is called with the answer, now or later.

        Raises:
            KafkaError: NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE.
        """
        self._ready(group_id).handle(event)

    def group(self, group_id: str) -> Group | None:
        """A group, to be looked at and not changed. Raises as `submit`."""
        return self._ready(group_id).shard.groups.get(group_id)

    def __iter__(self) -> Iterator[Group]:
        """Every group whose coordinator is this node, with its members and committed offsets; to be looked at only."""
        for place in self._places.values():
            if place.is_ready:
                yield from place.shard.groups.values()

    @property
    def is_loading(self) -> bool:
        """Whether some groups are not known yet."""
        return any(not place.is_ready for place in self._places.values())

    @property
    def place_counts(self) -> dict[str, int]:
        """Partitions of `__consumer_offsets` that this node leads, by what is known of their groups."""
        counts = {"ready": 0, "loading": 0, "unreadable": 0}
        for place in self._places.values():
            counts["ready" if place.is_ready else "loading" if place.failure is None else "unreadable"] += 1
        return counts

    @property
    def memory_bytes(self) -> int:
        """About what all groups take in memory."""
        return self._budget.used_bytes

    def _ready(self, group_id: str) -> _Place:
        if not self._serving.serves:
            raise KafkaError(ErrorCode.NOT_COORDINATOR, "this broker has no lease, and cannot answer for groups")
        index = self.partition_of(group_id)
        place = None if index is None else self._places.get(index)
        if place is None or place.partition.stream.closed is not None:
            raise KafkaError(ErrorCode.NOT_COORDINATOR, f"group {group_id} is not coordinated by this broker")
        if place.failure is not None:
            raise KafkaError(ErrorCode.COORDINATOR_NOT_AVAILABLE, place.failure)
        if not place.is_ready:
            raise KafkaError(
                ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, f"the groups of {place.partition} are being loaded"
            )
        return place

    async def ensure_topic(self) -> None:
        """Create `__consumer_offsets` where it does not exist, and return when what this node leads of it is open.

        Raises:
            KafkaError: COORDINATOR_NOT_AVAILABLE: that was not possible in time.
        """
        if self._creating is None:
            self._creating = self._start(self._create_topic(), "groups: topic")
        creating = self._creating
        try:
            async with asyncio.timeout(self._settings.create_timeout_ms / 1000):
                await asyncio.shield(creating)
        except (TimeoutError, MetadataUnavailable, ControllerError) as error:
            raise KafkaError(
                ErrorCode.COORDINATOR_NOT_AVAILABLE, f"{OFFSETS_TOPIC} could not be created yet: {error}"
            ) from error
        finally:
            if creating.done():
                self._creating = None

    async def _create_topic(self) -> None:
        spec = TopicSpec(
            name=OFFSETS_TOPIC,
            partition_count=self._settings.partition_count,
            configs={"cleanup.policy": "compact", "compression.type": "producer", "segment.bytes": "104857600"},
        )
        made = (await self._controller.create_topics([spec]))[OFFSETS_TOPIC]
        if isinstance(made, ControllerError) and not isinstance(made, TopicExists):
            raise made
        topic = self._topics.by_name.get(OFFSETS_TOPIC)
        if topic is not None:
            await self._partitions.wait_open(topic)

    # ---- life -------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Partitions were opened or closed: load what is new here, and let go of what is not."""
        topic = self._topics.by_name.get(OFFSETS_TOPIC)
        partitions = {} if topic is None else {p.index: p for p in topic.partitions if p is not None and not p.leaving}
        for index, place in list(self._places.items()):
            if partitions.get(index) is not place.partition or place.partition.stream.closed is not None:
                del self._places[index]
                place.close(ErrorCode.NOT_COORDINATOR)
        for index, partition in partitions.items():
            if index not in self._places and partition.stream.closed is None and not self._closing:
                place = self._places[index] = _Place(self, partition)
                self._start(self._load(place), f"groups: load {partition}")

    def topic_deleted(self, name: str) -> None:
        """A topic is no more: nor are the offsets committed for it."""
        for place in self._places.values():
            if place.is_ready:
                place.handle(TopicDeleted(topic=name))
            else:
                place.deleted_topics.append(name)

    async def wait_loaded(self, timeout_s: float) -> None:
        """Return when every group is known, or the time is up (the rest goes on in the background)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for place in list(self._places.values()):
                    await place.loaded.wait()

    async def expire(self) -> None:
        """Forget offsets and groups that nobody needs, now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.check_interval_ms / 1000)
            for place in list(self._places.values()):
                if place.is_ready:
                    place.handle(Expire())
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop: no timer fires and nothing is appended any more."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for place in self._places.values():
            place.close(ErrorCode.NOT_COORDINATOR)
        self._places.clear()

    def _start(self, work: object, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, MetadataUnavailable | ControllerError):
            log.error("group work failed: %(work)s; please report this", {"work": task.get_name()}, exc_info=error)

    def new_writer(self, partition: Partition, on_ended: Callable[[ErrorCode], None]) -> Writer:
        """What appends to a partition here."""
        return Writer(
            partition=partition,
            on_ended=on_ended,
            room=self._storage.room,
            start_task=self._start,
            wall_ms=self._now_ms,
        )

    def now(self) -> Now:
        return Now(int(asyncio.get_running_loop().time() * 1000), self._now_ms())

    # ---- loading ----------------------------------------------------------------------------------------------------

    async def _load(self, place: _Place) -> None:
        partition = place.partition
        while not place.closed:
            try:
                async with self._loading:
                    shard = await self._replayed(place)
                await self._partitions.wait_state(partition)
            except StreamClosed:
                return
            except (StorageError, ObjectStoreError) as error:
                log.warning(
                    "groups cannot be loaded yet: %(error)s (%(partition)s)", {"partition": partition, "error": error}
                )
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            except Malformed as error:
                place.failure = f"the groups of {partition} cannot be read: {error}"
                log.error(
                    "groups cannot be read: %(error)s; upgrade this broker, or delete the topic to start without its groups",
                    {"partition": partition, "error": place.failure},
                )
                return
            finally:
                place.loaded.set()
            place.open(shard)
            return

    async def _replayed(self, place: _Place) -> Shard:
        settings = self._settings
        shard = Shard(limits=settings.limits, offset_limits=settings.offset_limits, budget=self._budget)
        stream = place.partition.stream
        place.writer.records = place.writer.bytes = 0
        unknown = 0
        async for buffer, positions in stream.replay(stream.log_start_offset):
            # Copied: a view of the arena is good until the next await only, and there may be many batches.
            payloads = [_batch_at(buffer, position) for position in positions]
            for at, payload in enumerate(payloads):
                for record in iter_records(payload, max_output_bytes=MAX_REPLAYED_BATCH_BYTES):
                    place.writer.records += 1
                    if record.key is None or not shard.replay(record.key, record.value):
                        unknown += 1
                place.writer.bytes += len(payload)
                if at % REPLAY_BATCHES_AT_A_TIME == REPLAY_BATCHES_AT_A_TIME - 1:
                    await asyncio.sleep(0)
        if unknown:
            log.warning(
                "records of an unknown kind skipped: %(count)d of %(partition)s",
                {"partition": place.partition, "count": unknown},
            )
        for _ in shard.restore():
            await asyncio.sleep(0)
        return shard

    # ---- the log's size -----------------------------------------------------------------------------------------------

    def snapshot_later(self, place: _Place) -> None:
        """Write what is live of a shard once more, and trim its log."""
        place.snapshot_under_way = True
        self._start(self._snapshot(place), f"groups: snapshot {place.partition}")

    async def _snapshot(self, place: _Place) -> None:
        try:
            if place.trim_wanted is None:
                place.trim_wanted = await self._write_snapshot(place)
            if place.trim_wanted is not None:
                await self._trim(place, place.trim_wanted)
                return
        except (StorageError, ObjectStoreError, WalError, KafkaError) as error:
            log.warning(
                "the log of groups is not trimmed yet: %(error)s (%(partition)s)",
                {"partition": place.partition, "error": error},
            )
        else:
            log.info("the log of groups is not written anew yet: %(partition)s", {"partition": place.partition})
        finally:
            place.snapshot_under_way = False
            place.snapshot_not_before_s = asyncio.get_running_loop().time() + SNAPSHOT_RETRY_DELAY_S

    async def _write_snapshot(self, place: _Place) -> _Trim | None:
        """Append every live record; what may be trimmed then, or None where not all could be written."""
        # Records below are in the shard; those that are not durable yet, or come now, are at or past it.
        place.writer.settle()
        failures = place.writer.failures
        wanted = _Trim(place.partition.stream.confirmed_offset, place.writer.records, place.writer.bytes)
        rows = place.shard.snapshot()
        while part := list(islice(rows, SNAPSHOT_ROWS)):
            if place.closed or not await place.writer.append_now(part):
                return None
        # What was under way was left out, for its newer version. Where that one failed, the log before is still needed.
        await place.writer.all_ended()
        return None if place.closed or place.writer.failures != failures else wanted

    async def _trim(self, place: _Place, wanted: _Trim) -> None:
        await place.partition.stream.trim(wanted.log_start_offset)
        place.trim_wanted = None
        place.writer.records -= wanted.records
        place.writer.bytes -= wanted.bytes
        log.info(
            "the log of groups was written anew: %(partition)s now starts at offset %(log_start_offset)d and holds %(count)d records",
            {"partition": place.partition, "log_start_offset": wanted.log_start_offset, "count": place.writer.records},
        )


class _Trim(NamedTuple):
    """A part of a log that a snapshot stands for."""

    log_start_offset: int
    records: int
    bytes: int


class _Place:
    """One partition: its shard, its timer, and what appends to it."""

    def __init__(self, coordinator: GroupCoordinator, partition: Partition) -> None:
        self.partition = partition
        self.loaded = asyncio.Event()
        self.failure: str | None = None
        self.closed = False
        self.writer = coordinator.new_writer(partition, lambda error: self.handle(Stored(error_code=error)))
        self.snapshot_under_way = False
        self.snapshot_not_before_s = 0.0
        self.trim_wanted: _Trim | None = None
        """A snapshot that is written, whose trim did not succeed yet."""
        self.deleted_topics: list[str] = []
        """Those that were deleted while it was loaded."""
        self.shard: Shard
        self.is_ready = False
        self._coordinator = coordinator
        self._look_at_records = self._look_at_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def open(self, shard: Shard) -> None:
        """The log was replayed: begin."""
        if self.closed:
            return
        self.shard = shard
        self.is_ready = True
        now = self._coordinator.now()
        self._run(shard.loaded(now))
        for name in self.deleted_topics:
            self._run(shard.handle(TopicDeleted(topic=name), now))
        self._after()

    def close(self, error: ErrorCode) -> None:
        """Tell everybody who waits, and stop."""
        self.closed = True
        self.loaded.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.is_ready:
            self.is_ready = False
            for effect in self.shard.close(error):
                if isinstance(effect, Reply):
                    effect.token(effect.response)
            self.writer.close(error)

    def handle(self, event: Event) -> None:
        """Let the shard decide, and do what follows."""
        self._run(self.shard.handle(event, self._coordinator.now()))
        self._after()

    def _run(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Append):
                self.writer.append(effect.rows)
            else:
                effect.token(effect.response)

    def _after(self) -> None:
        if self.closed:
            return
        self._arm()
        if not self.snapshot_under_way and self._is_past_look:
            self._look_at_length()

    @property
    def _is_past_look(self) -> bool:
        return self.writer.records >= self._look_at_records or self.writer.bytes >= self._look_at_bytes

    def _look_at_length(self) -> None:
        """Have the log written anew, if it is long for what it holds; else say when that is to be looked at again."""
        self._look_at_records = max(SNAPSHOT_MIN_RECORDS, SNAPSHOT_RATIO * self.shard.live_record_count)
        self._look_at_bytes = max(SNAPSHOT_MIN_BYTES, SNAPSHOT_RATIO * self.shard.live_bytes)
        if self._is_past_look and asyncio.get_running_loop().time() >= self.snapshot_not_before_s:
            self._coordinator.snapshot_later(self)

    # ---- time ---------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        due_ms = self.shard.next_deadline_ms
        if due_ms is None:
            return
        due_s = due_ms / 1000
        if self._timer is None or due_s < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(due_s, self._tick, due_s)

    def _tick(self, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if loop.time() - due_s > LATE_TICK_S:
            later_s = loop.time() + LATE_TICK_DELAY_S
            self._timer = loop.call_at(later_s, self._tick, later_s)
        else:
            self.handle(Tick())


def _batch_at(buffer: Buffer, position: int) -> bytes:
    size_bytes = batch_bounds(buffer, position).size_bytes
    return bytes(memoryview(buffer)[position : position + size_bytes])
