"""ListGroups (key 16): the groups that this broker coordinates.

Versions: 0–5.
- v4+ filters by state and tells it (KIP-518); v5 does so by type (KIP-848). Filters mind no case.

Behaviour: while groups are loaded error 14 comes with those that are known. Every group here is a "classic" one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from protocol.errors import ErrorCode
from protocol.messages.list_groups import ListedGroup, ListGroupsRequest, ListGroupsResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 16
MIN_VERSION = 0
MAX_VERSION = 5

_TYPE = "classic"


def handle(broker: Broker, connection: Connection, call: Call, request: ListGroupsRequest) -> ListGroupsResponse:
    """Answer from memory."""
    states = {state.lower() for state in request.states_filter}
    types = {name.lower() for name in request.types_filter}
    listed = [
        ListedGroup(
            group_id=group.group_id,
            protocol_type=group.protocol_type or "",
            group_state=group.state.value,
            group_type=_TYPE,
        )
        for group in broker.groups
        if (not states or group.state.value.lower() in states) and (not types or _TYPE in types)
    ]
    loading = broker.groups.is_loading
    error_code = ErrorCode.COORDINATOR_LOAD_IN_PROGRESS if loading else ErrorCode.NONE
    return ListGroupsResponse(error_code=error_code, groups=listed)
