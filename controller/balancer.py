"""Decides which partitions go to which node: away from those that leave, to those that came, evenly. Pure.

Always true:
- A partition goes only to a node that lives and stays. One that is open on a node that is away stays where it is: only that node's WAL knows
  its end.
- Nothing moves while counts are about even (`_TOLERATED_SHARE`); once it does, they are made quite even. So a plan that was carried out
  is followed by an empty one.
- Equal inputs make equal plans, and what need not move does not.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from s3stream.metadata import StreamId

__all__ = ["NodePlace", "plan_moves"]

_TOLERATED_SHARE = 0.2
"""Of the average: how far the fullest and the emptiest node may be apart …"""
_TOLERATED_COUNT = 2
"""… and at least so many partitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlace:
    """A registered node, and the partitions that are its."""

    node_id: int
    lives: bool
    leaves: bool = False
    """It is stopping: everything is to go."""
    open_streams: Sequence[StreamId] = field(default_factory=tuple)
    closed_streams: Sequence[StreamId] = field(default_factory=tuple)
    """Wholly in objects: any node may open them."""

    @property
    def takes(self) -> bool:
        """Whether partitions may go there."""
        return self.lives and not self.leaves


def plan_moves(places: Sequence[NodePlace], *, max_moves: int) -> Mapping[StreamId, int]:
    """Where partitions are to go, by stream; those that stay are left out.

    Args:
        max_moves: How many may go at a time to make counts even. Those that have to go, go all at once.
    """
    takers = {place.node_id: [*place.open_streams, *place.closed_streams] for place in places if place.takes}
    if not takers:
        return {}
    moves: dict[StreamId, int] = {}
    emptiest = [(len(streams), node_id) for node_id, streams in takers.items()]
    heapq.heapify(emptiest)
    for place in sorted(places, key=lambda place: place.node_id):
        if place.takes:
            continue
        homeless = [*place.open_streams, *place.closed_streams] if place.lives else place.closed_streams
        for stream_id in sorted(homeless):
            count, node_id = heapq.heappop(emptiest)
            heapq.heappush(emptiest, (count + 1, node_id))
            takers[node_id].append(stream_id)
            moves[stream_id] = node_id
    if not moves:
        moves = _evened(takers, max_moves)
    return moves


def _evened(takers: Mapping[int, list[StreamId]], max_moves: int) -> dict[StreamId, int]:
    counts = {node_id: len(streams) for node_id, streams in takers.items()}
    total = sum(counts.values())
    average = total / len(counts)
    if max(counts.values()) - min(counts.values()) <= max(_TOLERATED_COUNT, average * _TOLERATED_SHARE):
        return {}
    floor, ceiling = math.floor(average), math.ceil(average)
    # Those that keep one more than the rest are those that have most already.
    richer = sorted(counts, key=lambda node_id: (-counts[node_id], node_id))[: total - floor * len(counts)]
    wanted = {node_id: ceiling if node_id in richer else floor for node_id in counts}
    surplus = [
        stream_id for node_id, streams in sorted(takers.items()) for stream_id in sorted(streams)[wanted[node_id] :]
    ]
    moves: dict[StreamId, int] = {}
    for node_id in sorted(counts):
        missing = max(wanted[node_id] - counts[node_id], 0)
        for stream_id in surplus[:missing]:
            moves[stream_id] = node_id
        del surplus[:missing]
    return dict(list(moves.items())[:max_moves])
