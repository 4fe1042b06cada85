"""A controller among those of other nodes: it has the leader decide, follows it, and while it leads does all that for others.

Always true:
- Before `join` a node is alone: its commands are decided here, and there is nobody whom it could tell of.
- What only the leader may do raises NotLeader elsewhere, and nothing came of it.
- Nothing here carries safety: whoever leads proves it in the bucket, with each entry (`driver.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from controller import balancing, detection, follower
from controller.balancing import Balancing
from controller.commands import Command
from controller.config import ControllerSettings
from controller.detection import Detection
from controller.driver import Driver
from controller.follower import Follower
from controller.peers import (
    Balance,
    Followed,
    Following,
    HeardReport,
    NodeLoad,
    NodeReport,
    NotLeader,
    Peers,
    PeerUnavailable,
)
from controller.reports import Reports
from controller.wire import Outcome
from s3stream.errors import MetadataUnavailable

__all__ = ["Member", "Membership"]

R = TypeVar("R")

_log: Final = logging.getLogger("tidelog.controller")


class Member(follower.Followed, detection.Office, balancing.Office, Protocol):
    """The controller of this node, as what it does among others sees it."""

    async def is_in_office(self) -> bool:
        """Whether the leader object names this node still; else it steps down."""


class Membership:
    """Of one controller; a PeerService."""

    def __init__(
        self,
        member: Member,
        driver: Driver,
        *,
        settings: ControllerSettings,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._member = member
        self._driver = driver
        self._tenure = driver.tenure
        self._changes = driver.changes
        self._settings = settings
        self._rng = rng
        self._clock = clock
        self._peers: Peers | None = None
        self._node_id = -1
        self._leader = ""
        """Where commands go while another node leads; empty while nobody is known to."""
        self._follower: Follower | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._reports = Reports(-1)
        self.report: Callable[[], NodeReport | None] = lambda: None
        """What the WAL of this node holds alone; None where that was told just before, or is not known yet."""
        self.balancing: Balancing | None = None
        """While it works with others."""
        self.detection: Detection | None = None
        """Likewise."""

    def join(self, peers: Peers, *, node_id: int) -> None:
        """Work with the controllers of other nodes from now on."""
        assert self._settings.leader_address, "others find the leader by its address"
        self._peers = peers
        self._node_id = node_id
        self._tenure.is_shared = True
        self._reports = Reports(node_id)
        self._follower = Follower(
            self._member,
            peers,
            node_id=node_id,
            settings=self._settings,
            rng=self._rng,
            report=lambda: self.report(),
            on_reports=self._take_reports,
        )
        self.balancing = Balancing(self._member, node_id=node_id, settings=self._settings)
        self.detection = Detection(self._member, node_id=node_id, settings=self._settings, reports=self._reports)
        for name, work in (
            ("metadata-detection", self.detection.run()),
            ("metadata-follower", self._follower.run()),
            ("metadata-office", self._look_at_office()),
            ("metadata-balancing", self.balancing.run()),
        ):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    async def close(self) -> None:
        """Follow, judge and balance no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._driver.fail(error)

    async def _look_at_office(self) -> None:
        """A leader that has nothing to write would not notice that another took over. A bucket that does not answer is asked again."""
        while True:
            await asyncio.sleep(self._settings.leader_check_interval_ms / 1_000)
            if self._clock() - self._tenure.seen_s >= 0.9 * self._settings.leader_check_interval_ms / 1_000:
                with contextlib.suppress(MetadataUnavailable):
                    await self._member.is_in_office()

    # ---- having the leader decide

    @property
    def is_alone(self) -> bool:
        """It knows of no other nodes' controllers."""
        return self._peers is None

    @property
    def leader_address(self) -> str:
        """Where the node that leads is reached; empty while this one does, or nobody is known to."""
        return "" if self._tenure.is_held else self._leader

    def led_by(self, address: str) -> None:
        """Commands go there from now on; empty: nobody is known to lead."""
        self._leader = address
        self._changes.tell()

    async def submit(self, command: Command[R]) -> R:
        """Have a command decided and committed, here or by the node that leads, and the image brought up to it.

        Raises:
            MetadataUnavailable: no answer in time; whether the command takes effect is open.
            Exception: those that the command names.
        """
        if self._peers is None:
            return await self._driver.submit(command)
        try:
            async with asyncio.timeout(self._driver.timeout_ms / 1_000):
                while True:
                    try:
                        if self._tenure.is_held:
                            return await self._driver.submit(command)
                        return await self._submit_there(self._peers, command)
                    except NotLeader:
                        await self._changes.wait(self._settings.retry_backoff_ms)
        except TimeoutError as error:
            raise self._driver.unavailable(type(command).__name__) from error

    async def _submit_there(self, peers: Peers, command: Command[R]) -> R:
        """Have the leader decide. Raises NotLeader where nothing came of it, and also the errors of `submit`."""
        self._driver.check_running()
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

    async def _until_applied(self, index: int) -> None:
        while self._member.applied_index < index:
            if not await self._changes.wait(self._settings.retry_backoff_ms):
                await self._driver.refresh()

    # ---- what a leader does for others

    def _check_leads(self) -> None:
        if not self._tenure.is_held or self._driver.is_closing:
            raise NotLeader(f"{self._settings.leader_address} does not lead")

    async def submitted(self, command: Command[Any]) -> Outcome:
        """See PeerService."""
        self._check_leads()
        try:
            result: Any = await self._driver.submit(command)
        except NotLeader:
            raise
        except Exception as error:
            result = error
        return Outcome(index=self._member.applied_index, result=result)

    async def followed(self, following: Following) -> Followed:
        """See PeerService."""
        if self.balancing is not None:
            self.balancing.heard(following)
        self._heard(following.node_id, following.metadata_version)
        if following.report is not None:
            self._reports.heard(following.node_id, following.report, asyncio.get_running_loop().time())
        deadline_s = asyncio.get_running_loop().time() + following.wait_ms / 1_000
        while True:
            self._check_leads()
            left_s = deadline_s - asyncio.get_running_loop().time()
            next_index = self._member.next_index
            if following.next_index != next_index or left_s <= 0:
                return Followed(
                    entries=self._tenure.recent.since(following.next_index),
                    next_index=next_index,
                    reports=self._to_pass_on(following.node_id),
                )
            await self._changes.wait(left_s * 1_000)

    def _to_pass_on(self, node_id: int) -> Sequence[HeardReport]:
        """What would be lost with this node and with others: whoever leads after it is to know."""
        now_s = asyncio.get_running_loop().time()
        own = self.report()
        if own is not None:
            self._reports.made(own, now_s)
            self._reports.forget(self._member.image.state.tables.nodes)
        return self._reports.to_pass_on(node_id, now_s)

    def _take_reports(self, reports: Sequence[HeardReport]) -> None:
        self._reports.passed_on(reports, asyncio.get_running_loop().time())

    async def balance(self) -> Balance:
        """See PeerService."""
        self._check_leads()
        if self.balancing is None:
            raise NotLeader(f"{self._settings.leader_address} has not joined the others yet")
        return self.balancing.balance()

    async def alive(self, node_id: int) -> None:
        """See PeerService."""
        self._heard(node_id)
        self._check_leads()

    def _heard(self, node_id: int, metadata_version: int | None = None) -> None:
        if self.detection is not None:
            self.detection.heard(node_id, metadata_version)

    # ---- this node among the others

    def report_load(self, load: NodeLoad) -> None:
        """What went through this node since the last time: for the node that leads."""
        if self._tenure.is_held and self.balancing is not None:
            self.balancing.loaded(self._node_id, load)
        elif self._follower is not None:
            self._follower.load = load

    async def give_away(self, timeout_ms: int) -> bool:
        """Have all partitions of this node moved to others, while it serves on; False: not all of them in time, or there are no others."""
        if self._follower is None or self.balancing is None:
            return False
        self._follower.leaves = True
        self.balancing.leave()
        image = self._driver.replica.image
        why = "no other node could take them"
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                while image.streams_led_by(self._node_id):
                    if self._tenure.is_held and self.balancing.nobody_takes:
                        break
                    await self._changes.wait(self._settings.retry_backoff_ms)
        except TimeoutError:
            why = f"they were not taken within {timeout_ms} ms (shutdown.timeout.ms)"
        left = len(image.streams_led_by(self._node_id))
        if left:
            _log.warning(
                "partitions stay with this node, though it stops: %(count)d; %(why)s", {"count": left, "why": why}
            )
        return not left

    def keep_all(self) -> None:
        """Move no partitions any more: this node stops, and so do all others."""
        if self.balancing is not None:
            self.balancing.is_over = True

    def balance_by_itself(self, is_enabled: bool) -> None:
        """Whether this node, while it leads, moves partitions to make nodes even, from now on."""
        if self.balancing is not None:
            self.balancing.is_enabled = is_enabled

    @property
    def living_count(self) -> int:
        """Nodes that this one hears from while it leads, itself included."""
        return len(self.balancing.living()) if self.balancing is not None and self._tenure.is_held else 1

    @property
    def moves(self) -> int:
        """Partitions that this node, while it led, had moved by itself."""
        return 0 if self.balancing is None else self.balancing.moves

    @property
    def suspicions(self) -> int:
        """How often this node, while it led, suspected another."""
        return 0 if self.detection is None else self.detection.suspicions

    @property
    def deaths(self) -> int:
        """How many it took for dead."""
        return 0 if self.detection is None else self.detection.deaths
