"""Restore: topics and their records back to what they were at an earlier entry, as a change on top of all others.

A restore is one record. History stays: it is not erased but gone on with, so that a restore can be seen in the log, and be undone
by another one for as long as the restore window reaches.

Always true:
- What goes back is what an operator asked for: which topics there are, with which configurations, and which of their records can be
  read. Ids, epochs, registrations and ends of partitions never do (I2, I3, I9). A partition goes on where its offsets were surely
  never used: those from its end of then up to there are a recorded gap, as after an abandon.
- Only closed partitions are restored, or deleted by a restore (I4): an open one may have acknowledged what no object holds yet.
- Nothing that was expired is referenced again (I8): then a restore is refused.
- An object's entry has exactly the ranges that streams need afterwards. What it once held of them and they find elsewhere, since
  objects were compacted between then and now, must not come back when a snapshot is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controller.commands import Command, Decision
from controller.errors import RestoreRefused
from controller.objects import release_all
from controller.records import (
    MetadataRestored,
    ObjectCommitted,
    Range,
    Record,
    RestoredStream,
    RestoredTopic,
    TopicDeleted,
)
from controller.tables import StreamState, StreamStatus, Tables, TopicState, Touched
from controller.topics import apply_topic_deleted, leaders_of, takers
from s3stream.metadata import ObjectId, StreamId

__all__ = ["LastSeen", "PartitionChange", "RestorePlan", "RestoreTopics", "last_seen_before", "plan_restore"]

_NAMED: Final = 10
"""Partitions and objects that a refusal names; a plan has all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastSeen:
    """What a stream had come to when its topic was deleted."""

    leader_epoch: int
    committed_end_offset: int
    was_open: bool
    """So that records may have been acknowledged past that end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionChange:
    """What becomes of one partition. Offsets are [start, end)."""

    topic: str
    partition: int
    stream_id: StreamId
    comes_back: bool
    """It does not exist now."""
    is_deleted: bool
    """It will not exist any more."""
    log_start_offset: int
    """As it will be (or was, where it is deleted), as is the end."""
    end_offset: int
    regained: tuple[tuple[int, int], ...]
    """Offsets whose records can be read again."""
    given_up: tuple[tuple[int, int], ...]
    """Offsets whose records cannot be read any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """What a restore would change, and what stands in its way."""

    index: int
    returned_topics: tuple[str, ...]
    deleted_topics: tuple[str, ...]
    configured_topics: tuple[str, ...]
    """Their configurations go back; partitions may, too."""
    partitions: tuple[PartitionChange, ...]
    missing: tuple[ObjectId, ...]
    """Objects that were expired since, so that they are deleted or about to be."""
    open_partitions: tuple[str, ...]
    """Partitions that would have to be closed first."""
    broker_configs_change: bool
    record: MetadataRestored

    @property
    def changes_nothing(self) -> bool:
        """Everything is as it was."""
        return not (
            self.record.topics or self.record.streams or self.record.deleted_topic_ids or self.broker_configs_change
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreTopics(Command[RestorePlan]):
    """Take topics back to what they were. Raises RestoreRefused, and changes nothing."""

    index: int
    """Of the last entry that the target holds."""
    target: Tables
    """The state of then."""
    last_seen: Mapping[StreamId, LastSeen]
    """Of every stream that was deleted between then and now."""
    topics: frozenset[str] | None = None
    """By name: only these; None: all of them, and altered settings of brokers."""
    slack_offsets: int
    """Offsets to leave out in partitions that were open when they were deleted, past their committed end: more than can have been
    acknowledged and not uploaded (I2)."""
    at_ms: int
    expected: RestorePlan | None = None
    """What the operator was shown; None: whatever it is."""


def last_seen_before(tables: Tables, record: Record) -> Iterator[tuple[StreamId, LastSeen]]:
    """Streams that a record is about to delete, with what they had come to."""
    match record:
        case TopicDeleted():
            topic_ids: Sequence[bytes] = (record.topic_id,)
        case MetadataRestored():
            topic_ids = record.deleted_topic_ids
        case _:
            return
    for topic_id in topic_ids:
        for stream_id in tables.topics[topic_id].stream_ids:
            stream = tables.streams[stream_id]
            yield (
                stream_id,
                LastSeen(
                    leader_epoch=stream.leader_epoch,
                    committed_end_offset=stream.committed_end_offset,
                    was_open=stream.status is not StreamStatus.CLOSED,
                ),
            )


def restore_topics(tables: Tables, command: RestoreTopics) -> Decision[RestorePlan]:
    plan = plan_restore(tables, command)
    if plan.open_partitions:
        raise RestoreRefused(
            f"partitions are open: {_some(plan.open_partitions)}. Their brokers may have acknowledged records that no object holds yet. "
            "Stop every broker in order (SIGTERM), so that all of it is uploaded and closed; start one that crashed once more before that. "
            "If its WAL is lost for good, see `tidelog wal abandon`"
        )
    if plan.missing:
        raise RestoreRefused(
            f"{len(plan.missing)} objects that held records then are deleted by now: {_some(map(str, plan.missing))}. "
            "Restore to a later point, or restore only topics that have none in them (--topic)"
        )
    if command.expected is not None and plan != command.expected:
        raise RestoreRefused(
            "the metadata was changed meanwhile, so that more or less would change: look at the plan again"
        )
    return Decision(() if plan.changes_nothing else (plan.record,), plan)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")


# ---- the plan


def plan_restore(tables: Tables, command: RestoreTopics) -> RestorePlan:
    """What would change.

    Raises:
        RestoreRefused: a topic did not exist then, or was deleted since the command was made.
    """
    target = command.target
    wanted = _wanted(target, command.topics)
    superfluous = [
        topic
        for topic in sorted(tables.topics.values(), key=_name)
        if topic.topic_id not in target.topics and (command.topics is None or topic.name in command.topics)
    ]
    topics: list[RestoredTopic] = []
    streams: list[RestoredStream] = []
    changes: list[PartitionChange] = []
    returned: list[str] = []
    configured: list[str] = []
    for then in wanted:
        now = tables.topics.get(then.topic_id)
        restored = list(_restored_streams(tables, command, then, now))
        if now is None:
            returned.append(then.name)
        elif now.configs != then.configs:
            configured.append(then.name)
        elif not restored:
            continue
        stream_ids = then.stream_ids if now is None else now.stream_ids
        topics.append(
            RestoredTopic(
                topic_id=then.topic_id,
                name=then.name,
                stream_ids=stream_ids,
                configs=dict(then.configs),
                created_at_ms=then.created_at_ms,
            )
        )
        streams += restored
        changes += [_change(tables, target, then.name, stream) for stream in restored]
    for topic in superfluous:
        changes += [_deletion(topic.name, tables.streams[stream_id]) for stream_id in topic.stream_ids]
    entries, missing = _entries(tables, target, streams, superfluous)
    configs_of_brokers = None
    if command.topics is None and target.broker_configs != tables.broker_configs:
        configs_of_brokers = tuple(
            (node_id, dict(configs)) for node_id, configs in sorted(target.broker_configs.items())
        )
    return RestorePlan(
        index=command.index,
        returned_topics=tuple(returned),
        deleted_topics=tuple(topic.name for topic in superfluous),
        configured_topics=tuple(configured),
        partitions=tuple(changes),
        missing=tuple(missing),
        open_partitions=tuple(_open(tables, changes)),
        broker_configs_change=configs_of_brokers is not None,
        record=MetadataRestored(
            index=command.index,
            restored_at_ms=command.at_ms,
            deleted_topic_ids=tuple(topic.topic_id for topic in superfluous),
            topics=tuple(topics),
            streams=tuple(streams),
            objects=tuple(entries),
            broker_configs=configs_of_brokers,
        ),
    )


def _name(topic: TopicState) -> str:
    return topic.name


def _wanted(target: Tables, names: frozenset[str] | None) -> list[TopicState]:
    unknown = sorted(names - target.topic_ids.keys()) if names is not None else ()
    if unknown:
        raise RestoreRefused(f"at that point there was no topic {_some(unknown)}: take another point, or other names")
    return sorted((topic for topic in target.topics.values() if names is None or topic.name in names), key=_name)


def _restored_streams(
    tables: Tables, command: RestoreTopics, then: TopicState, now: TopicState | None
) -> Iterator[RestoredStream]:
    """Streams of a topic that are not what they were."""
    stream_ids = then.stream_ids if now is None else now.stream_ids
    nodes = takers(tables, tables.nodes) or sorted(tables.nodes)
    leaders = leaders_of(tables, nodes, len(stream_ids)) if now is None and nodes else ()
    for partition, stream_id in enumerate(stream_ids):
        current = tables.streams.get(stream_id)
        former = command.target.streams.get(stream_id)
        if current is not None and _is_same(current, former):
            continue
        epoch, end_offset = _reached(current, command.last_seen.get(stream_id), command.slack_offsets, then.name)
        if current is not None:
            node_id = current.node_id
        else:
            assert former is not None, "a deleted topic's partitions are those of then"
            node_id = former.node_id if former.node_id in tables.nodes or not leaders else leaders[partition]
        if former is not None:
            epoch, end_offset = max(epoch, former.leader_epoch), max(end_offset, former.committed_end_offset)
        log_start_offset = end_offset  # where nothing is to be read, no gap is needed to go on behind it
        gaps: tuple[tuple[int, int], ...] = ()
        if former is not None and former.ranges:
            log_start_offset, gaps = former.log_start_offset, former.gaps
            if end_offset > former.committed_end_offset:
                gaps = (*gaps, (former.committed_end_offset, end_offset))
        newest = None if former is None else former.newest_state
        yield RestoredStream(
            stream_id=stream_id,
            topic_id=then.topic_id,
            partition=partition,
            node_id=node_id,
            leader_epoch=epoch,
            log_start_offset=log_start_offset,
            committed_end_offset=end_offset,
            gaps=gaps,
            newest_state_object_id=ObjectId(0) if newest is None else newest[0],
        )


def _is_same(current: StreamState, former: StreamState | None) -> bool:
    """Whether a stream holds what it held; one that did not exist held nothing."""
    if former is None:
        return not current.ranges and current.newest_state is None
    return (
        current.ranges == former.ranges
        and current.object_ids == former.object_ids
        and current.newest_state == former.newest_state
        and (current.log_start_offset == former.log_start_offset or not former.ranges)
    )


def _reached(current: StreamState | None, seen: LastSeen | None, slack_offsets: int, topic: str) -> tuple[int, int]:
    """The highest leader epoch of a stream, and an end that none of its offsets is past."""
    if current is not None:
        return current.leader_epoch, current.committed_end_offset
    if seen is None:
        raise RestoreRefused(f"topic {topic} was deleted just now: look at the plan again")
    return seen.leader_epoch, seen.committed_end_offset + (slack_offsets if seen.was_open else 0)


def _entries(
    tables: Tables, target: Tables, streams: Sequence[RestoredStream], superfluous: Sequence[TopicState]
) -> tuple[list[ObjectCommitted], list[ObjectId]]:
    """Every object that streams of a restore are in, as it is to be; and those that are there no more."""
    restored = {stream.stream_id for stream in streams}
    released = restored | {stream_id for topic in superfluous for stream_id in topic.stream_ids}
    needed: dict[ObjectId, list[Range]] = {}
    for stream_id in restored:
        former = target.streams.get(stream_id)
        if former is not None:
            for object_id, value in _held(former):
                needed.setdefault(object_id, []).append(value)
    for object_id, entry in tables.objects.items():
        if object_id in needed or any(value.stream_id in restored for value in entry.ranges):
            others = [value for value in tables.live_ranges(entry) if value.stream_id not in released]
            if object_id in needed or others:
                needed.setdefault(object_id, []).extend(others)
    entries: list[ObjectCommitted] = []
    missing: list[ObjectId] = []
    for object_id, ranges in sorted(needed.items()):
        known = tables.objects.get(object_id)
        if known is None and object_id not in tables.unreferenced:
            missing.append(object_id)
        known = known or target.objects[object_id]
        entries.append(
            ObjectCommitted(
                object_id=object_id,
                size_bytes=known.size_bytes,
                ranges=tuple(sorted(ranges, key=_stream_id)),
                skipped=known.skipped,
                committed_at_ms=known.committed_at_ms,
            )
        )
    return entries, missing


def _held(stream: StreamState) -> Iterator[tuple[ObjectId, Range]]:
    """All that a stream needs."""
    yield from zip(stream.object_ids, stream.ranges, strict=True)
    if stream.newest_state is not None and stream.newest_state_is_detached:
        yield stream.newest_state


def _stream_id(value: Range) -> StreamId:
    return value.stream_id


# ---- what is told of it


def _change(tables: Tables, target: Tables, topic: str, stream: RestoredStream) -> PartitionChange:
    current, former = tables.streams.get(stream.stream_id), target.streams.get(stream.stream_id)
    before = () if current is None else _readable(current)
    after = () if former is None else _readable(former)
    return PartitionChange(
        topic=topic,
        partition=stream.partition,
        stream_id=stream.stream_id,
        comes_back=current is None,
        is_deleted=False,
        log_start_offset=stream.log_start_offset,
        end_offset=stream.committed_end_offset,
        regained=_without(after, before),
        given_up=_without(before, after),
    )


def _deletion(topic: str, stream: StreamState) -> PartitionChange:
    return PartitionChange(
        topic=topic,
        partition=stream.partition,
        stream_id=stream.stream_id,
        comes_back=False,
        is_deleted=True,
        log_start_offset=stream.log_start_offset,
        end_offset=stream.committed_end_offset,
        regained=(),
        given_up=_readable(stream),
    )


def _open(tables: Tables, changes: Sequence[PartitionChange]) -> Iterator[str]:
    for change in changes:
        stream = tables.streams.get(change.stream_id)
        if stream is not None and stream.status is not StreamStatus.CLOSED:
            yield f"{change.topic}-{change.partition} on node {stream.node_id} (WAL {stream.wal_id})"


def _readable(stream: StreamState) -> tuple[tuple[int, int], ...]:
    """Offsets that objects hold, neighbours joined."""
    found: list[tuple[int, int]] = []
    for value in stream.ranges:
        base_offset = max(value.base_offset, stream.log_start_offset)
        if found and found[-1][1] == base_offset:
            found[-1] = (found[-1][0], value.end_offset)
        else:
            found.append((base_offset, value.end_offset))
    return tuple(found)


def _without(some: Sequence[tuple[int, int]], others: Collection[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """What is in some intervals and in none of the others; both are sorted and disjoint."""
    found: list[tuple[int, int]] = []
    for start, end in some:
        at = start
        for low, high in others:
            if high <= at or low >= end:
                continue
            if low > at:
                found.append((at, low))
            at = max(at, high)
        if at < end:
            found.append((at, end))
    return tuple(found)


# ---- the change


def apply_metadata_restored(tables: Tables, record: MetadataRestored, touched: Touched) -> None:
    tables.require_version(3)
    at_ms = record.restored_at_ms
    for topic_id in record.deleted_topic_ids:
        apply_topic_deleted(tables, TopicDeleted(topic_id=topic_id, deleted_at_ms=at_ms), touched)
    for restored in record.streams:
        current = tables.streams.get(restored.stream_id)
        if current is not None:
            release_all(tables, current, at_ms, touched)
    for topic in record.topics:
        tables.topics[topic.topic_id] = TopicState(
            topic_id=topic.topic_id,
            name=topic.name,
            stream_ids=topic.stream_ids,
            configs=topic.configs,
            created_at_ms=topic.created_at_ms,
        )
        tables.topic_ids[topic.name] = topic.topic_id
        touched.topics.add(topic.topic_id)
    streams = {restored.stream_id: _restored(restored) for restored in record.streams}
    tables.streams.update(streams)
    newest = {restored.stream_id: restored.newest_state_object_id for restored in record.streams}
    for entry in record.objects:
        tables.unreferenced.pop(entry.object_id, None)
        tables.objects[entry.object_id] = entry
        tables.replaced.pop(entry.object_id, None)  # it says exactly what is needed of it
        tables.live_counts[entry.object_id] = len(entry.ranges)
        touched.objects.add(entry.object_id)
        for value in entry.ranges:
            stream = streams.get(value.stream_id)
            if stream is None:
                continue
            if newest[value.stream_id] == entry.object_id:
                stream.newest_state = (entry.object_id, value)
            if value.end_offset > stream.log_start_offset and value.base_offset < value.end_offset:
                stream.ranges.append(value)
                stream.object_ids.append(entry.object_id)
    for stream in streams.values():
        stream.sort_ranges()
        touched.stream(stream.stream_id, 0, stream.committed_end_offset)
    if record.broker_configs is not None:
        tables.broker_configs = dict(record.broker_configs)
        touched.broker_configs = True


def _restored(value: RestoredStream) -> StreamState:
    return StreamState(
        stream_id=value.stream_id,
        topic_id=value.topic_id,
        partition=value.partition,
        node_id=value.node_id,
        leader_epoch=value.leader_epoch,
        log_start_offset=value.log_start_offset,
        committed_end_offset=value.committed_end_offset,
        gaps=value.gaps,
    )
