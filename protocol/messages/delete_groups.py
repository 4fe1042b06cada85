"""DeleteGroups (key 42, v0-2): remove groups without members, and what they committed (KIP-229)."""

from collections.abc import Sequence

from protocol.types import Api, Message, int16, int32, string

__all__ = ["API", "DeletableGroupResult", "DeleteGroupsRequest", "DeleteGroupsResponse"]


class DeleteGroupsRequest(Message):
    groups_names: Sequence[string] = ()


class DeletableGroupResult(Message):
    group_id: string = ""
    error_code: int16 = 0


class DeleteGroupsResponse(Message):
    throttle_time_ms: int32 = 0
    results: Sequence[DeletableGroupResult] = ()


API = Api(
    key=42,
    name="DeleteGroups",
    min_version=0,
    max_version=2,
    flexible_since=2,
    request=DeleteGroupsRequest,
    response=DeleteGroupsResponse,
)
