"""Snapshots: the whole state, the same bytes on every node, and nothing less than all of it."""

from __future__ import annotations

import struct

import msgspec
import pytest
from crc32c import crc32c

from controller.errors import MetadataCorrupt, UnsupportedMetadata
from controller.invariants import check_all, checking
from controller.records import METADATA_VERSION
from controller.snapshot import capture, digest, encode, restore
from controller.state import State
from controller.streams import AbandonWal
from tests.controller.machine import Machine, new_object, ready, stream_range


def rich() -> Machine:
    """A bit of everything: trims, a state block without its data, compaction, deletion, an abandon, expired objects."""
    machine, (s, t, u) = ready(partitions=3)
    a, _ = machine.upload(1, stream_range(s, 0, 10, has_state=True), stream_range(t, 0, 10))
    b, _ = machine.upload(1, stream_range(s, 10, 20), stream_range(t, 10, 20), stream_range(u, 5, 9))
    (c,) = machine.ids(1)
    machine.upload(1, stream_range(s, 20, 30), stream_range(t, 20, 30, has_state=True))
    machine.trim(1, {s: 25})
    machine.commit(1, new_object(c, stream_range(t, 10, 20)), sources=[b])
    gone = machine.create("gone")
    machine.open(1, gone)
    machine.upload(1, stream_range(t, 30, 40), stream_range(gone[0], 0, 10))
    machine.delete("gone")
    machine.do(AbandonWal(wal_id="wal-1", slack_offsets=50, at_ms=machine.now_ms))
    machine.register(1, "wal-new")
    machine.open(1, [s, t])
    machine.upload(1, stream_range(s, 80, 90, leader_epoch=1))
    machine.register(2, "wal-2")
    machine.reassign({t: 2})
    for node_id in (3, 4):
        machine.register(node_id, f"wal-{node_id}")
        machine.suspect(node_id)
    machine.declare_dead(4)
    machine.drain(3)
    orphan, forgotten = machine.ids(1, 2)
    machine.expire(b, orphan, forgotten)
    machine.forget(forgotten)
    assert {a, b} & machine.referenced() == {a}
    return machine


def read(data: bytes) -> tuple[State, int]:
    *_, last = restore(data, where="snapshot/41")
    assert last is not None
    return last


def encoded(machine: Machine, index: int = 41) -> bytes:
    return b"".join(encode(capture(machine.state, index)))


def test_a_snapshot_holds_the_whole_state() -> None:
    machine = rich()
    state, index = read(encoded(machine))
    assert index == 41
    check_all(state.tables)
    assert digest(state) == digest(machine.state)
    for stream_id, stream in machine.state.tables.streams.items():
        restored = state.tables.streams[stream_id]
        assert (restored.ranges, restored.object_ids) == (stream.ranges, stream.object_ids)
        assert (restored.newest_state, restored.gaps) == (stream.newest_state, stream.gaps)
        assert restored.target_node_id == stream.target_node_id
    assert state.tables.live_counts == machine.state.tables.live_counts


def test_a_restored_state_goes_on_like_the_original() -> None:
    machine, twin = rich(), rich()
    twin.state, _ = read(encoded(twin))
    for each in (machine, twin):
        streams = sorted(each.state.tables.streams)
        each.upload(1, stream_range(streams[0], 90, 99, leader_epoch=1, has_state=True))
        each.trim(1, {streams[1]: 30})
        each.create("after")
    assert encoded(machine) == encoded(twin)


def test_a_capture_does_not_change_when_the_state_goes_on() -> None:
    machine = rich()
    expected = encoded(machine)
    taken = capture(machine.state, 41)
    machine.create("after")
    stream = min(machine.state.tables.streams)
    machine.upload(1, stream_range(stream, 90, 99, leader_epoch=1, has_state=True))
    machine.trim(1, {stream: 99})
    assert b"".join(encode(taken)) == expected


def test_a_copy_goes_its_own_way() -> None:
    machine = rich()
    copy = machine.state.copy()
    before = digest(copy)
    assert before == digest(machine.state)
    machine.create("after")
    stream = min(machine.state.tables.streams)
    machine.upload(1, stream_range(stream, 90, 99, leader_epoch=1))
    machine.trim(1, {stream: 99})
    machine.expire(*machine.unreferenced())
    assert digest(copy) == before != digest(machine.state)
    check_all(copy.tables)


def test_a_large_state_is_read_checked_and_copied_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is the work of some milliseconds: a broker that takes office, or missed much, serves meanwhile."""
    machine, streams = ready(partitions=40)
    for base in range(0, 50, 10):
        machine.upload(1, *(stream_range(stream_id, base, base + 10) for stream_id in streams))
    monkeypatch.setattr("controller.snapshot._RANGES_PER_FRAME", 20)
    monkeypatch.setattr("controller.invariants._CHECKED_AT_A_TIME", 20)
    monkeypatch.setattr("controller.state._COPIED_AT_A_TIME", 20)

    *pauses, found = restore(encoded(machine), where="snapshot/41")
    assert len(pauses) >= 5 + 8, "objects, and ranges that are sorted"
    assert pauses.count(None) == len(pauses)
    assert found is not None
    restored, _ = found
    assert len(list(checking(restored.tables))) >= 8
    *pauses, copied = restored.copying()
    assert len(pauses) >= 40
    assert copied is not None
    assert digest(copied) == digest(machine.state)


def test_different_states_have_different_digests() -> None:
    machine = rich()
    seen = {digest(machine.state)}
    machine.ids(1)
    seen.add(digest(machine.state))
    machine.trim(1, {min(machine.state.tables.streams): 85})
    seen.add(digest(machine.state))
    assert len(seen) == 3


def test_every_damage_is_noticed() -> None:
    data = encoded(rich())
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises((MetadataCorrupt, UnsupportedMetadata), match="snapshot/41"):
            read(bytes(damaged))
    for size in range(0, len(data), 7):
        with pytest.raises(MetadataCorrupt, match="snapshot/41"):
            read(data[:size])


def test_a_snapshot_of_a_newer_version_stops_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = rich()
    machine.state.tables.metadata_version = METADATA_VERSION + 1
    with pytest.raises(UnsupportedMetadata, match=f"metadata version {METADATA_VERSION + 1}, newer than this"):
        read(encoded(machine))
    data = bytearray(encoded(ready()[0]))
    struct.pack_into("B", data, 4, 2)
    with pytest.raises(UnsupportedMetadata, match="snapshot format 2, newer than 1"):
        read(bytes(data))


def test_a_snapshot_of_the_version_before_is_read() -> None:
    """Metadata version 1 had no altered settings of brokers, no suspicions, and no drains: its head ends before them."""
    machine = rich()
    machine.state.tables.node_health.clear()
    machine.state.tables.drained.clear()
    machine.state.tables.metadata_version = 1
    head, *others = capture(machine.state, 41).frames()
    fields = msgspec.msgpack.decode(head)
    assert fields.pop() == [], "what suspected nodes reported"
    assert fields.pop() == [], "who is drained"
    assert fields.pop() == [], "who is suspected or dead"
    assert fields.pop() == [], "altered settings of brokers"
    frames = [msgspec.msgpack.encode(fields), *others, b""]
    data = b"TLMS\x01" + b"".join(struct.pack(">II", len(frame), crc32c(frame)) + frame for frame in frames)
    *_, restored = restore(data, where="snapshot/41")
    assert restored is not None
    assert restored[1] == 41
    assert digest(restored[0]) == digest(machine.state)


def test_a_snapshot_between_two_steps_of_a_compaction_holds_each_range_once() -> None:
    """A source is referenced until the last of its ranges was replaced: those that were are not its any more."""
    machine, (s, t, u) = ready(partitions=3)
    a, _ = machine.upload(1, *(stream_range(stream, 0, 10) for stream in (s, t, u)))
    for stream in (s, t):
        (new,) = machine.ids(1)
        machine.commit(1, new_object(new, stream_range(stream, 0, 10)), sources=[a])
        assert a in machine.referenced()
        state, _ = read(encoded(machine))
        check_all(state.tables)
        assert digest(state) == digest(machine.state)
        assert state.tables.live_counts == machine.state.tables.live_counts
        assert len(state.tables.streams[stream].ranges) == 1
    # Both go on alike.
    twin = Machine()
    twin.state, twin.now_ms = state, machine.now_ms
    for each in (machine, twin):
        (new,) = each.ids(1)
        each.commit(1, new_object(new, stream_range(u, 0, 10)), sources=[a])
        assert a in each.unreferenced()
        assert each.state.tables.replaced == {}
    assert digest(twin.state) == digest(machine.state)
