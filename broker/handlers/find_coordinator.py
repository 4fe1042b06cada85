"""FindCoordinator (key 10): who coordinates a group or a transactional id.

Versions: 0–6.
- v1+ tells groups (0) from transactional ids (1); v4+ asks for several keys at once (KIP-699).

Behaviour: nobody coordinates yet. It is served nevertheless, because librdkafka takes a broker without it for one from before
0.8.2, and then sends uncompressed what its user wanted in lz4 (`rdkafka_feature.c`).
- A group gets error 15 (COORDINATOR_NOT_AVAILABLE), which clients try again: consumers that assign their partitions by hand,
  and that librdkafka makes name a group, go on undisturbed.
- A transactional id gets error 53 (TRANSACTIONAL_ID_AUTHORIZATION_FAILED), which is final, as from InitProducerId.

Not done: groups and transactions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from protocol.errors import ErrorCode
from protocol.messages.find_coordinator import Coordinator, FindCoordinatorRequest, FindCoordinatorResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 10
MIN_VERSION = 0
MAX_VERSION = 6

_MANY_KEYS_SINCE = 4
_TRANSACTION = 1
_MESSAGES = {
    ErrorCode.COORDINATOR_NOT_AVAILABLE: "consumer groups are not served yet: assign partitions by hand",
    ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactions are not served yet",
}


def handle(
    broker: Broker, connection: Connection, call: Call, request: FindCoordinatorRequest
) -> FindCoordinatorResponse:
    """Say that there is none."""
    error_code = (
        ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        if request.key_type == _TRANSACTION
        else ErrorCode.COORDINATOR_NOT_AVAILABLE
    )
    message = _MESSAGES[error_code]
    if call.version < _MANY_KEYS_SINCE:
        return FindCoordinatorResponse(error_code=error_code, error_message=message, node_id=-1, port=-1)
    return FindCoordinatorResponse(
        coordinators=[
            Coordinator(key=key, node_id=-1, port=-1, error_code=error_code, error_message=message)
            for key in request.coordinator_keys
        ]
    )
