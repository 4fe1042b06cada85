"""WALs of nodes that are dead: which of them are to be recovered, by whom first, and where their partitions go. Pure.

Always true:
- A WAL is to be recovered while its node is dead, streams are open on it, and no living node recovers it.
- Who may try is everybody: who can reach a WAL, nobody but the node itself knows. So all look, one after the other, in an order that is
  another for each WAL; the first to reach it takes it by a command (`RecoverWal`), and from then on the others leave it alone, until it
  dies or gives it back (`GiveBackWal`).
- Equal states give equal answers on every node.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from controller.tables import NodeStatus, StreamState, StreamStatus, Tables
from controller.topics import takers
from s3stream.metadata import StreamId

__all__ = ["LostWal", "lost_wals", "order", "recoverer_of", "spread", "streams_of_dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostWal:
    """A WAL whose node is dead, with streams open on it."""

    wal_id: str
    node_id: int
    node_epoch: int
    """Of the registration that is dead."""
    wal_epoch: int
    """As its header had it when that was made."""
    uri: str
    host: str
    stream_ids: Sequence[StreamId]
    recoverer: int
    """A living node that recovers it; -1: none does."""


def lost_wals(tables: Tables) -> list[LostWal]:
    """The WALs of dead nodes on which streams are open, by node."""
    dead = {node.wal_id: node for node in tables.nodes.values() if tables.node_status(node.node_id) is NodeStatus.DEAD}
    if not dead:
        return []
    by_wal: dict[str, list[StreamState]] = {}
    for stream in tables.streams.values():
        if stream.wal_id in dead:
            by_wal.setdefault(stream.wal_id, []).append(stream)
    return [
        LostWal(
            wal_id=node.wal_id,
            node_id=node.node_id,
            node_epoch=node.node_epoch,
            wal_epoch=node.wal_epoch,
            uri=node.wal_uri,
            host=node.wal_host,
            stream_ids=tuple(stream.stream_id for stream in by_wal[node.wal_id]),
            recoverer=recoverer_of(tables, by_wal[node.wal_id]),
        )
        for node in sorted(dead.values(), key=lambda node: node.node_id)
        if node.wal_id in by_wal
    ]


def recoverer_of(tables: Tables, streams: Iterable[StreamState]) -> int:
    """The living node that recovers streams of one WAL; -1: none does."""
    for stream in streams:
        if stream.status is StreamStatus.RECOVERING and _lives(tables, stream.node_id):
            return stream.node_id
    return -1


def _lives(tables: Tables, node_id: int) -> bool:
    return node_id in tables.nodes and tables.node_status(node_id) is NodeStatus.ALIVE


def streams_of_dead(tables: Tables) -> int:
    """How many streams wait for the recovery of a dead node's WAL."""
    return sum(len(wal.stream_ids) for wal in lost_wals(tables))


def order(tables: Tables, wal: LostWal) -> list[int]:
    """Living nodes in the order in which they try to recover a WAL. Each WAL has another one, so that not one node gets all the work."""
    living = (node_id for node_id in tables.nodes if _lives(tables, node_id))
    return sorted(living, key=lambda node_id: hashlib.sha256(f"{wal.wal_id} {node_id}".encode()).digest())


def spread(tables: Tables, stream_ids: Sequence[StreamId]) -> Mapping[StreamId, int]:
    """Where streams go whose node is dead: to those that take new partitions, so that all have about as many."""
    counts = dict.fromkeys(takers(tables, tables.nodes), 0)
    if not counts:
        return {}
    homeless = set(stream_ids)
    for stream in tables.streams.values():
        node_id = stream.node_id if stream.target_node_id == -1 else stream.target_node_id
        if node_id in counts and stream.stream_id not in homeless:
            counts[node_id] += 1
    emptiest = [(count, node_id) for node_id, count in counts.items()]
    heapq.heapify(emptiest)
    targets: dict[StreamId, int] = {}
    for stream_id in sorted(homeless):
        stream = tables.streams[stream_id]
        if stream.target_node_id in counts:  # on its way there when its node died
            targets[stream_id] = stream.target_node_id
            continue
        count, node_id = emptiest[0]
        heapq.heapreplace(emptiest, (count + 1, node_id))
        targets[stream_id] = node_id
    return targets
