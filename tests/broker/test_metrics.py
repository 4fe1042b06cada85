"""Figures of topics: a bounded number of rows, and no sum that goes back."""

from __future__ import annotations

from broker.metrics import Metrics


def test_topics_beyond_the_bound_share_a_row() -> None:
    metrics = Metrics(max_topics=2)
    first, second = metrics.topic("a"), metrics.topic("b")
    assert metrics.topic("a") is first
    assert first is not second
    assert metrics.topic("c") is metrics.topic("d") is metrics.other_topics
    assert set(metrics.topics) == {"a", "b"}


def test_the_place_of_a_topic_that_is_gone_is_for_one_that_comes_later() -> None:
    metrics = Metrics(max_topics=1)
    metrics.topic("a").bytes_in += 1
    waiting = metrics.topic("b")
    waiting.bytes_in += 10
    metrics.forget_topic("a")
    metrics.topic("c").bytes_in += 100
    # "b" stays where it was counted before: the sum of all others must not go back.
    waiting.bytes_in += 10
    assert {name: row.bytes_in for name, row in metrics.topics.items()} == {"c": 100}
    assert metrics.other_topics.bytes_in == 20


def test_without_rows_of_their_own_everything_is_in_one() -> None:
    metrics = Metrics(max_topics=0)
    assert metrics.topic("a") is metrics.other_topics
    metrics.forget_topic("a")
