"""DescribeConfigs (key 32, v1-4): configurations of topics and brokers, and where their values come from.

- v1 has sources and synonyms (KIP-226); v3 types and documentation (KIP-569).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, boolean, int8, int16, int32, since, string

__all__ = [
    "API",
    "DescribeConfigsRequest",
    "DescribeConfigsResource",
    "DescribeConfigsResourceResult",
    "DescribeConfigsResponse",
    "DescribeConfigsResult",
    "DescribeConfigsSynonym",
]


class DescribeConfigsResource(Message):
    resource_type: int8 = 0
    resource_name: string = ""
    configuration_keys: Sequence[string] | None = ()


class DescribeConfigsRequest(Message):
    resources: Sequence[DescribeConfigsResource] = ()
    include_synonyms: boolean = False
    include_documentation: Annotated[boolean, since(3)] = False


class DescribeConfigsSynonym(Message):
    name: string = ""
    value: string | None = ""
    source: int8 = 0


class DescribeConfigsResourceResult(Message):
    name: string = ""
    value: string | None = ""
    read_only: boolean = False
    config_source: int8 = -1
    is_sensitive: boolean = False
    synonyms: Sequence[DescribeConfigsSynonym] = ()
    config_type: Annotated[int8, since(3)] = 0
    documentation: Annotated[string | None, since(3)] = ""


class DescribeConfigsResult(Message):
    error_code: int16 = 0
    error_message: string | None = ""
    resource_type: int8 = 0
    resource_name: string = ""
    configs: Sequence[DescribeConfigsResourceResult] = ()


class DescribeConfigsResponse(Message):
    throttle_time_ms: int32 = 0
    results: Sequence[DescribeConfigsResult] = ()


API = Api(
    key=32,
    name="DescribeConfigs",
    min_version=1,
    max_version=4,
    flexible_since=4,
    request=DescribeConfigsRequest,
    response=DescribeConfigsResponse,
)
