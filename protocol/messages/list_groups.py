"""ListGroups (key 16, v0-5): the groups that a broker coordinates.

- v4 filters by state and tells it (KIP-518); v5 does so by type (KIP-848).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, int16, int32, since, string

__all__ = ["API", "ListGroupsRequest", "ListGroupsResponse", "ListedGroup"]


class ListGroupsRequest(Message):
    states_filter: Annotated[Sequence[string], since(4)] = ()
    types_filter: Annotated[Sequence[string], since(5)] = ()


class ListedGroup(Message):
    group_id: string = ""
    protocol_type: string = ""
    group_state: Annotated[string, since(4)] = ""
    group_type: Annotated[string, since(5)] = ""


class ListGroupsResponse(Message):
    throttle_time_ms: Annotated[int32, since(1)] = 0
    error_code: int16 = 0
    groups: Sequence[ListedGroup] = ()


API = Api(
    key=16,
    name="ListGroups",
    min_version=0,
    max_version=5,
    flexible_since=3,
    request=ListGroupsRequest,
    response=ListGroupsResponse,
)
