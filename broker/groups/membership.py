"""The classic group protocol: how members join, get their assignment, stay and leave. Pure, and without a clock.

Theory of operation. A group is EMPTY until somebody joins. A join starts a rebalance (PREPARING_REBALANCE): every member's JoinGroup
waits until all have joined again, or their time is up. Then a generation begins (COMPLETING_REBALANCE): all are answered, one of them,
the leader, with the list of members, by which it assigns. Everybody asks for its assignment with SyncGroup; when the leader's has
come and is durable, all are answered and the group is STABLE. An empty group waits a little longer for more members, so that a
service which starts does not rebalance once per process.

Always true:
- At most one member leads; only it is told who the members are.
- An assignment is told to nobody before it is durable.
- A rebalance that begins answers everybody who waits for an assignment with REBALANCE_IN_PROGRESS.
- Every request is answered once: at once, or when what it waits for happened or can no longer happen.

Behaviour is that of Kafka 4's coordinator for classic groups: static members (KIP-345), ids that are given before the first join
(KIP-394), skipped assignment (KIP-814), bound on members that join again but never ask for their assignment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from broker.groups.events import Effect, Heartbeat, Join, Leave, Now, Reply, Sync
from broker.groups.group import Group, GroupState, Member, TimerKind, protocols_of
from broker.groups.records import encode_group_value
from broker.groups.timers import Timer, Timers
from protocol.errors import ErrorCode
from protocol.messages.heartbeat import HeartbeatResponse
from protocol.messages.join_group import JoinGroupRequest, JoinGroupResponse
from protocol.messages.leave_group import LeaveGroupResponse, MemberIdentity, MemberResponse
from protocol.messages.sync_group import SyncGroupResponse

__all__ = ["NEW_MEMBER_JOIN_TIMEOUT_MS", "GroupLimits", "Membership", "StoredChange", "join_error"]

NEW_MEMBER_JOIN_TIMEOUT_MS = 300_000
"""A member whose first JoinGroup waits for so long is given up: it does not know its id, so it cannot show that it lives (Kafka's)."""

_LEAST_WAIT_MS = 100
"""How long is waited once more for static members, whatever rebalance timeout they asked for: zero is allowed."""

_CLIENT_ID_IN_MEMBER_ID = 249
"""Characters of a client id that begin its member ids, as many as a name of Kafka's has: ids are kept, and strings end at 32 KiB."""

_MEMBER_ID_REQUIRED_SINCE = 4
_SKIP_ASSIGNMENT_SINCE = 9
_MANY_LEAVE_SINCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """What the operator allows, under Kafka's names."""

    initial_rebalance_delay_ms: int
    min_session_timeout_ms: int
    max_session_timeout_ms: int
    max_size: int


@dataclass(slots=True, kw_only=True, eq=False)
class StoredAssignment:
    """A group's record under way: what takes effect once it is durable."""

    group: Group
    generation_id: int
    assignments: dict[str, bytes]


@dataclass(slots=True, kw_only=True, eq=False)
class StoredRename:
    """The record of a static member that came back: its JoinGroup is answered once that is durable."""

    group: Group
    member: Member
    token: Any
    response: JoinGroupResponse


@dataclass(slots=True, kw_only=True, eq=False)
class StoredEmpty:
    """The record of a group whose last member left: nobody waits for it."""

    group: Group


StoredChange: TypeAlias = StoredAssignment | StoredRename | StoredEmpty


class Membership:
    """The machine for groups whose existence, offsets and size are others' business."""

    def __init__(
        self,
        *,
        limits: GroupLimits,
        timers: Timers,
        effects: list[Effect],
        store: Callable[[Group, bytes, StoredChange], None],
    ) -> None:
        self._limits = limits
        self._timers = timers
        self._effects = effects
        self._store = store
        """Appends a group's record; the change comes back through `stored`."""

    # ---- JoinGroup --------------------------------------------------------------------------------------------------

    def join(self, group: Group, event: Join, now: Now) -> None:
        """A JoinGroup whose session timeout and group are in order."""
        request = event.request
        member_id = request.member_id
        protocols = protocols_of(request.protocols)
        if not self._accepts(group, member_id):
            if member_id in group.members:
                self._drop(group, group.members[member_id], ErrorCode.GROUP_MAX_SIZE_REACHED)
            self._refuse_join(event, ErrorCode.GROUP_MAX_SIZE_REACHED, "")
        elif not group.supports(request.protocol_type, protocols):
            self._refuse_join(event, ErrorCode.INCONSISTENT_GROUP_PROTOCOL, member_id)
        elif not member_id:
            self._join_unknown(group, event, protocols, now)
        else:
            self._join_known(group, event, protocols, now)
        self._complete_join_if_ready(group, now)

    def _accepts(self, group: Group, member_id: str) -> bool:
        """Whether there is room: members of a group that is too large for its limit now get in first come, first served."""
        max_size = self._limits.max_size
        if group.state is GroupState.EMPTY:
            return True
        member = group.members.get(member_id)
        if group.state is GroupState.PREPARING_REBALANCE:
            return (member is not None and member.awaiting_join is not None) or group.awaiting_join_count < max_size
        return member is not None or len(group.members) < max_size

    def _join_unknown(self, group: Group, event: Join, protocols: tuple[tuple[str, bytes], ...], now: Now) -> None:
        instance_id = event.request.group_instance_id
        if instance_id is not None:
            member_id = f"{instance_id}-{event.new_member_suffix}"
            old_id = group.static_members.get(instance_id)
            if old_id is None:
                self._add_member(group, event, member_id, protocols, now)
            else:
                self._replace_static(group, group.members[old_id], member_id, event, protocols, now)
            return
        member_id = f"{event.client_id[:_CLIENT_ID_IN_MEMBER_ID]}-{event.new_member_suffix}"
        if event.version >= _MEMBER_ID_REQUIRED_SINCE:
            timer = group.pending_members[member_id] = Timer(TimerKind.PENDING, group, member_id)
            self._timers.set(timer, now.monotonic_ms + event.request.session_timeout_ms)
            self._refuse_join(event, ErrorCode.MEMBER_ID_REQUIRED, member_id)
        else:
            self._add_member(group, event, member_id, protocols, now)

    def _join_known(self, group: Group, event: Join, protocols: tuple[tuple[str, bytes], ...], now: Now) -> None:
        request = event.request
        member_id, instance_id = request.member_id, request.group_instance_id
        if member_id in group.pending_members and instance_id is None:
            self._timers.cancel(group.pending_members.pop(member_id))
            self._add_member(group, event, member_id, protocols, now)
            return
        error = self._check_member(group, member_id, instance_id)
        if error:
            self._refuse_join(event, error, member_id)
            return
        member = group.members[member_id]
        if group.state is GroupState.PREPARING_REBALANCE:
            self._update_member(group, member, event, protocols)
        elif group.state is GroupState.COMPLETING_REBALANCE:
            if member.matches(protocols):
                self._answer_join(group, member, event.token)  # it did not get the answer, as it seems
            else:
                self._update_member(group, member, event, protocols)
                self._prepare_rebalance(group, now)
        elif group.state is GroupState.STABLE:
            if group.leader == member_id or not member.matches(protocols):
                # The leader joins again when what it assigns by changed, such as the number of partitions.
                self._update_member(group, member, event, protocols)
                self._prepare_rebalance(group, now)
            else:
                self._answer_join(group, member, event.token)
        else:
            self._refuse_join(event, ErrorCode.UNKNOWN_MEMBER_ID, member_id)

    def _add_member(
        self, group: Group, event: Join, member_id: str, protocols: tuple[tuple[str, bytes], ...], now: Now
    ) -> None:
        request = event.request
        member = Member(
            group=group,
            member_id=member_id,
            group_instance_id=request.group_instance_id,
            client_id=event.client_id,
            client_host=event.client_host,
            rebalance_timeout_ms=_rebalance_timeout_ms(request),
            session_timeout_ms=request.session_timeout_ms,
            protocols=protocols,
        )
        member.is_new = True
        if group.state is GroupState.PREPARING_REBALANCE and group.previous_state is GroupState.EMPTY:
            group.new_member_added = True
        group.add(member, request.protocol_type)
        group.wait_join(member, event.token)
        self._timers.set(member.session, now.monotonic_ms + NEW_MEMBER_JOIN_TIMEOUT_MS)
        self._prepare_rebalance(group, now)

    def _update_member(
        self, group: Group, member: Member, event: Join, protocols: tuple[tuple[str, bytes], ...]
    ) -> None:
        self._answer_waiting_join(group, member, member.member_id, ErrorCode.REBALANCE_IN_PROGRESS)
        group.update(
            member,
            protocols=protocols,
            rebalance_timeout_ms=_rebalance_timeout_ms(event.request),
            session_timeout_ms=event.request.session_timeout_ms,
        )
        group.wait_join(member, event.token)

    def _replace_static(
        self,
        group: Group,
        member: Member,
        member_id: str,
        event: Join,
        protocols: tuple[tuple[str, bytes], ...],
        now: Now,
    ) -> None:
        """A static member came back without its member id: it takes its own place again, and who had the id is fenced."""
        old_id, was_leader = member.member_id, group.leader == member.member_id
        self._answer_waiting_join(group, member, old_id, ErrorCode.FENCED_INSTANCE_ID)
        self._answer_waiting_sync(member, ErrorCode.FENCED_INSTANCE_ID)
        group.rename(member, member_id)
        group.update(
            member,
            protocols=protocols,
            rebalance_timeout_ms=_rebalance_timeout_ms(event.request),
            session_timeout_ms=event.request.session_timeout_ms,
        )
        self._hear_of(member, now)
        if group.state is GroupState.STABLE and group.select_protocol() == group.protocol_name:
            skips = event.version >= _SKIP_ASSIGNMENT_SINCE
            response = JoinGroupResponse(
                generation_id=group.generation_id,
                protocol_type=group.protocol_type,
                protocol_name=group.protocol_name,
                # Without KIP-814 it must not take itself for the leader: what it would assign now, nobody would be told.
                leader=(group.leader or "") if skips or not was_leader else old_id,
                skip_assignment=skips and was_leader,
                member_id=member_id,
                members=group.join_members() if skips and was_leader else (),
            )
            group.wait_join(member, event.token)
            self._store_group(
                group, None, StoredRename(group=group, member=member, token=event.token, response=response)
            )
        else:
            # Where the leader assigns right now it does so to the old id; and another protocol means another assignment.
            group.wait_join(member, event.token)
            self._prepare_rebalance(group, now)

    def _answer_join(self, group: Group, member: Member, token: Any) -> None:
        leads = group.leader == member.member_id
        self._reply(
            token,
            JoinGroupResponse(
                generation_id=group.generation_id,
                protocol_type=group.protocol_type,
                protocol_name=group.protocol_name,
                leader=group.leader or "",
                member_id=member.member_id,
                members=group.join_members() if leads else (),
            ),
        )

    def _refuse_join(self, event: Join, error: ErrorCode, member_id: str) -> None:
        self._reply(event.token, join_error(error, member_id))

    def _answer_waiting_join(self, group: Group, member: Member, member_id: str, error: ErrorCode) -> None:
        token = group.take_join(member)
        if token is not None:
            self._reply(token, join_error(error, member_id))

    # ---- the rebalance ------------------------------------------------------------------------------------------------

    def _prepare_rebalance(self, group: Group, now: Now) -> None:
        """Have everybody join again, unless that is under way."""
        if not group.can_rebalance:
            return
        if group.state is GroupState.COMPLETING_REBALANCE:
            self._fail_assignment(group, ErrorCode.REBALANCE_IN_PROGRESS, now)
        self._timers.cancel(group.sync_timer)
        timer = group.rebalance_timer
        if group.state is GroupState.EMPTY:
            delay_ms = self._limits.initial_rebalance_delay_ms
            timer.kind = TimerKind.INITIAL_DELAY
            group.delay_left_ms = max(group.rebalance_timeout_ms - delay_ms, 0)
            group.new_member_added = False
            self._timers.set(timer, now.monotonic_ms + delay_ms)
        else:
            timer.kind = TimerKind.REBALANCE
            self._timers.set(timer, now.monotonic_ms + group.rebalance_timeout_ms)
        group.enter(GroupState.PREPARING_REBALANCE, now.wall_ms)

    def _complete_join_if_ready(self, group: Group, now: Now) -> None:
        """End the join phase when everybody is there; the initial delay runs its course nevertheless, if there is one."""
        if (
            group.state is GroupState.PREPARING_REBALANCE
            and group.all_joined
            and (group.previous_state is not GroupState.EMPTY or not self._limits.initial_rebalance_delay_ms)
        ):
            self._complete_join(group, now)

    def initial_delay_over(self, group: Group, now: Now) -> None:
        """The initial delay has passed: once more, if somebody came meanwhile and members' patience allows, else go on."""
        if group.new_member_added and group.delay_left_ms > 0:
            delay_ms = min(self._limits.initial_rebalance_delay_ms, group.delay_left_ms)
            group.new_member_added = False
            group.delay_left_ms -= delay_ms
            self._timers.set(group.rebalance_timer, now.monotonic_ms + delay_ms)
        else:
            self._complete_join(group, now)

    def rebalance_over(self, group: Group, now: Now) -> None:
        """Members had their time to join."""
        self._complete_join(group, now)

    def _complete_join(self, group: Group, now: Now) -> None:
        if group.state is not GroupState.PREPARING_REBALANCE:
            return
        for member in [m for m in group.members.values() if m.awaiting_join is None and not m.is_static]:
            self._forget(group, member)
        if group.members and not group.elect_joined_leader():
            # Only static members are left, and none of them is back: until one is, or their sessions end.
            group.rebalance_timer.kind = TimerKind.REBALANCE
            wait_ms = max(group.rebalance_timeout_ms, _LEAST_WAIT_MS)
            self._timers.set(group.rebalance_timer, now.monotonic_ms + wait_ms)
            return
        self._timers.cancel(group.rebalance_timer)
        group.next_generation(now.wall_ms)
        if not group.members:
            self._store_group(group, {}, StoredEmpty(group=group))
            return
        for member in group.members.values():
            token = group.take_join(member)
            member.is_new = False
            if token is not None:
                self._answer_join(group, member, token)
            self._hear_of(member, now)
            group.pending_sync.add(member.member_id)
        self._timers.set(group.sync_timer, now.monotonic_ms + group.rebalance_timeout_ms)

    def sync_over(self, group: Group, now: Now) -> None:
        """Members had their time to ask for their assignment: who did not is out."""
        if group.state not in (GroupState.COMPLETING_REBALANCE, GroupState.STABLE) or not group.pending_sync:
            return
        for member_id in list(group.pending_sync):
            member = group.members.get(member_id)
            if member is not None:
                self._forget(group, member)
        group.pending_sync.clear()
        self._prepare_rebalance(group, now)
        self._complete_join_if_ready(group, now)

    # ---- SyncGroup ----------------------------------------------------------------------------------------------------

    def sync(self, group: Group, event: Sync, now: Now) -> None:
        """A SyncGroup of a group that exists."""
        request = event.request
        member_id = request.member_id
        error = self._check_member(group, member_id, request.group_instance_id)
        if not error and request.generation_id != group.generation_id:
            error = ErrorCode.ILLEGAL_GENERATION
        if not error and (
            (request.protocol_type is not None and request.protocol_type != group.protocol_type)
            or (request.protocol_name is not None and request.protocol_name != group.protocol_name)
        ):
            error = ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        if error:
            self._reply(event.token, SyncGroupResponse(error_code=error))
        elif group.state is GroupState.PREPARING_REBALANCE:
            self._reply(event.token, SyncGroupResponse(error_code=ErrorCode.REBALANCE_IN_PROGRESS))
        elif group.state is GroupState.EMPTY:
            self._reply(event.token, SyncGroupResponse(error_code=ErrorCode.UNKNOWN_MEMBER_ID))
        else:
            self._has_asked(group, member_id)
            member = group.members[member_id]
            if group.state is GroupState.STABLE:
                self._hear_of(member, now)
                self._answer_sync(group, member, event.token)
                return
            self._answer_waiting_sync(member, ErrorCode.REBALANCE_IN_PROGRESS)
            member.awaiting_sync = event.token
            if group.leader == member_id and not group.assignment_under_way:
                group.assignment_under_way = True
                given = {item.member_id: item.assignment for item in request.assignments}
                assignments = {each: given.get(each, b"") for each in group.members}
                change = StoredAssignment(group=group, generation_id=group.generation_id, assignments=assignments)
                self._store_group(group, assignments, change)

    def _has_asked(self, group: Group, member_id: str) -> None:
        group.pending_sync.discard(member_id)
        if not group.pending_sync:
            self._timers.cancel(group.sync_timer)

    def _answer_sync(self, group: Group, member: Member, token: Any) -> None:
        self._reply(
            token,
            SyncGroupResponse(
                protocol_type=group.protocol_type, protocol_name=group.protocol_name, assignment=member.assignment
            ),
        )

    def _answer_waiting_sync(self, member: Member, error: ErrorCode) -> None:
        token, member.awaiting_sync = member.awaiting_sync, None
        if token is not None:
            self._reply(token, SyncGroupResponse(error_code=error))

    def _fail_assignment(self, group: Group, error: ErrorCode, now: Now) -> None:
        group.assignment_under_way = False
        for member in group.members.values():
            group.assign(member, b"")
            if member.awaiting_sync is not None:
                self._hear_of(member, now)
                self._answer_waiting_sync(member, error)

    # ---- Heartbeat and LeaveGroup -------------------------------------------------------------------------------------

    def heartbeat(self, group: Group, event: Heartbeat, now: Now) -> None:
        """A Heartbeat of a group that exists."""
        request = event.request
        error = self._check_member(group, request.member_id, request.group_instance_id)
        if not error and request.generation_id != group.generation_id:
            error = ErrorCode.ILLEGAL_GENERATION
        if not error:
            self._hear_of(group.members[request.member_id], now)
            if group.state is GroupState.PREPARING_REBALANCE:
                error = ErrorCode.REBALANCE_IN_PROGRESS
        self._reply(event.token, HeartbeatResponse(error_code=error))

    def heard_of(self, group: Group, member_id: str, now: Now) -> None:
        """A member committed offsets: it lives."""
        member = group.members.get(member_id)
        if member is not None:
            self._hear_of(member, now)

    def leave(self, group: Group, event: Leave, now: Now) -> None:
        """A LeaveGroup of a group that exists."""
        request = event.request
        if event.version < _MANY_LEAVE_SINCE:
            error = self._leave_one(group, MemberIdentity(member_id=request.member_id), now)
            self._reply(event.token, LeaveGroupResponse(error_code=error))
        else:
            answers = [
                MemberResponse(
                    member_id=identity.member_id,
                    group_instance_id=identity.group_instance_id,
                    error_code=self._leave_one(group, identity, now),
                )
                for identity in request.members
            ]
            self._reply(event.token, LeaveGroupResponse(members=answers))
        self._complete_join_if_ready(group, now)

    def _leave_one(self, group: Group, identity: MemberIdentity, now: Now) -> ErrorCode:
        member_id, instance_id = identity.member_id, identity.group_instance_id
        if instance_id is None and member_id in group.pending_members:
            self._timers.cancel(group.pending_members.pop(member_id))
            return ErrorCode.NONE
        if instance_id is not None and not member_id:
            member_id = group.static_members.get(instance_id, "")  # an administrator knows only the name
        error = self._check_member(group, member_id, instance_id)
        if not error:
            self._remove(group, group.members[member_id], now)
        return error

    def _check_member(self, group: Group, member_id: str, instance_id: str | None) -> ErrorCode:
        if instance_id is not None:
            current = group.static_members.get(instance_id)
            if current is None:
                return ErrorCode.UNKNOWN_MEMBER_ID
            if current != member_id:
                return ErrorCode.FENCED_INSTANCE_ID
        return ErrorCode.NONE if member_id in group.members else ErrorCode.UNKNOWN_MEMBER_ID

    def check_member(self, group: Group, member_id: str, instance_id: str | None) -> ErrorCode:
        """Whether somebody is who it says: UNKNOWN_MEMBER_ID, or FENCED_INSTANCE_ID where another took its place."""
        return self._check_member(group, member_id, instance_id)

    # ---- the end of members ---------------------------------------------------------------------------------------------

    def pending_over(self, group: Group, member_id: str, now: Now) -> None:
        """Somebody was given an id and did not join with it."""
        group.pending_members.pop(member_id, None)
        self._complete_join_if_ready(group, now)

    def session_over(self, group: Group, member: Member, now: Now) -> None:
        """A member was not heard of for too long. One whose request waits here is alive, but for the very first one."""
        if not member.is_new and (member.awaiting_join is not None or member.awaiting_sync is not None):
            return  # its next deadline comes with its answer
        self._remove(group, member, now)
        self._complete_join_if_ready(group, now)

    def _remove(self, group: Group, member: Member, now: Now) -> None:
        self._drop(group, member, ErrorCode.UNKNOWN_MEMBER_ID)
        self._prepare_rebalance(group, now)

    def _drop(self, group: Group, member: Member, error: ErrorCode) -> None:
        self._answer_waiting_join(group, member, "", error)
        self._answer_waiting_sync(member, error)
        self._forget(group, member)

    def _forget(self, group: Group, member: Member) -> None:
        self._timers.cancel(member.session)
        self._answer_waiting_sync(member, ErrorCode.UNKNOWN_MEMBER_ID)
        group.remove(member)

    def _hear_of(self, member: Member, now: Now) -> None:
        self._timers.set(member.session, now.monotonic_ms + member.session_timeout_ms)

    # ---- loading, and the end of everything -------------------------------------------------------------------------------

    def loaded(self, group: Group, now: Now) -> None:
        """A group was read from the log: its members have a session's time to show up."""
        for member in group.members.values():
            self._hear_of(member, now)
        if len(group.members) > self._limits.max_size:
            self._prepare_rebalance(group, now)

    def abandon(self, group: Group, error: ErrorCode) -> None:
        """The group is no longer here, or is no more: whoever waits is told."""
        for timer in (group.rebalance_timer, group.sync_timer, *group.pending_members.values()):
            self._timers.cancel(timer)
        group.pending_members.clear()
        for member in list(group.members.values()):
            self._answer_waiting_join(group, member, member.member_id, error)
            self._answer_waiting_sync(member, error)
            self._timers.cancel(member.session)
        group.state = GroupState.DEAD

    # ---- what was stored ------------------------------------------------------------------------------------------------

    def _store_group(self, group: Group, assignments: dict[str, bytes] | None, change: StoredChange) -> None:
        self._store(group, encode_group_value(group.value(assignments)), change)

    def stored(self, change: StoredChange, error: ErrorCode, now: Now) -> None:
        """A group's record is durable, or was not taken."""
        group = change.group
        if isinstance(change, StoredAssignment):
            if group.state is not GroupState.COMPLETING_REBALANCE or change.generation_id != group.generation_id:
                return  # another rebalance began meanwhile
            if error:
                self._fail_assignment(group, error, now)
                self._prepare_rebalance(group, now)
                self._complete_join_if_ready(group, now)
                return
            for member in group.members.values():
                group.assign(member, change.assignments.get(member.member_id, b""))
            group.enter(GroupState.STABLE, now.wall_ms)
            for member in group.members.values():
                token, member.awaiting_sync = member.awaiting_sync, None
                if token is not None:
                    self._hear_of(member, now)
                    self._answer_sync(group, member, token)
        elif isinstance(change, StoredRename):
            if group.state is not GroupState.STABLE or change.member.awaiting_join is not change.token:
                return  # a rebalance began meanwhile, or it came back once more
            group.take_join(change.member)
            self._hear_of(change.member, now)
            self._reply(change.token, join_error(error, change.response.member_id) if error else change.response)

    def _reply(self, token: Any, response: Any) -> None:
        self._effects.append(Reply(token=token, response=response))


def join_error(error: ErrorCode, member_id: str) -> JoinGroupResponse:
    """A JoinGroup response that says no."""
    return JoinGroupResponse(error_code=error, member_id=member_id, protocol_name=None)


def _rebalance_timeout_ms(request: JoinGroupRequest) -> int:
    # Version 0 has none: the session timeout served for both (KIP-62).
    return request.rebalance_timeout_ms if request.rebalance_timeout_ms >= 0 else request.session_timeout_ms
