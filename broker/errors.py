"""The one table from exceptions to Kafka error codes.

Always true:
- A handler raises what it means, or lets through what the layers below raised; only this module picks the number.
- The number is the one that makes clients do the right thing: refresh their metadata, try again, or fail. Which codes
  clients retry is Kafka's contract (`ErrorCode.retriable`).
- An exception that is not in the table is our bug. It ends the connection with a traceback in the log, rather than being
  reported as something that it is not.
"""

from __future__ import annotations

from broker.fetch_session import FetchSessionIdNotFound, FetchSessionTopicIdError, InvalidFetchSessionEpoch
from broker.producer_state import InvalidProducerEpoch, OutOfOrderSequence
from broker.topic_config import InvalidTopicConfig
from controller.errors import (
    ControllerError,
    InvalidPartitionCount,
    NoNodes,
    TooManyPartitions,
    TopicExists,
    UnknownNode,
    UnknownTopic,
)
from protocol.errors import ErrorCode, InvalidRecords
from s3stream.errors import (
    MetadataUnavailable,
    NodeFenced,
    ObjectCorrupt,
    OffsetOutOfRange,
    StorageError,
    StorageFenced,
    StreamClosed,
)
from s3stream.objectstore import ObjectStoreError
from wal.errors import PayloadTooLarge, WalError

__all__ = ["KafkaError", "code_of"]


class KafkaError(Exception):
    """An answer that Kafka has a code for and that no layer below knows: raised by the broker's own handlers."""

    def __init__(self, error_code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error_code = error_code


_CODES: dict[type[BaseException], ErrorCode] = {
    # Storage. A stream that is not open here has, or will have, another leader: the client asks who it is.
    OffsetOutOfRange: ErrorCode.OFFSET_OUT_OF_RANGE,
    StreamClosed: ErrorCode.NOT_LEADER_OR_FOLLOWER,
    StorageFenced: ErrorCode.KAFKA_STORAGE_ERROR,
    NodeFenced: ErrorCode.NOT_LEADER_OR_FOLLOWER,
    MetadataUnavailable: ErrorCode.REQUEST_TIMED_OUT,
    ObjectCorrupt: ErrorCode.KAFKA_STORAGE_ERROR,
    ObjectStoreError: ErrorCode.KAFKA_STORAGE_ERROR,
    StorageError: ErrorCode.KAFKA_STORAGE_ERROR,
    PayloadTooLarge: ErrorCode.MESSAGE_TOO_LARGE,
    WalError: ErrorCode.KAFKA_STORAGE_ERROR,
    # Producers. 47 rather than 90 on Produce: old clients know no other (KIP-588).
    InvalidProducerEpoch: ErrorCode.INVALID_PRODUCER_EPOCH,
    OutOfOrderSequence: ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
    # Fetch sessions (KIP-227, KIP-516).
    FetchSessionIdNotFound: ErrorCode.FETCH_SESSION_ID_NOT_FOUND,
    InvalidFetchSessionEpoch: ErrorCode.INVALID_FETCH_SESSION_EPOCH,
    FetchSessionTopicIdError: ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR,
    # Topics.
    TopicExists: ErrorCode.TOPIC_ALREADY_EXISTS,
    UnknownNode: ErrorCode.INVALID_REPLICA_ASSIGNMENT,
    UnknownTopic: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    TooManyPartitions: ErrorCode.INVALID_PARTITIONS,
    InvalidPartitionCount: ErrorCode.INVALID_PARTITIONS,
    NoNodes: ErrorCode.BROKER_NOT_AVAILABLE,
    ControllerError: ErrorCode.UNKNOWN_SERVER_ERROR,
    InvalidTopicConfig: ErrorCode.INVALID_CONFIG,
    TimeoutError: ErrorCode.REQUEST_TIMED_OUT,
}


def code_of(error: BaseException) -> ErrorCode:
    """The code that tells a client of `error`. Raises `error` itself where the table has none: it is a bug."""
    if isinstance(error, KafkaError | InvalidRecords):
        return error.error_code
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            return code
    raise error
