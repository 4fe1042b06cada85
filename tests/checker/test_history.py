"""The checker is itself checked: it passes an honest log, and finds each fault that is planted in one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from tests.checker.history import FinalLog, Found, History, Kind, check

PARTITION = "orders-0"
OFFSETS = 200


def honest(seed: int = 0) -> tuple[History, list[Found]]:
    """Two idempotent producers and a plain one interleave; most of what they sent was acknowledged and seen."""
    rng = random.Random(seed)
    history = History()
    history.idempotent("a")
    history.idempotent("b")
    numbers = {"a": 0, "b": 0, "plain": 0}
    log = []
    for offset in range(OFFSETS):
        producer = rng.choice(sorted(numbers))
        number = numbers[producer]
        numbers[producer] += 1
        digest = rng.getrandbits(64)
        history.sent(PARTITION, producer, number, digest)
        log.append(Found(offset, producer, number, digest))
        if offset % 10:
            history.acknowledged(PARTITION, producer, number, offset)
    history.seen(PARTITION, log[20:100])
    return history, log


def final(log: Sequence[Found], *, start: int = 0, end: int | None = None) -> dict[str, FinalLog]:
    return {
        PARTITION: FinalLog(log_start_offset=start, log_end_offset=len(log) if end is None else end, found=list(log))
    }


def renumbered(log: Sequence[Found]) -> list[Found]:
    return [record._replace(offset=offset) for offset, record in enumerate(log)]


def kinds(history: History, log: Sequence[Found]) -> set[Kind]:
    return {violation.kind for violation in history.check(final(log))}


def test_an_honest_log_passes() -> None:
    history, log = honest()
    check(history, final(log))
    assert history.sent_count == OFFSETS
    assert history.acknowledged_count == OFFSETS * 9 // 10
    assert history.seen_count == 80


def test_what_retention_removed_is_not_lost() -> None:
    history, log = honest()
    check(history, final(log[150:], start=150, end=OFFSETS))


def test_what_was_never_acknowledged_nor_seen_may_be_missing() -> None:
    history, log = honest()
    history.sent(PARTITION, "a", 10_000, 1)
    check(history, final(log))


def test_a_plain_producer_may_be_duplicated_by_its_own_retries() -> None:
    history, log = honest()
    record = next(record for record in log if record.producer == "plain")
    check(history, final([*log, record._replace(offset=OFFSETS)]))


@pytest.mark.parametrize("seed", range(5))
def test_a_lost_tail_is_found(seed: int) -> None:
    history, log = honest(seed)
    assert Kind.LOSS in kinds(history, log[: OFFSETS - 1])


def test_a_lost_record_in_the_middle_is_found() -> None:
    history, log = honest()
    assert Kind.GAP in kinds(history, log[:55] + log[56:])
    assert Kind.LOSS in kinds(history, log[:55] + log[56:])


def test_a_lost_record_that_shifts_the_rest_is_found() -> None:
    history, log = honest()
    assert {Kind.LOSS, Kind.WRONG_OFFSET, Kind.WENT_BACK} <= kinds(history, renumbered(log[:55] + log[56:]))


def test_a_duplicate_is_found() -> None:
    history, log = honest()
    record = next(record for record in log if record.producer == "a")
    assert kinds(history, [*log, record._replace(offset=OFFSETS)]) == {Kind.DUPLICATION}


def test_a_reordering_is_found() -> None:
    history = History()
    history.idempotent("a")
    for number in range(3):
        history.sent(PARTITION, "a", number, number)
    # The second was not acknowledged, and came after the third.
    history.acknowledged(PARTITION, "a", 0, 0)
    history.acknowledged(PARTITION, "a", 2, 1)
    log = [Found(0, "a", 0, 0), Found(1, "a", 2, 2), Found(2, "a", 1, 1)]
    assert kinds(history, log) == {Kind.REORDER}


def test_swapped_records_are_found() -> None:
    history, log = honest()
    a, b = [record for record in log if record.producer == "a" and record.offset % 10][:2]
    swapped = list(log)
    swapped[a.offset] = b._replace(offset=a.offset)
    swapped[b.offset] = a._replace(offset=b.offset)
    assert {Kind.REORDER, Kind.WRONG_OFFSET} <= kinds(history, swapped)


@pytest.mark.parametrize(
    "change",
    [lambda record: record._replace(digest=record.digest ^ 1), lambda record: record._replace(number=99_999)],
    ids=["a byte", "a record that nobody sent"],
)
def test_corruption_is_found(change: Callable[[Found], Found]) -> None:
    history, log = honest()
    log[60] = change(log[60])
    assert Kind.CORRUPTION in kinds(history, log)


def test_a_second_acknowledgement_at_another_offset_is_found() -> None:
    history, log = honest()
    record = next(record for record in log if record.producer == "a" and record.offset % 10)
    history.acknowledged(PARTITION, "a", record.number, OFFSETS)
    assert kinds(history, log) == {Kind.DUPLICATION}


def test_an_offset_promised_twice_is_found() -> None:
    history, log = honest()
    history.sent(PARTITION, "b", 10_000, 1)
    history.acknowledged(PARTITION, "b", 10_000, 11)
    assert Kind.WRONG_OFFSET in kinds(history, log)


def test_a_record_that_was_seen_and_then_replaced_is_found() -> None:
    history = History()
    history.sent(PARTITION, "plain", 0, 7)
    history.sent(PARTITION, "plain", 1, 8)
    history.seen(PARTITION, [Found(0, "plain", 0, 7)])
    history.seen(PARTITION, [Found(0, "plain", 1, 8)])
    assert kinds(history, [Found(0, "plain", 1, 8)]) == {Kind.WENT_BACK}


def test_one_fault_in_thousands_of_records_is_told_briefly() -> None:
    history, log = honest()
    violations = history.check(final(renumbered(log[1:])))
    assert 0 < len(violations) <= 20
    with pytest.raises(AssertionError, match="orders-0 at offset"):
        check(history, final(renumbered(log[1:])))
