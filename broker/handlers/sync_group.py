"""SyncGroup (key 14): the leader hands in the assignment, every member gets its share.

Versions: 0–5.
- v3+ static members (KIP-345); v5+ protocol type and name, which must be those of the join.

Behaviour: waits for the leader's assignment, and for that to be durable. While its groups are loaded the answer is error 27, as
in Kafka: the rebalance is forgotten, and the member joins again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call, answer_later
from broker.errors import KafkaError
from broker.groups.events import Sync
from protocol.errors import ErrorCode
from protocol.messages.sync_group import SyncGroupRequest, SyncGroupResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 14
MIN_VERSION = 0
MAX_VERSION = 5


def handle(broker: Broker, connection: Connection, call: Call, request: SyncGroupRequest) -> None:
    """Let the group decide; refuse what belongs to no group."""
    answer = answer_later(connection, call)
    try:
        if not request.group_id:
            raise KafkaError(ErrorCode.INVALID_GROUP_ID, "a group has a name")
        broker.groups.submit(request.group_id, Sync(token=answer, request=request))
    except KafkaError as error:
        loading = error.error_code is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
        answer(SyncGroupResponse(error_code=ErrorCode.REBALANCE_IN_PROGRESS if loading else error.error_code))
