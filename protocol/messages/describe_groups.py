"""DescribeGroups (key 15, v0-6): the state and the members of groups.

- v3 may tell authorized operations (KIP-430); v4 static members (KIP-345).
- v6 answers an unknown group with GROUP_ID_NOT_FOUND and a message (KIP-1043).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, boolean, bytestring, int16, int32, since, string

__all__ = ["API", "DescribeGroupsRequest", "DescribeGroupsResponse", "DescribedGroup", "DescribedGroupMember"]


class DescribeGroupsRequest(Message):
    groups: Sequence[string] = ()
    include_authorized_operations: Annotated[boolean, since(3)] = False


class DescribedGroupMember(Message):
    member_id: string = ""
    group_instance_id: Annotated[string | None, since(4)] = None
    client_id: string = ""
    client_host: string = ""
    member_metadata: bytestring = b""
    member_assignment: bytestring = b""


class DescribedGroup(Message):
    error_code: int16 = 0
    error_message: Annotated[string | None, since(6)] = None
    group_id: string = ""
    group_state: string = ""
    protocol_type: string = ""
    protocol_data: string = ""
    members: Sequence[DescribedGroupMember] = ()
    authorized_operations: Annotated[int32, since(3)] = -2147483648


class DescribeGroupsResponse(Message):
    throttle_time_ms: Annotated[int32, since(1)] = 0
    groups: Sequence[DescribedGroup] = ()


API = Api(
    key=15,
    name="DescribeGroups",
    min_version=0,
    max_version=6,
    flexible_since=5,
    request=DescribeGroupsRequest,
    response=DescribeGroupsResponse,
)
