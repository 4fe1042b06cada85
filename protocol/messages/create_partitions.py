"""CreatePartitions (key 37, v0-3): give topics more partitions (KIP-195).

- v3 may answer THROTTLING_QUOTA_EXCEEDED (KIP-599).
"""

from collections.abc import Sequence

from protocol.types import Api, Message, boolean, int16, int32, string

__all__ = [
    "API",
    "CreatePartitionsAssignment",
    "CreatePartitionsRequest",
    "CreatePartitionsResponse",
    "CreatePartitionsTopic",
    "CreatePartitionsTopicResult",
]


class CreatePartitionsAssignment(Message):
    broker_ids: Sequence[int32] = ()


class CreatePartitionsTopic(Message):
    name: string = ""
    count: int32 = 0
    assignments: Sequence[CreatePartitionsAssignment] | None = ()


class CreatePartitionsRequest(Message):
    topics: Sequence[CreatePartitionsTopic] = ()
    timeout_ms: int32 = 0
    validate_only: boolean = False


class CreatePartitionsTopicResult(Message):
    name: string = ""
    error_code: int16 = 0
    error_message: string | None = None


class CreatePartitionsResponse(Message):
    throttle_time_ms: int32 = 0
    results: Sequence[CreatePartitionsTopicResult] = ()


API = Api(
    key=37,
    name="CreatePartitions",
    min_version=0,
    max_version=3,
    flexible_since=2,
    request=CreatePartitionsRequest,
    response=CreatePartitionsResponse,
)
