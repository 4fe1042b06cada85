"""Deadlines as data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.groups.timers import Timer, Timers


def test_a_deadline_that_moves_away_is_not_due() -> None:
    timers, timer = Timers(), Timer("session", None)
    timers.set(timer, 10)
    timers.set(timer, 30)  # a heartbeat
    assert timers.next_ms == 10  # too early is allowed
    assert list(timers.pop_due(10)) == []
    assert timers.next_ms == 30
    assert list(timers.pop_due(30)) == [timer]
    assert timers.next_ms is None


def test_a_deadline_may_come_nearer_or_be_cancelled() -> None:
    timers, first, second = Timers(), Timer("session", None), Timer("session", None)
    timers.set(first, 300)
    timers.set(first, 20)
    timers.set(second, 15)
    timers.cancel(second)
    timers.cancel(second)
    assert list(timers.pop_due(20)) == [first]
    assert list(timers.pop_due(1000)) == []
    assert len(timers) == 0


def test_what_is_set_meanwhile_has_to_wait() -> None:
    timers, again, other = Timers(), Timer("again", None), Timer("other", None)
    timers.set(again, 10)
    timers.set(other, 10)
    for timer in timers.pop_due(10):
        assert timer is again
        timers.set(again, 10)  # without end, were it given once more
        timers.cancel(other)
    assert timers.next_ms == 10
    assert list(timers.pop_due(10)) == [again]
    assert list(timers.pop_due(1_000)) == []


def test_the_heap_does_not_keep_what_was_cancelled() -> None:
    timers = Timers()
    for number in range(10_000):
        timer = Timer("session", None)
        timers.set(timer, 1_000 + number)
        timers.set(timer, 500 + number)
        timers.cancel(timer)
    assert len(timers._heap) < 100


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 50)), max_size=200))
def test_each_is_due_exactly_when_it_was_last_set_to(changes: list[tuple[int, int | None]]) -> None:
    timers = Timers()
    those = [Timer(number, None) for number in range(6)]
    due: dict[int, int] = {}
    for number, at_ms in changes:
        if at_ms is None:
            timers.cancel(those[number])
            due.pop(number, None)
        else:
            timers.set(those[number], at_ms)
            due[number] = at_ms
    for now_ms in range(51):
        found = sorted(timer.kind for timer in timers.pop_due(now_ms))
        assert found == sorted(number for number, at_ms in due.items() if at_ms == now_ms)
    assert len(timers) == 0
