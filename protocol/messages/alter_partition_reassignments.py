"""AlterPartitionReassignments (key 45, v0-1): have partitions moved, or end a move (KIP-455).

- Replicas of null end a reassignment that is under way.
- v1 may forbid that the replication factor changes (KIP-860).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, boolean, int16, int32, since, string

__all__ = [
    "API",
    "AlterPartitionReassignmentsRequest",
    "AlterPartitionReassignmentsResponse",
    "ReassignablePartition",
    "ReassignablePartitionResponse",
    "ReassignableTopic",
    "ReassignableTopicResponse",
]


class ReassignablePartition(Message):
    partition_index: int32 = 0
    replicas: Sequence[int32] | None = None


class ReassignableTopic(Message):
    name: string = ""
    partitions: Sequence[ReassignablePartition] = ()


class AlterPartitionReassignmentsRequest(Message):
    timeout_ms: int32 = 60_000
    allow_replication_factor_change: Annotated[boolean, since(1)] = True
    topics: Sequence[ReassignableTopic] = ()


class ReassignablePartitionResponse(Message):
    partition_index: int32 = 0
    error_code: int16 = 0
    error_message: string | None = ""


class ReassignableTopicResponse(Message):
    name: string = ""
    partitions: Sequence[ReassignablePartitionResponse] = ()


class AlterPartitionReassignmentsResponse(Message):
    throttle_time_ms: int32 = 0
    allow_replication_factor_change: Annotated[boolean, since(1)] = True
    error_code: int16 = 0
    error_message: string | None = ""
    responses: Sequence[ReassignableTopicResponse] = ()


API = Api(
    key=45,
    name="AlterPartitionReassignments",
    min_version=0,
    max_version=1,
    flexible_since=0,
    request=AlterPartitionReassignmentsRequest,
    response=AlterPartitionReassignmentsResponse,
)
