"""What tests of readers share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.s3stream.reading import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A bucket and a reader of it, which must have let go of all memory in the end."""
    made = World()
    yield made
    await made.reader.close()
    assert made.reader.cache.used_bytes == 0
