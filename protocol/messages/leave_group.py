"""LeaveGroup (key 13, v0-5): members leave a classic group.

- v3 removes many members at once, static ones too (KIP-345); v5 adds a reason (KIP-800).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, int16, int32, since, string, until

__all__ = ["API", "LeaveGroupRequest", "LeaveGroupResponse", "MemberIdentity", "MemberResponse"]


class MemberIdentity(Message):
    member_id: string = ""
    group_instance_id: string | None = None
    reason: Annotated[string | None, since(5)] = None


class LeaveGroupRequest(Message):
    group_id: string = ""
    member_id: Annotated[string, until(2)] = ""
    members: Annotated[Sequence[MemberIdentity], since(3)] = ()


class MemberResponse(Message):
    member_id: string = ""
    group_instance_id: string | None = ""
    error_code: int16 = 0


class LeaveGroupResponse(Message):
    throttle_time_ms: Annotated[int32, since(1)] = 0
    error_code: int16 = 0
    members: Annotated[Sequence[MemberResponse], since(3)] = ()


API = Api(
    key=13,
    name="LeaveGroup",
    min_version=0,
    max_version=5,
    flexible_since=4,
    request=LeaveGroupRequest,
    response=LeaveGroupResponse,
)
