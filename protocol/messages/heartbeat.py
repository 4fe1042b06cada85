"""Heartbeat (key 12, v0-4): a member of a classic group is alive.

- v3 adds static membership (KIP-345).
"""

from typing import Annotated

from protocol.types import Api, Message, int16, int32, since, string

__all__ = ["API", "HeartbeatRequest", "HeartbeatResponse"]


class HeartbeatRequest(Message):
    group_id: string = ""
    generation_id: int32 = 0
    member_id: string = ""
    group_instance_id: Annotated[string | None, since(3)] = None


class HeartbeatResponse(Message):
    throttle_time_ms: Annotated[int32, since(1)] = 0
    error_code: int16 = 0


API = Api(
    key=12,
    name="Heartbeat",
    min_version=0,
    max_version=4,
    flexible_since=4,
    request=HeartbeatRequest,
    response=HeartbeatResponse,
)
