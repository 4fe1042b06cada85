"""confluent-kafka: librdkafka as Python sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.interop.clients.base import CODECS, DEADLINE_S, ClientUnavailable, Member, Record
from tests.interop.clients.threaded import ThreadedMember

try:
    import confluent_kafka as ck
    from confluent_kafka.admin import AdminClient, NewTopic
except ImportError:
    ck = None


class Confluent:
    name = "confluent-kafka"
    keeps_timestamps = True
    codecs = CODECS
    cannot_read = ()
    assignors = ("range", "roundrobin", "cooperative-sticky")
    static_membership = True

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def check(self) -> None:
        if ck is None:
            raise ClientUnavailable("confluent-kafka is not installed: pip install confluent-kafka")

    @property
    def version(self) -> str:
        return f"{ck.version()} (librdkafka {ck.libversion()[0]})"

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
        problems: list[object] = []
        producer = ck.Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "compression.type": compression,
                "acks": acks,
                "enable.idempotence": idempotent,
                **settings,
            }
        )
        for record in records:
            producer.produce(
                topic,
                value=record.value,
                key=record.key,
                headers=list(record.headers),
                partition=partition,
                timestamp=record.timestamp_ms or 0,
                on_delivery=lambda error, _: problems.append(error) if error else None,
            )
            time.sleep(pause_ms / 1000)
        left = producer.flush(DEADLINE_S)
        if problems:
            raise ck.KafkaException(problems[0])
        if left:
            raise TimeoutError(f"{left} records were not acknowledged within {DEADLINE_S} s")

    def consume(self, topic: str, *, offset: int = 0, count: int, partition: int = 0) -> list[Record]:
        consumer = self._consumer()
        try:
            consumer.assign([ck.TopicPartition(topic, partition, offset)])
            records: list[Record] = []
            deadline = time.monotonic() + DEADLINE_S
            while len(records) < count and time.monotonic() < deadline:
                for message in consumer.consume(count - len(records), timeout=0.5):
                    if message.error():
                        raise ck.KafkaException(message.error())
                    records.append(_record(message))
            return records
        finally:
            consumer.close()

    def offset_for_timestamp(self, topic: str, timestamp_ms: int, partition: int = 0) -> int | None:
        consumer = self._consumer()
        try:
            [found] = consumer.offsets_for_times(
                [ck.TopicPartition(topic, partition, timestamp_ms)], timeout=DEADLINE_S
            )
            return found.offset if found.offset >= 0 else None
        finally:
            consumer.close()

    def begin_transactional(self, transactional_id: str) -> None:
        producer = ck.Producer(
            {"bootstrap.servers": self.bootstrap, "transactional.id": transactional_id, "log_level": 0}
        )
        producer.init_transactions(DEADLINE_S)

    def watermarks(self, topic: str, partition: int = 0) -> tuple[int, int]:
        consumer = self._consumer()
        try:
            return consumer.get_watermark_offsets(ck.TopicPartition(topic, partition), timeout=DEADLINE_S)
        finally:
            consumer.close()

    def create_topic(self, topic: str, partitions: int, configs: dict[str, str] | None = None) -> None:
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=configs or {})
        admin = self._admin()  # kept: what it has under way ends with it
        admin.create_topics([new])[topic].result(DEADLINE_S)

    def delete_topic(self, topic: str) -> None:
        admin = self._admin()
        admin.delete_topics([topic])[topic].result(DEADLINE_S)

    def partitions(self, topic: str) -> set[int] | None:
        topics = self._admin().list_topics(timeout=DEADLINE_S).topics
        return set(topics[topic].partitions) if topic in topics else None

    def join(self, topic: str, group: str, *, assignor: str, instance_id: str = "", limit: int = 0) -> Member:
        settings = {
            "bootstrap.servers": self.bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        if assignor == "consumer":  # KIP-848: the broker assigns
            settings["group.protocol"] = "consumer"
        else:
            settings |= {
                "partition.assignment.strategy": assignor,
                "heartbeat.interval.ms": 300,
                "session.timeout.ms": 6000,
            }
        if instance_id:
            settings["group.instance.id"] = instance_id
        member = _Member(ck.Consumer(settings), topic, limit)
        member.start()
        return member

    def committed(self, topic: str, group: str) -> dict[int, int]:
        asked = ck.ConsumerGroupTopicPartitions(group)
        admin = self._admin()
        found = admin.list_consumer_group_offsets([asked])[group].result(DEADLINE_S)
        return {place.partition: place.offset for place in found.topic_partitions if place.topic == topic}

    def _admin(self) -> Any:
        return AdminClient({"bootstrap.servers": self.bootstrap})

    def _consumer(self) -> Any:
        # librdkafka wants a group id even where partitions are assigned by hand; no group is ever joined.
        return ck.Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "none",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "check.crcs": True,
            }
        )


class _Member(ThreadedMember):
    def __init__(self, consumer: Any, topic: str, limit: int) -> None:
        super().__init__(limit)
        self._consumer = consumer
        self._topic = topic

    def run(self) -> None:
        consumer = self._consumer
        consumer.subscribe(
            [self._topic],
            on_assign=lambda _, places: self.assign(_partitions(places)),
            on_revoke=lambda _, places: self.revoke(_partitions(places)),
            on_lost=lambda _, places: self.revoke(_partitions(places)),
        )
        try:
            while not self.stopping:
                if self.full:
                    consumer.pause(consumer.assignment())
                offsets: dict[int, int] = {}
                for message in consumer.consume(100, timeout=0.1):
                    if message.error():
                        raise ck.KafkaException(message.error())
                    if not self.full:
                        self.keep(message.partition(), _record(message))
                        offsets[message.partition()] = message.offset() + 1
                if offsets:
                    self._commit(offsets)
        finally:
            consumer.close()

    def _commit(self, offsets: dict[int, int]) -> None:
        places = [ck.TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
        try:
            self._consumer.commit(offsets=places, asynchronous=False)
        except ck.KafkaException as error:
            # A rebalance came between: the next owner reads these again, which at-least-once allows.
            if error.args[0].code() not in (ck.KafkaError.REBALANCE_IN_PROGRESS, ck.KafkaError.ILLEGAL_GENERATION):
                raise


def _partitions(places: Sequence[Any]) -> set[int]:
    return {place.partition for place in places}


def _record(message: Any) -> Record:
    return Record(
        value=message.value(),
        key=message.key(),
        headers=tuple(message.headers() or ()),
        timestamp_ms=message.timestamp()[1],
        offset=message.offset(),
    )
