"""DescribeTopicPartitions (key 75, v0): topics with their partitions, page by page (KIP-966)."""

from collections.abc import Sequence

from protocol.types import NULL_UUID, Api, Message, Uuid, boolean, int16, int32, string

__all__ = [
    "API",
    "Cursor",
    "DescribeTopicPartitionsRequest",
    "DescribeTopicPartitionsResponse",
    "DescribeTopicPartitionsResponsePartition",
    "DescribeTopicPartitionsResponseTopic",
    "TopicRequest",
]


class TopicRequest(Message):
    name: string = ""


class Cursor(Message):
    topic_name: string = ""
    partition_index: int32 = 0


class DescribeTopicPartitionsRequest(Message):
    topics: Sequence[TopicRequest] = ()
    response_partition_limit: int32 = 2000
    cursor: Cursor | None = None


class DescribeTopicPartitionsResponsePartition(Message):
    error_code: int16 = 0
    partition_index: int32 = 0
    leader_id: int32 = 0
    leader_epoch: int32 = -1
    replica_nodes: Sequence[int32] = ()
    isr_nodes: Sequence[int32] = ()
    eligible_leader_replicas: Sequence[int32] | None = None
    last_known_elr: Sequence[int32] | None = None
    offline_replicas: Sequence[int32] = ()


class DescribeTopicPartitionsResponseTopic(Message):
    error_code: int16 = 0
    name: string | None = ""
    topic_id: Uuid = NULL_UUID
    is_internal: boolean = False
    partitions: Sequence[DescribeTopicPartitionsResponsePartition] = ()
    topic_authorized_operations: int32 = -(1 << 31)


class DescribeTopicPartitionsResponse(Message):
    throttle_time_ms: int32 = 0
    topics: Sequence[DescribeTopicPartitionsResponseTopic] = ()
    next_cursor: Cursor | None = None


API = Api(
    key=75,
    name="DescribeTopicPartitions",
    min_version=0,
    max_version=0,
    flexible_since=0,
    request=DescribeTopicPartitionsRequest,
    response=DescribeTopicPartitionsResponse,
)
