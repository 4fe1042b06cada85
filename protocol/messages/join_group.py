"""JoinGroup (key 11, v0-9): become a member of a classic consumer group.

- v1 adds the rebalance timeout; v4 answers a first join with MEMBER_ID_REQUIRED and the id to use (KIP-394).
- v5 adds static membership (KIP-345); v7 the protocol type; v8 a reason (KIP-800); v9 `skip_assignment` (KIP-814).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, boolean, bytestring, int16, int32, nullable_since, since, string

__all__ = ["API", "JoinGroupRequest", "JoinGroupRequestProtocol", "JoinGroupResponse", "JoinGroupResponseMember"]


class JoinGroupRequestProtocol(Message):
    name: string = ""
    metadata: bytestring = b""


class JoinGroupRequest(Message):
    group_id: string = ""
    session_timeout_ms: int32 = 0
    rebalance_timeout_ms: Annotated[int32, since(1)] = -1
    member_id: string = ""
    group_instance_id: Annotated[string | None, since(5)] = None
    protocol_type: string = ""
    protocols: Sequence[JoinGroupRequestProtocol] = ()
    reason: Annotated[string | None, since(8)] = None


class JoinGroupResponseMember(Message):
    member_id: string = ""
    group_instance_id: Annotated[string | None, since(5)] = None
    metadata: bytestring = b""


class JoinGroupResponse(Message):
    throttle_time_ms: Annotated[int32, since(2)] = 0
    error_code: int16 = 0
    generation_id: int32 = -1
    protocol_type: Annotated[string | None, since(7)] = None
    protocol_name: Annotated[string | None, nullable_since(7)] = ""
    leader: string = ""
    skip_assignment: Annotated[boolean, since(9)] = False
    member_id: string = ""
    members: Sequence[JoinGroupResponseMember] = ()


API = Api(
    key=11,
    name="JoinGroup",
    min_version=0,
    max_version=9,
    flexible_since=6,
    request=JoinGroupRequest,
    response=JoinGroupResponse,
)
