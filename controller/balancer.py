"""Decides which partitions go to which node: away from those that leave, to those that came, evenly. Pure.

What is made even, in this order: nothing is left where it cannot stay; then the number of partitions; then bytes in and bytes out of the
busiest nodes. Only the first of these that has anything to do is planned: the next look plans the next one.

Always true:
- A partition goes only to a node that lives and stays. Where there is none, one that is closed on a node that is away goes to one that is drained,
  since nobody could serve it else. One that is open on a node that is away stays where it is: only that node's WAL knows
  its end.
- Nothing moves while nodes are about even (`Tolerances`), and what is begun is made more even than that: so a plan that was carried out is
  not begun again at the next breath (hysteresis).
- Moves for load lessen one number, the sum of squared relative distances from the average, and leave counts within their tolerance. So under
  constant load they come to an end. What moved for its load not long ago rests: so none is taken back, however others moved meanwhile.
- Equal inputs make equal plans, and what need not move does not.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from s3stream.metadata import StreamId

__all__ = ["Move", "NodePlace", "Plan", "StreamLoad", "Tolerances", "plan_moves"]

_TOLERATED_SHARE: Final = 0.2
"""Of the average: how far the fullest and the emptiest node may be apart in partitions …"""
_TOLERATED_COUNT: Final = 2
"""… and at least so many."""

MAX_LOAD_MOVES: Final = 64
"""Of one plan, whatever is allowed: each looks at all busy partitions of one node, and loads have changed by the time that many have moved."""

_LEAST_GAIN: Final = 1e-3
"""By which a move must lessen the sum: less is not worth the clients' trouble, and might be rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLoad:
    """What goes through a partition, or a node, in a second."""

    bytes_in: float = 0.0
    bytes_out: float = 0.0

    @property
    def total(self) -> float:
        return self.bytes_in + self.bytes_out


_IDLE: Final = StreamLoad()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """When loads are even enough."""

    share: float = 0.2
    """A node may have so much more than the average …"""
    bytes_per_s: float = 1 << 20
    """… and at least so much: what is less costs nobody anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlace:
    """A registered node, and the partitions that are its."""

    node_id: int
    lives: bool
    leaves: bool = False
    """It is stopping, or drained: everything is to go."""
    is_drained: bool = False
    """It leaves because it is drained, and runs on."""
    open_streams: Sequence[StreamId] = field(default_factory=tuple)
    closed_streams: Sequence[StreamId] = field(default_factory=tuple)
    """Wholly in objects: any node may open them."""
    load: StreamLoad | None = None
    """All that goes through it; None: not known (yet)."""
    busy: Mapping[StreamId, StreamLoad] = field(default_factory=dict)
    """Its busiest partitions."""

    @property
    def takes(self) -> bool:
        """Whether partitions may go there."""
        return self.lives and not self.leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A partition that is to go to another node."""

    stream_id: StreamId
    source: int
    target: int
    why: str
    """For people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Moves that make sense together; none: all is well."""

    moves: Sequence[Move] = ()
    evens_load: bool = False
    """They are made for what goes through nodes, so what was busy in them rests afterwards."""

    @property
    def targets(self) -> Mapping[StreamId, int]:
        """Where partitions are to go; those that stay are left out."""
        return {move.stream_id: move.target for move in self.moves}


def plan_moves(
    places: Sequence[NodePlace],
    *,
    max_moves: int,
    tolerances: Tolerances | None = None,
    resting: Collection[StreamId] = (),
) -> Plan:
    """What is to move now.

    Args:
        max_moves: How many may go at a time to make nodes even. Those that have to go, go all at once.
        resting: Partitions that moved for their load not long ago: they do not for that again.
    """
    takers = [place for place in sorted(places, key=lambda place: place.node_id) if place.takes]
    if not takers:
        shelters = [place for place in places if place.lives and place.is_drained]
        away = [place for place in places if not place.lives]
        return Plan(moves=tuple(_housed(away, shelters)) if shelters else ())
    moves = [*_housed(places, takers)]
    if not moves and max_moves:
        moves = _evened_by_count(takers)[:max_moves]
    if not moves and max_moves and all(place.load is not None for place in takers):
        moves = _evened_by_load(takers, min(max_moves, MAX_LOAD_MOVES), tolerances or Tolerances(), resting)
        return Plan(moves=tuple(moves), evens_load=bool(moves))
    return Plan(moves=tuple(moves))


# ---- what cannot stay --------------------------------------------------------------------------------------------------


def _housed(places: Sequence[NodePlace], takers: Sequence[NodePlace]) -> Iterator[Move]:
    """The busiest first, each to the node that then has the least of everything."""
    homeless: list[tuple[StreamId, NodePlace]] = []
    for place in places:
        if not place.takes:
            streams = [*place.open_streams, *place.closed_streams] if place.lives else place.closed_streams
            homeless.extend((stream_id, place) for stream_id in streams)
    if not homeless:
        return
    bytes_in = sum(_load_of(place).bytes_in for place in places) or 1.0
    bytes_out = sum(_load_of(place).bytes_out for place in places) or 1.0
    count = len(homeless) + sum(_count(place) for place in takers)

    def share(load: StreamLoad, streams: int) -> float:
        return load.bytes_in / bytes_in + load.bytes_out / bytes_out + streams / count

    emptiest = [(share(_load_of(place), _count(place)), place.node_id) for place in takers]
    heapq.heapify(emptiest)
    homeless.sort(key=lambda each: (-each[1].busy.get(each[0], _IDLE).total, each[0]))
    for stream_id, place in homeless:
        has, node_id = emptiest[0]
        heapq.heapreplace(emptiest, (has + share(place.busy.get(stream_id, _IDLE), 1), node_id))
        why = f"node {place.node_id} {'gives everything away' if place.lives else 'is away'}"
        yield Move(stream_id=stream_id, source=place.node_id, target=node_id, why=why)


def _count(place: NodePlace) -> int:
    return len(place.open_streams) + len(place.closed_streams)


def _load_of(place: NodePlace) -> StreamLoad:
    return place.load or _IDLE


# ---- the number of partitions ------------------------------------------------------------------------------------------


def _evened_by_count(takers: Sequence[NodePlace]) -> list[Move]:
    counts = {place.node_id: _count(place) for place in takers}
    total = sum(counts.values())
    if max(counts.values()) - min(counts.values()) <= _tolerated_count(total, len(counts)):
        return []
    floor, ceiling = math.floor(total / len(counts)), math.ceil(total / len(counts))
    # Those that keep one more than the rest are those that have most already.
    richer = sorted(counts, key=lambda node_id: (-counts[node_id], node_id))[: total - floor * len(counts)]
    wanted = {node_id: ceiling if node_id in richer else floor for node_id in counts}
    surplus = [
        (stream_id, place)
        for place in takers
        for stream_id in _sampled(place, max(counts[place.node_id] - wanted[place.node_id], 0))
    ]
    moves: list[Move] = []
    for node_id in sorted(counts):
        missing = max(wanted[node_id] - counts[node_id], 0)
        for stream_id, place in surplus[:missing]:
            why = f"node {place.node_id} has {counts[place.node_id]} partitions, node {node_id} {counts[node_id]}"
            moves.append(Move(stream_id=stream_id, source=place.node_id, target=node_id, why=why))
        del surplus[:missing]
    return moves


def _tolerated_count(total: int, nodes: int) -> float:
    return max(_TOLERATED_COUNT, total / nodes * _TOLERATED_SHARE)


def _sampled(place: NodePlace, count: int) -> list[StreamId]:
    """So many partitions of a node, busy and idle ones as they come: their share of its load goes with them."""
    streams = sorted(
        (*place.open_streams, *place.closed_streams),
        key=lambda stream_id: (-place.busy.get(stream_id, _IDLE).total, stream_id),
    )
    return [streams[(2 * at + 1) * len(streams) // (2 * count)] for at in range(count)]


# ---- bytes in and out ---------------------------------------------------------------------------------------------------


class _Scale:
    """A node while loads are weighed."""

    __slots__ = ("busy", "count", "idle", "load", "node_id")

    def __init__(self, place: NodePlace, resting: Collection[StreamId]) -> None:
        self.node_id = place.node_id
        self.count = _count(place)
        load = _load_of(place)
        self.load = [load.bytes_in, load.bytes_out]
        open_streams = set(place.open_streams)
        self.busy = {
            stream_id: (each.bytes_in, each.bytes_out)
            for stream_id, each in sorted(place.busy.items())
            if stream_id in open_streams and stream_id not in resting
        }
        self.idle = sorted(open_streams - place.busy.keys(), reverse=True)


_NAMES: Final = ("in", "out")


def _evened_by_load(
    takers: Sequence[NodePlace], most: int, tolerances: Tolerances, resting: Collection[StreamId]
) -> list[Move]:
    scales = [_Scale(place, resting) for place in takers]
    totals = [sum(scale.load[kind] for scale in scales) for kind in (0, 1)]
    # What is next to nothing all in all does not count: its distances from the average would be noise.
    averages = [total / len(scales) if total > tolerances.bytes_per_s else 0.0 for total in totals]
    tolerated_count = _tolerated_count(sum(scale.count for scale in scales), len(scales))
    moves: list[Move] = []
    for kind, average in enumerate(averages):
        allowed = max(average * tolerances.share, tolerances.bytes_per_s)
        if not average or max(scale.load[kind] for scale in scales) - average <= allowed:
            continue
        while len(moves) < most:
            source = max(scales, key=lambda scale: scale.load[kind])
            if source.load[kind] - average <= allowed / 2:
                break
            why = f"node {source.node_id} has {source.load[kind] / 1e6:.1f} MB/s {_NAMES[kind]}, the average is {average / 1e6:.1f}"
            step = _best_step(scales, source, kind, averages, tolerated_count)
            if step is None or len(moves) + len(step) > most:
                break
            moves.extend(
                Move(stream_id=stream_id, source=giver.node_id, target=taker.node_id, why=why)
                for stream_id, giver, taker in step
            )
            for stream_id, giver, taker in step:
                _carry(stream_id, giver, taker)
    return moves


_Step = list[tuple[StreamId, _Scale, _Scale]]


def _best_step(
    scales: Sequence[_Scale], source: _Scale, kind: int, averages: Sequence[float], tolerated_count: float
) -> _Step | None:
    """What lessens the sum most: a busy partition of the source to another node, if need be for an idle one of that."""
    best: _Step | None = None
    best_gain = _LEAST_GAIN
    counts = sorted(scale.count for scale in scales)
    for taker in scales:
        if taker is source:
            continue
        alone = _counts_stay(counts, source.count, taker.count, tolerated_count)
        if not alone and not taker.idle:
            continue
        for stream_id, load in source.busy.items():
            if not load[kind]:
                continue
            gains = _gains(source.load, taker.load, load, averages)
            gain = sum(gains)
            # Also of what is too much here: what lessens the other kind alone would be a move for its own sake, and might come back.
            if gain > best_gain and gains[kind] > _LEAST_GAIN:
                best_gain = gain
                best = [(stream_id, source, taker)]
                if not alone:
                    best.append((taker.idle[-1], taker, source))
    return best


def _counts_stay(counts: Sequence[int], source: int, taker: int, tolerated: float) -> bool:
    """Whether counts are within their tolerance, or no further apart, after one partition went."""
    after = list(counts)
    after.remove(source)
    after.remove(taker)
    after += [source - 1, taker + 1]
    return max(after) - min(after) <= max(tolerated, counts[-1] - counts[0])


def _gains(
    source: Sequence[float], taker: Sequence[float], load: tuple[float, float], averages: Sequence[float]
) -> list[float]:
    """By how much the sum of squared relative distances from the average becomes less, for each kind: 2x(s - t - x)."""
    return [
        2 * load[kind] * (source[kind] - taker[kind] - load[kind]) / average**2 if average > 0 else 0.0
        for kind, average in enumerate(averages)
    ]


def _carry(stream_id: StreamId, source: _Scale, taker: _Scale) -> None:
    """A partition moves, and is not looked at again."""
    load = source.busy.pop(stream_id, (0.0, 0.0))
    if source.idle and source.idle[-1] == stream_id:
        source.idle.pop()
    for kind in (0, 1):
        source.load[kind] -= load[kind]
        taker.load[kind] += load[kind]
    source.count -= 1
    taker.count += 1
