"""Topic names and topic configuration."""

from __future__ import annotations

import pytest

from broker.config import BrokerSettings
from broker.topic_config import InvalidTopicConfig, check_topic_name, resolve, validate


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 249, "__consumer_offsets"])
def test_good_names(name: str) -> None:
    assert check_topic_name(name) is None


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 250, "a b", "ä", "a/b", "a\n"])
def test_bad_names(name: str) -> None:
    assert check_topic_name(name) is not None


def test_known_configs_are_kept_as_given() -> None:
    given = {
        "retention.ms": "-1",
        "segment.bytes": "1048576",
        "compression.type": "zstd",
        "cleanup.policy": "compact,delete",
    }
    assert validate(given) == given
    assert validate({"retention.ms": None}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention.millis", "1"),
        ("retention.ms", "soon"),
        ("retention.ms", "-2"),
        ("cleanup.policy", "archive"),
        ("cleanup.policy", ""),
        ("min.insync.replicas", "0"),
        ("min.cleanable.dirty.ratio", "1.1"),
        ("preallocate", "yes"),
        ("message.timestamp.type", "createtime"),
    ],
)
def test_bad_configs(name: str, value: str) -> None:
    with pytest.raises(InvalidTopicConfig, match=name):
        validate({name: value})


def test_a_topic_overrides_the_broker() -> None:
    settings = BrokerSettings(message_max_bytes=5000, log_retention_ms=7)
    plain = resolve({}, settings)
    assert (plain.max_message_bytes, plain.retention_ms, plain.delete, plain.compact) == (5000, 7, True, False)
    own = resolve(
        {"max.message.bytes": "9", "cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"}, settings
    )
    assert (own.max_message_bytes, own.delete, own.compact, own.log_append_time) == (9, False, True, True)
