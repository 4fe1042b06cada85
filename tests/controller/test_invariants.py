"""Each invariant finds what it is there for: the state is broken on purpose, and the right name is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controller.errors import InvariantViolated
from controller.invariants import check_all
from controller.records import (
    NodeDead,
    NodeSuspected,
    NodeTrusted,
    ObjectCommitted,
    ObjectIdsAllocated,
    ObjectsExpired,
    Range,
    Record,
    StreamsOpened,
    StreamsRecovering,
    StreamsTrimmed,
)
from controller.tables import NodeHealth, NodeStatus, StreamStatus, Tables
from tests.controller.machine import Machine, ready, stream_range


def built() -> Machine:
    """Stream 1 is open under leader epoch 1, holds 0 to 20 in objects 1 and 2, and begins at 5; id 3 is free."""
    machine, (stream,) = ready()
    machine.open(1, [stream])
    machine.register(2, "wal-2")
    for base in (0, 10):
        machine.upload(1, stream_range(stream, base, base + 10, leader_epoch=1))
    machine.trim(1, {stream: 5})
    machine.ids(1)
    machine.register(3, "wal-3")
    machine.suspect(3)
    machine.declare_dead(3)
    return machine


DEAD_EPOCH = 3
"""Of node 3, which is dead."""


def upload(object_id: int, base_offset: int, end_offset: int) -> ObjectCommitted:
    accepted = Range.of(stream_range(1, base_offset, end_offset, leader_epoch=1))
    return ObjectCommitted(object_id=object_id, size_bytes=1, ranges=(accepted,), skipped=(), committed_at_ms=0)


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (upload(3, 25, 30), "ranges_are_contiguous"),
        (upload(3, 15, 30), "ranges_are_contiguous"),
        (upload(3, 10, 15), "offsets_never_go_back"),
        (upload(9, 20, 30), "object_is_in_one_place"),
        (StreamsTrimmed(log_start_offsets=((1, 21),), trimmed_at_ms=0), "log_start_is_within_committed"),
        (StreamsTrimmed(log_start_offsets=((1, 4),), trimmed_at_ms=0), "offsets_never_go_back"),
        (StreamsOpened(node_id=1, wal_id="wal-1", streams=((1, 0),)), "holder_changes_with_a_new_epoch"),
        (StreamsRecovering(node_id=2, wal_id="wal-1", streams=((1, 1),)), "holder_changes_with_a_new_epoch"),
        (StreamsOpened(node_id=2, wal_id="wal-2", streams=((1, 2),)), "open_is_left_in_order"),
        (StreamsOpened(node_id=2, wal_id="wal-1", streams=((1, 2),)), "open_is_left_in_order"),
        (StreamsOpened(node_id=1, wal_id="", streams=((1, 2),)), "open_is_left_in_order"),
        (ObjectsExpired(object_ids=(1,)), "object_is_in_one_place"),
        (ObjectIdsAllocated(node_id=1, end_object_id=2), "ids_only_grow"),
        (NodeDead(node_id=1, node_epoch=1, at_ms=0), "dead_is_suspected_first_and_for_good"),
        (NodeTrusted(node_id=3, node_epoch=DEAD_EPOCH), "dead_is_suspected_first_and_for_good"),
        (NodeSuspected(node_id=3, node_epoch=DEAD_EPOCH, at_ms=0), "dead_is_suspected_first_and_for_good"),
    ],
)
def test_a_record_that_breaks_an_invariant_is_found(record: Record, name: str) -> None:
    with pytest.raises(InvariantViolated, match=f"^{name}:"):
        built().state.check_and_apply(record)


def drop_a_range(tables: Tables) -> None:
    del tables.streams[1].ranges[0], tables.streams[1].object_ids[0]


def keep_a_dead_range(tables: Tables) -> None:
    tables.streams[1].log_start_offset = 12


def lose_an_object(tables: Tables) -> None:
    del tables.objects[2]


def miscount(tables: Tables) -> None:
    tables.live_counts[2] += 1


def close_and_keep_the_wal(tables: Tables) -> None:
    tables.streams[1].status = StreamStatus.CLOSED


def lose_the_topic(tables: Tables) -> None:
    tables.topics.clear()


def rename(tables: Tables) -> None:
    next(iter(tables.topics.values())).name = "other"


def reference_twice(tables: Tables) -> None:
    tables.gone.add(2)


def suspect_a_stranger(tables: Tables) -> None:
    tables.node_health[9] = NodeHealth(status=NodeStatus.SUSPECT, since_ms=0)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (drop_a_range, "ranges_are_contiguous"),
        (keep_a_dead_range, "ranges_are_contiguous"),
        (lose_an_object, "ranges_are_in_referenced_objects"),
        (miscount, "live_counts_are_exact"),
        (close_and_keep_the_wal, "closed_streams_have_no_wal"),
        (lose_the_topic, "streams_belong_to_topics"),
        (rename, "topic_names_are_unique"),
        (reference_twice, "object_is_in_one_place"),
        (suspect_a_stranger, "only_registered_nodes_are_suspected"),
    ],
)
def test_damage_anywhere_is_found_by_the_full_check(damage: Callable[[Tables], None], name: str) -> None:
    machine = built()
    check_all(machine.state.tables)
    damage(machine.state.tables)
    with pytest.raises(InvariantViolated, match=f"^{name}:"):
        check_all(machine.state.tables)
