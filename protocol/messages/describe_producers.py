"""DescribeProducers (key 61, v0): the idempotent producers that a partition remembers (KIP-664)."""

from collections.abc import Sequence

from protocol.types import Api, Message, int16, int32, int64, string

__all__ = [
    "API",
    "DescribeProducersPartitionResult",
    "DescribeProducersRequest",
    "DescribeProducersResponse",
    "DescribeProducersTopic",
    "DescribeProducersTopicResult",
    "ProducerState",
]


class DescribeProducersTopic(Message):
    name: string = ""
    partition_indexes: Sequence[int32] = ()


class DescribeProducersRequest(Message):
    topics: Sequence[DescribeProducersTopic] = ()


class ProducerState(Message):
    producer_id: int64 = 0
    producer_epoch: int32 = 0
    last_sequence: int32 = -1
    last_timestamp: int64 = -1
    coordinator_epoch: int32 = 0
    current_txn_start_offset: int64 = -1


class DescribeProducersPartitionResult(Message):
    partition_index: int32 = 0
    error_code: int16 = 0
    error_message: string | None = None
    active_producers: Sequence[ProducerState] = ()


class DescribeProducersTopicResult(Message):
    name: string = ""
    partitions: Sequence[DescribeProducersPartitionResult] = ()


class DescribeProducersResponse(Message):
    throttle_time_ms: int32 = 0
    topics: Sequence[DescribeProducersTopicResult] = ()


API = Api(
    key=61,
    name="DescribeProducers",
    min_version=0,
    max_version=0,
    flexible_since=0,
    request=DescribeProducersRequest,
    response=DescribeProducersResponse,
)
