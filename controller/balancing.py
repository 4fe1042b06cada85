"""What the leader does about who is there: it hears from every node, and has partitions moved (`balancer.py` decides which).

Always true:
- A node lives while it was heard from within `node_timeout_ms`. Nobody is taken for dead before the leader was in office for so long.
- Nothing here carries safety: a node that is wrongly taken for dead keeps what it has open. Only what is wholly in objects is given to another.
- Where nothing changed, nothing is looked at, and nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from controller.balancer import NodePlace, Plan, Tolerances, plan_moves
from controller.config import ControllerSettings
from controller.errors import UnknownNode
from controller.image import Applied, Image
from controller.loads import Loads
from controller.peers import Balance, Following, NodeBalance, NodeLoad, PlannedMove
from controller.records import NodeDrained, StreamsReassigned
from controller.tables import NodeStatus, StreamStatus
from s3stream.errors import MetadataUnavailable
from s3stream.metadata import StreamId

__all__ = ["Balancing", "Office"]

REST_S: Final = 600.0
"""A partition that was moved for its load is not moved for it again for so long: what others do meanwhile may make its former place the best one."""

_log: Final = logging.getLogger("tidelog.controller")


class Office(Protocol):
    """The controller of this node, as its balancing sees it."""

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""

    @property
    def image(self) -> Image:
        """What is committed."""

    @property
    def applied_index(self) -> int:
        """Of the last entry in the image."""

    async def until_in_office(self) -> None:
        """Return when this node leads."""

    def subscribe(self, callback: Callable[[Applied], None]) -> Callable[[], None]:
        """Be told of every entry that is applied."""

    async def reassign(self, targets: Mapping[StreamId, int]) -> None:
        """Have streams go to other nodes. Raises UnknownNode, MetadataUnavailable."""


class Balancing:
    """One task's work."""

    def __init__(self, office: Office, *, node_id: int, settings: ControllerSettings) -> None:
        self._office = office
        self._node_id = node_id
        self._settings = settings
        self._heard_s: dict[int, float] = {}
        self._leaving: set[int] = set()
        # A report goes with the next question of a follower.
        self._loads = Loads(interval_s=(settings.load_interval_ms + settings.follow_wait_ms) / 1_000)
        self._tolerances = Tolerances(
            share=settings.load_tolerance_percent / 100, bytes_per_s=settings.load_tolerance_bytes_per_s
        )
        self._rests_from_s: dict[StreamId, float] = {}
        """When partitions were moved for their load."""
        self._wake = asyncio.Event()
        """Set where somebody waits for partitions to go."""
        self._judges_from_s = math.inf
        """From then on a node that is not heard from is dead."""
        self.is_enabled = settings.balances
        """Whether partitions are moved to make nodes even; it may change at any time."""
        self.is_over = False
        """All nodes stop: where partitions are is where they will be needed."""
        self.moves = 0
        """Partitions that this node, as leader, had moved."""

    def heard(self, following: Following) -> None:
        """A node shows that it lives, and whether it is about to stop."""
        self._heard_s[following.node_id] = asyncio.get_running_loop().time()
        if following.leaves:
            if following.node_id not in self._leaving:
                self._leaving.add(following.node_id)
                self._wake.set()
        else:
            self._leaving.discard(following.node_id)
        if following.load is not None:
            self.loaded(following.node_id, following.load)

    def loaded(self, node_id: int, load: NodeLoad) -> None:
        """A node, or this one, tells what goes through it."""
        self._loads.report(node_id, load, asyncio.get_running_loop().time())

    def leave(self) -> None:
        """This node itself is about to stop."""
        self._leaving.add(self._node_id)
        self._wake.set()

    def _applied(self, change: Applied) -> None:
        if change.is_reset or any(isinstance(record, NodeDrained) for record in change.records):
            self._wake.set()
        if change.is_reset or any(isinstance(record, StreamsReassigned) for record in change.records):
            self._loads.forget()

    async def run(self) -> None:
        """Balance whenever this node leads, until cancelled."""
        unsubscribe = self._office.subscribe(self._applied)
        try:
            await self._run()
        finally:
            unsubscribe()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._office.until_in_office()
            self._judges_from_s = loop.time() + self._settings.node_timeout_ms / 1_000
            seen: object = None
            while self._office.is_leader:
                await self._pause()
                may_judge = loop.time() >= self._judges_from_s
                now = (
                    self._office.applied_index,
                    self.living(),
                    frozenset(self._leaving),
                    may_judge,
                    self._loads.count,
                    self.is_enabled,
                )
                if now != seen and self._office.is_leader and not self.is_over:
                    seen = now
                    await self._balance()
            self._judges_from_s = math.inf

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.balance_interval_ms / 1_000):
                await self._wake.wait()
        self._wake.clear()

    def living(self) -> frozenset[int]:
        """Nodes that were heard from not long ago, and this one."""
        least_s = asyncio.get_running_loop().time() - self._settings.node_timeout_ms / 1_000
        return frozenset({self._node_id, *(node_id for node_id, at_s in self._heard_s.items() if at_s >= least_s)})

    @property
    def nobody_takes(self) -> bool:
        """As this leader knows, there is no node that partitions could go to. One that was not heard from yet may be one, unless it stopped."""
        tables, places = self._office.image.state.tables, self.places()
        known = {place.node_id for place in places}
        may_come = any(tables.node_status(node_id) is not NodeStatus.DEAD for node_id in tables.nodes.keys() - known)
        return not may_come and not any(place.takes for place in places)

    async def _balance(self) -> None:
        plan = self._plan(self.places(), max_moves=self._settings.max_moves if self.is_enabled else 0)
        moves = plan.targets
        if not moves:
            return
        try:
            await self._office.reassign(moves)
        except (MetadataUnavailable, UnknownNode) as error:
            _log.warning("partitions cannot be moved now: %(error)s", {"error": error})
        else:
            self.moves += len(moves)
            if plan.evens_load:
                now_s = asyncio.get_running_loop().time()
                self._rests_from_s.update(dict.fromkeys(moves, now_s))
            _log.info(
                "partitions are moved: %(count)d, to nodes %(nodes)s",
                {
                    "count": len(moves),
                    "nodes": ",".join(map(str, sorted(set(moves.values())))),
                    "why": plan.moves[0].why,
                },
            )

    def _plan(self, places: Sequence[NodePlace], *, max_moves: int) -> Plan:
        least_s = asyncio.get_running_loop().time() - REST_S
        self._rests_from_s = {key: from_s for key, from_s in self._rests_from_s.items() if from_s > least_s}
        return plan_moves(places, max_moves=max_moves, tolerances=self._tolerances, resting=self._rests_from_s)

    def balance(self) -> Balance:
        """How partitions lie, for people."""
        may_judge = asyncio.get_running_loop().time() >= self._judges_from_s
        places = self.places()
        known = {place.node_id: place for place in places}
        tables = self._office.image.state.tables
        return Balance(
            nodes=tuple(
                NodeBalance(
                    node_id=node_id,
                    lives=not may_judge if place is None else place.lives or not may_judge,
                    leaves=node_id in self._leaving or node_id in tables.drained,
                    open_count=0 if place is None else len(place.open_streams),
                    closed_count=0 if place is None else len(place.closed_streams),
                    bytes_in=-1 if place is None or place.load is None else round(place.load.bytes_in),
                    bytes_out=-1 if place is None or place.load is None else round(place.load.bytes_out),
                )
                for node_id in sorted(tables.nodes)
                for place in (known.get(node_id),)
            ),
            moves=tuple(
                PlannedMove(stream_id=move.stream_id, source=move.source, target=move.target, why=move.why)
                for move in self._plan(places, max_moves=self._settings.max_moves).moves
            ),
            balances=self.is_enabled,
        )

    def places(self) -> list[NodePlace]:
        """Nodes with their partitions, but for those of which it is not known yet whether they live. Partitions that are on their way
        count where they are to be."""
        may_judge = asyncio.get_running_loop().time() >= self._judges_from_s
        tables = self._office.image.state.tables
        # One that was taken for dead may be heard all the same; it can do nothing until it registers again.
        living = {node_id for node_id in self.living() if tables.node_status(node_id) is not NodeStatus.DEAD}
        open_streams: dict[int, list[StreamId]] = {node_id: [] for node_id in tables.nodes}
        closed_streams: dict[int, list[StreamId]] = {node_id: [] for node_id in tables.nodes}
        leaving = self._leaving | tables.drained.keys()
        takers = (living & tables.nodes.keys()) - leaving
        for stream in tables.streams.values():
            node_id = stream.target_node_id if stream.target_node_id in takers else stream.node_id
            kind = closed_streams if stream.status is StreamStatus.CLOSED else open_streams
            kind.setdefault(node_id, []).append(stream.stream_id)
        now_s = asyncio.get_running_loop().time()
        loads = {node_id: self._loads.of(node_id, now_s) for node_id in tables.nodes}
        return [
            NodePlace(
                node_id=node_id,
                lives=node_id in living and node_id in tables.nodes,
                leaves=node_id in leaving,
                is_drained=node_id in tables.drained and node_id not in self._leaving,
                open_streams=open_streams.get(node_id, ()),
                closed_streams=closed_streams.get(node_id, ()),
                load=None if found is None else found[0],
                busy={} if found is None else found[1],
            )
            for node_id in sorted(open_streams.keys() | closed_streams.keys())
            if may_judge or node_id in living
            for found in (loads.get(node_id),)
        ]
