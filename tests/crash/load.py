"""Clients for crash tests: idempotent producers that never give up, and a reader that follows the tail.

Everything that they are told goes to a history. A record describes itself: its key says who sent it as which number, and
its digest covers key and value.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from crc32c import crc32c

from tests.checker.history import FinalLog, Found, History

__all__ = ["Load", "create_topic", "delete_topic", "read_topic"]

_ANSWER_WITHIN_S = 180.0
_MAX_QUEUED_KIB = 4096
"""Of each producer: what waits while the broker is down, and is sent when it is back."""
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


class Load:
    """Idempotent producers to one topic. `pump` sends, `finish` waits until everything is acknowledged."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        topic: str,
        partitions: int,
        history: History,
        rng: random.Random,
        producers: int = 3,
        max_value_bytes: int = 16_000,
    ) -> None:
        self.sent_bytes = 0
        self._topic = topic
        self._partitions = partitions
        self._history = history
        self._rng = rng
        self._max_value_bytes = max_value_bytes
        self._noise = rng.randbytes(4 * max_value_bytes)
        self._numbers: dict[tuple[str, int], int] = {}
        self._failures: list[str] = []
        self._producers: list[tuple[str, Producer]] = []
        for index in range(producers):
            name = f"{topic}-producer-{index}"
            history.idempotent(name)
            self._producers.append(
                (
                    name,
                    Producer(
                        {
                            "bootstrap.servers": bootstrap_servers,
                            "enable.idempotence": True,
                            "compression.type": _CODECS[index % len(_CODECS)],
                            "linger.ms": rng.choice((0, 2, 10)),
                            "batch.size": rng.choice((20_000, 100_000, 1_000_000)),
                            "message.timeout.ms": 300_000,
                            "queue.buffering.max.kbytes": _MAX_QUEUED_KIB,
                            "retry.backoff.ms": 20,
                            "reconnect.backoff.ms": 10,
                            "reconnect.backoff.max.ms": 200,
                            "log_level": 0,
                        },
                    ),
                )
            )
        self._reader = _assigned(bootstrap_servers, topic, range(partitions))

    def pump(self, size_bytes: int) -> None:
        """Send up to so many bytes, less where the broker does not take them, and hear what it says meanwhile."""
        rng = self._rng
        end = self.sent_bytes + size_bytes
        while self.sent_bytes < end:
            name, producer = rng.choice(self._producers)
            partition = rng.randrange(self._partitions)
            number = self._numbers.get((name, partition), 0)
            size = rng.randrange(self._max_value_bytes)
            start = rng.randrange(len(self._noise) - size)
            key, value = f"{name}/{number}".encode(), self._noise[start : start + size]
            try:
                producer.produce(self._topic, value, key, partition, on_delivery=self._delivered)
            except BufferError:
                producer.poll(0.05)  # its queue is full: the broker is down, or slower than we are
                break
            self._numbers[name, partition] = number + 1
            self._history.sent(f"{self._topic}-{partition}", name, number, _digest(key, value))
            self.sent_bytes += len(key) + size
        self.listen()

    def listen(self) -> None:
        """Hear what was acknowledged, and read what is there at the tail."""
        for _, producer in self._producers:
            producer.poll(0)
        for message in self._reader.consume(1000, timeout=0):
            if message.error() is None:
                self._history.seen(f"{self._topic}-{message.partition()}", [_found(message)])
            elif not _is_passing(message.error()):
                raise KafkaException(message.error())
        assert not self._failures, "\n".join(self._failures[:5])

    def finish(self) -> None:
        """Wait until every record is acknowledged.

        Raises:
            AssertionError: some were not, in reasonable time, or a producer was refused.
        """
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while any(len(producer) for _, producer in self._producers):
            for _, producer in self._producers:
                producer.flush(0.1)
            self.listen()
            waiting = sum(len(producer) for _, producer in self._producers)
            assert time.monotonic() < deadline, f"{waiting} records were not acknowledged in {_ANSWER_WITHIN_S} s"
        self.listen()
        self._reader.close()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        key = message.key()
        assert isinstance(key, bytes)
        if error is not None:
            self._failures.append(f"{key.decode()}: {error}")
            return
        name, _, number = key.decode().rpartition("/")
        offset = message.offset()
        assert offset is not None
        self._history.acknowledged(f"{self._topic}-{message.partition()}", name, int(number), offset)


def create_topic(bootstrap_servers: str, topic: str, partitions: int, timeout_s: float = _ANSWER_WITHIN_S) -> None:
    """Create a topic and return when it is there. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    admin.create_topics([NewTopic(topic, partitions, 1)], request_timeout=timeout_s)[topic].result()


def delete_topic(bootstrap_servers: str, topic: str, timeout_s: float = _ANSWER_WITHIN_S) -> None:
    """Delete a topic and return when it is gone. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    admin.delete_topics([topic], request_timeout=timeout_s)[topic].result()


def read_topic(bootstrap_servers: str, topic: str, partitions: int) -> dict[str, FinalLog]:
    """Read every partition of a topic from its start to its end."""
    consumer = _assigned(bootstrap_servers, topic, range(partitions))
    found: dict[int, list[Found]] = {partition: [] for partition in range(partitions)}
    marks = {partition: _marks(consumer, topic, partition) for partition in range(partitions)}
    missing = {partition for partition, (low, high) in marks.items() if high > low}
    deadline = time.monotonic() + _ANSWER_WITHIN_S
    while missing:
        for message in consumer.consume(1000, timeout=0.5):
            if message.error() is not None:
                if not _is_passing(message.error()):
                    raise KafkaException(message.error())
                continue
            partition = message.partition()
            assert partition is not None
            record = _found(message)
            found[partition].append(record)
            if record.offset >= marks[partition][1] - 1:
                missing.discard(partition)
        if time.monotonic() > deadline:
            break  # the checker says what is missing
    consumer.close()
    return {
        f"{topic}-{partition}": FinalLog(log_start_offset=low, log_end_offset=high, found=found[partition])
        for partition, (low, high) in marks.items()
    }


def _marks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """Where a partition starts and ends. librdkafka tells of one that moved just now instead of asking its next broker."""
    deadline = time.monotonic() + _ANSWER_WITHIN_S
    while True:
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_ANSWER_WITHIN_S)
        except KafkaException as error:
            if not _is_passing(error.args[0]) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _assigned(bootstrap_servers: str, topic: str, partitions: Sequence[int]) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "crash",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "check.crcs": True,
            "reconnect.backoff.ms": 10,
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    return consumer


def _is_passing(error: KafkaError | None) -> bool:
    """The broker is down just now; the client goes on by itself."""
    assert error is not None
    return error.retriable() or error.code() in (
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    )


def _found(message: Message) -> Found:
    key, value, offset = message.key(), message.value(), message.offset()
    assert isinstance(key, bytes)
    assert isinstance(value, bytes)
    assert offset is not None
    name, _, number = key.decode().rpartition("/")
    return Found(offset, name, int(number), _digest(key, value))


def _digest(key: bytes, value: bytes) -> int:
    return crc32c(value, crc32c(key))
