"""From a frame to its handler, and from the handler's answer to a frame.

Always true:
- What is served is what `HANDLERS` lists, and ApiVersions tells exactly that.
- A key or version that is not served closes the connection (as Kafka's broker does), except ApiVersions (KIP-511).
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, NamedTuple

from broker.broker import Broker, Call
from broker.handlers import (
    api_versions,
    create_topics,
    delete_topics,
    fetch,
    find_coordinator,
    init_producer_id,
    list_offsets,
    metadata,
    produce,
)
from broker.server import CloseConnection, Connection
from protocol.apis import API, decode_request, encode_response
from protocol.frames import parse_request_header
from protocol.messages.api_versions import ApiVersion

__all__ = ["Dispatch"]

_MODULES: tuple[ModuleType, ...] = (
    fetch,
    list_offsets,
    metadata,
    api_versions,
    create_topics,
    delete_topics,
    find_coordinator,
    init_producer_id,
)


class _Entry(NamedTuple):
    min_version: int
    max_version: int
    handle: Any


HANDLERS = {module.API_KEY: _Entry(module.MIN_VERSION, module.MAX_VERSION, module.handle) for module in _MODULES}
"""Every API but Produce, which has a path of its own."""


class Dispatch:
    """The `Dispatcher` of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
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
        header = parse_request_header(frame)
        version = header.api_version
        if not produce.MIN_VERSION <= version <= produce.MAX_VERSION:
            raise CloseConnection(f"Produce v{version} is not served")
        request = decode_request(produce.API_KEY, version, frame, header.body_position)
        call = Call(produce.API_KEY, version, header.correlation_id, header.client_id, connection.listener)
        metrics = self._broker.metrics
        metrics.produce_requests += 1
        metrics.produce_bytes += len(frame)
        return produce.submit(self._broker, connection, call, request)

    def request(self, connection: Connection, frame: memoryview) -> None:
        """Start any other request; see `Dispatcher`."""
        header = parse_request_header(frame)
        key, version = header.api_key, header.api_version
        entry = HANDLERS.get(key)
        if entry is None or not entry.min_version <= version <= entry.max_version:
            if key == api_versions.API_KEY:
                answer = api_versions.unsupported_version()
                connection.respond(encode_response(key, 0, header.correlation_id, answer))
                return
            name = API[key].name if key in API else f"API key {key}"
            raise CloseConnection(f"{name} v{version} is not served")
        self._broker.metrics.requests += 1
        request = decode_request(key, version, frame, header.body_position)
        call = Call(key, version, header.correlation_id, header.client_id, connection.listener)
        answer = entry.handle(self._broker, connection, call, request)
        if answer is None:
            return
        if inspect.iscoroutine(answer):
            connection.run(_encoded(call, answer))
        else:
            connection.respond(call.encode(answer))

    async def room(self) -> None:
        """Return when the log has room again."""
        await self._broker.storage.room()


async def _encoded(call: Call, answer: Any) -> list[bytes | memoryview]:
    return call.encode(await answer)
