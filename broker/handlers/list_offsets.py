"""ListOffsets (key 2): the offset at a timestamp, or at a special position.

Versions: 1–11.
- v2+ isolation level: "latest" is the last stable offset for read_committed (KIP-98), here always the high watermark.
- v4+ the client's leader epoch is checked, and the epoch of the found offset told (KIP-320).
- v7+ −3, the record with the largest timestamp (KIP-734); v8+ −4, earliest local (KIP-405); v9+ −5, latest tiered
  (KIP-1005); v11+ −6, earliest pending upload (KIP-1023). Asking for one at an older version is error 35.

Behaviour: a timestamp is looked up in the metadata's largest timestamps, then in the index of one object, then in the
records of one batch, whose decompression is capped. Nothing found is −1/−1, without an error. −4 equals −2, and
−5 and −6 are −1/−1, as from a Kafka broker without remote storage: where data lies is not the client's business here.

A partition that is about to be served here is waited for a moment.

Deviations: a batch whose records cannot be read, or are too many to be looked through (`record_walks.py`), is answered by its
first offset, from which a consumer misses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from broker.partition import Partition
from broker.record_walks import MAX_LOOK_UP_STEPS
from protocol.errors import ErrorCode, Malformed
from protocol.messages.list_offsets import (
    ListOffsetsPartitionResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)
from protocol.record_set import RecordMark
from protocol.records import parse_batch_header
from s3stream.errors import StorageError
from s3stream.objectstore import Buffer, ObjectStoreError

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.topics import Topic

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 2
MIN_VERSION = 1
MAX_VERSION = 11

LATEST = -1
EARLIEST = -2
MAX_TIMESTAMP = -3
EARLIEST_LOCAL = -4
LATEST_TIERED = -5
EARLIEST_PENDING_UPLOAD = -6

_SINCE = {LATEST: 0, EARLIEST: 0, MAX_TIMESTAMP: 7, EARLIEST_LOCAL: 8, LATEST_TIERED: 9, EARLIEST_PENDING_UPLOAD: 11}


def handle(
    broker: Broker, connection: Connection, call: Call, request: ListOffsetsRequest
) -> ListOffsetsResponse | Coroutine[Any, Any, ListOffsetsResponse]:
    """Answer at once, unless a timestamp has to be looked up, or a partition is about to be served here."""
    wanted = [
        (broker.topics.by_name.get(topic.name), partition.partition_index)
        for topic in request.topics
        for partition in topic.partitions
    ]
    return (
        _answer_later(broker, call, request, wanted)
        if broker.arrivals.any_of(wanted, loaded=False)
        else _answer(broker, call, request)
    )


async def _answer_later(
    broker: Broker, call: Call, request: ListOffsetsRequest, wanted: Sequence[tuple[Topic | None, int]]
) -> ListOffsetsResponse:
    await broker.arrivals.settle(wanted, loaded=False)
    answer = _answer(broker, call, request)
    return await answer if isinstance(answer, Coroutine) else answer


def _answer(
    broker: Broker, call: Call, request: ListOffsetsRequest
) -> ListOffsetsResponse | Coroutine[Any, Any, ListOffsetsResponse]:
    seen = Counter(
        (topic.name, partition.partition_index) for topic in request.topics for partition in topic.partitions
    )
    look_ups: list[tuple[Partition, int, ListOffsetsPartitionResponse]] = []
    topics: list[ListOffsetsTopicResponse] = []
    for topic in request.topics:
        partitions: list[ListOffsetsPartitionResponse] = []
        for wanted in topic.partitions:
            answer = ListOffsetsPartitionResponse(partition_index=wanted.partition_index)
            try:
                if seen[topic.name, wanted.partition_index] > 1:
                    raise KafkaError(ErrorCode.INVALID_REQUEST, "the partition is asked for twice")
                partition = broker.topics.open_partition(
                    topic.name, wanted.partition_index, wanted.current_leader_epoch
                )
                if not _answer_special(call.version, partition, wanted.timestamp, answer):
                    look_ups.append((partition, wanted.timestamp, answer))
            except (KafkaError, StorageError) as error:
                answer.error_code = code_of(error)
            partitions.append(answer)
        topics.append(ListOffsetsTopicResponse(name=topic.name, partitions=partitions))
    response = ListOffsetsResponse(topics=topics)
    return _look_up(broker, response, look_ups) if look_ups else response


def _answer_special(version: int, partition: Partition, timestamp: int, answer: ListOffsetsPartitionResponse) -> bool:
    """Answer a position that needs no look-up; False: it does."""
    if timestamp < 0 and version < _SINCE.get(timestamp, MAX_VERSION + 1):
        raise KafkaError(ErrorCode.UNSUPPORTED_VERSION, f"timestamp {timestamp} has no meaning in v{version}")
    if timestamp == LATEST:
        answer.offset = partition.last_stable_offset
        answer.leader_epoch = partition.leader_epoch
    elif timestamp in (EARLIEST, EARLIEST_LOCAL):
        answer.offset = partition.log_start_offset
        answer.leader_epoch = partition.leader_epochs.epoch_at(partition.log_start_offset)
    elif timestamp not in (LATEST_TIERED, EARLIEST_PENDING_UPLOAD):
        return False
    return True


async def _look_up(
    broker: Broker, response: ListOffsetsResponse, look_ups: list[tuple[Partition, int, ListOffsetsPartitionResponse]]
) -> ListOffsetsResponse:
    for partition, timestamp, answer in look_ups:
        try:
            if timestamp == MAX_TIMESTAMP:
                timestamp = await partition.stream.max_timestamp()
                if timestamp < 0:
                    continue
            payload = await partition.stream.payload_for_timestamp(timestamp)
            if payload is not None:
                await _answer_from(broker, payload, timestamp, partition.log_start_offset, answer)
        except (StorageError, ObjectStoreError) as error:
            answer.error_code = code_of(error)
    for partition, _, answer in look_ups:
        # What was looked up meanwhile may be stale.
        if not broker.serving.serves or partition.stream.withheld is not None:
            answer.offset = answer.timestamp = answer.leader_epoch = -1
            answer.error_code = ErrorCode.NOT_LEADER_OR_FOLLOWER
    return response


async def _answer_from(
    broker: Broker, payload: Buffer, timestamp: int, log_start_offset: int, answer: ListOffsetsPartitionResponse
) -> None:
    """The first record of a batch that is at or past `timestamp`."""
    header = parse_batch_header(payload)
    answer.leader_epoch = header.partition_leader_epoch

    def wanted(mark: RecordMark) -> bool:
        return mark.timestamp_ms >= timestamp and mark.offset >= log_start_offset

    try:
        found = await broker.record_walks.first(payload, wanted, MAX_LOOK_UP_STEPS)
    except Malformed:  # written by a client that did not compress well; see Deviations
        found = None
    answer.offset = max(header.base_offset, log_start_offset) if found is None else found.offset
    answer.timestamp = header.max_timestamp if found is None else found.timestamp_ms
