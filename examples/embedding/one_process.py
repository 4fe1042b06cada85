"""A broker, a producer and a consumer in one Python process.

    python examples/embedding/one_process.py

Everything is kept in a temporary directory that is deleted at the end.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import confluent_kafka

from broker.config import BrokerSettings
from broker.node import Node


def produce_and_consume(bootstrap_servers: str) -> list[bytes]:
    """What an application does; it blocks, so it runs in a thread."""
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 5})
    for n in range(10):
        producer.produce("numbers", f"number {n}".encode())
    producer.flush()

    consumer = confluent_kafka.Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "example"})
    consumer.assign([confluent_kafka.TopicPartition("numbers", 0, confluent_kafka.OFFSET_BEGINNING)])
    values: list[bytes] = []
    while len(values) < 10:
        message = consumer.poll(10)
        if message is None or message.error():
            raise RuntimeError(f"nothing came: {message and message.error()}")
        values.append(message.value() or b"")
    return values


async def main() -> None:
    """Start a broker, use it, stop it."""
    with tempfile.TemporaryDirectory() as directory:
        settings = BrokerSettings(
            listeners="PLAINTEXT://127.0.0.1:0",
            wal_uri=f"{(Path(directory) / 'wal').as_uri()}?capacity=64MiB",
            object_store_uri=(Path(directory) / "objects").as_uri(),
            memory_bytes=128 << 20,
        )
        async with Node(settings) as node:
            print("serving on", node.bootstrap_servers)
            for value in await asyncio.to_thread(produce_and_consume, node.bootstrap_servers):
                print(value.decode())
        objects = [path for path in (Path(directory) / "objects" / "data").rglob("*") if path.is_file()]
        print(f"stopped; the log is in {len(objects)} object(s)")


if __name__ == "__main__":
    asyncio.run(main())
