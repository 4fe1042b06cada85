"""DescribeTransactions (key 65, v0): the state of transactions (KIP-664)."""

from collections.abc import Sequence

from protocol.types import Api, Message, int16, int32, int64, string

__all__ = [
    "API",
    "DescribeTransactionsRequest",
    "DescribeTransactionsResponse",
    "DescribedTransaction",
    "TransactionTopic",
]


class DescribeTransactionsRequest(Message):
    transactional_ids: Sequence[string] = ()


class TransactionTopic(Message):
    topic: string = ""
    partitions: Sequence[int32] = ()


class DescribedTransaction(Message):
    error_code: int16 = 0
    transactional_id: string = ""
    transaction_state: string = ""
    transaction_timeout_ms: int32 = 0
    transaction_start_time_ms: int64 = 0
    producer_id: int64 = 0
    producer_epoch: int16 = 0
    topics: Sequence[TransactionTopic] = ()


class DescribeTransactionsResponse(Message):
    throttle_time_ms: int32 = 0
    transaction_states: Sequence[DescribedTransaction] = ()


API = Api(
    key=65,
    name="DescribeTransactions",
    min_version=0,
    max_version=0,
    flexible_since=0,
    request=DescribeTransactionsRequest,
    response=DescribeTransactionsResponse,
)
