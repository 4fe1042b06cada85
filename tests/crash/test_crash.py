"""A real broker, killed by SIGKILL at named points and at random under idempotent load, keeps every promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.places import InBucket, OnDisk, Place
from tests.crash.runs import AT_RANDOM, OBJECTS_PER_RUN, crash_runs
from tests.stores.s3_server import S3Server
from wal import crashpoint

pytestmark = [pytest.mark.crash, pytest.mark.slow]

KINDS = (*crashpoint.POINTS, AT_RANDOM)
RUNS = 25


def crash(directory: Path, place: Place, runs: int) -> None:
    found = list(crash_runs(directory, place, runs=runs, seed=1))
    assert len(found) == runs
    assert {run.kind for run in found} == set(KINDS[:runs])
    for run in found:
        assert run.objects_before_kill >= OBJECTS_PER_RUN
        assert run.ring_laps_before_kill > 1
        assert run.acknowledged_records > 0


def test_every_acknowledged_record_survives_every_crash(tmp_path: Path) -> None:
    crash(tmp_path, OnDisk(tmp_path), RUNS)


@pytest.mark.parametrize(("store", "wal", "runs"), [("minio", "file", 3), ("minio", "s3", 5), ("seaweedfs", "s3", 3)])
def test_every_acknowledged_record_survives_every_crash_on_a_real_store(
    store: str, wal: str, runs: int, s3_server_named: Callable[[str], S3Server], tmp_path: Path
) -> None:
    crash(tmp_path, InBucket(s3_server_named(store), tmp_path, wal=wal), runs)
