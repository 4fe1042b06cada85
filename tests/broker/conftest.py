"""A node per test, in the test's own event loop, so that tests can look inside."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.config import BrokerSettings
from broker.node import Node
from tests.broker.wire import Wire

StartNode = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture
def start_node(tmp_path: Path) -> StartNode:
    """Start a node on this test's directory; settings by field name. Starting again after the end is a restart."""

    seeds = itertools.count()  # ids are random: no two incarnations have the same

    @asynccontextmanager
    async def start(wrap_store: Any = None, now_ms: Any = None, **changes: Any) -> AsyncIterator[Node]:
        settings = BrokerSettings(
            **{
                "listeners": "PLAINTEXT://127.0.0.1:0",
                "wal_uri": f"{(tmp_path / 'wal').as_uri()}?capacity=16MiB",
                "object_store_uri": (tmp_path / "objects").as_uri(),
                "memory_bytes": 128 << 20,
                "upload_size_bytes": 1 << 20,
                "shutdown_timeout_ms": 3_000,
                **changes,
            }
        )
        options = {"wrap_store": wrap_store, "now_ms": now_ms}
        given = {name: value for name, value in options.items() if value is not None}
        async with Node(settings, rng=random.Random(next(seeds)), **given) as node:
            yield node

    return start


@pytest.fixture
async def node(start_node: StartNode) -> AsyncIterator[Node]:
    """A running node with small settings."""
    async with start_node() as running:
        yield running


@pytest.fixture
async def wire(node: Node) -> AsyncIterator[Wire]:
    """A connection to `node`."""
    async with await Wire.connect(node.bootstrap_servers) as connected:
        yield connected
