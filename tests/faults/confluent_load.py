"""librdkafka as a producer and a consumer that go on whatever happens, and tell what came of each record (see `load.py`).

What librdkafka itself has to say of its producer and its group goes to standard error.

Use: python -m tests.faults.confluent_load BOOTSTRAP TOPIC PARTITIONS NAME RECORDS_PER_SECOND [SETTING=VALUE …]
"""

from __future__ import annotations

import sys
import threading

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from crc32c import crc32c

_saying = threading.Lock()
_stopping = threading.Event()


def main() -> None:
    bootstrap, topic, partitions, name, rate, *given = sys.argv[1:]
    threading.Thread(target=_await_end, daemon=True).start()
    reading = threading.Thread(target=_read, args=(bootstrap, topic, name))
    reading.start()
    settings = dict(item.split("=", 1) for item in given)
    _produce(
        Producer({"bootstrap.servers": bootstrap, "debug": "eos,msg,topic,broker", **settings}),
        topic,
        int(partitions),
        name,
        int(rate),
    )
    _say("w the consumer's close")
    reading.join()
    _say("end")


def _produce(producer: Producer, topic: str, partitions: int, name: str, rate: int) -> None:
    number = 0
    while not _stopping.is_set():
        key = f"{name}/{number}".encode()
        partition = number % partitions

        def delivered(error: KafkaError | None, message: Message, number: int = number) -> None:
            if error is not None:
                _say(f"e {number}: {error}")
            else:
                _say(f"a {message.partition()} {number} {message.offset()}")

        _say(f"s {partition} {number}")
        producer.produce(topic, (key + b";") * (number % 40 + 1), key, partition, on_delivery=delivered)
        producer.poll(1 / rate)
        number += 1
    _say("w the producer's flush")
    producer.flush()


def _read(bootstrap: str, topic: str, group: str) -> None:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "debug": "cgrp,broker"}
    )
    consumer.subscribe([topic])
    while not _stopping.is_set():
        message = consumer.poll(0.2)
        if message is None:
            continue
        error = message.error()
        if error is not None:
            _say(f"e consumer: {error}")
            continue
        key, value = message.key(), message.value()
        assert isinstance(key, bytes)
        assert isinstance(value, bytes)
        _say(f"r {message.partition()} {message.offset()} {key.decode()} {crc32c(value, crc32c(key))}")
    try:
        consumer.close()
    except KafkaException as error:
        _say(f"e consumer: {error}")


def _say(line: str) -> None:
    with _saying:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _await_end() -> None:
    while sys.stdin.buffer.read(1):
        pass
    _stopping.set()


if __name__ == "__main__":
    main()
