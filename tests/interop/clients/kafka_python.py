"""kafka-python: a client in pure Python, idempotent by default."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

from tests.interop.clients.base import CODECS, DEADLINE_S, ClientUnavailable, Member, Record
from tests.interop.clients.threaded import ThreadedMember

try:
    with warnings.catch_warnings():
        # It loads its schemas by functions that Python has deprecated.
        warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
        import kafka
        import kafka.admin
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
        from kafka.coordinator.assignors.range import RangePartitionAssignor
        from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
        from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
except ImportError:
    kafka = None
else:
    _ASSIGNORS = {
        "range": RangePartitionAssignor,
        "roundrobin": RoundRobinPartitionAssignor,
        "sticky": StickyPartitionAssignor,
        "cooperative-sticky": CooperativeStickyAssignor,
    }


class KafkaPython:
    name = "kafka-python"
    keeps_timestamps = True
    codecs = CODECS
    cannot_read = ()
    assignors = ("range", "roundrobin", "sticky", "cooperative-sticky")
    static_membership = True

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def check(self) -> None:
        if kafka is None:
            raise ClientUnavailable("kafka-python is not installed: pip install kafka-python")

    @property
    def version(self) -> str:
        return str(kafka.__version__)

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
        producer = kafka.KafkaProducer(
            bootstrap_servers=self.bootstrap,
            compression_type=None if compression == "none" else compression,
            acks=acks,
            enable_idempotence=idempotent,
            **settings,
        )
        with closing(producer):
            futures = []
            for record in records:
                sent = producer.send(
                    topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    partition=partition,
                    timestamp_ms=record.timestamp_ms,
                )
                futures.append(sent)
                time.sleep(pause_ms / 1000)
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
                    records.append(_record(message))
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

    def join(self, topic: str, group: str, *, assignor: str, instance_id: str = "", limit: int = 0) -> Member:
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=group,
            group_instance_id=instance_id or None,
            partition_assignment_strategy=[_ASSIGNORS[assignor]],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            heartbeat_interval_ms=300,
            session_timeout_ms=6000,
        )
        member = _Member(consumer, topic, limit)
        member.start()
        return member

    def committed(self, topic: str, group: str) -> dict[int, int]:
        with closing(self._admin()) as admin:
            found = admin.list_group_offsets([group])[group]
            return {place.partition: kept.offset for place, kept in found.items() if place.topic == topic}

    def _admin(self) -> Any:
        return kafka.KafkaAdminClient(bootstrap_servers=self.bootstrap)

    def _consumer(self) -> Any:
        return kafka.KafkaConsumer(
            bootstrap_servers=self.bootstrap, enable_auto_commit=False, auto_offset_reset="none", check_crcs=True
        )


class _Member(ThreadedMember):
    def __init__(self, consumer: Any, topic: str, limit: int) -> None:
        super().__init__(limit)
        self._consumer = consumer
        self._topic = topic

    def run(self) -> None:
        consumer = self._consumer
        consumer.subscribe([self._topic], listener=_listener(self))
        with closing(consumer):
            while not self.stopping:
                if self.full:
                    consumer.pause(*consumer.assignment())
                offsets = {}
                # It returns as soon as there is something. A poll that times out while the group is being joined can leave
                # kafka-python 3.0.12 with an assignment that it never takes up, and without heartbeats.
                for place, messages in consumer.poll(timeout_ms=2000).items():
                    for message in messages:
                        if not self.full:
                            self.keep(message.partition, _record(message))
                            offsets[place] = kafka.OffsetAndMetadata(message.offset + 1, "", -1)
                if offsets:
                    # After a rebalance the next owner reads these again, which at-least-once allows.
                    with suppress(kafka.errors.CommitFailedError):
                        consumer.commit(offsets)


def _listener(member: ThreadedMember) -> Any:
    class Listener(kafka.ConsumerRebalanceListener):
        def on_partitions_assigned(self, assigned: Any) -> None:
            member.assign({place.partition for place in assigned})

        def on_partitions_revoked(self, revoked: Any) -> None:
            member.revoke({place.partition for place in revoked})

    return Listener()


def _record(message: Any) -> Record:
    return Record(
        value=message.value,
        key=message.key,
        headers=tuple(message.headers or ()),
        timestamp_ms=message.timestamp,
        offset=message.offset,
    )
