"""Streams: who may append, and where they begin.

Always true:
- At most one node holds a stream OPEN or RECOVERING, under a leader epoch that nobody held before (I4).
- The node of a WAL may open again what is open on it (a restart), also while another recovers it: the tail that the WAL holds past the
  committed end stays good and is uploaded under the new leader epoch, and the other's is refused from then on. Any other way out of OPEN
  is a close with everything uploaded, the recovery of exactly that WAL, or an operator's abandon.
- Whoever recovers a WAL and cannot may give it back to its dead node, from which others take it.
- What a WAL holds of a stream counts from the leader epoch on under which it was opened there after it was closed (`wal_leader_epoch`).
- Log start and committed end never go back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from controller.commands import Command, Decision, NodeCommand, check_node
from controller.errors import NodeRefused, StreamNotDrained, UnknownNode
from controller.losses import known_loss, reported_end_offset
from controller.lost_wals import recoverer_of, spread
from controller.objects import release
from controller.records import (
    StreamsAbandoned,
    StreamsClosed,
    StreamsOpened,
    StreamsReassigned,
    StreamsRecovering,
    StreamsTrimmed,
)
from controller.tables import NodeStatus, StreamState, StreamStatus, Tables, Touched
from controller.topics import takers
from s3stream.metadata import OpenedStream, StreamId

__all__ = [
    "AbandonWal",
    "CloseStreams",
    "GiveBackWal",
    "OpenStreams",
    "ReassignStreams",
    "RecoverWal",
    "TrimStreams",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStreams(NodeCommand[Sequence[OpenedStream]]):
    """Open streams on a node's registered WAL.

    Deleted streams, and those that are open on another WAL or are to go to another node, are left out of the reply. So are those that went on
    from the leader epochs that the node knew. What is given again opens nothing anew: its sender may have appended under the first answer.
    """

    stream_ids: tuple[StreamId, ...]
    leader_epochs: Mapping[StreamId, int] = field(default_factory=dict)
    """As the node knows them. One of an older version does not say so, and each of its commands opens anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStreams(NodeCommand[None]):
    """Close streams that this node holds and whose data is committed up to the given ends; others are left alone.

    So are those that the node opened again since: a command whose answer is lost is repeated, and a first attempt may come late.

    Raises StreamNotDrained (and closes none) where objects end before, or past, a given end.
    """

    end_offsets: Mapping[StreamId, int]
    leader_epochs: Mapping[StreamId, int] = field(default_factory=dict)
    """Under which it holds them. A node of an older version does not say so, and whatever it holds is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimStreams(NodeCommand[None]):
    """Raise log start offsets, at most up to the committed end; streams that this node does not hold are left alone."""

    log_start_offsets: Mapping[StreamId, int]
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReassignStreams(Command[None]):
    """Have streams go to other nodes; those that were deleted are left out.

    Raises UnknownNode (and changes nothing) where a target is not registered, or drained.
    """

    targets: Mapping[StreamId, int]
    """By stream: the node that is to have it; -1 ends a reassignment that is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverWal(NodeCommand[Sequence[OpenedStream]]):
    """Take over the tail of every stream that is open on a WAL which this node has fenced before it asks.

    Those of a dead node are to go to all living ones when they are closed, evenly. What is given again takes nothing over anew: its sender
    may be recovering under the first answer.

    Raises NodeRefused where the WAL's node lives, another living node recovers it, or a stream went on from the leader epoch that the node knew.
    """

    wal_id: str
    leader_epochs: Mapping[StreamId, int] = field(default_factory=dict)
    """As of `OpenStreams`, of all streams on the WAL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBackWal(NodeCommand[bool]):
    """Let other nodes recover the WAL of a dead one that this node took over and cannot recover; replies whether there was anything to give back."""

    wal_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonWal(Command[Mapping[StreamId, tuple[int, int]]]):
    """Give up a WAL that is lost for good; the reply has the gap [start, end) of each stream that was open on it.

    Raises NodeRefused where no stream is open on such a WAL.
    """

    REPEATABLE: ClassVar[bool] = False

    wal_id: str
    slack_offsets: int
    """Offsets to leave out past the committed end, and past what the node reported last: more than can have been acknowledged since (I2)."""
    resume_offsets: Mapping[StreamId, int] = field(default_factory=dict)
    """Where streams go on of which that is known, since the WAL could be read."""
    kept: frozenset[StreamId] = frozenset()
    """Streams that have more in the WAL from there on: they stay open on it, to be recovered."""
    at_ms: int


def open_streams(tables: Tables, command: OpenStreams) -> Decision[Sequence[OpenedStream]]:
    wal_id = check_node(tables, command.node_id, command.node_epoch)
    found: list[OpenedStream] = []
    for stream_id in dict.fromkeys(command.stream_ids):
        stream = tables.streams.get(stream_id)
        if stream is None or not (
            stream.wal_id == wal_id or (stream.wal_id == "" and stream.node_id == command.node_id)
        ):
            continue
        opened = _opened_from(stream, command.leader_epochs.get(stream_id), StreamStatus.OPEN, command.node_id)
        if opened is not None:
            found.append(opened)
    return _granted(tables, StreamsOpened, command.node_id, wal_id, found)


def close_streams(tables: Tables, command: CloseStreams) -> Decision[None]:
    check_node(tables, command.node_id, command.node_epoch)
    closed: list[StreamId] = []
    for stream_id, end_offset in command.end_offsets.items():
        stream = tables.streams.get(stream_id)
        if stream is None or not _holds(stream, command.node_id):
            continue
        if stream.leader_epoch != command.leader_epochs.get(stream_id, stream.leader_epoch):
            continue
        if stream.committed_end_offset != end_offset:
            raise StreamNotDrained(
                f"stream {stream_id} is committed up to {stream.committed_end_offset}, not {end_offset}: "
                "upload its tail before closing it"
            )
        closed.append(stream_id)
    return Decision((StreamsClosed(stream_ids=tuple(closed)),) if closed else (), None)


def trim_streams(tables: Tables, command: TrimStreams) -> Decision[None]:
    check_node(tables, command.node_id, command.node_epoch)
    trimmed: list[tuple[StreamId, int]] = []
    for stream_id, wanted in command.log_start_offsets.items():
        stream = tables.streams.get(stream_id)
        if stream is None or not _holds(stream, command.node_id):
            continue
        log_start_offset = min(wanted, stream.committed_end_offset)
        if log_start_offset > stream.log_start_offset:
            trimmed.append((stream_id, log_start_offset))
    if not trimmed:
        return Decision((), None)
    return Decision((StreamsTrimmed(log_start_offsets=tuple(trimmed), trimmed_at_ms=command.at_ms),), None)


def reassign_streams(tables: Tables, command: ReassignStreams) -> Decision[None]:
    targets: list[tuple[StreamId, int]] = []
    for stream_id, wanted in command.targets.items():
        if wanted != -1 and wanted not in tables.nodes:
            raise UnknownNode(f"node {wanted} is not registered: start it first")
        if wanted in tables.drained and wanted not in takers(tables, tables.nodes):  # else it is the last that there is
            raise UnknownNode(f"node {wanted} is drained: take that back first (`tidelog drain --cancel {wanted}`)")
        stream = tables.streams.get(stream_id)
        if stream is None:
            continue
        target = stream.node_id if wanted == -1 else wanted
        if target != (stream.node_id if stream.target_node_id == -1 else stream.target_node_id):
            targets.append((stream_id, target))
    return Decision((StreamsReassigned(targets=tuple(targets)),) if targets else (), None)


def recover_wal(tables: Tables, command: RecoverWal) -> Decision[Sequence[OpenedStream]]:
    own_wal_id = check_node(tables, command.node_id, command.node_epoch)
    if command.wal_id == own_wal_id:
        raise NodeRefused(f"WAL {command.wal_id} is this node's own: open its streams instead of recovering them")
    owner = next((node for node in tables.nodes.values() if node.wal_id == command.wal_id), None)
    if owner is not None and tables.node_status(owner.node_id) is not NodeStatus.DEAD:
        raise NodeRefused(f"node {owner.node_id} lives: what is in its WAL {command.wal_id} it recovers by itself")
    held = [stream for stream in tables.streams.values() if stream.wal_id == command.wal_id]
    recoverer = recoverer_of(tables, held)
    if recoverer not in (-1, command.node_id):
        raise NodeRefused(f"node {recoverer} recovers WAL {command.wal_id}: leave it to that one")
    claimed: list[OpenedStream] = []
    for stream in held:
        known_epoch = command.leader_epochs.get(stream.stream_id)
        opened = _opened_from(stream, known_epoch, StreamStatus.RECOVERING, command.node_id)
        if opened is None:
            raise NodeRefused(
                f"stream {stream.stream_id} is under leader epoch {stream.leader_epoch} by now, not {known_epoch}: look again what WAL {command.wal_id} holds"
            )
        claimed.append(opened)
    decision = _granted(tables, StreamsRecovering, command.node_id, command.wal_id, claimed)
    if owner is None or not decision.records:
        return decision
    targets = spread(tables, [stream.stream_id for stream in held])
    return Decision((*decision.records, StreamsReassigned(targets=tuple(targets.items()))), decision.reply)


def give_back_wal(tables: Tables, command: GiveBackWal) -> Decision[bool]:
    check_node(tables, command.node_id, command.node_epoch)
    owner = next((node for node in tables.nodes.values() if node.wal_id == command.wal_id), None)
    held = [
        stream
        for stream in tables.streams.values()
        if stream.wal_id == command.wal_id
        and stream.status is StreamStatus.RECOVERING
        and _holds(stream, command.node_id)
    ]
    if owner is None or tables.node_status(owner.node_id) is not NodeStatus.DEAD or not held:
        return Decision((), False)
    # As before the claim, and under an epoch that its recoverer does not have: what that would still commit is refused.
    decision = _granted(tables, StreamsOpened, owner.node_id, command.wal_id, [_opened(stream) for stream in held])
    return Decision(decision.records, True)


def abandon_wal(tables: Tables, command: AbandonWal) -> Decision[Mapping[StreamId, tuple[int, int]]]:
    assert command.slack_offsets >= 0, "slack is a number of offsets"
    loss = known_loss(tables, command.wal_id)
    gaps = {
        stream.stream_id: (
            stream.committed_end_offset,
            max(
                stream.committed_end_offset,
                command.resume_offsets.get(stream.stream_id, reported_end_offset(stream, loss) + command.slack_offsets),
            ),
        )
        for stream in tables.streams.values()
        if stream.wal_id == command.wal_id
    }
    if not gaps:
        raise NodeRefused(f"no partition is open on a WAL {command.wal_id}: there is nothing to abandon")
    record = StreamsAbandoned(
        wal_id=command.wal_id,
        resume_offsets=tuple((stream_id, end) for stream_id, (_, end) in gaps.items()),
        abandoned_at_ms=command.at_ms,
        kept=tuple(sorted(command.kept & gaps.keys())),
    )
    return Decision((record,), gaps)


def _holds(stream: StreamState, node_id: int) -> bool:
    return stream.status is not StreamStatus.CLOSED and stream.node_id == node_id


def _opened_from(
    stream: StreamState, known_epoch: int | None, status: StreamStatus, node_id: int
) -> OpenedStream | None:
    """A stream under the leader epoch after the one that is known; which it has already where the same command came before. None: it went on from there."""
    if known_epoch is None or stream.leader_epoch == known_epoch:
        return _opened(stream)
    if stream.leader_epoch == known_epoch + 1 and stream.status is status and stream.node_id == node_id:
        return replace(
            _opened(stream), leader_epoch=stream.leader_epoch, least_leader_epoch=max(stream.wal_leader_epoch, 0)
        )
    return None


def _opened(stream: StreamState) -> OpenedStream:
    return OpenedStream(
        stream_id=stream.stream_id,
        leader_epoch=stream.leader_epoch + 1,
        log_start_offset=stream.log_start_offset,
        committed_end_offset=stream.committed_end_offset,
        gaps=stream.gaps,
        least_leader_epoch=max(
            stream.leader_epoch + 1 if stream.status is StreamStatus.CLOSED else stream.wal_leader_epoch, 0
        ),
    )


def _granted(
    tables: Tables,
    kind: type[StreamsOpened] | type[StreamsRecovering],
    node_id: int,
    wal_id: str,
    opened: Sequence[OpenedStream],
) -> Decision[Sequence[OpenedStream]]:
    new = tuple(
        (stream.stream_id, stream.leader_epoch)
        for stream in opened
        if stream.leader_epoch != tables.streams[stream.stream_id].leader_epoch
    )
    return Decision((kind(node_id=node_id, wal_id=wal_id, streams=new),) if new else (), tuple(opened))


def apply_streams_opened(tables: Tables, record: StreamsOpened, touched: Touched) -> None:
    _hold(tables, record, StreamStatus.OPEN, touched)


def apply_streams_recovering(tables: Tables, record: StreamsRecovering, touched: Touched) -> None:
    _hold(tables, record, StreamStatus.RECOVERING, touched)


def _hold(tables: Tables, record: StreamsOpened | StreamsRecovering, status: StreamStatus, touched: Touched) -> None:
    for stream_id, leader_epoch in record.streams:
        stream = tables.streams[stream_id]
        if stream.status is StreamStatus.CLOSED and tables.metadata_version >= 4:
            stream.wal_leader_epoch = leader_epoch
        stream.status = status
        stream.node_id = record.node_id
        stream.wal_id = record.wal_id
        stream.leader_epoch = leader_epoch
        touched.stream(stream_id)
        touched.topics.add(stream.topic_id)


def apply_streams_closed(tables: Tables, record: StreamsClosed, touched: Touched) -> None:
    for stream_id in record.stream_ids:
        _close(tables.streams[stream_id], touched)


def apply_streams_reassigned(tables: Tables, record: StreamsReassigned, touched: Touched) -> None:
    tables.require_version(3)
    for stream_id, target in record.targets:
        stream = tables.streams[stream_id]
        if stream.status is StreamStatus.CLOSED:
            stream.node_id = target
        else:
            stream.target_node_id = -1 if target == stream.node_id else target
        touched.stream(stream_id)
        touched.topics.add(stream.topic_id)


def _close(stream: StreamState, touched: Touched) -> None:
    stream.status = StreamStatus.CLOSED
    if stream.target_node_id != -1:
        stream.node_id, stream.target_node_id = stream.target_node_id, -1
    stream.wal_id = ""
    touched.stream(stream.stream_id)
    touched.topics.add(stream.topic_id)


def apply_streams_trimmed(tables: Tables, record: StreamsTrimmed, touched: Touched) -> None:
    for stream_id, log_start_offset in record.log_start_offsets:
        stream = tables.streams[stream_id]
        stream.log_start_offset = log_start_offset
        dropped = stream.index_of(log_start_offset)
        released = stream.object_ids[:dropped]
        touched.stream(stream_id, log_start_offset, log_start_offset + 1)
        if not dropped:
            continue
        kept_for_state = stream.newest_state[0] if stream.newest_state is not None else None
        del stream.ranges[:dropped]
        del stream.object_ids[:dropped]
        for object_id in released:
            if object_id != kept_for_state:
                release(tables, object_id, record.trimmed_at_ms, touched)


def apply_streams_abandoned(tables: Tables, record: StreamsAbandoned, touched: Touched) -> None:
    for stream_id, resume_offset in record.resume_offsets:
        stream = tables.streams[stream_id]
        if resume_offset > stream.committed_end_offset:
            stream.gaps = (*stream.gaps, (stream.committed_end_offset, resume_offset))
            stream.committed_end_offset = resume_offset
        if stream_id in record.kept:
            tables.require_version(3)
            touched.stream(stream_id)
        else:
            _close(stream, touched)
