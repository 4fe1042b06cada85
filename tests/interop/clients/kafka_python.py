"""kafka-python: a client in pure Python, idempotent by default."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from tests.interop.clients.base import DEADLINE_S, ClientUnavailable, Record

try:
    with warnings.catch_warnings():
        # It loads its schemas by functions that Python has deprecated.
        warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
        import kafka
        import kafka.admin
except ImportError:
    kafka = None


class KafkaPython:
    name = "kafka-python"
    keeps_timestamps = True

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def check(self) -> None:
        if kafka is None:
            raise ClientUnavailable("kafka-python is not installed: pip install kafka-python")

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
        if acks != -1:
            settings.setdefault("enable_idempotence", False)
        producer = kafka.KafkaProducer(
            bootstrap_servers=self.bootstrap,
            compression_type=None if compression == "none" else compression,
            acks=acks,
            **settings,
        )
        with closing(producer):
            futures = [
                producer.send(
                    topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    partition=partition,
                    timestamp_ms=record.timestamp_ms,
                )
                for record in records
            ]
            for future in futures:
                future.get(timeout=DEADLINE_S)

    def begin_transactional(self, transactional_id: str) -> None:
        producer = kafka.KafkaProducer(bootstrap_servers=self.bootstrap, transactional_id=transactional_id)
        try:
            producer.init_transactions()
        finally:
            producer.close(timeout=1)

    def consume(self, topic: str, *, offset: int = 0, count: int, partition: int = 0) -> list[Record]:
        with closing(self._consumer()) as consumer:
            place = kafka.TopicPartition(topic, partition)
            consumer.assign([place])
            consumer.seek(place, offset)
            records: list[Record] = []
            deadline = time.monotonic() + DEADLINE_S
            while len(records) < count and time.monotonic() < deadline:
                batches = consumer.poll(timeout_ms=500, max_records=count - len(records))
                for message in batches.get(place, ()):
                    records.append(
                        Record(
                            value=message.value,
                            key=message.key,
                            headers=tuple(message.headers or ()),
                            timestamp_ms=message.timestamp,
                            offset=message.offset,
                        )
                    )
            return records

    def offset_for_timestamp(self, topic: str, timestamp_ms: int, partition: int = 0) -> int | None:
        with closing(self._consumer()) as consumer:
            place = kafka.TopicPartition(topic, partition)
            consumer.assign([place])
            found = consumer.offsets_for_times({place: timestamp_ms})[place]
            return found.offset if found is not None else None

    def create_topic(self, topic: str, partitions: int, configs: dict[str, str] | None = None) -> None:
        with closing(self._admin()) as admin:
            admin.create_topics([kafka.admin.NewTopic(topic, partitions, 1, topic_configs=configs or {})])

    def delete_topic(self, topic: str) -> None:
        with closing(self._admin()) as admin:
            admin.delete_topics([topic])

    def partitions(self, topic: str) -> set[int] | None:
        with closing(self._admin()) as admin:
            if topic not in admin.list_topics():
                return None
            [found] = admin.describe_topics([topic])
            return {partition["partition_index"] for partition in found["partitions"]}

    def _admin(self) -> Any:
        return kafka.KafkaAdminClient(bootstrap_servers=self.bootstrap)

    def _consumer(self) -> Any:
        return kafka.KafkaConsumer(
            bootstrap_servers=self.bootstrap, enable_auto_commit=False, auto_offset_reset="none", check_crcs=True
        )
