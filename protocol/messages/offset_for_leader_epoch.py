"""OffsetForLeaderEpoch (key 23, v2-4): where a leader epoch ends, so that consumers notice truncation (KIP-320).

- v3 lets followers name themselves; consumers send -2, the debugging consumer's -1 or less.
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, int16, int32, int64, since, string

__all__ = [
    "API",
    "EpochEndOffset",
    "OffsetForLeaderEpochRequest",
    "OffsetForLeaderEpochResponse",
    "OffsetForLeaderPartition",
    "OffsetForLeaderTopic",
    "OffsetForLeaderTopicResult",
]


class OffsetForLeaderPartition(Message):
    partition: int32 = 0
    current_leader_epoch: int32 = -1
    leader_epoch: int32 = 0


class OffsetForLeaderTopic(Message):
    topic: string = ""
    partitions: Sequence[OffsetForLeaderPartition] = ()


class OffsetForLeaderEpochRequest(Message):
    replica_id: Annotated[int32, since(3)] = -2
    topics: Sequence[OffsetForLeaderTopic] = ()


class EpochEndOffset(Message):
    error_code: int16 = 0
    partition: int32 = 0
    leader_epoch: int32 = -1
    end_offset: int64 = -1


class OffsetForLeaderTopicResult(Message):
    topic: string = ""
    partitions: Sequence[EpochEndOffset] = ()


class OffsetForLeaderEpochResponse(Message):
    throttle_time_ms: int32 = 0
    topics: Sequence[OffsetForLeaderTopicResult] = ()


API = Api(
    key=23,
    name="OffsetForLeaderEpoch",
    min_version=2,
    max_version=4,
    flexible_since=4,
    request=OffsetForLeaderEpochRequest,
    response=OffsetForLeaderEpochResponse,
)
