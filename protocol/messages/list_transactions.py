"""ListTransactions (key 66, v0-2): transactions that a coordinator knows (KIP-664).

- v1 filters by duration (KIP-994), v2 by a pattern of transactional ids (KIP-1152).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, int16, int32, int64, since, string

__all__ = ["API", "ListTransactionsRequest", "ListTransactionsResponse", "ListedTransaction"]


class ListTransactionsRequest(Message):
    state_filters: Sequence[string] = ()
    producer_id_filters: Sequence[int64] = ()
    duration_filter: Annotated[int64, since(1)] = -1
    transactional_id_pattern: Annotated[string | None, since(2)] = None


class ListedTransaction(Message):
    transactional_id: string = ""
    producer_id: int64 = 0
    transaction_state: string = ""


class ListTransactionsResponse(Message):
    throttle_time_ms: int32 = 0
    error_code: int16 = 0
    unknown_state_filters: Sequence[string] = ()
    transaction_states: Sequence[ListedTransaction] = ()


API = Api(
    key=66,
    name="ListTransactions",
    min_version=0,
    max_version=2,
    flexible_since=0,
    request=ListTransactionsRequest,
    response=ListTransactionsResponse,
)
