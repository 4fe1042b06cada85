"""FindCoordinator (key 10, v0-6): the broker that coordinates a group or a transactional id.

- v1 adds the key type: 0 group, 1 transaction, 2 share partition (v6, KIP-932).
- v4 asks for many keys at once and answers per key (KIP-699). v5 may answer TRANSACTION_ABORTABLE (KIP-890).
"""

from collections.abc import Sequence
from typing import Annotated

from protocol.types import Api, Message, int8, int16, int32, since, string, until

__all__ = ["API", "Coordinator", "FindCoordinatorRequest", "FindCoordinatorResponse"]


class FindCoordinatorRequest(Message):
    key: Annotated[string, until(3)] = ""
    key_type: Annotated[int8, since(1)] = 0
    coordinator_keys: Annotated[Sequence[string], since(4)] = ()


class Coordinator(Message):
    key: string = ""
    node_id: int32 = 0
    host: string = ""
    port: int32 = 0
    error_code: int16 = 0
    error_message: string | None = ""


class FindCoordinatorResponse(Message):
    throttle_time_ms: Annotated[int32, since(1)] = 0
    error_code: Annotated[int16, until(3)] = 0
    error_message: Annotated[string | None, since(1), until(3)] = ""
    node_id: Annotated[int32, until(3)] = 0
    host: Annotated[string, until(3)] = ""
    port: Annotated[int32, until(3)] = 0
    coordinators: Annotated[Sequence[Coordinator], since(4)] = ()


API = Api(
    key=10,
    name="FindCoordinator",
    min_version=0,
    max_version=6,
    flexible_since=3,
    request=FindCoordinatorRequest,
    response=FindCoordinatorResponse,
)
