"""Produce (key 0, v3-13): append one record batch to each partition.

- v0-2 carried older message formats. They are not decoded, but 0 is advertised as the minimum: librdkafka before 2.8.1
  takes a higher one for "no compression" (KAFKA-18659).
- v3 brought batches of magic 2 and transactions; v7 allows zstd (KIP-110).
- v8 adds per-record errors to the response (KIP-467); v10 the current leader (KIP-951).
- v12 lets the broker add partitions to a transaction (KIP-890); v13 names topics by id (KIP-516).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import NULL_UUID, Api, Message, RecordsField, Uuid, int16, int32, int64, since, string, tag, until

__all__ = [
    "API",
    "BatchIndexAndErrorMessage",
    "LeaderIdAndEpoch",
    "NodeEndpoint",
    "PartitionProduceData",
    "PartitionProduceResponse",
    "ProduceRequest",
    "ProduceResponse",
    "TopicProduceData",
    "TopicProduceResponse",
]


class PartitionProduceData(Message):
    """`records` is a view into the frame."""

    index: int32 = 0
    records: RecordsField | None = b""


class TopicProduceData(Message):
    name: Annotated[string, until(12)] = ""
    topic_id: Annotated[Uuid, since(13)] = NULL_UUID
    partition_data: Sequence[PartitionProduceData] = ()


class ProduceRequest(Message):
    transactional_id: string | None = None
    acks: int16 = 0
    timeout_ms: int32 = 0
    topic_data: Sequence[TopicProduceData] = ()


class BatchIndexAndErrorMessage(Message):
    batch_index: int32 = 0
    batch_index_error_message: string | None = None


class LeaderIdAndEpoch(Message):
    leader_id: int32 = -1
    leader_epoch: int32 = -1


class PartitionProduceResponse(Message):
    index: int32 = 0
    error_code: int16 = 0
    base_offset: int64 = 0
    log_append_time_ms: int64 = -1
    log_start_offset: Annotated[int64, since(5)] = -1
    record_errors: Annotated[Sequence[BatchIndexAndErrorMessage], since(8)] = ()
    error_message: Annotated[string | None, since(8)] = None
    current_leader: Annotated[LeaderIdAndEpoch | None, since(10), tag(0)] = None


class TopicProduceResponse(Message):
    name: Annotated[string, until(12)] = ""
    topic_id: Annotated[Uuid, since(13)] = NULL_UUID
    partition_responses: Sequence[PartitionProduceResponse] = ()


class NodeEndpoint(Message):
    node_id: int32 = 0
    host: string = ""
    port: int32 = 0
    rack: string | None = None


class ProduceResponse(Message):
    responses: Sequence[TopicProduceResponse] = ()
    throttle_time_ms: int32 = 0
    node_endpoints: Annotated[Sequence[NodeEndpoint], since(10), tag(0)] = ()


API = Api(
    key=0,
    name="Produce",
    min_version=3,
    max_version=13,
    flexible_since=9,
    request=ProduceRequest,
    response=ProduceResponse,
    advertised_min_version=0,
)
