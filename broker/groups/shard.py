"""The groups of one partition of `__consumer_offsets`: what they are, what they committed, when they end. Pure.

Theory of operation. `handle(event, now)` decides, and returns effects. What is to last is an `Append` effect, and changes nothing
here before its `Stored` event says that it is durable; a request that depends on it is answered then. So what anybody was
told survives a crash, and `replay` of the log comes to the same state that the running machine has.

Always true:
- Offsets and group metadata that are shown to anybody are durable (the state of a rebalance lives in memory only: a
  restart begins it anew).
- `Stored` events come in the order of the `Append` effects.
- A group is here from the first join or commit until it has neither members nor offsets, and then until the next
  look at expiry; or until somebody deletes it.
- What groups take in memory is charged to a budget that all shards of a node share. Beyond it new members and new offsets are
  refused; known offsets may still be committed, and members may still join again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.groups.events import (
    Append,
    Commit,
    DeleteGroup,
    DeleteOffsets,
    Effect,
    Event,
    Expire,
    Heartbeat,
    Join,
    Leave,
    Now,
    Reply,
    Row,
    Stored,
    Sync,
    Tick,
    TopicDeleted,
)
from broker.groups.group import (
    CONSUMER_PROTOCOL_TYPE,
    Group,
    GroupState,
    TimerKind,
    protocols_of,
    protocols_size_bytes,
)
from broker.groups.membership import GroupLimits, Membership, StoredChange, join_error
from broker.groups.records import (
    OffsetValue,
    decode_key,
    decode_offset_value,
    encode_group_key,
    encode_offset_key,
    encode_offset_value,
    is_known_key,
)
from broker.groups.timers import Timer, Timers
from protocol.errors import ErrorCode
from protocol.messages.heartbeat import HeartbeatResponse
from protocol.messages.leave_group import LeaveGroupResponse, MemberResponse
from protocol.messages.sync_group import SyncGroupResponse

__all__ = ["MAX_ROWS_PER_APPEND", "Budget", "OffsetLimits", "Shard"]

_NEVER_MS = (1 << 63) - 1
"""What a time is kept in ends there."""

MAX_ROWS_PER_APPEND = 1_000
"""Records of one batch where they are not one request's: some hundred kilobytes."""


_RESTORED_AT_A_TIME = 1_000
"""Records read after a replay before others get their turn: some milliseconds."""


class Budget:
    """Memory that all groups of a node may take."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def has_room(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self.limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetLimits:
    """What the operator allows of offsets, under Kafka's names."""

    metadata_max_bytes: int
    retention_ms: int


@dataclass(slots=True, kw_only=True, eq=False)
class _StoredOffsets:
    """Offsets on their way; answered once they are durable."""

    group: Group
    offsets: list[tuple[str, int, OffsetValue | None]]
    token: Any = None
    answers: Any = None
    """Error codes, in the order of the request; those of what is stored are 0."""
    stored_at: list[int] = field(default_factory=list)
    """Where in `answers` the stored ones are."""


@dataclass(slots=True, kw_only=True, eq=False)
class _StoredTombstone:
    """The end of a group on its way."""

    group: Group
    token: Any = None


class Shard:
    """See the module."""

    def __init__(self, *, limits: GroupLimits, offset_limits: OffsetLimits, budget: Budget) -> None:
        self._limits = limits
        self._offset_limits = offset_limits
        self._budget = budget
        self.groups: dict[str, Group] = {}
        self._timers = Timers()
        self._effects: list[Effect] = []
        self._under_way: deque[tuple[bytes | None, StoredChange | _StoredOffsets | _StoredTombstone]] = deque()
        """Appends that have not ended, oldest first: a group's metadata, and what takes effect."""
        self._membership = Membership(
            limits=limits, timers=self._timers, effects=self._effects, store=self._store_group
        )
        self._replayed: dict[bytes, bytes] = {}
        self.appends_started = 0
        """`Append` effects so far."""
        self.appends_ended = 0
        """`Stored` events so far."""
        self._left_out: set[bytes] = set()
        """Keys that the last snapshot left out, since a newer record of each was on its way."""
        self.snapshot_is_whole = True
        """False where such a record came to nothing: then what was before the snapshot is still needed."""
        self._handlers: dict[type, Any] = {
            Join: self._join,
            Sync: self._sync,
            Heartbeat: self._heartbeat,
            Leave: self._leave,
            Commit: self._commit,
            DeleteOffsets: self._delete_offsets,
            DeleteGroup: self._delete_group,
            TopicDeleted: self._topic_deleted,
            Expire: self._expire,
            Tick: self._tick,
            Stored: self._stored,
        }

    # ---- the machine ----------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """Decide what follows from an event."""
        self._handlers[type(event)](event, now)
        effects = self._effects[:]
        self._effects.clear()
        return effects

    @property
    def next_deadline_ms(self) -> int | None:
        """Monotonic time by which a `Tick` is due; None while nothing can expire."""
        return self._timers.next_ms

    def close(self, error: ErrorCode) -> list[Effect]:
        """The shard is no longer here: everybody who waits is told `error`. Nothing may be handled any more."""
        for group in self.groups.values():
            self._membership.abandon(group, error)
            self._budget.used_bytes -= group.charged_bytes
        self.groups = {}
        effects = self._effects[:]
        self._effects.clear()
        return effects

    # ---- membership -----------------------------------------------------------------------------------------------

    def _join(self, event: Join, now: Now) -> None:
        request = event.request
        group = self.groups.get(request.group_id)
        if not (
            self._limits.min_session_timeout_ms <= request.session_timeout_ms <= self._limits.max_session_timeout_ms
        ):
            self._reply(event.token, join_error(ErrorCode.INVALID_SESSION_TIMEOUT, request.member_id))
            return
        if group is None and request.member_id:
            self._reply(event.token, join_error(ErrorCode.UNKNOWN_MEMBER_ID, request.member_id))
            return
        size_bytes = protocols_size_bytes(protocols_of(request.protocols))
        member = None if group is None else group.members.get(request.member_id)
        more_bytes = size_bytes if member is None else size_bytes - member.protocols_bytes
        fits = self._budget.has_room(more_bytes) or (member is not None and more_bytes <= 0)
        if not fits or size_bytes > self._budget.limit_bytes // 4:
            self._reply(event.token, join_error(ErrorCode.GROUP_MAX_SIZE_REACHED, ""))
            return
        if group is None:
            group = self._new_group(request.group_id, now)
        self._membership.join(group, event, now)
        self._charge(group)

    def _sync(self, event: Sync, now: Now) -> None:
        group = self.groups.get(event.request.group_id)
        if group is None:
            self._reply(event.token, SyncGroupResponse(error_code=ErrorCode.UNKNOWN_MEMBER_ID))
            return
        self._membership.sync(group, event, now)
        self._charge(group)

    def _heartbeat(self, event: Heartbeat, now: Now) -> None:
        group = self.groups.get(event.request.group_id)
        if group is None:
            self._reply(event.token, HeartbeatResponse(error_code=ErrorCode.UNKNOWN_MEMBER_ID))
            return
        self._membership.heartbeat(group, event, now)

    def _leave(self, event: Leave, now: Now) -> None:
        request = event.request
        group = self.groups.get(request.group_id)
        if group is not None:
            self._membership.leave(group, event, now)
            self._charge(group)
        elif event.version < 3:
            self._reply(event.token, LeaveGroupResponse(error_code=ErrorCode.UNKNOWN_MEMBER_ID))
        else:
            unknown = [
                MemberResponse(
                    member_id=identity.member_id,
                    group_instance_id=identity.group_instance_id,
                    error_code=ErrorCode.UNKNOWN_MEMBER_ID,
                )
                for identity in request.members
            ]
            self._reply(event.token, LeaveGroupResponse(members=unknown))

    def _tick(self, event: Tick, now: Now) -> None:
        for timer in self._timers.pop_due(now.monotonic_ms):
            self._timer_over(timer, now)
            self._charge(timer.group)

    def _timer_over(self, timer: Timer, now: Now) -> None:
        group, membership = timer.group, self._membership
        if timer.kind is TimerKind.SESSION:
            membership.session_over(group, timer.subject, now)
        elif timer.kind is TimerKind.PENDING:
            membership.pending_over(group, timer.subject, now)
        elif timer.kind is TimerKind.INITIAL_DELAY:
            membership.initial_delay_over(group, now)
        elif timer.kind is TimerKind.REBALANCE:
            membership.rebalance_over(group, now)
        else:
            assert timer.kind is TimerKind.SYNC, timer.kind
            membership.sync_over(group, now)

    # ---- offsets --------------------------------------------------------------------------------------------------

    def _commit(self, event: Commit, now: Now) -> None:
        group = self.groups.get(event.group_id)
        error = self._check_commit(group, event)
        if error:
            self._reply(event.token, [error] * len(event.offsets))
            return
        if group is None:
            group = self._new_group(event.group_id, now)  # it only keeps its offsets here
        if event.member_id:
            self._membership.heard_of(group, event.member_id, now)
        expire_ms = min(now.wall_ms + event.retention_ms, _NEVER_MS) if event.retention_ms >= 0 else -1
        answers: list[ErrorCode] = []
        offsets: list[tuple[str, int, OffsetValue | None]] = []
        stored_at: list[int] = []
        rows: list[Row] = []
        full = not self._budget.has_room(0)
        for at, (topic, partition, offset, leader_epoch, metadata) in enumerate(event.offsets):
            if metadata and len(metadata.encode()) > self._offset_limits.metadata_max_bytes:
                answers.append(ErrorCode.OFFSET_METADATA_TOO_LARGE)
                continue
            if full and group.offsets.get(topic, partition) is None:
                answers.append(ErrorCode.INVALID_COMMIT_OFFSET_SIZE)
                continue
            value = OffsetValue(offset, leader_epoch, metadata, now.wall_ms, expire_ms)
            offsets.append((topic, partition, value))
            rows.append(Row(encode_offset_key(group.group_id, topic, partition), encode_offset_value(value)))
            answers.append(ErrorCode.NONE)
            stored_at.append(at)
        if rows:
            self._store_offsets(
                rows,
                _StoredOffsets(group=group, offsets=offsets, token=event.token, answers=answers, stored_at=stored_at),
            )
        else:
            self._reply(event.token, answers)

    def _check_commit(self, group: Group | None, event: Commit) -> ErrorCode:
        generation_id = event.generation_id
        if group is None:
            # Whoever names a generation is of a group that was forgotten.
            return ErrorCode.ILLEGAL_GENERATION if generation_id >= 0 else ErrorCode.NONE
        if generation_id < 0 and group.state is GroupState.EMPTY:
            return ErrorCode.NONE  # from an administrator, or from who assigns partitions by hand
        if generation_id < 0 and not event.member_id and event.group_instance_id is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        error = self._membership.check_member(group, event.member_id, event.group_instance_id)
        if error:
            return error
        if generation_id != group.generation_id:
            return ErrorCode.ILLEGAL_GENERATION
        if group.state is GroupState.COMPLETING_REBALANCE:
            return ErrorCode.REBALANCE_IN_PROGRESS
        return ErrorCode.NONE

    def _delete_offsets(self, event: DeleteOffsets, now: Now) -> None:
        group = self.groups.get(event.group_id)
        if group is None:
            self._reply(event.token, ErrorCode.GROUP_ID_NOT_FOUND)
            return
        if group.state is not GroupState.EMPTY and group.protocol_type != CONSUMER_PROTOCOL_TYPE:
            self._reply(event.token, ErrorCode.NON_EMPTY_GROUP)
            return
        answers: list[ErrorCode] = []
        offsets: list[tuple[str, int, OffsetValue | None]] = []
        stored_at: list[int] = []
        for at, (topic, partition) in enumerate(event.partitions):
            if group.members and (group.subscribed_topics is None or topic in group.subscribed_topics):
                answers.append(ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC)
                continue
            answers.append(ErrorCode.NONE)
            if group.offsets.get(topic, partition) is not None or group.offsets.is_under_way(topic, partition):
                offsets.append((topic, partition, None))
                stored_at.append(at)
        if offsets:
            self._remove_offsets(
                _StoredOffsets(group=group, offsets=offsets, token=event.token, answers=answers, stored_at=stored_at)
            )
        else:
            self._reply(event.token, answers)

    def _delete_group(self, event: DeleteGroup, now: Now) -> None:
        group = self.groups.get(event.group_id)
        if group is None:
            self._reply(event.token, ErrorCode.GROUP_ID_NOT_FOUND)
        elif group.state is not GroupState.EMPTY:
            self._reply(event.token, ErrorCode.NON_EMPTY_GROUP)
        else:
            self._end(group, group.offsets.keys(), event.token)

    def _topic_deleted(self, event: TopicDeleted, now: Now) -> None:
        for group in self.groups.values():
            keys = [key for key in group.offsets.keys() if key[0] == event.topic]  # noqa: SIM118 (no mapping)
            if keys:
                self._remove_offsets(
                    _StoredOffsets(group=group, offsets=[(topic, partition, None) for topic, partition in keys])
                )

    # ---- expiry (KIP-211) -----------------------------------------------------------------------------------------

    def _expire(self, event: Expire, now: Now) -> None:
        for group in list(self.groups.values()):
            expired = self._expired(group, now.wall_ms)
            empty = (
                group.state is GroupState.EMPTY
                and not group.pending_members
                and not group.offsets.any_under_way
                and not group.records_under_way
            )
            if empty and len(expired) == len(group.offsets):
                self._end(group, expired, None)
            elif expired:
                offsets: list[tuple[str, int, OffsetValue | None]] = [(*key, None) for key in expired]
                self._remove_offsets(_StoredOffsets(group=group, offsets=offsets))

    def _expired(self, group: Group, wall_ms: int) -> list[tuple[str, int]]:
        """Offsets that nobody needs: of a group without members since it is empty, of others since the commit."""
        oldest_ms = wall_ms - self._offset_limits.retention_ms
        subscribed: frozenset[str] | None = frozenset()
        since_empty = False
        if group.protocol_type is not None:
            since_empty = group.state is GroupState.EMPTY
            if not since_empty:
                # What a member subscribes to is in use, however seldom it is committed.
                subscribed = group.subscribed_topics if group.state is GroupState.STABLE else None
        if subscribed is None:
            return []
        found = []
        for topic, partition, value in group.offsets:
            if topic in subscribed or group.offsets.is_under_way(topic, partition):
                continue
            if value.expire_timestamp_ms >= 0:
                is_old = value.expire_timestamp_ms <= wall_ms
            else:
                base_ms = group.state_timestamp_ms if since_empty else value.commit_timestamp_ms
                is_old = max(base_ms, value.commit_timestamp_ms) <= oldest_ms
            if is_old:
                found.append((topic, partition))
        return found

    # ---- appends --------------------------------------------------------------------------------------------------

    def _store_group(self, group: Group, record: bytes, change: StoredChange) -> None:
        group.records_under_way += 1
        self._append([Row(encode_group_key(group.group_id), record)], record, change)

    def _store_offsets(self, rows: Sequence[Row], change: _StoredOffsets) -> None:
        for topic, partition, _ in change.offsets:
            change.group.offsets.submitted(topic, partition)
        self._append(rows, None, change)

    def _append(
        self, rows: Sequence[Row], record: bytes | None, change: StoredChange | _StoredOffsets | _StoredTombstone
    ) -> None:
        self.appends_started += 1
        self._under_way.append((record, change))
        self._effects.append(Append(rows=rows))

    def _remove_offsets(self, change: _StoredOffsets) -> None:
        """Append tombstones, in several batches where they are many; the last one answers."""
        group = change.group
        for start in range(0, len(change.offsets), MAX_ROWS_PER_APPEND):
            part = change.offsets[start : start + MAX_ROWS_PER_APPEND]
            rows = [Row(encode_offset_key(group.group_id, topic, partition), None) for topic, partition, _ in part]
            last = start + MAX_ROWS_PER_APPEND >= len(change.offsets)
            self._store_offsets(
                rows,
                _StoredOffsets(
                    group=group,
                    offsets=part,
                    token=change.token if last else None,
                    answers=change.answers,
                    stored_at=change.stored_at,
                ),
            )

    def _end(self, group: Group, keys: Sequence[tuple[str, int]], token: Any) -> None:
        """Append the tombstones of a group and of what it committed."""
        self._remove_offsets(_StoredOffsets(group=group, offsets=[(*key, None) for key in keys]))
        if group.record is not None or group.records_under_way:
            group.records_under_way += 1
            tombstone = Row(encode_group_key(group.group_id), None)
            self._append([tombstone], None, _StoredTombstone(group=group, token=token))
        elif keys:
            # No record of its own: the last tombstone of an offset is the end of it.
            _, change = self._under_way[-1]
            assert isinstance(change, _StoredOffsets)
            self._under_way[-1] = (None, _LastOffsets(group=group, offsets=change.offsets, token=token))
        else:
            self._forget(group)
            if token is not None:
                self._reply(token, ErrorCode.NONE)

    def _stored(self, event: Stored, now: Now) -> None:
        record, change = self._under_way.popleft()
        self.appends_ended += 1
        error = event.error_code
        group = change.group
        if error and self._left_out:
            self._check_left_out(change)
        if isinstance(change, _StoredOffsets):
            self._offsets_stored(change, error)
        else:
            group.records_under_way -= 1
            if not error:
                group.record = record
            if isinstance(change, _StoredTombstone):
                if not error:
                    self._forget_if_unused(group)
                if change.token is not None:
                    self._reply(change.token, error)
            else:
                self._membership.stored(change, _membership_error(error), now)
        self._charge(group)

    def _check_left_out(self, change: StoredChange | _StoredOffsets | _StoredTombstone) -> None:
        group_id = change.group.group_id
        keys = (
            {encode_offset_key(group_id, topic, partition) for topic, partition, _ in change.offsets}
            if isinstance(change, _StoredOffsets)
            else {encode_group_key(group_id)}
        )
        if not self._left_out.isdisjoint(keys):
            self.snapshot_is_whole = False

    def _offsets_stored(self, change: _StoredOffsets, error: ErrorCode) -> None:
        group = change.group
        for topic, partition, value in change.offsets:
            group.offsets.ended(topic, partition)
            if not error:
                group.offsets.put(topic, partition, value)
        if isinstance(change, _LastOffsets):
            if not error:
                self._forget_if_unused(group)
            if change.token is not None:
                self._reply(change.token, error)
        elif change.token is not None:
            if error:
                too_large = error is ErrorCode.MESSAGE_TOO_LARGE
                for at in change.stored_at:
                    change.answers[at] = ErrorCode.INVALID_COMMIT_OFFSET_SIZE if too_large else error
            self._reply(change.token, change.answers)

    # ---- groups ---------------------------------------------------------------------------------------------------

    def _new_group(self, group_id: str, now: Now) -> Group:
        group = self.groups[group_id] = Group(group_id, now.wall_ms)
        self._charge(group)
        return group

    def _forget_if_unused(self, group: Group) -> None:
        """Unless somebody joined or committed since its end was decided."""
        if (
            group.state is GroupState.EMPTY
            and not group.pending_members
            and not len(group.offsets)
            and not group.offsets.any_under_way
            and not group.records_under_way
        ):
            self._forget(group)

    def _forget(self, group: Group) -> None:
        if self.groups.get(group.group_id) is group:
            del self.groups[group.group_id]
            self._budget.used_bytes -= group.charged_bytes
            group.charged_bytes = 0
        group.state = GroupState.DEAD

    def _charge(self, group: Group) -> None:
        if group.state is not GroupState.DEAD:
            size_bytes = group.size_bytes
            self._budget.used_bytes += size_bytes - group.charged_bytes
            group.charged_bytes = size_bytes

    def _reply(self, token: Any, response: Any) -> None:
        self._effects.append(Reply(token=token, response=response))

    # ---- the log --------------------------------------------------------------------------------------------------

    def replay(self, key: bytes, value: bytes | None) -> bool:
        """Take one record of the log; False where it is of a kind that is not known here.

        Nothing is looked at but which record is the newest of its key: most are superseded.
        """
        if not is_known_key(key):
            return False
        if value is None:
            self._replayed.pop(key, None)
        else:
            self._replayed[key] = value
        return True

    def restore(self) -> Iterator[None]:
        """Read what the replay left; comes back now and then, so that others get their turn. Raises Malformed."""
        replayed, self._replayed = self._replayed, {}
        for at, (key, value) in enumerate(replayed.items()):
            found = decode_key(key)
            if isinstance(found, str):
                group = Group.restored(found, value)
                former = self.groups.get(found)
                if former is not None:
                    group.offsets = former.offsets
                self.groups[found] = group
            elif found is not None:
                named = self.groups.get(found.group_id)
                if named is None:
                    named = self.groups[found.group_id] = Group(found.group_id, -1)
                named.offsets.put(found.topic, found.partition, decode_offset_value(value))
            if at % _RESTORED_AT_A_TIME == _RESTORED_AT_A_TIME - 1:
                yield

    def loaded(self, now: Now) -> list[Effect]:
        """The whole log was replayed and restored: go on from there."""
        for group in self.groups.values():
            self._charge(group)
            self._membership.loaded(group, now)
        effects = self._effects[:]
        self._effects.clear()
        return effects

    @property
    def live_record_count(self) -> int:
        """Records that a log needs which holds this state and nothing else."""
        return sum(len(group.offsets) + (group.record is not None) for group in self.groups.values())

    @property
    def live_bytes(self) -> int:
        """About what they take, in memory; not less than in the log."""
        return sum(group.charged_bytes for group in self.groups.values())

    def snapshot(self) -> Iterator[Row]:
        """Every live record, but for those whose newer version is on its way to the log.

        May be iterated bit by bit, with events in between: a row is as of the moment when it is asked for, so append it
        before the next event. What is left out is in the log, or will be, past the point where the first row was asked for,
        unless its append fails: when all appends have ended that were started before the last row, `snapshot_is_whole` tells.
        """
        self._left_out = set()
        self.snapshot_is_whole = True
        for group_id in list(self.groups):
            group = self.groups.get(group_id)
            if group is None:
                continue
            if group.record is not None:
                key = encode_group_key(group_id)
                if group.records_under_way:
                    self._left_out.add(key)
                else:
                    yield Row(key, group.record)
            for topic in group.offsets.topics:
                for partition in list(group.offsets.of_topic(topic)):
                    value = group.offsets.get(topic, partition)
                    if value is None:
                        continue
                    key = encode_offset_key(group_id, topic, partition)
                    if group.offsets.is_under_way(topic, partition):
                        self._left_out.add(key)
                    else:
                        yield Row(key, encode_offset_value(value))


@dataclass(slots=True, kw_only=True, eq=False)
class _LastOffsets(_StoredOffsets):
    """The last offsets of a group without metadata of its own: with them it ends."""


def _membership_error(error: ErrorCode) -> ErrorCode:
    """What members are told: that their metadata is too large for a record they would not understand (as Kafka)."""
    return ErrorCode.UNKNOWN_SERVER_ERROR if error is ErrorCode.MESSAGE_TOO_LARGE else error
