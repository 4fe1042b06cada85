"""Follows the leader: asks it for what comes next, and runs for the office where nobody holds it.

Theory of operation. The leader object in the bucket names an address. There the follower waits for entries (long poll); each answer
is a sign of life, both ways. A leader that answers nothing for the election timeout is replaced: after a random wait the leader
object is read again, and only if it still names the same office is it taken, by compare-and-swap. So of several followers
one wins, and the others, whose swap fails, follow it.

Always true:
- Entries that a leader hands out count, since it applied them itself. What it cannot hand out is read from the bucket.
- An office is taken from nobody who answers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from controller.config import ControllerSettings
from controller.entry import Entry, decode_entry
from controller.errors import MetadataCorrupt
from controller.log import LeaderObject
from controller.peers import Following, HeardReport, NodeLoad, NodeReport, NotLeader, Peers, PeerUnavailable
from controller.records import METADATA_VERSION
from s3stream.errors import MetadataUnavailable

__all__ = ["Followed", "Follower"]

_log: Final = logging.getLogger("tidelog.controller")


class Followed(Protocol):
    """The controller of this node, as its follower sees it."""

    @property
    def next_index(self) -> int:
        """The first entry that this node does not have."""

    async def until_led_elsewhere(self) -> None:
        """Return when this node does not lead."""

    async def read_leader(self) -> LeaderObject | None:
        """Who took office last, by the bucket."""

    def led_by(self, address: str) -> None:
        """Commands go there from now on; empty: nobody is known to lead."""

    async def receive(self, entries: Sequence[Entry]) -> None:
        """Apply entries; returns when that is done."""

    async def refresh(self) -> None:
        """Read the log to its tail. Raises MetadataUnavailable."""

    async def run_for_office(self, instead_of: LeaderObject | None) -> None:
        """Become the leader, unless another one was faster. Raises MetadataUnavailable."""


class Follower:
    """One task's work."""

    def __init__(
        self,
        node: Followed,
        peers: Peers,
        *,
        node_id: int,
        settings: ControllerSettings,
        rng: random.Random,
        report: Callable[[], NodeReport | None],
        on_reports: Callable[[Sequence[HeardReport]], None],
    ) -> None:
        """`report` gives what the leader is told of this node's WAL, `on_reports` takes what it tells of others'."""
        self._node = node
        self._peers = peers
        self._node_id = node_id
        self._settings = settings
        self._rng = rng
        self._report = report
        self._on_reports = on_reports
        self.leaves = False
        """This node is about to stop; the leader is told with the next question."""
        self.load: NodeLoad | None = None
        """What the leader is told with the next question, once."""

    async def run(self) -> None:
        """Follow, and lead when nobody else does, until cancelled."""
        while True:
            await self._node.until_led_elsewhere()
            try:
                leader = await self._node.read_leader()
                if leader is None or leader.leader in ("", self._settings.leader_address):
                    # Nobody holds the office, or this node did before it was started anew.
                    await self._node.run_for_office(leader)
                    continue
                await self._follow(leader)
            except MetadataUnavailable as error:
                _log.warning("the metadata cannot be followed: %(error)s", {"error": error})
                await asyncio.sleep(self._settings.retry_backoff_ms / 1_000)

    async def _follow(self, leader: LeaderObject) -> None:
        """Follow a leader until there is another one."""
        loop = asyncio.get_running_loop()
        patience_s = self._settings.election_timeout_ms / 1_000
        heard_s = loop.time()
        self._node.led_by(leader.leader)
        while True:
            try:
                await self._take_in(leader.leader)
                heard_s = loop.time()
                continue
            except NotLeader as error:
                reason = str(error)
            except PeerUnavailable as error:
                reason = str(error)
            if await self._node.read_leader() != leader:
                return
            if loop.time() - heard_s >= patience_s:
                break
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._settings.retry_backoff_ms / 1_000)
        self._node.led_by("")
        await asyncio.sleep(self._rng.uniform(0.0, 0.5) * patience_s)  # so that few run at the same time
        if await self._node.read_leader() == leader:
            _log.warning(
                "the leader does not answer, this node takes over: %(reason)s",
                {"leader": leader.leader, "reason": reason},
            )
            await self._node.run_for_office(leader)

    async def _take_in(self, address: str) -> None:
        """Wait for news and apply them."""
        next_index = self._node.next_index
        wait_ms = self._settings.follow_wait_ms if not self.leaves else self._settings.retry_backoff_ms
        load, self.load = self.load, None
        followed = await self._peers.follow(
            address,
            Following(
                node_id=self._node_id,
                next_index=next_index,
                wait_ms=wait_ms,
                leaves=self.leaves,
                load=load,
                metadata_version=METADATA_VERSION,
                report=self._report(),
            ),
        )
        self._on_reports(followed.reports)
        if not followed.entries:
            if followed.next_index > next_index:
                await self._node.refresh()
            return
        try:
            entries = [
                decode_entry(data, next_index + at, where=f"what {address} handed out")
                for at, data in enumerate(followed.entries)
            ]
        except MetadataCorrupt as error:
            raise PeerUnavailable(str(error), sent=True) from error  # the bucket has it undamaged
        await self._node.receive(entries)
