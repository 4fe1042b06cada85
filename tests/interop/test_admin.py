"""Topics come and go as their administrators say."""

from __future__ import annotations

import pytest

from tests.interop.clients.base import Client, Record

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
