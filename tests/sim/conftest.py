"""Worker processes, which simulations run in."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.pool import Pool

import pytest

_JOBS = 2


@pytest.fixture(scope="module")
def workers() -> Iterator[Pool]:
    """Processes that run seeds side by side."""
    with multiprocessing.get_context("spawn").Pool(_JOBS) as pool:
        yield pool
