"""The one task that moves a controller on: it decides and commits commands, applies what others committed, and takes the office.

Theory of operation. When the slot for the next entry is free it takes every command that waits, decides them one by one on the *ahead* state,
which includes what earlier commands of the same entry change, and writes all their records as one entry (group commit). Once the entry
counts, the same records are applied to the *image*, and the replies go out. An entry that turns out to be another's leaves the
image as it is: the office is taken again, and the commands are decided anew.

Always true:
- The image holds entries that everybody will apply, in order, and nothing else (I9): only this task changes it.
- One entry is in flight. Errors are answered as late as successes: what they were decided on is committed by then.
- Whoever waits gets an answer: the outcome, or `MetadataUnavailable` when its time is up or this ends.
- What this version does not understand, or damage, ends it: every command then raises, `on_failure` is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from controller.batch import Batch, Waiting
from controller.changes import Changes
from controller.commands import Command, NodeCommand, check_node
from controller.config import ControllerSettings
from controller.entry import Entry
from controller.log import Claim, LeaderObject, MetadataLog
from controller.peers import NotLeader
from controller.replica import Replica
from controller.snapshots import Snapshots
from controller.tenure import Tenure
from s3stream.errors import MetadataUnavailable, NodeFenced

__all__ = ["Driver"]

R = TypeVar("R")

_log: Final = logging.getLogger("tidelog.controller")


class Driver:
    """One task's work, and what waits for it."""

    def __init__(
        self,
        log: MetadataLog,
        *,
        settings: ControllerSettings,
        rng: random.Random,
        on_failure: Callable[[BaseException], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._log = log
        self._settings = settings
        self._on_failure = on_failure
        self.changes = Changes()
        self.replica = Replica(log)
        self.tenure = Tenure(log, self.replica, self.changes, settings=settings, rng=rng, clock=clock)
        self.snapshots = Snapshots(log, self.replica, settings=settings, on_failure=self.fail)
        self.timeout_ms = settings.command_timeout_ms
        """How long whoever waits does so."""
        self.failure: BaseException | None = None
        """Why it stopped for good, if it did."""
        self.is_closing = False
        self.replaced_address = ""
        """Of the node that held the office before this one ran for it the last time, since that did not answer."""
        self._work = asyncio.Event()
        self._queue: deque[Waiting] = deque()
        self._refreshing: list[asyncio.Future[None]] = []
        self._running_for_office: list[tuple[LeaderObject | None, asyncio.Future[None]]] = []
        """Who is to be replaced, and who waits for that."""
        self._received: deque[tuple[Sequence[Entry], asyncio.Future[None]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. The image was brought up to date before."""
        self._task = asyncio.create_task(self._drive(), name="controller")

    async def close(self, timeout_ms: int) -> None:
        """Finish the entry in flight and the commands that wait, for a bounded time, and stop; leave the office where others can see it, and how
        far the log went."""
        self.is_closing = True
        self._work.set()
        self.changes.tell()  # followers in waiting are sent away
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_ms / 1_000)
        if self._task is not None and self._task.done():
            with contextlib.suppress(TimeoutError):  # then the others wait out their election timeout
                async with asyncio.timeout(timeout_ms / 1_000):
                    await self.tenure.resign()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        await self.snapshots.close()
        if task is not None:
            for outcome in await asyncio.gather(task, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome
        self._refuse_all("the controller is closed")

    # ---- what is asked of it

    @property
    def pending_count(self) -> int:
        """Commands that wait."""
        return len(self._queue)

    def check_running(self) -> None:
        """Raise MetadataUnavailable where nothing is done any more."""
        if self.failure is not None:
            raise MetadataUnavailable(f"the controller stopped: {self.failure}") from self.failure
        if self.is_closing:
            raise MetadataUnavailable("the controller is closed")

    async def submit(self, command: Command[R]) -> R:
        """Have a command decided and committed by this controller. Raises MetadataUnavailable, NotLeader, and what the command names."""
        self.check_running()
        if len(self._queue) >= self._settings.max_pending_commands:
            self._queue = deque(member for member in self._queue if not member.future.done())
        if len(self._queue) >= self._settings.max_pending_commands:
            raise MetadataUnavailable(f"{len(self._queue)} commands wait already: {self._why()}")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(command, future))
        return await self._answer(future, type(command).__name__)

    async def refresh(self) -> None:
        """Read the log to its tail. Raises MetadataUnavailable."""
        self.check_running()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refreshing.append(future)
        await self._answer(future, "refresh")

    async def receive(self, entries: Sequence[Entry]) -> None:
        """Apply entries that the leader handed out; returns when that is done."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received.append((entries, future))
        self._work.set()
        await future

    async def run_for_office(self, instead_of: LeaderObject | None) -> None:
        """Become the leader, unless another one was faster. Raises MetadataUnavailable."""
        self.check_running()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running_for_office.append((instead_of, future))
        await self._answer(future, "taking office")

    async def _answer(self, future: asyncio.Future[R], what: str) -> R:
        self._work.set()
        try:
            async with asyncio.timeout(self.timeout_ms / 1_000):
                return await future
        except TimeoutError as error:
            raise self.unavailable(what) from error

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Within, whoever waits does so as long as a start does."""
        self.timeout_ms = self._settings.start_timeout_ms
        try:
            yield
        finally:
            self.timeout_ms = self._settings.command_timeout_ms

    def unavailable(self, what: str) -> MetadataUnavailable:
        """What is raised where the time is up."""
        return MetadataUnavailable(f"{what} got no answer within {self.timeout_ms} ms: {self._why()}")

    def _why(self) -> str:
        error = self._log.last_error
        return "the bucket is slow" if error is None else f"the bucket answers {type(error).__name__}: {error}"

    # ---- the task

    async def _drive(self) -> None:
        try:
            while self.failure is None:
                if self._refreshing:
                    await self._refresh()
                elif self._received:
                    self._take_in(*self._received.popleft())
                elif self._running_for_office:
                    await self._run_for_office()
                elif self._queue and not self.tenure.is_held and self.tenure.is_shared:
                    self._redirect()
                elif self._queue:
                    await self._work_off()
                elif self.is_closing:
                    return
                else:
                    self._work.clear()
                    await self._work.wait()
        except Exception as error:
            self.fail(error)

    async def _refresh(self) -> None:
        waiting, self._refreshing = self._refreshing, []
        await self.replica.catch_up()
        claim = self.tenure.claim
        if claim is not None and not await self.tenure.still_holds(claim):
            self.tenure.step_down()
        _done(waiting)

    def _take_in(self, entries: Sequence[Entry], done: asyncio.Future[None]) -> None:
        """Apply what the leader handed out, as far as it is what comes next."""
        for entry in entries:
            if not self.tenure.is_held and entry.header.index == self.replica.next_index:
                self.replica.apply(entry)
                self.changes.tell()
        _done([done])

    async def _run_for_office(self) -> None:
        """Take the office though nothing is to be written."""
        waiting, self._running_for_office = self._running_for_office, []
        if not self.tenure.is_held:
            await self.replica.catch_up()
            self.replaced_address = next((former.leader for former, _ in waiting if former is not None), "")
            await self.tenure.take(lambda holder: any(holder == instead_of for instead_of, _ in waiting))
        _done(future for _, future in waiting)

    def _redirect(self) -> None:
        """Another node leads by now: who waits here is to ask there. Nothing came of what waits in the queue."""
        while self._queue:
            self._queue.popleft().resolve(NotLeader("another node leads by now"))

    async def _work_off(self) -> None:
        """Decide what waits, and commit it."""
        if not self.tenure.is_held:
            await self.replica.catch_up()
            self._refuse_fenced()
            if not self._queue:
                return
            await self.tenure.take()
        claim = self.tenure.claim
        assert claim is not None, "in office"
        batch = Batch()
        try:
            self._decide(batch)
            if batch.records:
                await self._commit(claim, batch)
            elif await self.tenure.still_holds(claim):
                batch.resolve()
            else:
                self._decide_again(batch)
        except BaseException:
            batch.refuse(MetadataUnavailable("the controller stopped; whether this took effect is open"))
            raise

    def _refuse_fenced(self) -> None:
        """Spare the leader in office the commands of processes that were replaced: node epochs only grow."""
        for member in self._queue:
            if isinstance(member.command, NodeCommand):
                try:
                    check_node(self.replica.image.state.tables, member.command.node_id, member.command.node_epoch)
                except NodeFenced as error:
                    member.resolve(error)
        self._queue = deque(member for member in self._queue if not member.future.done())

    def _decide(self, batch: Batch) -> None:
        """Decide waiting commands on the ahead state, up to the size of an entry."""
        while self._queue and batch.size_bytes < self._settings.max_entry_bytes:
            member = self._queue.popleft()
            if not member.future.done():
                batch.members.append(member)
                batch.outcomes.append(self._decided(member.command, batch))

    def _decided(self, command: Command[Any], batch: Batch) -> Any:
        """The reply to a command, or its error."""
        tenure = self.tenure
        assert tenure.ahead is not None, "commands are decided in office"
        try:
            decision = tenure.ahead.handle(command)
        except Exception as error:  # its sender is told; the state is as it was
            return error
        try:
            for record in decision.records:
                tenure.ahead.check_and_apply(record)
        except Exception as error:  # a defect of ours: its sender is told, and the state is made anew
            _log.error("command refused: %(command)s: %(error)s", {"command": type(command).__name__, "error": error})
            tenure.ahead = self.replica.image.state.copy()
            for record in batch.records:
                tenure.ahead.apply(record)
            return error
        for record in decision.records:
            batch.add(record)
        return decision.reply

    async def _commit(self, claim: Claim, batch: Batch) -> None:
        """Append a batch and answer its members; or find out what became of it, and decide it again if nothing did."""
        tenure = self.tenure
        assert tenure.ahead is not None, "a batch is decided in office"
        header = tenure.next_header(claim, tenure.ahead)
        if await tenure.append(claim, header, batch.records, batch.body()):
            batch.resolve()
            if not self.is_closing:
                self.snapshots.consider()
            return
        tenure.step_down()
        applied = await self.replica.catch_up(header)
        if applied:
            batch.resolve()
        elif applied is False:
            self._decide_again(batch)
        else:
            batch.refuse(MetadataUnavailable("another controller took over; whether this took effect is open"))
        await tenure.pause()

    def _decide_again(self, batch: Batch) -> None:
        """Nothing came of a batch, because another controller took over: its members are first in the queue again."""
        self.tenure.step_down()
        self._queue.extendleft(reversed(batch.members))

    # ---- the end

    def fail(self, error: BaseException) -> None:
        """Stop for good: nothing is trusted after an error that was not foreseen."""
        if self.failure is not None:
            return
        self.failure = error
        self.tenure.step_down()
        self._refuse_all(f"the controller stopped: {error}")
        _log.error("the controller stopped: %(error)s", {"error": error})
        if self._on_failure is not None:
            self._on_failure(error)

    def _refuse_all(self, why: str) -> None:
        while self._queue:
            self._queue.popleft().resolve(MetadataUnavailable(why))
        waiting = [
            *self._refreshing,
            *(future for _, future in self._running_for_office),
            *(future for _, future in self._received),
        ]
        self._refreshing.clear()
        self._running_for_office.clear()
        self._received.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(MetadataUnavailable(why))


def _done(waiting: Iterable[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
