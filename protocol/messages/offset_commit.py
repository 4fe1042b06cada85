"""OffsetCommit (key 8, v2-10): store a group's positions.

- v5 drops the retention time (KIP-211); v6 adds leader epochs (KIP-320); v7 static membership (KIP-345).
- v9 takes the member epoch of the new group protocol (KIP-848); v10 names topics by id.
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import NULL_UUID, Api, Message, Uuid, int16, int32, int64, since, string, until

__all__ = [
    "API",
    "OffsetCommitRequest",
    "OffsetCommitRequestPartition",
    "OffsetCommitRequestTopic",
    "OffsetCommitResponse",
    "OffsetCommitResponsePartition",
    "OffsetCommitResponseTopic",
]


class OffsetCommitRequestPartition(Message):
    partition_index: int32 = 0
    committed_offset: int64 = 0
    committed_leader_epoch: Annotated[int32, since(6)] = -1
    committed_metadata: string | None = ""


class OffsetCommitRequestTopic(Message):
    name: Annotated[string, until(9)] = ""
    topic_id: Annotated[Uuid, since(10)] = NULL_UUID
    partitions: Sequence[OffsetCommitRequestPartition] = ()


class OffsetCommitRequest(Message):
    group_id: string = ""
    generation_id_or_member_epoch: int32 = -1
    member_id: string = ""
    group_instance_id: Annotated[string | None, since(7)] = None
    retention_time_ms: Annotated[int64, until(4)] = -1
    topics: Sequence[OffsetCommitRequestTopic] = ()


class OffsetCommitResponsePartition(Message):
    partition_index: int32 = 0
    error_code: int16 = 0


class OffsetCommitResponseTopic(Message):
    name: Annotated[string, until(9)] = ""
    topic_id: Annotated[Uuid, since(10)] = NULL_UUID
    partitions: Sequence[OffsetCommitResponsePartition] = ()


class OffsetCommitResponse(Message):
    throttle_time_ms: Annotated[int32, since(3)] = 0
    topics: Sequence[OffsetCommitResponseTopic] = ()


API = Api(
    key=8,
    name="OffsetCommit",
    min_version=2,
    max_version=10,
    flexible_since=8,
    request=OffsetCommitRequest,
    response=OffsetCommitResponse,
)
