"""Incremental fetch sessions (KIP-227), without I/O and without a clock.

A consumer that follows many partitions names them once; later requests carry only what changed, and responses only
partitions that have something to say.

Always true:
- A session knows its consumer's partitions in the order in which they are served; those that returned data go to the
  end, so that no partition starves behind busy ones when `max_bytes` is small.
- (session id, epoch) of a request: (0, -1) no session; (0, 0) make one; (id, 0) close that one and make another;
  (id, -1) close it; (id, n) go on, n being exactly one more than before (from 2^31 - 1 to 1).
- The cache is bounded in sessions and in partitions. Where no place is free the answer carries session id 0, and the
  client goes on with full requests: slower, never wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

__all__ = [
    "FINAL_EPOCH",
    "INITIAL_EPOCH",
    "NO_SESSION",
    "FetchContext",
    "FetchSessionCache",
    "FetchSessionIdNotFound",
    "FetchSessionTopicIdError",
    "InvalidFetchSessionEpoch",
    "SessionPartition",
    "TopicKey",
]

TopicKey = str | bytes
"""A topic's name, or its 16-byte id from Fetch version 13 on."""

NO_SESSION = 0
INITIAL_EPOCH = 0
FINAL_EPOCH = -1
_MAX_EPOCH = 0x7FFF_FFFF

MAX_SESSION_PARTITIONS = 200_000
"""Partitions of all sessions together: some 50 MB."""

MAX_NAME_LENGTH = 249
"""No topic has a longer name. What asks for one is answered, but not kept in a session: the names of some partitions would take
more memory than all the rest."""


class FetchSessionIdNotFound(Exception):
    """No such session (evicted, closed, or of another broker): the client starts a new one."""


class InvalidFetchSessionEpoch(Exception):
    """The session's requests arrived out of order, or one was lost: the client starts a new session."""


class FetchSessionTopicIdError(Exception):
    """The session was made with topic names and goes on with topic ids, or the other way round."""


@dataclass(slots=True, kw_only=True)
class SessionPartition:
    """What a consumer wants of one partition, and what it was told last."""

    topic: TopicKey
    partition: int
    fetch_offset: int
    max_bytes: int
    current_leader_epoch: int
    last_fetched_epoch: int = -1
    high_watermark: int = -1
    """Told last; -1 before the first answer."""
    log_start_offset: int = -1

    @property
    def key(self) -> tuple[TopicKey, int]:
        return self.topic, self.partition


class _Session:
    __slots__ = ("created_ms", "epoch", "last_used_ms", "partitions", "session_id", "uses_topic_ids")

    def __init__(self, session_id: int, uses_topic_ids: bool, now_ms: int) -> None:
        self.session_id = session_id
        self.uses_topic_ids = uses_topic_ids
        self.partitions: dict[tuple[TopicKey, int], SessionPartition] = {}
        self.epoch = 1
        self.created_ms = now_ms
        self.last_used_ms = now_ms


@dataclass(slots=True, kw_only=True)
class FetchContext:
    """One request's view: which partitions to read, and which of them to answer."""

    session_id: int
    partitions: list[SessionPartition]
    """In the order in which they are to be read."""
    incremental: bool
    session: _Session | None = None

    def must_answer(
        self, partition: SessionPartition, *, has_records: bool, error: bool, high_watermark: int, log_start_offset: int
    ) -> bool:
        """Whether the response names a partition. Remembers what it is told."""
        if error:
            # The client must hear of the partition again as soon as the error is over.
            partition.high_watermark = -1
            return True
        changed = partition.high_watermark != high_watermark or partition.log_start_offset != log_start_offset
        partition.high_watermark = high_watermark
        partition.log_start_offset = log_start_offset
        if self.session is not None and has_records:
            mine = self.session.partitions
            if mine.pop(partition.key, None) is not None:
                mine[partition.key] = partition
        return has_records or changed or not self.incremental


class FetchSessionCache:
    """All sessions of one broker."""

    __slots__ = ("_eviction_ms", "_max_slots", "_now_ms", "_partition_count", "_rng", "_sessions")

    def __init__(self, *, max_slots: int, eviction_ms: int, rng: random.Random, now_ms: Callable[[], int]) -> None:
        self._max_slots = max_slots
        self._eviction_ms = eviction_ms
        self._rng = rng
        self._now_ms = now_ms
        # Ordered by last use, the longest idle first.
        self._sessions: dict[int, _Session] = {}
        self._partition_count = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def partition_count(self) -> int:
        """Partitions of all sessions together."""
        return self._partition_count

    def context(
        self,
        *,
        session_id: int,
        session_epoch: int,
        uses_topic_ids: bool,
        partitions: Collection[SessionPartition],
        forgotten: Iterable[tuple[TopicKey, int]],
    ) -> FetchContext:
        """Resolve a request's session.

        Raises:
            FetchSessionIdNotFound, InvalidFetchSessionEpoch, FetchSessionTopicIdError: answer that code and nothing else.
        """
        if session_epoch in (INITIAL_EPOCH, FINAL_EPOCH):
            self._close(session_id)
            # A later entry of the same partition replaces an earlier one.
            wanted = {partition.key: partition for partition in partitions}
            session = None
            if session_epoch == INITIAL_EPOCH and wanted and not _has_long_name(wanted):
                session = self._create(wanted, uses_topic_ids)
            return FetchContext(
                session_id=NO_SESSION if session is None else session.session_id,
                partitions=list(wanted.values()),
                incremental=False,
                session=session,
            )
        session = self._sessions.get(session_id)
        if session is None:
            raise FetchSessionIdNotFound(f"no fetch session {session_id}")
        if session.uses_topic_ids != uses_topic_ids:
            raise FetchSessionTopicIdError(f"fetch session {session_id} changed between topic names and topic ids")
        if session_epoch != session.epoch:
            raise InvalidFetchSessionEpoch(
                f"fetch session {session_id} expected epoch {session.epoch}, not {session_epoch}"
            )
        self._update(session, partitions, forgotten)
        if not session.partitions:
            self._close(session_id)
            return FetchContext(session_id=NO_SESSION, partitions=[], incremental=False)
        session.epoch = 1 if session.epoch == _MAX_EPOCH else session.epoch + 1
        session.last_used_ms = self._now_ms()
        self._sessions[session_id] = self._sessions.pop(session_id)
        return FetchContext(
            session_id=session_id, partitions=list(session.partitions.values()), incremental=True, session=session
        )

    def _update(
        self,
        session: _Session,
        partitions: Collection[SessionPartition],
        forgotten: Iterable[tuple[TopicKey, int]],
    ) -> None:
        mine = session.partitions
        before = len(mine)
        for wanted in partitions:
            known = mine.get(wanted.key)
            if known is None:
                mine[wanted.key] = wanted
                continue
            known.fetch_offset = wanted.fetch_offset
            known.max_bytes = wanted.max_bytes
            known.current_leader_epoch = wanted.current_leader_epoch
            known.last_fetched_epoch = wanted.last_fetched_epoch
        for key in forgotten:
            mine.pop(key, None)
        self._partition_count += len(mine) - before
        if self._partition_count > MAX_SESSION_PARTITIONS or _has_long_name(wanted.key for wanted in partitions):
            # A partition left out in silence would starve; without its session the client asks for everything again.
            self._close(session.session_id)
            raise FetchSessionIdNotFound(
                f"fetch session {session.session_id} was closed: too many partitions in sessions, or impossible names"
            )

    def _create(self, wanted: dict[tuple[TopicKey, int], SessionPartition], uses_topic_ids: bool) -> _Session | None:
        now_ms = self._now_ms()
        while len(self._sessions) >= self._max_slots or self._partition_count + len(wanted) > MAX_SESSION_PARTITIONS:
            oldest = next(iter(self._sessions.values()), None)
            if oldest is None or now_ms - oldest.last_used_ms < self._eviction_ms:
                return None
            self._close(oldest.session_id)
        session_id = NO_SESSION
        while session_id == NO_SESSION or session_id in self._sessions:
            session_id = self._rng.randrange(1, 1 << 31)
        session = _Session(session_id, uses_topic_ids, now_ms)
        session.partitions = dict(wanted)
        self._sessions[session_id] = session
        self._partition_count += len(wanted)
        return session

    def _close(self, session_id: int) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._partition_count -= len(session.partitions)


def _has_long_name(keys: Iterable[tuple[TopicKey, int]]) -> bool:
    return any(len(topic) > MAX_NAME_LENGTH for topic, _ in keys)
