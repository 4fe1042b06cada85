"""ListConfigResources (key 74): what there is that has configurations.

Versions: 0–1.
- v0 lists subscriptions of client metrics (KIP-1000), which there are none of.
- v1+ lists any kind of resource (KIP-1142); none named means all kinds. Other kinds are error 35.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from broker.config_resources import ResourceType
from protocol.errors import ErrorCode
from protocol.messages.list_config_resources import (
    ConfigResource,
    ListConfigResourcesRequest,
    ListConfigResourcesResponse,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 74
MIN_VERSION = 0
MAX_VERSION = 1


def handle(
    broker: Broker, connection: Connection, call: Call, request: ListConfigResourcesRequest
) -> ListConfigResourcesResponse:
    """Answer from memory."""
    if call.version == 0:
        return ListConfigResourcesResponse()
    known = {kind.value for kind in ResourceType}
    wanted = set(request.resource_types) or known
    if not wanted <= known:
        return ListConfigResourcesResponse(error_code=ErrorCode.UNSUPPORTED_VERSION)
    nodes = [str(node_id) for node_id in broker.controller.image.nodes]
    names = {
        ResourceType.TOPIC: sorted(broker.topics.by_name),
        ResourceType.BROKER: nodes,
        ResourceType.BROKER_LOGGER: nodes,
    }
    return ListConfigResourcesResponse(
        config_resources=[
            ConfigResource(resource_name=name, resource_type=kind)
            for kind, found in names.items()
            if kind in wanted
            for name in found
        ]
    )
