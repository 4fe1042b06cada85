"""Nodes whose id is given to them when they start, in one process: what becomes of it when they stop, fail, or share it with another by mistake."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.config import InvalidSettings
from broker.node import Node
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, batch
from tests.crash.process import free_port

TIMEOUT_S = 60.0


@pytest.fixture
def start(start_node: StartNode, tmp_path: Path) -> Any:
    """Start one of several nodes, which keep nothing but in one directory for all, as if that were a bucket."""

    @asynccontextmanager
    async def started(node_id: int = -1, **changes: Any) -> AsyncIterator[Node]:
        settings = {
            "node_id": node_id,
            "controller_listeners": f"CONTROLLER://127.0.0.1:{free_port()}",
            "wal_uri": f"objects+{(tmp_path / 'wals').as_uri()}?batch_interval_ms=1&capacity=16MiB",
            **changes,
        }
        async with start_node(**settings) as node:
            yield node

    return started


async def test_who_comes_next_has_the_id_of_who_stopped_and_all_that_it_had(start: Any) -> None:
    async with start() as node:
        assert node.node_id == 1001
        assert node.settings.node_id == -1
        async with await Wire.connect(node.bootstrap_servers) as wire:
            await wire.create_topic("t", 1)
            assert (await wire.produce("t", batch(b"x"))).error_code == 0
        wal_id = node.running.wal_id
    async with start() as node:
        assert node.node_id == 1001
        assert node.running.wal_id == wal_id
        async with await Wire.connect(node.bootstrap_servers) as wire:
            assert await wire.fetch_all("t") == [b"x"]


async def test_a_start_that_fails_leaves_its_id_at_once(start: Any) -> None:
    """Else each try of a broker that cannot start would take another, until the first are taken for dead."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for _ in range(3):
            with pytest.raises(InvalidSettings, match="cannot listen on"):
                async with start(listeners=f"PLAINTEXT://127.0.0.1:{taken.getsockname()[1]}"):
                    pass
    async with start() as node:
        assert node.node_id == 1001


async def test_whose_id_is_taken_by_a_node_of_an_operator_begins_anew_with_another(start: Any) -> None:
    """A mistake: `reserved.broker.max.id` keeps them apart. The one that has no other id gets it."""
    async with start() as node:
        assert node.node_id == 1001
        async with start(1001) as namesake:
            async with asyncio.timeout(TIMEOUT_S):
                await node.wait_failed()
            assert await node.is_taken_for_dead(), "so its process starts again, and does not end"
            async with start() as again:
                assert again.node_id == 1002
                assert namesake.running.broker.controller.image.node(1001) is not None
