"""DescribeCluster (key 60, v0-2): brokers, controller and cluster id (KIP-700).

- v1 asks for brokers or for controllers (KIP-919); v2 also for fenced brokers (KIP-1073).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, boolean, int8, int16, int32, since, string

__all__ = ["API", "DescribeClusterBroker", "DescribeClusterRequest", "DescribeClusterResponse"]


class DescribeClusterRequest(Message):
    include_cluster_authorized_operations: boolean = False
    endpoint_type: Annotated[int8, since(1)] = 1
    include_fenced_brokers: Annotated[boolean, since(2)] = False


class DescribeClusterBroker(Message):
    broker_id: int32 = 0
    host: string = ""
    port: int32 = 0
    rack: string | None = None
    is_fenced: Annotated[boolean, since(2)] = False


class DescribeClusterResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: int16 = 0
    error_message: string | None = None
    endpoint_type: Annotated[int8, since(1)] = 1
    cluster_id: string = ""
    controller_id: int32 = -1
    brokers: Sequence[DescribeClusterBroker] = ()
    cluster_authorized_operations: int32 = -(1 << 31)


API = Api(
    key=60,
    name="DescribeCluster",
    min_version=0,
    max_version=2,
    flexible_since=0,
    request=DescribeClusterRequest,
    response=DescribeClusterResponse,
)
