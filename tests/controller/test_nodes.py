"""Registration: a node is trusted with the WAL that its partitions are open on, and with no other."""

from __future__ import annotations

import pytest

from controller.commands import check_node
from controller.errors import ConfigsChanged, NodeRefused, NoNodes, UnknownNode
from controller.image import Image
from controller.nodes import (
    ConfigureBroker,
    DeclareDead,
    DescribeNode,
    DrainNode,
    LeaveCluster,
    RaiseMetadataVersion,
    RegisterNode,
    UnregisterNode,
)
from controller.records import ALL_NODES
from controller.snapshot import capture, encode, restore
from controller.streams import AbandonWal, RecoverWal
from controller.tables import NodeStatus, StreamStatus
from s3stream.errors import NodeFenced
from tests.controller.machine import Machine, ready, stream_range


def test_each_registration_has_a_higher_node_epoch_and_fences_the_one_before() -> None:
    machine = Machine()
    first = machine.register(1, "wal-1")
    second = machine.register(2, "wal-2")
    again = machine.register(1, "wal-1")
    assert first < second < again
    assert check_node(machine.state.tables, 1, again) == "wal-1"
    with pytest.raises(NodeFenced, match="registered again"):
        check_node(machine.state.tables, 1, first)
    with pytest.raises(NodeFenced, match="not registered"):
        check_node(machine.state.tables, 3, again)


def test_a_new_disk_is_refused_while_the_former_one_holds_open_partitions() -> None:
    machine, (stream,) = ready()
    with pytest.raises(NodeRefused, match=r"1 partitions are open on its former WAL wal-1.*abandon"):
        machine.register(1, "wal-new")
    machine.close(1, {stream: 0})
    machine.register(1, "wal-new")
    assert machine.open(1, [stream])[0].leader_epoch == 1


def test_an_older_copy_of_the_disk_is_refused() -> None:
    machine = Machine()
    machine.register(1, "wal-1", wal_epoch=7)
    with pytest.raises(NodeRefused, match="older copy of the disk"):
        machine.register(1, "wal-1", wal_epoch=6)
    machine.register(1, "wal-1", wal_epoch=7)  # crashed before recovery raised it
    machine.register(1, "wal-1", wal_epoch=8)


def test_a_copy_of_the_disk_from_before_its_recovery_is_refused() -> None:
    machine = Machine()
    node_epoch = machine.register(1, "wal-1", wal_epoch=7)
    told = DescribeNode(node_id=1, node_epoch=node_epoch, lease_ms=3_000, controller_address="", wal_epoch=8)
    machine.do(told)
    with pytest.raises(NodeRefused, match="older copy of the disk"):
        machine.register(1, "wal-1", wal_epoch=7)
    machine.register(1, "wal-1", wal_epoch=8)
    with pytest.raises(NodeFenced):
        machine.do(told)


def test_a_wal_belongs_to_one_node() -> None:
    machine = Machine()
    machine.register(1, "wal-1")
    with pytest.raises(NodeRefused, match="registered by node 1"):
        machine.register(2, "wal-1")


def test_a_node_that_leads_nothing_can_be_removed() -> None:
    machine, (stream,) = ready()
    with pytest.raises(NodeRefused, match="runs, as far as the cluster knows: stop it first"):
        machine.do(UnregisterNode(node_id=1))
    machine.kill(1)
    with pytest.raises(NodeRefused, match=r"has 1 partitions open, .* `tidelog wal abandon wal-1`"):
        machine.do(UnregisterNode(node_id=1))
    machine.register(1, "wal-1", wal_epoch=1)
    machine.close(1, {stream: 0})
    machine.kill(1)
    with pytest.raises(NodeRefused, match="is to open 1 partitions"):
        machine.do(UnregisterNode(node_id=1))
    machine.register(2, "wal-2")
    machine.reassign({stream: 2})
    machine.do(UnregisterNode(node_id=1))
    machine.do(UnregisterNode(node_id=1))
    assert set(machine.state.tables.nodes) == {2}


def test_a_restarted_node_opens_its_partitions_again_and_uploads_the_tail_under_the_new_epoch() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 100))
    machine.register(1, "wal-1", wal_epoch=1)  # crashed; its WAL holds offsets 100 to 120
    (opened,) = machine.open(1, [stream])
    assert (opened.leader_epoch, opened.committed_end_offset) == (1, 100)
    _, skipped = machine.upload(1, stream_range(stream, 100, 120, leader_epoch=1))
    assert not skipped
    assert machine.stream(stream).committed_end_offset == 120


def test_another_node_takes_over_a_fenced_wal_then_closes_what_it_recovered() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 100))
    machine.register(2, "wal-2")
    assert machine.open(2, [stream]) == ()

    command = RecoverWal(node_id=2, node_epoch=machine.node_epoch(2), wal_id="wal-1")
    with pytest.raises(NodeRefused, match="node 1 lives"):
        machine.do(command)
    machine.kill(1)
    (recovering,) = machine.do(command)
    assert (recovering.leader_epoch, recovering.committed_end_offset) == (1, 100)
    assert machine.stream(stream).status is StreamStatus.RECOVERING
    with pytest.raises(NodeRefused, match="former WAL wal-1"):
        machine.register(1, "wal-new")

    machine.upload(2, stream_range(stream, 100, 120, leader_epoch=1))
    machine.close(2, {stream: 120})
    (opened,) = machine.open(2, [stream])
    assert (opened.leader_epoch, opened.committed_end_offset) == (2, 120)
    assert machine.do(command) == ()


def test_a_node_opens_its_own_streams_instead_of_recovering_them() -> None:
    machine, _ = ready()
    with pytest.raises(NodeRefused, match="this node's own"):
        machine.do(RecoverWal(node_id=1, node_epoch=machine.node_epoch(1), wal_id="wal-1"))


def test_abandoning_a_lost_wal_leaves_a_recorded_gap_past_everything_that_was_acknowledged() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 100))
    gaps = machine.do(AbandonWal(wal_id="wal-1", slack_offsets=1_000, at_ms=machine.now_ms))
    assert gaps == {stream: (100, 1_100)}
    machine.register(1, "wal-new")
    (opened,) = machine.open(1, [stream])
    assert opened.committed_end_offset == 1_100
    machine.upload(1, stream_range(stream, 1_100, 1_200, leader_epoch=1))
    assert [(base, end) for base, end, _ in machine.layout(stream)] == [(0, 100), (1_100, 1_200)]
    assert machine.stream(stream).index_of(500) == 1
    machine.trim(1, {stream: 600})
    assert machine.layout(stream)[0][0] == 1_100
    with pytest.raises(NodeRefused, match="nothing to abandon"):
        machine.do(AbandonWal(wal_id="wal-1", slack_offsets=1_000, at_ms=machine.now_ms))


def test_what_is_open_on_a_wal_that_was_set_aside_stays_so_until_it_is_recovered() -> None:
    """I1: the node goes on with another WAL, and cannot open there what may have lost records in the first."""
    machine, (sound, hurt) = ready(2)
    machine.do(RegisterNode(node_id=1, wal_id="wal-2", set_aside=("wal-1",), at_ms=machine.now_ms))
    assert machine.open(1, [sound, hurt]) == ()
    taken = machine.do(RecoverWal(node_id=1, node_epoch=machine.node_epoch(1), wal_id="wal-1"))
    assert [opened.stream_id for opened in taken] == [sound, hurt]
    machine.close(1, {sound: 0})
    assert [opened.stream_id for opened in machine.open(1, [sound, hurt])] == [sound]
    assert machine.stream(hurt).wal_id == "wal-1"
    machine.register(1, "wal-2")  # nothing forgets it
    assert machine.open(1, [hurt]) == ()


def test_giving_up_a_part_of_a_wal_keeps_what_comes_behind_it() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 100))
    machine.do(RegisterNode(node_id=1, wal_id="wal-2", set_aside=("wal-1",), at_ms=machine.now_ms))
    given_up = AbandonWal(
        wal_id="wal-1",
        slack_offsets=1_000,
        resume_offsets={stream: 120},
        kept=frozenset({stream}),
        at_ms=machine.now_ms,
    )
    assert machine.do(given_up) == {stream: (100, 120)}
    assert machine.open(1, [stream]) == (), "its rest is in wal-1"
    (taken,) = machine.do(RecoverWal(node_id=1, node_epoch=machine.node_epoch(1), wal_id="wal-1"))
    assert (taken.committed_end_offset, taken.gaps) == (120, ((100, 120),))
    machine.upload(1, stream_range(stream, 120, 150, leader_epoch=taken.leader_epoch))
    machine.close(1, {stream: 150})
    assert machine.open(1, [stream])[0].committed_end_offset == 150


def test_altered_settings_of_a_node_and_of_all() -> None:
    machine = Machine()
    machine.do(ConfigureBroker(node_id=ALL_NODES, changes={"num.partitions": "3", "log.retention.ms": "5"}))
    machine.do(ConfigureBroker(node_id=1, changes={"num.partitions": "4"}))
    image = Image(machine.state)
    assert image.broker_configs() == {"num.partitions": "3", "log.retention.ms": "5"}
    assert image.broker_configs(1) == {"num.partitions": "4"}
    assert image.broker_configs(2) == {}

    written = len(machine.log)
    machine.do(ConfigureBroker(node_id=1, changes={"num.partitions": "4", "log.retention.ms": None}))
    assert len(machine.log) == written, "what changes nothing is not written"
    with pytest.raises(ConfigsChanged):
        machine.do(ConfigureBroker(node_id=1, changes={"num.partitions": "5"}, expected={}))
    machine.do(ConfigureBroker(node_id=1, changes={"num.partitions": None}, expected={"num.partitions": "4"}))
    assert 1 not in machine.state.tables.broker_configs, "a node without altered settings takes no room"


def test_what_only_a_newer_version_understands_is_told_by_the_snapshot() -> None:
    machine = Machine()
    machine.state.tables.metadata_version = 1  # formatted by the version before
    machine.do(ConfigureBroker(node_id=7, changes={"num.partitions": "4"}))
    (restored,) = [
        found[0]
        for found in restore(b"".join(encode(capture(machine.state, 5))), where="the test")
        if found is not None
    ]
    assert restored.tables.broker_configs == {7: {"num.partitions": "4"}}
    assert restored.tables.metadata_version == 2


def test_a_node_is_suspected_before_it_is_dead_and_then_its_commands_are_refused() -> None:
    machine, (stream,) = ready()
    assert not machine.declare_dead(1), "nobody suspected it"
    assert machine.suspect(1)
    assert machine.suspect(1), "once is enough"
    assert Image(machine.state).node(1).status is NodeStatus.SUSPECT  # type: ignore[union-attr]
    machine.upload(1, stream_range(stream, 0, 10))  # what it acknowledged is as good as ever
    machine.now_ms += 3_500
    assert machine.declare_dead(1)
    assert machine.declare_dead(1), "also to who asks again, since the answer was lost"
    assert Image(machine.state).node_status(1) is NodeStatus.DEAD
    with pytest.raises(NodeFenced, match="taken for dead"):
        machine.open(1, [stream])
    machine.trust(1)
    assert not machine.suspect(1)
    assert machine.state.tables.node_status(1) is NodeStatus.DEAD, "for good"
    machine.register(1)
    assert machine.state.tables.node_status(1) is NodeStatus.ALIVE
    assert machine.open(1, [stream])


def test_a_suspicion_is_withdrawn_when_the_node_is_heard_from() -> None:
    machine, (stream,) = ready()
    machine.suspect(1)
    machine.trust(1)
    assert not machine.state.tables.node_health
    assert not machine.declare_dead(1), "it takes a new suspicion"
    machine.open(1, [stream])


def test_what_is_said_of_an_earlier_registration_is_of_no_account() -> None:
    machine, _ = ready()
    former = machine.node_epoch(1)
    machine.suspect(1)
    machine.register(1)
    assert not machine.state.tables.node_health, "it is there again"
    assert not machine.suspect(1, former)
    machine.suspect(1)
    assert not machine.declare_dead(1, former)
    assert machine.state.tables.node_status(1) is NodeStatus.SUSPECT


def test_a_node_without_a_lease_is_never_suspected() -> None:
    machine = Machine()
    machine.register(1, "wal-1", lease_ms=0)
    assert not machine.suspect(1)
    assert not machine.state.tables.node_health


def test_a_node_that_stops_in_order_is_dead_at_once() -> None:
    machine, (stream,) = ready()
    leaving = LeaveCluster(node_id=1, node_epoch=machine.node_epoch(1), at_ms=machine.now_ms)
    assert not machine.do(leaving), "it has a partition open"
    machine.close(1, {stream: 0})
    assert machine.do(leaving)
    assert machine.state.tables.node_status(1) is NodeStatus.DEAD
    machine.register(1)
    machine.suspect(1)
    assert machine.do(LeaveCluster(node_id=1, node_epoch=machine.node_epoch(1), at_ms=machine.now_ms))


def test_new_partitions_go_to_nodes_that_are_alive() -> None:
    machine = Machine()
    for node_id in (1, 2, 3):
        machine.register(node_id, f"wal-{node_id}")
    machine.suspect(2)
    machine.suspect(3)
    machine.declare_dead(3)
    assert {machine.stream(stream).node_id for stream in machine.create("one", 4)} == {1}
    machine.suspect(1)
    assert {machine.stream(stream).node_id for stream in machine.create("two", 6)} == {1, 2}
    for node_id in (1, 2):
        machine.declare_dead(node_id)
    with pytest.raises(NoNodes):
        machine.create("three")


def test_nobody_is_suspected_before_all_nodes_understand_it() -> None:
    machine = Machine()
    machine.state.tables.metadata_version = 3  # formatted by the version before
    machine.register()
    assert machine.state.tables.nodes[1].lease_ms == 0, "as nodes of that version have it"
    described = DescribeNode(
        node_id=1, node_epoch=machine.node_epoch(1), lease_ms=3_000, controller_address="here:9094"
    )
    machine.do(described)
    assert not machine.suspect(1)
    assert not machine.do(LeaveCluster(node_id=1, node_epoch=machine.node_epoch(1), at_ms=machine.now_ms))
    assert machine.state.tables.metadata_version == 3
    machine.do(RaiseMetadataVersion(metadata_version=4))
    assert machine.state.tables.metadata_version == 4
    assert not machine.suspect(1), "whether it takes a lease is not known yet"
    machine.do(described)
    assert machine.node_epoch(1) == described.node_epoch
    assert machine.state.tables.nodes[1].controller_address == "here:9094"
    assert machine.suspect(1)
    machine.do(RaiseMetadataVersion(metadata_version=3))
    assert machine.state.tables.metadata_version == 4, "there is no way back"


def test_a_drained_node_gets_no_partitions_until_that_is_taken_back_or_it_registers_anew() -> None:
    machine, streams = ready(partitions=3)
    machine.register(2, "wal-2")
    machine.drain(1)
    machine.drain(1)
    made = machine.create("other", partitions=2)
    assert {machine.stream(stream).node_id for stream in made} == {2}
    with pytest.raises(UnknownNode, match=r"node 1 is drained.*--cancel 1"):
        machine.reassign({made[0]: 1})
    machine.reassign({streams[0]: 2, streams[1]: 2})
    machine.close(1, {streams[0]: 0})
    machine.drain(1, is_drained=False)
    assert [machine.stream(stream).node_id for stream in streams] == [2, 1, 1]
    assert machine.stream(streams[1]).target_node_id == -1, "what was on its way stays, what is gone is gone"
    machine.drain(1)
    described = DescribeNode(node_id=1, node_epoch=machine.node_epoch(1), lease_ms=1_000, controller_address="here:1")
    machine.do(described)
    assert 1 in machine.state.tables.drained
    machine.register(1, "wal-1")
    machine.reassign({made[0]: 1})


def test_a_drained_node_may_have_partitions_where_nobody_else_is_left() -> None:
    machine, streams = ready(partitions=1)
    machine.register(2, "wal-2")
    machine.drain(2)
    machine.close(1, {streams[0]: 0})
    assert machine.suspect(1)
    machine.do(DeclareDead(node_id=1, node_epoch=machine.node_epoch(1), at_ms=machine.now_ms))
    machine.reassign({streams[0]: 2})
    assert machine.stream(streams[0]).node_id == 2


def test_the_last_node_cannot_be_drained() -> None:
    machine = Machine()
    machine.register(1, "wal-1")
    with pytest.raises(UnknownNode, match=r"node 7 is not registered; these are: 1$"):
        machine.drain(7)
    with pytest.raises(NoNodes, match="node 1 is the last one"):
        machine.drain(1)
    machine.register(2, "wal-2")
    machine.register(3, "wal-3")
    machine.suspect(3)
    machine.declare_dead(3)
    machine.drain(1)
    with pytest.raises(NoNodes, match="node 2 is the last one"):
        machine.drain(2)
    machine.suspect(1)
    machine.declare_dead(1)
    machine.do(UnregisterNode(node_id=1))
    assert machine.state.tables.drained == {}


def test_nodes_are_drained_only_where_all_understand_it() -> None:
    machine = Machine()
    machine.state.tables.metadata_version = 3
    machine.register(1, "wal-1")
    machine.register(2, "wal-2")
    with pytest.raises(NodeRefused, match="metadata version 3 is in force"):
        machine.do(DrainNode(node_id=1, is_drained=True))
