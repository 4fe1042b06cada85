"""ApiVersions (key 18, v0-4): which APIs and versions, and which features, this broker speaks.

- v3 adds the client's software name and version (KIP-511) and the tagged features (KIP-584).
- v4 is the first that may list a feature whose minimum is 0 (KIP-1022); leave those out before.
- The response always has header v0, so that a client that knows no flexible versions can read it. A version that the
  broker does not know is answered in v0 with UNSUPPORTED_VERSION and this API's range (KIP-511).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, boolean, int16, int32, int64, since, string, tag

__all__ = [
    "API",
    "ApiVersion",
    "ApiVersionsRequest",
    "ApiVersionsResponse",
    "FinalizedFeatureKey",
    "SupportedFeatureKey",
]


class ApiVersionsRequest(Message):
    client_software_name: Annotated[string, since(3)] = ""
    client_software_version: Annotated[string, since(3)] = ""


class ApiVersion(Message):
    api_key: int16 = 0
    min_version: int16 = 0
    max_version: int16 = 0


class SupportedFeatureKey(Message):
    name: string = ""
    min_version: int16 = 0
    max_version: int16 = 0


class FinalizedFeatureKey(Message):
    name: string = ""
    max_version_level: int16 = 0
    min_version_level: int16 = 0


class ApiVersionsResponse(Message):
    error_code: int16 = 0
    api_keys: Sequence[ApiVersion] = ()
    throttle_time_ms: Annotated[int32, since(1)] = 0
    supported_features: Annotated[Sequence[SupportedFeatureKey], since(3), tag(0)] = ()
    finalized_features_epoch: Annotated[int64, since(3), tag(1)] = -1
    finalized_features: Annotated[Sequence[FinalizedFeatureKey], since(3), tag(2)] = ()
    zk_migration_ready: Annotated[boolean, since(3), tag(3)] = False


API = Api(
    key=18,
    name="ApiVersions",
    min_version=0,
    max_version=4,
    flexible_since=3,
    request=ApiVersionsRequest,
    response=ApiVersionsResponse,
)
