"""FindCoordinator: where a group is coordinated, and what has no coordinator."""

from __future__ import annotations

import pytest

from broker.groups.coordinator import OFFSETS_TOPIC, partition_of
from broker.node import Node
from protocol.messages.find_coordinator import FindCoordinatorRequest
from protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from tests.broker.wire import Wire, batch


@pytest.mark.parametrize("version", range(7))
async def test_the_first_question_creates_the_topic_and_names_the_leader(node: Node, wire: Wire, version: int) -> None:
    request = FindCoordinatorRequest(key="group", coordinator_keys=["group"])
    response = await wire.call("FindCoordinator", version, request)
    answer = response if version < 4 else response.coordinators[0]
    assert answer.error_code == 0
    assert answer.node_id == 1
    assert f"{answer.host}:{answer.port}" == node.bootstrap_servers
    metadata = await wire.call("Metadata", 12, MetadataRequest(topics=[MetadataRequestTopic(name=OFFSETS_TOPIC)]))
    assert metadata.topics[0].is_internal
    assert len(metadata.topics[0].partitions) == 50


async def test_many_keys_are_answered_each_for_itself(wire: Wire) -> None:
    request = FindCoordinatorRequest(coordinator_keys=["a", "b"])
    response = await wire.call("FindCoordinator", 6, request)
    assert [(found.key, found.error_code) for found in response.coordinators] == [("a", 0), ("b", 0)]


@pytest.mark.parametrize("version", range(1, 7))
async def test_a_transactional_id_is_refused_for_good(wire: Wire, version: int) -> None:
    request = FindCoordinatorRequest(key="tx", key_type=1, coordinator_keys=["tx"])
    response = await wire.call("FindCoordinator", version, request)
    answer = response if version < 4 else response.coordinators[0]
    assert answer.error_code == 53  # TRANSACTIONAL_ID_AUTHORIZATION_FAILED: final for every client
    assert (answer.node_id, answer.port) == (-1, -1)
    assert "not served yet" in answer.error_message


async def test_an_unknown_type_of_key_is_refused(wire: Wire) -> None:
    response = await wire.call("FindCoordinator", 6, FindCoordinatorRequest(key_type=2, coordinator_keys=["share"]))
    assert response.coordinators[0].error_code == 42  # INVALID_REQUEST


async def test_asking_for_its_metadata_does_not_create_it(wire: Wire) -> None:
    wanted = [MetadataRequestTopic(name=OFFSETS_TOPIC), MetadataRequestTopic(name="__transaction_state")]
    response = await wire.call("Metadata", 12, MetadataRequest(topics=wanted, allow_auto_topic_creation=True))
    assert [topic.error_code for topic in response.topics] == [3, 3]  # UNKNOWN_TOPIC_OR_PARTITION


async def test_clients_may_not_produce_to_it(wire: Wire) -> None:
    await wire.call("FindCoordinator", 6, FindCoordinatorRequest(coordinator_keys=["group"]))
    answer = await wire.produce(OFFSETS_TOPIC, batch(b"value", key=b"key"))
    assert answer.error_code == 17  # INVALID_TOPIC_EXCEPTION


@pytest.mark.parametrize(
    ("group_id", "partition"),
    # Java: Math.abs(groupId.hashCode()) % 50
    [("", 0), ("a", 47), ("group", 47), ("my-consumer-group", 13), ("polygenelubricants", 0), ("gruppe-ü-😀", 16)],
)
def test_a_group_lives_where_java_says(group_id: str, partition: int) -> None:
    assert partition_of(group_id, 50) == partition
