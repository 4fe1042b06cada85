"""OffsetFetch (key 9, v1-10): read a group's stored positions.

- v2 allows null topics for "all" and adds a top-level error; v5 leader epochs (KIP-320); v7 `require_stable` (KIP-447).
- v8 asks for many groups at once (KIP-709); v9 carries the member epoch (KIP-848); v10 names topics by id.
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import (
    NULL_UUID,
    Api,
    Message,
    Uuid,
    boolean,
    int16,
    int32,
    int64,
    nullable_since,
    since,
    string,
    until,
)

__all__ = [
    "API",
    "OffsetFetchRequest",
    "OffsetFetchRequestGroup",
    "OffsetFetchRequestTopic",
    "OffsetFetchRequestTopics",
    "OffsetFetchResponse",
    "OffsetFetchResponseGroup",
    "OffsetFetchResponsePartition",
    "OffsetFetchResponsePartitions",
    "OffsetFetchResponseTopic",
    "OffsetFetchResponseTopics",
]


class OffsetFetchRequestTopic(Message):
    name: string = ""
    partition_indexes: Sequence[int32] = ()


class OffsetFetchRequestTopics(Message):
    name: Annotated[string, until(9)] = ""
    topic_id: Annotated[Uuid, since(10)] = NULL_UUID
    partition_indexes: Sequence[int32] = ()


class OffsetFetchRequestGroup(Message):
    group_id: string = ""
    member_id: Annotated[string | None, since(9)] = None
    member_epoch: Annotated[int32, since(9)] = -1
    topics: Sequence[OffsetFetchRequestTopics] | None = ()


class OffsetFetchRequest(Message):
    group_id: Annotated[string, until(7)] = ""
    topics: Annotated[Sequence[OffsetFetchRequestTopic] | None, until(7), nullable_since(2)] = ()
    groups: Annotated[Sequence[OffsetFetchRequestGroup], since(8)] = ()
    require_stable: Annotated[boolean, since(7)] = False


class OffsetFetchResponsePartition(Message):
    partition_index: int32 = 0
    committed_offset: int64 = 0
    committed_leader_epoch: Annotated[int32, since(5)] = -1
    metadata: string | None = ""
    error_code: int16 = 0


class OffsetFetchResponseTopic(Message):
    name: string = ""
    partitions: Sequence[OffsetFetchResponsePartition] = ()


class OffsetFetchResponsePartitions(Message):
    partition_index: int32 = 0
    committed_offset: int64 = 0
    committed_leader_epoch: int32 = -1
    metadata: string | None = ""
    error_code: int16 = 0


class OffsetFetchResponseTopics(Message):
    name: Annotated[string, until(9)] = ""
    topic_id: Annotated[Uuid, since(10)] = NULL_UUID
    partitions: Sequence[OffsetFetchResponsePartitions] = ()


class OffsetFetchResponseGroup(Message):
    group_id: string = ""
    topics: Sequence[OffsetFetchResponseTopics] = ()
    error_code: int16 = 0


class OffsetFetchResponse(Message):
    throttle_time_ms: Annotated[int32, since(3)] = 0
    topics: Annotated[Sequence[OffsetFetchResponseTopic], until(7)] = ()
    error_code: Annotated[int16, since(2), until(7)] = 0
    groups: Annotated[Sequence[OffsetFetchResponseGroup], since(8)] = ()


API = Api(
    key=9,
    name="OffsetFetch",
    min_version=1,
    max_version=10,
    flexible_since=6,
    request=OffsetFetchRequest,
    response=OffsetFetchResponse,
)
