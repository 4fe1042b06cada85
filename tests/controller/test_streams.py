"""Streams: one holder at a time, epochs and offsets that only grow, and retention that keeps what the state needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.errors import NodeRefused, StreamNotDrained, UnknownNode
from controller.records import StreamsClosed, StreamsOpened
from controller.streams import AbandonWal, OpenStreams, RecoverWal
from controller.tables import StreamStatus
from s3stream.errors import NodeFenced
from s3stream.metadata import OpenedStream, SkipReason, StreamId
from tests.controller.machine import Machine, ready, stream_range


def test_a_partition_is_first_opened_under_leader_epoch_0() -> None:
    machine = Machine()
    machine.register()
    (stream,) = machine.create()
    assert machine.open(1, [stream, stream, 999]) == (
        OpenedStream(stream_id=stream, leader_epoch=0, log_start_offset=0, committed_end_offset=0),
    )


def test_a_batch_of_opens_or_closes_is_one_record() -> None:
    machine = Machine()
    machine.register()
    streams = machine.create(partitions=3)
    machine.open(1, streams)
    assert machine.log[-1] == StreamsOpened(node_id=1, wal_id="wal-1", streams=tuple((s, 0) for s in streams))
    machine.close(1, dict.fromkeys(streams, 0))
    assert machine.log[-1] == StreamsClosed(stream_ids=tuple(streams))


def test_a_stream_that_another_node_holds_is_left_out() -> None:
    machine, (stream,) = ready()
    machine.register(2, "wal-2")
    assert machine.open(2, [stream]) == ()
    machine.close(1, {stream: 0})
    assert machine.open(2, [stream]) == (), "it is node 1's to open again"
    machine.reassign({stream: 2})
    assert machine.open(1, [stream]) == ()
    assert [opened.leader_epoch for opened in machine.open(2, [stream])] == [1]
    _, skipped = machine.upload(1, stream_range(stream, 0, 10))
    assert skipped == {stream: SkipReason.FENCED}


def test_a_stream_moves_when_its_holder_has_closed_it() -> None:
    machine, (stream,) = ready()
    machine.register(2, "wal-2")
    machine.upload(1, stream_range(stream, 0, 10))
    machine.reassign({stream: 2, 999: 2})
    state = machine.state.tables.streams[stream]
    assert (state.node_id, state.target_node_id, state.status) == (1, 2, StreamStatus.OPEN)
    assert machine.upload(1, stream_range(stream, 10, 20))[1] == {}, "it is served as before"
    assert machine.open(2, [stream]) == ()
    machine.close(1, {stream: 20})
    assert (state.node_id, state.target_node_id) == (2, -1)
    (opened,) = machine.open(2, [stream])
    assert (opened.leader_epoch, opened.committed_end_offset) == (1, 20)


def test_a_reassignment_can_be_ended_and_changed() -> None:
    machine, (stream,) = ready()
    machine.register(2, "wal-2")
    machine.register(3, "wal-3")
    state = machine.state.tables.streams[stream]
    machine.reassign({stream: 2})
    machine.reassign({stream: 3})
    assert state.target_node_id == 3
    machine.reassign({stream: -1})
    assert state.target_node_id == -1
    machine.reassign({stream: 2})
    machine.reassign({stream: 1})
    assert state.target_node_id == -1, "to stay where it is ends it as well"
    entries = len(machine.log)
    machine.reassign({stream: 1})
    machine.reassign({stream: -1})
    assert len(machine.log) == entries, "nothing to write"
    with pytest.raises(UnknownNode, match="node 9"):
        machine.reassign({stream: 9})


def test_a_lost_wal_given_up_lets_its_streams_go_where_they_were_to_go() -> None:
    machine, (stream,) = ready()
    machine.register(2, "wal-2")
    machine.reassign({stream: 2})
    machine.do(AbandonWal(wal_id="wal-1", slack_offsets=5, at_ms=machine.now_ms))
    assert [opened.stream_id for opened in machine.open(2, [stream])] == [stream]


def test_a_superseded_registration_opens_nothing() -> None:
    machine, (stream,) = ready()
    stale = machine.node_epoch(1)
    machine.register()
    with pytest.raises(NodeFenced):
        machine.do(OpenStreams(node_id=1, node_epoch=stale, stream_ids=(stream,)))


def test_a_stream_is_closed_only_when_objects_hold_all_of_it() -> None:
    machine, streams = ready(partitions=2)
    machine.upload(1, stream_range(streams[0], 0, 10))
    with pytest.raises(StreamNotDrained, match="committed up to 10, not 12"):
        machine.close(1, {streams[1]: 0, streams[0]: 12})
    assert machine.stream(streams[1]).status is StreamStatus.OPEN
    machine.close(1, {streams[1]: 0, streams[0]: 10})
    machine.close(1, {streams[1]: 0, streams[0]: 99, 999: 5})  # held no more: nothing to do
    assert {machine.stream(stream).status for stream in streams} == {StreamStatus.CLOSED}


def test_a_close_that_comes_again_leaves_alone_what_was_opened_since() -> None:
    """Its answer was lost, or it was long on its way, and its sender has the stream open again under the next leader epoch."""
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    close = machine.closing(1, {stream: 10})
    machine.do(close)
    (opened,) = machine.open(1, [stream])
    entries = len(machine.log)
    machine.do(close)
    assert len(machine.log) == entries
    assert machine.stream(stream).status is StreamStatus.OPEN
    assert machine.upload(1, stream_range(stream, 10, 20, leader_epoch=opened.leader_epoch))[1] == {}
    machine.do(close)
    assert machine.stream(stream).status is StreamStatus.OPEN, "also where its end is another one by now"


def test_an_open_that_comes_again_opens_nothing_anew() -> None:
    """Else what its sender acknowledges under the first answer could be committed no more, and would be lost."""
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    machine.register(1, "wal-1", wal_epoch=1)
    open_ = machine.opening(1, [stream])
    (opened,) = machine.do(open_)
    entries = len(machine.log)
    assert machine.do(open_) == (opened,), "its answer was lost"
    assert len(machine.log) == entries
    assert machine.upload(1, stream_range(stream, 10, 20, leader_epoch=opened.leader_epoch))[1] == {}
    machine.close(1, {stream: 20})
    assert machine.do(open_) == (), "late: it is closed by now"
    (next_opened,) = machine.open(1, [stream])
    assert next_opened.leader_epoch == opened.leader_epoch + 1
    assert machine.do(open_) == (), "late: it went on since"
    assert machine.stream(stream).leader_epoch == next_opened.leader_epoch


def test_an_open_that_comes_again_tells_what_of_the_wal_counts() -> None:
    machine = Machine()
    machine.register()
    (stream,) = machine.create()
    machine.open(1, [stream])
    machine.close(1, {stream: 0})
    first = machine.opening(1, [stream])
    (opened,) = machine.do(first)
    assert opened.least_leader_epoch == opened.leader_epoch == 1, "it was closed: nothing earlier counts"
    assert machine.do(first) == (opened,)
    machine.register(1, "wal-1", wal_epoch=1)
    second = machine.opening(1, [stream])
    (again,) = machine.do(second)
    assert (again.leader_epoch, again.least_leader_epoch) == (2, 1)
    assert machine.do(second) == (again,)


def test_a_recovery_that_comes_again_takes_nothing_over_anew() -> None:
    """Else what its sender recovers could be committed no more, and its partitions were said to be damaged."""
    machine, (stream,) = ready()
    machine.register(2, "wal-2")
    machine.kill(1)
    recover = machine.recovering(2, "wal-1")
    (recovering,) = machine.do(recover)
    entries = len(machine.log)
    assert machine.do(recover) == (recovering,)
    assert len(machine.log) == entries
    (again,) = machine.do(machine.recovering(2, "wal-1"))
    assert again.leader_epoch == recovering.leader_epoch + 1, "it begins anew, and knows the first attempt"
    with pytest.raises(NodeRefused, match="look again what WAL wal-1 holds"):
        machine.do(recover)
    assert machine.upload(2, stream_range(stream, 0, 10, leader_epoch=again.leader_epoch))[1] == {}


def test_nodes_of_an_older_version_name_no_epochs_and_each_command_opens_anew() -> None:
    machine, (stream,) = ready()
    known = machine.stream(stream).leader_epoch
    for more in (1, 2):
        (opened,) = machine.do(replace(machine.opening(1, [stream]), leader_epochs={}))
        assert opened.leader_epoch == known + more
    machine.register(2, "wal-2")
    machine.kill(1)
    for more in (3, 4):
        (opened,) = machine.do(replace(machine.recovering(2, "wal-1"), leader_epochs={}))
        assert opened.leader_epoch == known + more


def test_a_close_by_a_node_of_an_older_version_names_no_epochs() -> None:
    machine, (stream,) = ready()
    machine.do(replace(machine.closing(1, {stream: 0}), leader_epochs={}))
    assert machine.stream(stream).status is StreamStatus.CLOSED


def test_retention_drops_whole_ranges_and_unreferences_their_objects() -> None:
    machine, (stream,) = ready()
    objects = [machine.upload(1, stream_range(stream, base, base + 10))[0] for base in (0, 10, 20)]
    machine.trim(1, {stream: 15, 999: 1})
    assert machine.layout(stream) == [(10, 20, objects[1]), (20, 30, objects[2])]
    assert machine.unreferenced() == {objects[0]}
    machine.trim(1, {stream: 15})
    machine.trim(1, {stream: 5})
    assert machine.stream(stream).log_start_offset == 15


def test_a_trim_goes_at_most_to_the_committed_end() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    machine.trim(1, {stream: 12})
    assert (machine.stream(stream).log_start_offset, machine.layout(stream)) == (10, [])
    machine.upload(1, stream_range(stream, 10, 20))
    machine.trim(1, {stream: 12})
    assert machine.stream(stream).log_start_offset == 12


def test_a_node_trims_only_what_it_holds() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    machine.register(2, "wal-2")
    machine.trim(2, {stream: 10})
    assert machine.stream(stream).log_start_offset == 0


def test_the_newest_state_outlives_its_data_until_a_newer_one_is_committed() -> None:
    machine, (stream,) = ready()
    older, _ = machine.upload(1, stream_range(stream, 0, 10, has_state=True))
    newest, _ = machine.upload(1, stream_range(stream, 10, 20, has_state=True))
    last, _ = machine.upload(1, stream_range(stream, 20, 30))
    machine.trim(1, {stream: 30})
    assert machine.layout(stream) == []
    assert machine.referenced() == {newest}
    assert machine.unreferenced() == {older, last}
    state = machine.stream(stream).newest_state
    assert state is not None
    assert (state[0], state[1].end_offset) == (newest, 20)

    newer, _ = machine.upload(1, stream_range(stream, 30, 40, has_state=True))
    assert machine.referenced() == {newer}


def test_a_stream_says_where_an_offset_is() -> None:
    machine, (stream,) = ready()
    for base in (0, 10, 20):
        machine.upload(1, stream_range(stream, base, base + 10))
    found = machine.stream(StreamId(stream))
    assert [found.index_of(offset) for offset in (0, 9, 10, 29, 30)] == [0, 0, 1, 2, 3]


def test_the_node_of_a_wal_takes_back_what_another_recovers_of_it() -> None:
    """I4: it came back before the other was done. What the other has committed stays; what it has not is refused from then on."""
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 100))
    machine.register(2, "wal-2")
    machine.kill(1)
    (recovering,) = machine.do(RecoverWal(node_id=2, node_epoch=machine.node_epoch(2), wal_id="wal-1"))
    machine.upload(2, stream_range(stream, 100, 120, leader_epoch=recovering.leader_epoch))
    machine.register(1, "wal-1", wal_epoch=1)
    with pytest.raises(NodeRefused, match="node 1 lives"):
        machine.do(RecoverWal(node_id=2, node_epoch=machine.node_epoch(2), wal_id="wal-1"))
    (opened,) = machine.open(1, [stream])
    assert (opened.leader_epoch, opened.committed_end_offset, opened.least_leader_epoch) == (2, 120, 0)
    _, skipped = machine.upload(2, stream_range(stream, 120, 130, leader_epoch=recovering.leader_epoch))
    assert skipped == {stream: SkipReason.FENCED}
    machine.close(2, {stream: 120})
    assert machine.stream(stream).status is StreamStatus.OPEN, "it is not node 2's to close any more"


def test_what_a_wal_holds_of_earlier_times_counts_for_nothing() -> None:
    """I11: an append that was never acknowledged may reach the disk late, behind what was recovered; the stream then goes on elsewhere, comes
    back, and the old WAL is still there."""
    machine, (stream,) = ready()
    machine.register(2, "wal-2")
    machine.kill(1)
    (recovering,) = machine.do(RecoverWal(node_id=2, node_epoch=machine.node_epoch(2), wal_id="wal-1"))
    assert recovering.least_leader_epoch == 0, "all of it"
    machine.close(2, {stream: 0})
    (elsewhere,) = machine.open(2, [stream])
    machine.upload(2, stream_range(stream, 0, 10, leader_epoch=elsewhere.leader_epoch))
    machine.register(1, "wal-1", wal_epoch=1)
    machine.reassign({stream: 1})
    machine.close(2, {stream: 10})
    (back,) = machine.open(1, [stream])
    assert back.least_leader_epoch == back.leader_epoch == 3
    machine.register(1, "wal-1", wal_epoch=2)  # crashed: what it appended since is good
    (again,) = machine.open(1, [stream])
    assert (again.leader_epoch, again.least_leader_epoch) == (4, 3)
