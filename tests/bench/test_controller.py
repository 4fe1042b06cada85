"""The benchmark of metadata on a small cluster: it comes to its end, and what it starts anew holds the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench import controller


def test_it_goes_through_all_that_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(controller._scale(tmp_path, 20, 2000, 5))
    controller._start_alone(tmp_path)
    told = capsys.readouterr().out
    for name in ("take office with a large state", "records in a second, 10 an entry", "its size", "GETs"):
        assert name in told
