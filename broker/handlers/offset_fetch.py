"""OffsetFetch (key 9): read a group's stored positions.

Versions: 1–10.
- v2+ null topics mean all, and errors of the group have a place of their own; v5+ leader epochs (KIP-320).
- v7+ `require_stable` (KIP-447); v8+ many groups at once (KIP-709); v9+ member epochs (KIP-848); v10 topic ids.

Behaviour: what is not committed, of groups that do not exist as well, is offset −1 without an error. An unknown topic id is error 100 for
each of its partitions; offsets of topics that are no more are left out where all are asked for by id. A group or a partition
that is named twice is answered once.

Deviation: where this broker does not coordinate the group, or not yet, each partition that was named has error 88 (UNSTABLE_OFFSET_COMMIT)
beside the group's own error (v7+). Clients look at the latter first and find the coordinator; librdkafka does that as well, but asks again only
for the sake of a partition, and would wait for ever where none is named (librdkafka issue 5586).

Not done: transactions, so nothing is ever unstable; member epochs, which mean nothing to classic groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from broker.broker import Broker, Call
from broker.errors import KafkaError
from broker.groups.group import Group
from broker.groups.records import OffsetValue
from protocol.errors import ErrorCode
from protocol.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopics,
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
)
from protocol.types import NULL_UUID

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 9
MIN_VERSION = 1
MAX_VERSION = 10

_GROUP_ERROR_SINCE = 2
_UNSTABLE_SINCE = 7
_MANY_GROUPS_SINCE = 8
_TOPIC_IDS_SINCE = 10
_NOTHING = OffsetValue(-1)


def handle(broker: Broker, connection: Connection, call: Call, request: OffsetFetchRequest) -> OffsetFetchResponse:
    """Answer from memory."""
    if call.version >= _MANY_GROUPS_SINCE:
        wanted = {group.group_id: group for group in request.groups}
        return OffsetFetchResponse(groups=[_group(broker, call.version, group) for group in wanted.values()])
    topics = None
    if request.topics is not None:
        topics = [
            OffsetFetchRequestTopics(name=topic.name, partition_indexes=topic.partition_indexes)
            for topic in request.topics
        ]
    answer = _group(broker, call.version, OffsetFetchRequestGroup(group_id=request.group_id, topics=topics))
    if answer.error_code and call.version < _GROUP_ERROR_SINCE:
        answer.topics = [_failed(topic, answer.error_code) for topic in topics or ()]
    return OffsetFetchResponse(
        error_code=answer.error_code,
        topics=[
            OffsetFetchResponseTopic(
                name=topic.name,
                partitions=[
                    OffsetFetchResponsePartition(
                        partition_index=found.partition_index,
                        committed_offset=found.committed_offset,
                        committed_leader_epoch=found.committed_leader_epoch,
                        metadata=found.metadata,
                        error_code=found.error_code,
                    )
                    for found in topic.partitions
                ],
            )
            for topic in answer.topics
        ],
    )


def _group(broker: Broker, version: int, wanted: OffsetFetchRequestGroup) -> OffsetFetchResponseGroup:
    try:
        group = broker.groups.group(wanted.group_id)
    except KafkaError as error:
        named = wanted.topics or () if version >= _UNSTABLE_SINCE else ()
        again = [_failed(topic, ErrorCode.UNSTABLE_OFFSET_COMMIT) for topic in named]
        return OffsetFetchResponseGroup(group_id=wanted.group_id, error_code=error.error_code, topics=again)
    if wanted.topics is None:
        found = _all_topics(broker, version, group)
    else:
        # Each partition once: an answer, with the text that was committed, may be much larger than a question.
        seen: set[tuple[str, int]] = set()
        found = [_topic(broker, version, group, topic, seen) for topic in wanted.topics]
    return OffsetFetchResponseGroup(group_id=wanted.group_id, topics=found)


def _all_topics(broker: Broker, version: int, group: Group | None) -> list[OffsetFetchResponseTopics]:
    found = []
    for name in group.offsets.topics if group is not None else ():
        topic_id = NULL_UUID
        if version >= _TOPIC_IDS_SINCE:
            topic = broker.topics.by_name.get(name)
            if topic is None:
                continue
            topic_id = topic.topic_id
        assert group is not None
        partitions = _partitions(group.offsets.of_topic(name).items())
        found.append(OffsetFetchResponseTopics(name=name, topic_id=topic_id, partitions=partitions))
    return found


def _topic(
    broker: Broker,
    version: int,
    group: Group | None,
    wanted: OffsetFetchRequestTopics,
    seen: set[tuple[str, int]],
) -> OffsetFetchResponseTopics:
    name = wanted.name
    if version >= _TOPIC_IDS_SINCE:
        topic = broker.topics.by_id.get(wanted.topic_id)
        if topic is None:
            return _failed(wanted, ErrorCode.UNKNOWN_TOPIC_ID)
        name = topic.name
    offsets = {} if group is None else group.offsets.of_topic(name)
    new = [index for index in dict.fromkeys(wanted.partition_indexes) if (name, index) not in seen]
    seen.update((name, index) for index in new)
    partitions = _partitions((index, offsets.get(index, _NOTHING)) for index in new)
    return OffsetFetchResponseTopics(name=name, topic_id=wanted.topic_id, partitions=partitions)


def _partitions(offsets: Iterable[tuple[int, OffsetValue]]) -> Sequence[OffsetFetchResponsePartitions]:
    return [
        OffsetFetchResponsePartitions(
            partition_index=index,
            committed_offset=value.offset,
            committed_leader_epoch=value.leader_epoch,
            metadata=value.metadata,
        )
        for index, value in offsets
    ]


def _failed(wanted: OffsetFetchRequestTopics, error_code: int) -> OffsetFetchResponseTopics:
    return OffsetFetchResponseTopics(
        name=wanted.name,
        topic_id=wanted.topic_id,
        partitions=[
            OffsetFetchResponsePartitions(partition_index=index, committed_offset=-1, error_code=error_code)
            for index in wanted.partition_indexes
        ],
    )
