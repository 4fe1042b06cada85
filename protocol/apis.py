"""The APIs spoken here, and the doors through which their messages go in and out.

Always true here:
- `API` maps each key to its versions and messages; ApiVersions answers are built from it by the broker, which decides
  what it serves and may cap versions;
- request and response are each decoded and encoded, so the same code serves brokers, clients, tests and tools;
- an encoded message is a list of parts for a transport's `writelines`, the first of which begins with the frame's size
  and header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from protocol.compiler import MAX_REQUEST_ELEMENTS, Decode, Encode, compile_decoder, compile_encoder
from protocol.errors import UnsupportedVersion
from protocol.messages import (
    alter_configs,
    alter_partition_reassignments,
    api_versions,
    create_partitions,
    create_topics,
    delete_groups,
    delete_records,
    delete_topics,
    describe_cluster,
    describe_configs,
    describe_groups,
    describe_log_dirs,
    describe_producers,
    describe_topic_partitions,
    describe_transactions,
    fetch,
    find_coordinator,
    heartbeat,
    incremental_alter_configs,
    init_producer_id,
    join_group,
    leave_group,
    list_config_resources,
    list_groups,
    list_offsets,
    list_partition_reassignments,
    list_transactions,
    metadata,
    offset_commit,
    offset_delete,
    offset_fetch,
    offset_for_leader_epoch,
    produce,
    sync_group,
    unregister_broker,
)
from protocol.types import Api, Buffer, Parts

__all__ = [
    "API",
    "api_named",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "has_flexible_response_header",
    "request_decoder",
    "response_encoder",
]

_MODULES = (
    produce,
    fetch,
    list_offsets,
    list_partition_reassignments,
    metadata,
    offset_commit,
    offset_fetch,
    find_coordinator,
    join_group,
    heartbeat,
    leave_group,
    sync_group,
    describe_groups,
    list_groups,
    api_versions,
    create_topics,
    delete_topics,
    init_producer_id,
    delete_groups,
    offset_delete,
    delete_records,
    offset_for_leader_epoch,
    describe_configs,
    alter_configs,
    alter_partition_reassignments,
    describe_log_dirs,
    create_partitions,
    incremental_alter_configs,
    describe_cluster,
    describe_producers,
    describe_transactions,
    list_transactions,
    list_config_resources,
    describe_topic_partitions,
    unregister_broker,
)

API: Mapping[int, Api] = MappingProxyType({module.API.key: module.API for module in _MODULES})
"""Every API by key."""

_REQUEST_HEADER = struct.Struct("!ihhih")
_RESPONSE_HEADER = struct.Struct("!ii")
_FLEXIBLE_RESPONSE_HEADER = struct.Struct("!iix")


def api_named(name: str) -> Api:
    """The API called `name`, as Kafka spells it.

    Raises:
        KeyError: there is none.
    """
    for api in API.values():
        if api.name == name:
            return api
    raise KeyError(name)


def has_flexible_response_header(api_key: int, version: int) -> bool:
    """Whether responses carry header v1. Never for ApiVersions: its reader may know no flexible versions (KIP-511)."""
    return api_key != api_versions.API.key and version >= API[api_key].flexible_since


class _Lazy(dict[tuple[int, int], Callable[..., Any]]):
    """Compiled functions by (key, version), filled on first use."""

    def __init__(self, compile_one: Callable[[Api, int], Callable[..., Any]]) -> None:
        super().__init__()
        self._compile = compile_one

    def __missing__(self, key: tuple[int, int]) -> Callable[..., Any]:
        api_key, version = key
        api = API.get(api_key)
        if api is None:
            raise UnsupportedVersion(f"API key {api_key} is not spoken here")
        if not api.supports(version):
            spoken = f"{api.min_version}-{api.max_version}"
            raise UnsupportedVersion(f"{api.name} v{version} is not spoken here, only v{spoken}")
        function = self[key] = self._compile(api, version)
        return function


_request_decoders = _Lazy(lambda api, v: compile_decoder(api.request, v, v >= api.flexible_since).call)
_request_encoders = _Lazy(lambda api, v: compile_encoder(api.request, v, v >= api.flexible_since).call)
# A client asked for what it decodes; the size of the frame is bound enough.
_response_decoders = _Lazy(
    lambda api, v: compile_decoder(api.response, v, v >= api.flexible_since, max_elements=None).call
)
_response_encoders = _Lazy(lambda api, v: compile_encoder(api.response, v, v >= api.flexible_since).call)


def request_decoder(api_key: int, version: int) -> Decode:
    """The function behind `decode_request`, to keep where one call more counts. It takes a flat memoryview.

    Raises:
        UnsupportedVersion: no such key or version.
    """
    return _request_decoders[api_key, version]


def response_encoder(api_key: int, version: int) -> Encode:
    """The function that appends a response body, without header, to a list of parts.

    Raises:
        UnsupportedVersion: no such key or version.
    """
    return _response_encoders[api_key, version]


def decode_request(api_key: int, version: int, buf: Buffer, pos: int, max_elements: int = MAX_REQUEST_ELEMENTS) -> Any:
    """Decode the request whose body starts at `pos` of `buf`, one whole frame without its size.

    `records` in the result are views into `buf`. Bytes after the body are ignored, as Kafka's broker ignores them. All arrays
    and tags together hold at most `max_elements`.

    Raises:
        UnsupportedVersion: no such key or version.
        Malformed: anything else.
    """
    return _request_decoders[api_key, version](memoryview(buf), pos, max_elements)


def decode_response(api_key: int, version: int, buf: Buffer, pos: int) -> Any:
    """Decode the response whose body starts at `pos` of `buf`, one whole frame without its size.

    Raises:
        UnsupportedVersion: no such key or version.
        Malformed: anything else.
    """
    return _response_decoders[api_key, version](memoryview(buf), pos)


def encode_response(api_key: int, version: int, correlation_id: int, response: Any) -> Parts:
    """Encode a whole response frame, size and header included."""
    parts: Parts = []
    _response_encoders[api_key, version](response, parts)
    size = sum(map(len, parts))
    if has_flexible_response_header(api_key, version):
        parts[0] = _FLEXIBLE_RESPONSE_HEADER.pack(size + 5, correlation_id) + parts[0]
    else:
        parts[0] = _RESPONSE_HEADER.pack(size + 4, correlation_id) + parts[0]
    return parts


def encode_request(api_key: int, version: int, correlation_id: int, client_id: str | None, request: Any) -> Parts:
    """Encode a whole request frame, size and header included."""
    parts: Parts = []
    _request_encoders[api_key, version](request, parts)
    client = b"" if client_id is None else client_id.encode()
    # `client_id` is never compact, and a flexible header ends with an empty tag section.
    tail = client + b"\0" if version >= API[api_key].flexible_since else client
    size = sum(map(len, parts)) + len(tail) + 10
    client_length = -1 if client_id is None else len(client)
    parts[0] = _REQUEST_HEADER.pack(size, api_key, version, correlation_id, client_length) + tail + parts[0]
    return parts
