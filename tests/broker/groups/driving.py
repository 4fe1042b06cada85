"""Drives a `Shard` by hand: a clock that stands still until it is moved, an append log that is durable when a test says so."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

from broker.groups.events import (
    Append,
    Commit,
    CommittedOffset,
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
from broker.groups.group import Group
from broker.groups.membership import GroupLimits
from broker.groups.shard import Budget, OffsetLimits, Shard
from protocol.errors import ErrorCode
from protocol.messages.heartbeat import HeartbeatRequest
from protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from protocol.messages.leave_group import LeaveGroupRequest, MemberIdentity
from protocol.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment

__all__ = ["DAY_MS", "START_MS", "Driver", "subscription"]

START_MS = 1_000_000
DAY_MS = 86_400_000


def subscription(*topics: str) -> bytes:
    """A consumer's metadata, version 0: its topics and no user data."""
    names = b"".join(len(topic).to_bytes(2, "big") + topic.encode() for topic in topics)
    return b"\0\0" + len(topics).to_bytes(4, "big") + names + b"\xff\xff\xff\xff"


class Driver:
    """One shard with its world. Requests are named; `replies` has what each was answered."""

    def __init__(
        self,
        *,
        initial_rebalance_delay_ms: int = 0,
        max_size: int = 1_000,
        memory_bytes: int = 1 << 30,
        metadata_max_bytes: int = 64,
        retention_ms: int = 7 * DAY_MS,
    ) -> None:
        self.limits = GroupLimits(
            initial_rebalance_delay_ms=initial_rebalance_delay_ms,
            min_session_timeout_ms=1_000,
            max_session_timeout_ms=60_000,
            max_size=max_size,
        )
        self.offset_limits = OffsetLimits(metadata_max_bytes=metadata_max_bytes, retention_ms=retention_ms)
        self.memory_bytes = memory_bytes
        self.shard = self.new_shard()
        self.now_ms = START_MS
        self.replies: dict[Any, Any] = {}
        self.log: list[Row] = []
        """What is durable."""
        self.holds_appends = False
        """Appends wait for `store`."""
        self.waiting: deque[Sequence[Row]] = deque()
        self._suffixes = itertools.count(1)

    def new_shard(self) -> Shard:
        return Shard(limits=self.limits, offset_limits=self.offset_limits, budget=Budget(self.memory_bytes))

    def restart(self) -> None:
        """Crash: what was not durable is lost, and a new machine replays the rest."""
        self.waiting.clear()
        self.shard = self.new_shard()
        for row in self.log:
            assert self.shard.replay(row.key, row.value)
        list(self.shard.restore())
        self._do(self.shard.loaded(self.now))

    @property
    def now(self) -> Now:
        return Now(self.now_ms, 1_700_000_000_000 + self.now_ms)

    def group(self, group_id: str = "g") -> Group:
        return self.shard.groups[group_id]

    def handle(self, event: Event) -> None:
        self._do(self.shard.handle(event, self.now))

    def store(self, error_code: ErrorCode = ErrorCode.NONE) -> None:
        """The oldest append is durable, or fails."""
        rows = self.waiting.popleft()
        if not error_code:
            self.log += rows
        self.handle(Stored(error_code=error_code))

    def after(self, ms: int) -> None:
        """Let time pass; what is due happens when it is due."""
        end_ms = self.now_ms + ms
        while (due_ms := self.shard.next_deadline_ms) is not None and due_ms <= end_ms:
            self.now_ms = max(self.now_ms, due_ms)
            self.handle(Tick())
        self.now_ms = end_ms

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Reply):
                assert effect.token not in self.replies, f"{effect.token} is answered twice"
                self.replies[effect.token] = effect.response
            else:
                assert isinstance(effect, Append)
                self.waiting.append(effect.rows)
        if not self.holds_appends:
            while self.waiting:
                self.store()

    # ---- requests -----------------------------------------------------------------------------------------------

    def join(
        self,
        token: str,
        member_id: str = "",
        *,
        group_id: str = "g",
        version: int = 9,
        instance_id: str | None = None,
        protocols: dict[str, bytes] | None = None,
        protocol_type: str = "consumer",
        session_timeout_ms: int = 10_000,
        rebalance_timeout_ms: int = 30_000,
    ) -> Any:
        """A JoinGroup; returns the answer, None while there is none."""
        protocols = {"range": subscription("t")} if protocols is None else protocols
        request = JoinGroupRequest(
            group_id=group_id,
            session_timeout_ms=session_timeout_ms,
            rebalance_timeout_ms=rebalance_timeout_ms,
            member_id=member_id,
            group_instance_id=instance_id,
            protocol_type=protocol_type,
            protocols=[JoinGroupRequestProtocol(name=name, metadata=data) for name, data in protocols.items()],
        )
        self.handle(
            Join(
                token=token,
                version=version,
                client_id="client",
                client_host="/127.0.0.1",
                request=request,
                new_member_suffix=str(next(self._suffixes)) if not member_id else "unused",
            )
        )
        return self.replies.get(token)

    def sync(
        self,
        token: str,
        member_id: str,
        generation_id: int,
        assignments: dict[str, bytes] | None = None,
        *,
        instance_id: str | None = None,
        protocol_type: str | None = None,
        protocol_name: str | None = None,
    ) -> Any:
        request = SyncGroupRequest(
            group_id="g",
            generation_id=generation_id,
            member_id=member_id,
            group_instance_id=instance_id,
            protocol_type=protocol_type,
            protocol_name=protocol_name,
            assignments=[
                SyncGroupRequestAssignment(member_id=member, assignment=data)
                for member, data in (assignments or {}).items()
            ],
        )
        self.handle(Sync(token=token, request=request))
        return self.replies.get(token)

    def heartbeat(self, member_id: str, generation_id: int, *, instance_id: str | None = None) -> ErrorCode:
        token = object()
        request = HeartbeatRequest(
            group_id="g", generation_id=generation_id, member_id=member_id, group_instance_id=instance_id
        )
        self.handle(Heartbeat(token=token, request=request))
        return ErrorCode(self.replies.pop(token).error_code)

    def leave(self, *member_ids: str, instance_ids: Sequence[str] = (), version: int = 5) -> list[ErrorCode]:
        """The errors of each member, in order."""
        token = object()
        identities = [MemberIdentity(member_id=member_id) for member_id in member_ids]
        identities += [MemberIdentity(group_instance_id=instance_id) for instance_id in instance_ids]
        request = (
            LeaveGroupRequest(group_id="g", members=identities)
            if version >= 3
            else LeaveGroupRequest(group_id="g", member_id=member_ids[0])
        )
        self.handle(Leave(token=token, version=version, request=request))
        response = self.replies.pop(token)
        if version < 3:
            return [ErrorCode(response.error_code)]
        return [ErrorCode(member.error_code) for member in response.members]

    def commit(
        self,
        token: str,
        offsets: dict[tuple[str, int], int],
        *,
        member_id: str = "",
        generation_id: int = -1,
        instance_id: str | None = None,
        group_id: str = "g",
        metadata: str = "",
        retention_ms: int = -1,
    ) -> Any:
        """An OffsetCommit; returns the errors, None while there is no answer."""
        self.handle(
            Commit(
                token=token,
                group_id=group_id,
                member_id=member_id,
                group_instance_id=instance_id,
                generation_id=generation_id,
                retention_ms=retention_ms,
                offsets=[
                    CommittedOffset(topic, partition, offset, 0, metadata)
                    for (topic, partition), offset in offsets.items()
                ],
            )
        )
        return self.replies.get(token)

    def committed(self, topic: str, partition: int = 0, *, group_id: str = "g") -> int | None:
        group = self.shard.groups.get(group_id)
        value = None if group is None else group.offsets.get(topic, partition)
        return None if value is None else value.offset

    def delete_offsets(self, token: str, *partitions: tuple[str, int]) -> Any:
        self.handle(DeleteOffsets(token=token, group_id="g", partitions=partitions))
        return self.replies.get(token)

    def delete_group(self, token: str, group_id: str = "g") -> Any:
        self.handle(DeleteGroup(token=token, group_id=group_id))
        return self.replies.get(token)

    def delete_topic(self, topic: str) -> None:
        self.handle(TopicDeleted(topic=topic))

    def expire(self) -> None:
        self.handle(Expire())

    # ---- the usual course ---------------------------------------------------------------------------------------

    def member(self, token: str, **options: Any) -> Any:
        """Ask for a member id and join with it; returns the answer, None while it waits."""
        asked = self.join(f"{token}?", **options)
        assert asked.error_code == ErrorCode.MEMBER_ID_REQUIRED, asked
        return self.join(token, asked.member_id, **options)

    def stable(self, *tokens: str, **options: Any) -> list[str]:
        """A stable group of as many members, assigned their tokens; returns their ids. The first one leads."""
        ids: list[str] = []
        for token in tokens:
            asked = self.join(f"{token}?", **options)
            self.join(token, asked.member_id, **options)
            for other in ids:  # everybody joins again
                self.join(f"{other} again for {token}", other, **options)
            ids.append(asked.member_id)
        generation = self.group().generation_id
        given = {member_id: token.encode() for member_id, token in zip(ids, tokens, strict=True)}
        for member_id, token in zip(reversed(ids), reversed(tokens), strict=True):
            self.sync(
                f"first sync of {token}", member_id, generation, given if member_id == self.group().leader else None
            )
        return ids
