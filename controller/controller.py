"""The controller: commands in, committed metadata out. Here it runs inside the node.

Theory of operation. One driver task owns all progress. When the slot for the next entry is free it takes every command
that waits, decides them one by one on the *ahead* state, which includes what earlier commands of the same entry change,
and writes all their records as one entry (group commit). Once the entry counts, the same records are applied to the
*image*, and the replies go out. An entry that turns out to be another's leaves the image as it is: the office is taken
again, and the commands are decided anew.

The office is taken when there is something to write, and kept until somebody else takes it. So several nodes with a
controller each work on one bucket, slowly if they all write at once, and a cluster that changes nothing sends nothing.

Always true:
- The image holds entries that everybody will apply, in order, and nothing else (I9). Ahead is image, or image plus the
  entry in flight.
- One entry is in flight. Errors are answered as late as successes: what they were decided on is committed by then.
- A reply means: committed, and applied to the image. `MetadataUnavailable` leaves open whether it will be.
- What this version does not understand, or damage, stops the controller: every command then raises, `on_failure` is told.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from controller.commands import Command
from controller.config import ControllerSettings
from controller.entry import Entry, EntryHeader
from controller.errors import ControllerError, InvariantViolated, MetadataCorrupt
from controller.image import Applied, Image, Topic
from controller.invariants import check_all
from controller.log import Behind, Claim, Floor, MetadataLog
from controller.node_metadata import NodeMetadata
from controller.nodes import NodeRegistration, RegisterNode, UnregisterNode
from controller.records import LeaderChanged, Record, encode_records
from controller.snapshot import capture
from controller.state import FormatCluster, State
from controller.streams import AbandonWal
from controller.topics import ConfigureTopic, CreateTopics, DeleteTopics, NewTopic
from s3stream.errors import MetadataUnavailable
from s3stream.metadata import StreamId
from s3stream.objectstore import ObjectStore
from s3stream.paths import Paths
from wal import crashpoint

__all__ = ["Controller", "TopicSpec"]

R = TypeVar("R")

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic that is wanted; name and configs were validated by the caller."""

    name: str
    partition_count: int
    configs: Mapping[str, str] = field(default_factory=dict)


class _Waiting:
    """A command and whoever waits for its outcome."""

    __slots__ = ("command", "future")

    def __init__(self, command: Command[Any], future: asyncio.Future[Any]) -> None:
        self.command = command
        self.future = future


@dataclass(slots=True)
class _Batch:
    """Decided commands that become one entry."""

    members: list[_Waiting] = field(default_factory=list)
    outcomes: list[Any] = field(default_factory=list)
    """By member: a reply, or the exception to raise."""
    records: list[Record] = field(default_factory=list)
    encoded: list[msgspec.Raw] = field(default_factory=list)
    size_bytes: int = 0

    def resolve(self) -> None:
        for member, outcome in zip(self.members, self.outcomes, strict=True):
            _resolve(member, outcome)


def _resolve(member: _Waiting, outcome: Any) -> None:
    if member.future.done():
        return
    if isinstance(outcome, Exception):
        member.future.set_exception(outcome)
    else:
        member.future.set_result(outcome)


class Controller:
    """Made with `start`, ended with `close`."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        paths: Paths,
        settings: ControllerSettings,
        now_ms: Callable[[], int],
        rng: random.Random,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._rng = rng
        self._on_failure = on_failure
        self._log = MetadataLog(store=store, paths=paths, settings=settings, rng=rng)
        self._cluster_id = ""
        self._image = Image(State())
        self._next_index = 0
        """Index of the first entry that the image does not hold."""
        self._ahead: State | None = None
        """Present while this controller holds the office, as far as it knows."""
        self._claim: Claim | None = None
        self._queue: deque[_Waiting] = deque()
        self._work = asyncio.Event()
        self._closing = False
        self._failure: BaseException | None = None
        self._driver: asyncio.Task[None] | None = None
        self._snapshot_task: asyncio.Task[None] | None = None
        self._refreshing: list[asyncio.Future[None]] = []
        self._in_flight: EntryHeader | None = None
        self._entries_since_snapshot = 0
        self._bytes_since_snapshot = 0
        self._snapshot_size_bytes = 0
        self._subscribers: list[Callable[[Applied], None]] = []

    @classmethod
    async def start(
        cls,
        *,
        store: ObjectStore,
        paths: Paths,
        settings: ControllerSettings,
        now_ms: Callable[[], int],
        rng: random.Random,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> Controller:
        """Read the metadata log to its tail, formatting the bucket if it is new.

        Raises:
            MetadataUnavailable: the bucket did not answer within `command_timeout_ms`.
            WrongCluster, UnsupportedMetadata, MetadataCorrupt: not a bucket for this node; the message says what to do.
        """
        self = cls(store=store, paths=paths, settings=settings, now_ms=now_ms, rng=rng, on_failure=on_failure)
        fallback_id = _random_uuid(rng).hex()
        try:
            async with asyncio.timeout(settings.command_timeout_ms / 1_000):
                self._cluster_id = await self._log.ensure_cluster(settings.cluster_id, fallback_id, now_ms())
                floor = await self._log.read_floor()
                if floor.snapshot_index >= 0:
                    await self._load_snapshot(floor.snapshot_index)
                await self._catch_up()
        except TimeoutError as error:
            raise self._unavailable("start") from error
        if self._image.cluster_id not in ("", self._cluster_id):
            raise MetadataCorrupt(
                f"{paths.cluster} says cluster {self._cluster_id}, the metadata log {self._image.cluster_id}: "
                "were objects of two clusters copied into one bucket?"
            )
        self._driver = asyncio.create_task(self._drive(), name="controller")
        return self

    async def close(self, timeout_ms: int = 2_000) -> None:
        """Finish the entry in flight and the commands that wait, for a bounded time, and stop. Idle: sends nothing."""
        self._closing = True
        self._work.set()
        if self._driver is not None:
            await asyncio.wait([self._driver], timeout=timeout_ms / 1_000)
        tasks = [task for task in (self._driver, self._snapshot_task) if task is not None]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        self._driver = self._snapshot_task = None
        self._refuse_all("the controller is closed")

    # ---- reads

    @property
    def cluster_id(self) -> str:
        """Of the bucket; 32 hex digits unless configured."""
        return self._cluster_id

    @property
    def image(self) -> Image:
        """What is committed, as far as this node has read."""
        return self._image

    @property
    def is_leader(self) -> bool:
        """True while this controller holds the office, as far as it knows."""
        return self._claim is not None

    @property
    def failure(self) -> BaseException | None:
        """Why the controller stopped for good, if it did."""
        return self._failure

    @property
    def applied_index(self) -> int:
        """Index of the last entry in the image; -1 before the first."""
        return self._next_index - 1

    def now_ms(self) -> int:
        return self._now_ms()

    def subscribe(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """Be told, on the event loop and before the command's own reply, of every entry applied from now on.

        The callback must be quick and must not raise (that stops the controller). Returns how to unsubscribe.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def refresh(self) -> None:
        """Read the log to its tail. Needed only where other nodes write too. Raises MetadataUnavailable."""
        self._check_running()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refreshing.append(future)
        await self._answer(future, "refresh")

    # ---- commands

    def bind(self, node_id: int, node_epoch: int) -> NodeMetadata:
        """The metadata as the storage engine of a registered node uses it."""
        return NodeMetadata(
            self, node_id=node_id, node_epoch=node_epoch, object_id_block_size=self._settings.object_id_block_size
        )

    async def register_node(
        self, node_id: int, wal_id: str, *, wal_epoch: int = 0, address: str = "", rack: str = ""
    ) -> NodeRegistration:
        """Register a node that came up, fencing its earlier registrations.

        Raises:
            NodeRefused: its WAL is not the one that its streams are open on; the message says what to do.
        """
        return await self.submit(
            RegisterNode(
                node_id=node_id, wal_id=wal_id, wal_epoch=wal_epoch, address=address, rack=rack, at_ms=self._now_ms()
            )
        )

    async def unregister_node(self, node_id: int) -> None:
        """Remove a node that leads nothing. Raises NodeRefused."""
        await self.submit(UnregisterNode(node_id=node_id))

    async def create_topics(
        self, specs: Sequence[TopicSpec], *, leaders: Sequence[int] = ()
    ) -> Mapping[str, Topic | ControllerError]:
        """Create topics, each for itself; the answer has a topic or TopicExists, TooManyPartitions, NoNodes by name.

        `leaders` are the nodes that may lead the partitions; empty: every registered one.
        """
        topics = tuple(
            NewTopic(
                name=spec.name,
                topic_id=_random_uuid(self._rng),
                partition_count=spec.partition_count,
                configs=spec.configs,
                leaders=tuple(leaders),
            )
            for spec in specs
        )
        made = await self.submit(
            CreateTopics(topics=topics, max_partitions=self._settings.max_partitions, at_ms=self._now_ms())
        )
        return {
            name: outcome if isinstance(outcome, ControllerError) else self._created(outcome)
            for name, outcome in made.items()
        }

    def _created(self, topic_id: bytes) -> Topic:
        topic = self._image.topic_by_id(topic_id)
        assert topic is not None, "replies go out right after their entry was applied"
        return topic

    async def delete_topics(self, topic_ids: Sequence[bytes]) -> Mapping[bytes, ControllerError | None]:
        """Delete topics; the answer has None or UnknownTopic by id. The names are free at once."""
        return await self.submit(DeleteTopics(topic_ids=tuple(topic_ids), at_ms=self._now_ms()))

    async def configure_topic(self, topic_id: bytes, changes: Mapping[str, str | None]) -> None:
        """Set configs, and remove those given as None. Raises UnknownTopic."""
        await self.submit(ConfigureTopic(topic_id=topic_id, changes=dict(changes)))

    async def abandon_wal(self, wal_id: str, *, slack_offsets: int) -> Mapping[StreamId, tuple[int, int]]:
        """Give up a WAL that is lost for good; returns the gap [start, end) of each partition that was open on it."""
        return await self.submit(AbandonWal(wal_id=wal_id, slack_offsets=slack_offsets, at_ms=self._now_ms()))

    async def submit(self, command: Command[R]) -> R:
        """Have a command decided and committed, and the image brought up to it.

        Raises:
            MetadataUnavailable: the bucket cannot be reached; whether the command takes effect is open.
            Exception: those that the command names.
        """
        self._check_running()
        if len(self._queue) >= self._settings.max_pending_commands:
            raise MetadataUnavailable(f"{len(self._queue)} commands wait already: {self._why()}")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(command, future))
        return await self._answer(future, type(command).__name__)

    def _check_running(self) -> None:
        if self._failure is not None:
            raise MetadataUnavailable(f"the controller stopped: {self._failure}") from self._failure
        if self._closing:
            raise MetadataUnavailable("the controller is closed")

    async def _answer(self, future: asyncio.Future[R], what: str) -> R:
        self._work.set()
        try:
            async with asyncio.timeout(self._settings.command_timeout_ms / 1_000):
                return await future
        except TimeoutError as error:
            raise self._unavailable(what) from error

    def _unavailable(self, what: str) -> MetadataUnavailable:
        return MetadataUnavailable(f"{what} got no answer within {self._settings.command_timeout_ms} ms: {self._why()}")

    def _why(self) -> str:
        error = self._log.last_error
        return "the bucket is slow" if error is None else f"the bucket answers {type(error).__name__}: {error}"

    # ---- the driver

    async def _drive(self) -> None:
        try:
            while self._failure is None:
                if self._refreshing:
                    await self._refresh()
                elif self._queue:
                    await self._work_off()
                elif self._closing:
                    return
                else:
                    self._work.clear()
                    await self._work.wait()
        except Exception as error:
            self._fail(error)

    async def _refresh(self) -> None:
        waiting, self._refreshing = self._refreshing, []
        index = self._next_index
        await self._catch_up()
        if self._next_index != index:
            self._step_down()  # somebody else wrote
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _work_off(self) -> None:
        """Decide what waits, and commit it."""
        if self._claim is None:
            await self._take_office()
        batch = self._decide()
        try:
            if not batch.records:
                batch.resolve()
            elif not await self._commit(batch):
                self._step_down()
                await self._settle(batch)
        except BaseException:
            for member in batch.members:
                _resolve(member, MetadataUnavailable("the controller stopped; whether this took effect is open"))
            raise

    async def _take_office(self) -> None:
        """Claim the leader object, read to the tail, and say so in the log."""
        while True:
            claim = await self._log.take_office(self._settings.leader_address, self._image.controller_epoch)
            while True:
                await self._catch_up()
                if self._image.controller_epoch >= claim.controller_epoch:
                    break
                records: list[Record] = [
                    LeaderChanged(controller_epoch=claim.controller_epoch, leader=self._settings.leader_address)
                ]
                records.extend(self._image.state.handle(FormatCluster(cluster_id=self._cluster_id)).records)
                if await self._append(claim, records, encode_records(records)):
                    self._claim = claim
                    self._ahead = self._image.state.copy()
                    return
                if not await self._log.still_leads(claim):
                    break
            await self._pause()

    def _step_down(self) -> None:
        self._claim = None
        self._ahead = None

    async def _pause(self) -> None:
        """Leave another controller time to get something done before the office is taken from it."""
        await asyncio.sleep(self._rng.uniform(0.5, 4.0) * self._settings.retry_backoff_ms / 1_000)

    def _decide(self) -> _Batch:
        """Decide waiting commands on the ahead state, up to the size of an entry."""
        batch = _Batch()
        while self._queue and batch.size_bytes < self._settings.max_entry_bytes:
            member = self._queue.popleft()
            if member.future.done():
                continue
            batch.members.append(member)
            batch.outcomes.append(self._decided(member.command, batch))
        return batch

    def _decided(self, command: Command[Any], batch: _Batch) -> Any:
        assert self._ahead is not None, "commands are decided in office"
        try:
            decision = self._ahead.handle(command)
        except Exception as error:  # the command's own: its sender is told, the state is as it was
            return error
        try:
            for record in decision.records:
                self._ahead.check_and_apply(record)
        except InvariantViolated as error:
            _log.error("refused %s: %s", type(command).__name__, error)
            self._ahead = self._image.state.copy()
            for record in batch.records:
                self._ahead.apply(record)
            return error
        for record in decision.records:
            encoded = msgspec.msgpack.encode(record)
            batch.records.append(record)
            batch.encoded.append(msgspec.Raw(encoded))
            batch.size_bytes += len(encoded)
        return decision.reply

    async def _commit(self, batch: _Batch) -> bool:
        """Append a batch and answer its members; False where the office may be lost."""
        assert self._claim is not None, "entries are written in office"
        if not await self._append(self._claim, batch.records, msgspec.msgpack.encode(batch.encoded)):
            return False
        batch.resolve()
        self._consider_snapshot()
        return True

    async def _append(self, claim: Claim, records: Sequence[Record], body: bytes) -> bool:
        """Append an entry and apply it, if it counts."""
        header = EntryHeader(
            index=self._next_index, controller_epoch=claim.controller_epoch, nonce=self._rng.randbytes(16)
        )
        self._in_flight = header
        if not await self._log.append(header, body) or not await self._log.still_leads(claim):
            return False
        self._apply(Entry(header=header, records=records, size_bytes=len(body)))
        return True

    async def _settle(self, batch: _Batch) -> None:
        """Find out what became of a batch whose entry did not count for certain, and answer or decide it anew."""
        assert self._in_flight is not None, "an entry was being written"
        applied = await self._catch_up(self._in_flight)
        if applied:
            batch.resolve()
        elif applied is False:
            self._queue.extendleft(reversed(batch.members))
        else:
            for member in batch.members:
                _resolve(member, MetadataUnavailable("the office was lost meanwhile; whether this took effect is open"))
        await self._pause()

    # ---- applying

    async def _catch_up(self, watched: EntryHeader | None = None) -> bool | None:
        """Read and apply the log to its tail.

        Tells whether the watched entry was applied (True), another stands in its slot (False), or a snapshot was loaded
        in which it may or may not be (None).
        """
        outcome: bool | None = None
        read_ahead = 1
        missing_snapshot = -1
        while True:
            read = await self._log.read(self._next_index, read_ahead)
            if isinstance(read, Behind):
                if read.snapshot_index == missing_snapshot:
                    raise MetadataCorrupt(
                        f"the metadata snapshot as of entry {missing_snapshot}, which the floor names, is missing: "
                        "does something else delete from the bucket?"
                    )
                missing_snapshot = -1 if await self._load_snapshot(read.snapshot_index) else read.snapshot_index
                continue
            for entry in read.entries:
                if watched is not None and entry.header.index == watched.index:
                    outcome = entry.header.nonce == watched.nonce
                self._apply(entry)
            if read.at_tail:
                return outcome
            read_ahead *= 2

    async def _load_snapshot(self, index: int) -> bool:
        """Show the state as of a snapshot; False where it is gone."""
        loaded = await self._log.load_snapshot(index)
        if loaded is None:
            return False
        state, self._snapshot_size_bytes = loaded
        check_all(state.tables)
        self._image.replace(state)
        self._next_index = index + 1
        self._entries_since_snapshot = self._bytes_since_snapshot = 0
        self._tell(Applied(index=index, records=(), topic_ids=frozenset(state.tables.topics), is_reset=True))
        return True

    def _apply(self, entry: Entry) -> None:
        """Apply the entry that is next, unless its writer had been deposed before."""
        header, records = entry.header, entry.records
        assert header.index == self._next_index, "entries are applied in sequence"
        if header.controller_epoch > self._image.controller_epoch and not (
            records and isinstance(records[0], LeaderChanged) and records[0].controller_epoch == header.controller_epoch
        ):
            raise MetadataCorrupt(
                f"entry {header.index} is of controller epoch {header.controller_epoch}, which never took office: "
                "was the metadata log tampered with?"
            )
        if header.controller_epoch < self._image.controller_epoch:
            records = ()
        topic_ids: set[bytes] = set()
        for record in records:
            topic_ids |= self._image.state.apply(record).topics
        self._image.forget(topic_ids)
        self._next_index += 1
        self._entries_since_snapshot += 1
        self._bytes_since_snapshot += entry.size_bytes
        self._tell(Applied(index=header.index, records=records, topic_ids=frozenset(topic_ids), is_reset=False))

    def _tell(self, applied: Applied) -> None:
        for callback in tuple(self._subscribers):
            callback(applied)

    # ---- snapshots

    def _consider_snapshot(self) -> None:
        """Take a snapshot, beside further commits, when enough was written since the last one."""
        due = self._entries_since_snapshot >= self._settings.snapshot_interval_entries or (
            self._bytes_since_snapshot >= max(self._settings.snapshot_interval_bytes, self._snapshot_size_bytes)
        )
        if due and self._snapshot_task is None and not self._closing:
            self._snapshot_task = asyncio.create_task(self._snapshot(), name="metadata-snapshot")

    async def _snapshot(self) -> None:
        try:
            taken = capture(self._image.state, self.applied_index)
            self._entries_since_snapshot = self._bytes_since_snapshot = 0
            self._snapshot_size_bytes = await self._log.put_snapshot(taken)
            crashpoint.reach("metadata.snapshot")
            floor = Floor(index=max(taken.index + 1 - self._settings.retained_entries, 0), snapshot_index=taken.index)
            await self._log.raise_floor(floor)
            await self._log.delete_below(floor)
        except Exception as error:
            self._fail(error)
        finally:
            self._snapshot_task = None

    # ---- the end

    def _fail(self, error: BaseException) -> None:
        """Stop for good: nothing is trusted after an error that was not foreseen."""
        if self._failure is not None:
            return
        self._failure = error
        self._step_down()
        self._refuse_all(f"the controller stopped: {error}")
        _log.error("the controller stopped: %s", error)
        if self._on_failure is not None:
            self._on_failure(error)

    def _refuse_all(self, why: str) -> None:
        while self._queue:
            _resolve(self._queue.popleft(), MetadataUnavailable(why))
        for future in self._refreshing:
            if not future.done():
                future.set_exception(MetadataUnavailable(why))
        self._refreshing.clear()


def _random_uuid(rng: random.Random) -> bytes:
    """A version 4 UUID, so never one of the ids that Kafka reserves (zero and one)."""
    value = bytearray(rng.randbytes(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    return bytes(value)
