"""ListTransactions (key 66): the transactions that this coordinator knows (KIP-664).

Versions: 0–2.
- v1+ filter by duration (KIP-994); v2+ by a pattern of transactional ids (KIP-1152), error 128 where it is none.

Behaviour: there are no transactions yet, so there are none to list. States that Kafka does not know are told, as there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from protocol.errors import ErrorCode
from protocol.messages.list_transactions import ListTransactionsRequest, ListTransactionsResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 66
MIN_VERSION = 0
MAX_VERSION = 2

_STATES = frozenset(
    (
        "CompleteAbort",
        "CompleteCommit",
        "Dead",
        "Empty",
        "Ongoing",
        "PrepareAbort",
        "PrepareCommit",
        "PrepareEpochFence",
    )
)


def handle(
    broker: Broker, connection: Connection, call: Call, request: ListTransactionsRequest
) -> ListTransactionsResponse:
    """Nothing to list."""
    response = ListTransactionsResponse(
        unknown_state_filters=[state for state in request.state_filters if state not in _STATES]
    )
    if request.transactional_id_pattern:
        try:
            re.compile(request.transactional_id_pattern)
        except re.error:
            response.error_code = ErrorCode.INVALID_REGULAR_EXPRESSION
    return response
