"""The memory of idempotent producers, without a broker (I11)."""

from __future__ import annotations

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from broker import producer_state
from broker.producer_state import (
    DUPLICATES_REMEMBERED,
    InvalidProducerEpoch,
    OutOfOrderSequence,
    ProducerBudget,
    ProducerStateCorrupt,
    ProducerStates,
)

TOP = 2**31 - 1


def append(
    states: ProducerStates,
    sequence: int,
    *,
    count: int = 1,
    pid: int = 1,
    epoch: int = 0,
    offset: int = 0,
    at: int = 0,
) -> int | None:
    """Check and record one batch; the offset of its original where it is a duplicate."""
    duplicate = states.check(pid, epoch, sequence, count)
    if duplicate is not None:
        return duplicate.base_offset
    states.record(pid, epoch, sequence, count, offset, -1, at)
    return None


def forgetful() -> ProducerStates:
    """Where somebody was forgotten: whoever is unknown may have been here before."""
    states = ProducerStates()
    append(states, 0, pid=77, at=0)
    assert states.expire(before_ms=1) == 1
    return states


def test_an_unknown_producer_may_start_anywhere_where_it_may_have_been_forgotten() -> None:
    # KIP-360: its state may have expired.
    assert append(forgetful(), 41) is None
    assert append(ProducerStates.restore(forgetful().snapshot()), 41) is None, "also after a restart"


def test_a_producer_that_was_never_here_starts_at_0() -> None:
    # Else the second of two batches under way would be taken, after the first was refused: its retry would pass for a duplicate.
    for states in (ProducerStates(), ProducerStates.restore(ProducerStates().snapshot())):
        append(states, 0, pid=2)
        with pytest.raises(OutOfOrderSequence, match="new here"):
            append(states, 5)
        assert append(states, 0, count=5) is None
        assert append(states, 5) is None


def test_a_snapshot_of_an_earlier_version_may_have_forgotten_somebody() -> None:
    body = struct.pack(">i", 0)
    data = struct.pack(">HHI", 0x5450, 1, crc32c(body)) + body
    assert append(ProducerStates.restore(data), 41) is None


def test_the_next_sequence_counts_records() -> None:
    states = ProducerStates()
    append(states, 0, count=10)
    with pytest.raises(OutOfOrderSequence):
        append(states, 1)
    with pytest.raises(OutOfOrderSequence):
        append(states, 11)
    assert append(states, 10) is None


def test_duplicates_must_match_exactly() -> None:
    states = ProducerStates()
    append(states, 0, count=3, offset=100)
    append(states, 3, count=2, offset=103)
    assert append(states, 0, count=3) == 100
    assert append(states, 3, count=2) == 103
    with pytest.raises(OutOfOrderSequence):
        append(states, 0, count=5)  # the same records in other batches: no client does that


def test_only_the_last_batches_are_known() -> None:
    states = ProducerStates()
    for sequence in range(DUPLICATES_REMEMBERED + 1):
        append(states, sequence, offset=sequence)
    assert append(states, 1) == 1
    with pytest.raises(OutOfOrderSequence):
        append(states, 0)


def test_a_new_epoch_starts_at_zero_and_fences_the_old() -> None:
    states = ProducerStates()
    append(states, 0)
    with pytest.raises(OutOfOrderSequence):
        append(states, 1, epoch=1)
    assert append(states, 0, epoch=1, offset=7) is None
    assert append(states, 0, epoch=1) == 7
    with pytest.raises(InvalidProducerEpoch):
        append(states, 1, epoch=0)


@pytest.mark.parametrize(("sequence", "count", "following"), [(TOP, 1, 0), (TOP, 2, 1), (TOP - 1, 5, 3)])
def test_sequences_wrap(sequence: int, count: int, following: int) -> None:
    states = forgetful()
    append(states, sequence, count=count, offset=9)
    assert append(states, sequence, count=count) == 9
    assert append(states, following) is None


def test_idle_producers_expire() -> None:
    states = ProducerStates()
    append(states, 0, pid=1, at=10)
    append(states, 0, pid=2, at=20)
    append(states, 1, pid=1, at=30)  # not idle any more
    assert states.expire(before_ms=25) == 1
    assert 1 in states
    assert 2 not in states
    assert append(states, 99, pid=2) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_state, "MAX_PRODUCERS_PER_PARTITION", 3)
    states = ProducerStates()
    for pid in (1, 2, 3):
        append(states, 0, pid=pid)
    append(states, 1, pid=1)
    append(states, 0, pid=4)
    assert [pid for pid in (1, 2, 3, 4) if pid in states] == [1, 3, 4]  # 2 was idle longest


events = st.lists(
    st.tuples(
        st.integers(1, 3),  # producer
        st.integers(0, 2),  # epoch
        st.sampled_from([0, 1, 2, 3, 5, TOP - 1, TOP]),  # sequence
        st.integers(1, 4),  # records
    ),
    max_size=60,
)


@given(events)
def test_every_decision_agrees_with_a_plain_model(batches: list[tuple[int, int, int, int]]) -> None:
    states = ProducerStates()
    history: dict[int, list[tuple[int, int, int, int]]] = {}
    for offset, (pid, epoch, sequence, count) in enumerate(batches):
        known = history.get(pid, [])
        newest = known[-1][0] if known else None
        mine = [item for item in known if item[0] == epoch]
        following = (mine[-1][1] + mine[-1][2]) % 2**31 if mine else None
        repeated = [item[3] for item in mine[-DUPLICATES_REMEMBERED:] if item[1:3] == (sequence, count)]
        try:
            duplicate = append(states, sequence, count=count, pid=pid, epoch=epoch, offset=offset)
        except InvalidProducerEpoch:
            assert newest is not None
            assert epoch < newest
        except OutOfOrderSequence:
            assert newest is None or epoch >= newest
            assert sequence != (following if mine else 0)
            assert not repeated
        else:
            if duplicate is None:
                assert sequence == (following if newest is not None and epoch == newest else 0)
                history.setdefault(pid, []).append((epoch, sequence, count, offset))
            else:
                assert duplicate in repeated


@given(events)
def test_snapshot_and_restore_are_inverses(batches: list[tuple[int, int, int, int]]) -> None:
    states = ProducerStates()
    for offset, (pid, epoch, sequence, count) in enumerate(batches):
        states.record(pid, epoch, sequence, count, offset, offset - 1, offset * 7)
    data = states.snapshot()
    assert ProducerStates.restore(data).snapshot() == data


def test_a_restored_state_goes_on_where_it_was() -> None:
    states = ProducerStates()
    append(states, 0, count=2, offset=5)
    restored = ProducerStates.restore(states.snapshot())
    assert append(restored, 0, count=2) == 5
    assert append(restored, 2) is None


def test_damage_is_detected() -> None:
    states = ProducerStates()
    for pid in range(3):
        append(states, 0, pid=pid)
    data = states.snapshot()
    for at in range(len(data)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            with pytest.raises(ProducerStateCorrupt):
                ProducerStates.restore(damaged)
    with pytest.raises(ProducerStateCorrupt):
        ProducerStates.restore(data + b"\0")


def test_a_node_forgets_those_that_were_idle_longest_in_any_partition() -> None:
    budget = ProducerBudget(160)
    partitions = [ProducerStates() for _ in range(4)]
    for states in partitions:
        states.share(budget)
    for pid in range(160):
        append(partitions[pid % 4], 0, pid=pid, at=pid)
    append(partitions[0], 1, pid=0, at=1000)  # the oldest is active again
    append(partitions[3], 0, pid=777, at=1001)  # one too many: room for some more is made at once
    remembered = {pid for states in partitions for pid in range(1000) if pid in states}
    assert remembered == {0, 777, *range(12, 160)}
    with pytest.raises(OutOfOrderSequence):
        append(partitions[0], 7, pid=0)  # active: its sequence is known
    assert append(partitions[1], 7, pid=1) is None  # forgotten: may start anywhere, as after an expiry


def test_a_storm_of_producers_costs_an_active_one_nothing() -> None:
    budget = ProducerBudget(64)
    storm, calm = ProducerStates(), ProducerStates()
    storm.share(budget)
    calm.share(budget)
    for pid in range(5000):
        append(storm, 0, pid=pid, at=pid)
        if pid % 50 == 0:
            append(calm, pid // 50, pid=9999, offset=pid, at=pid)
    assert append(calm, 99, pid=9999) == 4950, "its last batch is still known"
    assert len(storm) + len(calm) <= 64


def test_partitions_that_are_gone_do_not_count() -> None:
    budget = ProducerBudget(20)
    stays = ProducerStates()
    stays.share(budget)
    for _ in range(10):
        gone = ProducerStates()
        gone.share(budget)
        for pid in range(9):
            append(gone, 0, pid=pid)
        del gone
    for pid in range(11):
        append(stays, 0, pid=pid)
    assert len(stays) == 11


def test_what_is_restored_counts_as_well() -> None:
    states = ProducerStates()
    for pid in range(100):
        append(states, 0, pid=pid, at=pid)
    restored = ProducerStates.restore(states.snapshot())
    restored.share(ProducerBudget(50))
    assert {pid for pid in range(100) if pid in restored} == set(range(53, 100))
