"""Restores, one by one: what comes back, what is given up, and what stands in the way. Any history: `test_state_machine.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.errors import RestoreRefused
from controller.invariants import check_all
from controller.nodes import ConfigureBroker
from controller.restoration import plan_restore
from controller.snapshot import capture, digest, encode, restore
from controller.state import State
from controller.topics import AddPartitions, ConfigureTopic
from tests.controller.machine import Machine, new_object, ready, stream_range


def close_all(machine: Machine) -> None:
    for stream in machine.state.tables.streams.values():
        machine.close(stream.node_id, {stream.stream_id: stream.committed_end_offset})


def through_a_snapshot(state: State) -> State:
    *_, last = restore(b"".join(encode(capture(state, 1))), where="the snapshot")
    assert last is not None
    check_all(last[0].tables)
    return last[0]


def test_a_deleted_topic_comes_back_past_what_may_have_been_acknowledged() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10, has_state=True))
    then = machine.state.copy()
    topic_id = machine.stream(stream).topic_id
    machine.upload(1, stream_range(stream, 10, 12))
    machine.delete("orders")
    plan = machine.restore(then, slack_offsets=100)
    assert plan.returned_topics == ("orders",)
    (change,) = plan.partitions
    assert (change.comes_back, change.regained, change.given_up) == (True, ((0, 10),), ())
    back = machine.stream(stream)
    assert (back.topic_id, machine.layout(stream)) == (topic_id, [(0, 10, a)])
    assert (back.committed_end_offset, back.gaps) == (112, ((10, 112),)), "12 were committed, and it was open"
    (opened,) = machine.open(1, [stream])
    assert opened.leader_epoch == 1
    machine.upload(1, stream_range(stream, 112, 113, leader_epoch=1))


def test_a_topic_that_was_closed_when_it_was_deleted_goes_on_right_behind_its_end() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    then = machine.state.copy()
    close_all(machine)
    machine.delete("orders")
    machine.restore(then, slack_offsets=100)
    assert (machine.stream(stream).committed_end_offset, machine.stream(stream).gaps) == (10, ())


def test_offsets_that_are_given_up_are_told_and_never_used_again() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    machine.upload(1, stream_range(stream, 10, 20))
    then = machine.state.copy()
    machine.trim(1, {stream: 15})
    c, _ = machine.upload(1, stream_range(stream, 20, 33))
    close_all(machine)
    (change,) = machine.restore(then).partitions
    assert (change.regained, change.given_up) == (((0, 15),), ((20, 33),))
    assert (change.log_start_offset, change.end_offset) == (0, 33)
    assert machine.unreferenced() == {c}, "kept, so that the restore can be undone"


def test_topics_that_did_not_exist_are_deleted_and_their_names_are_free_for_those_that_did() -> None:
    machine, (old,) = ready()
    machine.upload(1, stream_range(old, 0, 10))
    then = machine.state.copy()
    machine.delete("orders")
    (new,) = machine.create("orders")
    machine.create("other")
    machine.open(1, [new])
    machine.upload(1, stream_range(new, 0, 7))
    close_all(machine)
    plan = machine.restore(then, "orders")
    assert (plan.returned_topics, plan.deleted_topics) == (("orders",), ("orders",))
    assert [change.given_up for change in plan.partitions if change.is_deleted] == [((0, 7),)]
    assert machine.state.tables.topic_ids.keys() == {"orders", "other"}, "others are left alone"
    assert machine.state.tables.topics[machine.state.tables.topic_ids["orders"]].stream_ids == (old,)
    assert machine.restore(then).deleted_topics == ("other",)


def test_partitions_that_were_added_stay_without_their_records() -> None:
    machine, (first,) = ready()
    then = machine.state.copy()
    topic_id = machine.stream(first).topic_id
    machine.do(AddPartitions(topic_id=topic_id, partition_count=2, max_partitions=10))
    second = machine.state.tables.topics[topic_id].stream_ids[1]
    machine.open(1, [second])
    machine.upload(1, stream_range(second, 0, 5))
    close_all(machine)
    machine.restore(then)
    assert machine.state.tables.topics[topic_id].stream_ids == (first, second)
    assert (machine.stream(second).log_start_offset, machine.stream(second).committed_end_offset) == (5, 5)


def test_configurations_go_back() -> None:
    machine, (stream,) = ready()
    topic_id = machine.stream(stream).topic_id
    machine.do(ConfigureTopic(topic_id=topic_id, changes={"retention.ms": "-1"}))
    machine.do(ConfigureBroker(node_id=1, changes={"num.partitions": "3"}))
    then = machine.state.copy()
    machine.do(ConfigureTopic(topic_id=topic_id, changes={"retention.ms": "1"}))
    machine.do(ConfigureBroker(node_id=1, changes={"num.partitions": "4"}))
    plan = machine.restore(then, "orders")
    assert (plan.configured_topics, plan.partitions) == (("orders",), ())
    assert machine.state.tables.topics[topic_id].configs == {"retention.ms": "-1"}
    assert machine.state.tables.broker_configs == {1: {"num.partitions": "4"}}, "it was for one topic only"
    assert machine.restore(then).broker_configs_change
    assert machine.state.tables.broker_configs == {1: {"num.partitions": "3"}}


def test_ids_epochs_and_registrations_stay() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    then = machine.state.copy()
    machine.register(2, "wal-2")
    machine.ids(1, 50)
    machine.register()
    machine.open(1, [stream])
    close_all(machine)
    before = through_a_snapshot(machine.state).tables
    machine.delete("orders")
    machine.restore(then)
    tables = machine.state.tables
    assert tables.nodes == before.nodes
    assert (tables.next_object_id, tables.next_node_epoch) == (before.next_object_id, before.next_node_epoch)
    assert machine.stream(stream).leader_epoch == 1


def test_one_of_two_topics_that_shared_an_object_and_were_compacted_since() -> None:
    """What the object once held of the other topic must not come back with it, not even when a snapshot is read."""
    machine, (s,) = ready()
    (t,) = machine.create("other")
    machine.open(1, [t])
    a, _ = machine.upload(1, stream_range(s, 0, 10), stream_range(t, 0, 10))
    b, _ = machine.upload(1, stream_range(s, 10, 20), stream_range(t, 10, 20))
    then = machine.state.copy()
    (c,) = machine.ids(1)
    machine.commit(1, new_object(c, stream_range(s, 0, 20), stream_range(t, 0, 20)), sources=[a, b])
    machine.delete("orders")
    machine.restore(then, "orders")
    assert machine.layout(s) == [(0, 10, a), (10, 20, b)]
    assert machine.layout(t) == [(0, 20, c)]
    assert digest(through_a_snapshot(machine.state)) == digest(machine.state)
    machine.delete("orders")
    assert machine.unreferenced() == {a, b}


def test_open_partitions_are_refused_unless_they_are_not_concerned() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    (other,) = machine.create("other")
    machine.open(1, [other])
    then = machine.state.copy()
    machine.upload(1, stream_range(stream, 10, 20))
    machine.delete("other")
    with pytest.raises(
        RestoreRefused, match=r"partitions are open: orders-0 on node 1 \(WAL wal-1\)\. Their brokers may"
    ):
        machine.restore(then)
    machine.restore(then, "other")
    close_all(machine)
    machine.restore(then)


def test_expired_objects_are_refused_and_named() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10))
    then = machine.state.copy()
    machine.delete("orders")
    machine.expire(a)
    with pytest.raises(RestoreRefused, match=f"1 objects that held records then are deleted by now: {a}. Restore to"):
        machine.restore(then)
    assert plan_restore(machine.state.tables, machine.restoring(then)).missing == (a,)


def test_unknown_topics_are_refused() -> None:
    machine, _ = ready()
    with pytest.raises(RestoreRefused, match="at that point there was no topic nonsense"):
        machine.restore(machine.state.copy(), "nonsense")


def test_a_topic_that_is_deleted_after_the_plan_was_made_is_refused() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    then = machine.state.copy()
    command = machine.restoring(then)
    machine.delete("orders")
    machine.last_seen.clear()
    with pytest.raises(RestoreRefused, match="topic orders was deleted just now: look at the plan again"):
        machine.do(command)


def test_what_is_not_what_was_shown_is_refused() -> None:
    machine, (stream,) = ready()
    then = machine.state.copy()
    machine.upload(1, stream_range(stream, 0, 10))
    close_all(machine)
    command = machine.restoring(then)
    shown = plan_restore(machine.state.tables, command)
    machine.open(1, [stream])
    machine.upload(1, stream_range(stream, 10, 20, leader_epoch=1))
    close_all(machine)
    with pytest.raises(RestoreRefused, match="the metadata was changed meanwhile"):
        machine.do(replace(command, expected=shown))
    machine.do(replace(command, expected=plan_restore(machine.state.tables, command)))


def test_a_restore_is_undone_by_a_restore() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    then = machine.state.copy()
    machine.upload(1, stream_range(stream, 10, 20, has_state=True))
    close_all(machine)
    later = machine.state.copy()
    layout = machine.layout(stream)
    machine.restore(then)
    assert machine.layout(stream) == layout[:1]
    machine.open(1, [stream])
    machine.upload(1, stream_range(stream, 20, 25, leader_epoch=1))
    close_all(machine)
    (change,) = machine.restore(later).partitions
    assert (change.regained, change.given_up) == (((10, 20),), ((20, 25),))
    assert machine.layout(stream) == layout
    assert machine.stream(stream).gaps == ((20, 25),)
