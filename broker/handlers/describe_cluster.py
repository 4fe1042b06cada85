"""DescribeCluster (key 60): the brokers, the controller and the cluster id (KIP-700).

Versions: 0–2.
- v1+ asks for brokers or for controllers (KIP-919): brokers are asked here, so controllers are error 114, anything else 115.
- v2+ also for fenced brokers (KIP-1073): those that are taken for dead, or have stopped.

Behaviour: as Metadata: every broker with its address on the listener that the client came in by, and the controller is
the one that answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from broker.endpoints import brokers_on
from broker.handlers.metadata import ALL_OPERATIONS_ON_CLUSTER
from controller.tables import NodeStatus
from protocol.errors import ErrorCode
from protocol.messages.describe_cluster import DescribeClusterBroker, DescribeClusterRequest, DescribeClusterResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 60
MIN_VERSION = 0
MAX_VERSION = 2

_BROKERS = 1
_CONTROLLERS = 2


def handle(
    broker: Broker, connection: Connection, call: Call, request: DescribeClusterRequest
) -> DescribeClusterResponse:
    """Answer from memory."""
    if request.endpoint_type != _BROKERS:
        wrong_door = request.endpoint_type == _CONTROLLERS
        return DescribeClusterResponse(
            error_code=ErrorCode.MISMATCHED_ENDPOINT_TYPE if wrong_door else ErrorCode.UNSUPPORTED_ENDPOINT_TYPE,
            error_message="this is an endpoint of brokers",
            endpoint_type=_BROKERS,
        )
    response = DescribeClusterResponse(
        cluster_id=broker.cluster_id,
        controller_id=broker.settings.node_id,
        brokers=[
            DescribeClusterBroker(
                broker_id=node.node_id,
                host=address.host,
                port=address.port,
                rack=node.rack or None,
                is_fenced=node.status is NodeStatus.DEAD,
            )
            for node, address in brokers_on(broker, call.listener, with_dead=request.include_fenced_brokers)
        ],
    )
    if request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = ALL_OPERATIONS_ON_CLUSTER
    return response
