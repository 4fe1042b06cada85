"""Which WALs are to be recovered, by whom first, and where their partitions go."""

from __future__ import annotations

import pytest

from controller.errors import NodeRefused
from controller.lost_wals import lost_wals, order, streams_of_dead
from controller.streams import GiveBackWal, RecoverWal
from controller.tables import StreamStatus
from s3stream.metadata import SkipReason, StreamId
from tests.controller.machine import Machine, stream_range


def cluster(nodes: int = 3, partitions: int = 6) -> tuple[Machine, list[StreamId]]:
    """Node 1 has everything open; the others are there."""
    machine = Machine()
    machine.register(1, "wal-1")
    streams = machine.create(partitions=partitions)
    machine.open(1, streams)
    for node_id in range(2, nodes + 1):
        machine.register(node_id, f"wal-{node_id}")
    return machine, streams


def recover(machine: Machine, node_id: int, wal_id: str = "wal-1") -> list[StreamId]:
    command = RecoverWal(node_id=node_id, node_epoch=machine.node_epoch(node_id), wal_id=wal_id)
    return [opened.stream_id for opened in machine.do(command)]


def test_the_wal_of_a_dead_node_is_lost_while_streams_are_open_on_it() -> None:
    machine, streams = cluster()
    machine.suspect(1)
    assert lost_wals(machine.state.tables) == []
    machine.declare_dead(1)
    (lost,) = lost_wals(machine.state.tables)
    assert (lost.wal_id, lost.node_id, lost.recoverer) == ("wal-1", 1, -1)
    assert list(lost.stream_ids) == streams
    assert streams_of_dead(machine.state.tables) == 6
    machine.register(1, "wal-1", wal_epoch=1)
    assert lost_wals(machine.state.tables) == [], "it is there again, and recovers its WAL by itself"


def test_a_dead_node_that_had_nothing_open_has_lost_nothing() -> None:
    machine, _ = cluster()
    machine.kill(2)
    assert lost_wals(machine.state.tables) == []


def test_what_is_recovered_goes_to_all_living_nodes_evenly_and_at_once() -> None:
    """Nobody need decide once more: the close that ends the recovery makes them theirs."""
    machine, streams = cluster(nodes=4, partitions=8)
    machine.kill(4)
    machine.kill(1)
    assert recover(machine, 3) == streams
    states = [machine.stream(stream) for stream in streams]
    assert {state.status for state in states} == {StreamStatus.RECOVERING}
    machine.upload(3, *(stream_range(stream, 0, 10, leader_epoch=1) for stream in streams))
    entries = len(machine.log)
    machine.close(3, dict.fromkeys(streams, 10))
    assert len(machine.log) == entries + 1, "one record"
    assert sorted(state.node_id for state in states) == [2, 2, 2, 2, 3, 3, 3, 3]
    for node_id in (2, 3):
        assert len(machine.open(node_id, streams)) == 4


def test_whoever_has_more_gets_less() -> None:
    machine, streams = cluster(partitions=4)
    others = machine.create("others", partitions=6)
    assert [machine.stream(stream).node_id for stream in others] == [2, 3] * 3
    machine.reassign(dict.fromkeys(others, 3))
    machine.kill(1)
    recover(machine, 3)
    machine.close(3, dict.fromkeys(streams, 0))
    assert {machine.stream(stream).node_id for stream in streams} == {2}


def test_what_was_on_its_way_somewhere_goes_there() -> None:
    machine, streams = cluster(partitions=2)
    machine.reassign(dict.fromkeys(streams, 3))
    machine.kill(1)
    recover(machine, 2)
    machine.close(2, dict.fromkeys(streams, 0))
    assert {machine.stream(stream).node_id for stream in streams} == {3}


def test_one_node_recovers_at_a_time_and_another_goes_on_when_it_dies() -> None:
    machine, streams = cluster()
    machine.kill(1)
    recover(machine, 2)
    assert [lost.recoverer for lost in lost_wals(machine.state.tables)] == [2]
    with pytest.raises(NodeRefused, match="node 2 recovers"):
        recover(machine, 3)
    assert recover(machine, 2) == streams, "it may ask again"
    machine.upload(2, stream_range(streams[0], 0, 10, leader_epoch=2))
    machine.kill(2)
    (lost,) = lost_wals(machine.state.tables)
    assert (lost.wal_id, lost.recoverer) == ("wal-1", -1)
    assert recover(machine, 3) == streams
    assert machine.stream(streams[0]).committed_end_offset == 10, "what was done stays done"
    machine.upload(3, stream_range(streams[0], 10, 20, leader_epoch=3))
    machine.close(3, {streams[0]: 20, **dict.fromkeys(streams[1:], 0)})
    assert lost_wals(machine.state.tables) == []


def give_back(machine: Machine, node_id: int, wal_id: str = "wal-1") -> bool:
    return machine.do(GiveBackWal(node_id=node_id, node_epoch=machine.node_epoch(node_id), wal_id=wal_id))


def test_what_a_node_cannot_recover_it_gives_back_and_another_goes_on() -> None:
    machine, streams = cluster()
    machine.kill(1)
    recover(machine, 2)
    machine.upload(2, stream_range(streams[0], 0, 10, leader_epoch=1))
    machine.close(2, {streams[5]: 0})
    assert not give_back(machine, 3), "it has nothing to give back"
    assert give_back(machine, 2)
    (lost,) = lost_wals(machine.state.tables)
    assert (lost.recoverer, list(lost.stream_ids)) == (-1, streams[:5]), "what was done stays done"
    assert {machine.stream(stream).status for stream in streams[:5]} == {StreamStatus.OPEN}
    _, skipped = machine.upload(2, stream_range(streams[0], 10, 20, leader_epoch=1))
    assert skipped == {streams[0]: SkipReason.FENCED}, "its claim has ended (I4)"
    assert recover(machine, 3) == streams[:5]
    assert not give_back(machine, 2), "it is the other's"
    machine.upload(3, stream_range(streams[0], 10, 20, leader_epoch=3))
    machine.close(3, {streams[0]: 20, **dict.fromkeys(streams[1:5], 0)})
    assert lost_wals(machine.state.tables) == []


def test_a_wal_that_was_given_back_is_its_own_nodes_when_that_comes_back() -> None:
    machine, streams = cluster()
    machine.kill(1)
    recover(machine, 2)
    give_back(machine, 2)
    machine.register(1, "wal-1", wal_epoch=1)
    assert [opened.stream_id for opened in machine.open(1, streams)] == streams
    machine.upload(1, stream_range(streams[0], 0, 10, leader_epoch=3))
    assert not give_back(machine, 2)


def test_the_order_is_the_same_everywhere_and_another_for_each_wal() -> None:
    machine, _ = cluster(nodes=5)
    machine.register(6, "wal-6")
    machine.open(6, machine.create("others"))
    machine.kill(1)
    first = lost_wals(machine.state.tables)[0]
    assert sorted(order(machine.state.tables, first)) == [2, 3, 4, 5, 6]
    assert order(machine.state.copy().tables, first) == order(machine.state.tables, first)
    orders = {
        tuple(order(machine.state.tables, lost_wals(machine.state.tables)[0]))
        for number in range(8)
        if recreated(machine, number)
    }
    assert len(orders) > 1


def recreated(machine: Machine, number: int) -> bool:
    """Node 1 is there with another WAL, and dies again."""
    for stream in [each for each in machine.state.tables.streams.values() if each.wal_id.startswith("wal-1")]:
        recover(machine, 2, stream.wal_id)
        machine.close(2, {stream.stream_id: stream.committed_end_offset})
    machine.register(1, f"wal-1-{number}")
    machine.open(1, machine.create(f"new-{number}"))
    machine.open(1, [each for each, stream in machine.state.tables.streams.items() if stream.node_id == 1])
    machine.kill(1)
    return True
