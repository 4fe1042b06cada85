"""Recovers the WALs of brokers that are dead, so that their partitions go on elsewhere.

The order of a recovery: the WAL is found, and fenced; its streams are taken over by a command, which also says where they will go; what it
holds of them past what objects hold is put into objects, and committed; they are closed, and open where they are to go.

Always true:
- Safety is the fence's and the metadata's: whoever wrote there acknowledges nothing more, and may commit nothing more, before the WAL is read.
  Two that recover the same WAL, or its own node that comes back meanwhile, disturb each other at worst.
- What was done when a recoverer dies stays done; another one goes on from there.
- A claim is held for as long as it gets ahead. Who fails for `GIVE_BACK_AFTER_S`, or gets nowhere for `STALLED_S`, gives it back, so that another may
  try, and comes back to it later, ever later.
- A WAL that cannot be reached is looked for again and again. Its partitions stay offline, and nothing is given up, unless an operator does
  so (`tidelog wal abandon`).
- One WAL at a time, in memory of its own that is bounded (`shares.recovery_settings`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from broker.losses import loss_text
from controller.errors import ControllerError
from controller.image import Image
from controller.losses import known_loss
from controller.lost_wals import LostWal, lost_wals, order
from s3stream.errors import NodeFenced, StorageError
from s3stream.objectstore import ObjectStoreError
from wal.errors import WalError, WalUnreachable
from wal.foreign import ForeignWal, WalPlace
from wal.salvage import Assessment, lost_text

__all__ = ["Failover"]

log = logging.getLogger("tidelog.failover")

TURN_S = 0.5
"""Between the looks of two nodes at the same WAL. The first one is done by then, as a rule, or has taken it."""

RETRY_S = 2.0
"""Until a WAL that could not be reached or read is looked for again."""

DAMAGED_RETRY_S = 60.0
"""Until a damaged one is read again, which may be repaired by then: all of it is read each time."""

GIVE_BACK_AFTER_S = 10.0
"""A node that took a WAL and fails for so long leaves it to others. Some attempts: a store that is away for a moment is no reason."""

MAX_BACK_OFF_S = 300.0
"""Until a node tries again what it gave back; at first as long as it had tried, then twice as long each time."""

STALLED_S = 120.0
"""An attempt that commits nothing and closes nothing for so long is given up. To read a whole WAL takes a tenth of it from a slow volume; a log of
very many small objects may take longer, so the next attempt gets twice as long."""

MAX_STALLS = 5
"""After which it gets no longer: more than an hour."""

FIND_TIMEOUT_S = 30.0
"""For finding and fencing a WAL. A bucket that does not answer is waited for by coming back."""


_FAILURES = (WalError, StorageError, ObjectStoreError, ControllerError, TimeoutError)
"""What ends an attempt, and leaves everything as it is."""


class Directory(Protocol):
    """The controller, as far as it is needed here."""

    @property
    def image(self) -> Image:
        """What is committed."""

    async def refresh(self) -> None:
        """Read the metadata log to its tail. Raises MetadataUnavailable."""


@dataclass(slots=True)
class _Watched:
    """A lost WAL, as this node knows of it."""

    due_s: float
    """When it is this node's turn to look."""
    problem: str = ""
    """Why this node could not recover it; empty before it tried."""
    failing_since_s: float | None = None
    """When the first of the attempts in a row began that failed though this node has the claim."""
    stalls: int = 0
    """Attempts of this node that got nowhere."""
    back_off_s: float = GIVE_BACK_AFTER_S
    """How long this node leaves it alone when it has given it back."""


class Failover:
    """One task's work."""

    def __init__(
        self,
        directory: Directory,
        *,
        node_id: int,
        find: Callable[[WalPlace], Awaitable[ForeignWal]],
        take_out: Callable[[ForeignWal], Awaitable[Assessment]],
        give_back: Callable[[str], Awaitable[bool]],
    ) -> None:
        """`find` and `take_out` are `wal.foreign.find_foreign` and `broker.salvage.take_out`, with what they need; `give_back` lets others
        recover a WAL."""
        self._directory = directory
        self._node_id = node_id
        self._find = find
        self._take_out = take_out
        self._give_back = give_back
        self._watched: dict[tuple[str, int], _Watched] = {}
        """By WAL and node epoch: one that is lost again is looked at anew."""
        self._changed = asyncio.Event()
        self.recovering = ""
        """The WAL that is being recovered here just now; empty: none."""
        self.recovered_wals = 0
        """That this node recovered since its start."""
        self.recovered_partitions = 0

    def look(self) -> None:
        """The metadata changed."""
        self._changed.set()

    @property
    def offline_partitions(self) -> int:
        """Partitions of dead nodes that nobody recovers just now, and that this node cannot recover."""
        return sum(len(wal.stream_ids) for wal in self._lost() if self._problem(wal))

    def problems(self) -> Mapping[str, str]:
        """Why this node cannot recover WALs that nobody recovers, by WAL."""
        return {wal.wal_id: problem for wal in self._lost() if (problem := self._problem(wal))}

    def _problem(self, wal: LostWal) -> str:
        watched = self._watched.get((wal.wal_id, wal.node_epoch))
        return "" if watched is None else watched.problem

    def _lost(self) -> list[LostWal]:
        """What is to be recovered, and not by another node."""
        found = lost_wals(self._directory.image.state.tables)
        return [wal for wal in found if wal.recoverer in (-1, self._node_id)]

    async def run(self) -> None:
        """Recover what is lost, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            lost = self._lost()
            self._watch(lost, loop.time())
            if not lost:
                await self._changed.wait()
                continue
            wal = min(lost, key=lambda wal: self._watched[wal.wal_id, wal.node_epoch].due_s)
            watched = self._watched[wal.wal_id, wal.node_epoch]
            if watched.due_s > loop.time():
                try:
                    async with asyncio.timeout_at(watched.due_s):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            began_s = loop.time()
            watched.due_s = began_s + RETRY_S
            self.recovering = wal.wal_id
            try:
                await self._recover(wal, watched)
                watched.failing_since_s = None
            except NodeFenced:
                raise
            except _FAILURES as error:
                self._failed(wal, watched, error)
                watched.due_s = loop.time() + RETRY_S
                await self._leave_to_others(wal, watched, began_s)
            finally:
                self.recovering = ""

    def _watch(self, lost: list[LostWal], now_s: float) -> None:
        tables = self._directory.image.state.tables
        # Of those that another node has by now, what this one knows is kept: it may give them back.
        kept = {(wal.wal_id, wal.node_epoch) for wal in lost_wals(tables)}
        known = self._watched
        self._watched = {key: watched for key, watched in known.items() if key in kept}
        for wal in lost:
            key = (wal.wal_id, wal.node_epoch)
            watched = known.get(key)
            if watched is None:
                turns = order(tables, wal)
                turn = turns.index(self._node_id) if self._node_id in turns else len(turns)
                watched = _Watched(now_s + turn * TURN_S)
            self._watched[key] = watched

    async def _recover(self, wal: LostWal, watched: _Watched) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        place = WalPlace(wal_id=wal.wal_id, node_id=wal.node_id, wal_epoch=wal.wal_epoch, uri=wal.uri, host=wal.host)
        async with asyncio.timeout(FIND_TIMEOUT_S):
            found = await self._find(place)
        try:
            # Nobody is to be stopped who came back, or whose WAL another node has by now.
            await self._directory.refresh()
            if wal not in self._lost():
                watched.due_s = loop.time()
                return
            async with asyncio.timeout(FIND_TIMEOUT_S):
                await found.fence()
            fenced_s = loop.time()
            assessment = await self._taken_out(wal, found, watched)
            taken_s = loop.time()
        finally:
            await found.close()
        left = next((each for each in self._lost() if each.wal_id == wal.wal_id), None)
        if left is None:
            if self._is_dead(wal):
                self._done(wal, found, fence_s=fenced_s - began_s, take_out_s=taken_s - fenced_s)
            return
        incomplete = assessment.incomplete
        problem = "; ".join(f"stream {stream_id}: {lost_text(loss.lost)}" for stream_id, loss in incomplete.items())
        watched.due_s = loop.time() + DAMAGED_RETRY_S
        self._tell(left, watched, f"it is damaged, in {found.place}: {problem}")

    async def _taken_out(self, wal: LostWal, found: ForeignWal, watched: _Watched) -> Assessment:
        """Take it out, for as long as that gets ahead. Raises TimeoutError."""
        patience_s = STALLED_S * 2 ** min(watched.stalls, MAX_STALLS)
        taking = asyncio.ensure_future(self._take_out(found))
        try:
            while True:
                before = self._progress(wal)
                done, _ = await asyncio.wait((taking,), timeout=patience_s)
                if done:
                    return taking.result()
                if self._progress(wal) == before:
                    watched.stalls += 1
                    raise TimeoutError(f"nothing of it came into objects for {patience_s:.0f} s")
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    def _progress(self, wal: LostWal) -> tuple[int, int]:
        """What grows, or shrinks, while a WAL is taken out: where objects end, and how many streams are open on it."""
        streams = self._directory.image.state.tables.streams
        held = [streams[stream_id] for stream_id in wal.stream_ids if stream_id in streams]
        return sum(stream.committed_end_offset for stream in held), sum(bool(stream.wal_id) for stream in held)

    async def _leave_to_others(self, wal: LostWal, watched: _Watched, began_s: float) -> None:
        """Give a claim back with which this node gets nowhere, if there is anybody else."""
        tables = self._directory.image.state.tables
        now_s = asyncio.get_running_loop().time()
        left = next((each for each in self._lost() if each.wal_id == wal.wal_id), None)
        if left is None or left.recoverer != self._node_id:
            watched.failing_since_s = None
            return
        if watched.failing_since_s is None:
            watched.failing_since_s = began_s
        if now_s - watched.failing_since_s < GIVE_BACK_AFTER_S or order(tables, left) == [self._node_id]:
            return
        try:
            await self._give_back(wal.wal_id)
        except NodeFenced:
            raise
        except _FAILURES as error:
            log.warning(
                "the WAL of a dead node cannot be left to others now: %(error)s",
                {"error": error, "node_id": wal.node_id, "wal_id": wal.wal_id},
            )
            return
        log.warning(
            "the WAL of a dead node is left to others, this node fails with it: %(problem)s",
            {
                "problem": watched.problem,
                "node_id": wal.node_id,
                "wal_id": wal.wal_id,
                "tried_ms": round((now_s - watched.failing_since_s) * 1_000),
                "again_in_ms": round(watched.back_off_s * 1_000),
            },
        )
        watched.failing_since_s = None
        watched.due_s = now_s + watched.back_off_s
        watched.back_off_s = min(2 * watched.back_off_s, MAX_BACK_OFF_S)

    def _is_dead(self, wal: LostWal) -> bool:
        """Else its node came back, and recovers it by itself."""
        node = self._directory.image.state.tables.nodes.get(wal.node_id)
        return node is not None and node.node_epoch == wal.node_epoch

    def _done(self, wal: LostWal, found: ForeignWal, *, fence_s: float, take_out_s: float) -> None:
        self.recovered_wals += 1
        self.recovered_partitions += len(wal.stream_ids)
        log.info(
            "the WAL of a dead node was recovered: %(partitions)d partitions of node %(node_id)d go on, in %(took_ms)d ms",
            {
                "partitions": len(wal.stream_ids),
                "node_id": wal.node_id,
                "took_ms": round((fence_s + take_out_s) * 1_000),
                "fence_ms": round(fence_s * 1_000),
                "take_out_ms": round(take_out_s * 1_000),
                "wal_id": wal.wal_id,
                "place": found.place,
            },
        )

    def _failed(self, wal: LostWal, watched: _Watched, error: Exception) -> None:
        if wal not in self._lost():
            return  # another node has it, or its own
        if isinstance(error, WalUnreachable):
            self._tell(wal, watched, str(error))
        elif isinstance(error, TimeoutError):
            self._tell(wal, watched, str(error) or f"{wal.uri} did not answer within {FIND_TIMEOUT_S:.0f} s")
        else:
            self._tell(wal, watched, f"it cannot be recovered here now: {error}")

    def _tell(self, wal: LostWal, watched: _Watched, problem: str) -> None:
        """Say once what stands in the way, and what can be done."""
        if problem == watched.problem:
            return
        watched.problem = problem
        loss = known_loss(self._directory.image.state.tables, wal.wal_id)
        assert loss is not None, "it is lost with its node"
        log.error(
            "partitions of a dead node are offline: %(partitions)d of node %(node_id)d; %(problem)s; %(cost)s; %(advice)s",
            {
                "partitions": len(wal.stream_ids),
                "node_id": wal.node_id,
                "problem": problem,
                "cost": loss_text(loss),
                "wal_id": wal.wal_id,
                "reported_records": -1 if loss.held is None else loss.held.record_count,
                "reported_bytes": -1 if loss.held is None else loss.held.size_bytes,
                "advice": f"start node {wal.node_id}, or attach its volume to a broker (wal.recovery.directories); if its WAL is lost for "
                f"good, tidelog wal abandon {wal.wal_id} tells what of each partition would be given up, and gives it up with --yes",
            },
        )
