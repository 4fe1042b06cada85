"""Topics come and go as their administrators say."""

from __future__ import annotations

import pytest

from tests.interop.clients.base import Client, Record
from tests.interop.clients.confluent import Confluent
from tests.interop.clients.driver import Driver
from tests.interop.conftest import CLIENTS, installed

pytestmark = pytest.mark.interop


def test_create_and_describe(admin_client: Client, topic: str) -> None:
    assert admin_client.partitions(topic) is None
    admin_client.create_topic(topic, 12)
    assert admin_client.partitions(topic) == set(range(12))


def test_a_topic_that_exists_is_not_created_again(admin_client: Client, topic: str) -> None:
    admin_client.create_topic(topic, 1)
    with pytest.raises(Exception, match=r"(?i)exists"):
        admin_client.create_topic(topic, 1)


def test_an_unknown_configuration_is_refused(admin_client: Client, topic: str) -> None:
    with pytest.raises(Exception, match=r"(?i)config|40"):
        admin_client.create_topic(topic, 1, {"no.such.config": "1"})
    assert admin_client.partitions(topic) is None


def test_a_topic_deleted_and_created_again_is_empty(admin_client: Client, topic: str) -> None:
    admin_client.create_topic(topic, 1)
    admin_client.produce(topic, [Record(key=b"k", value=b"old")] * 10)
    admin_client.delete_topic(topic)
    assert admin_client.partitions(topic) is None
    admin_client.create_topic(topic, 1)
    admin_client.produce(topic, [Record(key=b"k", value=b"new")])
    [found] = admin_client.consume(topic, count=1)
    assert (found.offset, found.value) == (0, b"new")


def test_deleting_an_unknown_topic_is_refused(admin_client: Client, topic: str) -> None:
    with pytest.raises(Exception, match=r"(?i)unknown|does not (exist|host)"):
        admin_client.delete_topic(topic)


def test_producing_creates_the_topic(client: Client, topic: str) -> None:
    assert client.partitions(topic) is None
    client.produce(topic, [Record(key=b"k", value=b"v")])
    assert client.partitions(topic) == {0}


@pytest.mark.parametrize("name", ["java", "franz_go", "sarama", "kafkajs", "platformatic"])
def test_administrators_in_other_languages(name: str, bootstrap: str, confluent: Confluent, topic: str) -> None:
    """Partitions, configurations, records and groups; those in Python have `test_administration.py`."""
    client = installed(CLIENTS[name](bootstrap))
    assert isinstance(client, Driver)
    client.create_topic(topic, 1, {"retention.ms": "7200000"})
    assert client.call("config", topic=topic, name="retention.ms") == "7200000"
    client.call("set_config", topic=topic, name="retention.ms", value="3600000")
    assert client.call("config", topic=topic, name="retention.ms") == "3600000"

    client.call("create_partitions", topic=topic, partitions=3)
    assert client.partitions(topic) == {0, 1, 2}

    confluent.produce(topic, [Record(value=b"v")] * 10)
    client.call("delete_records", topic=topic, partition=0, offset=4)
    assert confluent.watermarks(topic) == (4, 10)

    member = confluent.join(topic, topic, assignor="range")
    seen = 0
    while seen < 6:
        seen += len(member.progress().records)
    member.leave()
    assert topic in client.call("groups")
    client.call("delete_group", group=topic)
    assert topic not in client.call("groups")
