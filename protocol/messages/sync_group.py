"""SyncGroup (key 14, v0-5): the leader hands in the assignment, every member receives its share.

- v3 adds static membership (KIP-345); v5 protocol type and name, which must match the join's.
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, bytestring, int16, int32, since, string

__all__ = ["API", "SyncGroupRequest", "SyncGroupRequestAssignment", "SyncGroupResponse"]


class SyncGroupRequestAssignment(Message):
    member_id: string = ""
    assignment: bytestring = b""


class SyncGroupRequest(Message):
    group_id: string = ""
    generation_id: int32 = 0
    member_id: string = ""
    group_instance_id: Annotated[string | None, since(3)] = None
    protocol_type: Annotated[string | None, since(5)] = None
    protocol_name: Annotated[string | None, since(5)] = None
    assignments: Sequence[SyncGroupRequestAssignment] = ()


class SyncGroupResponse(Message):
    throttle_time_ms: Annotated[int32, since(1)] = 0
    error_code: int16 = 0
    protocol_type: Annotated[string | None, since(5)] = None
    protocol_name: Annotated[string | None, since(5)] = None
    assignment: bytestring = b""


API = Api(
    key=14,
    name="SyncGroup",
    min_version=0,
    max_version=5,
    flexible_since=4,
    request=SyncGroupRequest,
    response=SyncGroupResponse,
)
