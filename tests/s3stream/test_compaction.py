"""What is merged, and what a day of merging leads to."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3stream.compaction import CompactionPlan, PlannedRange, choose_sources, find_window, growth, plan_outputs
from s3stream.config import CompactionSettings
from s3stream.metadata import NewObject, ObjectId, StreamId, StreamRange

KIB, MIB = 1 << 10, 1 << 20
SETTINGS = CompactionSettings(
    max_fan_in=10, object_size_bytes=4 * MIB, stream_object_max_bytes=16 * MIB, max_source_bytes=64 * MIB
)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], None),
        ([1] * 9, None),
        ([1] * 10, (0, 10)),
        ([1] * 25, (0, 25)),
        ([10] * 9 + [1] * 9, (0, 18)),  # the largest is a tenth of the result
        ([100] + [1] * 9, None),
        ([100] + [1] * 10, (1, 11)),
        ([1000, 100] + [1] * 12 + [900], (2, 14)),
        ([9, 11] * 5, (0, 10)),  # sizes around a power of ten are alike
        ([1, 1, 50] * 8, (0, 24)),  # large and small in turn: by the number of the large ones
        ([1, 1, 50] * 7, None),
        ([100] * 9 + [10] * 9 + [1] * 10, (0, 28)),  # all levels at once
        ([1] * 300, (0, 100)),
    ],
)
def test_windows_are_neighbours_of_similar_size(sizes: list[int], expected: tuple[int, int] | None) -> None:
    assert find_window(sizes, fan_in=10, max_length=100) == expected


@given(st.lists(st.integers(1, 10**9), max_size=60), st.integers(2, 12), st.integers(12, 30))
def test_nothing_is_rewritten_without_growing(sizes: list[int], fan_in: int, max_length: int) -> None:
    found = find_window(sizes, fan_in=fan_in, max_length=max_length)
    if found is not None:
        window = sizes[found[0] : found[1]]
        assert fan_in <= len(window) <= max_length
        assert sum(window) >= max(window) * fan_in * 0.8


@pytest.mark.parametrize(
    ("size_bytes", "max_fan_in", "times"),
    [
        (100 * MIB, 128, 8),  # copied from now on: nearly fan_in
        (4 * MIB, 128, 8),
        (512 * KIB, 128, 26),  # nearly 16 MiB at once
        (50 * KIB, 128, 123),  # 6 MiB at once, and no less
        (50 * KIB, 256, 205),  # or 10 MiB, which cost fewer requests to copy
        (5 * KIB, 128, 46),  # nearly 16 MiB in two steps
        (50 * KIB, 32, 14),
        (5 * KIB, 10, 8),
    ],
)
def test_ranges_grow_to_what_can_be_copied_in_the_fewest_rewrites(size_bytes: int, max_fan_in: int, times: int) -> None:
    assert round(growth(size_bytes, replace(SETTINGS, max_fan_in=max_fan_in))) == times


@pytest.mark.parametrize(
    ("size_bytes", "max_fan_in", "times"),
    [
        (8 * MIB, 256, 32),  # 256 MiB at once
        (6 * MIB, 256, 43),
        (6 * MIB, 40, 20),  # with many streams fewer wait
        (50 * MIB, 256, 8),  # nearly fan_in: they are large anyway
        (255 * MIB, 256, 8),
    ],
)
def test_what_can_be_copied_waits_until_it_need_not_be_copied_again(
    size_bytes: int, max_fan_in: int, times: int
) -> None:
    assert round(growth(size_bytes, CompactionSettings(max_fan_in=max_fan_in))) == times


def test_a_wide_merge_waits_until_it_is_wide() -> None:
    model = Model(replace(SETTINGS, max_fan_in=64, max_sources=64, max_source_bytes=1 << 40))
    for number in range(51):
        assert model.step() is None, number
        model.upload(dict.fromkeys(range(20), 256 * KIB))  # 16 MiB are 64 of them, nearly all is enough
    model.upload(dict.fromkeys(range(20), 256 * KIB))
    assert model.step() is not None
    assert model.most_ranges() == 1
    model.check()


def test_with_many_streams_fewer_are_merged_at_once() -> None:
    settings = replace(SETTINGS, max_fan_in=64, max_sources=64, max_source_bytes=1 << 40, max_waiting_ranges=600)
    model = Model(settings)
    for _ in range(30):
        model.upload(dict.fromkeys(range(30), 512 * KIB))  # 600 ranges are 20 of each
        model.settle()
        assert model.most_ranges() <= 20
    model.check()


def test_what_is_gathering_is_not_drawn_into_the_merge_of_what_can_be_copied() -> None:
    model = Model(CompactionSettings(max_fan_in=100))
    rewritten = 0
    for _ in range(1200):
        model.upload(dict.fromkeys(range(32), 64 * KIB))
        before = {each.object_id: each for each in model.live()}
        while (plan := model.step()) is not None:
            sources = [value for source in plan.sources for value in before[source].ranges]
            rewritten += sum(value.size_bytes for value in sources if value.size_bytes < 5 * MIB)
            before = {each.object_id: each for each in model.live()}
    model.check()
    assert model.most_ranges() < 130
    assert rewritten <= 1.02 * model.uploaded_bytes


def test_sizes_that_vary_are_merged_when_a_job_cannot_take_more() -> None:
    model = Model(replace(SETTINGS, max_fan_in=20, max_sources=20, max_source_bytes=1 << 40))
    rng = random.Random(1)
    for _ in range(60):
        model.upload({1: rng.choice([100 * KIB, 130 * KIB, 220 * KIB]), 2: 5 * MIB})
        model.settle()
    assert model.most_ranges() <= 30
    model.check()


class Model:
    """Metadata without a bucket: uploads, trims and plans, with I5 checked at each step."""

    def __init__(self, settings: CompactionSettings = SETTINGS) -> None:
        self.settings = settings
        self.objects: dict[ObjectId, NewObject] = {}
        self.ends: dict[StreamId, int] = {}
        self.log_starts: dict[StreamId, int] = {}
        self.states: dict[StreamId, tuple[ObjectId, int]] = {}
        self.next_id = 1
        self.uploaded_bytes = 0
        self.rewritten_bytes = 0
        self.dirty: set[StreamId] = set()

    def take_id(self) -> ObjectId:
        self.next_id += 1
        return ObjectId(self.next_id)

    def upload(self, sizes: dict[int, int], *, with_state: bool = False) -> None:
        object_id = self.take_id()
        ranges = []
        for stream_id, size in sorted((StreamId(stream_id), size) for stream_id, size in sizes.items()):
            base = self.ends.get(stream_id, 0)
            self.log_starts.setdefault(stream_id, 0)
            self.ends[stream_id] = base + 10
            if with_state:
                self.states[stream_id] = (object_id, base + 10)
            ranges.append(
                StreamRange(
                    stream_id=stream_id, leader_epoch=1, base_offset=base, end_offset=base + 10, record_count=10,
                    size_bytes=size, max_timestamp_ms=0, has_state=with_state,
                )
            )  # fmt: skip
        total = sum(sizes.values())
        self.objects[object_id] = NewObject(object_id=object_id, size_bytes=total, ranges=tuple(ranges))
        self.uploaded_bytes += total
        self.dirty.update(self.ends)

    def trim(self, stream_id: int, offset: int) -> None:
        self.log_starts[StreamId(stream_id)] = offset

    def delete(self, stream_id: int) -> None:
        del self.log_starts[StreamId(stream_id)], self.ends[StreamId(stream_id)]
        self.states.pop(StreamId(stream_id), None)

    def live(self) -> list[NewObject]:
        """As the controller tells it: dead ranges left out, objects without live ranges gone."""
        found = []
        for object_id, each in sorted(self.objects.items()):
            ranges = tuple(value for value in each.ranges if self.is_live(object_id, value))
            if ranges:
                found.append(replace(each, ranges=ranges))
        self.objects = {each.object_id: self.objects[each.object_id] for each in found}
        return found

    def is_live(self, object_id: ObjectId, value: StreamRange) -> bool:
        log_start = self.log_starts.get(value.stream_id)
        if log_start is None:
            return False
        state = self.states.get(value.stream_id)
        return value.end_offset > log_start or (state is not None and state[0] == object_id)

    def step(self) -> CompactionPlan | None:
        """One job, if there is one."""
        sources = choose_sources(self.live(), self.settings)
        if not sources:
            return None
        plan = plan_outputs(
            sources,
            log_start_offset_of=self.log_starts.get,
            newest_state_of=lambda stream_id: self.states[stream_id][0] if stream_id in self.states else None,
            settings=self.settings,
        )
        assert len(sources) <= self.settings.max_sources
        self.rewritten_bytes += sum(self.objects.pop(source).size_bytes for source in plan.sources)
        for output in plan.outputs:
            object_id = self.take_id()
            ranges = tuple(self.merged(object_id, planned, plan) for planned in output.ranges)
            self.objects[object_id] = NewObject(
                object_id=object_id, size_bytes=sum(value.size_bytes for value in ranges), ranges=ranges
            )
        return plan

    def merged(self, object_id: ObjectId, planned: PlannedRange, plan: CompactionPlan) -> StreamRange:
        pieces = [value for _, value in planned.pieces]
        for before, after in itertools.pairwise(pieces):
            assert before.end_offset == after.base_offset
        assert {source for source, _ in planned.pieces} <= set(plan.sources)
        if planned.state_source is not None:
            self.states[planned.stream_id] = (object_id, self.states[planned.stream_id][1])
        return StreamRange(
            stream_id=planned.stream_id, leader_epoch=1, base_offset=pieces[0].base_offset,
            end_offset=pieces[-1].end_offset, record_count=0, size_bytes=planned.size_bytes, max_timestamp_ms=0,
            has_state=planned.state_source is not None,
        )  # fmt: skip

    def settle(self) -> None:
        while self.step() is not None:
            pass

    def ranges_of(self) -> dict[StreamId, list[StreamRange]]:
        found: dict[StreamId, list[StreamRange]] = {}
        for each in self.live():
            for value in each.ranges:
                if value.end_offset > self.log_starts[value.stream_id]:
                    found.setdefault(value.stream_id, []).append(value)
        return found

    def check(self) -> None:
        """I5 from the log start to the end of each stream, and its newest state where it should be."""
        ranges_of = self.ranges_of()
        for stream_id, end in self.ends.items():
            ranges = sorted(ranges_of.get(stream_id, []), key=lambda value: value.base_offset)
            at = self.log_starts[stream_id]
            for value in ranges:
                assert value.base_offset <= at < value.end_offset
                at = value.end_offset
            assert at == end
        for stream_id, (object_id, _) in self.states.items():
            (held,) = [value for value in self.objects[object_id].ranges if value.stream_id == stream_id]
            assert held.has_state

    def most_ranges(self) -> int:
        return max(map(len, self.ranges_of().values()))


def test_neighbouring_uploads_are_merged_into_one() -> None:
    model = Model()
    for _ in range(9):
        model.upload({1: KIB, 2: 2 * KIB})
        assert model.step() is None
    model.upload({1: KIB, 2: 2 * KIB})
    plan = model.step()
    assert plan is not None
    assert len(plan.sources) == 10
    (output,) = plan.outputs
    assert [(planned.stream_id, len(planned.pieces)) for planned in output.ranges] == [(1, 10), (2, 10)]
    model.check()
    assert model.step() is None


def test_large_results_are_split_by_stream() -> None:
    model = Model()
    for _ in range(10):
        model.upload(dict.fromkeys(range(1, 9), 200 * KIB) | {20: MIB})
    plan = model.step()
    assert plan is not None
    groups = [[planned.stream_id for planned in output.ranges] for output in plan.outputs]
    assert groups == [[1], [2, 3], [4, 5], [6, 7], [8], [20]]
    model.check()


def test_what_the_store_copies_has_an_object_of_its_own() -> None:
    model = Model(
        replace(SETTINGS, object_size_bytes=64 * MIB, stream_object_max_bytes=256 * MIB, max_source_bytes=1 << 40)
    )
    for _ in range(10):
        model.upload({1: 100 * KIB, 2: 6 * MIB, 3: 200 * KIB, 4: 5 * MIB, 5: 4 * MIB})
    plan = model.step()
    assert plan is not None
    groups = [[planned.stream_id for planned in output.ranges] for output in plan.outputs]
    assert groups == [[1, 3, 5], [2], [4]]
    model.check()


def test_what_lies_between_comes_along() -> None:
    model = Model()
    for number in range(30):  # stream 1 is in every third upload, stream 2 in all
        model.upload({1: KIB, 2: KIB} if number % 3 == 0 else {2: KIB})
    sources = choose_sources(model.live(), replace(SETTINGS, max_sources=30))
    assert len(sources) == 30
    model.settle()
    model.check()
    assert model.most_ranges() == 1


def test_ranges_that_are_no_neighbours_go_to_different_objects() -> None:
    model = Model()
    for _ in range(3):
        model.upload({1: KIB, 2: KIB})
    first, _, last = model.live()
    plan = plan_outputs(
        [first, last], log_start_offset_of=model.log_starts.get, newest_state_of=lambda _: None, settings=SETTINGS
    )
    assert [[(planned.stream_id, len(planned.pieces)) for planned in output.ranges] for output in plan.outputs] == [
        [(1, 1), (2, 1)],
        [(1, 1), (2, 1)],
    ]


def test_deleted_streams_are_left_behind_and_newest_states_come_along() -> None:
    model = Model()
    for number in range(10):
        model.upload({1: KIB, 2: KIB, 3: KIB}, with_state=number == 4)
    model.delete(2)
    model.trim(3, 95)
    plan = model.step()
    assert plan is not None
    found = [[(planned.stream_id, planned.state_source) for planned in output.ranges] for output in plan.outputs]
    state_source = plan.sources[4]
    assert found == [[(1, state_source), (3, state_source)], [(3, None)]]  # what lay between the two of 3 is trimmed
    model.check()


def test_what_is_mostly_dead_is_rewritten() -> None:
    model = Model()
    model.upload({1: 3 * MIB, 2: MIB})
    assert model.step() is None
    model.delete(1)
    plan = model.step()
    assert plan is not None
    assert model.live()[0].size_bytes == MIB
    assert model.step() is None


def test_streams_that_are_seen_once_do_not_leave_an_object_each() -> None:
    model = Model()
    for number in range(500):
        model.upload({number: KIB})
        model.settle()
    model.check()
    assert len(model.live()) < 40


def test_a_state_that_outweighs_its_data_is_not_taken_for_garbage_twice() -> None:
    model = Model()
    model.upload({1: KIB})
    (small,) = model.live()
    heavy = replace(small, size_bytes=3 * MIB)
    assert choose_sources([heavy], SETTINGS) == (heavy,)
    assert choose_sources([heavy], SETTINGS, whole={heavy.object_id}) == ()


def test_small_objects_that_do_not_join_are_left_as_they_are() -> None:
    model = Model()
    for _ in range(12):
        model.upload({1: KIB})
        model.upload({1: SETTINGS.stream_object_max_bytes})
    assert choose_sources(model.live(), SETTINGS) == ()


def test_damaged_objects_are_left_alone() -> None:
    model = Model()
    for _ in range(12):
        model.upload({1: KIB})
    damaged = model.live()[1].object_id
    chosen = choose_sources(model.live(), SETTINGS, excluded={damaged})
    assert len(chosen) == 10
    assert damaged not in {each.object_id for each in chosen}


def test_the_limits_of_a_job() -> None:
    model = Model(replace(SETTINGS, max_sources=20, max_source_bytes=100 * KIB))
    for _ in range(50):
        model.upload({1: KIB, 2: 8 * KIB})
    assert len(choose_sources(model.live(), model.settings)) == 11  # of 9 KiB each
    model.settle()
    model.check()


UPLOADS_OF_A_DAY = 17_280
"""One every five seconds."""


def balanced(rng: random.Random, number: int) -> dict[int, int]:
    return dict.fromkeys(range(8), 64 * KIB)


def skewed(rng: random.Random, number: int) -> dict[int, int]:
    return {stream: rng.randint(1, 2 * 10**stream) for stream in range(7) if rng.random() < 0.9}


def trickling(rng: random.Random, number: int) -> dict[int, int]:
    return dict.fromkeys(rng.sample(range(120), 5), 100)


def bursting(rng: random.Random, number: int) -> dict[int, int]:
    size = 1 << rng.choice([8, 8, 8, 12, 20]) if number % 1000 < 500 else 300
    return dict.fromkeys(range(6), size)


@pytest.mark.parametrize(
    ("workload", "most_ranges", "most_objects", "most_rewrites"),
    [(balanced, 60, 200, 4), (skewed, 130, 200, 4), (trickling, 40, 100, 4), (bursting, 80, 200, 4)],
)
def test_a_day_of_uploads_leaves_few_ranges_a_stream(
    workload: Callable[[random.Random, int], dict[int, int]], most_ranges: int, most_objects: int, most_rewrites: float
) -> None:
    rng = random.Random(8)
    model = Model(
        replace(SETTINGS, object_size_bytes=16 * MIB, stream_object_max_bytes=64 * MIB, max_source_bytes=256 * MIB)
    )
    worst = 0
    for number in range(UPLOADS_OF_A_DAY):
        sizes = workload(rng, number)
        if sizes:
            model.upload(sizes)
        if number % 10 == 9:
            model.settle()
        if number % 500 == 0:
            model.check()
            worst = max(worst, model.most_ranges())
    model.check()
    assert worst <= most_ranges
    assert len(model.live()) <= most_objects
    assert model.rewritten_bytes <= most_rewrites * model.uploaded_bytes


SIZES = st.one_of(st.sampled_from([1, 100, 10 * KIB, MIB, 5 * MIB, 20 * MIB]), st.integers(1, 8 * MIB))
UPLOADED = st.tuples(
    st.dictionaries(st.integers(0, 40) | st.integers(0, 4), SIZES, min_size=1, max_size=12), st.booleans()
)
HISTORY = st.lists(
    st.one_of(
        UPLOADED,
        st.tuples(UPLOADED, st.integers(2, 15)),  # the same again and again
        st.tuples(st.just("trim"), st.integers(0, 40), st.floats(0, 1)),
        st.tuples(st.just("delete"), st.integers(0, 40)),
        st.just("compact"),
    ),
    max_size=40,
)


def upload(model: Model, sizes: dict[int, int], with_state: bool, deleted: set[int]) -> None:
    """Ids of streams are never used again."""
    known = {stream: size for stream, size in sizes.items() if stream not in deleted}
    if known:
        model.upload(known, with_state=with_state)


@settings(max_examples=200, deadline=None)
@given(history=HISTORY, fan_in=st.sampled_from([2, 3, 10]), max_sources=st.integers(10, 40))
def test_any_history_comes_to_rest_and_costs_few_rewrites(history: list[Any], fan_in: int, max_sources: int) -> None:
    model = Model(replace(SETTINGS, fan_in=fan_in, max_sources=max_sources))
    deleted: set[int] = set()
    for each in history:
        match each:
            case "compact":
                model.step()
            case ("trim", stream, part) if stream in model.ends:
                start = model.log_starts[stream]
                model.trim(stream, start + int((model.ends[stream] - start) * part))
            case ("delete", stream) if stream in model.ends:
                model.delete(stream)
                deleted.add(stream)
            case (dict() as sizes, with_state):
                upload(model, sizes, with_state, deleted)
            case ((dict() as sizes, with_state), times):
                for _ in range(times):
                    upload(model, sizes, with_state, deleted)
        model.check()
    live = model.live()
    most_jobs = len(live) + sum(len(each.ranges) for each in live)
    for _ in range(most_jobs):
        if model.step() is None:
            break
        model.check()
    assert model.step() is None, "something is rewritten for ever"
    # A byte goes up one level of sizes at a time: from a byte to the largest object, by nearly `fan_in` each time.
    levels = 2 + math.log(16 * MIB) / math.log(max(1.5, 0.8 * fan_in))
    assert model.rewritten_bytes <= levels * model.uploaded_bytes


@settings(deadline=None)
@given(st.integers(0, 1 << 30))
def test_any_history_keeps_every_live_offset(seed: int) -> None:
    rng = random.Random(seed)
    model = Model(
        replace(
            SETTINGS,
            fan_in=rng.choice([2, 3, 10]),
            max_fan_in=rng.choice([10, 16]),
            object_size_bytes=MIB,
            max_sources=16,
        )
    )
    alive = set(range(6))
    for _ in range(60):
        action = rng.random()
        if action < 0.7 and alive:
            chosen = rng.sample(sorted(alive), rng.randint(1, len(alive)))
            model.upload({stream: rng.choice([100, 10 * KIB, MIB]) for stream in chosen}, with_state=rng.random() < 0.3)
        elif action < 0.8 and model.ends:
            stream = rng.choice(sorted(model.ends))
            model.trim(stream, rng.randint(model.log_starts[stream], model.ends[stream]))
        elif action < 0.82 and model.ends:
            stream = rng.choice(sorted(model.ends))
            model.delete(stream)
            alive.discard(stream)
        else:
            model.step()
        model.check()
    model.settle()
    model.check()
