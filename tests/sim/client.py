"""A Kafka client over the simulated network: connections, requests, and what a read of a partition must look like."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crc32c import crc32c

from protocol.apis import decode_response, encode_request
from protocol.frames import parse_response_header
from protocol.messages import fetch, list_offsets
from protocol.types import Api
from tests.checker.history import Found
from tests.sim.batches import Batch, decode_batches
from tests.sim.loop import Process
from tests.sim.network import ClientConnection, Network

__all__ = [
    "EARLIEST",
    "LATEST",
    "Client",
    "Endpoint",
    "Fetched",
    "KafkaError",
    "found_in",
    "record_digest",
    "record_of",
]

EARLIEST = -2
LATEST = -1
_FETCH_VERSION = 12
_LIST_OFFSETS_VERSION = 7


class KafkaError(Exception):
    """The broker answered with an error code."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"error {code}: {what}")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An answer to a fetch of one partition."""

    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    batches: list[Batch]


class Endpoint(Protocol):
    """Where a broker is, as an answer tells it (KIP-951)."""

    port: int


class Client:
    """One connection to the broker, opened when it is needed."""

    def __init__(self, network: Network, port: int, name: str, slowness: float = 1.0) -> None:
        self.name = name
        self._slowness = slowness
        self._network = network
        self._port = port
        self._connection: ClientConnection | None = None
        self._correlation_id = 0

    async def connect(self) -> ClientConnection:
        """The connection; a new one where the last one is gone. Raises ConnectionReset."""
        if self._connection is None or self._connection.closed:
            self._connection = await self._network.connect(self._port, slowness=self._slowness)
        return self._connection

    @property
    def broker(self) -> Process:
        """Who answers on the present connection, or did on the last one."""
        assert self._connection is not None
        return self._connection.broker

    def misled(self, code: int, endpoints: Sequence[Endpoint] = ()) -> None:
        """The broker refused with an error; it may have said who leads instead. Of one broker there is nothing to learn by that."""

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()

    async def call(self, api: Api, version: int, request: Any) -> Any:
        """One request and its answer. Raises ConnectionReset."""
        await self.connect()
        return await self.start(api, version, request)

    def start(self, api: Api, version: int, request: Any) -> asyncio.Task[Any]:
        """Send a request at once, behind those under way on an open connection; await its answer later."""
        assert self._connection is not None
        self._correlation_id += 1
        correlation_id = self._correlation_id
        frame = b"".join(encode_request(api.key, version, correlation_id, self.name, request))
        answer = self._connection.ask(frame)
        return asyncio.ensure_future(self._answer(api, version, correlation_id, answer))

    async def _answer(self, api: Api, version: int, correlation_id: int, answer: asyncio.Future[bytes]) -> Any:
        frame = await answer
        got, position = parse_response_header(api.key, version, frame)
        assert got == correlation_id, f"{api.name}: asked as {correlation_id}, answered as {got}"
        return decode_response(api.key, version, frame, position)

    async def fetch(
        self, topic: str, partition: int, offset: int, *, max_wait_ms: int = 0, max_bytes: int = 1 << 20
    ) -> Fetched:
        """Fetch from one partition. Raises ConnectionReset, KafkaError, and BadBatch where bytes are damaged."""
        request = fetch.FetchRequest(
            max_wait_ms=max_wait_ms,
            min_bytes=1,
            max_bytes=max_bytes,
            topics=[
                fetch.FetchTopic(
                    topic=topic,
                    partitions=[
                        fetch.FetchPartition(partition=partition, fetch_offset=offset, partition_max_bytes=max_bytes)
                    ],
                )
            ],
        )
        response = await self.call(fetch.API, _FETCH_VERSION, request)
        if response.error_code:
            raise KafkaError(response.error_code, f"fetch of {topic}-{partition}")
        data = response.responses[0].partitions[0]
        if data.error_code:
            raise KafkaError(data.error_code, f"fetch of {topic}-{partition} from {offset}")
        return Fetched(
            high_watermark=data.high_watermark,
            last_stable_offset=data.last_stable_offset,
            log_start_offset=data.log_start_offset,
            batches=list(decode_batches(bytes(data.records))),
        )

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """ListOffsets for one partition. Raises ConnectionReset, KafkaError."""
        request = list_offsets.ListOffsetsRequest(
            replica_id=-1,
            topics=[
                list_offsets.ListOffsetsTopic(
                    name=topic,
                    partitions=[list_offsets.ListOffsetsPartition(partition_index=partition, timestamp=timestamp)],
                )
            ],
        )
        response = await self.call(list_offsets.API, _LIST_OFFSETS_VERSION, request)
        found = response.topics[0].partitions[0]
        if found.error_code:
            raise KafkaError(found.error_code, f"ListOffsets of {topic}-{partition}")
        offset: int = found.offset
        return offset


def record_of(producer: str, number: int, filler: bytes) -> tuple[bytes, bytes]:
    """Key and value of a record that says itself who sent it."""
    return f"{producer}/{number}".encode(), filler


def record_digest(key: bytes | None, value: bytes | None) -> int:
    """Stands for all bytes of a record."""
    return crc32c(value or b"", crc32c(key or b""))


def found_in(batch: Batch) -> list[Found]:
    """What a history is told of a batch that was read."""
    found = []
    for offset, (key, value) in enumerate(batch.records, start=batch.base_offset):
        name, _, number = (key or b"?/-1").decode().rpartition("/")
        found.append(Found(offset, name, int(number), record_digest(key, value)))
    return found
