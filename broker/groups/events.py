"""What happens to groups, and what follows from it. Plain values: a trace of them is a test.

Always true:
- A `token` names the request that waits for an answer. It is opaque, and answered exactly once by one `Reply`.
- What an event changes of the durable state is in `Append` effects, and takes effect with the `Stored` event that tells how the
  append ended. Appends of one machine end in the order in which they were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from protocol.errors import ErrorCode
from protocol.messages.heartbeat import HeartbeatRequest
from protocol.messages.join_group import JoinGroupRequest
from protocol.messages.leave_group import LeaveGroupRequest
from protocol.messages.sync_group import SyncGroupRequest

__all__ = [
    "Append",
    "Commit",
    "CommittedOffset",
    "DeleteGroup",
    "DeleteOffsets",
    "Effect",
    "Event",
    "Expire",
    "Heartbeat",
    "Join",
    "Leave",
    "Now",
    "Reply",
    "Row",
    "Stored",
    "Sync",
    "Tick",
    "TopicDeleted",
]


class Now(NamedTuple):
    """The time, as the shell reads it once per event."""

    monotonic_ms: int
    """For deadlines: a wall clock that is set must not end everybody's session."""
    wall_ms: int
    """For what is written, and for offsets' retention, which outlives the process."""


class Row(NamedTuple):
    """One record to append: key and value as they go into the log; a value of None is a tombstone."""

    key: bytes
    value: bytes | None


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A JoinGroup request."""

    token: Any
    version: int
    client_id: str
    client_host: str
    request: JoinGroupRequest
    new_member_suffix: str
    """Random: what makes a new member id unique."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """A SyncGroup request."""

    token: Any
    request: SyncGroupRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A Heartbeat request."""

    token: Any
    request: HeartbeatRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A LeaveGroup request."""

    token: Any
    version: int
    request: LeaveGroupRequest


class CommittedOffset(NamedTuple):
    """One offset that a client commits; the topic exists."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int
    metadata: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The offsets of an OffsetCommit request; answered by an error for each, in their order."""

    token: Any
    group_id: str
    member_id: str
    group_instance_id: str | None
    generation_id: int
    retention_ms: int
    """-1: the broker's."""
    offsets: Sequence[CommittedOffset]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOffsets:
    """An OffsetDelete request; answered by an error for the whole, or an error for each partition, in their order."""

    token: Any
    group_id: str
    partitions: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteGroup:
    """One group of a DeleteGroups request; answered by an error code."""

    token: Any
    group_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDeleted:
    """Offsets of partitions that are no more mean nothing, least of all for a later topic of that name."""

    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire:
    """Time to look for offsets and groups that nobody needs (`offsets.retention.check.interval.ms`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A deadline may have passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The oldest append that had not ended is durable, or never will be acknowledged."""

    error_code: ErrorCode = ErrorCode.NONE


Event: TypeAlias = (
    Join | Sync | Heartbeat | Leave | Commit | DeleteOffsets | DeleteGroup | TopicDeleted | Expire | Tick | Stored
)


# ---- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Answer a request."""

    token: Any
    response: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Append these records in one batch, and tell with `Stored` how that ended."""

    rows: Sequence[Row]


Effect: TypeAlias = Reply | Append
