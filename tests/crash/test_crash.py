"""A real broker, killed by SIGKILL at named points and at random under idempotent load, keeps every promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.runs import AT_RANDOM, OBJECTS_PER_RUN, crash_runs
from wal import crashpoint

RUNS = 25


@pytest.mark.crash
@pytest.mark.slow
def test_every_acknowledged_record_survives_every_crash(tmp_path: Path) -> None:
    runs = list(crash_runs(tmp_path, runs=RUNS, seed=1))
    assert len(runs) == RUNS
    assert {run.kind for run in runs} == {*crashpoint.POINTS, AT_RANDOM}
    for run in runs:
        assert run.objects_before_kill >= OBJECTS_PER_RUN
        assert run.ring_laps_before_kill > 1
        assert run.acknowledged_records > 0
