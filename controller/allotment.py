"""Node ids that are given out: a node that has none asks for one, and gets that of a node that is gone, or a new one. Pure.

Theory of operation. What is given is a registration, with a node epoch of its own, before the node has looked at any WAL. So a node that
starts is heard of from then on as all others are; should it die before it serves, it is suspected, and dead, as all others are, and its id
is free again. Then it opens the WAL that its id leads to, and registers with that, as whoever has an id of its own does.

Always true:
- The metadata log orders who asks, so no two get the same registration. Whoever held the id before can change nothing any more.
- The id of a node that lives, or is only suspected, is not given. A node is dead no sooner than its lease has run out.
- Ids that operators may have given to nodes (up to `reserved_max_id`) are not given. So a node that is away for maintenance finds its own.
- An id leads to a WAL, so it is given only to a node that looks for its WAL in the same place.
- There are no more such ids than there were nodes at a time that were not known to be dead: who is gone makes room for who comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from controller.commands import Command, Decision
from controller.errors import NodeRefused
from controller.lost_wals import lost_wals
from controller.nodes import HEALTH_SINCE, NodeRegistration
from controller.records import NodeRegistered
from controller.tables import NodeStatus, Tables

__all__ = ["AllotNode", "allot_node"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllotNode(Command[NodeRegistration]):
    """A node wants an id, and has not opened its WAL yet.

    Raises NodeRefused under a metadata version that knows of no dead nodes.
    """

    REPEATABLE: ClassVar[bool] = False
    """Asked twice, it gets two: the first is free again when it was silent for long enough."""

    claim: str
    """Random: stands for the WAL of an id that leads to none yet."""
    reserved_max_id: int
    wal_uri: str
    """Where the node looks for the WAL of its id; in a bucket, so on no machine."""
    rack: str = ""
    lease_ms: int
    controller_address: str
    at_ms: int


def allot_node(tables: Tables, command: AllotNode) -> Decision[NodeRegistration]:
    if tables.metadata_version < HEALTH_SINCE:
        raise NodeRefused(
            f"metadata version {tables.metadata_version} is in force, which knows of no dead nodes, so no id can be given to a node: upgrade "
            "all nodes first, or give this one a node.id"
        )
    assert command.lease_ms, "nobody could tell when the node stops to serve"
    node_id = _of_a_dead_one(tables, command)
    if node_id is None:
        node_id = next(number for number in count(command.reserved_max_id + 1) if number not in tables.nodes)
    former = tables.nodes.get(node_id)
    record = NodeRegistered(
        node_id=node_id,
        node_epoch=tables.next_node_epoch,
        wal_id=command.claim if former is None else former.wal_id,
        wal_epoch=0 if former is None else former.wal_epoch,
        address="",  # clients are led there when it serves
        rack=command.rack,
        registered_at_ms=command.at_ms,
        lease_ms=command.lease_ms,
        controller_address=command.controller_address,
        wal_uri=command.wal_uri,
    )
    return Decision((record,), NodeRegistration(node_id=node_id, node_epoch=record.node_epoch))


def _of_a_dead_one(tables: Tables, command: AllotNode) -> int | None:
    """The lowest id that left nothing behind, else the lowest whose WAL is to be recovered and that nobody recovers; None: there is none."""
    dead = [
        node
        for node in tables.nodes.values()
        if node.node_id > command.reserved_max_id
        and tables.node_status(node.node_id) is NodeStatus.DEAD
        and node.wal_uri == command.wal_uri
    ]
    if not dead:
        return None
    lost = {wal.node_id: wal for wal in lost_wals(tables)}
    free = [
        (node.node_id in lost, node.node_id)
        for node in dead
        if node.node_id not in lost or lost[node.node_id].recoverer == -1
    ]
    return min(free)[1] if free else None
