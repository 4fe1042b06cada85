"""What giving up a WAL would cost: what its node reported last, held against what objects have."""

from __future__ import annotations

import pytest

from controller.losses import KnownLoss, StreamLoss, known_loss, reported_end_offset
from controller.nodes import SuspectNode
from controller.records import MetadataVersionRaised, Unuploaded, UnuploadedStream
from controller.snapshot import digest, restore
from controller.streams import AbandonWal
from controller.tables import NodeStatus
from s3stream.metadata import StreamId
from tests.controller.machine import Machine, stream_range
from tests.controller.test_snapshot import encoded

SLACK = 1_000


def ready() -> tuple[Machine, list[StreamId]]:
    """Node 1 has four partitions open, of which objects hold ten records each."""
    machine = Machine()
    machine.register(1, "wal-1")
    streams = machine.create(partitions=4)
    machine.open(1, streams)
    machine.register(2, "wal-2")
    machine.upload(1, *(stream_range(stream, 0, 10) for stream in streams))
    return machine, streams


def reported(*streams: tuple[StreamId, int, int], more: int = 0) -> Unuploaded:
    """Ranges of ten bytes a record; and `more` partitions with one record each that are not named."""
    return Unuploaded(
        record_count=sum(end - base for _, base, end in streams) + more,
        size_bytes=10 * (sum(end - base for _, base, end in streams) + more),
        stream_count=len(streams) + more,
        oldest_age_ms=3_000,
        streams=tuple(
            UnuploadedStream(stream_id=stream_id, base_offset=base, end_offset=end, size_bytes=10 * (end - base))
            for stream_id, base, end in streams
        ),
    )


def die(machine: Machine, held: Unuploaded | None, *, before_silence_ms: int = 400) -> None:
    node_epoch = machine.node_epoch(1)
    command = SuspectNode(
        node_id=1, node_epoch=node_epoch, at_ms=machine.now_ms, held=held, held_before_silence_ms=before_silence_ms
    )
    assert machine.do(command)
    machine.declare_dead(1)


def loss_of(machine: Machine, wal_id: str = "wal-1") -> KnownLoss:
    found = known_loss(machine.state.tables, wal_id)
    assert found is not None
    return found


def test_what_was_reported_and_is_in_no_object_is_lost() -> None:
    machine, (a, b, c, _) = ready()
    held = reported((a, 10, 25), (b, 10, 11), (c, 10, 30))
    machine.upload(1, stream_range(b, 10, 15), stream_range(c, 10, 20))  # after the report
    die(machine, held)
    loss = loss_of(machine)
    assert (loss.held, loss.before_silence_ms, loss.status) == (held, 400, NodeStatus.DEAD)
    assert loss.streams == {
        a: StreamLoss(base_offset=10, end_offset=25, size_bytes=150),
        c: StreamLoss(base_offset=20, end_offset=30, size_bytes=-1),
    }
    assert loss.record_count == 25
    assert loss.size_bytes is None, "of ten of the twenty of one partition nobody knows the size"


def test_what_was_deleted_is_no_loss() -> None:
    machine, (a, *_) = ready()
    held = reported((a, 10, 25))
    machine.delete("orders")
    die(machine, held)
    loss = loss_of(machine)
    assert (loss.streams, loss.record_count) == ({}, 0)


def test_where_not_all_are_named_no_sum_is_made_up() -> None:
    machine, (a, *_) = ready()
    die(machine, reported((a, 10, 25), more=2))
    loss = loss_of(machine)
    assert (loss.record_count, loss.size_bytes) == (None, None)
    assert loss.streams == {a: StreamLoss(base_offset=10, end_offset=25, size_bytes=150)}


def test_nothing_is_known_without_a_report() -> None:
    machine, _ = ready()
    assert loss_of(machine).status is NodeStatus.ALIVE
    die(machine, None, before_silence_ms=-1)
    loss = loss_of(machine)
    assert (loss.held, loss.record_count, loss.streams) == (None, None, {})
    assert known_loss(machine.state.tables, "elsewhere") is None


def test_partitions_go_on_past_what_was_reported_however_small_the_slack() -> None:
    """I2. Where a report does not name a partition, all that it counts could be of that one."""
    machine, (a, b, *rest) = ready()
    held = reported((a, 10, 25), (b, 10, 2_000), more=2)
    die(machine, held)
    loss = loss_of(machine)
    ends = [reported_end_offset(machine.stream(stream), loss) for stream in (a, b, *rest)]
    assert ends == [25, 2_000, 10 + held.record_count, 10 + held.record_count]
    gaps = machine.do(AbandonWal(wal_id="wal-1", slack_offsets=SLACK, at_ms=machine.now_ms))
    assert [gaps[stream] for stream in (a, b, *rest)] == [(10, end + SLACK) for end in ends]


def test_where_all_are_named_the_others_go_on_past_what_objects_hold() -> None:
    machine, (a, b, *_) = ready()
    die(machine, reported((a, 10, 25)))
    loss = loss_of(machine)
    assert [reported_end_offset(machine.stream(stream), loss) for stream in (a, b)] == [25, 10]
    assert reported_end_offset(machine.stream(a), None) == 10


def test_the_report_is_in_snapshots_and_goes_with_the_next_registration() -> None:
    machine, (a, *_) = ready()
    die(machine, reported((a, 10, 25)))
    *_, restored = restore(encoded(machine), where="snapshot/41")
    assert restored is not None
    assert restored[0].tables.node_health == machine.state.tables.node_health
    assert digest(restored[0]) == digest(machine.state)
    machine.register(1, "wal-1", wal_epoch=1)
    loss = loss_of(machine)
    assert (loss.held, loss.status) == (None, NodeStatus.ALIVE)


@pytest.mark.parametrize("version", [4, 5])
def test_it_is_not_written_before_every_node_understands_it(version: int) -> None:
    machine, (a, *_) = ready()
    machine.state.tables.metadata_version = 4
    if version == 5:
        machine.state.apply(MetadataVersionRaised(metadata_version=5))
    die(machine, reported((a, 10, 25)))
    assert machine.state.tables.metadata_version == version
    assert (loss_of(machine).held is None) is (version == 4)
