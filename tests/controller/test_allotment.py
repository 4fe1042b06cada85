"""Node ids that are given out: never twice, never a living node's, and those of nodes that are gone first."""

from __future__ import annotations

import pytest

from controller.commands import check_node
from controller.errors import NodeIdTaken, NodeRefused
from controller.lost_wals import lost_wals
from controller.nodes import LeaveCluster, NodeRegistration, RegisterNode, UnregisterNode
from controller.streams import RecoverWal
from controller.tables import NodeStatus, StreamStatus
from s3stream.errors import NodeFenced
from tests.controller.machine import Machine, stream_range

RESERVED = 1_000
BUCKET = "s3://wals/"


def pod(machine: Machine, uri: str = BUCKET) -> int:
    """A node that has no id starts: it is given one, and registers with the WAL to which that leads."""
    given = machine.allot(reserved_max_id=RESERVED, wal_uri=uri)
    machine.register(given.node_id, f"wal-{given.node_id}", allotted_epoch=given.node_epoch, wal_uri=uri)
    return given.node_id


def test_nodes_that_start_at_the_same_time_get_ids_of_their_own() -> None:
    machine = Machine()
    given = [machine.allot(reserved_max_id=RESERVED, wal_uri=BUCKET) for _ in range(3)]
    assert [each.node_id for each in given] == [1001, 1002, 1003]
    for each in given:
        assert check_node(machine.state.tables, each.node_id, each.node_epoch)
        assert machine.state.tables.node_status(each.node_id) is NodeStatus.ALIVE, "it is heard of from now on"


def test_the_id_of_a_node_that_is_silent_is_not_given_before_it_is_dead() -> None:
    machine = Machine()
    assert [pod(machine) for _ in range(2)] == [1001, 1002]
    machine.suspect(1001)
    assert pod(machine) == 1003
    machine.trust(1001)
    assert pod(machine) == 1004, "it was only slow"
    machine.kill(1001)
    assert pod(machine) == 1001


def test_there_are_no_more_ids_than_nodes_at_a_time() -> None:
    machine = Machine()
    for _ in range(20):
        came = [pod(machine) for _ in range(3)]
        assert came == [1001, 1002, 1003]
        for node_id in came:
            machine.kill(node_id)


def test_a_node_that_stopped_in_order_leaves_its_id_at_once() -> None:
    machine = Machine()
    pod(machine)
    assert machine.do(LeaveCluster(node_id=1001, node_epoch=machine.node_epoch(1001), at_ms=machine.now_ms))
    assert pod(machine) == 1001


def test_who_is_given_an_id_fences_who_had_it_and_recovers_its_wal() -> None:
    machine = Machine()
    pod(machine)
    streams = machine.create(partitions=2)
    machine.open(1001, streams)
    former = machine.node_epoch(1001)
    machine.kill(1001)
    assert [wal.node_id for wal in lost_wals(machine.state.tables)] == [1001]

    given = machine.allot(reserved_max_id=RESERVED, wal_uri=BUCKET)
    assert given.node_id == 1001
    with pytest.raises(NodeFenced, match="registered again"):
        check_node(machine.state.tables, 1001, former)
    assert lost_wals(machine.state.tables) == [], "nobody else need recover it"
    machine.register(7, "wal-7")
    with pytest.raises(NodeRefused, match="node 1001 lives"):
        machine.do(RecoverWal(node_id=7, node_epoch=machine.node_epoch(7), wal_id="wal-1001"))
    with pytest.raises(NodeRefused, match="partitions are open on its former WAL"):
        machine.register(1001, "another", allotted_epoch=given.node_epoch, wal_uri=BUCKET)
    machine.register(1001, "wal-1001", allotted_epoch=given.node_epoch, wal_uri=BUCKET)
    assert [opened.leader_epoch for opened in machine.open(1001, streams)] == [1, 1], "as after a restart"


def test_an_id_that_left_nothing_behind_is_given_first() -> None:
    machine = Machine()
    assert [pod(machine) for _ in range(2)] == [1001, 1002]
    machine.open(1001, machine.create(partitions=1))
    machine.kill(1001)
    machine.kill(1002)
    assert [pod(machine) for _ in range(3)] == [1002, 1001, 1003]


def test_who_recovers_the_wal_of_a_dead_node_is_not_disturbed() -> None:
    machine = Machine()
    assert [pod(machine) for _ in range(2)] == [1001, 1002]
    (stream,) = machine.create(partitions=1)
    machine.open(1001, [stream])
    machine.kill(1001)
    machine.do(RecoverWal(node_id=1002, node_epoch=machine.node_epoch(1002), wal_id="wal-1001"))
    assert machine.stream(stream).status is StreamStatus.RECOVERING
    assert pod(machine) == 1003
    machine.upload(1002, stream_range(stream, 0, 10, leader_epoch=1))
    machine.close(1002, {stream: 10})
    assert pod(machine) == 1001


def test_a_recovery_whose_node_died_too_is_taken_up_by_who_gets_its_id() -> None:
    machine = Machine()
    assert [pod(machine) for _ in range(2)] == [1001, 1002]
    (stream,) = machine.create(partitions=1)
    machine.open(1001, [stream])
    machine.kill(1001)
    machine.do(RecoverWal(node_id=1002, node_epoch=machine.node_epoch(1002), wal_id="wal-1001"))
    machine.kill(1002)
    assert pod(machine) == 1002
    assert [wal.recoverer for wal in lost_wals(machine.state.tables)] == [1002]
    assert pod(machine) == 1003


def test_ids_of_operators_are_left_to_them() -> None:
    """Also where such a node is away, and its WAL is in the same bucket."""
    machine = Machine()
    for node_id in (0, 7, RESERVED):
        machine.register(node_id, f"wal-{node_id}", wal_uri=BUCKET)
    machine.kill(7)
    assert pod(machine) == 1001


def test_an_id_is_given_only_where_its_wal_is_looked_for() -> None:
    machine = Machine()
    assert pod(machine) == 1001
    machine.kill(1001)
    assert pod(machine, "s3://elsewhere/") == 1002
    machine.kill(1002)
    assert pod(machine) == 1001
    machine.register(1003, "on-a-disk")
    machine.kill(1003)
    assert pod(machine) == 1004


def test_a_node_that_was_forgotten_leaves_room() -> None:
    machine = Machine()
    assert [pod(machine) for _ in range(2)] == [1001, 1002]
    machine.kill(1001)
    machine.do(UnregisterNode(node_id=1001))
    assert pod(machine) == 1001


def test_a_node_that_is_drained_is_not_any_more_for_who_comes_next() -> None:
    machine = Machine()
    assert [pod(machine) for _ in range(2)] == [1001, 1002]
    machine.drain(1001)
    machine.kill(1001)
    assert pod(machine) == 1001
    assert 1001 not in machine.state.tables.drained


def test_who_died_before_it_had_a_wal_leaves_an_id_that_leads_to_none() -> None:
    machine = Machine()
    machine.allot(reserved_max_id=RESERVED, wal_uri=BUCKET)
    machine.kill(1001)

    assert lost_wals(machine.state.tables) == []
    assert pod(machine) == 1001


def test_who_slept_between_the_gift_and_its_registration_takes_it_from_nobody() -> None:
    """It opened the WAL at the same epoch as the other, so nothing else would tell them apart before the WAL is fenced."""
    machine = Machine()
    slept = machine.allot(reserved_max_id=RESERVED, wal_uri=BUCKET)
    machine.now_ms += 6_000
    machine.kill(1001)
    assert pod(machine) == 1001
    serving = machine.node_epoch(1001)
    machine.now_ms += 1
    with pytest.raises(NodeIdTaken, match="is another's now: start again"):
        machine.register(1001, "wal-1001", allotted_epoch=slept.node_epoch, wal_uri=BUCKET)
    assert machine.node_epoch(1001) == serving
    machine.kill(1001)
    machine.do(UnregisterNode(node_id=1001))
    with pytest.raises(NodeIdTaken, match="is another's now: start again"):
        machine.register(1001, "wal-1001", allotted_epoch=slept.node_epoch, wal_uri=BUCKET)


def test_who_slept_and_finds_its_id_untouched_has_it() -> None:
    machine = Machine()
    given = machine.allot(reserved_max_id=RESERVED, wal_uri=BUCKET)
    machine.kill(1001)
    machine.register(1001, "wal-1001", allotted_epoch=given.node_epoch, wal_uri=BUCKET)
    assert machine.state.tables.node_status(1001) is NodeStatus.ALIVE


def test_a_registration_whose_answer_was_lost_is_given_again() -> None:
    machine = Machine()
    given = machine.allot(reserved_max_id=RESERVED, wal_uri=BUCKET)
    command = RegisterNode(
        node_id=1001,
        wal_id="wal-1001",
        allotted_epoch=given.node_epoch,
        address="PLAINTEXT://pod:9092",
        controller_address="pod:9093",
        at_ms=machine.now_ms,
    )
    first = machine.do(command)
    entries = len(machine.log)
    assert machine.do(command) == first == NodeRegistration(node_id=1001, node_epoch=given.node_epoch + 1)
    assert len(machine.log) == entries


def test_an_old_metadata_version_knows_of_no_dead_nodes() -> None:
    machine = Machine()
    machine.state.tables.metadata_version = 3
    with pytest.raises(NodeRefused, match="metadata version 3 is in force"):
        machine.allot()
