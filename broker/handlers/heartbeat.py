"""Heartbeat (key 12): a member of a classic group is alive.

Versions: 0–4.
- v3+ static members (KIP-345).

Behaviour: error 27 while the group waits for its members to join again. While its groups are loaded the answer is no error, as in
Kafka: the session's time begins anew when they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call, answer_later
from broker.errors import KafkaError
from broker.groups.events import Heartbeat
from protocol.errors import ErrorCode
from protocol.messages.heartbeat import HeartbeatRequest, HeartbeatResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 12
MIN_VERSION = 0
MAX_VERSION = 4


def handle(broker: Broker, connection: Connection, call: Call, request: HeartbeatRequest) -> None:
    """Let the group decide; refuse what belongs to no group."""
    answer = answer_later(connection, call)
    try:
        if not request.group_id:
            raise KafkaError(ErrorCode.INVALID_GROUP_ID, "a group has a name")
        broker.groups.submit(request.group_id, Heartbeat(token=answer, request=request))
    except KafkaError as error:
        loading = error.error_code is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
        answer(HeartbeatResponse(error_code=ErrorCode.NONE if loading else error.error_code))
