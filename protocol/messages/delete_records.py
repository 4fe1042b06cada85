"""DeleteRecords (key 21, v0-2): raise the log start offsets of partitions (KIP-107)."""

from collections.abc import Sequence

from protocol.types import Api, Message, int16, int32, int64, string

__all__ = [
    "API",
    "DeleteRecordsPartition",
    "DeleteRecordsPartitionResult",
    "DeleteRecordsRequest",
    "DeleteRecordsResponse",
    "DeleteRecordsTopic",
    "DeleteRecordsTopicResult",
]


class DeleteRecordsPartition(Message):
    partition_index: int32 = 0
    offset: int64 = 0


class DeleteRecordsTopic(Message):
    name: string = ""
    partitions: Sequence[DeleteRecordsPartition] = ()


class DeleteRecordsRequest(Message):
    topics: Sequence[DeleteRecordsTopic] = ()
    timeout_ms: int32 = 0


class DeleteRecordsPartitionResult(Message):
    partition_index: int32 = 0
    low_watermark: int64 = 0
    error_code: int16 = 0


class DeleteRecordsTopicResult(Message):
    name: string = ""
    partitions: Sequence[DeleteRecordsPartitionResult] = ()


class DeleteRecordsResponse(Message):
    throttle_time_ms: int32 = 0
    topics: Sequence[DeleteRecordsTopicResult] = ()


API = Api(
    key=21,
    name="DeleteRecords",
    min_version=0,
    max_version=2,
    flexible_since=2,
    request=DeleteRecordsRequest,
    response=DeleteRecordsResponse,
)
