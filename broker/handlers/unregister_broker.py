"""UnregisterBroker (key 64): forget a broker that is gone for good (KIP-631).

Versions: 0.

Behaviour: clients are not told of it any more, and its id is free for another. A broker that is not known is error 102; one that runs, or that leads
partitions still, is refused with error 42: they would be without anybody who could tell where they end. `kafka-cluster unregister` uses it.

Deviations: Kafka unregisters a broker that runs, too, which then ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.errors import KafkaError, code_of
from controller.errors import NodeRefused
from protocol.errors import ErrorCode
from protocol.messages.unregister_broker import UnregisterBrokerRequest, UnregisterBrokerResponse
from s3stream.errors import MetadataUnavailable

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 64
MIN_VERSION = 0
MAX_VERSION = 0


def handle(
    broker: Broker, connection: Connection, call: Call, request: UnregisterBrokerRequest
) -> Coroutine[Any, Any, UnregisterBrokerResponse]:
    """Have it forgotten."""
    return _unregister(broker, request.broker_id)


async def _unregister(broker: Broker, node_id: int) -> UnregisterBrokerResponse:
    try:
        if broker.controller.image.node(node_id) is None:
            raise KafkaError(ErrorCode.BROKER_ID_NOT_REGISTERED, f"there is no broker {node_id}")
        if node_id == broker.settings.node_id:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"broker {node_id} is the one that was asked, so it runs")
        async with asyncio.timeout(broker.settings.request_timeout_ms / 1000):
            await broker.controller.unregister_node(node_id)
    except NodeRefused as error:
        return UnregisterBrokerResponse(error_code=ErrorCode.INVALID_REQUEST, error_message=str(error))
    except TimeoutError:
        return UnregisterBrokerResponse(
            error_code=ErrorCode.REQUEST_TIMED_OUT, error_message="it may be forgotten later: look before trying again"
        )
    except (KafkaError, MetadataUnavailable) as error:
        return UnregisterBrokerResponse(error_code=code_of(error), error_message=str(error))
    return UnregisterBrokerResponse(error_message=None)
