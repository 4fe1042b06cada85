"""FindCoordinator (key 10): who coordinates a group or a transactional id.

Versions: 0–6.
- v1+ tells groups (0) from transactional ids (1); v4+ asks for several keys at once (KIP-699).
- v6 knows share partitions (2, KIP-932).

Behaviour: the coordinator of a group is the leader of the partition of `__consumer_offsets` that the hash of its id says. The topic
is created by the first one who asks, and the answer waits until it is open, so that nobody has to ask twice.
- A group whose partition nobody leads gets error 15 (COORDINATOR_NOT_AVAILABLE), which clients try again.
- A transactional id gets error 53 (TRANSACTIONAL_ID_AUTHORIZATION_FAILED), which is final, as from InitProducerId.
- Anything else gets error 42 (INVALID_REQUEST).

Not done: transactions, share groups.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from broker.broker import Broker, Call
from broker.endpoints import address_of
from broker.errors import KafkaError
from broker.groups.coordinator import OFFSETS_TOPIC
from protocol.errors import ErrorCode
from protocol.messages.find_coordinator import Coordinator, FindCoordinatorRequest, FindCoordinatorResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 10
MIN_VERSION = 0
MAX_VERSION = 6

_MANY_KEYS_SINCE = 4
_GROUP = 0
_TRANSACTION = 1


def handle(
    broker: Broker, connection: Connection, call: Call, request: FindCoordinatorRequest
) -> FindCoordinatorResponse | Coroutine[Any, Any, FindCoordinatorResponse]:
    """Answer from memory, once the topic is there."""
    if request.key_type == _GROUP and broker.groups.partition_of("") is None:
        return _create_and_answer(broker, call, request)
    return _answer(broker, call, request, None)


async def _create_and_answer(broker: Broker, call: Call, request: FindCoordinatorRequest) -> FindCoordinatorResponse:
    try:
        await broker.groups.ensure_topic()
    except KafkaError as error:
        return _answer(broker, call, request, error)
    return _answer(broker, call, request, None)


def _answer(
    broker: Broker, call: Call, request: FindCoordinatorRequest, failure: KafkaError | None
) -> FindCoordinatorResponse:
    if call.version >= _MANY_KEYS_SINCE:
        return FindCoordinatorResponse(
            coordinators=[
                _coordinator(broker, call, request.key_type, key, failure) for key in request.coordinator_keys
            ]
        )
    found = _coordinator(broker, call, request.key_type, request.key, failure)
    return FindCoordinatorResponse(
        error_code=found.error_code,
        error_message=found.error_message,
        node_id=found.node_id,
        host=found.host,
        port=found.port,
    )


def _coordinator(broker: Broker, call: Call, key_type: int, key: str, failure: KafkaError | None) -> Coordinator:
    try:
        if failure is not None:
            raise failure
        return _found(broker, call, key_type, key)
    except KafkaError as error:
        return Coordinator(key=key, node_id=-1, port=-1, error_code=error.error_code, error_message=str(error))


def _found(broker: Broker, call: Call, key_type: int, key: str) -> Coordinator:
    if key_type == _TRANSACTION:
        raise KafkaError(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "transactions are not served yet")
    if key_type != _GROUP:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"coordinators of type {key_type} are not served")
    index = broker.groups.partition_of(key)
    leader = None if index is None else broker.topics.by_name[OFFSETS_TOPIC].leader(index)
    node = None if leader is None else broker.controller.image.node(leader.leader)
    address = None if node is None else address_of(broker, call.listener, node)
    if node is None or address is None:
        raise KafkaError(ErrorCode.COORDINATOR_NOT_AVAILABLE, f"nobody leads partition {index} of {OFFSETS_TOPIC} now")
    return Coordinator(key=key, node_id=node.node_id, host=address.host, port=address.port, error_message=None)
