"""Nodes: registration, which WAL is trusted, and the settings that were altered while they run.

Always true:
- A node id has one registration; a newer one has a higher node epoch and fences the older.
- A node's streams are OPEN on the WAL of its registration or on none. So a node that comes up with another disk is
  refused while its former WAL may hold acknowledged records (I1): nothing is lost silently. Unless it still has that WAL, set aside
  since it is damaged: what is open on it stays so, and cannot be opened on another, until it is recovered or abandoned.
- Altered settings of a node outlive its registration: they are there for it when it comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from controller.commands import Command, Decision
from controller.errors import NodeRefused
from controller.records import BrokerConfigsChanged, NodeRegistered, NodeUnregistered
from controller.tables import Tables, Touched
from controller.topics import changed_configs

__all__ = ["ConfigureBroker", "NodeRegistration", "RegisterNode", "UnregisterNode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRegistration:
    """What a node gets for registering."""

    node_id: int
    node_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterNode(Command[NodeRegistration]):
    """A node came up. Raises NodeRefused where its WAL is not the one its streams are open on, or an older state of it."""

    node_id: int
    wal_id: str
    wal_epoch: int = 0
    """As found in the WAL's header before recovery raises it."""
    set_aside: tuple[str, ...] = ()
    """WALs that the node still has besides, which are damaged."""
    address: str = ""
    rack: str = ""
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnregisterNode(Command[None]):
    """Remove a node that leads nothing. Raises NodeRefused where it still does."""

    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigureBroker(Command[None]):
    """Set and remove altered settings of a node, or of all (`ALL_NODES`). Raises ConfigsChanged."""

    REPEATABLE: ClassVar[bool] = False

    node_id: int
    changes: Mapping[str, str | None]
    """None goes back to what the node was started with."""
    expected: Mapping[str, str] | None = None
    """What they were when the change was computed; None: it does not matter."""


def register_node(tables: Tables, command: RegisterNode) -> Decision[NodeRegistration]:
    former = tables.nodes.get(command.node_id)
    if former is not None and former.wal_id == command.wal_id and command.wal_epoch < former.wal_epoch:
        raise NodeRefused(
            f"the WAL {command.wal_id} of node {command.node_id} has epoch {command.wal_epoch} in its header, but was "
            f"registered with epoch {former.wal_epoch} before: this is an older copy of the disk, and records that were "
            "acknowledged since are not on it. Start the node with its newest disk."
        )
    if former is not None and former.wal_id not in (command.wal_id, *command.set_aside):
        held = sum(1 for stream in tables.streams.values() if stream.wal_id == former.wal_id)
        if held:
            raise NodeRefused(
                f"node {command.node_id} comes up with WAL {command.wal_id}, but {held} partitions are open on its former "
                f"WAL {former.wal_id}, which may hold acknowledged records that no object holds. Start the node with "
                "that WAL's directory; or, if the disk is lost for good, give it up with `tidelog wal abandon "
                f"{former.wal_id}`, which accepts the loss of what was not uploaded."
            )
    for other in tables.nodes.values():
        if other.node_id != command.node_id and other.wal_id == command.wal_id:
            raise NodeRefused(
                f"WAL {command.wal_id} is registered by node {other.node_id}: start node {command.node_id} with a WAL "
                f"directory of its own, or start this one as node {other.node_id}."
            )
    node_epoch = tables.next_node_epoch
    record = NodeRegistered(
        node_id=command.node_id,
        node_epoch=node_epoch,
        wal_id=command.wal_id,
        wal_epoch=command.wal_epoch,
        address=command.address,
        rack=command.rack,
        registered_at_ms=command.at_ms,
    )
    return Decision((record,), NodeRegistration(node_id=command.node_id, node_epoch=node_epoch))


def unregister_node(tables: Tables, command: UnregisterNode) -> Decision[None]:
    if command.node_id not in tables.nodes:
        return Decision((), None)
    led = sum(1 for stream in tables.streams.values() if stream.node_id == command.node_id)
    if led:
        raise NodeRefused(f"node {command.node_id} leads {led} partitions: let another node open them first")
    return Decision((NodeUnregistered(node_id=command.node_id),), None)


def apply_node_registered(tables: Tables, record: NodeRegistered, touched: Touched) -> None:
    tables.nodes[record.node_id] = record
    tables.next_node_epoch = record.node_epoch + 1


def apply_node_unregistered(tables: Tables, record: NodeUnregistered, touched: Touched) -> None:
    tables.nodes.pop(record.node_id, None)


def configure_broker(tables: Tables, command: ConfigureBroker) -> Decision[None]:
    present = tables.broker_configs.get(command.node_id, {})
    configs = changed_configs(present, command.changes, command.expected)
    if configs == present:
        return Decision((), None)
    return Decision((BrokerConfigsChanged(node_id=command.node_id, configs=configs),), None)


def apply_broker_configs_changed(tables: Tables, record: BrokerConfigsChanged, touched: Touched) -> None:
    tables.require_version(2)
    if record.configs:
        tables.broker_configs[record.node_id] = record.configs
    else:
        tables.broker_configs.pop(record.node_id, None)
    touched.broker_configs = True
