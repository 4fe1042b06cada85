"""Random commands against a model that knows what each object really holds.

After every command: all invariants hold, another replica that applied the encoded records is in the same state (I9), a
snapshot brings back that state, every committed offset is read from a referenced object that holds it (I1, I5, I8), no
offset is used twice (I2), and holders of a stream never share a leader epoch (I4). Restores to any earlier point are among the commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from controller.errors import NodeRefused, NoNodes, RestoreRefused, StreamNotDrained
from controller.invariants import check_all
from controller.lost_wals import lost_wals
from controller.objects import AllocateObjectIds
from controller.records import Range, decode_records, encode_records
from controller.restoration import plan_restore
from controller.snapshot import capture, digest, encode, restore
from controller.state import State
from controller.streams import AbandonWal, GiveBackWal, RecoverWal
from controller.tables import StreamState, StreamStatus
from s3stream.errors import NodeFenced, ObjectExpired, SourcesChanged
from s3stream.metadata import NewObject, ObjectId, StreamId, StreamRange
from tests.controller.machine import Machine, new_object, stream_range

NODES = (1, 2)
NAMES = ("a", "b")
RESTORE_WINDOW_MS = 2_000


@dataclass
class Held:
    """What the model knows of a stream."""

    committed: list[tuple[int, int]] = field(default_factory=list)
    """Offsets that were acknowledged as committed, and not given up by a restore."""
    highest: int = 0
    """End of all offsets that ever were."""
    state_end: int | None = None
    """End of the newest range with a state block."""
    holders: dict[int, int] = field(default_factory=dict)
    """Who held each leader epoch."""


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """A point of the past."""

    at_ms: int
    state: State
    committed: dict[int, list[tuple[int, int]]]
    state_ends: dict[int, int | None]


class MetadataMachine(RuleBasedStateMachine):
    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.replica = State()
        self.replicated = 0
        self.streams: dict[int, Held] = {}
        self.store: dict[int, NewObject] = {}
        """Objects that were put and not deleted."""
        self.past: list[Remembered] = []
        self.disks = dict.fromkeys(NODES, 0)
        for node_id in NODES:
            self.register(node_id)
        self.create("a", 2)
        self.create("b", 1)
        self.open(1, {1, 2})
        self.open(2, {3})

    def wal_id(self, node_id: int) -> str:
        return f"wal-{node_id}-{self.disks[node_id]}"

    @rule(
        what=st.sampled_from(
            [
                "restart",
                "change disk",
                "recover",
                "recover in vain",
                "abandon",
                "create",
                "delete",
                "suspect",
                "trust",
                "die",
                "replace",
                "drain",
            ]
        ),
        node_id=st.sampled_from(NODES),
        name=st.sampled_from(NAMES),
        number=st.integers(1, 3),
    )
    def disturb(self, what: str, node_id: int, name: str, number: int) -> None:
        """What is rare in a cluster's life, and changes much: one rule, so that there is room for work between."""
        match what:
            case "restart":
                self.register(node_id)
                self.open(node_id, self.led_by(node_id))
            case "suspect":
                self.machine.suspect(node_id)
            case "trust":
                self.machine.trust(node_id)
            case "drain":
                self.drain(node_id)
            case "die":
                self.die(node_id)
            case "replace":
                self.replace(node_id)
            case "change disk":
                self.change_disk(node_id)
            case "recover":
                self.recover_the_other(node_id)
            case "recover in vain":
                self.recover_in_vain(node_id)
            case "abandon":
                self.abandon(node_id, number - 1)
            case "create":
                self.create(name, number)
                self.open(node_id, self.led_by(node_id))
            case "delete":
                self.delete(name)

    def led_by(self, node_id: int) -> set[int]:
        return {each.stream_id for each in self.machine.state.tables.streams.values() if each.node_id == node_id}

    # ---- the past

    @rule(pass_ms=st.sampled_from([0, 100, 1_000]))
    def remember(self, pass_ms: int) -> None:
        self.past.append(
            Remembered(
                at_ms=self.machine.now_ms,
                state=self.machine.state.copy(),
                committed={stream_id: held.committed.copy() for stream_id, held in self.streams.items()},
                state_ends={stream_id: held.state_end for stream_id, held in self.streams.items()},
            )
        )
        self.machine.now_ms += pass_ms

    @rule(data=st.data(), names=st.sets(st.sampled_from(NAMES)), slack=st.integers(0, 3))
    def restore(self, data: st.DataObject, names: set[str], slack: int) -> None:
        """All topics, or those of some names, as at some point of the past."""
        if not self.past:
            return
        point = data.draw(st.sampled_from(self.past))
        target = point.state.tables
        names &= target.topic_ids.keys()
        before = digest(self.machine.state)
        try:
            plan = self.machine.restore(point.state, *names, slack_offsets=slack)
        except RestoreRefused:
            assert digest(self.machine.state) == before
            plan = plan_restore(
                self.machine.state.tables, self.machine.restoring(point.state, *names, slack_offsets=slack)
            )
            assert plan.missing or plan.open_partitions
            assert set(plan.missing) <= target.objects.keys()
            assert all(object_id in self.machine.state.tables.gone for object_id in plan.missing)
            self.may_be_missing(point, plan.missing)
            for stream in list(self.machine.state.tables.streams.values()):
                if stream.status is not StreamStatus.CLOSED:
                    self.machine.close(stream.node_id, {stream.stream_id: stream.committed_end_offset})
            if plan.missing:
                return
            plan = self.machine.restore(point.state, *names, slack_offsets=slack)
        tables = self.machine.state.tables
        for topic in target.topics.values():
            if names and topic.name not in names:
                continue
            now = tables.topics[topic.topic_id]
            assert (now.name, now.configs) == (topic.name, topic.configs)
            for stream_id in now.stream_ids:
                held = self.streams[stream_id]
                held.committed = point.committed.get(stream_id, []).copy()
                held.state_end = point.state_ends.get(stream_id)
                assert tables.streams[stream_id].committed_end_offset >= held.highest, "I2, I3"
        if not names:
            assert tables.topics.keys() == target.topics.keys()
        assert self.machine.restore(point.state, *names).changes_nothing, "once is enough"
        assert plan.partitions or digest(self.machine.state) == before or plan.configured_topics

    def may_be_missing(self, point: Remembered, object_ids: Sequence[ObjectId]) -> None:
        """Here objects are deleted as soon as they may be."""

    # ---- nodes

    def register(self, node_id: int) -> None:
        self.machine.register(node_id, self.wal_id(node_id))

    def drain(self, node_id: int) -> None:
        """Or take that back: what is on its way then is to stay."""
        tables = self.machine.state.tables
        is_drained = node_id not in tables.drained
        try:
            self.machine.drain(node_id, is_drained)
        except NoNodes:
            return
        assert (node_id in tables.drained) is is_drained
        if not is_drained:
            mine = [stream for stream in tables.streams.values() if stream.node_id == node_id]
            assert all(stream.target_node_id == -1 for stream in mine)

    def die(self, node_id: int) -> None:
        """Where it is suspected: nothing that it says is of any account, until it is there again."""
        if not self.machine.declare_dead(node_id):
            return
        before = digest(self.machine.state)
        with pytest.raises(NodeFenced):
            self.machine.open(node_id, sorted(self.led_by(node_id)))
        with pytest.raises(NodeFenced):
            self.machine.ids(node_id)
        assert digest(self.machine.state) == before
        self.register(node_id)

    def replace(self, node_id: int) -> None:
        """Where it is suspected: it is dead, and a process that has no id is given its id, and finds its WAL."""
        if not self.machine.declare_dead(node_id):
            return
        if any(wal.node_id == node_id and wal.recoverer != -1 for wal in lost_wals(self.machine.state.tables)):
            self.register(node_id)  # its id would be left to it, while another node recovers its WAL
            return
        given = self.machine.allot()
        assert given.node_id == node_id, "the other one lives"
        with pytest.raises(NodeFenced):
            self.machine.do(AllocateObjectIds(node_id=node_id, node_epoch=given.node_epoch - 1, count=1))
        self.machine.register(node_id, self.wal_id(node_id), allotted_epoch=given.node_epoch)
        self.open(node_id, self.led_by(node_id))

    def change_disk(self, node_id: int) -> None:
        before = self.wal_id(node_id)
        self.disks[node_id] += 1
        try:
            self.machine.register(node_id, self.wal_id(node_id))
        except NodeRefused:
            self.disks[node_id] -= 1
            assert any(stream.wal_id == before for stream in self.machine.state.tables.streams.values())
        else:
            assert not any(stream.wal_id == before for stream in self.machine.state.tables.streams.values())

    def recover_the_other(self, node_id: int) -> None:
        other = 3 - node_id
        wal_id = self.wal_id(other)
        epoch = self.machine.node_epoch(node_id)
        if not self.machine.suspect(other):
            return
        with pytest.raises(NodeRefused):
            self.machine.do(RecoverWal(node_id=node_id, node_epoch=epoch, wal_id=wal_id))
        self.machine.declare_dead(other)
        for opened in self.machine.do(RecoverWal(node_id=node_id, node_epoch=epoch, wal_id=wal_id)):
            self.hold(node_id, opened.stream_id, opened.leader_epoch)
        assert not any(
            stream.wal_id == wal_id for stream in self.machine.state.tables.streams.values() if stream.node_id == other
        )
        self.register(other)  # in the middle of it; what is open on its WAL it may take back

    def recover_in_vain(self, node_id: int) -> None:
        """The WAL of the other is given back, and goes on as it was; or to whoever recovers it after all."""
        other = 3 - node_id
        wal_id = self.wal_id(other)
        if not self.machine.suspect(other):
            return
        self.machine.declare_dead(other)
        epoch = self.machine.node_epoch(node_id)
        for opened in self.machine.do(RecoverWal(node_id=node_id, node_epoch=epoch, wal_id=wal_id)):
            self.hold(node_id, opened.stream_id, opened.leader_epoch)
        self.machine.do(GiveBackWal(node_id=node_id, node_epoch=epoch, wal_id=wal_id))
        for stream in self.machine.state.tables.streams.values():
            if stream.wal_id == wal_id:
                assert (stream.status, stream.node_id) == (StreamStatus.OPEN, other)
                self.hold(other, stream.stream_id, stream.leader_epoch)
        self.register(other)

    def abandon(self, node_id: int, slack: int) -> None:
        try:
            self.machine.do(AbandonWal(wal_id=self.wal_id(node_id), slack_offsets=slack, at_ms=self.machine.now_ms))
        except NodeRefused:
            return

    def hold(self, node_id: int, stream_id: int, leader_epoch: int) -> None:
        holders = self.streams[stream_id].holders
        assert leader_epoch not in holders, "every leader epoch has one holder (I4)"
        holders[leader_epoch] = node_id

    # ---- topics and streams

    def create(self, name: str, partitions: int) -> None:
        if name not in self.machine.state.tables.topic_ids:
            for stream_id in self.machine.create(name, partitions):
                assert stream_id not in self.streams
                self.streams[stream_id] = Held()

    def delete(self, name: str) -> None:
        if name in self.machine.state.tables.topic_ids:
            self.machine.delete(name)

    @rule(node_id=st.sampled_from(NODES), pick=st.sets(st.integers(1, 8), min_size=1))
    def open(self, node_id: int, pick: set[int]) -> None:
        for opened in self.machine.open(node_id, sorted(pick)):
            assert self.committed_end(opened.stream_id) <= opened.committed_end_offset
            self.hold(node_id, opened.stream_id, opened.leader_epoch)

    @rule(data=st.data(), error=st.sampled_from([0, 0, 1]))
    def close(self, data: st.DataObject, error: int) -> None:
        stream = data.draw(self.some_stream())
        if stream is None:
            return
        was_held = stream.status is not StreamStatus.CLOSED
        try:
            self.machine.close(stream.node_id, {stream.stream_id: stream.committed_end_offset + error})
        except StreamNotDrained:
            assert error
        else:
            assert not (error and was_held)

    @rule(data=st.data(), part=st.sampled_from([0.3, 0.6, 1.0]))
    def trim(self, data: st.DataObject, part: float) -> None:
        stream = data.draw(self.some_stream())
        if stream is not None:
            length = stream.committed_end_offset - stream.log_start_offset
            self.machine.trim(stream.node_id, {stream.stream_id: stream.log_start_offset + int(length * part)})

    def some_stream(self) -> st.SearchStrategy[StreamState | None]:
        return st.sampled_from([None, *self.machine.state.tables.streams.values()])

    # ---- objects

    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        """Upload and commit, as most of the time."""
        self.commit(self.put(data, data.draw(st.sampled_from(NODES)), ""), twice=False)

    @rule(
        target=uploads,
        data=st.data(),
        node_id=st.sampled_from(NODES),
        stale=st.sampled_from(["", "", "epoch", "offset", "node"]),
    )
    def put(self, data: st.DataObject, node_id: int, stale: str) -> tuple[int, NewObject]:
        """Put an object with the next offsets of some streams, perhaps not quite right, to be committed later."""
        (object_id,) = self.machine.ids(node_id)
        held = sorted(self.led_by(node_id)) if stale != "node" else sorted(self.streams)
        ranges: list[StreamRange] = []
        for stream_id in data.draw(st.sets(st.sampled_from(held or [8]), min_size=1, max_size=3).map(sorted)):
            stream = self.machine.state.tables.streams.get(StreamId(stream_id))
            base_offset = stream.committed_end_offset if stream is not None else 0
            leader_epoch = stream.leader_epoch if stream is not None else 0
            base_offset += stale == "offset"
            leader_epoch -= stale == "epoch"
            has_state = data.draw(st.booleans())
            end_offset = base_offset + data.draw(st.integers(0 if has_state else 1, 9))
            ranges.append(
                stream_range(stream_id, base_offset, end_offset, leader_epoch=leader_epoch, has_state=has_state)
            )
        self.store[object_id] = new_object(object_id, *ranges)
        return node_id, self.store[object_id]

    @rule(upload=uploads, twice=st.booleans())
    def commit(self, upload: tuple[int, NewObject], twice: bool) -> None:
        """Commit an object, perhaps late, perhaps again."""
        node_id, new = upload
        known = new.object_id in self.machine.referenced() | self.machine.unreferenced()
        try:
            result = self.machine.commit(node_id, new)
        except ObjectExpired:
            assert new.object_id in self.machine.state.tables.gone
            return
        assert new.object_id in self.store, "what was deleted is never referenced again (I8)"
        if twice:
            assert self.machine.commit(node_id, new) == result
        if not known:
            for value in new.ranges:
                if value.stream_id not in result.skipped:
                    held = self.streams[value.stream_id]
                    assert held.holders[value.leader_epoch] == node_id
                    assert value.base_offset >= self.committed_end(value.stream_id)
                    assert value.base_offset >= held.highest, "I2"
                    held.highest = value.end_offset
                    held.committed.append((value.base_offset, value.end_offset))
                    if value.has_state:
                        held.state_end = value.end_offset

    @rule(
        node_id=st.sampled_from(NODES),
        pick=st.sets(st.integers(0, 20), min_size=1, max_size=4),
        split=st.booleans(),
        forgetful=st.sampled_from([False, False, True]),
    )
    def compact(self, node_id: int, pick: set[int], split: bool, forgetful: bool) -> None:
        """Rewrite some objects as a compactor would, into one object per contiguous run; twice, if a reply was lost.

        A forgetful one leaves state blocks behind; it is refused where that would lose the newest.
        """
        tables = self.machine.state.tables
        known = sorted(tables.objects)
        sources = [known[index] for index in sorted(pick) if index < len(known)]
        live = sorted(
            (
                self.with_newest_state_only(source, value)
                for source in sources
                for value in tables.live_ranges(tables.objects[source])
            ),
            key=lambda value: (value.stream_id, value.base_offset, value.end_offset),
        )
        runs: list[StreamRange] = []
        for value in live:
            last = runs[-1] if runs else None
            if (
                last is not None
                and not split
                and last.stream_id == value.stream_id
                and last.end_offset == value.base_offset
            ):
                runs[-1] = stream_range(
                    last.stream_id,
                    last.base_offset,
                    value.end_offset,
                    leader_epoch=value.leader_epoch,
                    has_state=value.has_state or last.has_state,
                )
            else:
                runs.append(value)
        if not runs:
            return
        outputs = []
        for object_id, run in zip(self.machine.ids(node_id, len(runs)), runs, strict=True):
            has_state = run.has_state and not (forgetful and run.base_offset < run.end_offset)
            self.store[object_id] = new_object(object_id, replace(run, has_state=has_state))
            outputs.append(self.store[object_id])
        before = {stream_id: self.offsets(stream_id) for stream_id in tables.streams}
        try:
            result = self.machine.commit(node_id, *outputs, sources=sources)
        except SourcesChanged:
            assert forgetful, "nothing changed meanwhile"
            return
        assert self.machine.commit(node_id, *outputs, sources=sources) == result
        assert forgetful or not set(sources) & self.machine.referenced()
        assert {stream_id: self.offsets(stream_id) for stream_id in tables.streams} == before

    def with_newest_state_only(self, source: int, value: Range) -> StreamRange:
        """A live range as a compactor carries it on: of states, the newest of its stream is enough."""
        newest = self.machine.state.tables.streams[value.stream_id].newest_state
        return replace(value.value(), has_state=newest is not None and newest[0] == source)

    @rule(data=st.data(), node_id=st.sampled_from(NODES), shift=st.integers(-3, 3), has_state=st.booleans())
    def compact_wrongly(self, data: st.DataObject, node_id: int, shift: int, has_state: bool) -> None:
        """A compactor whose picture of the world is wrong is refused, or does no harm."""
        stream = data.draw(self.some_stream())
        if stream is None or not stream.ranges or not self.machine.referenced():
            return
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(stream.ranges) - 1)] * 2)))
        end_offset = max(stream.ranges[last].end_offset + shift, stream.ranges[first].base_offset + 1)
        sources = data.draw(st.sets(st.sampled_from(sorted(self.machine.referenced())), min_size=1, max_size=3))
        (object_id,) = self.machine.ids(node_id)
        output = stream_range(stream.stream_id, stream.ranges[first].base_offset, end_offset, has_state=has_state)
        before, offsets = digest(self.machine.state), self.offsets(stream.stream_id)
        self.store[object_id] = new_object(object_id, output)
        try:
            self.machine.commit(node_id, self.store[object_id], sources=sorted(sources))
        except SourcesChanged:
            assert digest(self.machine.state) == before
        else:
            assert self.offsets(stream.stream_id) == offsets, "what it left out stays where it is"

    @rule(data=st.data(), forget=st.booleans())
    def collect(self, data: st.DataObject, forget: bool) -> None:
        """Expire, delete, forget: whatever may go."""
        object_ids = data.draw(st.sets(st.sampled_from([1, *self.store]), min_size=1, max_size=5).map(sorted))
        expired = self.machine.expire(*object_ids)
        for object_id in expired:
            self.store.pop(object_id, None)
        if forget:
            self.machine.forget(*expired)

    # ---- what must hold

    def committed_end(self, stream_id: int) -> int:
        return max((end for _, end in self.streams[stream_id].committed), default=0)

    def offsets(self, stream_id: int) -> set[int]:
        """Offsets past the log start that objects in the store really hold."""
        stream = self.machine.stream(stream_id)
        found: set[int] = set()
        for value, object_id in zip(stream.ranges, stream.object_ids, strict=True):
            stored = {each.stream_id: each for each in self.store[object_id].ranges}[stream.stream_id]
            assert (stored.base_offset, stored.end_offset) == (value.base_offset, value.end_offset)
            found.update(range(max(value.base_offset, stream.log_start_offset), value.end_offset))
        return found

    @invariant()
    def every_committed_offset_can_be_read(self) -> None:
        for stream_id, stream in self.machine.state.tables.streams.items():
            held = self.streams[stream_id]
            wanted = {
                offset for base, end in held.committed for offset in range(max(base, stream.log_start_offset), end)
            }
            assert self.offsets(stream_id) == wanted
            assert (stream.status is StreamStatus.CLOSED) or held.holders[stream.leader_epoch] == stream.node_id
            if held.state_end is not None:
                assert stream.newest_state is not None
                assert stream.newest_state[1].end_offset >= held.state_end
                assert stream.newest_state[0] in self.store

    @invariant()
    def replicas_and_snapshots_agree(self) -> None:
        fresh = self.machine.log[self.replicated :]
        self.replicated = len(self.machine.log)
        for record in decode_records(encode_records(fresh), where="the log"):
            self.replica.apply(record)
        expected = digest(self.machine.state)
        assert digest(self.replica) == expected
        *_, restored = restore(b"".join(encode(capture(self.replica, 1))), where="the snapshot")
        assert restored is not None
        assert digest(restored[0]) == expected
        check_all(restored[0].tables)


class WindowMachine(MetadataMachine):
    """The same with a collector that leaves what may be restored within a window: then everything can be."""

    @rule(pass_ms=st.sampled_from([0, 500, 1_500]), forget=st.booleans())
    def collect(self, pass_ms: int, forget: bool) -> None:
        self.machine.now_ms += pass_ms
        unreferenced = self.machine.state.tables.unreferenced.items()
        due = [
            each for each, value in unreferenced if value.unreferenced_at_ms < self.machine.now_ms - RESTORE_WINDOW_MS
        ]
        expired = self.machine.expire(*due)
        for object_id in expired:
            del self.store[object_id]
        if forget:
            self.machine.forget(*expired)

    def may_be_missing(self, point: Remembered, object_ids: Sequence[ObjectId]) -> None:
        assert not object_ids or point.at_ms < self.machine.now_ms - RESTORE_WINDOW_MS


TestMetadata = MetadataMachine.TestCase
TestMetadata.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

TestRestoreWindow = WindowMachine.TestCase
TestRestoreWindow.settings = settings(TestMetadata.settings, max_examples=100)
