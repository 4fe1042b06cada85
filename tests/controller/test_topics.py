"""Topics: each created or refused for itself; a name that comes back is another topic."""

from __future__ import annotations

import pytest

from controller.errors import (
    ConfigsChanged,
    InvalidPartitionCount,
    NoNodes,
    TooManyPartitions,
    TopicExists,
    UnknownTopic,
)
from controller.nodes import UnregisterNode
from controller.topics import AddPartitions, ConfigureTopic, CreateTopics, DeleteTopics, NewTopic
from s3stream.metadata import SkipReason
from tests.controller.machine import T0_MS, Machine, ready, stream_range


def wanted(name: str, partitions: int = 1, leaders: tuple[int, ...] = ()) -> NewTopic:
    topic_id = name.encode().ljust(16, b".")
    return NewTopic(name=name, topic_id=topic_id, partition_count=partitions, leaders=leaders)


def test_topics_of_one_command_are_created_or_refused_one_by_one() -> None:
    machine = Machine()
    machine.register()
    machine.create("old")
    topics = (wanted("a", 3), wanted("old"), wanted("b", 99), wanted("c"))
    made = machine.do(CreateTopics(topics=topics, max_partitions=50, at_ms=T0_MS))
    assert made["a"] == topics[0].topic_id
    assert isinstance(made["old"], TopicExists)
    assert isinstance(made["b"], TooManyPartitions)
    assert made["c"] == topics[3].topic_id
    assert set(machine.state.tables.topic_ids) == {"old", "a", "c"}
    assert len(machine.state.tables.streams) == 1 + 3 + 1


def test_partitions_are_spread_over_the_nodes_that_lead_least() -> None:
    machine = Machine()
    machine.register(1, "wal-1")
    machine.create("first", partitions=4)
    machine.register(2, "wal-2")
    streams = machine.create("second", partitions=6)
    leaders = [machine.stream(stream).node_id for stream in streams]
    assert leaders == [2, 2, 2, 2, 1, 2]


def test_only_the_nodes_named_and_registered_lead() -> None:
    machine = Machine()
    machine.register(1, "wal-1")
    machine.register(2, "wal-2")
    topics = (wanted("a", 4, leaders=(2, 9)), wanted("b", leaders=(9,)))
    made = machine.do(CreateTopics(topics=topics, max_partitions=50, at_ms=T0_MS))
    assert isinstance(made["b"], NoNodes)
    assert {stream.node_id for stream in machine.state.tables.streams.values()} == {2}


def test_without_a_node_there_is_nobody_to_lead() -> None:
    with pytest.raises(NoNodes):
        Machine().create("a")


def test_a_deleted_topic_takes_its_streams_along_and_frees_its_name_at_once() -> None:
    machine, streams = ready(partitions=2)
    kept = machine.create("kept")
    machine.open(1, kept)
    shared, _ = machine.upload(1, stream_range(streams[0], 0, 10), stream_range(kept[0], 0, 10))
    own, _ = machine.upload(1, stream_range(streams[0], 10, 20, has_state=True), stream_range(streams[1], 0, 5))

    machine.delete("orders")
    assert machine.referenced() == {shared}
    assert machine.unreferenced() == {own}
    again = machine.create("orders", partitions=2)
    assert not set(again) & set(streams)
    assert machine.stream(again[0]).committed_end_offset == 0

    _, skipped = machine.upload(1, stream_range(streams[1], 5, 10), stream_range(kept[0], 10, 20))
    assert skipped == {streams[1]: SkipReason.DELETED}
    assert machine.stream(kept[0]).committed_end_offset == 20


def test_deleting_a_topic_lets_go_of_a_state_block_that_retention_had_spared() -> None:
    machine, (stream,) = ready()
    with_state, _ = machine.upload(1, stream_range(stream, 0, 10, has_state=True))
    machine.upload(1, stream_range(stream, 10, 20))
    machine.trim(1, {stream: 15})
    assert with_state in machine.referenced()
    machine.delete("orders")
    assert machine.referenced() == set()


def test_deleting_what_does_not_exist_is_told() -> None:
    machine, _ = ready()
    topic_id = machine.state.tables.topic_ids["orders"]
    told = machine.do(DeleteTopics(topic_ids=(b"?" * 16, topic_id, topic_id), at_ms=T0_MS))
    assert isinstance(told[b"?" * 16], UnknownTopic)
    assert told[topic_id] is None


def test_configs_are_set_and_go_back_to_their_defaults() -> None:
    machine, _ = ready()
    topic_id = machine.state.tables.topic_ids["orders"]
    machine.do(ConfigureTopic(topic_id=topic_id, changes={"retention.ms": "1000", "cleanup.policy": "compact"}))
    machine.do(ConfigureTopic(topic_id=topic_id, changes={"retention.ms": None, "segment.ms": None}))
    assert machine.state.tables.topics[topic_id].configs == {"cleanup.policy": "compact"}
    written = len(machine.log)
    machine.do(ConfigureTopic(topic_id=topic_id, changes={"cleanup.policy": "compact"}))
    assert len(machine.log) == written, "what changes nothing is not written"
    with pytest.raises(UnknownTopic):
        machine.do(ConfigureTopic(topic_id=b"?" * 16, changes={}))


def test_a_change_computed_from_what_configs_were_is_refused_when_they_are_not() -> None:
    machine, _ = ready()
    topic_id = machine.state.tables.topic_ids["orders"]
    machine.do(ConfigureTopic(topic_id=topic_id, changes={"cleanup.policy": "compact"}, expected={}))
    with pytest.raises(ConfigsChanged):
        machine.do(ConfigureTopic(topic_id=topic_id, changes={"cleanup.policy": "delete"}, expected={}))
    assert machine.state.tables.topics[topic_id].configs == {"cleanup.policy": "compact"}


def test_partitions_are_added_behind_those_that_there_are() -> None:
    machine = Machine()
    machine.register(1, "wal-1")
    streams = machine.create("orders", partitions=2)
    machine.create("others", partitions=1)
    machine.register(2, "wal-2")
    topic_id = machine.state.tables.topic_ids["orders"]
    machine.do(AddPartitions(topic_id=topic_id, partition_count=5, max_partitions=100))
    topic = machine.state.tables.topics[topic_id]
    assert list(topic.stream_ids[:2]) == streams
    assert [machine.stream(stream_id).partition for stream_id in topic.stream_ids] == [0, 1, 2, 3, 4]
    assert [machine.stream(stream_id).node_id for stream_id in topic.stream_ids[2:]] == [2, 2, 2], "who leads least"
    machine.open(2, topic.stream_ids[2:])
    machine.delete("orders")
    assert len(machine.state.tables.streams) == 1


@pytest.mark.parametrize(
    ("count", "max_partitions", "error"),
    [(1, 100, InvalidPartitionCount), (2, 100, InvalidPartitionCount), (9, 8, TooManyPartitions)],
)
def test_partitions_that_cannot_be_added(count: int, max_partitions: int, error: type[Exception]) -> None:
    machine, _ = ready(partitions=2)
    topic_id = machine.state.tables.topic_ids["orders"]
    with pytest.raises(error):
        machine.do(AddPartitions(topic_id=topic_id, partition_count=count, max_partitions=max_partitions))
    with pytest.raises(UnknownTopic):
        machine.do(AddPartitions(topic_id=b"?" * 16, partition_count=9, max_partitions=100))


def test_without_a_node_nobody_would_lead_an_added_partition() -> None:
    machine = Machine()
    machine.register()
    streams = machine.create()
    topic_id = machine.state.tables.topic_ids["orders"]
    machine.register(2, "wal-2")
    machine.stream(streams[0]).node_id = 2
    machine.suspect(1)
    machine.declare_dead(1)
    machine.do(UnregisterNode(node_id=1))
    machine.do(AddPartitions(topic_id=topic_id, partition_count=2, max_partitions=100))
    assert machine.stream(machine.state.tables.topics[topic_id].stream_ids[1]).node_id == 2
    machine.state.tables.nodes.clear()
    with pytest.raises(NoNodes):
        machine.do(AddPartitions(topic_id=topic_id, partition_count=3, max_partitions=100))
