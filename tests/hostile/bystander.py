"""A well-behaved client, librdkafka, that produces and consumes while others misbehave: nobody may harm it (I14)."""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

__all__ = ["TOPIC", "Bystander"]

TOPIC = "bystander"
"""What it produces to: partition 0 is its own."""
_PAUSE_S = 0.005
_WITHIN_S = 30.0


class Bystander:
    """Produces numbers, one after the other, and consumes them, in a thread for each, until `finish`."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.errors: list[str] = []
        self.acknowledged = 0
        self.consumed: list[int] = []
        self.slowest_s = 0.0
        """The longest that one record took to be acknowledged."""
        self._stop = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 0,
                "error_cb": self._failed,
                "log_level": 0,
            }
        )
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "bystander",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 100,
                "error_cb": self._failed,
                "log_level": 0,
            }
        )
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._produce, self._consume)]
        self._produce_one()  # creates the topic
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Fails unless it got no error so far and, from here on, another record goes all the way."""
        seen = self.acknowledged
        deadline = time.monotonic() + _WITHIN_S
        while len(self.consumed) < seen + 2 and not self.errors and time.monotonic() < deadline:
            time.sleep(0.002)
        assert not self.errors, self.errors
        assert len(self.consumed) >= seen + 2, f"{len(self.consumed)} consumed, {self.acknowledged} acknowledged"

    def finish(self) -> None:
        """Stop; fails unless every record that was acknowledged was consumed, in order, once."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_WITHIN_S)
            assert not thread.is_alive(), "the bystander hangs"
        self._consumer.close()
        assert not self.errors, self.errors
        assert self.consumed == list(range(self.acknowledged))

    def _produce(self) -> None:
        try:
            while not self._stop.wait(_PAUSE_S):
                self._produce_one()
        except Exception as error:
            self.errors.append(f"produce: {error!r}")

    def _produce_one(self) -> None:
        reports: list[object] = []
        started = time.monotonic()
        self._producer.produce(
            TOPIC, str(self.acknowledged), partition=0, on_delivery=lambda error, _: reports.append(error)
        )
        while not reports and time.monotonic() - started < _WITHIN_S:
            self._producer.poll(0.1)
        assert reports, "no acknowledgement"
        if reports[0] is not None:
            raise KafkaException(reports[0])
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        self.acknowledged += 1

    def _consume(self) -> None:
        try:
            self._consumer.assign([TopicPartition(TOPIC, 0, 0)])
            while not self._stop.is_set() or len(self.consumed) < self.acknowledged:
                message = self._consumer.poll(0.1)
                if message is None:
                    continue
                if message.error() is not None:
                    raise KafkaException(message.error())
                self.consumed.append(int(message.value()))
        except Exception as error:
            self.errors.append(f"consume: {error!r}")

    def _failed(self, error: object) -> None:
        self.errors.append(str(error))
