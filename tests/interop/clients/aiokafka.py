"""aiokafka: an asyncio client with codec and protocol of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from tests.interop.clients.base import DEADLINE_S, ClientUnavailable, Record

try:
    import aiokafka
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
except ImportError:
    aiokafka = None


class Aiokafka:
    name = "aiokafka"
    keeps_timestamps = True

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def check(self) -> None:
        if aiokafka is None:
            raise ClientUnavailable("aiokafka is not installed: pip install aiokafka")

    def produce(
        self,
        topic: str,
        records: Sequence[Record],
        *,
        compression: str = "none",
        partition: int = 0,
        acks: int = -1,
        **settings: Any,
    ) -> None:
        async def send() -> None:
            async with aiokafka.AIOKafkaProducer(
                bootstrap_servers=self.bootstrap,
                compression_type=None if compression == "none" else compression,
                acks="all" if acks == -1 else acks,
                **settings,
            ) as producer:
                futures = [
                    await producer.send(
                        topic,
                        value=record.value,
                        key=record.key,
                        partition=partition,
                        timestamp_ms=record.timestamp_ms,
                        headers=list(record.headers),
                    )
                    for record in records
                ]
                await asyncio.gather(*futures)

        _run(send())

    def begin_transactional(self, transactional_id: str) -> None:
        async def begin() -> None:
            producer = aiokafka.AIOKafkaProducer(bootstrap_servers=self.bootstrap, transactional_id=transactional_id)
            try:
                await producer.start()
            finally:
                await producer.stop()

        _run(begin())

    def consume(self, topic: str, *, offset: int = 0, count: int, partition: int = 0) -> list[Record]:
        async def read() -> list[Record]:
            async with self._consumer() as consumer:
                place = aiokafka.TopicPartition(topic, partition)
                consumer.assign([place])
                consumer.seek(place, offset)
                records: list[Record] = []
                deadline = time.monotonic() + DEADLINE_S
                while len(records) < count and time.monotonic() < deadline:
                    batches = await consumer.getmany(place, timeout_ms=500, max_records=count - len(records))
                    for message in batches.get(place, ()):
                        records.append(
                            Record(
                                value=message.value,
                                key=message.key,
                                headers=tuple(message.headers),
                                timestamp_ms=message.timestamp,
                                offset=message.offset,
                            )
                        )
                return records

        return _run(read())

    def offset_for_timestamp(self, topic: str, timestamp_ms: int, partition: int = 0) -> int | None:
        async def ask() -> int | None:
            async with self._consumer() as consumer:
                place = aiokafka.TopicPartition(topic, partition)
                consumer.assign([place])
                found = (await consumer.offsets_for_times({place: timestamp_ms}))[place]
                return found.offset if found is not None else None

        return _run(ask())

    def create_topic(self, topic: str, partitions: int, configs: dict[str, str] | None = None) -> None:
        async def create() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            try:
                response = await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=configs or {})])
                _raise_errors(response.topic_errors)
            finally:
                await admin.close()

        _run(create())

    def delete_topic(self, topic: str) -> None:
        async def delete() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            try:
                response = await admin.delete_topics([topic])
                _raise_errors(response.topic_error_codes)
            finally:
                await admin.close()

        _run(delete())

    def partitions(self, topic: str) -> set[int] | None:
        async def ask() -> set[int] | None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            try:
                if topic not in await admin.list_topics():
                    return None
                [found] = await admin.describe_topics([topic])
                return {partition["partition"] for partition in found["partitions"]}
            finally:
                await admin.close()

        return _run(ask())

    def _consumer(self) -> Any:
        return aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, enable_auto_commit=False, auto_offset_reset="none", check_crcs=True
        )


def _raise_errors(errors: Sequence[Sequence[Any]]) -> None:
    for topic, code, *_ in errors:
        if code:
            raise aiokafka.errors.for_code(code)(f"topic {topic}")


def _run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, DEADLINE_S))
