"""DeleteGroups (key 42): remove groups without members, and what they committed (KIP-229).

Versions: 0–2.

Behaviour: answered when all of it is durable. A group with members is error 68, an unknown one error 69; each group is
answered for itself.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from broker.broker import Broker, Call, answer_later
from broker.errors import KafkaError
from broker.groups.events import DeleteGroup
from protocol.messages.delete_groups import DeletableGroupResult, DeleteGroupsRequest, DeleteGroupsResponse

if TYPE_CHECKING:
    from broker.connection import Connection

__all__ = ["API_KEY", "MAX_VERSION", "MIN_VERSION", "handle"]

API_KEY = 42
MIN_VERSION = 0
MAX_VERSION = 2


def handle(
    broker: Broker, connection: Connection, call: Call, request: DeleteGroupsRequest
) -> DeleteGroupsResponse | None:
    """Let each group decide, and answer when the last one has."""
    names = list(dict.fromkeys(request.groups_names))
    results = {name: DeletableGroupResult(group_id=name) for name in names}
    response = DeleteGroupsResponse(results=list(results.values()))
    if not names:
        return response
    answer = answer_later(connection, call)
    waiting = set(names)

    def answered(name: str, error_code: int) -> None:
        results[name].error_code = error_code
        waiting.remove(name)
        if not waiting:
            answer(response)

    for name in names:
        try:
            broker.groups.submit(name, DeleteGroup(token=partial(answered, name), group_id=name))
        except KafkaError as error:
            answered(name, error.error_code)
    return None
