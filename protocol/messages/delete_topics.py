"""DeleteTopics (key 20, v1-6): delete topics by name, or from v6 on by id (KIP-516).

- v5 adds error messages, and may answer THROTTLING_QUOTA_EXCEEDED (KIP-599).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import NULL_UUID, Api, Message, Uuid, int16, int32, nullable_since, since, string, until

__all__ = ["API", "DeletableTopicResult", "DeleteTopicState", "DeleteTopicsRequest", "DeleteTopicsResponse"]


class DeleteTopicState(Message):
    name: string | None = None
    topic_id: Uuid = NULL_UUID


class DeleteTopicsRequest(Message):
    topics: Annotated[Sequence[DeleteTopicState], since(6)] = ()
    topic_names: Annotated[Sequence[string], until(5)] = ()
    timeout_ms: int32 = 0


class DeletableTopicResult(Message):
    name: Annotated[string | None, nullable_since(6)] = ""
    topic_id: Annotated[Uuid, since(6)] = NULL_UUID
    error_code: int16 = 0
    error_message: Annotated[string | None, since(5)] = None


class DeleteTopicsResponse(Message):
    throttle_time_ms: int32 = 0
    responses: Sequence[DeletableTopicResult] = ()


API = Api(
    key=20,
    name="DeleteTopics",
    min_version=1,
    max_version=6,
    flexible_since=4,
    request=DeleteTopicsRequest,
    response=DeleteTopicsResponse,
)
