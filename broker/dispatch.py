"""From a frame to its handler, and from the handler's answer to a frame.

Always true:
- What is served is what `HANDLERS` lists, and ApiVersions tells exactly that.
- A key or version that is not served closes the connection (as Kafka's broker does), except ApiVersions (KIP-511).
"""

from __future__ import annotations

import asyncio
import inspect
import struct
from types import ModuleType
from typing import Any, NamedTuple

from broker.broker import Broker, Call
from broker.connection import CloseConnection, Connection
from broker.handlers import (
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
from broker.zones import client_rack, where_is
from protocol.apis import API, api_named, decode_request, encode_response, request_decoder
from protocol.compiler import MAX_REQUEST_ELEMENTS
from protocol.frames import parse_request_header
from protocol.messages.api_versions import ApiVersion

__all__ = ["HANDLERS", "MODULES", "Dispatch", "max_request_elements"]

MODULES: tuple[ModuleType, ...] = (
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
    sync_group,
    unregister_broker,
)


_HEADER = struct.Struct(">hhih").unpack_from  # key, version, correlation id, size of the client id
_HEADER_BYTES = 10
_PRODUCE = API[produce.API_KEY]


_WAITS_FOR_OTHERS = {api_named("JoinGroup").key, api_named("SyncGroup").key}
"""Requests that wait for those of other clients. They must not be charged as being under way: those that they wait for might then
not start. What a group remembers has limits of its own."""


class _Entry(NamedTuple):
    min_version: int
    max_version: int
    handle: Any


HANDLERS = {module.API_KEY: _Entry(module.MIN_VERSION, module.MAX_VERSION, module.handle) for module in MODULES}
"""Every API but Produce, which has a path of its own."""


LEAST_REQUEST_ELEMENTS = 1 << 14
"""However little memory there is: somebody may have so many topics or partitions."""


def max_request_elements(memory_bytes: int) -> int:
    """Array elements and tags that one request may have. With the answer, each may take a kilobyte for as long as it is served: of
    an eighth of the memory, which is what is left to the interpreter."""
    return min(max(memory_bytes // 8192, LEAST_REQUEST_ELEMENTS), MAX_REQUEST_ELEMENTS)


class Dispatch:
    """The `Dispatcher` of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._max_elements = max_request_elements(broker.settings.memory_bytes)
        self._produce_decoders = {
            version: request_decoder(produce.API_KEY, version)
            for version in range(produce.MIN_VERSION, produce.MAX_VERSION + 1)
        }
        broker.api_versions = sorted(
            [
                ApiVersion(
                    api_key=produce.API_KEY,
                    min_version=produce.ADVERTISED_MIN_VERSION,
                    max_version=produce.MAX_VERSION,
                ),
                *(
                    ApiVersion(api_key=key, min_version=entry.min_version, max_version=entry.max_version)
                    for key, entry in HANDLERS.items()
                ),
            ],
            key=lambda version: version.api_key,
        )

    def produce(self, connection: Connection, frame: memoryview) -> bool:
        """Submit a Produce request; see `Dispatcher`."""
        _, version, correlation_id, client_id_size = _HEADER(frame)
        decode = self._produce_decoders.get(version)
        if decode is None:
            raise CloseConnection(f"Produce v{version} is not served")
        position = _HEADER_BYTES if client_id_size < 0 else _HEADER_BYTES + client_id_size
        if version >= _PRODUCE.flexible_since:
            # Nearly always there are no tags: one zero byte. Anything else takes the long way.
            if position >= len(frame) or frame[position]:
                position = parse_request_header(frame).body_position
            else:
                position += 1
        if connection.produced is None:
            client_id = str(frame[_HEADER_BYTES : _HEADER_BYTES + max(client_id_size, 0)], "utf-8", "replace")
            broker = self._broker
            connection.produced = broker.metrics.produced[where_is(client_rack("", client_id), broker.zone_reads.rack)]
        request = decode(frame, position, self._max_elements)
        return produce.submit(self._broker, connection, version, correlation_id, request)

    def request(self, connection: Connection, frame: memoryview) -> None:
        """Start any other request; see `Dispatcher`."""
        header = parse_request_header(frame)
        key, version = header.api_key, header.api_version
        entry = HANDLERS.get(key)
        if entry is None or not entry.min_version <= version <= entry.max_version:
            if key == api_versions.API_KEY:
                answer = api_versions.unsupported_version()
                self._broker.metrics.api(key).errors[answer.error_code] += 1
                connection.respond(encode_response(key, 0, header.correlation_id, answer))
                return
            name = API[key].name if key in API else f"API key {key}"
            raise CloseConnection(f"{name} v{version} is not served")
        metrics = self._broker.metrics
        call = Call(
            key,
            version,
            header.correlation_id,
            header.client_id,
            connection.listener,
            metrics.api(key),
            metrics.clock,
            metrics.arrived,
        )
        request = decode_request(key, version, frame, header.body_position, self._max_elements)
        answer = entry.handle(self._broker, connection, call, request)
        if answer is None:
            return
        if inspect.iscoroutine(answer):
            if key not in _WAITS_FOR_OTHERS:
                connection.server.large_requests.begin(connection, len(frame))
            connection.run(_encoded(call, answer))
        else:
            connection.respond(call.encode(answer))

    async def room(self) -> None:
        """Return when the log has room again, or a batch is treated: when a request that stalled may go on."""
        walks = self._broker.record_walks
        if not walks.is_treating:
            await self._broker.storage.room()
            return
        waits = [asyncio.ensure_future(one) for one in (self._broker.storage.room(), walks.treated())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()


async def _encoded(call: Call, answer: Any) -> list[bytes | memoryview]:
    return call.encode(await answer)
