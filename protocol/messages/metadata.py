"""Metadata (key 3, v0-13): brokers, topics, partitions and their leaders.

- Which topics: null means all from v1 on, and an empty list none; in v0, which has no null, the empty list means all.
- v4 adds `allow_auto_topic_creation`; v5 offline replicas; v7 leader epochs (KIP-320).
- v8 adds authorized operations (KIP-430), of which the cluster's moved to DescribeCluster in v11.
- v10 adds topic ids, by which one may ask from v12 on (KIP-516); v13 a top-level error (KIP-1102).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import NULL_UUID, Api, Message, Uuid, boolean, int16, int32, nullable_since, since, string, until

__all__ = [
    "API",
    "MetadataRequest",
    "MetadataRequestTopic",
    "MetadataResponse",
    "MetadataResponseBroker",
    "MetadataResponsePartition",
    "MetadataResponseTopic",
]


class MetadataRequestTopic(Message):
    topic_id: Annotated[Uuid, since(10)] = NULL_UUID
    name: Annotated[string | None, nullable_since(10)] = ""


class MetadataRequest(Message):
    topics: Annotated[Sequence[MetadataRequestTopic] | None, nullable_since(1)] = ()
    allow_auto_topic_creation: Annotated[boolean, since(4)] = True
    include_cluster_authorized_operations: Annotated[boolean, since(8), until(10)] = False
    include_topic_authorized_operations: Annotated[boolean, since(8)] = False


class MetadataResponseBroker(Message):
    node_id: int32 = 0
    host: string = ""
    port: int32 = 0
    rack: Annotated[string | None, since(1)] = None


class MetadataResponsePartition(Message):
    error_code: int16 = 0
    partition_index: int32 = 0
    leader_id: int32 = 0
    leader_epoch: Annotated[int32, since(7)] = -1
    replica_nodes: Sequence[int32] = ()
    isr_nodes: Sequence[int32] = ()
    offline_replicas: Annotated[Sequence[int32], since(5)] = ()


class MetadataResponseTopic(Message):
    error_code: int16 = 0
    name: Annotated[string | None, nullable_since(12)] = ""
    topic_id: Annotated[Uuid, since(10)] = NULL_UUID
    is_internal: Annotated[boolean, since(1)] = False
    partitions: Sequence[MetadataResponsePartition] = ()
    topic_authorized_operations: Annotated[int32, since(8)] = -(2**31)


class MetadataResponse(Message):
    throttle_time_ms: Annotated[int32, since(3)] = 0
    brokers: Sequence[MetadataResponseBroker] = ()
    cluster_id: Annotated[string | None, since(2)] = None
    controller_id: Annotated[int32, since(1)] = -1
    topics: Sequence[MetadataResponseTopic] = ()
    cluster_authorized_operations: Annotated[int32, since(8), until(10)] = -(2**31)
    error_code: Annotated[int16, since(13)] = 0


API = Api(
    key=3,
    name="Metadata",
    min_version=0,
    max_version=13,
    flexible_since=9,
    request=MetadataRequest,
    response=MetadataResponse,
)
