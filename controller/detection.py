"""Who is taken for dead: the leader hears from every node, suspects who is silent, and waits until the lease of who is suspected ran out.

Theory of operation. A node shows that it lives by asking for news, and by signs of life from a thread of its own (`pulse.py`). One that is
silent for `session_timeout_ms` is suspected, in the metadata log. From then on it gets no lease (`lease.py`); and when the one that it may
have had before has surely run out, it is dead, in the metadata log: others may take over what it had.

Always true:
- `dead` follows no sooner than the node's `lease_ms` and a margin after `suspect` was committed, measured by this leader: a new one starts to
  wait anew, and first gives everybody a whole detection period, but for the one that it replaced, which is silent already. Time that this process did not see pass is not held against anybody.
- A leader that hears from none of several others doubts itself first: they have the time to put another in its place.
- A node that is heard from while it is suspected is trusted again. One without a lease (it works alone) is never suspected.
- A suspicion says what the node reported last that its WAL holds alone, and how long before its last sign of life; or that nobody knows.
- The newest metadata version is put in force when every registered node was heard to know it, and not before.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol, TypeVar

from controller.commands import Command
from controller.config import ControllerSettings
from controller.image import Image, Node
from controller.nodes import DeclareDead, RaiseMetadataVersion, SuspectNode, TrustNode
from controller.peers import NotLeader
from controller.records import METADATA_VERSION
from controller.reports import Reports
from controller.tables import NodeStatus
from s3stream.errors import MetadataUnavailable

__all__ = ["Detection", "Verdict", "Watch"]

R = TypeVar("R")

_log: Final = logging.getLogger("tidelog.controller")

_LOOKS_PER_TIMEOUT: Final = 20
"""How late a silence is noticed: a twentieth of the time that it takes."""
_LATE_S: Final = 0.5
"""A look that comes so late tells that the event loop was blocked: what waits in sockets is to be read before anybody is judged."""


_DOUBT: Final = 2
"""Detection periods that a leader waits which hears from nobody: an election takes less."""


class Verdict(enum.Enum):
    """What is to be said of a node."""

    SUSPECT = 1
    TRUST = 2
    DEAD = 3


class Judged(NamedTuple):
    """A registration, and what is to be said of it."""

    verdict: Verdict
    node_id: int
    node_epoch: int


class Watch:
    """What a leader heard, and what follows. Pure: times come in as seconds of any clock that only grows."""

    def __init__(self, node_id: int, settings: ControllerSettings) -> None:
        self._node_id = node_id
        self._timeout_s = settings.session_timeout_ms / 1_000
        self._lease_ms = settings.lease_ms
        self._margin_ms = settings.lease_margin_ms
        self._patient_from_s = 0.0
        self._replaced = -1
        self._heard_s: dict[int, float] = {}
        """When a node was heard from, or was given time as if it had been."""
        self._signs_s: dict[int, float] = {}
        """When it was heard from."""
        self._versions: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._suspect_from_s: dict[tuple[int, int], float] = {}

    def begin(self, now_s: float, *, replaced: int = -1) -> None:
        """The office was taken: what was seen of suspicions before is of no account, and everybody is given time. But for the one that was
        `replaced`, since it did not answer: where no sign of life came from it either, its silence counts from the last one on."""
        self._replaced = replaced
        self._versions.clear()
        self._epochs.clear()
        self._suspect_from_s.clear()
        self._patient_from_s = now_s

    def be_patient(self, now_s: float) -> None:
        """This process stood still, so it may not have heard what was said: everybody gets a whole detection period."""
        self._patient_from_s = now_s
        self._replaced = -1

    def _given_time_from_s(self, node_id: int) -> float:
        return 0.0 if node_id == self._replaced else self._patient_from_s

    def heard(self, node_id: int, now_s: float, metadata_version: int | None = None) -> None:
        """A node shows that it lives, and perhaps which metadata version it knows."""
        self._heard_s[node_id] = self._signs_s[node_id] = now_s
        if metadata_version is not None:
            self._versions[node_id] = metadata_version

    def sign_s(self, node_id: int) -> float:
        """When a node showed last that it lives; long ago where it never did here."""
        return self._signs_s.get(node_id, float("-inf"))

    def judge(self, nodes: Iterable[Node], now_s: float) -> Iterator[Judged]:
        """What is to be said of registered nodes, as they are in what is committed."""
        nodes = list(nodes)
        others = [
            node.node_id
            for node in nodes
            if node.node_id != self._node_id and node.lease_ms and node.status is not NodeStatus.DEAD
        ]
        if len(others) > 1 and self._timeout_s / 2 <= now_s - self._newest_sign_s(others) < _DOUBT * self._timeout_s:
            return
        for node in nodes:
            key = node.node_id, node.node_epoch
            if self._epochs.get(node.node_id) != node.node_epoch:
                self._epochs[node.node_id] = node.node_epoch
                if node.status is NodeStatus.ALIVE and node.node_id != self._replaced:
                    self._heard_s[node.node_id] = now_s  # it has just registered, or is seen for the first time
            if node.status is not NodeStatus.SUSPECT:
                self._suspect_from_s.pop(key, None)
            if node.status is NodeStatus.DEAD or not node.lease_ms:
                continue
            lives = node.node_id == self._node_id or self._lives(node.node_id, now_s)
            if node.status is NodeStatus.ALIVE:
                if not lives:
                    yield Judged(Verdict.SUSPECT, *key)
                continue
            if lives and self._is_heard(node.node_id):
                yield Judged(Verdict.TRUST, *key)
                continue
            from_s = self._suspect_from_s.setdefault(
                key, max(now_s, self._given_time_from_s(node.node_id) + self._timeout_s)
            )
            if not lives and (now_s - from_s) * 1_000 >= max(node.lease_ms, self._lease_ms) + self._margin_ms:
                yield Judged(Verdict.DEAD, *key)

    def _lives(self, node_id: int, now_s: float) -> bool:
        return now_s - max(self._heard_s.get(node_id, 0.0), self._given_time_from_s(node_id)) < self._timeout_s

    def _newest_sign_s(self, node_ids: Iterable[int]) -> float:
        return max(self._patient_from_s, *(self._heard_s.get(node_id, 0.0) for node_id in node_ids))

    def _is_heard(self, node_id: int) -> bool:
        """Whether it was heard from, and is not just given time."""
        return node_id == self._node_id or self._heard_s.get(node_id, 0.0) >= self._given_time_from_s(node_id)

    def all_know(self, nodes: Mapping[int, Node], metadata_version: int, now_s: float) -> bool:
        """Whether every registered node is there, and knows a metadata version."""
        return all(
            node_id == self._node_id
            or (self._versions.get(node_id, 0) >= metadata_version and self._lives(node_id, now_s))
            for node_id in nodes
        )


class Office(Protocol):
    """The controller of this node, as its detection sees it."""

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""

    @property
    def image(self) -> Image:
        """What is committed."""

    @property
    def replaced_address(self) -> str:
        """Of the node that was in office before, and did not answer; empty where there was none."""

    async def until_in_office(self) -> None:
        """Return when this node leads."""

    def now_ms(self) -> int:
        """Wall-clock time, ms since the epoch."""

    async def decide(self, command: Command[R]) -> R:
        """Have a command decided and committed here, and nowhere else. Raises NotLeader, MetadataUnavailable."""


class Detection:
    """One task's work."""

    def __init__(self, office: Office, *, node_id: int, settings: ControllerSettings, reports: Reports) -> None:
        self._office = office
        self._reports = reports
        self._interval_s = settings.session_timeout_ms / _LOOKS_PER_TIMEOUT / 1_000
        self._watch = Watch(node_id, settings)
        self.suspicions = 0
        """How often this node, as leader, suspected another."""
        self.deaths = 0
        """How many it took for dead."""

    def heard(self, node_id: int, metadata_version: int | None = None) -> None:
        """A node shows that it lives."""
        self._watch.heard(node_id, asyncio.get_running_loop().time(), metadata_version)

    async def run(self) -> None:
        """Judge whenever this node leads, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._office.until_in_office()
            self._watch.begin(loop.time(), replaced=self._replaced())
            while self._office.is_leader:
                due_s = loop.time() + self._interval_s
                await asyncio.sleep(self._interval_s)
                if loop.time() - due_s > _LATE_S:
                    self._watch.be_patient(loop.time())
                    continue
                try:
                    await self._look(loop.time())
                except NotLeader:
                    break  # whoever leads now judges for itself
                except MetadataUnavailable as error:
                    _log.warning(
                        "what was detected of other nodes cannot be committed now: %(error)s", {"error": error}
                    )

    def _replaced(self) -> int:
        address = self._office.replaced_address
        nodes = self._office.image.nodes.values()
        return next((node.node_id for node in nodes if address and node.controller_address == address), -1)

    async def _look(self, now_s: float) -> None:
        image = self._office.image
        nodes = image.nodes
        if image.metadata_version < METADATA_VERSION and self._watch.all_know(nodes, METADATA_VERSION, now_s):
            await self._office.decide(RaiseMetadataVersion(metadata_version=METADATA_VERSION))
            _log.info(
                "a newer metadata version is in force, which all nodes know: %(version)d", {"version": METADATA_VERSION}
            )
        for verdict, node_id, node_epoch in list(self._watch.judge(nodes.values(), now_s)):
            at_ms = self._office.now_ms()
            if verdict is Verdict.TRUST:
                await self._office.decide(TrustNode(node_id=node_id, node_epoch=node_epoch))
                _log.info("a node is heard from again: %(node)d", {"node": node_id, "node_epoch": node_epoch})
            elif verdict is Verdict.SUSPECT:
                if await self._office.decide(self._suspicion(node_id, node_epoch, at_ms)):
                    self.suspicions += 1
                    _log.warning(
                        "a node is not heard from, and gets no lease any more: %(node)d",
                        {"node": node_id, "node_epoch": node_epoch},
                    )
            elif await self._office.decide(DeclareDead(node_id=node_id, node_epoch=node_epoch, at_ms=at_ms)):
                self.deaths += 1
                _log.warning(
                    "a node is taken for dead, whose lease ran out: %(node)d",
                    {"node": node_id, "node_epoch": node_epoch},
                )

    def _suspicion(self, node_id: int, node_epoch: int, at_ms: int) -> SuspectNode:
        """With what would be lost with the node, as far as this leader knows."""
        heard = self._reports.of(node_id, node_epoch)
        if heard is None:
            return SuspectNode(node_id=node_id, node_epoch=node_epoch, at_ms=at_ms)
        before_s = self._watch.sign_s(node_id) - heard.at_s
        return SuspectNode(
            node_id=node_id,
            node_epoch=node_epoch,
            at_ms=at_ms,
            held=heard.held,
            # A report that the leader before passed on: signs of life after it went to that one.
            held_before_silence_ms=round(before_s * 1_000) if before_s >= 0 else -1,
        )
