"""A client that speaks the protocol message by message, for tests that care about every byte of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

from protocol.apis import api_named, decode_response, encode_request
from protocol.frames import parse_response_header
from protocol.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from protocol.messages.fetch import FetchPartition, FetchRequest, FetchResponse, FetchTopic, PartitionData
from protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from protocol.messages.produce import (
    PartitionProduceData,
    PartitionProduceResponse,
    ProduceRequest,
    TopicProduceData,
)
from protocol.record_set import Record, build_batch, iter_batches, iter_records
from protocol.records import iter_bounds

__all__ = ["Wire", "batch", "eventually", "fetch_request", "only_partition", "produce_request", "records_in"]


def batch(*values: bytes, key: bytes | None = None, timestamp_ms: int = 1_000, **fields: Any) -> bytes:
    """A record batch with these values."""
    return build_batch([Record(key=key, value=value, timestamp_ms=timestamp_ms) for value in values], **fields)


def produce_request(topic: str, *batches: bytes, acks: int = -1, partition: int = 0, **fields: Any) -> ProduceRequest:
    """A Produce request with a batch for `partition`, and for those after it."""
    return ProduceRequest(
        acks=acks,
        timeout_ms=30_000,
        topic_data=[
            TopicProduceData(
                name=topic,
                partition_data=[
                    PartitionProduceData(index=partition + at, records=records) for at, records in enumerate(batches)
                ],
            )
        ],
        **fields,
    )


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; fails when it does not for a long time."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} did not come about")


class Wire:
    """One connection. Requests may be sent ahead of reading responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client_id: str = "test") -> None:
        self.reader = reader
        self.writer = writer
        self._client_id = client_id
        self._sent: list[tuple[int, int, int]] = []
        self._correlation_id = 0

    @classmethod
    async def connect(cls, bootstrap_servers: str, client_id: str = "test") -> Wire:
        host, _, port = bootstrap_servers.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=1 << 26)
        return cls(reader, writer, client_id)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # the broker closed it first, as the test wanted
            await self.writer.wait_closed()

    def send(self, name: str, version: int, request: Any, *, expect_response: bool = True) -> int:
        """Send without waiting; returns the correlation id."""
        api = api_named(name)
        self._correlation_id += 1
        self.writer.writelines(encode_request(api.key, version, self._correlation_id, self._client_id, request))
        if expect_response:
            self._sent.append((api.key, version, self._correlation_id))
        return self._correlation_id

    async def receive(self) -> Any:
        """The response to the oldest request that was not answered yet; checks that the broker answers in order."""
        key, version, correlation_id = self._sent.pop(0)
        frame = await self.receive_frame()
        got, position = parse_response_header(key, version, frame)
        assert got == correlation_id, "responses come in the order of the requests"
        return decode_response(key, version, frame, position)

    async def receive_frame(self) -> bytes:
        (size,) = struct.unpack(">i", await self.reader.readexactly(4))
        return await self.reader.readexactly(size)

    async def call(self, name: str, version: int, request: Any) -> Any:
        self.send(name, version, request)
        return await self.receive()

    async def closed_by_broker(self) -> bool:
        """Wait for the end of the connection; False where the broker sends something instead."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    # ---- the usual requests -------------------------------------------------------------------------------------

    async def create_topic(self, name: str, partitions: int = 1, **configs: str) -> bytes:
        """Create a topic (config names with underscores); returns its id."""
        response = await self.call(
            "CreateTopics",
            7,
            CreateTopicsRequest(
                topics=[
                    CreatableTopic(
                        name=name,
                        num_partitions=partitions,
                        replication_factor=1,
                        configs=[
                            CreatableTopicConfig(name=key.replace("_", "."), value=value)
                            for key, value in configs.items()
                        ],
                    )
                ],
                timeout_ms=10_000,
            ),
        )
        assert response.topics[0].error_code == 0, response.topics[0]
        topic_id: bytes = response.topics[0].topic_id
        return topic_id

    async def produce(
        self, topic: str, records: bytes, *, version: int = 9, acks: int = -1, partition: int = 0
    ) -> PartitionProduceResponse:
        """Produce one batch and wait for its answer."""
        response = await self.call("Produce", version, produce_request(topic, records, acks=acks, partition=partition))
        answer: PartitionProduceResponse = response.responses[0].partition_responses[0]
        return answer

    async def fetch(self, topic: str, offset: int = 0, *, version: int = 12, **fields: Any) -> PartitionData:
        """Fetch from one partition."""
        response = await self.call("Fetch", version, fetch_request(topic, offset, **fields))
        answer: PartitionData = response.responses[0].partitions[0]
        return answer

    async def fetch_values(self, topic: str, offset: int = 0, **fields: Any) -> list[bytes | None]:
        """Values from `offset` on, as a consumer gets them in one fetch."""
        return [
            record.value for record in records_in(await self.fetch(topic, offset, **fields)) if record.offset >= offset
        ]

    async def fetch_all(self, topic: str, *, partition: int = 0) -> list[bytes | None]:
        """Every value of a partition, as a consumer gets them: fetch by fetch, until the high watermark."""
        values: list[bytes | None] = []
        offset = 0
        while True:
            data = await self.fetch(topic, offset, partition=partition)
            if offset == data.high_watermark:
                return values
            found = [record.value for record in records_in(data) if record.offset >= offset]
            if not data.records:
                continue  # a cold read that took long: as a consumer, ask again
            values += found
            *_, (_, last) = iter_bounds(cast("bytes", data.records))
            offset = last.end_offset  # also of one without records

    async def list_offset(self, topic: str, timestamp: int, *, version: int = 9, partition: int = 0) -> Any:
        response = await self.call(
            "ListOffsets",
            version,
            ListOffsetsRequest(
                replica_id=-1,
                topics=[
                    ListOffsetsTopic(
                        name=topic, partitions=[ListOffsetsPartition(partition_index=partition, timestamp=timestamp)]
                    )
                ],
            ),
        )
        return response.topics[0].partitions[0]


def fetch_request(
    topic: str | bytes,
    offset: int = 0,
    *,
    partition: int = 0,
    partition_max_bytes: int = 1 << 20,
    current_leader_epoch: int = -1,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 1 << 26,
    session_id: int = 0,
    session_epoch: int = -1,
) -> FetchRequest:
    """A Fetch request for one partition, of a topic by name, or by id for version 13 on."""
    wanted = FetchPartition(
        partition=partition,
        fetch_offset=offset,
        partition_max_bytes=partition_max_bytes,
        current_leader_epoch=current_leader_epoch,
    )
    named = (
        FetchTopic(topic=topic, partitions=[wanted])
        if isinstance(topic, str)
        else FetchTopic(topic_id=topic, partitions=[wanted])
    )
    return FetchRequest(
        max_wait_ms=max_wait_ms,
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        session_id=session_id,
        session_epoch=session_epoch,
        topics=[named],
    )


def records_in(data: PartitionData) -> list[Record]:
    """All records of a fetched partition."""
    assert data.error_code == 0, data
    assert data.records is not None
    assert not isinstance(data.records, list | tuple)
    return [record for one in iter_batches(data.records) for record in iter_records(one, max_output_bytes=1 << 26)]


def only_partition(response: FetchResponse) -> PartitionData:
    """The one partition that a fetch response has."""
    (topic,) = response.responses
    (partition,) = topic.partitions
    return partition
