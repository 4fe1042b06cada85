"""The leader epoch cache (KIP-101, KIP-320)."""

from __future__ import annotations

from broker.leader_epochs import EpochCheck, LeaderEpochs, check_leader_epoch


def test_a_clients_epoch_is_compared() -> None:
    assert check_leader_epoch(-1, 5) is EpochCheck.CURRENT
    assert check_leader_epoch(5, 5) is EpochCheck.CURRENT
    assert check_leader_epoch(4, 5) is EpochCheck.FENCED
    assert check_leader_epoch(6, 5) is EpochCheck.UNKNOWN


def make(*entries: tuple[int, int]) -> LeaderEpochs:
    epochs = LeaderEpochs()
    for leader_epoch, start_offset in entries:
        epochs.begin(leader_epoch, start_offset)
    return epochs


def test_end_offsets() -> None:
    epochs = make((0, 0), (2, 10), (5, 30))
    assert epochs.end_offset(0, 40) == (0, 10)
    assert epochs.end_offset(1, 40) == (0, 10)
    assert epochs.end_offset(2, 40) == (2, 30)
    assert epochs.end_offset(9, 40) == (5, 40)
    assert epochs.end_offset(-1, 40) == (-1, -1)
    assert make().end_offset(3, 40) == (-1, -1)
    assert make((4, 7), (5, 30)).end_offset(3, 40) == (3, 7), "what is older than all known ends where they begin"


def test_an_epoch_without_records_leaves_no_trace() -> None:
    assert make((0, 0), (1, 10), (2, 10)).entries() == [(0, 0), (2, 10)]


def test_repeated_and_older_epochs_change_nothing() -> None:
    assert make((3, 0), (3, 5), (2, 7)).entries() == [(3, 0)]


def test_epoch_at() -> None:
    epochs = make((1, 5), (2, 10))
    assert [epochs.epoch_at(offset) for offset in (4, 5, 9, 10, 99)] == [-1, 1, 1, 2, 2]


def test_trim_keeps_the_epoch_that_holds_the_log_start() -> None:
    epochs = make((0, 0), (1, 10), (2, 20))
    epochs.trim(15)
    assert epochs.entries() == [(1, 15), (2, 20)]
    epochs.trim(20)
    assert epochs.entries() == [(2, 20)]
