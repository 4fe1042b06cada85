"""What all tests share: S3 servers, no test that fails for being slow, and how tests are spread over several workers.

Always true:
- A test's event loop is asyncio's own, unless it says otherwise.
- With workers (`make test`, pytest-xdist), tests of one file run in one of them, in order. Those whose brokers, in processes of their own, keep time with
  each other run in one, one after the other, and first: two such clusters at once would take each other's processor and be taken for dead.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.stores.fixtures import s3_server, s3_server_named

__all__ = ["s3_server", "s3_server_named"]

settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_HERE = Path(__file__).parent
_CLUSTERS = ("cluster", "faults", "crash")
"""Directories whose tests run several brokers, or kill them while they work."""


def _group(item: pytest.Item) -> str:
    path = item.path.relative_to(_HERE)
    return "clusters" if path.parts[0] in _CLUSTERS else str(path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell pytest-xdist what belongs together."""
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: _group(item) != "clusters")
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
