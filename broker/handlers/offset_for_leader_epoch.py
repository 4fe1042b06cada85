"""OffsetForLeaderEpoch (key 23): where a leader epoch ends, so that consumers notice truncation (KIP-320).

Versions: 2–4. v3+ followers name themselves, which there are none of; v4+ is flexible.

Behaviour: the client's idea of the current epoch is checked first (74, 75). Then the answer is the largest epoch at or below
the asked one, and its end; for the current one that is the high watermark. An epoch that is not known yet is −1/−1, one
older than all that are known ends where those begin.

A partition that is about to be served here is waited for a moment: consumers ask for it as soon as they hear of a new leader epoch.

Deviations: Kafka tells the log end offset of the current epoch, which may go back; the high watermark does not.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from broker.partition import Partition
from protocol.errors import ErrorCode
from protocol.messages.offset_for_leader_epoch import (
    EpochEndOffset,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)
from s3stream.errors import StorageError

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.topics import Topic

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 23
MIN_VERSION = 2
MAX_VERSION = 4


def handle(
    broker: Broker, connection: Connection, call: Call, request: OffsetForLeaderEpochRequest
) -> OffsetForLeaderEpochResponse | Coroutine[Any, Any, OffsetForLeaderEpochResponse]:
    """Answer from memory; only partitions that are about to be served here are waited for."""
    wanted = [
        (broker.topics.by_name.get(topic.topic), partition.partition)
        for topic in request.topics
        for partition in topic.partitions
    ]
    return (
        _answer_later(broker, request, wanted)
        if broker.arrivals.any_of(wanted, loaded=True)
        else _answer(broker, request)
    )


async def _answer_later(
    broker: Broker, request: OffsetForLeaderEpochRequest, wanted: Sequence[tuple[Topic | None, int]]
) -> OffsetForLeaderEpochResponse:
    await broker.arrivals.settle(wanted, loaded=True)
    return _answer(broker, request)


def _answer(broker: Broker, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse:
    topics: list[OffsetForLeaderTopicResult] = []
    for topic in request.topics:
        answers: list[EpochEndOffset] = []
        for wanted in topic.partitions:
            answer = EpochEndOffset(partition=wanted.partition)
            try:
                partition = broker.topics.open_partition(topic.topic, wanted.partition, wanted.current_leader_epoch)
                answer.leader_epoch, answer.end_offset = _end_of(partition, wanted.leader_epoch)
            except (KafkaError, StorageError) as error:
                answer.error_code = code_of(error)
            answers.append(answer)
        topics.append(OffsetForLeaderTopicResult(topic=topic.topic, partitions=answers))
    return OffsetForLeaderEpochResponse(topics=topics)


def _end_of(partition: Partition, leader_epoch: int) -> tuple[int, int]:
    if not partition.loaded:
        raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{partition} is loading")
    if leader_epoch == partition.leader_epoch:
        return leader_epoch, partition.high_watermark
    if leader_epoch > partition.leader_epoch:
        return -1, -1
    return partition.leader_epochs.end_offset(leader_epoch, partition.high_watermark)
