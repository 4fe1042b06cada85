"""Three brokers, clients in three languages, and faults of processes and network: nothing acknowledged is lost, no client is told of an error."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.runs import faulty_run
from tests.faults.schedule import NETWORK_FAULTS, PROCESS_FAULTS, Fault, steps
from tests.interop.clients.driver import FranzGo, Java
from tests.interop.conftest import installed
from tests.stores.s3_server import S3Server

SECONDS = float(os.environ.get("FAULTS_SECONDS", "25"))
SEED = int(os.environ.get("FAULTS_SEED", "1"))


@pytest.mark.crash
@pytest.mark.slow
def test_nothing_is_lost_and_no_error_surfaces(s3_server_named: Callable[[str], S3Server], tmp_path: Path) -> None:
    for client in (Java(""), FranzGo("")):
        installed(client)
    server = s3_server_named("minio")
    said: list[str] = []
    try:
        report = faulty_run(tmp_path, server, seed=SEED, seconds=SECONDS, say=said.append)
    except BaseException:
        print("\n".join(said))
        print(f"again: make faults ARGS='--seed {SEED} --seconds {SECONDS:g}'")
        raise
    print(report)
    assert report.faults.keys() & set(PROCESS_FAULTS)
    assert report.faults.keys() & set(NETWORK_FAULTS)


def test_a_seed_is_a_schedule() -> None:
    def drawn(seed: int) -> list[str]:
        return [str(step) for step in itertools.islice(steps(seed, NETWORK_FAULTS, (1, 2, 3)), 50)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_every_fault_comes_before_any_comes_again() -> None:
    for faults in (PROCESS_FAULTS, NETWORK_FAULTS):
        first = itertools.islice(steps(7, faults, (1, 2, 3)), len(faults))
        assert {step.fault for step in first} == set(faults)
    assert set(PROCESS_FAULTS) | set(NETWORK_FAULTS) == set(Fault)
