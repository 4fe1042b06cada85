"""JoinGroup (key 11): become a member of a classic consumer group, and wait for the next generation.

Versions: 0–9.
- v1+ has a rebalance timeout (KIP-62), before it is the session timeout; v4+ a first join gets error 79 and the member id to join with
  (KIP-394); v5+ static members (KIP-345); v7+ the answer has the protocol type, and no protocol's name where there is none.
- v8+ a reason, for the log (KIP-800); v9+ the leader that comes back may be told to skip the assignment (KIP-814).

Behaviour: the request waits until every member has joined, or their time is up; see `broker.groups.membership`. While its groups are
loaded the answer is error 14.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker.broker import Broker, Call, answer_later
from broker.errors import KafkaError
from broker.groups.events import Join
from broker.groups.membership import join_error
from broker.topic_config import check_topic_name
from protocol.errors import ErrorCode
from protocol.messages.join_group import JoinGroupRequest, JoinGroupResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

log = logging.getLogger("tidelog.groups")

API_KEY = 11
MIN_VERSION = 0
MAX_VERSION = 9

_NO_PROTOCOL_NAME_SINCE = 7
_MEMBER_ID_RANDOM_BITS = 128


def handle(broker: Broker, connection: Connection, call: Call, request: JoinGroupRequest) -> None:
    """Let the group decide; refuse what belongs to no group."""
    answer_with = answer_later(connection, call)

    def answer(response: JoinGroupResponse) -> None:
        if call.version < _NO_PROTOCOL_NAME_SINCE and response.protocol_name is None:
            response.protocol_name = ""
        answer_with(response)

    try:
        if not request.group_id:
            raise KafkaError(ErrorCode.INVALID_GROUP_ID, "a group has a name")
        instance_id = request.group_instance_id
        if instance_id is not None and check_topic_name(instance_id) is not None:  # as Kafka: the rules are the same
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"{instance_id!r} is no group.instance.id")
        if request.reason:
            log.debug(
                "a member joins: %(member)s, %(group)s, %(reason)s",
                {
                    "member": request.member_id or call.client_id,
                    "group": request.group_id,
                    "reason": request.reason,
                },
            )
        broker.groups.submit(
            request.group_id,
            Join(
                token=answer,
                version=call.version,
                client_id=call.client_id or "",
                client_host=connection.client_host,
                request=request,
                new_member_suffix=_uuid(broker),
            ),
        )
    except KafkaError as error:
        answer(join_error(error.error_code, request.member_id))


def _uuid(broker: Broker) -> str:
    digits = f"{broker.rng.getrandbits(_MEMBER_ID_RANDOM_BITS):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
