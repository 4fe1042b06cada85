"""LeaveGroup (key 13): members leave a classic group.

Versions: 0–5.
- v3+ many members at once, also static ones by name (KIP-345); v5+ a reason, for the log (KIP-800).

Behaviour: each member is answered for itself from v3 on. Who leaves does not wait for the rebalance that follows.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker.broker import Broker, Call, answer_later
from broker.errors import KafkaError
from broker.groups.events import Leave
from protocol.errors import ErrorCode
from protocol.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

log = logging.getLogger("tidelog.groups")

API_KEY = 13
MIN_VERSION = 0
MAX_VERSION = 5


def handle(broker: Broker, connection: Connection, call: Call, request: LeaveGroupRequest) -> None:
    """Let the group decide; refuse what belongs to no group."""
    answer = answer_later(connection, call)
    try:
        if not request.group_id:
            raise KafkaError(ErrorCode.INVALID_GROUP_ID, "a group has a name")
        for member in request.members:
            if member.reason:
                log.debug(
                    "a member leaves: %(member)s, %(group)s, %(reason)s",
                    {"member": member.member_id, "group": request.group_id, "reason": member.reason},
                )
        broker.groups.submit(request.group_id, Leave(token=answer, version=call.version, request=request))
    except KafkaError as error:
        answer(LeaveGroupResponse(error_code=error.error_code))
