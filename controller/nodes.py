"""Nodes: registration, which WAL is trusted, who is taken for dead, and the settings that were altered while they run.

Always true:
- A node id has one registration; a newer one has a higher node epoch and fences the older.
- A node's streams are OPEN on the WAL of its registration or on none. So a node that comes up with another disk is
  refused while its former WAL may hold acknowledged records (I1): nothing is lost silently. Unless it still has that WAL, set aside
  since it is damaged: what is open on it stays so, and cannot be opened on another, until it is recovered or abandoned.
- A registration is suspected before it is dead, and dead for good: its commands are refused, until the node registers again.
  One that takes no lease is never suspected, since nobody could tell when it stops to serve.
- Altered settings of a node outlive its registration: they are there for it when it comes back.
- What a node had reported that its WAL holds alone is kept from its suspicion on, until it is trusted or registers again.
- A node that was drained gets no partitions until that is taken back, or it registers anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from controller.commands import Command, Decision, NodeCommand, check_node
from controller.errors import NodeIdTaken, NodeRefused, NoNodes, UnknownNode
from controller.records import (
    METADATA_VERSION,
    BrokerConfigsChanged,
    MetadataVersionRaised,
    NodeDead,
    NodeDrained,
    NodeRegistered,
    NodeSuspected,
    NodeTrusted,
    NodeUnregistered,
    Record,
    StreamsReassigned,
    Unuploaded,
)
from controller.tables import NodeHealth, NodeStatus, Tables, Touched
from controller.topics import changed_configs, takers

__all__ = [
    "HEALTH_SINCE",
    "REPORTS_SINCE",
    "ConfigureBroker",
    "DeclareDead",
    "DescribeNode",
    "DrainNode",
    "LeaveCluster",
    "NodeRegistration",
    "RaiseMetadataVersion",
    "RegisterNode",
    "SuspectNode",
    "TrustNode",
    "UnregisterNode",
]

HEALTH_SINCE: Final = 4
"""The metadata version since which nodes are suspected, tell of their leases, and are drained."""

REPORTS_SINCE: Final = 5
"""The metadata version since which a suspicion says what the node had reported that its WAL holds alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRegistration:
    """What a node gets for registering."""

    node_id: int
    node_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterNode(Command[NodeRegistration]):
    """A node came up. Raises NodeRefused where its WAL is not the one its streams are open on, or an older state of it; NodeIdTaken where
    its id was only given to it, and is another's by now."""

    node_id: int
    wal_id: str
    wal_epoch: int = 0
    """As found in the WAL's header before recovery raises it."""
    allotted_epoch: int = -1
    """Node epoch under which the node was given its id (`controller.allotment`); -1: an operator gave it."""
    set_aside: tuple[str, ...] = ()
    """WALs that the node still has besides, which are damaged."""
    address: str = ""
    rack: str = ""
    lease_ms: int = 0
    """For how long it may serve without having read the metadata log to its tail; 0: it does not look."""
    controller_address: str = ""
    wal_uri: str = ""
    wal_host: str = ""
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeNode(NodeCommand[None]):
    """A registered node tells again what its registration could not hold under an older metadata version, or what has changed since."""

    lease_ms: int
    controller_address: str
    wal_uri: str = ""
    wal_host: str = ""
    wal_epoch: int = -1
    """In the WAL's header since its recovery raised it; -1: not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectNode(Command[bool]):
    """The leader does not hear from a registration of a node; replies whether it is suspect now.

    It is not where the node registered again, takes no lease, or the metadata version does not know of it.
    """

    node_id: int
    node_epoch: int
    at_ms: int
    held: Unuploaded | None = None
    """What the node reported last that its WAL holds alone; None: the leader knows of no report."""
    held_before_silence_ms: int = -1
    """How long before its last sign of life; -1: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustNode(Command[None]):
    """A suspected registration was heard from. Nothing brings back a dead one."""

    node_id: int
    node_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclareDead(Command[bool]):
    """A suspected registration serves nothing any more: its lease ran out; replies whether it is dead now."""

    node_id: int
    node_epoch: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveCluster(NodeCommand[bool]):
    """A node says itself that it serves nothing any more, and stops; replies whether it is dead now: not while it has partitions open."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseMetadataVersion(Command[None]):
    """All nodes understand this metadata version. One that is in force already stays."""

    metadata_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnregisterNode(Command[None]):
    """Remove a node that leads nothing. Raises NodeRefused where it still does, or where it runs as far as the cluster knows."""

    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainNode(Command[None]):
    """Have a node give all its partitions away and get none, or take that back.

    Raises UnknownNode where it is not registered, NoNodes where no other could have its partitions, NodeRefused under an older metadata
    version.
    """

    node_id: int
    is_drained: bool


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
    if command.allotted_epoch >= 0 and (former is None or former.node_epoch != command.allotted_epoch):
        if former is not None and _is_of(former, command):
            return Decision((), NodeRegistration(node_id=former.node_id, node_epoch=former.node_epoch))
        raise NodeIdTaken(
            f"node id {command.node_id} was given to this process, which was silent for so long since that it was taken for dead, and the id "
            "is another's now: start again, which gets it one of its own"
        )
    if former is not None and former.wal_id == command.wal_id and command.wal_epoch < former.wal_epoch:
        raise NodeRefused(
            f"the WAL {command.wal_id} of node {command.node_id} is of epoch {command.wal_epoch}, but was of epoch {former.wal_epoch} before: "
            "this is an older copy of the disk, or of a WAL in a bucket something was deleted, and records that were acknowledged since are not in "
            "it. Start the node with its newest disk, or put back what was deleted; just once more, if another process of it was there a moment ago; or, if that is lost for good, move this copy away and give "
            f"the WAL up with `tidelog wal abandon {command.wal_id}`."
        )
    if former is not None and former.wal_id not in (command.wal_id, *command.set_aside):
        held = sum(1 for stream in tables.streams.values() if stream.wal_id == former.wal_id)
        if held:
            is_dead = tables.node_status(former.node_id) is NodeStatus.DEAD
            another = f"If another process runs as this node, at {former.address}, give this one a node.id of its own. If not, start"
            raise NodeRefused(
                f"node {command.node_id} comes up with WAL {command.wal_id}, but {held} partitions are open on its former "
                f"WAL {former.wal_id}, which may hold acknowledged records that no object holds. {'Start' if is_dead else another} the node with "
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
        lease_ms=command.lease_ms,
        controller_address=command.controller_address,
        wal_uri=command.wal_uri,
        wal_host=command.wal_host,
    )
    return Decision((record,), NodeRegistration(node_id=command.node_id, node_epoch=node_epoch))


def _is_of(node: NodeRegistered, command: RegisterNode) -> bool:
    """Whether it was this command that made a registration: its answer was lost, and it is given again."""
    fields = ("wal_id", "wal_epoch", "address", "controller_address")
    return node.registered_at_ms == command.at_ms and all(
        getattr(node, name) == getattr(command, name) for name in fields
    )


def describe_node(tables: Tables, command: DescribeNode) -> Decision[None]:
    check_node(tables, command.node_id, command.node_epoch)
    present = tables.nodes[command.node_id]
    record = msgspec.structs.replace(
        present,
        lease_ms=command.lease_ms,
        controller_address=command.controller_address,
        wal_uri=command.wal_uri,
        wal_host=command.wal_host,
        wal_epoch=max(command.wal_epoch, present.wal_epoch),
    )
    if record == present or tables.metadata_version < HEALTH_SINCE:
        return Decision((), None)
    return Decision((record,), None)


def _registered(tables: Tables, command: SuspectNode | TrustNode | DeclareDead) -> NodeRegistered | None:
    """The registration that a command is about; None where there is a newer one, or none."""
    node = tables.nodes.get(command.node_id)
    return node if node is not None and node.node_epoch == command.node_epoch else None


def suspect_node(tables: Tables, command: SuspectNode) -> Decision[bool]:
    node = _registered(tables, command)
    if node is None or not node.lease_ms or tables.metadata_version < HEALTH_SINCE:
        return Decision((), False)
    status = tables.node_status(command.node_id)
    if status is not NodeStatus.ALIVE:
        return Decision((), status is NodeStatus.SUSPECT)
    record = NodeSuspected(node_id=command.node_id, node_epoch=command.node_epoch, at_ms=command.at_ms)
    if tables.metadata_version >= REPORTS_SINCE:
        record = msgspec.structs.replace(
            record, held=command.held, held_before_silence_ms=command.held_before_silence_ms
        )
    return Decision((record,), True)


def trust_node(tables: Tables, command: TrustNode) -> Decision[None]:
    if _registered(tables, command) is None or tables.node_status(command.node_id) is not NodeStatus.SUSPECT:
        return Decision((), None)
    return Decision((NodeTrusted(node_id=command.node_id, node_epoch=command.node_epoch),), None)


def declare_dead(tables: Tables, command: DeclareDead) -> Decision[bool]:
    status = tables.node_status(command.node_id)
    if _registered(tables, command) is None or status is not NodeStatus.SUSPECT:
        return Decision((), _registered(tables, command) is not None and status is NodeStatus.DEAD)
    return Decision((_dead(command),), True)


def leave_cluster(tables: Tables, command: LeaveCluster) -> Decision[bool]:
    wal_id = check_node(tables, command.node_id, command.node_epoch)
    if tables.metadata_version < HEALTH_SINCE or not tables.nodes[command.node_id].lease_ms:
        return Decision((), False)
    streams = tables.streams.values()
    if any(stream.wal_id and (stream.node_id == command.node_id or stream.wal_id == wal_id) for stream in streams):
        return Decision((), False)
    suspected = NodeSuspected(node_id=command.node_id, node_epoch=command.node_epoch, at_ms=command.at_ms)
    if tables.node_status(command.node_id) is NodeStatus.SUSPECT:
        return Decision((_dead(command),), True)
    return Decision((suspected, _dead(command)), True)


def _dead(command: DeclareDead | LeaveCluster) -> NodeDead:
    return NodeDead(node_id=command.node_id, node_epoch=command.node_epoch, at_ms=command.at_ms)


def raise_metadata_version(tables: Tables, command: RaiseMetadataVersion) -> Decision[None]:
    if not tables.metadata_version < command.metadata_version <= METADATA_VERSION:
        return Decision((), None)
    return Decision((MetadataVersionRaised(metadata_version=command.metadata_version),), None)


def unregister_node(tables: Tables, command: UnregisterNode) -> Decision[None]:
    if command.node_id not in tables.nodes:
        return Decision((), None)
    if tables.nodes[command.node_id].lease_ms and tables.node_status(command.node_id) is not NodeStatus.DEAD:
        raise NodeRefused(
            f"node {command.node_id} runs, as far as the cluster knows: stop it first, and wait for some seconds if it was killed"
        )
    led = [stream for stream in tables.streams.values() if stream.node_id == command.node_id]
    held = sum(1 for stream in led if stream.wal_id)
    if held:
        raise NodeRefused(
            f"node {command.node_id} has {held} partitions open, whose last records may be in its WAL alone: start it and stop it in order; "
            f"or let others recover its WAL; or, if that is lost for good, give it up with `tidelog wal abandon {tables.nodes[command.node_id].wal_id}`"
        )
    if led:
        raise NodeRefused(
            f"node {command.node_id} is to open {len(led)} partitions: others take them once it is known to be gone, "
            "or by kafka-reassign-partitions"
        )
    return Decision((NodeUnregistered(node_id=command.node_id),), None)


def drain_node(tables: Tables, command: DrainNode) -> Decision[None]:
    if command.node_id not in tables.nodes:
        known = ", ".join(map(str, sorted(tables.nodes))) or "none"
        raise UnknownNode(f"node {command.node_id} is not registered; these are: {known}")
    if command.is_drained == (command.node_id in tables.drained):
        return Decision((), None)
    if tables.metadata_version < HEALTH_SINCE:
        raise NodeRefused(
            f"metadata version {tables.metadata_version} is in force, which knows of no drained nodes: upgrade all of them first"
        )
    others = takers(tables, tables.nodes.keys() - {command.node_id})
    if command.is_drained and not set(others) - tables.drained.keys():
        raise NoNodes(
            f"node {command.node_id} is the last one that may have partitions: start another, or take back that others are drained"
        )
    records: list[Record] = [NodeDrained(node_id=command.node_id, is_drained=command.is_drained)]
    under_way = tuple(
        (stream.stream_id, command.node_id)
        for stream in tables.streams.values()
        if stream.node_id == command.node_id and stream.target_node_id != -1
    )
    if under_way and not command.is_drained:
        records.append(StreamsReassigned(targets=under_way))
    return Decision(records, None)


def apply_node_drained(tables: Tables, record: NodeDrained, touched: Touched) -> None:
    tables.require_version(HEALTH_SINCE)
    if record.is_drained:
        tables.drained[record.node_id] = None
    else:
        tables.drained.pop(record.node_id, None)


def apply_node_registered(tables: Tables, record: NodeRegistered, touched: Touched) -> None:
    if tables.metadata_version < HEALTH_SINCE:
        # Snapshots of nodes that do not know of it leave it out, and all nodes are to come to the same state.
        record = msgspec.structs.replace(record, lease_ms=0, controller_address="", wal_uri="", wal_host="")
    former = tables.nodes.get(record.node_id)
    if former is None or former.node_epoch != record.node_epoch:
        tables.drained.pop(record.node_id, None)
    if tables.node_status(record.node_id) is NodeStatus.DEAD:
        _touch_led(tables, record.node_id, touched)
    tables.nodes[record.node_id] = record
    tables.next_node_epoch = max(tables.next_node_epoch, record.node_epoch + 1)
    tables.node_health.pop(record.node_id, None)
    touched.nodes.add(record.node_id)


def apply_node_unregistered(tables: Tables, record: NodeUnregistered, touched: Touched) -> None:
    tables.nodes.pop(record.node_id, None)
    tables.drained.pop(record.node_id, None)
    tables.node_health.pop(record.node_id, None)
    touched.nodes.add(record.node_id)


def apply_node_suspected(tables: Tables, record: NodeSuspected, touched: Touched) -> None:
    tables.require_version(HEALTH_SINCE)
    if record.held is not None:
        tables.require_version(REPORTS_SINCE)
    tables.node_health[record.node_id] = NodeHealth(
        status=NodeStatus.SUSPECT,
        since_ms=record.at_ms,
        held=record.held,
        held_before_silence_ms=record.held_before_silence_ms,
    )
    touched.nodes.add(record.node_id)


def apply_node_trusted(tables: Tables, record: NodeTrusted, touched: Touched) -> None:
    tables.require_version(HEALTH_SINCE)
    tables.node_health.pop(record.node_id, None)
    touched.nodes.add(record.node_id)


def apply_node_dead(tables: Tables, record: NodeDead, touched: Touched) -> None:
    tables.require_version(HEALTH_SINCE)
    suspected = tables.node_health.get(record.node_id)
    tables.node_health[record.node_id] = NodeHealth(
        status=NodeStatus.DEAD,
        since_ms=record.at_ms,
        held=None if suspected is None else suspected.held,
        held_before_silence_ms=-1 if suspected is None else suspected.held_before_silence_ms,
    )
    touched.nodes.add(record.node_id)
    _touch_led(tables, record.node_id, touched)


def _touch_led(tables: Tables, node_id: int, touched: Touched) -> None:
    """Whether its partitions are served is another matter from now on."""
    touched.topics.update(stream.topic_id for stream in tables.streams.values() if stream.node_id == node_id)


def apply_metadata_version_raised(tables: Tables, record: MetadataVersionRaised, touched: Touched) -> None:
    tables.require_version(record.metadata_version)


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
