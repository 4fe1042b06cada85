"""AlterConfigs (key 33, v0-2): set all configurations of topics and brokers; IncrementalAlterConfigs took its place."""

from collections.abc import Sequence

from protocol.types import Api, Message, boolean, int8, int16, int32, string

__all__ = [
    "API",
    "AlterConfigsEntry",
    "AlterConfigsRequest",
    "AlterConfigsResource",
    "AlterConfigsResourceResponse",
    "AlterConfigsResponse",
]


class AlterConfigsEntry(Message):
    name: string = ""
    value: string | None = ""


class AlterConfigsResource(Message):
    resource_type: int8 = 0
    resource_name: string = ""
    configs: Sequence[AlterConfigsEntry] = ()


class AlterConfigsRequest(Message):
    resources: Sequence[AlterConfigsResource] = ()
    validate_only: boolean = False


class AlterConfigsResourceResponse(Message):
    error_code: int16 = 0
    error_message: string | None = ""
    resource_type: int8 = 0
    resource_name: string = ""


class AlterConfigsResponse(Message):
    throttle_time_ms: int32 = 0
    responses: Sequence[AlterConfigsResourceResponse] = ()


API = Api(
    key=33,
    name="AlterConfigs",
    min_version=0,
    max_version=2,
    flexible_since=2,
    request=AlterConfigsRequest,
    response=AlterConfigsResponse,
)
