"""InitProducerId (key 22): a producer id for idempotent produce.

Versions: 0–5.
- v3+ may name the producer id and epoch that the client had, to have its epoch bumped (KIP-360). Without a transactional
  id there is nothing to fence, so it gets a new id, as from Kafka.

Behaviour: ids are unique in the cluster; they are taken from the metadata log in blocks and never given out twice.

Not done: transactions. A transactional id gets error 53 (TRANSACTIONAL_ID_AUTHORIZATION_FAILED): clients take that as
final and fail at once with the id in their message, where error 35 or 15 would make them retry until their time-out.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from protocol.errors import ErrorCode
from protocol.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse
from s3stream.errors import MetadataUnavailable, NodeFenced

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 22
MIN_VERSION = 0
MAX_VERSION = 5


def handle(
    broker: Broker, connection: Connection, call: Call, request: InitProducerIdRequest
) -> InitProducerIdResponse | Coroutine[Any, Any, InitProducerIdResponse]:
    """Answer from the block at hand, or fetch another one."""
    if request.transactional_id is not None:
        return InitProducerIdResponse(error_code=ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, producer_epoch=-1)
    producer_id = broker.producer_ids.take()
    if producer_id is not None:
        return InitProducerIdResponse(producer_id=producer_id, producer_epoch=0)
    return _from_new_block(broker)


async def _from_new_block(broker: Broker) -> InitProducerIdResponse:
    try:
        producer_id = await broker.producer_ids.take_or_allocate()
    except MetadataUnavailable:
        # Retriable for every client of this API, unlike a time-out (KIP-98's coordinator errors).
        return InitProducerIdResponse(error_code=ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, producer_epoch=-1)
    except NodeFenced:  # another process took this node's place
        return InitProducerIdResponse(error_code=ErrorCode.NOT_COORDINATOR, producer_epoch=-1)
    return InitProducerIdResponse(producer_id=producer_id, producer_epoch=0)
