"""How the nodes of a cluster reach the one that leads: the port, its values and its errors.

Always true:
- Nothing here carries safety. Whoever leads proves it in the bucket, with each entry; what a peer says only saves time and
  requests. A cluster whose nodes cannot reach each other works, each node taking the office when it has something to write.
- An error says whether the command may have been executed (`PeerUnavailable.sent`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controller.commands import Command
from controller.errors import ControllerError
from controller.records import Unuploaded
from controller.wire import Outcome
from s3stream.metadata import StreamId

__all__ = [
    "Balance",
    "Followed",
    "Following",
    "HeardReport",
    "NodeBalance",
    "NodeLoad",
    "NodeReport",
    "NotLeader",
    "PeerService",
    "PeerUnavailable",
    "Peers",
    "PlannedMove",
]


class NotLeader(ControllerError):
    """The node that was asked does not lead, and has done nothing: the leader object in the bucket says who does."""


class PeerUnavailable(ControllerError):
    """The node that was asked did not answer."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent
        """It may have received the request, and executed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    """What goes through a node in a second, as clients send and get it."""

    bytes_in: int
    bytes_out: int
    busy: Sequence[tuple[StreamId, int, int]] = ()
    """Its busiest partitions: stream, bytes in, bytes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What the WAL of a registration holds alone just now."""

    node_epoch: int
    held: Unuploaded


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardReport:
    """A report of a node as the leader passes it on, for whoever leads after it."""

    node_id: int
    node_epoch: int
    age_ms: int
    """Since it was made, or heard by the leader."""
    held: Unuploaded
    """Of the leader itself it names streams, of others it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A node asks for what comes next, and shows by it that it lives."""

    node_id: int
    next_index: int
    """The first entry that it does not have."""
    wait_ms: int
    """Time within which it wants an answer, be it an empty one."""
    leaves: bool = False
    """It is about to stop, and wants to be rid of its partitions."""
    load: NodeLoad | None = None
    """Since it told the last time, where it is time to tell."""
    metadata_version: int = 3
    """The newest that it knows; those that knew no more than 3 did not say."""
    report: NodeReport | None = None
    """What would be lost with it now, where it is time to tell; those that knew no more than metadata version 4 do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Entries that count, as they lie in the bucket, from the asked index on."""

    entries: Sequence[bytes]
    next_index: int
    """The leader's own. Beyond the asked index without entries: they are to be read from the bucket."""
    reports: Sequence[HeardReport] = ()
    """What would be lost with the leader, and with others; none where it told this node just before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBalance:
    """What the leader knows of a registered node."""

    node_id: int
    lives: bool
    """It was heard from not long ago; True as well where it is too early to tell."""
    leaves: bool
    """It is stopping, or it is drained."""
    open_count: int
    """Partitions that it has open, or that are on their way to it."""
    closed_count: int
    """Partitions that it is to open."""
    bytes_in: int = -1
    """In a second; -1: not known (yet)."""
    bytes_out: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMove:
    """A partition that the leader would have moved."""

    stream_id: StreamId
    source: int
    target: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How partitions lie, as the leader sees it."""

    nodes: Sequence[NodeBalance]
    moves: Sequence[PlannedMove] = ()
    """What is to move next; the leader does that by itself where `balances` is set, and loads had time to settle."""
    balances: bool = True
    """Whether partitions are moved only to make nodes even."""


class PeerService(Protocol):
    """What a node does for others while it leads."""

    async def submitted(self, command: Command[Any]) -> Outcome:
        """Decide and commit a command for another node. Raises NotLeader."""

    async def followed(self, following: Following) -> Followed:
        """Answer as soon as there are entries that the other node does not have, or its time is up. Raises NotLeader."""

    async def balance(self) -> Balance:
        """Tell how partitions lie. Raises NotLeader."""

    async def alive(self, node_id: int) -> None:
        """A node shows that it lives, and wants nothing. Raises NotLeader."""


class Peers(Protocol):
    """Asks other nodes, by the address that their leader objects carry."""

    async def submit(self, address: str, command: Command[Any]) -> Outcome:
        """Have a command decided there. Raises NotLeader, PeerUnavailable."""

    async def follow(self, address: str, following: Following) -> Followed:
        """Wait for entries. Raises NotLeader, PeerUnavailable (also where no answer comes well after `wait_ms`)."""

    async def balance(self, address: str) -> Balance:
        """Ask the leader how partitions lie. Raises NotLeader, PeerUnavailable."""

    async def close(self) -> None:
        """End all connections; who waits gets PeerUnavailable."""
