"""Kafka's error codes."""

from __future__ import annotations

from kio.schema.errors import ErrorCode as KioErrorCode

from protocol.errors import ErrorCode


def test_codes_names_and_retriability_are_kafkas() -> None:
    ours = {code.name: (int(code), code.retriable) for code in ErrorCode}
    assert ours == {code.name.upper(): (int(code), code.retriable) for code in KioErrorCode}


def test_a_code_is_its_number() -> None:
    assert ErrorCode(6) is ErrorCode.NOT_LEADER_OR_FOLLOWER
    assert ErrorCode.NOT_LEADER_OR_FOLLOWER == 6
    assert ErrorCode.NOT_LEADER_OR_FOLLOWER.retriable
    assert not ErrorCode.MESSAGE_TOO_LARGE.retriable
