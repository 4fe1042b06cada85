"""What can be asked of the state machine: the shape of a command and of the decision on it.

A command is a value. Its handler reads the tables, changes nothing, and decides: records and a reply, or a typed error.
Commands of a node carry its node epoch, so that a superseded registration can change nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from controller.records import Record
from controller.tables import NodeStatus, Tables
from s3stream.errors import NodeFenced

__all__ = ["Command", "Decision", "NodeCommand", "check_node"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Generic[R]):
    """Base of all commands; `R` is the type of the reply."""

    REPEATABLE: ClassVar[bool] = True
    """Given twice it does what it does once, and answers the same: where an answer was lost, it may be given again. The first attempt may come
    late: after the second one, and after what followed from that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCommand(Command[R]):
    """A command that only the current registration of a node may give."""

    node_id: int
    node_epoch: int


@dataclass(frozen=True, slots=True)
class Decision(Generic[R_co]):
    """What follows from a command: nothing is written where there are no records."""

    records: Sequence[Record]
    reply: R_co


def check_node(tables: Tables, node_id: int, node_epoch: int) -> str:
    """The WAL id of a node's current registration. Raises NodeFenced."""
    node = tables.nodes.get(node_id)
    if node is None:
        raise NodeFenced(f"node {node_id} is not registered: register it")
    if node.node_epoch != node_epoch:
        raise NodeFenced(
            f"node {node_id} was registered again with node epoch {node.node_epoch}; this process holds {node_epoch}: "
            "stop serving, and register again unless another process took over on purpose"
        )
    if tables.node_status(node_id) is NodeStatus.DEAD:
        raise NodeFenced(
            f"node {node_id} was not heard from, or said that it stops, and is taken for dead with node epoch {node_epoch}: "
            "stop serving, and register again"
        )
    return node.wal_id
