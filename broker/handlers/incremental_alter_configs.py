"""IncrementalAlterConfigs (key 44): change single configurations of topics, brokers and loggers (KIP-339).

Versions: 0–1. v1+ is flexible.

Behaviour: each resource succeeds or fails on its own, as a whole. Changes are committed to the metadata log before the answer,
hold from the next request on, and survive restarts. `validate_only` checks and changes nothing. A name that comes twice, a
null to be set and a resource that comes twice are error 42. Of a broker only settings that are `dynamic` can be altered; others are
error 42, as in Kafka. Loggers are altered until the process ends.

Not done: configurations of groups and of client metrics subscriptions (42).
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.config_resources import Alteration, Change, alter
from protocol.messages.incremental_alter_configs import (
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResourceResponse,
    IncrementalAlterConfigsResponse,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 44
MIN_VERSION = 0
MAX_VERSION = 1


def handle(
    broker: Broker, connection: Connection, call: Call, request: IncrementalAlterConfigsRequest
) -> Coroutine[Any, Any, IncrementalAlterConfigsResponse]:
    """Check and commit, all resources together."""
    return _alter(broker, request)


async def _alter(broker: Broker, request: IncrementalAlterConfigsRequest) -> IncrementalAlterConfigsResponse:
    wanted = [
        Alteration(
            resource.resource_type,
            resource.resource_name,
            [Change(entry.name, entry.config_operation, entry.value) for entry in resource.configs],
        )
        for resource in request.resources
    ]
    outcomes = await alter(broker, wanted, replace=False, validate_only=request.validate_only)
    return IncrementalAlterConfigsResponse(
        responses=[
            IncrementalAlterConfigsResourceResponse(
                error_code=code, error_message=message, resource_type=each.resource_type, resource_name=each.name
            )
            for each, (code, message) in zip(wanted, outcomes, strict=True)
        ]
    )
