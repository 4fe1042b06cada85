"""ListPartitionReassignments (key 46, v0): partitions that are on their way to other brokers (KIP-455). Topics of null: all."""

from collections.abc import Sequence

from protocol.types import Api, Message, int16, int32, string

__all__ = [
    "API",
    "ListPartitionReassignmentsRequest",
    "ListPartitionReassignmentsResponse",
    "ListPartitionReassignmentsTopics",
    "OngoingPartitionReassignment",
    "OngoingTopicReassignment",
]


class ListPartitionReassignmentsTopics(Message):
    name: string = ""
    partition_indexes: Sequence[int32] = ()


class ListPartitionReassignmentsRequest(Message):
    timeout_ms: int32 = 60_000
    topics: Sequence[ListPartitionReassignmentsTopics] | None = None


class OngoingPartitionReassignment(Message):
    partition_index: int32 = 0
    replicas: Sequence[int32] = ()
    adding_replicas: Sequence[int32] = ()
    removing_replicas: Sequence[int32] = ()


class OngoingTopicReassignment(Message):
    name: string = ""
    partitions: Sequence[OngoingPartitionReassignment] = ()


class ListPartitionReassignmentsResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: int16 = 0
    error_message: string | None = ""
    topics: Sequence[OngoingTopicReassignment] = ()


API = Api(
    key=46,
    name="ListPartitionReassignments",
    min_version=0,
    max_version=0,
    flexible_since=0,
    request=ListPartitionReassignmentsRequest,
    response=ListPartitionReassignmentsResponse,
)
