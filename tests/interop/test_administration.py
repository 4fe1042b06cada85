"""What administrators do, by the admin clients of confluent-kafka (librdkafka), kafka-python and aiokafka themselves, and by
Kafka's own tools."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker.handlers import offset_for_leader_epoch
from broker.testing import TidelogServer
from tests.interop.clients import aiokafka as aiokafka_adapter
from tests.interop.clients import confluent as confluent_adapter
from tests.interop.clients import kafka_python as kafka_python_adapter
from tests.interop.clients.base import DEADLINE_S, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.driver import Java, java_command
from tests.interop.conftest import installed

pytestmark = pytest.mark.interop

ck = confluent_adapter.ck
kafka = kafka_python_adapter.kafka
aiokafka = aiokafka_adapter.aiokafka


# ---- confluent-kafka


@pytest.fixture
def librdkafka(confluent: Confluent) -> Any:
    """Its AdminClient."""
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": confluent.bootstrap})


def result(futures: dict[Any, Any]) -> Any:
    """Of the one thing that was asked for."""
    (future,) = futures.values()
    return future.result(DEADLINE_S)


def test_librdkafka_adds_partitions(librdkafka: Any, confluent: Confluent, topic: str) -> None:
    from confluent_kafka.admin import NewPartitions

    confluent.create_topic(topic, 1)
    result(librdkafka.create_partitions([NewPartitions(topic, 4)]))
    assert confluent.partitions(topic) == {0, 1, 2, 3}
    confluent.produce(topic, [Record(value=b"there")], partition=3)
    assert [each.value for each in confluent.consume(topic, count=1, partition=3)] == [b"there"]
    with pytest.raises(ck.KafkaException, match="is not more than that"):
        result(librdkafka.create_partitions([NewPartitions(topic, 4)]))


def test_librdkafka_reads_and_changes_configurations(librdkafka: Any, confluent: Confluent, topic: str) -> None:
    from confluent_kafka.admin import (
        AlterConfigOpType,
        ConfigEntry,
        ConfigResource,
        ConfigSource,
        ResourceType,
    )

    def resource(**changes: str) -> Any:
        entries = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in changes.items()
        ]
        return ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)

    confluent.create_topic(topic, 1)
    result(librdkafka.incremental_alter_configs([resource(retention_ms="60000", compression_type="gzip")]))
    found = result(librdkafka.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]))
    assert (found["retention.ms"].value, found["retention.ms"].source) == (
        "60000",
        ConfigSource.DYNAMIC_TOPIC_CONFIG.value,
    )
    assert "log.retention.ms" in found["retention.ms"].synonyms
    with pytest.deprecated_call():  # for clients of today; those of old have nothing else
        result(
            librdkafka.alter_configs([ConfigResource(ResourceType.TOPIC, topic, set_config={"retention.ms": "70000"})])
        )
    found = result(librdkafka.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]))
    assert (found["retention.ms"].value, found["compression.type"].value) == ("70000", "producer")
    with pytest.raises(ck.KafkaException, match="did you mean"):
        result(librdkafka.incremental_alter_configs([resource(retention_mss="1")]))

    broker = result(librdkafka.describe_configs([ConfigResource(ResourceType.BROKER, "1")]))
    assert broker["node.id"].value == "1"
    assert broker["node.id"].is_read_only
    assert not broker["log.retention.ms"].is_read_only
    setting = ConfigEntry("node.id", "2", incremental_operation=AlterConfigOpType.SET)
    with pytest.raises(ck.KafkaException, match="while the broker runs"):
        result(
            librdkafka.incremental_alter_configs(
                [ConfigResource(ResourceType.BROKER, "1", incremental_configs=[setting])]
            )
        )


def test_librdkafka_deletes_records(librdkafka: Any, confluent: Confluent, topic: str) -> None:
    confluent.create_topic(topic, 1)
    confluent.produce(topic, [Record(value=b"%d" % number) for number in range(10)])
    deleted = result(librdkafka.delete_records([ck.TopicPartition(topic, 0, 4)]))
    assert deleted.low_watermark == 4
    assert confluent.watermarks(topic) == (4, 10)
    assert [each.value for each in confluent.consume(topic, offset=4, count=6)] == [b"%d" % n for n in range(4, 10)]
    assert result(librdkafka.delete_records([ck.TopicPartition(topic, 0, ck.OFFSET_END)])).low_watermark == 10
    assert confluent.watermarks(topic) == (10, 10)
    with pytest.raises(ck.KafkaException, match="out of range"):
        result(librdkafka.delete_records([ck.TopicPartition(topic, 0, 11)]))


def test_librdkafka_describes_cluster_and_topics(librdkafka: Any, confluent: Confluent, topic: str) -> None:
    confluent.create_topic(topic, 2)
    cluster = librdkafka.describe_cluster(include_authorized_operations=True).result(DEADLINE_S)
    assert [node.id for node in cluster.nodes] == [1]
    assert cluster.controller.id == 1
    assert cluster.cluster_id
    assert cluster.authorized_operations
    described = result(librdkafka.describe_topics(ck.TopicCollection([topic])))
    assert [(each.id, each.leader.id) for each in described.partitions] == [(0, 1), (1, 1)]


def test_librdkafka_checks_leader_epochs(tmp_path: Path) -> None:
    """A consumer that comes with a leader epoch asks where that ended (KIP-320), and goes on."""
    server = TidelogServer(tmp_path)
    server.start()
    try:
        client = Confluent(server.bootstrap_servers)
        installed(client)
        client.create_topic("t", 1)
        client.produce("t", [Record(value=b"%d" % number) for number in range(3)])
        consumer = ck.Consumer(
            {"bootstrap.servers": server.bootstrap_servers, "group.id": "none", "enable.auto.commit": False}
        )
        try:
            consumer.assign([ck.TopicPartition("t", 0, 1, leader_epoch=0)])
            found = consumer.consume(2, timeout=DEADLINE_S)
            assert [(message.offset(), message.leader_epoch()) for message in found] == [(1, 0), (2, 0)]
            assert offset_for_leader_epoch.API_KEY in server.node.running.broker.metrics.apis
        finally:
            consumer.close()
    finally:
        server.stop()


# ---- kafka-python


@pytest.fixture
def python_admin(bootstrap: str) -> Iterator[Any]:
    """Its KafkaAdminClient."""
    installed(kafka_python_adapter.KafkaPython(bootstrap))
    with closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        yield admin


def test_kafka_python_reads_and_changes_configurations(python_admin: Any, topic: str) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    def described(**fields: Any) -> Any:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        return python_admin.describe_configs([resource], **fields)["topic"][topic]

    python_admin.create_topics([kafka.admin.NewTopic(topic, 1, 1)])
    for incremental, value in ((True, "60000"), (False, "70000")):
        change = ConfigResource(ConfigResourceType.TOPIC, topic, configs={"retention.ms": value})
        python_admin.alter_configs([change], incremental=incremental)
        assert described()["retention.ms"]["value"] == value
    assert described(config_filter="all")["segment.bytes"]["value"] == "1073741824"
    python_admin.reset_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=["retention.ms"])])
    assert "retention.ms" not in described()


def test_kafka_python_sees_what_administrators_ask_for(python_admin: Any, bootstrap: str, topic: str) -> None:
    partition = kafka.TopicPartition(topic, 0)
    python_admin.create_topics([kafka.admin.NewTopic(topic, 1, 1)])
    python_admin.create_partitions({topic: 3})
    kafka_python_adapter.KafkaPython(bootstrap).produce(topic, [Record(value=b"x")] * 5, idempotent=True)

    paged = python_admin.describe_topic_partitions([topic], response_partition_limit=2)
    assert [each["partition_index"] for each in paged["topics"][0]["partitions"]] == [0, 1]
    assert (paged["next_cursor"]["topic_name"], paged["next_cursor"]["partition_index"]) == (topic, 2)
    (producer,) = python_admin.describe_producers([partition])[partition].active_producers
    assert producer.last_sequence == 4
    assert topic in str(python_admin.describe_log_dirs({topic: [0]}))
    assert topic in python_admin.list_config_resources(["TOPIC"])["topic"]
    assert python_admin.list_transactions() == {1: []}
    assert python_admin.describe_cluster()["controller_id"] == 1


def test_kafka_python_deletes_records(python_admin: Any, bootstrap: str, topic: str) -> None:
    partition = kafka.TopicPartition(topic, 0)
    python_admin.create_topics([kafka.admin.NewTopic(topic, 1, 1)])
    client = kafka_python_adapter.KafkaPython(bootstrap)
    client.produce(topic, [Record(value=b"x")] * 5)
    deleted = python_admin.delete_records({partition: 3})
    assert deleted[partition]["low_watermark"] == 3
    assert [each.offset for each in client.consume(topic, offset=3, count=2)] == [3, 4]


# ---- aiokafka


def with_aiokafka(bootstrap: str, work: Callable[[Any], Awaitable[None]]) -> None:
    """Run something with its AIOKafkaAdminClient."""
    installed(aiokafka_adapter.Aiokafka(bootstrap))
    from aiokafka.admin import AIOKafkaAdminClient

    async def run() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            await work(admin)
        finally:
            await admin.close()

    asyncio.run(run())


def test_aiokafka_administers_a_topic(bootstrap: str, topic: str) -> None:
    client = aiokafka_adapter.Aiokafka(bootstrap)
    installed(client)
    client.create_topic(topic, 1)
    client.produce(topic, [Record(value=b"x")] * 5)

    async def work(admin: Any) -> None:
        from aiokafka.admin import NewPartitions, RecordsToDelete
        from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

        await admin.create_partitions({topic: NewPartitions(2)})
        change = ConfigResource(ConfigResourceType.TOPIC, topic, configs={"retention.ms": "60000"})
        (altered,) = await admin.alter_configs([change])
        assert altered.resources[0][0] == 0
        (described,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        assert {config[0]: config[1] for config in described.resources[0][4]}["retention.ms"] == "60000"
        partition = aiokafka.TopicPartition(topic, 0)
        assert await admin.delete_records({partition: RecordsToDelete(before_offset=2)}) == {partition: 2}
        assert (await admin.describe_cluster())["controller_id"] == 1

    with_aiokafka(bootstrap, work)
    assert client.partitions(topic) == {0, 1}
    assert len(client.consume(topic, offset=2, count=3)) == 3


# ---- Kafka's own tools


SERVER = "SERVER"
"""Where a tool wants to be told of the broker, among its arguments."""


class Tools:
    """The programs behind kafka-topics, kafka-configs and so on."""

    def __init__(self, java: list[str], bootstrap: str) -> None:
        self._java = java
        self._bootstrap = bootstrap

    def run(self, name: str, *arguments: str) -> str:
        """What it prints."""
        server = ["--bootstrap-server", self._bootstrap]
        command = [*self._java, name, *(part for each in arguments for part in (server if each == SERVER else [each]))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def configs(self, *arguments: str) -> str:
        """kafka-configs."""
        return self.run("kafka.admin.ConfigCommand", SERVER, *arguments)


@pytest.fixture
def tools(bootstrap: str) -> Tools:
    installed(Java(bootstrap))
    return Tools(java_command(), bootstrap)


def test_kafkas_own_tools_administer_topics(tools: Tools, confluent: Confluent, topic: str, tmp_path: Path) -> None:
    topics = "org.apache.kafka.tools.TopicCommand"
    tools.run(topics, SERVER, "--create", "--topic", topic, "--partitions", "2", "--config", "retention.ms=60000")
    tools.run(topics, SERVER, "--alter", "--topic", topic, "--partitions", "3")
    described = tools.run(topics, SERVER, "--describe", "--topic", topic)
    assert "PartitionCount: 3\tReplicationFactor: 1\tConfigs: retention.ms=60000" in described

    confluent.produce(topic, [Record(value=b"%d" % number) for number in range(5)])
    offsets = tmp_path / "offsets.json"
    offsets.write_text(json.dumps({"version": 1, "partitions": [{"topic": topic, "partition": 0, "offset": 2}]}))
    deleted = tools.run("org.apache.kafka.tools.DeleteRecordsCommand", SERVER, "--offset-json-file", str(offsets))
    assert f"partition: {topic}-0\tlow_watermark: 2" in deleted
    sizes = tools.run("org.apache.kafka.tools.LogDirsCommand", SERVER, "--describe", "--topic-list", topic)
    assert f'"partition":"{topic}-2","size":0' in sizes


def test_kafkas_own_tools_change_configurations(tools: Tools, confluent: Confluent, topic: str) -> None:
    confluent.create_topic(topic, 1)
    of_topic = ("--entity-type", "topics", "--entity-name", topic)
    tools.configs("--alter", *of_topic, "--add-config", "retention.ms=60000,cleanup.policy=[compact,delete]")
    described = tools.configs("--describe", *of_topic)
    assert "retention.ms=60000 sensitive=false synonyms={DYNAMIC_TOPIC_CONFIG:retention.ms=60000, " in described
    assert "cleanup.policy=compact,delete " in described
    tools.configs("--alter", *of_topic, "--delete-config", "cleanup.policy")
    assert "cleanup.policy" not in tools.configs("--describe", *of_topic)

    of_all = ("--entity-type", "brokers", "--entity-default")
    tools.configs("--alter", *of_all, "--add-config", "log.message.timestamp.after.max.ms=3600001")
    assert "log.message.timestamp.after.max.ms=3600001" in tools.configs("--describe", *of_all)
    tools.configs("--alter", *of_all, "--delete-config", "log.message.timestamp.after.max.ms")

    of_loggers = ("--entity-type", "broker-loggers", "--entity-name", "1")
    tools.configs("--alter", *of_loggers, "--add-config", "tidelog.retention=DEBUG")
    assert "tidelog.retention=DEBUG " in tools.configs("--describe", *of_loggers)


def test_kafkas_own_tools_ask_about_the_cluster(tools: Tools, confluent: Confluent, topic: str) -> None:
    confluent.create_topic(topic, 1)
    confluent.produce(topic, [Record(value=b"x")], **{"enable.idempotence": True})
    endpoints = tools.run("org.apache.kafka.tools.ClusterTool", "list-endpoints", SERVER)
    assert re.search(r"^1 +127\.0\.0\.1 +\d+ +null +unfenced +broker", endpoints, re.MULTILINE)
    transactions = "org.apache.kafka.tools.TransactionsCommand"
    producers = tools.run(transactions, SERVER, "describe-producers", "--topic", topic, "--partition", "0")
    assert re.search(r"^\d+ *\t0 *\t-1 *\t0 *\t", producers, re.MULTILINE), producers
