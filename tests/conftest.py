"""What all tests share: S3 servers, no test that fails for being slow, and how tests are spread over several workers.

Always true:
- A test's event loop is asyncio's own, unless it says otherwise.
- With workers (`make test`, pytest-xdist), tests of one file run in one of them, in order. Those whose brokers, in processes of their own, keep time with
  each other run in one, one after the other, and first: two such clusters at once would take each other's processor and be taken for dead.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.stores.fixtures import s3_server, s3_server_named

__all__ = ["s3_server", "s3_server_named"]

settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_CLUSTERS = ("cluster", "faults", "crash")
"""Directories whose tests run several brokers, or kill them while they work."""


class _Lanes(LoadScopeScheduling):
    """Sends what is of one lane to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return _lane(nodeid.partition("::")[0])


def _lane(path: str) -> str:
    """Which tests go together, by the path of their file below the project's directory."""
    _, directory, *_ = path.split("/")
    return "clusters" if directory in _CLUSTERS else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Lanes:
    """Have pytest-xdist spread tests as above."""
    return _Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the long lane first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _lane(item.nodeid.partition("::")[0]) != "clusters")
