"""Objects: commits that fit exactly, answers that do not change when asked again, and no deletion of what is needed."""

from __future__ import annotations

import pytest

from controller.objects import AllocateProducerIds, Commit
from s3stream.errors import NodeFenced, ObjectExpired, SourcesChanged
from s3stream.metadata import CommitObjects, SkipReason
from tests.controller.machine import Machine, new_object, ready, stream_range


def test_an_upload_extends_its_streams_at_their_committed_ends() -> None:
    machine, streams = ready(partitions=2)
    first, _ = machine.upload(1, stream_range(streams[0], 0, 10), stream_range(streams[1], 0, 7))
    second, skipped = machine.upload(1, stream_range(streams[0], 10, 30))
    assert not skipped
    assert machine.layout(streams[0]) == [(0, 10, first), (10, 30, second)]
    assert machine.stream(streams[1]).committed_end_offset == 7


def test_one_stale_stream_is_skipped_and_the_rest_committed() -> None:
    machine, streams = ready(partitions=4)
    machine.upload(1, stream_range(streams[1], 0, 10))
    _, skipped = machine.upload(
        1,
        stream_range(streams[0], 0, 10),
        stream_range(streams[1], 20, 30),
        stream_range(streams[2], 0, 10, leader_epoch=7),
        stream_range(99, 0, 10),
    )
    assert skipped == {
        streams[1]: SkipReason.NOT_CONTIGUOUS,
        streams[2]: SkipReason.FENCED,
        99: SkipReason.DELETED,
    }
    assert machine.stream(streams[0]).committed_end_offset == 10


def test_an_object_of_which_nothing_is_wanted_is_unreferenced_at_once() -> None:
    machine, (stream,) = ready()
    object_id, skipped = machine.upload(1, stream_range(stream, 5, 10))
    assert skipped == {stream: SkipReason.NOT_CONTIGUOUS}
    assert machine.unreferenced() == {object_id}


def test_several_objects_of_one_commit_may_continue_each_other() -> None:
    machine, (stream,) = ready()
    a, b = machine.ids(1, 2)
    result = machine.commit(1, new_object(a, stream_range(stream, 0, 10)), new_object(b, stream_range(stream, 10, 20)))
    assert not result.skipped
    assert machine.layout(stream) == [(0, 10, a), (10, 20, b)]


def test_a_repeated_commit_changes_nothing_and_has_the_same_answer() -> None:
    machine, streams = ready(partitions=2)
    (object_id,) = machine.ids(1)
    upload = new_object(object_id, stream_range(streams[0], 0, 10), stream_range(streams[1], 5, 10))
    first = machine.commit(1, upload)
    written = len(machine.log)
    assert machine.commit(1, upload) == first
    machine.upload(1, stream_range(streams[0], 10, 20))
    machine.trim(1, {streams[0]: 20})
    assert object_id in machine.unreferenced()
    machine.delete("orders")
    assert machine.commit(1, upload) == first
    assert [record for record in machine.log[written:] if getattr(record, "object_id", None) == object_id] == []


def test_a_superseded_registration_commits_nothing() -> None:
    machine, (stream,) = ready()
    (object_id,) = machine.ids(1)
    command = Commit(
        node_id=1,
        node_epoch=machine.node_epoch(1),
        commit=CommitObjects(objects=(new_object(object_id, stream_range(stream, 0, 10)),)),
        at_ms=machine.now_ms,
    )
    machine.register()
    with pytest.raises(NodeFenced):
        machine.do(command)


def test_ids_are_never_given_out_twice() -> None:
    machine = Machine()
    machine.register(1, "wal-1")
    machine.register(2, "wal-2")
    assert not set(machine.ids(1, 10)) & set(machine.ids(2, 10))
    blocks = [
        machine.do(AllocateProducerIds(node_id=node_id, node_epoch=machine.node_epoch(node_id), count=1_000))
        for node_id in (1, 2, 1)
    ]
    assert blocks == [range(1_000), range(1_000, 2_000), range(2_000, 3_000)]


def test_an_object_is_expired_then_deleted_then_forgotten_and_its_id_is_refused_for_ever() -> None:
    machine, (stream,) = ready()
    referenced, _ = machine.upload(1, stream_range(stream, 0, 10))
    (orphan, unused) = machine.ids(1, 2)
    upload = new_object(orphan, stream_range(stream, 10, 20))

    assert machine.expire(referenced, orphan, orphan, 0, 10_000) == [orphan], (
        "not what is read, nor what nobody was given"
    )
    with pytest.raises(ObjectExpired, match="upload it under a new id"):
        machine.commit(1, upload)
    assert machine.expire(orphan) == [orphan], "asking again helps whoever crashed before deleting"
    assert list(machine.state.tables.expired) == [orphan]
    machine.forget(orphan, unused)
    assert list(machine.state.tables.expired) == []
    with pytest.raises(ObjectExpired):
        machine.commit(1, upload)


def test_an_unreferenced_object_can_be_expired() -> None:
    machine, (stream,) = ready()
    object_id, _ = machine.upload(1, stream_range(stream, 0, 10))
    machine.trim(1, {stream: 10})
    machine.now_ms += 1
    assert machine.state.tables.unreferenced[object_id].unreferenced_at_ms == machine.now_ms - 1
    assert machine.expire(object_id) == [object_id]
    assert machine.unreferenced() == set()


# ---- compaction


def test_compaction_splits_and_merges_without_changing_what_can_be_read() -> None:
    machine, (s, t) = ready(partitions=2)
    a, _ = machine.upload(1, stream_range(s, 0, 10, has_state=True), stream_range(t, 0, 5))
    b, _ = machine.upload(1, stream_range(s, 10, 20, has_state=True), stream_range(t, 5, 9))
    kept, _ = machine.upload(1, stream_range(s, 20, 30))
    c, d = machine.ids(1, 2)
    machine.commit(
        1, new_object(c, stream_range(s, 0, 20, has_state=True)), new_object(d, stream_range(t, 0, 9)), sources=[a, b]
    )
    assert machine.layout(s) == [(0, 20, c), (20, 30, kept)]
    assert machine.layout(t) == [(0, 9, d)]
    assert machine.unreferenced() == {a, b}
    state = machine.stream(s).newest_state
    assert state is not None
    assert state[0] == c


def test_a_repeated_compaction_has_the_same_answer() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10))
    (b,) = machine.ids(1)
    output = new_object(b, stream_range(stream, 0, 10))
    assert machine.commit(1, output, sources=[a]) == machine.commit(1, output, sources=[a])
    assert machine.referenced() == {b}


def test_compaction_may_drop_what_retention_or_deletion_dropped_meanwhile() -> None:
    machine, (stream,) = ready()
    (other,) = machine.create("other")
    machine.open(1, [other])
    a, _ = machine.upload(1, stream_range(stream, 0, 10), stream_range(other, 0, 10))
    b, _ = machine.upload(1, stream_range(stream, 10, 20))
    c, d = machine.ids(1, 2)
    outputs = (new_object(c, stream_range(stream, 0, 20)), new_object(d, stream_range(other, 0, 10)))
    machine.trim(1, {stream: 12})
    machine.delete("other")
    result = machine.commit(1, *outputs, sources=[b])  # a is unreferenced by now
    assert result.skipped == {other: SkipReason.DELETED}
    assert machine.layout(stream) == [(0, 20, c)], "it may begin below the log start"
    assert machine.referenced() == {c}
    assert machine.unreferenced() == {a, b, d}


def test_compaction_of_an_unreferenced_source_is_discarded() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10))
    machine.upload(1, stream_range(stream, 10, 20))
    (b,) = machine.ids(1)
    machine.trim(1, {stream: 10})
    with pytest.raises(SourcesChanged, match="not referenced any more"):
        machine.commit(1, new_object(b, stream_range(stream, 0, 10)), sources=[a])


def test_what_compaction_leaves_out_stays_where_it_is() -> None:
    machine, (s, t) = ready(partitions=2)
    a, _ = machine.upload(1, stream_range(s, 0, 10), stream_range(t, 0, 10, has_state=True))
    b, c = machine.ids(1, 2)
    machine.commit(1, new_object(b, stream_range(s, 0, 10)), sources=[a])
    assert (machine.layout(s), machine.layout(t)) == ([(0, 10, b)], [(0, 10, a)])
    assert machine.unreferenced() == set()
    machine.commit(1, new_object(c, stream_range(t, 0, 10, has_state=True)), sources=[a])
    assert machine.layout(t) == [(0, 10, c)]
    assert machine.unreferenced() == {a}


@pytest.mark.parametrize(("base_offset", "end_offset"), [(0, 5), (5, 10), (0, 15), (5, 20)])
def test_compaction_replaces_whole_ranges_only(base_offset: int, end_offset: int) -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10))
    b, _ = machine.upload(1, stream_range(stream, 10, 20))
    (c,) = machine.ids(1)
    with pytest.raises(SourcesChanged):
        machine.commit(1, new_object(c, stream_range(stream, base_offset, end_offset)), sources=[a, b])


def test_compaction_replaces_ranges_of_its_sources_only() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10))
    machine.upload(1, stream_range(stream, 10, 20))
    (c,) = machine.ids(1)
    with pytest.raises(SourcesChanged, match="not \\(only\\) in a source"):
        machine.commit(1, new_object(c, stream_range(stream, 0, 20)), sources=[a])


def test_compaction_does_not_lose_the_newest_state() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10, has_state=True))
    b, _ = machine.upload(1, stream_range(stream, 10, 20, has_state=True))
    (c,) = machine.ids(1)
    with pytest.raises(SourcesChanged, match="newest state"):
        machine.commit(1, new_object(c, stream_range(stream, 10, 20)), sources=[b])
    machine.commit(1, new_object(c, stream_range(stream, 0, 10)), sources=[a])  # an older one may go


def test_compaction_does_not_put_an_older_state_in_the_place_of_one_that_was_put_meanwhile() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10, has_state=True))
    b, _ = machine.upload(1, stream_range(stream, 10, 20))
    merged = stream_range(stream, 0, 20, has_state=True)  # as of 10: `b` has none
    c, d = machine.ids(1, 2)
    put, _ = machine.upload(1, stream_range(stream, 20, 20, has_state=True))
    with pytest.raises(SourcesChanged, match="put meanwhile"):
        machine.commit(1, new_object(c, merged), sources=[a, b])
    machine.commit(1, new_object(d, stream_range(stream, 0, 20)), sources=[a, b])  # as the next plan has it
    state = machine.stream(stream).newest_state
    assert state is not None
    assert state[0] == put


def test_compaction_carries_a_state_whose_data_retention_has_passed() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10, has_state=True))
    b, _ = machine.upload(1, stream_range(stream, 10, 20))
    machine.trim(1, {stream: 15})
    c, d = machine.ids(1, 2)
    machine.commit(1, new_object(d, stream_range(stream, 10, 20)), sources=[a, b])
    assert machine.referenced() == {a, d}, "the state stays where it is"
    machine.commit(1, new_object(c, stream_range(stream, 0, 10, has_state=True)), sources=[a])
    assert machine.layout(stream) == [(10, 20, d)]
    assert machine.referenced() == {c, d}
    state = machine.stream(stream).newest_state
    assert state is not None
    assert state[0] == c


def test_a_state_by_itself_is_kept_until_a_newer_one_comes() -> None:
    machine, (stream,) = ready()
    machine.state.tables.metadata_version = 1
    a, _ = machine.upload(1, stream_range(stream, 0, 10))
    b, _ = machine.upload(1, stream_range(stream, 10, 10, has_state=True))
    assert machine.layout(stream) == [(0, 10, a)]
    assert machine.stream(stream).committed_end_offset == 10
    assert machine.state.tables.metadata_version == 2
    machine.trim(1, {stream: 10})
    assert machine.referenced() == {b}, "the state needs no data"
    c, _ = machine.upload(1, stream_range(stream, 10, 20, has_state=True))
    assert machine.referenced() == {c}


def test_a_state_by_itself_has_its_place_in_the_order_of_commits() -> None:
    machine, (stream,) = ready()
    machine.upload(1, stream_range(stream, 0, 10))
    _, skipped = machine.upload(1, stream_range(stream, 9, 9, has_state=True))
    assert skipped == {stream: SkipReason.NOT_CONTIGUOUS}


def test_compaction_takes_a_state_by_itself_along() -> None:
    machine, (stream,) = ready()
    a, _ = machine.upload(1, stream_range(stream, 0, 10))
    b, _ = machine.upload(1, stream_range(stream, 10, 10, has_state=True))
    c, _ = machine.upload(1, stream_range(stream, 10, 20))
    d, e, f = machine.ids(1, 3)
    machine.commit(1, new_object(d, stream_range(stream, 0, 20)), sources=[a, b, c])  # the state stays in b
    assert machine.referenced() == {b, d}
    machine.commit(1, new_object(e, stream_range(stream, 10, 10, has_state=True)), sources=[b])
    assert machine.referenced() == {d, e}
    machine.commit(1, new_object(f, stream_range(stream, 0, 20, has_state=True)), sources=[d, e])
    assert machine.referenced() == {f}
    assert machine.layout(stream) == [(0, 20, f)]


def test_our_own_mistakes_are_asserted() -> None:
    machine, (stream,) = ready()
    (object_id,) = machine.ids(1)
    with pytest.raises(AssertionError, match="never given out"):
        machine.commit(1, new_object(object_id + 1, stream_range(stream, 0, 10)))
    with pytest.raises(AssertionError, match="holds offsets"):
        machine.commit(1, new_object(object_id, stream_range(stream, 0, 0)))
    with pytest.raises(AssertionError, match="sorted by stream"):
        machine.commit(1, new_object(object_id, stream_range(stream, 0, 5), stream_range(stream, 5, 10)))
