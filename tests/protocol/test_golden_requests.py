"""Frames that real clients sent: each decodes, and encodes again to the very same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from protocol import apis, frames
from protocol.compression import Codec
from protocol.record_set import iter_records
from protocol.records import check_produced_header, crc_matches

GOLDEN = Path(__file__).parent.parent / "golden"


class Golden(NamedTuple):
    client: str
    line: int
    name: str
    version: int
    frame: bytes

    def __str__(self) -> str:
        return f"{self.client}-{self.line}-{self.name}-v{self.version}"


def load() -> list[Golden]:
    found = []
    for path in sorted(GOLDEN.glob("requests_*.txt")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.startswith("#"):
                name, version, frame = line.split()
                found.append(
                    Golden(path.stem.removeprefix("requests_"), number, name, int(version), bytes.fromhex(frame))
                )
    return found


ALL = load()


@pytest.mark.parametrize("golden", ALL, ids=str)
def test_a_clients_frame_decodes_and_encodes_to_the_same_bytes(golden: Golden) -> None:
    api = apis.api_named(golden.name)
    header = frames.parse_request_header(golden.frame)
    assert (header.api_key, header.api_version) == (api.key, golden.version)
    assert header.client_id == golden.client.replace("_", "-")
    request = apis.decode_request(header.api_key, header.api_version, golden.frame, header.body_position)
    parts = apis.encode_request(api.key, golden.version, header.correlation_id, header.client_id, request)
    assert b"".join(parts) == len(golden.frame).to_bytes(4, "big") + golden.frame


@pytest.mark.parametrize("golden", [g for g in ALL if g.name == "Produce"], ids=str)
def test_a_clients_batch_is_accepted_and_read(golden: Golden) -> None:
    header = frames.parse_request_header(golden.frame)
    request = apis.decode_request(header.api_key, header.api_version, golden.frame, header.body_position)
    [topic] = request.topic_data
    [partition] = topic.partition_data
    assert (topic.name, partition.index) == ("t", 0)

    batch = check_produced_header(partition.records, golden.version, 1_048_588)
    assert crc_matches(partition.records, batch.crc)
    records = list(iter_records(partition.records, max_output_bytes=1 << 20))
    assert [record.key for record in records] == [b"k0", b"k1", b"k2"]
    assert [record.value for record in records] == [b"golden value " * 4 + b"%d" % i for i in range(3)]
    assert [record.timestamp_ms for record in records] == [1_700_000_000_000 + i for i in range(3)]
    assert [record.headers[0] for record in records] == [("h", b"v")] * 3


def test_every_client_sent_every_codec() -> None:
    seen: dict[str, set[Codec]] = {}
    for golden in ALL:
        if golden.name == "Produce":
            position = frames.parse_request_header(golden.frame).body_position
            request = apis.decode_request(0, golden.version, golden.frame, position)
            batch = check_produced_header(request.topic_data[0].partition_data[0].records, golden.version, 1 << 20)
            seen.setdefault(golden.client, set()).add(Codec(batch.codec))
    assert seen == {client: set(Codec) for client in ("aiokafka", "confluent_kafka", "kafka_python")}
