"""Nodes that are not what they should be: refused or survived, with a message that says what to do."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.node import Node
from controller.config import ControllerSettings
from controller.entry import EntryHeader
from controller.errors import NodeRefused
from controller.log import MetadataLog
from controller.nodes import DescribeNode
from controller.records import METADATA_VERSION, encode_records
from controller.tables import NodeStatus
from protocol.errors import ErrorCode
from protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from protocol.messages.metadata import MetadataRequest
from protocol.messages.unregister_broker import UnregisterBrokerRequest, UnregisterBrokerResponse
from s3stream.open import open_object_store
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch, eventually
from tests.crash.process import free_port
from wal.errors import WalLocked, WalMismatch

TIMEOUT_S = 60.0


@pytest.fixture
def start(start_node: StartNode, tmp_path: Path) -> Any:
    """Start one of several nodes, each with a WAL of its own."""

    @asynccontextmanager
    async def started(node_id: int, **changes: Any) -> AsyncIterator[Node]:
        settings = {
            "node_id": node_id,
            "controller_listeners": f"CONTROLLER://127.0.0.1:{free_port()}",
            "wal_uri": f"{(tmp_path / f'wal{node_id}').as_uri()}?capacity=16MiB",
            **changes,
        }
        async with start_node(**settings) as node:
            yield node

    return started


async def created(node: Node, topic: str, partitions: int = 1) -> None:
    async with await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic(topic, partitions)


async def unregistered(node: Node, node_id: int) -> UnregisterBrokerResponse:
    async with await Wire.connect(node.bootstrap_servers) as wire:
        response: UnregisterBrokerResponse = await wire.call(
            "UnregisterBroker", 0, UnregisterBrokerRequest(broker_id=node_id)
        )
        return response


async def taking_leases(node: Node, node_id: int) -> None:
    """Return when a node is one of which the cluster can tell whether it runs."""
    controller = node.running.broker.controller
    known = controller.image.node(node_id)
    assert known is not None
    if not known.lease_ms:
        described = DescribeNode(
            node_id=node_id, node_epoch=known.node_epoch, lease_ms=3_000, controller_address=known.controller_address
        )
        await controller.submit(described)


async def told_of(node: Node) -> set[int]:
    """Brokers that clients are told of."""
    async with await Wire.connect(node.bootstrap_servers) as wire:
        response = await wire.call("Metadata", 12, MetadataRequest(topics=[]))
        return {broker.node_id for broker in response.brokers}


# ---- one id, two processes


async def test_a_second_process_with_the_same_wal_is_refused(start: Any) -> None:
    async with start(1) as node:
        await created(node, "t")
        with pytest.raises(WalLocked, match="another process"):
            async with start(1):
                pass
        await created(node, "u")


async def test_a_second_process_with_another_wal_is_refused_while_the_first_has_partitions(
    start: Any, tmp_path: Path
) -> None:
    async with start(1) as node:
        await created(node, "t")
        await eventually(lambda: node.running.broker.controller.image.streams_led_by(1), "the partition is open")
        with pytest.raises(
            NodeRefused,
            match=r"but 1 partitions are open on its former WAL .* give this one a node.id of its own. If not, start",
        ):
            async with start(1, wal_uri=f"{(tmp_path / 'elsewhere').as_uri()}?capacity=16MiB"):
                pass
        async with await Wire.connect(node.bootstrap_servers) as wire:
            assert (await wire.produce("t", batch(b"x"))).error_code == ErrorCode.NONE, "the first one serves on"


async def test_a_first_process_without_partitions_stops_when_a_second_one_has_its_id(
    start: Any, tmp_path: Path
) -> None:
    async with start(1) as first, start(1, wal_uri=f"{(tmp_path / 'elsewhere').as_uri()}?capacity=16MiB") as second:
        async with asyncio.timeout(TIMEOUT_S):
            error = await first.wait_failed()
        assert "If two processes run as this node, stop one of them" in str(error)
        await created(second, "t")


# ---- a WAL that is another's


async def test_a_copy_of_another_nodes_wal_is_refused(start: Any, tmp_path: Path) -> None:
    async with start(1) as node:
        await created(node, "t")
    shutil.copytree(tmp_path / "wal1", tmp_path / "wal2")
    with pytest.raises(WalMismatch, match="belongs to node 1, this is node 2"):
        async with start(2):
            pass


# ---- a node that is gone


async def test_a_node_that_is_gone_is_forgotten_and_no_other(start: Any) -> None:
    async with start(1) as node:
        async with start(2) as other:
            await eventually(lambda: set(node.running.broker.controller.image.nodes) == {1, 2}, "both are known")
            await taking_leases(node, 2)
            response = await unregistered(node, 2)
            assert response.error_code == ErrorCode.INVALID_REQUEST
            assert "runs, as far as the cluster knows: stop it first" in str(response.error_message)
            response = await unregistered(node, 1)
            assert response.error_code == ErrorCode.INVALID_REQUEST
            assert "is the one that was asked" in str(response.error_message)
            response = await unregistered(other, 7)
            assert response.error_code == ErrorCode.BROKER_ID_NOT_REGISTERED
        controller, image = node.running.broker.controller, node.running.broker.controller.image
        former = image.node(2)
        assert former is not None
        while image.node_status(2) is not NodeStatus.DEAD:  # it said so itself, or the leader finds out
            await controller.suspect_node(2, former.node_epoch)
            await controller.declare_dead(2, former.node_epoch)
        assert (await unregistered(node, 2)).error_code == ErrorCode.NONE
        assert await told_of(node) == {1}
        assert (await unregistered(node, 2)).error_code == ErrorCode.BROKER_ID_NOT_REGISTERED
        async with start(2):  # with its former WAL
            await eventually(lambda: set(image.nodes) == {1, 2}, "it is known again")


# ---- a newer version


async def test_a_node_that_reads_of_a_newer_metadata_version_stops_and_says_so(
    start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(1) as node:
        await created(node, "t")
        opened = open_object_store((tmp_path / "objects").as_uri(), rng=random.Random(1))
        log = MetadataLog(store=opened.store, paths=opened.paths, settings=ControllerSettings(), rng=random.Random(1))
        header = EntryHeader(
            index=node.running.broker.controller.applied_index + 1,
            controller_epoch=node.running.broker.controller.image.controller_epoch,
            nonce=bytes(16),
            metadata_version=METADATA_VERSION + 1,
        )
        assert await log.append(header, encode_records([]))
        async with await Wire.connect(node.bootstrap_servers) as wire:
            wire.send(
                "CreateTopics",
                7,
                CreateTopicsRequest(topics=[CreatableTopic(name="u", num_partitions=1, replication_factor=1)]),
            )
            async with asyncio.timeout(TIMEOUT_S):
                error = await node.wait_failed()
        assert (
            f"metadata version {METADATA_VERSION + 1}, newer than this node's {METADATA_VERSION}: upgrade this node"
            in str(error)
        )
        await opened.store.close()


# ---- addresses


async def test_a_node_whose_controller_address_leads_nowhere_is_replaced_in_office(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    listeners = f"PLAINTEXT://127.0.0.1:{free_port()}"
    async with (
        start(1, listeners=listeners, advertised_listeners=f"{listeners},CONTROLLER://{nowhere}") as wrong,
        start(2) as right,
    ):
        async with asyncio.timeout(TIMEOUT_S):
            await right.running.broker.controller.until_in_office()
        assert f"the leader does not answer, this node takes over: {nowhere}" in caplog.text
        await created(wrong, "by-the-wrong-one", 2)
        await created(right, "by-the-right-one", 2)
        image = right.running.broker.controller.image
        await eventually(
            lambda: {1, 2} <= {stream.node_id for stream in image.state.tables.streams.values()}, "both lead"
        )


async def test_two_nodes_that_tell_clients_one_address_are_named(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    listeners = f"PLAINTEXT://127.0.0.1:{free_port()}"
    async with start(1, listeners=listeners), start(2, advertised_listeners=listeners):
        assert f"clients are told one address for two nodes: {listeners} is that of node 1 as well" in caplog.text
