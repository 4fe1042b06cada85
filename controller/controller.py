"""The controller of a node: commands in, committed metadata out, whoever leads.

Every node has one. Given others (`join`), one of them leads, and the rest follow it: their commands are decided by the leader, and its
entries reach them within a round trip. Alone, the office is taken when there is something to write, and kept until somebody else
takes it: several nodes work on one bucket even so, slowly if they all write at once. Either way safety lies in the bucket alone.

Where what is done, in the order of who knows whom:

    controller.py   the face: start, end, reads, commands by name (operations.py)
    membership.py   among others: following, judging, balancing, and what a leader does for who follows
    driver.py       the one task: decides and commits what waits, applies what others committed
    tenure.py       holding the office, writing entries          snapshots.py   snapshots beside that
    replica.py      the image; reading and applying              log.py         the bucket

Always true: a reply means committed, and applied to this node's image, wherever it was decided. `MetadataUnavailable` leaves open
whether it will be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from controller.commands import Command
from controller.config import ControllerSettings
from controller.driver import Driver
from controller.entry import Entry
from controller.errors import MetadataCorrupt
from controller.image import Applied, Image
from controller.lease import boottime_s
from controller.log import LeaderObject, MetadataLog
from controller.membership import Membership
from controller.node_metadata import NodeMetadata
from controller.operations import Operations, TopicSpec, random_uuid
from controller.peers import NotLeader, Peers
from s3stream.objectstore import ObjectStore
from s3stream.paths import Paths

__all__ = ["Controller", "TopicSpec"]

R = TypeVar("R")


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
        self._now_ms = now_ms
        self._rng = rng
        self._log = MetadataLog(store=store, paths=paths, settings=settings, rng=rng)
        self._driver = Driver(self._log, settings=settings, rng=rng, on_failure=on_failure, clock=clock)
        self._replica = self._driver.replica
        self._tenure = self._driver.tenure
        self.membership = Membership(self, self._driver, settings=settings, rng=rng, clock=clock)
        """What it does among others."""

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
                async with asyncio.timeout(settings.start_timeout_ms / 1_000):
                    self._tenure.cluster_id = await self._log.ensure_cluster(settings.cluster_id, fallback_id, now_ms())
                    leader = await self._log.read_leader()  # before the log, which only grows
                    await self._replica.start()
                    await self._refuse_lost_log(paths)
                    if leader is not None and self._replica.next_index < leader.next_index:
                        raise self._log.lost_entries(self._replica.next_index, leader.next_index)
            except TimeoutError as error:
                raise self._driver.unavailable("start") from error
        if self.image.cluster_id not in ("", self.cluster_id):
            raise MetadataCorrupt(
                f"{paths.cluster} says cluster {self.cluster_id}, the metadata log {self.image.cluster_id}: "
                "were objects of two clusters copied into one bucket?",
                is_advised=True,
            )
        self._log.bears_refusal = True
        self._driver.start()
        return self

    async def _refuse_lost_log(self, paths: Paths) -> None:
        if self._replica.next_index > 0 or not await self._log.was_used():
            return
        await self._replica.catch_up()  # another node may have begun meanwhile
        if self._replica.next_index == 0:
            raise MetadataCorrupt(
                f"the metadata log is gone, and what it led to is there ({paths.log_prefix}, {paths.floor}): something else "
                "deletes from the bucket. Put back what was deleted, from the bucket's versions or a copy; or give a new cluster "
                "an empty prefix",
                is_advised=True,
            )

    def patience(self) -> AbstractContextManager[None]:
        """Within, commands wait for the bucket as long as a start does: no client waits for their answer."""
        return self._driver.patience()

    def join(self, peers: Peers, *, node_id: int) -> None:
        """Work with the controllers of other nodes from now on, which reach this one at `leader_address`."""
        self.membership.join(peers, node_id=node_id)

    async def close(self, timeout_ms: int = 2_000) -> None:
        """Finish the entry in flight and the commands that wait, for a bounded time, leave the office if it is held, and stop."""
        await self.membership.close()
        await self._driver.close(timeout_ms)

    # ---- reads

    @property
    def cluster_id(self) -> str:
        """Of the bucket; 32 hex digits unless configured."""
        return self._tenure.cluster_id

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
    def failure(self) -> BaseException | None:
        """Why the controller stopped for good, if it did."""
        return self._driver.failure

    @property
    def next_index(self) -> int:
        """Index of the first entry that this node has not applied."""
        return self._replica.next_index

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

    @property
    def takes_snapshot(self) -> bool:
        """Whether one is being written."""
        return self._driver.snapshots.is_under_way

    @property
    def pending_count(self) -> int:
        """Commands that wait to be decided here, at most `max_pending_commands`."""
        return self._driver.pending_count

    def now_ms(self) -> int:
        return self._now_ms()

    def subscribe(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """Be told, on the event loop and before the command's own reply, of every entry applied from now on.

        The callback must be quick and must not raise (that stops the controller). Returns how to unsubscribe.
        """
        return self._replica.subscribe(callback)

    async def refresh(self) -> None:
        """Read the log to its tail. Needed only where other nodes write too. Raises MetadataUnavailable."""
        await self._driver.refresh()

    async def read_entry(self, index: int) -> Entry | None:
        """An entry as it lies in the bucket, in one request; see `MetadataLog.read_one`."""
        return await self._log.read_one(index)

    async def receive(self, entries: Sequence[Entry]) -> None:
        """Apply entries that the leader handed out; returns when that is done."""
        await self._driver.receive(entries)

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
        return await self.membership.submit(command)

    async def decide(self, command: Command[R]) -> R:
        """Have a command decided and committed here, and nowhere else: it says what this leader found. Raises NotLeader, as `submit`."""
        if not self.is_leader:
            raise NotLeader(f"{self.address} does not lead")
        return await self._driver.submit(command)

    # ---- the office

    @property
    def is_leader(self) -> bool:
        """True while this controller holds the office, as far as it knows."""
        return self._tenure.is_held

    @property
    def is_alone(self) -> bool:
        """It knows of no other nodes' controllers."""
        return self.membership.is_alone

    @property
    def leader_address(self) -> str:
        """Where the node that leads is reached; empty while this one does, or nobody is known to."""
        return self.membership.leader_address

    def led_by(self, address: str) -> None:
        """Commands go there from now on; empty: nobody is known to lead."""
        self.membership.led_by(address)

    @property
    def office_seen_s(self) -> float:
        """When the newest look at the leader object began that found this node in office, by the clock of leases."""
        return self._tenure.seen_s

    @property
    def replaced_address(self) -> str:
        """Of the node that held the office before this one ran for it the last time, since that did not answer."""
        return self._driver.replaced_address

    async def read_leader(self) -> LeaderObject | None:
        """Who took office last, by the bucket."""
        return await self._log.read_leader()

    async def run_for_office(self, instead_of: LeaderObject | None) -> None:
        """Become the leader, unless another one was faster. Raises MetadataUnavailable."""
        await self._driver.run_for_office(instead_of)

    async def is_in_office(self) -> bool:
        """Whether the leader object names this node still; else it steps down."""
        claim = self._tenure.claim
        if claim is None:
            return False
        if await self._tenure.still_holds(claim):
            return self._tenure.claim is claim
        await self.refresh()  # which steps down
        return False

    async def until_in_office(self) -> None:
        """Return when this node leads."""
        while not self.is_leader:
            await self._driver.changes.wait()

    async def until_led_elsewhere(self) -> None:
        """Return when this node does not lead."""
        while self.is_leader:
            await self._driver.changes.wait()
