"""AlterPartitionReassignments (key 45): have partitions served by other brokers, or end that (KIP-455).

Versions: 0–1.

Behaviour: the first replica named is the broker that is to have the partition; what else is named does not matter, since the object
store keeps the copies. Answered when the metadata log has it; the move itself follows, and `ListPartitionReassignments` shows it as
long as it is under way. A partition that does not exist is error 3, a broker that is not registered error 39, the end of a reassignment where
none is under way error 85; the others of the request are not held up by that.

Deviations: the replication factor never matters, so `allow_replication_factor_change` does not either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from controller.errors import ControllerError
from protocol.errors import ErrorCode
from protocol.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    AlterPartitionReassignmentsResponse,
    ReassignablePartition,
    ReassignablePartitionResponse,
    ReassignableTopicResponse,
)
from s3stream.errors import MetadataUnavailable

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.topics import Topic
    from s3stream.metadata import StreamId

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 45
MIN_VERSION = 0
MAX_VERSION = 1


def handle(
    broker: Broker, connection: Connection, call: Call, request: AlterPartitionReassignmentsRequest
) -> Coroutine[Any, Any, AlterPartitionReassignmentsResponse]:
    """Check, and commit what is right as one."""
    return _reassign(broker, request)


async def _reassign(broker: Broker, request: AlterPartitionReassignmentsRequest) -> AlterPartitionReassignmentsResponse:
    responses: list[ReassignableTopicResponse] = []
    targets: dict[StreamId, int] = {}
    accepted: list[ReassignablePartitionResponse] = []
    for wanted in request.topics:
        topic = broker.topics.by_name.get(wanted.name)
        partitions: list[ReassignablePartitionResponse] = []
        responses.append(ReassignableTopicResponse(name=wanted.name, partitions=partitions))
        for each in wanted.partitions:
            response = ReassignablePartitionResponse(partition_index=each.partition_index, error_message=None)
            partitions.append(response)
            try:
                stream_id, target = _target(broker, topic, wanted.name, each)
            except KafkaError as error:
                _fail(response, error)
            else:
                targets[stream_id] = target
                accepted.append(response)
    if targets:
        try:
            async with asyncio.timeout(min(request.timeout_ms, broker.settings.request_timeout_ms) / 1000):
                await broker.controller.reassign(targets)
        except (MetadataUnavailable, TimeoutError):
            late = KafkaError(ErrorCode.REQUEST_TIMED_OUT, "the reassignment may begin later: look before trying again")
            for response in accepted:
                _fail(response, late)
        except ControllerError as error:
            for response in accepted:
                _fail(response, KafkaError(code_of(error), str(error)))
    return AlterPartitionReassignmentsResponse(
        allow_replication_factor_change=request.allow_replication_factor_change,
        error_message=None,
        responses=responses,
    )


def _target(broker: Broker, topic: Topic | None, name: str, wanted: ReassignablePartition) -> tuple[StreamId, int]:
    """The stream, and the node that is to have it; -1: it stays where it is."""
    if topic is None or not 0 <= wanted.partition_index < len(topic.info.partitions):
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"{name}-{wanted.partition_index} does not exist")
    state = topic.info.partitions[wanted.partition_index]
    if wanted.replicas is None:
        if state.target == -1:
            raise KafkaError(
                ErrorCode.NO_REASSIGNMENT_IN_PROGRESS, f"{name}-{wanted.partition_index} is not being reassigned"
            )
        return state.stream_id, -1
    if not wanted.replicas:
        raise KafkaError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, "no broker is named")
    unknown = sorted(set(wanted.replicas) - broker.controller.image.nodes.keys())
    if unknown:
        raise KafkaError(
            ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"brokers {', '.join(map(str, unknown))} are not registered"
        )
    return state.stream_id, wanted.replicas[0]


def _fail(response: ReassignablePartitionResponse, error: KafkaError) -> None:
    response.error_code = error.error_code
    response.error_message = str(error)
