"""Counting by size class."""

from __future__ import annotations

from wal.histogram import COUNT_BOUNDS, DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, Histogram


def test_bounds_are_inclusive_and_the_last_class_takes_the_rest() -> None:
    histogram = Histogram((1.0, 10.0))
    for value in (0.5, 1.0, 1.5, 10.0, 10.5, 1e9):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 2]
    assert histogram.count == 6
    assert histogram.total == 0.5 + 1.0 + 1.5 + 10.0 + 10.5 + 1e9


def test_bounds_ascend() -> None:
    for bounds in (DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, COUNT_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
