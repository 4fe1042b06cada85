"""OffsetCommit (key 8): store positions of a group.

Versions: 2–10.
- v2–4 may say how long offsets are kept (KIP-211 dropped that); v6+ leader epochs (KIP-320); v7+ static members (KIP-345).
- v10 names topics by id (KIP-848): an unknown id is error 100.

Behaviour: answered when the offsets are durable. Generation −1 without a member commits to a group that has no members, which is
made where needed. A partition that does not exist is error 3; too long a text error 12; offsets of an unknown partition beyond the
memory for groups error 28. Each partition is answered for itself, the others are stored.

Not done: member epochs (KIP-848), which mean nothing to classic groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.broker import Broker, Call, answer_later
from broker.errors import KafkaError
from broker.groups.events import Commit, CommittedOffset
from broker.topics import Topic
from protocol.errors import ErrorCode
from protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestTopic,
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 8
MIN_VERSION = 2
MAX_VERSION = 10

_TOPIC_IDS_SINCE = 10


def handle(
    broker: Broker, connection: Connection, call: Call, request: OffsetCommitRequest
) -> OffsetCommitResponse | None:
    """Sort out what does not exist, and let the group decide about the rest."""
    topics: list[OffsetCommitResponseTopic] = []
    offsets: list[CommittedOffset] = []
    waiting: list[OffsetCommitResponsePartition] = []
    for wanted in request.topics:
        topic, unknown = _topic(broker, call.version, wanted)
        partitions: list[OffsetCommitResponsePartition] = []
        topics.append(OffsetCommitResponseTopic(name=wanted.name, topic_id=wanted.topic_id, partitions=partitions))
        for found in wanted.partitions:
            index = found.partition_index
            partition = OffsetCommitResponsePartition(partition_index=index)
            partitions.append(partition)
            if topic is None or not 0 <= index < len(topic.partitions):
                partition.error_code = unknown
                continue
            offsets.append(
                CommittedOffset(
                    topic.name,
                    index,
                    found.committed_offset,
                    found.committed_leader_epoch,
                    found.committed_metadata or "",
                )
            )
            waiting.append(partition)
    response = OffsetCommitResponse(topics=topics)
    if not offsets:
        return response
    answer = answer_later(connection, call)

    def answered(errors: Sequence[int]) -> None:
        for partition, error in zip(waiting, errors, strict=True):
            partition.error_code = error
        answer(response)

    try:
        broker.groups.submit(
            request.group_id,
            Commit(
                token=answered,
                group_id=request.group_id,
                member_id=request.member_id,
                group_instance_id=request.group_instance_id,
                generation_id=request.generation_id_or_member_epoch,
                retention_ms=request.retention_time_ms,
                offsets=offsets,
            ),
        )
    except KafkaError as error:
        answered([error.error_code] * len(waiting))
    return None


def _topic(broker: Broker, version: int, wanted: OffsetCommitRequestTopic) -> tuple[Topic | None, ErrorCode]:
    """The topic, and the error for partitions that it does not have."""
    if version < _TOPIC_IDS_SINCE:
        return broker.topics.by_name.get(wanted.name), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    topic = broker.topics.by_id.get(wanted.topic_id)
    return topic, ErrorCode.UNKNOWN_TOPIC_ID if topic is None else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
