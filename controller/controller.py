"""The controller of a node: commands in, committed metadata out, whoever leads.

Theory of operation. One driver task owns all progress. When the slot for the next entry is free it takes every command
that waits, decides them one by one on the *ahead* state, which includes what earlier commands of the same entry change,
and writes all their records as one entry (group commit). Once the entry counts, the same records are applied to the
*image*, and the replies go out. An entry that turns out to be another's leaves the image as it is: the office is taken
again, and the commands are decided anew.

Every node has one. Given `peers`, one of them leads, and the others follow it (`follower.py`): their commands are decided by the
leader, and its entries reach them within a round trip. Without peers the office is taken when there is something to write, and kept
until somebody else takes it: several nodes work on one bucket even so, slowly if they all write at once. Either way safety lies in the bucket alone.

Always true:
- The image holds entries that everybody will apply, in order, and nothing else (I9). Ahead is image, or image plus the
  entry in flight.
- One entry is in flight. Errors are answered as late as successes: what they were decided on is committed by then.
- A reply means: committed, and applied to this node's image, wherever it was decided. `MetadataUnavailable` leaves open
  whether it will be.
- What this version does not understand, or damage, stops the controller: every command then raises, `on_failure` is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from controller.balancing import Balancing
from controller.batch import Batch, Waiting
from controller.commands import Command, NodeCommand, check_node
from controller.config import ControllerSettings
from controller.detection import Detection
from controller.entry import Entry, EntryHeader, encode_entry
from controller.errors import MetadataCorrupt
from controller.follower import Follower
from controller.image import Applied, Image
from controller.lease import boottime_s
from controller.log import Claim, Floor, LeaderObject, MetadataLog
from controller.node_metadata import NodeMetadata
from controller.operations import Operations, TopicSpec, random_uuid
from controller.peers import Balance, Followed, Following, NodeLoad, NotLeader, Peers, PeerUnavailable
from controller.recent import RecentEntries
from controller.records import LeaderChanged, Record, encode_records
from controller.replica import Replica
from controller.snapshot import capture
from controller.state import FormatCluster, State
from controller.wire import Outcome
from s3stream.errors import MetadataUnavailable, NodeFenced
from s3stream.objectstore import ObjectStore
from s3stream.paths import Paths
from wal import crashpoint

__all__ = ["Controller", "TopicSpec"]

R = TypeVar("R")

_log: Final = logging.getLogger("tidelog.controller")


class Controller(Operations):
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
        clock: Callable[[], float] = boottime_s,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._now_ms = now_ms
        self._rng = rng
        self._on_failure = on_failure
        self._log = MetadataLog(store=store, paths=paths, settings=settings, rng=rng)
        self._cluster_id = ""
        self._replica = Replica(self._log)
        self._ahead: State | None = None
        """Present while this controller holds the office, as far as it knows."""
        self._claim: Claim | None = None
        self._queue: deque[Waiting] = deque()
        self._work = asyncio.Event()
        self._closing = False
        self._timeout_ms = settings.command_timeout_ms
        self._failure: BaseException | None = None
        self._driver: asyncio.Task[None] | None = None
        self._snapshot_task: asyncio.Task[None] | None = None
        self._refreshing: list[asyncio.Future[None]] = []
        # ---- among others
        self._peers: Peers | None = None
        self._leader = ""
        """Where commands go while another node leads; empty while nobody is known to."""
        self._running_for_office: list[tuple[LeaderObject | None, asyncio.Future[None]]] = []
        """Who is to be replaced, and who waits for that."""
        self._received: deque[tuple[Sequence[Entry], asyncio.Future[None]]] = deque()
        self._recent = RecentEntries()
        self._changed = asyncio.Event()
        """Set, and replaced, when an entry was applied, or the office or the known leader changed."""
        self._tasks: list[asyncio.Task[None]] = []
        self._node_id = -1
        self._follower: Follower | None = None
        self.balancing: Balancing | None = None
        """While it works with others."""
        self.detection: Detection | None = None
        """Likewise."""
        self.replaced_address = ""
        """Of the node that held the office before this one ran for it the last time, since that did not answer."""
        self.office_seen_s = float("-inf")
        """When the newest look at the leader object began that found this node in office, by the clock of leases."""

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
        clock: Callable[[], float] = boottime_s,
    ) -> Controller:
        """Read the metadata log to its tail, formatting the bucket if it is new. `clock` is that of leases, in seconds.

        Raises:
            MetadataUnavailable: the bucket did not answer within `start_timeout_ms`.
            AccessDenied: the bucket refuses these credentials.
            WrongCluster, UnsupportedMetadata, MetadataCorrupt: not a bucket for this node; the message says what to do.
        """
        self = cls(
            store=store, paths=paths, settings=settings, now_ms=now_ms, rng=rng, on_failure=on_failure, clock=clock
        )
        fallback_id = random_uuid(rng).hex()
        with self.patience():
            try:
                async with asyncio.timeout(self._timeout_ms / 1_000):
                    self._cluster_id = await self._log.ensure_cluster(settings.cluster_id, fallback_id, now_ms())
                    await self._replica.start()
                    await self._refuse_lost_log(paths)
            except TimeoutError as error:
                raise self._unavailable("start") from error
        if self.image.cluster_id not in ("", self._cluster_id):
            raise MetadataCorrupt(
                f"{paths.cluster} says cluster {self._cluster_id}, the metadata log {self.image.cluster_id}: "
                "were objects of two clusters copied into one bucket?"
            )
        self._log.bears_refusal = True
        self._driver = asyncio.create_task(self._drive(), name="controller")
        return self

    async def _refuse_lost_log(self, paths: Paths) -> None:
        if self._replica.next_index > 0 or not await self._log.was_used():
            return
        await self._replica.catch_up()  # another node may have begun meanwhile
        if self._replica.next_index == 0:
            raise MetadataCorrupt(
                f"the metadata log is gone, and what it led to is there ({paths.log_prefix}, {paths.floor}): something else "
                "deletes from the bucket. Put back what was deleted, from the bucket's versions or a copy; or give a new cluster "
                "an empty prefix"
            )

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Within, commands wait for the bucket as long as a start does: no client waits for their answer."""
        self._timeout_ms = self._settings.start_timeout_ms
        try:
            yield
        finally:
            self._timeout_ms = self._settings.command_timeout_ms

    def join(self, peers: Peers, *, node_id: int) -> None:
        """Work with the controllers of other nodes from now on, which reach this one at `leader_address`."""
        assert self._settings.leader_address, "others find the leader by its address"
        self._peers = peers
        self._node_id = node_id
        self._follower = Follower(self, peers, node_id=node_id, settings=self._settings, rng=self._rng)
        self.balancing = Balancing(self, node_id=node_id, settings=self._settings)
        self.detection = Detection(self, node_id=node_id, settings=self._settings)
        for name, work in (
            ("metadata-detection", self.detection.run()),
            ("metadata-follower", self._follower.run()),
            ("metadata-office", self._look_at_office()),
            ("metadata-balancing", self.balancing.run()),
        ):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    async def give_away(self, timeout_ms: int) -> bool:
        """Have all partitions of this node moved to others, while it serves on; False: not all of them in time, or there are no others."""
        if self._follower is None or self.balancing is None:
            return False
        self._follower.leaves = True
        self.balancing.leave()
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                while self.image.streams_led_by(self._node_id):
                    if self.is_leader and self.balancing.nobody_takes:
                        break
                    await self._until_changed(self._settings.retry_backoff_ms)
        except TimeoutError:
            pass
        left = len(self.image.streams_led_by(self._node_id))
        if left:
            _log.info("partitions stay with this node, though it stops: %(count)d", {"count": left})
        return not left

    def keep_all(self) -> None:
        """Move no partitions any more: this node stops, and so do all others."""
        if self.balancing is not None:
            self.balancing.is_over = True

    async def close(self, timeout_ms: int = 2_000) -> None:
        """Finish the entry in flight and the commands that wait, for a bounded time, and stop. Idle: sends nothing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._closing = True
        self._work.set()
        self._tell_changed()  # followers in waiting are sent away
        if self._driver is not None:
            await asyncio.wait([self._driver], timeout=timeout_ms / 1_000)
        if self._claim is not None and self._peers is not None:
            with contextlib.suppress(TimeoutError):  # then the others wait out their election timeout
                async with asyncio.timeout(timeout_ms / 1_000):
                    await self._log.resign(self._claim)
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
        return self._replica.image

    @property
    def address(self) -> str:
        """`host:port` by which other nodes reach this one; empty: it is alone."""
        return self._settings.leader_address

    @property
    def settings(self) -> ControllerSettings:
        """As it was started with."""
        return self._settings

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
        return self._replica.next_index - 1

    @property
    def snapshot_size_bytes(self) -> int:
        """Of the newest snapshot that was loaded or written here; 0 before the first."""
        return self._replica.snapshot_size_bytes

    @property
    def bytes_since_snapshot(self) -> int:
        """Of the entries applied since then."""
        return self._replica.bytes_since_snapshot

    def now_ms(self) -> int:
        return self._now_ms()

    def subscribe(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """Be told, on the event loop and before the command's own reply, of every entry applied from now on.

        The callback must be quick and must not raise (that stops the controller). Returns how to unsubscribe.
        """
        return self._replica.subscribe(callback)

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

    async def submit(self, command: Command[R]) -> R:
        """Have a command decided and committed, here or by the node that leads, and the image brought up to it.

        Raises:
            MetadataUnavailable: the bucket cannot be reached; whether the command takes effect is open.
            Exception: those that the command names.
        """
        if self._peers is None:
            return await self._submit_here(command)
        try:
            async with asyncio.timeout(self._timeout_ms / 1_000):
                while True:
                    try:
                        if self._claim is not None:
                            return await self._submit_here(command)
                        return await self._submit_there(self._peers, command)
                    except NotLeader:
                        await self._until_changed(self._settings.retry_backoff_ms)
        except TimeoutError as error:
            raise self._unavailable(type(command).__name__) from error

    async def decide(self, command: Command[R]) -> R:
        """Have a command decided and committed here, and nowhere else: it says what this leader found. Raises NotLeader, as `submit`."""
        if self._claim is None:
            raise NotLeader(f"{self._settings.leader_address} does not lead")
        return await self._submit_here(command)

    async def _submit_there(self, peers: Peers, command: Command[R]) -> R:
        """Have the leader decide. Raises NotLeader where nothing came of it, and also the errors of `submit`."""
        self._check_running()
        if not self._leader:
            raise NotLeader("nobody is known to lead")
        try:
            outcome = await peers.submit(self._leader, command)
        except PeerUnavailable as error:
            if error.sent and not command.REPEATABLE:
                raise MetadataUnavailable(f"{error}; whether this took effect is open") from error
            raise NotLeader(str(error)) from error
        await self._until_applied(outcome.index)
        if isinstance(outcome.result, Exception):
            raise outcome.result
        result: R = outcome.result
        return result

    async def _submit_here(self, command: Command[R]) -> R:
        self._check_running()
        if len(self._queue) >= self._settings.max_pending_commands:
            self._queue = deque(member for member in self._queue if not member.future.done())
        if len(self._queue) >= self._settings.max_pending_commands:
            raise MetadataUnavailable(f"{len(self._queue)} commands wait already: {self._why()}")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(command, future))
        return await self._answer(future, type(command).__name__)

    def _check_running(self) -> None:
        if self._failure is not None:
            raise MetadataUnavailable(f"the controller stopped: {self._failure}") from self._failure
        if self._closing:
            raise MetadataUnavailable("the controller is closed")

    async def _answer(self, future: asyncio.Future[R], what: str) -> R:
        self._work.set()
        try:
            async with asyncio.timeout(self._timeout_ms / 1_000):
                return await future
        except TimeoutError as error:
            raise self._unavailable(what) from error

    # ---- among others

    @property
    def next_index(self) -> int:
        """Index of the first entry that this node has not applied."""
        return self._replica.next_index

    async def submitted(self, command: Command[Any]) -> Outcome:
        """See PeerService."""
        if self._claim is None or self._closing:
            raise NotLeader(f"{self._settings.leader_address} does not lead")
        try:
            result: Any = await self._submit_here(command)
        except NotLeader:
            raise
        except Exception as error:
            result = error
        return Outcome(index=self.applied_index, result=result)

    async def followed(self, following: Following) -> Followed:
        """See PeerService."""
        if self.balancing is not None:
            self.balancing.heard(following)
        self._heard(following.node_id, following.metadata_version)
        deadline_s = asyncio.get_running_loop().time() + following.wait_ms / 1_000
        while True:
            if self._claim is None or self._closing:
                raise NotLeader(f"{self._settings.leader_address} does not lead")
            left_s = deadline_s - asyncio.get_running_loop().time()
            if following.next_index != self.next_index or left_s <= 0:
                return Followed(entries=self._recent.since(following.next_index), next_index=self.next_index)
            await self._until_changed(left_s * 1_000)

    def report_load(self, load: NodeLoad) -> None:
        """What went through this node since the last time: for the node that leads."""
        if self.is_leader and self.balancing is not None:
            self.balancing.loaded(self._node_id, load)
        elif self._follower is not None:
            self._follower.load = load

    async def balance(self) -> Balance:
        """See PeerService."""
        if self._claim is None or self._closing or self.balancing is None:
            raise NotLeader(f"{self._settings.leader_address} does not lead")
        return self.balancing.balance()

    async def alive(self, node_id: int) -> None:
        """See PeerService."""
        self._heard(node_id)
        if self._claim is None or self._closing:
            raise NotLeader(f"{self._settings.leader_address} does not lead")

    def _heard(self, node_id: int, metadata_version: int | None = None) -> None:
        if self.detection is not None:
            self.detection.heard(node_id, metadata_version)

    @property
    def leader_address(self) -> str:
        """Where the node that leads is reached; empty while this one does, or nobody is known to."""
        return "" if self.is_leader else self._leader

    @property
    def living_count(self) -> int:
        """Nodes that this one hears from while it leads, itself included."""
        return len(self.balancing.living()) if self.balancing is not None and self.is_leader else 1

    @property
    def moves(self) -> int:
        """Partitions that this node, while it led, had moved by itself."""
        return 0 if self.balancing is None else self.balancing.moves

    @property
    def is_alone(self) -> bool:
        """It knows of no other nodes' controllers."""
        return self._peers is None

    async def until_in_office(self) -> None:
        """Return when this node leads."""
        while self._claim is None:
            await self._until_changed()

    async def until_led_elsewhere(self) -> None:
        """Return when this node does not lead."""
        while self._claim is not None:
            await self._until_changed()

    async def read_leader(self) -> LeaderObject | None:
        """Who took office last, by the bucket."""
        return await self._log.read_leader()

    def led_by(self, address: str) -> None:
        """Commands go there from now on; empty: nobody is known to lead."""
        self._leader = address
        self._tell_changed()

    async def receive(self, entries: Sequence[Entry]) -> None:
        """Apply entries that the leader handed out; returns when that is done."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received.append((entries, future))
        self._work.set()
        await future

    async def run_for_office(self, instead_of: LeaderObject | None) -> None:
        """Become the leader, unless another one was faster. Raises MetadataUnavailable."""
        self._check_running()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running_for_office.append((instead_of, future))
        await self._answer(future, "taking office")

    async def _look_at_office(self) -> None:
        """A leader that has nothing to write would not notice that another took over."""
        while True:
            await asyncio.sleep(self._settings.leader_check_interval_ms / 1_000)
            if self._clock() - self.office_seen_s >= 0.9 * self._settings.leader_check_interval_ms / 1_000:
                await self.is_in_office()

    async def is_in_office(self) -> bool:
        """Whether the leader object names this node still; else it steps down."""
        claim = self._claim
        if claim is None:
            return False
        if await self._still_leads(claim):
            return self._claim is claim
        await self.refresh()  # which steps down
        return False

    async def _still_leads(self, claim: Claim) -> bool:
        began_s = self._clock()
        leads = await self._log.still_leads(claim)
        if leads:
            self.office_seen_s = max(self.office_seen_s, began_s)
        return leads

    async def read_entry(self, index: int) -> Entry | None:
        """An entry as it lies in the bucket, in one request; see `MetadataLog.read_one`."""
        return await self._log.read_one(index)

    async def _until_applied(self, index: int) -> None:
        while self.applied_index < index:
            if not await self._until_changed(self._settings.retry_backoff_ms):
                await self.refresh()

    async def _until_changed(self, timeout_ms: float | None = None) -> bool:
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1_000):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)

    def _unavailable(self, what: str) -> MetadataUnavailable:
        return MetadataUnavailable(f"{what} got no answer within {self._timeout_ms} ms: {self._why()}")

    def _why(self) -> str:
        error = self._log.last_error
        return "the bucket is slow" if error is None else f"the bucket answers {type(error).__name__}: {error}"

    # ---- the driver

    async def _drive(self) -> None:
        try:
            while self._failure is None:
                if self._refreshing:
                    await self._refresh()
                elif self._received:
                    self._take_in(*self._received.popleft())
                elif self._running_for_office:
                    await self._run_for_office()
                elif self._queue and self._claim is None and self._peers is not None:
                    self._redirect()
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
        await self._replica.catch_up()
        if self._claim is not None and not await self._still_leads(self._claim):
            self._step_down()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _work_off(self) -> None:
        """Decide what waits, and commit it."""
        if self._claim is None:
            await self._replica.catch_up()
            self._refuse_fenced()
            if not self._queue:
                return
            await self._take_office()
        assert self._claim is not None, "in office"
        batch = Batch()
        try:
            self._decide(batch)
            if batch.records:
                await self._commit(self._claim, batch)
            elif await self._still_leads(self._claim):
                batch.resolve()
            else:
                self._decide_again(batch)
        except BaseException:
            batch.refuse(MetadataUnavailable("the controller stopped; whether this took effect is open"))
            raise

    def _take_in(self, entries: Sequence[Entry], done: asyncio.Future[None]) -> None:
        """Apply what the leader handed out, as far as it is what comes next."""
        for entry in entries:
            if self._claim is None and entry.header.index == self._replica.next_index:
                self._replica.apply(entry)
                self._tell_changed()
        if not done.done():
            done.set_result(None)

    async def _run_for_office(self) -> None:
        """Take the office though nothing is to be written."""
        waiting, self._running_for_office = self._running_for_office, []
        if self._claim is None:
            await self._replica.catch_up()
            self.replaced_address = next((former.leader for former, _ in waiting if former is not None), "")
            await self._take_office(lambda holder: any(holder == instead_of for instead_of, _ in waiting))
        for _, future in waiting:
            if not future.done():
                future.set_result(None)

    def _redirect(self) -> None:
        """Another node leads by now: who waits here is to ask there. Nothing came of what waits in the queue."""
        while self._queue:
            self._queue.popleft().resolve(NotLeader("another node leads by now"))

    def _refuse_fenced(self) -> None:
        """Spare the leader in office the commands of processes that were replaced: node epochs only grow."""
        for member in self._queue:
            if isinstance(member.command, NodeCommand):
                try:
                    check_node(self.image.state.tables, member.command.node_id, member.command.node_epoch)
                except NodeFenced as error:
                    member.resolve(error)
        self._queue = deque(member for member in self._queue if not member.future.done())

    async def _take_office(self, may_replace: Callable[[LeaderObject | None], bool] = lambda holder: True) -> None:
        """Claim the leader object, unless its holder may not be replaced, read to the tail, and say so in the log."""
        while True:
            claim = await self._log.take_office(
                self._settings.leader_address, self.image.controller_epoch, may_replace=may_replace
            )
            if claim is None:
                return
            while True:
                await self._replica.catch_up()
                if self.image.controller_epoch >= claim.controller_epoch:
                    break
                records: list[Record] = [
                    LeaderChanged(controller_epoch=claim.controller_epoch, leader=self._settings.leader_address)
                ]
                records.extend(self.image.state.handle(FormatCluster(cluster_id=self._cluster_id)).records)
                header = self._next_header(claim, self.image.state)
                if await self._append(claim, header, records, encode_records(records)):
                    self._claim = claim
                    self._tell_changed()  # others may follow; what they want decided waits for the copy
                    self._ahead = await self._replica.copied_state()
                    return
                if not await self._still_leads(claim):
                    break
            await self._pause()

    def _step_down(self) -> None:
        self._claim = None
        self._ahead = None
        self._recent.clear()
        self._tell_changed()

    async def _pause(self) -> None:
        """Leave another controller time to get something done before the office is taken from it."""
        await asyncio.sleep(self._rng.uniform(0.5, 4.0) * self._settings.retry_backoff_ms / 1_000)

    def _decide(self, batch: Batch) -> None:
        """Decide waiting commands on the ahead state, up to the size of an entry."""
        while self._queue and batch.size_bytes < self._settings.max_entry_bytes:
            member = self._queue.popleft()
            if not member.future.done():
                batch.members.append(member)
                batch.outcomes.append(self._decided(member.command, batch))

    def _decided(self, command: Command[Any], batch: Batch) -> Any:
        """The reply to a command, or its error."""
        assert self._ahead is not None, "commands are decided in office"
        try:
            decision = self._ahead.handle(command)
        except Exception as error:  # its sender is told; the state is as it was
            return error
        try:
            for record in decision.records:
                self._ahead.check_and_apply(record)
        except Exception as error:  # a defect of ours: its sender is told, and the state is made anew
            _log.error("command refused: %(command)s: %(error)s", {"command": type(command).__name__, "error": error})
            self._ahead = self.image.state.copy()
            for record in batch.records:
                self._ahead.apply(record)
            return error
        for record in decision.records:
            batch.add(record)
        return decision.reply

    async def _commit(self, claim: Claim, batch: Batch) -> None:
        """Append a batch and answer its members; or find out what became of it, and decide it again if nothing did."""
        assert self._ahead is not None, "a batch is decided in office"
        header = self._next_header(claim, self._ahead)
        if await self._append(claim, header, batch.records, batch.body()):
            batch.resolve()
            self._consider_snapshot()
            return
        self._step_down()
        applied = await self._replica.catch_up(header)
        if applied:
            batch.resolve()
        elif applied is False:
            self._decide_again(batch)
        else:
            batch.refuse(MetadataUnavailable("another controller took over; whether this took effect is open"))
        await self._pause()

    def _decide_again(self, batch: Batch) -> None:
        """Nothing came of a batch, because another controller took over: its members are first in the queue again."""
        self._step_down()
        self._queue.extendleft(reversed(batch.members))

    def _next_header(self, claim: Claim, after: State) -> EntryHeader:
        """Of the entry that leads to a state."""
        return EntryHeader(
            index=self._replica.next_index,
            controller_epoch=claim.controller_epoch,
            nonce=self._rng.randbytes(16),
            metadata_version=after.tables.metadata_version,
        )

    async def _append(self, claim: Claim, header: EntryHeader, records: Sequence[Record], body: bytes) -> bool:
        """Append an entry, and apply it if it counts. False: its slot is another's, or the office was lost meanwhile."""
        if not await self._log.append(header, body) or not await self._still_leads(claim):
            return False
        self._replica.apply(Entry(header=header, records=records, size_bytes=len(body)))
        if self._peers is not None:
            self._recent.add(header.index, b"".join(encode_entry(header, body)))
            self._tell_changed()
        return True

    # ---- snapshots

    def _consider_snapshot(self) -> None:
        """Take a snapshot, beside further commits, when enough was written since the last one."""
        replica = self._replica
        due = replica.entries_since_snapshot >= self._settings.snapshot_interval_entries or (
            replica.bytes_since_snapshot >= max(self._settings.snapshot_interval_bytes, replica.snapshot_size_bytes)
        )
        if due and self._snapshot_task is None and not self._closing:
            self._snapshot_task = asyncio.create_task(self._snapshot(), name="metadata-snapshot")

    async def _snapshot(self) -> None:
        replica = self._replica
        try:
            taken = capture(self.image.state, self.applied_index)
            replica.entries_since_snapshot = replica.bytes_since_snapshot = 0
            replica.snapshot_size_bytes = await self._log.put_snapshot(taken)
            crashpoint.reach("metadata.snapshot")
            base, window_ms = taken.index, self._settings.restore_window_ms
            if window_ms:
                base = await self._log.restore_base(window_ms)
            first = min(base + 1, taken.index + 1 - self._settings.retained_entries)
            floor = Floor(index=max(first, 0), snapshot_index=taken.index)
            await self._log.delete_below(await self._log.raise_floor(floor), base=base)
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
        _log.error("the controller stopped: %(error)s", {"error": error})
        if self._on_failure is not None:
            self._on_failure(error)

    def _refuse_all(self, why: str) -> None:
        while self._queue:
            self._queue.popleft().resolve(MetadataUnavailable(why))
        for future in self._refreshing:
            if not future.done():
                future.set_exception(MetadataUnavailable(why))
        self._refreshing.clear()
        for _, future in self._running_for_office:
            if not future.done():
                future.set_exception(MetadataUnavailable(why))
        self._running_for_office.clear()
        while self._received:
            _, future = self._received.popleft()
            if not future.done():
                future.set_exception(MetadataUnavailable(why))
