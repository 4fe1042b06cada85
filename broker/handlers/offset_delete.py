"""OffsetDelete (key 47): remove some of a group's positions (KIP-496).

Versions: 0.

Behaviour: answered when that is durable. A partition that does not exist is error 3; one of a topic that a member subscribes to is
error 86. An unknown group is error 69, one with members that are no consumers error 68. What was not committed is removed without
an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.broker import Broker, Call, answer_later
from broker.errors import KafkaError
from broker.groups.events import DeleteOffsets
from protocol.errors import ErrorCode
from protocol.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 47
MIN_VERSION = 0
MAX_VERSION = 0


def handle(broker: Broker, connection: Connection, call: Call, request: OffsetDeleteRequest) -> None:
    """Sort out what does not exist, and let the group decide about the rest."""
    topics: list[OffsetDeleteResponseTopic] = []
    wanted: list[tuple[str, int]] = []
    waiting: list[OffsetDeleteResponsePartition] = []
    for asked in request.topics:
        topic = broker.topics.by_name.get(asked.name)
        partitions = [OffsetDeleteResponsePartition(partition_index=each.partition_index) for each in asked.partitions]
        topics.append(OffsetDeleteResponseTopic(name=asked.name, partitions=partitions))
        for partition in partitions:
            if topic is None or not 0 <= partition.partition_index < len(topic.partitions):
                partition.error_code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            else:
                wanted.append((asked.name, partition.partition_index))
                waiting.append(partition)
    answer = answer_later(connection, call)

    def answered(errors: Sequence[int] | ErrorCode) -> None:
        if isinstance(errors, ErrorCode):
            answer(OffsetDeleteResponse(error_code=errors))
            return
        for partition, error in zip(waiting, errors, strict=True):
            partition.error_code = error
        answer(OffsetDeleteResponse(topics=topics))

    try:
        if not request.group_id:
            raise KafkaError(ErrorCode.INVALID_GROUP_ID, "a group has a name")
        deletion = DeleteOffsets(token=answered, group_id=request.group_id, partitions=wanted)
        broker.groups.submit(request.group_id, deletion)
    except KafkaError as error:
        answered(error.error_code)
