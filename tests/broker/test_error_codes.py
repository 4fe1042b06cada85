"""Error codes are found wherever a response has them."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.dispatch import HANDLERS
from broker.error_codes import error_counter
from protocol.apis import API, api_named
from protocol.errors import ErrorCode
from protocol.messages.api_versions import ApiVersionsResponse
from protocol.messages.create_topics import CreatableTopicResult, CreateTopicsResponse
from protocol.messages.metadata import MetadataResponse, MetadataResponsePartition, MetadataResponseTopic
from protocol.types import Message


@pytest.mark.parametrize(
    ("name", "response", "codes"),
    [
        ("ApiVersions", ApiVersionsResponse(error_code=35), {35: 1}),
        ("CreateTopics", CreateTopicsResponse(), {}),
        (
            "CreateTopics",
            CreateTopicsResponse(
                topics=[
                    CreatableTopicResult(error_code=36),
                    CreatableTopicResult(),
                    CreatableTopicResult(error_code=36, topic_config_error_code=29),
                ]
            ),
            {36: 2, 29: 1},
        ),
        (
            "Metadata",
            MetadataResponse(
                topics=[
                    MetadataResponseTopic(partitions=[MetadataResponsePartition(error_code=5)]),
                    MetadataResponseTopic(error_code=3),
                ]
            ),
            {5: 1, 3: 1},
        ),
    ],
)
def test_codes_at_any_depth(name: str, response: Message, codes: dict[int, int]) -> None:
    count = error_counter(api_named(name).key)
    assert count is not None
    found: Counter[int] = Counter()
    count(response, found)
    assert found == codes


def test_every_api_that_is_served_can_be_counted() -> None:
    """All of Kafka's responses have a place for an error somewhere; and all codes have names."""
    for key in HANDLERS:
        assert error_counter(key) is not None, API[key].name
    assert ErrorCode(36).name == "TOPIC_ALREADY_EXISTS"
