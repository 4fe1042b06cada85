"""Partitions that go from broker to broker under load: `python -m bench moves`.

Always true:
- Three brokers in processes of their own, with default settings but for their memory, on one local directory for objects.
- Where one partition at a time is moved, clients are librdkafka's with default settings, the producer idempotent. Where a broker is drained, the client is one
  that costs little and follows the leader that a refusal names (`bench.following`), as Java's does: librdkafka's takes seconds of processor time to be
  told of a thousand new leaders, whatever the brokers do.
- Producers send 50 MB/s in records of 10 KB all the time. The pause of a partition is the longest time from when a record was due to its
  acknowledgement, from just before the move to a second after it; a consumer's is the longest from produce to delivery.
- A drain is one of `tidelog drain`: its time is from the command's being given to the last partition's being open elsewhere, as that tells it.
- What goes between brokers is counted by them (`tidelog_peer_bytes_total`); what was produced meanwhile is told beside it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.broker import BrokerFailed
from bench.cluster import TIMEOUT_S, Node, all_of, leaders, running_nodes
from bench.following import Following
from bench.latencies import RATE_BYTES, RECORD_BYTES, clients, print_spread
from protocol.apis import api_named, decode_response, encode_request
from protocol.frames import parse_response_header
from protocol.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)

__all__ = ["run"]

_MIB = 1 << 20
_NODES = 3
_FEW = 12
"""Partitions where one at a time is moved."""
_MOVES = 40
_BETWEEN_MOVES_S = 0.7
_DRAINED = 1_000
"""Partitions of the broker that is drained."""
_IN_A_TOPIC = 100
_WARM_UP_S = 6.0
_AFTER_S = 1.5


def run(work_dir: Path) -> None:
    """Prints pauses and drain times."""
    with running_nodes(work_dir, _NODES) as nodes:
        _one_at_a_time(nodes)
        _drain(nodes)


def _call(bootstrap: str, name: str, version: int, request: Any) -> Any:
    """Ask one broker."""
    api = api_named(name)
    host, _, port = bootstrap.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as sock, sock.makefile("rb") as responses:
        sock.sendall(b"".join(encode_request(api.key, version, 1, "bench", request)))
        frame = responses.read(int.from_bytes(responses.read(4)))
    _, position = parse_response_header(api.key, version, frame)
    return decode_response(api.key, version, frame, position)


# ---- one partition at a time -------------------------------------------------------------------------------------------


def _one_at_a_time(nodes: Mapping[int, Node]) -> None:
    topic = "few"
    nodes[1].broker.create_topic(topic, _FEW)
    moved = 0
    before_s: list[float] = []
    produce_s: list[float] = []
    consume_s: list[float] = []
    with clients(all_of(nodes), topic, _FEW, read=moved) as (load, reader):
        time.sleep(_WARM_UP_S)
        home = leaders(nodes, topic)[moved]
        away = next(node_id for node_id in nodes if node_id != home)
        windows: list[tuple[float, float]] = []
        peer_bytes, sent_bytes, asked = _peer_bytes(nodes), load.sent_bytes, _metadata_requests(nodes)
        for number in range(_MOVES):
            target = away if number % 2 == 0 else home
            at = time.perf_counter()
            partitions = [ReassignablePartition(partition_index=moved, replicas=[target])]
            request = AlterPartitionReassignmentsRequest(topics=[ReassignableTopic(name=topic, partitions=partitions)])
            _call(nodes[2].broker.bootstrap, "AlterPartitionReassignments", 1, request)
            time.sleep(_BETWEEN_MOVES_S)
            windows.append((at - 0.05, time.perf_counter()))
        peer_bytes, sent_bytes = _peer_bytes(nodes) - peer_bytes, load.sent_bytes - sent_bytes
        time.sleep(_AFTER_S)
        asked = _metadata_requests(nodes) - asked
        for from_s, to_s in windows:
            produce_s.append(load.longest((topic, moved), from_s, to_s))
            consume_s.append(reader.longest(moved, from_s, to_s))
            before_s.extend(load.longest((topic, other), from_s, to_s) for other in range(_FEW) if other != moved)
    print(f"{RATE_BYTES // 1_000_000} MB/s into {_FEW} partitions, one of them moved {_MOVES} times:")
    print_spread("  pause of its producers", produce_s)
    print_spread("  pause of its consumer", consume_s)
    print_spread("  longest acknowledgement of each other partition meanwhile", before_s)
    print(
        f"  between brokers {peer_bytes / 1e3:,.0f} KB, produced {sent_bytes / 1e6:,.0f} MB; clients asked for metadata {asked:,.0f} times",
        flush=True,
    )


# ---- all at once ---------------------------------------------------------------------------------------------------------


def _drain(nodes: Mapping[int, Node]) -> None:
    topics = [f"many-{number}" for number in range(_DRAINED * _NODES // _IN_A_TOPIC)]
    for topic in topics:
        nodes[1].broker.create_topic(topic, _IN_A_TOPIC)
    own = [(topic, index) for topic in topics for index, leader in leaders(nodes, topic).items() if leader == 1]
    addresses = {node_id: node.broker.bootstrap for node_id, node in nodes.items()}
    with Following(addresses, dict.fromkeys(own, 1), rate_bytes=RATE_BYTES, record_bytes=RECORD_BYTES) as load:
        time.sleep(_WARM_UP_S)
        unuploaded = nodes[1].metric("tidelog_wal_unuploaded_bytes")
        peer_bytes, sent_bytes, asked = _peer_bytes(nodes), load.sent_bytes, _metadata_requests(nodes)
        at = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "broker", "drain", "1", "--json", "-c", str(nodes[2].config)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerFailed(f"tidelog drain failed: {done.stdout}{done.stderr}")
        ended_at = time.perf_counter()
        peer_bytes, sent_bytes = _peer_bytes(nodes) - peer_bytes, load.sent_bytes - sent_bytes
        time.sleep(_AFTER_S)
        asked = _metadata_requests(nodes) - asked
    row = json.loads(done.stdout.splitlines()[-1])
    took_s = ended_at - at
    print(
        f"{RATE_BYTES // 1_000_000} MB/s into the {len(own):,} partitions of one broker, which is drained:\n"
        f"  {row['moved']:,} partitions in {row['seconds']:.2f} s, {unuploaded / _MIB:.0f} MiB were not uploaded when that began"
    )
    print_spread("  pause of each partition's producer", [load.longest(each, at - 0.2, ended_at + 1.0) for each in own])
    print_spread(
        "  the same for as long before that", [load.longest(each, at - 1.2 - took_s, at - 0.2) for each in own]
    )
    print(
        f"  between brokers {peer_bytes / 1e3:,.0f} KB, produced {sent_bytes / 1e6:,.0f} MB; {load.refused:,} requests were refused, "
        f"clients asked for metadata {asked:,.0f} times",
        flush=True,
    )


def _peer_bytes(nodes: Mapping[int, Node]) -> float:
    """What all brokers sent to others."""
    return sum(node.metric("tidelog_peer_bytes_total") for node in nodes.values()) / 2


def _metadata_requests(nodes: Mapping[int, Node]) -> float:
    """What clients asked all brokers for since they started, because they did not know who leads, or as they do now and then."""
    return sum(node.metric("tidelog_request_duration_seconds_count", api="Metadata") for node in nodes.values())
