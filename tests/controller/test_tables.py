"""Sets of ids as intervals, against Python's own."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.tables import IdSet


@settings(deadline=None)
@given(st.lists(st.integers(0, 40)))
def test_an_id_set_is_a_set(values: list[int]) -> None:
    ids, model = IdSet(), set[int]()
    for value in values:
        ids.add(value)
        model.add(value)
        assert [each for each in range(-1, 42) if each in ids] == sorted(model)
    intervals = ids.intervals()
    assert [each for start, end in intervals for each in range(start, end)] == sorted(model)
    assert all(first[1] < second[0] for first, second in pairwise(intervals)), "joined"
    assert IdSet(intervals).intervals() == intervals


def test_all_ids_of_a_long_sequence_are_one_interval() -> None:
    ids = IdSet()
    for value in (*range(1, 10_000, 2), *range(0, 10_000, 2)):
        ids.add(value)
    assert ids.intervals() == ((0, 10_000),)
