"""What each of several nodes is given of the settings of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.config import BrokerSettings, InvalidSettings
from broker.supervisor.plan import settings_of_nodes
from wal.errors import WalConfigInvalid


def settings(**values: Any) -> BrokerSettings:
    return BrokerSettings(**{"memory_bytes": 1 << 30, **values})


def test_each_node_has_its_own_id_addresses_wal_and_share_of_the_memory() -> None:
    nodes = settings_of_nodes(
        settings(
            node_id=7,
            listeners="PLAINTEXT://:9092,INSIDE://10.0.0.1:9192",
            advertised_listeners="PLAINTEXT://kafka.example.org:19092",
            metrics_listeners="HTTP://localhost:9404",
            wal_uri="file:///var/lib/tidelog/wal?capacity=64MiB",
            object_store_uri="s3://bucket/cluster",
        ),
        3,
    )
    assert [node.node_id for node in nodes] == [7, 8, 9]
    assert [node.listeners for node in nodes] == [
        "PLAINTEXT://:9092,INSIDE://10.0.0.1:9192",
        "PLAINTEXT://:9093,INSIDE://10.0.0.1:9193",
        "PLAINTEXT://:9094,INSIDE://10.0.0.1:9194",
    ]
    assert nodes[2].advertised_listeners == "PLAINTEXT://kafka.example.org:19094"
    assert nodes[2].metrics_listeners == "HTTP://localhost:9406"
    assert nodes[0].wal_uri == "file:///var/lib/tidelog/wal/node-7?capacity=64MiB"
    assert nodes[2].wal_uri == "file:///var/lib/tidelog/wal/node-9?capacity=64MiB"
    assert {node.memory_bytes for node in nodes} == {(1 << 30) // 3}
    assert {node.object_store_uri for node in nodes} == {"s3://bucket/cluster"}


def test_nodes_find_each_other_without_being_told_to() -> None:
    nodes = settings_of_nodes(settings(), 2)
    assert {node.controller_listeners for node in nodes} == {"CONTROLLER://127.0.0.1:0"}
    nodes = settings_of_nodes(settings(controller_listeners="CONTROLLER://127.0.0.1:9990"), 2)
    assert nodes[1].controller_listeners == "CONTROLLER://127.0.0.1:9991"


def test_port_0_is_any_free_one_for_each() -> None:
    nodes = settings_of_nodes(settings(listeners="PLAINTEXT://localhost:0", metrics_listeners="HTTP://localhost:0"), 3)
    assert {(node.listeners, node.metrics_listeners) for node in nodes} == {
        ("PLAINTEXT://localhost:0", "HTTP://localhost:0")
    }


def test_one_node_has_the_place_that_it_has_among_others() -> None:
    (alone,) = settings_of_nodes(settings(wal_uri="file:///wal"), 1)
    assert alone.wal_uri == settings_of_nodes(settings(wal_uri="file:///wal"), 3)[0].wal_uri
    assert alone.controller_listeners, "so that what nodes that are gone had closed comes to it"


def test_relative_places_do_not_depend_on_where_a_node_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (node,) = settings_of_nodes(settings(wal_uri="file://./some wal", object_store_uri="file://./objects"), 1)
    assert node.wal_uri == (tmp_path / "some wal" / "node-1").as_uri()
    assert node.object_store_uri == (tmp_path / "objects").as_uri()


@pytest.mark.parametrize("uri", ["s3://bucket/wal?batch_interval_ms=20", "objects+file:///srv/bucket", "null://"])
def test_a_wal_that_is_no_directory_tells_nodes_apart_by_itself(uri: str) -> None:
    assert {node.wal_uri for node in settings_of_nodes(settings(wal_uri=uri), 2)} == {uri}


@pytest.mark.parametrize(
    ("values", "count", "message"),
    [
        ({}, 0, "--nodes 0 is not allowed: 1 to 64"),
        ({}, 65, "--nodes 65 is not allowed: 1 to 64"),
        ({"memory_bytes": 128 << 20}, 3, "too little for 3: each needs 64 MiB, so at least 192MiB"),
        ({"object_store_uri": "mem://"}, 2, "mem:// is the memory of one process"),
        (
            {"node_id": -1, "wal_uri": "s3://b/w", "controller_listeners": "CONTROLLER://:0"},
            2,
            "--nodes gives its nodes ids that count up, so say the first",
        ),
        ({"node_id": 2**31 - 1}, 2, "leaves no ids for the others: at most 2147483646"),
        ({"listeners": "PLAINTEXT://localhost:65535"}, 2, "node 2 of 2: listeners: port 65536 is above 65535"),
        ({"queued_max_request_bytes": 100 << 20}, 2, "node 1 of 2: queued.max.request.bytes"),
        (
            {"listeners": "PLAINTEXT://localhost:9092", "metrics_listeners": "HTTP://:9093"},
            2,
            "PLAINTEXT://localhost:9093 of node 2 is the address of HTTP://:9093 of node 1 as well",
        ),
        (
            {
                "listeners": "ONE://10.0.0.1:9092,OTHER://10.0.0.2:9092",
                "advertised_listeners": "ONE://gateway:7000,OTHER://gateway:7001",
            },
            2,
            "ONE://gateway:7001 of node 2 is the address of OTHER://gateway:7001 of node 1 as well",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(values: dict[str, Any], count: int, message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        settings_of_nodes(settings(**values), count)
    assert message in str(caught.value)


def test_a_wal_uri_is_checked_before_anything_is_started() -> None:
    with pytest.raises(WalConfigInvalid, match="unknown"):
        settings_of_nodes(settings(wal_uri="ftp://x"), 2)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidSettings, match=r"memory\.bytes.*mem://"):
        settings_of_nodes(settings(memory_bytes=64 << 20, object_store_uri="mem://"), 2)
