"""What nodes reported that their WALs hold alone: acknowledged, and in no object yet. It is what would be lost with them. Pure.

A node reports to the leader with the questions that it asks anyway. The leader passes on what it heard, and what it holds itself, with
its answers: whoever leads after it knows of it, too. When a node is suspected, its newest report goes into the metadata log, with how long before the
node fell silent it was heard (`detection.py`).

Always true:
- A report counts for the registration that made it, and no other.
- Of two reports of a registration the newer one is kept, by this process's own clock.
- What is told is bounded: `MAX_NAMED` streams of a node, and none of others that are passed on; it is told no more often than it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from controller.peers import HeardReport, NodeReport
from controller.records import Unuploaded

__all__ = ["MAX_NAMED", "Heard", "Reports"]

MAX_NAMED: Final = 1_000
"""Streams that a report names, those with the most bytes: some 20 KB, once a second at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A report, and when it was heard."""

    node_epoch: int
    at_s: float
    held: Unuploaded


class Reports:
    """One controller's book. Times are seconds of any clock that only grows."""

    def __init__(self, node_id: int) -> None:
        self._node_id = node_id
        self._by_node: dict[int, Heard] = {}
        self._made = 0
        """How many this node made of itself."""
        self._told: dict[int, int] = {}
        """By node: the last of them that it was told of."""

    def made(self, report: NodeReport, now_s: float) -> None:
        """This node itself has something to tell."""
        self._made += 1
        self.heard(self._node_id, report, now_s)

    def heard(self, node_id: int, report: NodeReport, at_s: float) -> None:
        """A node tells."""
        known = self._by_node.get(node_id)
        if known is None or (known.node_epoch, known.at_s) <= (report.node_epoch, at_s):
            held = report.held
            if len(held.streams) > MAX_NAMED:  # of whoever does not keep to it: it goes into the log
                held = msgspec.structs.replace(held, streams=held.streams[:MAX_NAMED])
            self._by_node[node_id] = Heard(node_epoch=report.node_epoch, at_s=at_s, held=held)

    def passed_on(self, reports: Iterable[HeardReport], now_s: float) -> None:
        """The leader tells what it knows."""
        for each in reports:
            if each.node_id != self._node_id:
                report = NodeReport(node_epoch=each.node_epoch, held=each.held)
                self.heard(each.node_id, report, now_s - each.age_ms / 1_000)

    def to_pass_on(self, node_id: int, now_s: float) -> Sequence[HeardReport]:
        """What a node that follows is to be told; nothing where it was, since this node's own last report."""
        if self._told.get(node_id) == self._made:
            return ()
        self._told[node_id] = self._made
        return tuple(
            HeardReport(
                node_id=other,
                node_epoch=heard.node_epoch,
                age_ms=max(round((now_s - heard.at_s) * 1_000), 0),
                held=heard.held if other == self._node_id else msgspec.structs.replace(heard.held, streams=()),
            )
            for other, heard in self._by_node.items()
            if other != node_id
        )

    def of(self, node_id: int, node_epoch: int) -> Heard | None:
        """The newest report of a registration; None: none is known."""
        heard = self._by_node.get(node_id)
        return heard if heard is not None and heard.node_epoch == node_epoch else None

    def forget(self, registered: Iterable[int]) -> None:
        """Keep those of registered nodes only."""
        kept = {*registered, self._node_id}
        self._by_node = {node_id: heard for node_id, heard in self._by_node.items() if node_id in kept}
        self._told = {node_id: made for node_id, made in self._told.items() if node_id in kept}
