"""Incremental fetch sessions (KIP-227), without a broker."""

from __future__ import annotations

import random

import pytest

from broker import fetch_session
from broker.fetch_session import (
    FetchContext,
    FetchSessionCache,
    FetchSessionIdNotFound,
    FetchSessionTopicIdError,
    InvalidFetchSessionEpoch,
    SessionPartition,
)


class Clock:
    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> int:
        return self.ms


def make_cache(clock: Clock, max_slots: int = 2) -> FetchSessionCache:
    return FetchSessionCache(max_slots=max_slots, eviction_ms=1000, rng=random.Random(1), now_ms=clock)


def wanted(*partitions: int, offset: int = 0) -> list[SessionPartition]:
    return [
        SessionPartition(topic="t", partition=index, fetch_offset=offset, max_bytes=100, current_leader_epoch=-1)
        for index in partitions
    ]


def ask(
    cache: FetchSessionCache,
    session_id: int,
    session_epoch: int,
    partitions: list[SessionPartition],
    forgotten: list[int] | None = None,
    *,
    uses_topic_ids: bool = False,
) -> FetchContext:
    return cache.context(
        session_id=session_id,
        session_epoch=session_epoch,
        uses_topic_ids=uses_topic_ids,
        partitions=partitions,
        forgotten=[("t", index) for index in forgotten or []],
    )


def indexes(context: FetchContext) -> list[int]:
    return [partition.partition for partition in context.partitions]


def answer(
    context: FetchContext, *, has_records: bool = False, high_watermark: int = 0, error: bool = False
) -> list[int]:
    """Partitions that the response names."""
    return [
        partition.partition
        for partition in context.partitions
        if context.must_answer(
            partition, has_records=has_records, error=error, high_watermark=high_watermark, log_start_offset=0
        )
    ]


def test_without_a_session_everything_is_answered() -> None:
    cache = make_cache(Clock())
    context = ask(cache, 0, -1, wanted(0, 1))
    assert context.session_id == 0
    assert answer(context) == [0, 1]
    assert len(cache) == 0


def test_a_session_answers_only_what_changed() -> None:
    cache = make_cache(Clock())
    first = ask(cache, 0, 0, wanted(0, 1))
    assert first.session_id != 0
    assert answer(first) == [0, 1]
    second = ask(cache, first.session_id, 1, [])
    assert indexes(second) == [0, 1]
    assert answer(second) == []
    assert answer(ask(cache, first.session_id, 2, []), high_watermark=5) == [0, 1]
    assert answer(ask(cache, first.session_id, 3, []), high_watermark=5) == []


def test_an_error_is_followed_by_an_answer_when_it_is_over() -> None:
    cache = make_cache(Clock())
    session_id = ask(cache, 0, 0, wanted(0)).session_id
    assert answer(ask(cache, session_id, 1, []), error=True) == [0]
    assert answer(ask(cache, session_id, 2, [])) == [0]


def test_partitions_are_added_changed_and_forgotten() -> None:
    cache = make_cache(Clock())
    session_id = ask(cache, 0, 0, wanted(0, 1)).session_id
    context = ask(cache, session_id, 1, wanted(1, 2, offset=7), forgotten=[0])
    assert [(one.partition, one.fetch_offset) for one in context.partitions] == [(1, 7), (2, 7)]
    assert cache.partition_count == 2


def test_partitions_with_data_go_to_the_end() -> None:
    cache = make_cache(Clock())
    context = ask(cache, 0, 0, wanted(0, 1, 2))
    context.must_answer(context.partitions[0], has_records=True, error=False, high_watermark=1, log_start_offset=0)
    assert indexes(ask(cache, context.session_id, 1, [])) == [1, 2, 0]


def test_unknown_sessions_and_wrong_epochs() -> None:
    cache = make_cache(Clock())
    session_id = ask(cache, 0, 0, wanted(0)).session_id
    with pytest.raises(FetchSessionIdNotFound):
        ask(cache, session_id + 1, 1, [])
    with pytest.raises(InvalidFetchSessionEpoch):
        ask(cache, session_id, 2, [])
    with pytest.raises(FetchSessionTopicIdError):
        ask(cache, session_id, 1, [], uses_topic_ids=True)
    assert indexes(ask(cache, session_id, 1, [])) == [0]


def test_a_full_request_closes_the_session_it_names() -> None:
    cache = make_cache(Clock())
    first = ask(cache, 0, 0, wanted(0)).session_id
    second = ask(cache, first, 0, wanted(0)).session_id
    assert second not in (0, first)
    with pytest.raises(FetchSessionIdNotFound):
        ask(cache, first, 1, [])
    assert ask(cache, second, -1, wanted(0)).session_id == 0
    assert (len(cache), cache.partition_count) == (0, 0)


def test_a_session_without_partitions_ends() -> None:
    cache = make_cache(Clock())
    session_id = ask(cache, 0, 0, wanted(0)).session_id
    assert ask(cache, session_id, 1, [], forgotten=[0]).session_id == 0
    assert len(cache) == 0


def test_the_epoch_wraps_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_session, "_MAX_EPOCH", 2)
    cache = make_cache(Clock())
    session_id = ask(cache, 0, 0, wanted(0)).session_id
    for epoch in (1, 2, 1, 2, 1):
        assert indexes(ask(cache, session_id, epoch, [])) == [0]


def test_only_idle_sessions_are_evicted() -> None:
    clock = Clock()
    cache = make_cache(clock)
    old = ask(cache, 0, 0, wanted(0)).session_id
    clock.ms = 600
    ask(cache, 0, 0, wanted(0))
    assert ask(cache, 0, 0, wanted(0)).session_id == 0  # nobody has been idle for long: no session
    clock.ms = 1100
    assert ask(cache, 0, 0, wanted(0)).session_id != 0
    with pytest.raises(FetchSessionIdNotFound):
        ask(cache, old, 1, [])


def test_partitions_of_all_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_session, "MAX_SESSION_PARTITIONS", 3)
    cache = make_cache(Clock())
    session_id = ask(cache, 0, 0, wanted(0, 1)).session_id
    assert ask(cache, 0, 0, wanted(0, 1)).session_id == 0
    # A session that grows too large is closed: partitions left out in silence would starve.
    with pytest.raises(FetchSessionIdNotFound):
        ask(cache, session_id, 1, wanted(2, 3))
    assert (len(cache), cache.partition_count) == (0, 0)
