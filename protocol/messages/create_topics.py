"""CreateTopics (key 19, v2-7): create topics with partitions and configs.

- v4 allows -1 for "the broker's default" of partitions and replication factor (KIP-464).
- v5 returns the created topic's configs (KIP-525), v7 its id (KIP-516). v6 may answer THROTTLING_QUOTA_EXCEEDED.
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import NULL_UUID, Api, Message, Uuid, boolean, int8, int16, int32, since, string, tag

__all__ = [
    "API",
    "CreatableReplicaAssignment",
    "CreatableTopic",
    "CreatableTopicConfig",
    "CreatableTopicConfigs",
    "CreatableTopicResult",
    "CreateTopicsRequest",
    "CreateTopicsResponse",
]


class CreatableReplicaAssignment(Message):
    partition_index: int32 = 0
    broker_ids: Sequence[int32] = ()


class CreatableTopicConfig(Message):
    name: string = ""
    value: string | None = ""


class CreatableTopic(Message):
    name: string = ""
    num_partitions: int32 = 0
    replication_factor: int16 = 0
    assignments: Sequence[CreatableReplicaAssignment] = ()
    configs: Sequence[CreatableTopicConfig] = ()


class CreateTopicsRequest(Message):
    topics: Sequence[CreatableTopic] = ()
    timeout_ms: int32 = 60000
    validate_only: boolean = False


class CreatableTopicConfigs(Message):
    name: string = ""
    value: string | None = ""
    read_only: boolean = False
    config_source: int8 = -1
    is_sensitive: boolean = False


class CreatableTopicResult(Message):
    name: string = ""
    topic_id: Annotated[Uuid, since(7)] = NULL_UUID
    error_code: int16 = 0
    error_message: string | None = ""
    topic_config_error_code: Annotated[int16, since(5), tag(0)] = 0
    num_partitions: Annotated[int32, since(5)] = -1
    replication_factor: Annotated[int16, since(5)] = -1
    configs: Annotated[Sequence[CreatableTopicConfigs] | None, since(5)] = ()


class CreateTopicsResponse(Message):
    throttle_time_ms: int32 = 0
    topics: Sequence[CreatableTopicResult] = ()


API = Api(
    key=19,
    name="CreateTopics",
    min_version=2,
    max_version=7,
    flexible_since=5,
    request=CreateTopicsRequest,
    response=CreateTopicsResponse,
)
