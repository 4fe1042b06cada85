"""ListConfigResources (key 74, v0-1): what there is that has configurations.

- v0 lists client metrics subscriptions only (KIP-1000); v1 any kind of resource (KIP-1142).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, int8, int16, int32, since, string

__all__ = ["API", "ConfigResource", "ListConfigResourcesRequest", "ListConfigResourcesResponse"]


class ListConfigResourcesRequest(Message):
    resource_types: Annotated[Sequence[int8], since(1)] = ()


class ConfigResource(Message):
    resource_name: string = ""
    resource_type: Annotated[int8, since(1)] = 16


class ListConfigResourcesResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: int16 = 0
    config_resources: Sequence[ConfigResource] = ()


API = Api(
    key=74,
    name="ListConfigResources",
    min_version=0,
    max_version=1,
    flexible_since=0,
    request=ListConfigResourcesRequest,
    response=ListConfigResourcesResponse,
)
