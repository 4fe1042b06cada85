"""DescribeConfigs (key 32): configurations of topics, brokers and loggers, and where their values come from.

Versions: 1–4.
- v1+ sources and, on request, synonyms (KIP-226); v3+ types and, on request, documentation (KIP-569).

Behaviour: what a configuration does *here* is what its documentation says, also where that is nothing. The resource of a
broker is named by its own id; with an empty name it has what was altered for all brokers. Loggers are the process's, with
Kafka's levels. Asked-for names that there are not are left out, as in Kafka; sensitive values are null.

Not done: configurations of groups and of client metrics subscriptions (42).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from broker.config_resources import ConfigEntry, describe
from broker.errors import KafkaError, code_of
from protocol.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResourceResult,
    DescribeConfigsResponse,
    DescribeConfigsResult,
    DescribeConfigsSynonym,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 32
MIN_VERSION = 1
MAX_VERSION = 4


def handle(
    broker: Broker, connection: Connection, call: Call, request: DescribeConfigsRequest
) -> DescribeConfigsResponse:
    """Answer from memory."""
    return DescribeConfigsResponse(results=[_described(broker, request, resource) for resource in request.resources])


def _described(
    broker: Broker, request: DescribeConfigsRequest, resource: DescribeConfigsResource
) -> DescribeConfigsResult:
    result = DescribeConfigsResult(
        error_message=None, resource_type=resource.resource_type, resource_name=resource.resource_name
    )
    try:
        entries = describe(broker, resource.resource_type, resource.resource_name)
    except KafkaError as error:
        result.error_code = code_of(error)
        result.error_message = str(error)
        return result
    # An empty list asks for everything, as null does: old clients cannot say null.
    asked = set(resource.configuration_keys or ())
    result.configs = [_entry(request, entry) for entry in entries if not asked or entry.name in asked]
    return result


def _entry(request: DescribeConfigsRequest, entry: ConfigEntry) -> DescribeConfigsResourceResult:
    return DescribeConfigsResourceResult(
        name=entry.name,
        value=entry.value,
        read_only=entry.is_read_only,
        config_source=entry.source,
        is_sensitive=entry.is_sensitive,
        synonyms=[
            DescribeConfigsSynonym(
                name=synonym.name, value=None if entry.is_sensitive else synonym.value, source=synonym.source
            )
            for synonym in (entry.synonyms if request.include_synonyms else ())
        ],
        config_type=entry.kind,
        documentation=entry.documentation if request.include_documentation else None,
    )
