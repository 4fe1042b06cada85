"""OffsetDelete (key 47, v0): remove some of a group's positions (KIP-496)."""

from collections.abc import Sequence

from protocol.types import Api, Message, int16, int32, string

__all__ = [
    "API",
    "OffsetDeleteRequest",
    "OffsetDeleteRequestPartition",
    "OffsetDeleteRequestTopic",
    "OffsetDeleteResponse",
    "OffsetDeleteResponsePartition",
    "OffsetDeleteResponseTopic",
]


class OffsetDeleteRequestPartition(Message):
    partition_index: int32 = 0


class OffsetDeleteRequestTopic(Message):
    name: string = ""
    partitions: Sequence[OffsetDeleteRequestPartition] = ()


class OffsetDeleteRequest(Message):
    group_id: string = ""
    topics: Sequence[OffsetDeleteRequestTopic] = ()


class OffsetDeleteResponsePartition(Message):
    partition_index: int32 = 0
    error_code: int16 = 0


class OffsetDeleteResponseTopic(Message):
    name: string = ""
    partitions: Sequence[OffsetDeleteResponsePartition] = ()


class OffsetDeleteResponse(Message):
    error_code: int16 = 0
    throttle_time_ms: int32 = 0
    topics: Sequence[OffsetDeleteResponseTopic] = ()


API = Api(
    key=47,
    name="OffsetDelete",
    min_version=0,
    max_version=0,
    flexible_since=1,
    request=OffsetDeleteRequest,
    response=OffsetDeleteResponse,
)
