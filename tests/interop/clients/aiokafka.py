"""aiokafka: an asyncio client with codec and protocol of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

from tests.interop.clients.base import CODECS, DEADLINE_S, ClientUnavailable, Member, Record
from tests.interop.clients.threaded import ThreadedMember

try:
    import aiokafka
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
    from aiokafka.coordinator.assignors.range import RangePartitionAssignor
    from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
    from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
except ImportError:
    aiokafka = None

else:
    _ASSIGNORS = {
        "range": RangePartitionAssignor,
        "roundrobin": RoundRobinPartitionAssignor,
        "sticky": StickyPartitionAssignor,
    }


class Aiokafka:
    name = "aiokafka"
    keeps_timestamps = True
    codecs = CODECS
    cannot_read = ()
    assignors = ("range", "roundrobin", "sticky")
    static_membership = True

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def check(self) -> None:
        if aiokafka is None:
            raise ClientUnavailable("aiokafka is not installed: pip install aiokafka")

    @property
    def version(self) -> str:
        return str(aiokafka.__version__)

    def produce(
        self,
        topic: str,
        records: Sequence[Record],
        *,
        compression: str = "none",
        partition: int = 0,
        acks: int = -1,
        idempotent: bool = False,
        pause_ms: int = 0,
        **settings: Any,
    ) -> None:
        async def send() -> None:
            async with aiokafka.AIOKafkaProducer(
                bootstrap_servers=self.bootstrap,
                compression_type=None if compression == "none" else compression,
                acks="all" if acks == -1 else acks,
                enable_idempotence=idempotent,
                **settings,
            ) as producer:
                futures = []
                for record in records:
                    sent = producer.send(
                        topic,
                        value=record.value,
                        key=record.key,
                        partition=partition,
                        timestamp_ms=record.timestamp_ms,
                        headers=list(record.headers),
                    )
                    futures.append(await sent)
                    if pause_ms:
                        await asyncio.sleep(pause_ms / 1000)
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
                        records.append(_record(message))
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

    def join(self, topic: str, group: str, *, assignor: str, instance_id: str = "", limit: int = 0) -> Member:
        settings = {
            "bootstrap_servers": self.bootstrap,
            "group_id": group,
            "group_instance_id": instance_id or None,
            "partition_assignment_strategy": [_ASSIGNORS[assignor]],
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "heartbeat_interval_ms": 300,
            "session_timeout_ms": 6000,
        }
        member = _Member(settings, topic, limit)
        member.start()
        return member

    def committed(self, topic: str, group: str) -> dict[int, int]:
        async def ask() -> dict[int, int]:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            try:
                found = await admin.list_consumer_group_offsets(group)
                return {place.partition: kept.offset for place, kept in found.items() if place.topic == topic}
            finally:
                await admin.close()

        return _run(ask())

    def _consumer(self) -> Any:
        return aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, enable_auto_commit=False, auto_offset_reset="none", check_crcs=True
        )


class _Member(ThreadedMember):
    def __init__(self, settings: dict[str, Any], topic: str, limit: int) -> None:
        super().__init__(limit)
        self._settings = settings
        self._topic = topic

    def run(self) -> None:
        asyncio.run(self._read_and_commit())

    async def _read_and_commit(self) -> None:
        consumer = aiokafka.AIOKafkaConsumer(**self._settings)
        await consumer.start()
        consumer.subscribe([self._topic], listener=_listener(self))
        try:
            while not self.stopping:
                if self.full:
                    await asyncio.sleep(0.05)  # heartbeats go on by themselves
                    continue
                offsets = {}
                for place, messages in (await consumer.getmany(timeout_ms=100)).items():
                    for message in messages:
                        if not self.full:
                            self.keep(message.partition, _record(message))
                            offsets[place] = message.offset + 1
                if offsets:
                    await self._commit(consumer, offsets)
        finally:
            await consumer.stop()

    async def _commit(self, consumer: Any, offsets: dict[Any, int]) -> None:
        # After a rebalance the next owner reads these again, which at-least-once allows.
        with contextlib.suppress(aiokafka.errors.CommitFailedError):
            await consumer.commit(offsets)


def _listener(member: ThreadedMember) -> Any:
    class Listener(aiokafka.ConsumerRebalanceListener):
        def on_partitions_assigned(self, assigned: Any) -> None:
            member.assign({place.partition for place in assigned})

        def on_partitions_revoked(self, revoked: Any) -> None:
            member.revoke({place.partition for place in revoked})

    return Listener()


def _record(message: Any) -> Record:
    return Record(
        value=message.value,
        key=message.key,
        headers=tuple(message.headers),
        timestamp_ms=message.timestamp,
        offset=message.offset,
    )


def _raise_errors(errors: Sequence[Sequence[Any]]) -> None:
    for topic, code, *_ in errors:
        if code:
            raise aiokafka.errors.for_code(code)(f"topic {topic}")


def _run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, DEADLINE_S))
