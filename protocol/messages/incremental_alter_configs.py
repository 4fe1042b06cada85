"""IncrementalAlterConfigs (key 44, v0-1): change single configurations of topics and brokers (KIP-339)."""

from collections.abc import Sequence

from protocol.types import Api, Message, boolean, int8, int16, int32, string

__all__ = [
    "API",
    "IncrementalAlterConfigsEntry",
    "IncrementalAlterConfigsRequest",
    "IncrementalAlterConfigsResource",
    "IncrementalAlterConfigsResourceResponse",
    "IncrementalAlterConfigsResponse",
]


class IncrementalAlterConfigsEntry(Message):
    name: string = ""
    config_operation: int8 = 0
    value: string | None = ""


class IncrementalAlterConfigsResource(Message):
    resource_type: int8 = 0
    resource_name: string = ""
    configs: Sequence[IncrementalAlterConfigsEntry] = ()


class IncrementalAlterConfigsRequest(Message):
    resources: Sequence[IncrementalAlterConfigsResource] = ()
    validate_only: boolean = False


class IncrementalAlterConfigsResourceResponse(Message):
    error_code: int16 = 0
    error_message: string | None = ""
    resource_type: int8 = 0
    resource_name: string = ""


class IncrementalAlterConfigsResponse(Message):
    throttle_time_ms: int32 = 0
    responses: Sequence[IncrementalAlterConfigsResourceResponse] = ()


API = Api(
    key=44,
    name="IncrementalAlterConfigs",
    min_version=0,
    max_version=1,
    flexible_since=1,
    request=IncrementalAlterConfigsRequest,
    response=IncrementalAlterConfigsResponse,
)
