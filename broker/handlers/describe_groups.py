"""DescribeGroups (key 15): the state and the members of groups.

Versions: 0–6.
- v3+ authorized operations on request (KIP-430); v4+ static members (KIP-345).
- v6 answers an unknown group with error 69 (KIP-1043); before, it is a group without members in state "Dead".

Behaviour: members' metadata and assignments, and the protocol, are told in state "Stable" only, as in Kafka: else they are of a generation
that passes. A group that is named twice is described once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from broker.errors import KafkaError
from broker.groups.group import Group, GroupState
from protocol.errors import ErrorCode
from protocol.messages.describe_groups import (
    DescribedGroup,
    DescribedGroupMember,
    DescribeGroupsRequest,
    DescribeGroupsResponse,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 15
MIN_VERSION = 0
MAX_VERSION = 6

_NOT_FOUND_SINCE = 6
_ALL_OPERATIONS_ON_GROUP = 0b1_0100_1000
"""READ, DELETE, DESCRIBE, as bits (KIP-430): nothing is forbidden."""


def handle(
    broker: Broker, connection: Connection, call: Call, request: DescribeGroupsRequest
) -> DescribeGroupsResponse:
    """Answer from memory."""
    # Each once: an answer is much larger than a question.
    described = [_described(broker, call.version, group_id) for group_id in dict.fromkeys(request.groups)]
    if request.include_authorized_operations:
        for group in described:
            if not group.error_code:
                group.authorized_operations = _ALL_OPERATIONS_ON_GROUP
    return DescribeGroupsResponse(groups=described)


def _described(broker: Broker, version: int, group_id: str) -> DescribedGroup:
    try:
        group = broker.groups.group(group_id)
    except KafkaError as error:
        return DescribedGroup(group_id=group_id, error_code=error.error_code, error_message=str(error))
    if group is None:
        dead = DescribedGroup(group_id=group_id, group_state=GroupState.DEAD.value)
        if version >= _NOT_FOUND_SINCE:
            dead.error_code = ErrorCode.GROUP_ID_NOT_FOUND
            dead.error_message = f"group {group_id} not found"
        return dead
    stable = group.state is GroupState.STABLE
    return DescribedGroup(
        group_id=group_id,
        group_state=group.state.value,
        protocol_type=group.protocol_type or "",
        protocol_data=(group.protocol_name or "") if stable else "",
        members=_members(group, stable),
    )


def _members(group: Group, stable: bool) -> list[DescribedGroupMember]:
    return [
        DescribedGroupMember(
            member_id=member.member_id,
            group_instance_id=member.group_instance_id,
            client_id=member.client_id,
            client_host=member.client_host,
            member_metadata=member.metadata(group.protocol_name) if stable else b"",
            member_assignment=member.assignment if stable else b"",
        )
        for member in group.members.values()
    ]
