"""ListOffsets (key 2, v1-11): the offset at a timestamp, or at a special position.

- Special timestamps: -1 latest, -2 earliest, -3 that of the largest timestamp (v7, KIP-734), -4 earliest local
  (v8, KIP-405), -5 latest tiered (v9, KIP-1005), -6 earliest pending upload (v11, KIP-1023).
- v2 adds the isolation level; v4 leader epochs (KIP-320); v10 a timeout for remote lookups (KIP-1075).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, int8, int16, int32, int64, since, string

__all__ = [
    "API",
    "ListOffsetsPartition",
    "ListOffsetsPartitionResponse",
    "ListOffsetsRequest",
    "ListOffsetsResponse",
    "ListOffsetsTopic",
    "ListOffsetsTopicResponse",
]


class ListOffsetsPartition(Message):
    partition_index: int32 = 0
    current_leader_epoch: Annotated[int32, since(4)] = -1
    timestamp: int64 = 0


class ListOffsetsTopic(Message):
    name: string = ""
    partitions: Sequence[ListOffsetsPartition] = ()


class ListOffsetsRequest(Message):
    replica_id: int32 = 0
    isolation_level: Annotated[int8, since(2)] = 0
    topics: Sequence[ListOffsetsTopic] = ()
    timeout_ms: Annotated[int32, since(10)] = 0


class ListOffsetsPartitionResponse(Message):
    partition_index: int32 = 0
    error_code: int16 = 0
    timestamp: int64 = -1
    offset: int64 = -1
    leader_epoch: Annotated[int32, since(4)] = -1


class ListOffsetsTopicResponse(Message):
    name: string = ""
    partitions: Sequence[ListOffsetsPartitionResponse] = ()


class ListOffsetsResponse(Message):
    throttle_time_ms: Annotated[int32, since(2)] = 0
    topics: Sequence[ListOffsetsTopicResponse] = ()


API = Api(
    key=2,
    name="ListOffsets",
    min_version=1,
    max_version=11,
    flexible_since=6,
    request=ListOffsetsRequest,
    response=ListOffsetsResponse,
)
