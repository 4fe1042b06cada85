"""DescribeTransactions (key 65): the state of transactions (KIP-664).

Versions: 0.

Behaviour: there are no transactions yet: every transactional id is unknown (105), an empty one is no id (42).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from protocol.errors import ErrorCode
from protocol.messages.describe_transactions import (
    DescribedTransaction,
    DescribeTransactionsRequest,
    DescribeTransactionsResponse,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 65
MIN_VERSION = 0
MAX_VERSION = 0


def handle(
    broker: Broker, connection: Connection, call: Call, request: DescribeTransactionsRequest
) -> DescribeTransactionsResponse:
    """No id is known."""
    return DescribeTransactionsResponse(
        transaction_states=[
            DescribedTransaction(
                transactional_id=transactional_id,
                error_code=ErrorCode.TRANSACTIONAL_ID_NOT_FOUND if transactional_id else ErrorCode.INVALID_REQUEST,
            )
            for transactional_id in request.transactional_ids
        ]
    )
