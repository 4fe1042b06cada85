"""What only some clients do: idempotence, transactions, big batches, tailing."""

from __future__ import annotations

import subprocess
import threading

import pytest

from tests.interop.clients.aiokafka import Aiokafka
from tests.interop.clients.base import DEADLINE_S, Client, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.kafka_python import KafkaPython
from tests.interop.clients.kcat import Kcat
from tests.interop.conftest import installed

pytestmark = pytest.mark.interop

NUMBERS = [Record(key=b"k", value=str(number).encode()) for number in range(2000)]


def values(found: list[Record]) -> list[bytes | None]:
    return [record.value for record in found]


def test_idempotent_producers(client: Client, topic: str) -> None:
    client.produce(topic, NUMBERS, idempotent=True)
    assert values(client.consume(topic, count=2000)) == values(NUMBERS)


def test_many_idempotent_batches_in_flight(confluent: Confluent, topic: str) -> None:
    confluent.produce(topic, NUMBERS, idempotent=True, **{"linger.ms": 1, "batch.num.messages": 50})
    assert values(confluent.consume(topic, count=2000)) == values(NUMBERS)


def test_a_batch_above_the_limit_is_refused_and_harms_nothing(confluent: Confluent, topic: str) -> None:
    confluent.produce(topic, [Record(value=b"before")])
    with pytest.raises(Exception, match="MSG_SIZE_TOO_LARGE"):
        confluent.produce(topic, [Record(value=bytes(3_000_000))], **{"message.max.bytes": 10_000_000})
    confluent.produce(topic, [Record(value=b"after")])
    assert values(confluent.consume(topic, count=2)) == [b"before", b"after"]


@pytest.mark.parametrize("client", [Confluent, Aiokafka, KafkaPython], ids=lambda made: made.name)
def test_a_transactional_producer_is_told_at_once(
    client: type[Confluent | Aiokafka | KafkaPython], bootstrap: str
) -> None:
    transactional = installed(client(bootstrap))
    assert isinstance(transactional, Confluent | Aiokafka | KafkaPython)
    with pytest.raises(Exception, match=r"(?i)transactional_?id_?authorization_?failed"):
        transactional.begin_transactional("some-id")


def test_offsets_of_an_empty_and_of_a_filled_partition(confluent: Confluent, topic: str) -> None:
    confluent.create_topic(topic, 1)
    assert confluent.watermarks(topic) == (0, 0)
    confluent.produce(topic, NUMBERS[:10])
    assert confluent.watermarks(topic) == (0, 10)


def test_a_waiting_consumer_gets_what_is_produced_meanwhile(bootstrap: str, confluent: Confluent, topic: str) -> None:
    installed(Kcat(bootstrap))
    confluent.create_topic(topic, 1)
    tail = subprocess.Popen(
        ["kcat", "-b", bootstrap, "-C", "-t", topic, "-p", "0", "-o", "0", "-c", "3", "-q", "-u"],
        stdout=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(DEADLINE_S, tail.kill)
    killer.start()
    try:
        assert tail.stdout is not None
        with tail.stdout as lines:
            for number in range(3):
                confluent.produce(topic, [Record(value=f"line {number}".encode())])
                assert lines.readline() == f"line {number}\n"
        assert tail.wait(DEADLINE_S) == 0
    finally:
        killer.cancel()
        tail.kill()
        tail.wait()
