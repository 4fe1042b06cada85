"""Topics get more partitions."""

from __future__ import annotations

from typing import Any

import pytest

from broker.node import Node
from protocol.messages.create_partitions import (
    CreatePartitionsAssignment,
    CreatePartitionsRequest,
    CreatePartitionsTopic,
)
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch


async def create(wire: Wire, *topics: CreatePartitionsTopic, version: int = 3, **fields: Any) -> list[int]:
    request = CreatePartitionsRequest(topics=topics, timeout_ms=10_000, **fields)
    return [result.error_code for result in (await wire.call("CreatePartitions", version, request)).results]


def more(name: str, count: int, **fields: Any) -> CreatePartitionsTopic:
    return CreatePartitionsTopic(name=name, count=count, **{"assignments": None, **fields})


@pytest.mark.parametrize("version", [0, 1, 2, 3])
async def test_new_partitions_are_open_when_the_answer_comes(wire: Wire, version: int) -> None:
    await wire.create_topic("t")
    await wire.produce("t", batch(b"old"))
    assert await create(wire, more("t", 3), version=version) == [0]
    assert (await wire.produce("t", batch(b"new"), partition=2)).base_offset == 0
    assert await wire.fetch_values("t") == [b"old"]


async def test_they_are_there_after_a_restart(start_node: StartNode) -> None:
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        await wire.create_topic("t", partitions=2)
        assert await create(wire, more("t", 4)) == [0]
        await wire.produce("t", batch(b"there"), partition=3)
    async with start_node() as node, await Wire.connect(node.bootstrap_servers) as wire:
        assert await wire.fetch_all("t", partition=3) == [b"there"]
        assert (await wire.produce("t", batch(b"more"), partition=3)).base_offset == 1


async def test_what_cannot_be_is_refused(wire: Wire, node: Node) -> None:
    await wire.create_topic("t", partitions=2)
    await wire.create_topic("u")
    assignment = CreatePartitionsAssignment(broker_ids=[1])
    assert await create(wire, more("missing", 2), more("t", 2)) == [3, 37]
    assert await create(wire, more("t", 1), more("u", 3)) == [37, 0]
    assert await create(wire, more("t", 3), more("t", 4)) == [42]
    assert await create(wire, more("t", 4, assignments=[assignment])) == [39]
    assert await create(wire, more("t", 200_000)) == [44]
    assert await create(wire, more("t", 3), validate_only=True) == [0]
    assert len(node.running.broker.topics.by_name["t"].partitions) == 2
    assert await create(wire, more("t", 4, assignments=[assignment] * 2)) == [0]


async def test_the_cluster_has_a_bound(start_node: StartNode) -> None:
    async with (
        start_node(max_partitions_per_broker=3) as node,
        await Wire.connect(node.bootstrap_servers) as wire,
    ):
        await wire.create_topic("t")
        assert await create(wire, more("t", 4)) == [37]
        assert await create(wire, more("t", 3)) == [0]
