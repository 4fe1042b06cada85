"""Produce and fetch: what goes in comes out, with every client and every codec."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from bench import wire
from protocol.compression import Codec
from protocol.record_set import iter_batches
from protocol.records import parse_batch_header
from tests.interop.clients.base import CODECS, Client, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.conftest import installed_clients

pytestmark = pytest.mark.interop

T0_MS = 1_700_000_000_000


def records(count: int, *, first: int = 0) -> list[Record]:
    """Records of different sizes, with headers on some and a timestamp each."""
    return [
        Record(
            key=f"key-{number % 7}".encode(),
            value=f"value-{number}-".encode() * (1 + number % 50),
            headers=(("trace", f"t{number}".encode()), ("kind", b"test")) if number % 50 == 0 else (),
            timestamp_ms=T0_MS + number * 1000,
        )
        for number in range(first, first + count)
    ]


def as_sent(found: list[Record], client: Client) -> list[Record]:
    """Consumed records without what the broker or kcat adds, to compare with what was sent."""
    return [
        dataclasses.replace(record, offset=None, timestamp_ms=record.timestamp_ms if client.keeps_timestamps else None)
        for record in found
    ]


def expected(sent: list[Record], client: Client) -> list[Record]:
    return sent if client.keeps_timestamps else [dataclasses.replace(record, timestamp_ms=None) for record in sent]


def stored_codecs(bootstrap: str, topic: str) -> set[str]:
    """Codecs of the batches that lie in partition 0: read off the wire, past any client."""
    host, _, port = bootstrap.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock, sock.makefile("rb") as answers:
        sock.sendall(wire.fetch_request(topic=topic, partition=0, max_bytes=64 << 20, correlation_id=1))
        size = answers.read(4)
        frame = memoryview(size + answers.read(int.from_bytes(size, "big")))
    position, size_bytes = wire.FetchResponseLayout(topic).records(frame)
    batches = iter_batches(frame[position : position + size_bytes])
    return {Codec(parse_batch_header(found).codec).name.lower() for found in batches}


@pytest.mark.parametrize("codec", CODECS)
def test_keys_values_headers_and_timestamps_come_back(client: Client, bootstrap: str, topic: str, codec: str) -> None:
    if codec not in client.codecs:
        pytest.skip(f"{client.name} {client.version} cannot do {codec} here")
    sent = records(300)
    client.produce(topic, sent, compression=codec)
    # A client that thinks little of the broker sends everything uncompressed and says nothing. Single batches that would not
    # become smaller are sent as they are.
    assert {codec} <= stored_codecs(bootstrap, topic) <= {codec, "none"}
    found = client.consume(topic, count=300)
    assert as_sent(found, client) == expected(sent, client)
    assert [record.offset for record in found] == list(range(300))


@pytest.mark.parametrize("codecs", [("none", "gzip", "lz4"), ("snappy",), ("zstd",)], ids="-".join)
def test_every_client_reads_what_every_other_wrote(bootstrap: str, topic: str, codecs: tuple[str, ...]) -> None:
    clients = installed_clients(bootstrap)
    sent: list[Record] = []
    for writer in [client for client in clients if set(codecs) <= set(client.codecs)]:
        for codec in codecs:
            mine = [dataclasses.replace(record, headers=()) for record in records(20, first=len(sent))]
            writer.produce(topic, mine, compression=codec)
            sent += mine
    for reader in [client for client in clients if set(codecs) <= set(client.codecs) - set(client.cannot_read)]:
        found = reader.consume(topic, count=len(sent))
        assert [(record.key, record.value) for record in found] == [(record.key, record.value) for record in sent]


def test_fetch_from_an_offset_in_the_middle_of_a_batch(client: Client, topic: str) -> None:
    sent = records(100)
    client.produce(topic, sent)
    found = client.consume(topic, offset=57, count=43)
    assert [record.offset for record in found] == list(range(57, 100))
    assert [record.value for record in found] == [record.value for record in sent[57:]]


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_offset_for_a_timestamp(client: Client, confluent: Confluent, topic: str, codec: str) -> None:
    confluent.produce(topic, records(100), compression=codec)
    assert client.offset_for_timestamp(topic, T0_MS + 42_000) == 42
    assert client.offset_for_timestamp(topic, T0_MS + 41_001) == 42
    assert client.offset_for_timestamp(topic, T0_MS - 1) == 0


def test_no_offset_past_the_last_timestamp(client: Client, confluent: Confluent, topic: str) -> None:
    confluent.produce(topic, records(10))
    found = client.offset_for_timestamp(topic, T0_MS + 10_000_000)
    # librdkafka tells "none" as the end of the partition
    assert found in (None, 10)


def test_null_keys_and_null_values(client: Client, topic: str) -> None:
    sent = [Record(key=b"a", value=b"1"), Record(key=b"a", value=None), Record(key=None, value=b"2")]
    client.produce(topic, sent)
    assert [(record.key, record.value) for record in client.consume(topic, count=3)] == [
        (b"a", b"1"),
        (b"a", None),
        (None, b"2"),
    ]


def test_empty_values_are_not_null(client: Client, confluent: Confluent, topic: str) -> None:
    confluent.produce(topic, [Record(key=b"", value=b""), Record(key=None, value=None)])
    assert [(record.key, record.value) for record in client.consume(topic, count=2)] == [(b"", b""), (None, None)]


def test_large_records(client: Client, topic: str) -> None:
    sent = [Record(key=b"big", value=bytes([ord("a") + number]) * 900_000) for number in range(5)]
    client.produce(topic, sent)
    found = client.consume(topic, count=5)
    assert [record.value for record in found] == [record.value for record in sent]


@pytest.mark.parametrize("acks", [0, 1, -1])
def test_every_acks_setting(client: Client, topic: str, acks: int) -> None:
    client.produce(topic, [Record(key=b"first", value=b"creates the topic")])
    client.produce(topic, records(50), acks=acks)
    assert len(client.consume(topic, count=51)) == 51


def test_partitions_are_apart(admin_client: Client, topic: str) -> None:
    admin_client.create_topic(topic, 4)
    for partition in range(4):
        admin_client.produce(topic, [Record(key=b"k", value=str(partition).encode())] * 3, partition=partition)
    for partition in range(4):
        found = admin_client.consume(topic, count=3, partition=partition)
        assert [record.value for record in found] == [str(partition).encode()] * 3
