"""One classic group: its members, and the rules that need no time and answer nobody.

Always true:
- `leader` names a member, or is None while there is none.
- `generation_id` only grows. In `STABLE` every member has an assignment of this generation, be it an empty one.
- `protocol_type` is that of all members; each lists the protocols that it supports, the preferred one first.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from typing import Any

from broker.groups.offsets import Offsets
from broker.groups.records import GroupValue, MemberValue, decode_group_value
from broker.groups.subscription import subscribed_topics
from broker.groups.timers import Timer
from protocol.messages.join_group import JoinGroupRequestProtocol, JoinGroupResponseMember

__all__ = [
    "CONSUMER_PROTOCOL_TYPE",
    "Group",
    "GroupState",
    "Member",
    "TimerKind",
    "protocols_of",
    "protocols_size_bytes",
]

CONSUMER_PROTOCOL_TYPE = "consumer"
"""Members whose metadata is a consumer's subscription; Kafka Connect has another."""

_MEMBER_OVERHEAD_BYTES = 1_500
_GROUP_OVERHEAD_BYTES = 2_500
_PENDING_MEMBER_BYTES = 600
_PROTOCOL_OVERHEAD_BYTES = 250
"""What the interpreter takes for one of the kind, with its dictionaries and timers; rounded up."""


class GroupState(enum.Enum):
    """Kafka's names, as DescribeGroups tells them."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


class TimerKind(enum.Enum):
    """What a timer of a group is for."""

    SESSION = "session"
    """A member was not heard of for its session timeout."""
    PENDING = "pending"
    """A member that was given an id did not join with it (KIP-394)."""
    INITIAL_DELAY = "initial delay"
    """An empty group waited long enough for more members."""
    REBALANCE = "rebalance"
    """Members had their time to join again."""
    SYNC = "sync"
    """Members had their time to ask for their assignment."""


class Member:
    """One member of a group."""

    __slots__ = (
        "assignment",
        "awaiting_join",
        "awaiting_sync",
        "client_host",
        "client_id",
        "group_instance_id",
        "is_new",
        "member_id",
        "protocols",
        "rebalance_timeout_ms",
        "session",
        "session_timeout_ms",
    )

    def __init__(
        self,
        *,
        group: Group,
        member_id: str,
        group_instance_id: str | None,
        client_id: str,
        client_host: str,
        rebalance_timeout_ms: int,
        session_timeout_ms: int,
        protocols: tuple[tuple[str, bytes], ...],
        assignment: bytes = b"",
    ) -> None:
        self.member_id = member_id
        self.group_instance_id = group_instance_id
        """A static member's name, which outlives its member ids (KIP-345)."""
        self.client_id = client_id
        self.client_host = client_host
        self.rebalance_timeout_ms = rebalance_timeout_ms
        self.session_timeout_ms = session_timeout_ms
        self.protocols = protocols
        """Names and metadata, the preferred first."""
        self.assignment = assignment
        self.awaiting_join: Any = None
        """The token of its JoinGroup that waits, or None."""
        self.awaiting_sync: Any = None
        """The token of its SyncGroup that waits, or None."""
        self.is_new = False
        """It joined and was not answered yet: it cannot send heartbeats, since it does not know its id."""
        self.session = Timer(TimerKind.SESSION, group, self)

    @property
    def is_static(self) -> bool:
        return self.group_instance_id is not None

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        names_bytes = (
            len(self.member_id) + len(self.client_id) + len(self.client_host) + len(self.group_instance_id or "")
        )
        return _MEMBER_OVERHEAD_BYTES + 2 * names_bytes + len(self.assignment) + self.protocols_bytes

    @property
    def protocols_bytes(self) -> int:
        """What it says takes."""
        return protocols_size_bytes(self.protocols)

    def matches(self, protocols: tuple[tuple[str, bytes], ...]) -> bool:
        """Whether it would join with what it joined with before."""
        return self.protocols == protocols

    def metadata(self, protocol_name: str | None) -> bytes:
        """What it said for a protocol."""
        for name, metadata in self.protocols:
            if name == protocol_name:
                return metadata
        return b""


def protocols_of(protocols: Iterable[JoinGroupRequestProtocol]) -> tuple[tuple[str, bytes], ...]:
    """The protocols of a JoinGroup request as a member keeps them."""
    return tuple((protocol.name, protocol.metadata) for protocol in protocols)


def protocols_size_bytes(protocols: Iterable[tuple[str, bytes]]) -> int:
    """About what a member's protocols take in memory."""
    return sum(len(name) + len(metadata) + _PROTOCOL_OVERHEAD_BYTES for name, metadata in protocols)


class Group:
    """See the module."""

    __slots__ = (
        "_members_bytes",
        "_protocol_counts",
        "assignment_under_way",
        "awaiting_join_count",
        "charged_bytes",
        "delay_left_ms",
        "generation_id",
        "group_id",
        "leader",
        "members",
        "new_member_added",
        "offsets",
        "pending_members",
        "pending_sync",
        "previous_state",
        "protocol_name",
        "protocol_type",
        "rebalance_timer",
        "record",
        "records_under_way",
        "state",
        "state_timestamp_ms",
        "static_members",
        "subscribed_topics",
        "sync_timer",
    )

    def __init__(self, group_id: str, wall_ms: int) -> None:
        self.group_id = group_id
        self.state = GroupState.EMPTY
        self.previous_state = GroupState.EMPTY
        self.state_timestamp_ms = wall_ms
        """When the state was entered; for an empty group: since when its offsets age (KIP-211)."""
        self.generation_id = 0
        self.protocol_type: str | None = None
        self.protocol_name: str | None = None
        self.leader: str | None = None
        self.members: dict[str, Member] = {}
        """In the order in which they joined."""
        self.static_members: dict[str, str] = {}
        """Member ids by group instance id."""
        self.pending_members: dict[str, Timer] = {}
        """Ids that were given out and did not join yet."""
        self.pending_sync: set[str] = set()
        """Members that know the generation and did not ask for their assignment yet."""
        self.new_member_added = False
        """Somebody joined during the initial delay, which may be prolonged."""
        self.delay_left_ms = 0
        self.rebalance_timer = Timer(TimerKind.REBALANCE, self)
        self.sync_timer = Timer(TimerKind.SYNC, self)
        self.subscribed_topics: frozenset[str] | None = None
        """Of a consumer group; None where that is not known."""
        self.assignment_under_way = False
        """The leader's assignment of this generation is being stored."""
        self.offsets = Offsets()
        self.record: bytes | None = None
        """The metadata that is durable in the log, which may be of an earlier generation; None where there is none."""
        self.records_under_way = 0
        """Records of its metadata, tombstones included, that are not durable yet."""
        self.charged_bytes = 0
        """What the machine's budget was charged for it."""
        self.awaiting_join_count = 0
        """Members whose JoinGroup waits."""
        self._protocol_counts: Counter[str] = Counter()
        """How many members support a protocol."""
        self._members_bytes = 0

    # ---- state ----------------------------------------------------------------------------------------------------

    def enter(self, state: GroupState, wall_ms: int) -> None:
        """Change the state."""
        self.previous_state, self.state = self.state, state
        self.state_timestamp_ms = wall_ms

    @property
    def can_rebalance(self) -> bool:
        return self.state in (GroupState.STABLE, GroupState.COMPLETING_REBALANCE, GroupState.EMPTY)

    @property
    def rebalance_timeout_ms(self) -> int:
        """How long members have to join again: the longest that any of them asked for."""
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        pending_bytes = _PENDING_MEMBER_BYTES * len(self.pending_members)
        record_bytes = 0 if self.record is None else len(self.record)
        overhead_bytes = _GROUP_OVERHEAD_BYTES + 2 * len(self.group_id)
        return overhead_bytes + self._members_bytes + pending_bytes + record_bytes + self.offsets.size_bytes

    def next_generation(self, wall_ms: int) -> None:
        """Close the join phase: with members a protocol is chosen, without the group is empty."""
        self.generation_id += 1
        self.assignment_under_way = False
        self.pending_sync.clear()
        if self.members:
            self.protocol_name = self.select_protocol()
            self.subscribed_topics = self._subscribed_topics()
            self.enter(GroupState.COMPLETING_REBALANCE, wall_ms)
        else:
            self.protocol_name = None
            self.leader = None
            self.subscribed_topics = self._subscribed_topics()
            self.enter(GroupState.EMPTY, wall_ms)

    # ---- members --------------------------------------------------------------------------------------------------

    def add(self, member: Member, protocol_type: str) -> None:
        """Take a member in; the first one leads."""
        if not self.members:
            self.protocol_type = protocol_type
        if self.leader is None:
            self.leader = member.member_id
        self.members[member.member_id] = member
        self._count(member, 1)
        if member.group_instance_id is not None:
            self.static_members[member.group_instance_id] = member.member_id

    def remove(self, member: Member) -> None:
        """Let a member go; whoever joined next leads, if it led. Its requests were answered before."""
        assert member.awaiting_join is None, "who waits is answered first"
        del self.members[member.member_id]
        self._count(member, -1)
        self.pending_sync.discard(member.member_id)
        if (
            member.group_instance_id is not None
            and self.static_members.get(member.group_instance_id) == member.member_id
        ):
            del self.static_members[member.group_instance_id]
        if self.leader == member.member_id:
            self.leader = next(iter(self.members), None)

    def update(
        self,
        member: Member,
        *,
        protocols: tuple[tuple[str, bytes], ...],
        rebalance_timeout_ms: int,
        session_timeout_ms: int,
    ) -> None:
        """Take over what a member joins with this time."""
        self._count(member, -1)
        member.protocols = protocols
        member.rebalance_timeout_ms = rebalance_timeout_ms
        member.session_timeout_ms = session_timeout_ms
        self._count(member, 1)

    def assign(self, member: Member, assignment: bytes) -> None:
        """Give a member its assignment."""
        self._members_bytes += len(assignment) - len(member.assignment)
        member.assignment = assignment

    def wait_join(self, member: Member, token: Any) -> None:
        """A member's JoinGroup waits from now on."""
        assert member.awaiting_join is None, "who waits is answered first"
        member.awaiting_join = token
        self.awaiting_join_count += 1

    def take_join(self, member: Member) -> Any:
        """The token of a member's JoinGroup that waited, which is to be answered now; None where none did."""
        token, member.awaiting_join = member.awaiting_join, None
        if token is not None:
            self.awaiting_join_count -= 1
        return token

    def _count(self, member: Member, by: int) -> None:
        self._members_bytes += by * member.size_bytes
        for name in {name for name, _ in member.protocols}:
            self._protocol_counts[name] += by
            if not self._protocol_counts[name]:
                del self._protocol_counts[name]

    def rename(self, member: Member, member_id: str) -> None:
        """A static member came back under another member id (KIP-345)."""
        assert member.group_instance_id is not None, "only static members are renamed"
        old_id = member.member_id
        self._count(member, -1)
        member.member_id = member_id
        self._count(member, 1)
        self.members = {(member_id if key == old_id else key): value for key, value in self.members.items()}
        self.static_members[member.group_instance_id] = member_id
        if self.leader == old_id:
            self.leader = member_id
        if old_id in self.pending_sync:
            self.pending_sync.remove(old_id)
            self.pending_sync.add(member_id)

    @property
    def all_joined(self) -> bool:
        """Nobody is missing who is known to be about to join."""
        return not self.pending_members and self.awaiting_join_count == len(self.members)

    def elect_joined_leader(self) -> bool:
        """Make sure that the leader is one that joined; False where nobody did."""
        leader = None if self.leader is None else self.members.get(self.leader)
        if leader is not None and leader.awaiting_join is not None:
            return True
        for member in self.members.values():
            if member.awaiting_join is not None:
                self.leader = member.member_id
                return True
        return False

    # ---- protocols ------------------------------------------------------------------------------------------------

    def supports(self, protocol_type: str, protocols: tuple[tuple[str, bytes], ...]) -> bool:
        """Whether somebody with these protocols can be a member: there must be one that all support."""
        if not self.members:
            return bool(protocol_type) and bool(protocols)
        if protocol_type != self.protocol_type:
            return False
        return any(self._protocol_counts.get(name) == len(self.members) for name, _ in protocols)

    def _common_protocols(self) -> set[str]:
        return {name for name, count in self._protocol_counts.items() if count == len(self.members)}

    def select_protocol(self) -> str:
        """Each member votes for the first of its protocols that all support; among equals the longest standing voter decides."""
        common = self._common_protocols()
        votes: Counter[str] = Counter()
        for member in self.members.values():
            votes[next(name for name, _ in member.protocols if name in common)] += 1
        return votes.most_common(1)[0][0]

    def _subscribed_topics(self) -> frozenset[str] | None:
        if self.protocol_type != CONSUMER_PROTOCOL_TYPE:
            return None
        return subscribed_topics(member.metadata(self.protocol_name) for member in self.members.values())

    # ---- as others see it -----------------------------------------------------------------------------------------

    def join_members(self) -> list[JoinGroupResponseMember]:
        """What the leader assigns by."""
        return [
            JoinGroupResponseMember(
                member_id=member.member_id,
                group_instance_id=member.group_instance_id,
                metadata=member.metadata(self.protocol_name),
            )
            for member in self.members.values()
        ]

    def value(self, assignments: dict[str, bytes] | None = None) -> GroupValue:
        """What is written of it, with these assignments rather than those in effect."""
        return GroupValue(
            self.protocol_type or "",
            self.generation_id,
            self.protocol_name,
            self.leader,
            self.state_timestamp_ms,
            tuple(
                MemberValue(
                    member.member_id,
                    member.group_instance_id,
                    member.client_id,
                    member.client_host,
                    member.rebalance_timeout_ms,
                    member.session_timeout_ms,
                    member.metadata(self.protocol_name),
                    member.assignment if assignments is None else assignments.get(member.member_id, b""),
                )
                for member in self.members.values()
            ),
        )

    @classmethod
    def restored(cls, group_id: str, record: bytes) -> Group:
        """As the log has it: stable, or empty. A rebalance that was under way starts over. Raises Malformed."""
        value = decode_group_value(record)
        group = cls(group_id, value.state_timestamp_ms)
        group.generation_id = value.generation_id
        group.protocol_type = value.protocol_type or None
        group.protocol_name = value.protocol_name
        group.record = record
        for found in value.members:
            member = Member(
                group=group,
                member_id=found.member_id,
                group_instance_id=found.group_instance_id,
                client_id=found.client_id,
                client_host=found.client_host,
                rebalance_timeout_ms=found.rebalance_timeout_ms,
                session_timeout_ms=found.session_timeout_ms,
                protocols=((value.protocol_name or "", found.subscription),),
                assignment=found.assignment,
            )
            group.add(member, value.protocol_type)
        if value.leader in group.members:
            group.leader = value.leader
        group.state = group.previous_state = GroupState.STABLE if group.members else GroupState.EMPTY
        group.subscribed_topics = group._subscribed_topics()
        return group
