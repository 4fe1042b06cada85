"""Three brokers for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.brokers import Brokers, running_brokers


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Brokers]:
    """Three brokers that serve, by node id; their objects are in `tmp_path / "objects"`."""
    with running_brokers(tmp_path) as found:
        yield found
