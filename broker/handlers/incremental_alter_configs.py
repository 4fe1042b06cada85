"""IncrementalAlterConfigs (key 44): change single configurations of topics, brokers and loggers (KIP-339).

Versions: 0–1. v1+ is flexible.

Behaviour: each resource succeeds or fails on its own, as a whole. Changes are committed to the metadata log before the answer,
hold from the next request on, and survive restarts. `validate_only` checks and changes nothing. A name that comes twice, a
null to be set and a resource that comes twice are error 42. Of a broker only settings that are `dynamic` can be altered; others are
error 42, as in Kafka. Loggers are altered until the process ends.

Not done: configurations of groups and of client metrics subscriptions (42).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.config_resources import Change, alter
from broker.errors import KafkaError, code_of
from broker.topic_config import InvalidTopicConfig
from controller.errors import ControllerError
from protocol.errors import ErrorCode
from protocol.messages.incremental_alter_configs import (
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResource,
    IncrementalAlterConfigsResourceResponse,
    IncrementalAlterConfigsResponse,
)
from s3stream.errors import MetadataUnavailable

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
    counts = Counter((resource.resource_type, resource.resource_name) for resource in request.resources)

    async def altered(resource: IncrementalAlterConfigsResource) -> IncrementalAlterConfigsResourceResponse:
        response = IncrementalAlterConfigsResourceResponse(
            error_message=None, resource_type=resource.resource_type, resource_name=resource.resource_name
        )
        try:
            if counts[resource.resource_type, resource.resource_name] > 1:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "each resource may come once only")
            await alter(
                broker,
                resource.resource_type,
                resource.resource_name,
                [Change(entry.name, entry.config_operation, entry.value) for entry in resource.configs],
                replace=False,
                validate_only=request.validate_only,
            )
        except (KafkaError, InvalidTopicConfig, ControllerError, MetadataUnavailable) as error:
            response.error_code = code_of(error)
            response.error_message = str(error)
        return response

    return IncrementalAlterConfigsResponse(responses=await asyncio.gather(*map(altered, request.resources)))
