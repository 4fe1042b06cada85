"""ApiVersions (key 18): which APIs, versions and features this broker serves.

Versions: 0–4.
- A version that is not known is answered in v0 with error 35 and this API's own range, whatever its body (KIP-511); the
  dispatcher does that, since the request cannot be decoded.
- v3+ carries the client's software name and version, which must be plain, else error 42 (KIP-511).
- v4 may list features whose minimum is 0 (KIP-1022); none is supported so far, so none is listed.

Behaviour: only what is served is listed. Clients take what is missing for an old broker and do without.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from protocol.errors import ErrorCode
from protocol.messages.api_versions import ApiVersion, ApiVersionsRequest, ApiVersionsResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle", "unsupported_version"]

API_KEY = 18
MIN_VERSION = 0
MAX_VERSION = 4

_SOFTWARE_SINCE = 3
_PLAIN = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")


def handle(broker: Broker, connection: Connection, call: Call, request: ApiVersionsRequest) -> ApiVersionsResponse:
    """List what the dispatcher serves."""
    if call.version >= _SOFTWARE_SINCE and not (
        _PLAIN.fullmatch(request.client_software_name) and _PLAIN.fullmatch(request.client_software_version)
    ):
        return ApiVersionsResponse(error_code=ErrorCode.INVALID_REQUEST)
    return ApiVersionsResponse(api_keys=broker.api_versions)


def unsupported_version() -> ApiVersionsResponse:
    """The answer, in v0, to a version that is not known."""
    return ApiVersionsResponse(
        error_code=ErrorCode.UNSUPPORTED_VERSION,
        api_keys=[ApiVersion(api_key=API_KEY, min_version=MIN_VERSION, max_version=MAX_VERSION)],
    )
