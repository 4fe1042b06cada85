"""Settings: where they come from, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from broker.addresses import Listener, parse_listeners
from broker.config import SETTINGS, BrokerSettings, InvalidSettings, settings_from
from broker.setting import Kind, parse_size
from broker.shares import storage_settings, wal_store_settings
from broker.uris import absolute_uri
from s3stream.open import open_object_store
from wal.config import DEFAULT_CAPACITY_BYTES, FileWalConfig, ObjectWalConfig, parse_wal_uri


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('num.partitions = 3\n"node.id" = 4\n[upload]\nsize.bytes = "8MiB"\ninterval.ms = 50\n')
    settings = settings_from(
        file=file,
        environment={"TIDELOG_NODE_ID": "5", "TIDELOG_UPLOAD_INTERVAL_MS": "60", "PATH": "/bin"},
        overrides={"upload.interval.ms": "70"},
    )
    assert settings.num_partitions == 3
    assert settings.upload_size_bytes == 8 << 20
    assert settings.node_id == 5
    assert settings.upload_interval_ms == 70


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings) as caught:
        settings_from(
            environment={}, overrides={"num.partition": 1, "node.id": "x", "auto.create.topics.enable": "maybe"}
        )
    for part in (
        "unknown setting num.partition: did you mean num.partitions?",
        "node.id = 'x' is not allowed: a whole number from -1",
        "auto.create.topics.enable = 'maybe' is not allowed: true or false",
    ):
        assert part in str(caught.value)
    with pytest.raises(InvalidSettings) as caught:
        BrokerSettings(num_partitions=0, log_message_timestamp_type="Never", listeners="")
    for part in (
        "num.partitions = 0 is not allowed: a whole number from 1 to 100000 (partitions)",
        "'Never' is not allowed: one of CreateTime, LogAppendTime",
        "listeners is empty",
    ):
        assert part in str(caught.value)


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"missing\.toml"):
        settings_from(file=tmp_path / "missing.toml", environment={})
    file = tmp_path / "broken.toml"
    file.write_text("num.partitions =")
    with pytest.raises(InvalidSettings, match=r"broken\.toml is no valid TOML"):
        settings_from(file=file, environment={})


def test_the_default_log_is_no_larger_than_the_memory_that_mirrors_it() -> None:
    settings = BrokerSettings()
    config = parse_wal_uri(absolute_uri(settings.wal_uri))
    assert isinstance(config, FileWalConfig)
    assert config.capacity_bytes == DEFAULT_CAPACITY_BYTES <= storage_settings(settings).arena_bytes


@pytest.mark.parametrize("uri", ["objects+file:data/wal?capacity=8MiB", "objects+file://./data/wal?capacity=8MiB"])
def test_a_log_in_a_local_object_store_may_have_a_relative_path(uri: str) -> None:
    config = parse_wal_uri(absolute_uri(uri))
    assert isinstance(config, ObjectWalConfig)
    assert config.store_uri == (Path.cwd() / "data" / "wal").as_uri()


def test_other_uris_are_left_alone() -> None:
    uri = "s3://bucket/prefix?endpoint=http://127.0.0.1:9000&path_style=true&batch_interval_ms=20"
    config = parse_wal_uri(absolute_uri(uri))
    assert isinstance(config, ObjectWalConfig)
    opened = open_object_store(config.store_uri, rng=random.Random(0), settings=wal_store_settings(config))
    assert opened.store.uri == "s3://bucket?endpoint=http://127.0.0.1:9000"
    assert opened.paths.prefix == "prefix"


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("64KiB", 65536), ("1 GiB", 1 << 30), ("1.5k", 1536), ("100MB", 100_000_000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1 XB", "-1", "1e6"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_listeners() -> None:
    assert parse_listeners("PLAINTEXT://localhost:9092, internal://[::1]:0,ALL://:9094") == (
        Listener(name="PLAINTEXT", host="localhost", port=9092),
        Listener(name="INTERNAL", host="::1", port=0),
        Listener(name="ALL", host="", port=9094),
    )
    assert str(Listener(name="INTERNAL", host="::1", port=0)) == "INTERNAL://[::1]:0"


@pytest.mark.parametrize("text", ["localhost:9092", "A://::1:9092", "A://h:70000", "A://h", "A://h:1,a://g:2"])
def test_bad_listeners(text: str) -> None:
    with pytest.raises(InvalidSettings, match="listeners"):
        parse_listeners(text)


def test_advertised_listeners_must_make_sense() -> None:
    with pytest.raises(InvalidSettings, match="OTHER"):
        BrokerSettings(advertised_listeners="OTHER://h:1")
    with pytest.raises(InvalidSettings, match="no address that a client can connect to"):
        BrokerSettings(advertised_listeners="PLAINTEXT://0.0.0.0:1")


@pytest.mark.parametrize("memory_bytes", [64 << 20, 100_000_001, 1 << 30, 64 << 30])
def test_any_memory_bound_can_be_divided(memory_bytes: int) -> None:
    settings = BrokerSettings(memory_bytes=memory_bytes)
    parts = storage_settings(settings)  # which checks itself that the parts fit
    assert parts.arena_bytes + parts.read.memory_bytes + settings.receive_budget_bytes < memory_bytes * 13 // 16
    with pytest.raises(InvalidSettings, match="queued"):
        settings.replace(queued_max_request_bytes=memory_bytes // 4)


def test_a_misspelt_variable_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"num\.partitons: did you mean num\.partitions\?"):
        settings_from(environment={"TIDELOG_NUM_PARTITONS": "3"})


def test_names_of_a_kafka_that_are_said_otherwise_here() -> None:
    with pytest.raises(InvalidSettings, match=r"log\.retention\.hours is no setting .* say it as log\.retention\.ms"):
        settings_from(environment={}, overrides={"log.retention.hours": 1})


def test_what_was_altered_lies_over_what_was_given() -> None:
    given = BrokerSettings(num_partitions=2, message_max_bytes=1000)
    settings = given.with_dynamic({"num.partitions": "3", "log.retention.ms": "5"}, {"num.partitions": "4"})
    assert (settings.num_partitions, settings.log_retention_ms, settings.message_max_bytes) == (4, 5, 1000)
    with pytest.raises(InvalidSettings, match=r"message\.max\.bytes = '1KiB' is not allowed: a whole number"):
        given.with_dynamic({"message.max.bytes": "1KiB"})  # as in Kafka: units are for settings files


def test_every_setting_is_described_and_its_default_allowed() -> None:
    for name, setting in SETTINGS.items():
        assert setting.doc.endswith("."), name
        assert setting.section, name
        assert setting.problem(setting.default) is None, name
        assert setting.parse(setting.text(setting.default)) == setting.default, name
        if setting.kind in (Kind.INT, Kind.LONG) and name.endswith((".ms", ".bytes")):
            assert setting.unit == name.rpartition(".")[2], name


def test_an_id_is_given_only_to_brokers_of_a_cluster_that_keep_nothing_on_their_machine() -> None:
    fitting = {"controller.listeners": "CONTROLLER://:9093", "wal.uri": "s3://bucket/wal"}
    settings = settings_from(environment={}, overrides={"node.id": -1, **fitting})
    assert settings.node_id == -1
    assert settings.reserved_broker_max_id == 1_000
    with pytest.raises(InvalidSettings) as caught:
        settings_from(environment={}, overrides={"node.id": -1})
    for part in (
        "controller.listeners is empty: say where others reach this broker, or give it a node.id",
        "is for brokers that keep nothing on their machine, and wal.uri = file://",
    ):
        assert part in str(caught.value)
    with pytest.raises(InvalidSettings, match="tells no broker from others: say whose WAL is meant"):
        _ = settings.known_node_id
