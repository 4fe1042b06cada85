"""Topics: creation, deletion and their configs.

Always true:
- A topic has a random id from its creation on; a topic of the same name that is created later has another id and other
  streams, so nothing of the old one shows through.
- The partitions of a topic are numbered from 0 without gaps, and never become fewer.
- Names and configs were validated by the broker. A change that was computed from what the configs were says so
  (`expected`), and is refused when they are something else by now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from controller.commands import Command, Decision
from controller.errors import (
    ConfigsChanged,
    ControllerError,
    InvalidPartitionCount,
    NoNodes,
    TooManyPartitions,
    TopicExists,
    UnknownTopic,
)
from controller.objects import release_all
from controller.records import PartitionsAdded, Record, TopicConfigsChanged, TopicCreated, TopicDeleted
from controller.tables import NodeStatus, StreamState, Tables, TopicState, Touched
from s3stream.metadata import StreamId

__all__ = [
    "AddPartitions",
    "ConfigureTopic",
    "CreateTopics",
    "DeleteTopics",
    "NewTopic",
    "changed_configs",
    "leaders_of",
    "takers",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTopic:
    """A topic to be created."""

    name: str
    topic_id: bytes
    """16 random bytes."""
    partition_count: int
    configs: Mapping[str, str] = field(default_factory=dict)
    leaders: tuple[int, ...] = ()
    """Nodes that may lead its partitions; empty: every registered one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTopics(Command[Mapping[str, bytes | ControllerError]]):
    """Create topics, each or none of it; the reply has a topic id or an error by name."""

    topics: tuple[NewTopic, ...]
    max_partitions: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTopics(Command[Mapping[bytes, ControllerError | None]]):
    """Delete topics by id; the reply has None or UnknownTopic by id."""

    REPEATABLE: ClassVar[bool] = False

    topic_ids: tuple[bytes, ...]
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPartitions(Command[None]):
    """Give a topic more partitions. Raises UnknownTopic, InvalidPartitionCount, TooManyPartitions, NoNodes."""

    REPEATABLE: ClassVar[bool] = False

    topic_id: bytes
    partition_count: int
    """How many it is to have, with those that it has."""
    max_partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigureTopic(Command[None]):
    """Set and remove configs of a topic. Raises UnknownTopic, ConfigsChanged."""

    REPEATABLE: ClassVar[bool] = False

    topic_id: bytes
    changes: Mapping[str, str | None]
    """None goes back to the default."""
    expected: Mapping[str, str] | None = None
    """What the configs were when the change was computed; None: it does not matter."""


def create_topics(tables: Tables, command: CreateTopics) -> Decision[Mapping[str, bytes | ControllerError]]:
    records: list[Record] = []
    reply: dict[str, bytes | ControllerError] = {}
    next_stream_id = tables.next_stream_id
    partition_count = len(tables.streams)
    led = _led(tables)
    for topic in command.topics:
        assert len(topic.topic_id) == 16, "topic ids have 16 bytes"
        assert topic.partition_count > 0, "a topic has partitions"
        candidates = takers(tables, topic.leaders or tables.nodes)
        assert topic.name not in reply, "the broker refuses requests that name a topic twice"
        if tables.topic_ids.get(topic.name) == topic.topic_id:
            reply[topic.name] = topic.topic_id  # the command was given before, and its answer was lost
        elif topic.name in tables.topic_ids:
            reply[topic.name] = TopicExists(f"topic {topic.name} exists")
        elif not candidates:
            reply[topic.name] = NoNodes(f"no node is registered that could lead partitions of {topic.name}")
        elif partition_count + topic.partition_count > command.max_partitions:
            reply[topic.name] = TooManyPartitions(
                f"{topic.partition_count} partitions of {topic.name} would make {partition_count + topic.partition_count} "
                f"in the cluster; max_partitions is {command.max_partitions}"
            )
        else:
            records.append(
                TopicCreated(
                    topic_id=topic.topic_id,
                    name=topic.name,
                    first_stream_id=next_stream_id,
                    leaders=_leaders(candidates, led, topic.partition_count),
                    configs=dict(topic.configs),
                    created_at_ms=command.at_ms,
                )
            )
            next_stream_id = StreamId(next_stream_id + topic.partition_count)
            partition_count += topic.partition_count
            reply[topic.name] = topic.topic_id
    return Decision(records, reply)


def takers(tables: Tables, wanted: Collection[int]) -> Sequence[int]:
    """Those of the wanted nodes that new partitions may go to: who is alive and not drained; else who is drained, or a suspect; a dead
    one never."""
    candidates = sorted(node_id for node_id in wanted if node_id in tables.nodes)
    alive = [node_id for node_id in candidates if tables.node_status(node_id) is NodeStatus.ALIVE]
    suspect = [node_id for node_id in candidates if tables.node_status(node_id) is NodeStatus.SUSPECT]
    return [node_id for node_id in alive if node_id not in tables.drained] or alive or suspect


def _led(tables: Tables) -> Counter[int]:
    """How many partitions each node leads; not counted where there is nothing to choose."""
    led: Counter[int] = Counter()
    if len(tables.nodes) > 1:
        led.update(stream.node_id for stream in tables.streams.values())
    return led


def _leaders(candidates: Sequence[int], led: Counter[int], count: int) -> tuple[int, ...]:
    """Leaders of new partitions: each the node that leads least; `led` counts on."""
    leaders: list[int] = []
    for _ in range(count):
        leader = min(candidates, key=lambda node_id: (led[node_id], node_id))
        led[leader] += 1
        leaders.append(leader)
    return tuple(leaders)


def leaders_of(tables: Tables, candidates: Sequence[int], count: int) -> tuple[int, ...]:
    """Leaders of partitions that are about to be there, chosen among candidates."""
    return _leaders(candidates, _led(tables), count)


def add_partitions(tables: Tables, command: AddPartitions) -> Decision[None]:
    topic = _topic(tables, command.topic_id)
    existing = len(topic.stream_ids)
    added = command.partition_count - existing
    if added <= 0:
        raise InvalidPartitionCount(
            f"topic {topic.name} has {existing} partitions; {command.partition_count} is not more than that"
        )
    if len(tables.streams) + added > command.max_partitions:
        raise TooManyPartitions(
            f"{added} more partitions of {topic.name} would make {len(tables.streams) + added} in the cluster; "
            f"max_partitions is {command.max_partitions}"
        )
    candidates = takers(tables, tables.nodes)
    if not candidates:
        raise NoNodes(f"no node is registered that could lead partitions of {topic.name}")
    record = PartitionsAdded(
        topic_id=command.topic_id,
        first_stream_id=tables.next_stream_id,
        leaders=leaders_of(tables, candidates, added),
    )
    return Decision((record,), None)


def _topic(tables: Tables, topic_id: bytes) -> TopicState:
    topic = tables.topics.get(topic_id)
    if topic is None:
        raise UnknownTopic(f"no topic has the id {topic_id.hex()}")
    return topic


def delete_topics(tables: Tables, command: DeleteTopics) -> Decision[Mapping[bytes, ControllerError | None]]:
    records: list[Record] = []
    reply: dict[bytes, ControllerError | None] = {}
    for topic_id in command.topic_ids:
        if topic_id in reply:
            continue
        if topic_id in tables.topics:
            records.append(TopicDeleted(topic_id=topic_id, deleted_at_ms=command.at_ms))
            reply[topic_id] = None
        else:
            reply[topic_id] = UnknownTopic(f"no topic has the id {topic_id.hex()}")
    return Decision(records, reply)


def configure_topic(tables: Tables, command: ConfigureTopic) -> Decision[None]:
    topic = _topic(tables, command.topic_id)
    configs = changed_configs(topic.configs, command.changes, command.expected)
    if configs == topic.configs:
        return Decision((), None)
    return Decision((TopicConfigsChanged(topic_id=command.topic_id, configs=configs),), None)


def changed_configs(
    present: Mapping[str, str], changes: Mapping[str, str | None], expected: Mapping[str, str] | None
) -> dict[str, str]:
    """Configs after a change, None removing a name. Raises ConfigsChanged where they are not the expected ones."""
    if expected is not None and expected != present:
        raise ConfigsChanged("the configurations were changed meanwhile: compute the change again")
    configs = dict(present)
    for name, value in changes.items():
        if value is None:
            configs.pop(name, None)
        else:
            configs[name] = value
    return configs


def apply_topic_created(tables: Tables, record: TopicCreated, touched: Touched) -> None:
    topic = tables.topics[record.topic_id] = TopicState(
        topic_id=record.topic_id,
        name=record.name,
        stream_ids=(),
        configs=record.configs,
        created_at_ms=record.created_at_ms,
    )
    tables.topic_ids[record.name] = record.topic_id
    _add_streams(tables, topic, record, touched)


def apply_partitions_added(tables: Tables, record: PartitionsAdded, touched: Touched) -> None:
    tables.require_version(2)
    _add_streams(tables, tables.topics[record.topic_id], record, touched)


def _add_streams(tables: Tables, topic: TopicState, record: TopicCreated | PartitionsAdded, touched: Touched) -> None:
    """Number a topic's partitions on, one for each leader."""
    stream_ids = tuple(StreamId(record.first_stream_id + index) for index in range(len(record.leaders)))
    for partition, (stream_id, leader) in enumerate(
        zip(stream_ids, record.leaders, strict=True), len(topic.stream_ids)
    ):
        tables.streams[stream_id] = StreamState(
            stream_id=stream_id, topic_id=topic.topic_id, partition=partition, node_id=leader
        )
        touched.stream(stream_id)
    topic.stream_ids += stream_ids
    tables.next_stream_id = StreamId(record.first_stream_id + len(stream_ids))
    touched.topics.add(topic.topic_id)


def apply_topic_deleted(tables: Tables, record: TopicDeleted, touched: Touched) -> None:
    topic = tables.topics.pop(record.topic_id)
    del tables.topic_ids[topic.name]
    touched.topics.add(record.topic_id)
    for stream_id in topic.stream_ids:
        stream = tables.streams.pop(stream_id)
        touched.stream(stream_id)
        release_all(tables, stream, record.deleted_at_ms, touched)


def apply_topic_configs_changed(tables: Tables, record: TopicConfigsChanged, touched: Touched) -> None:
    tables.topics[record.topic_id].configs = record.configs
    touched.topics.add(record.topic_id)
