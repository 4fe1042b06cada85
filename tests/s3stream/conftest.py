"""What tests of readers, and of the storage engine, share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.s3stream.durable import Durable, RealStore
from tests.s3stream.reading import World
from tests.stores.s3_server import S3Server


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A bucket and a reader of it, which must have let go of all memory in the end."""
    made = World()
    yield made
    await made.reader.close()
    assert made.reader.cache.used_bytes == 0


@pytest.fixture
async def durable(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server_named: Callable[[str], S3Server]
) -> AsyncIterator[Durable]:
    """With its store in memory, but for tests that are held `everywhere`."""
    made = Durable(tmp_path / "wal")
    if (name := getattr(request, "param", "memory")) != "memory":
        server = s3_server_named(name)
        made.store = RealStore(server.open(server.new_bucket()))
    yield made
    await made.store.close()
