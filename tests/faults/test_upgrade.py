"""All brokers are upgraded one after the other, from a version without leases and failover, and no client notices.

There is no release yet to upgrade from, so the old version is a commit of this repository's history: the last one that writes metadata version 3. Where
the history is not here (a shallow clone, an archive), there is nothing to upgrade from, and the test is skipped; with CI=true it fails, since there the clone is whole.
"""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from controller.records import METADATA_VERSION
from tests.checker.history import History, check
from tests.crash.load import create_topic, read_topic
from tests.faults.cluster import PREFIX, running_cluster
from tests.faults.load import Load, Watermarks, all_loads, loading
from tests.faults.metadata import read_log
from tests.interop.clients.driver import FranzGo, Java
from tests.interop.conftest import installed
from tests.stores.s3_server import S3Server

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
FROM = os.environ.get("FAULTS_UPGRADE_FROM", "fc0c32ec8b1671628f288716ca236fb84bc3adcd")
PACKAGES = ("broker", "controller", "protocol", "s3stream", "wal")
PARTITIONS = 6
TIMEOUT_S = 60.0


@pytest.fixture
def old_code(tmp_path: Path) -> Path:
    """The packages as of a commit; or a skipped test, with CI=true a failed one."""
    archive = subprocess.run(
        ["git", "archive", FROM, *PACKAGES], cwd=ROOT, capture_output=True, check=False, timeout=TIMEOUT_S
    )
    if archive.returncode:
        reason = f"commit {FROM[:7]} cannot be had from the history here ({archive.stderr.decode().strip()}); in a shallow clone, git fetch --unshallow"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    code = tmp_path / "old"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(code, filter="data")
    return code


async def going_on(loads: Sequence[Load]) -> None:
    """Return when every producer was acknowledged something by every partition, from now on."""
    began_s = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        while not all(load.acknowledged and load.goes_on_since(began_s) for load in loads):
            await asyncio.sleep(0.05)


async def test_no_client_notices_an_upgrade(
    old_code: Path, s3_server_named: Callable[[str], S3Server], tmp_path: Path
) -> None:
    for client in (Java(""), FranzGo("")):
        installed(client)
    server = s3_server_named("minio")
    history = History()
    with running_cluster(tmp_path, server, wals_in_bucket=(2,), code=old_code) as cluster:
        create_topic(cluster.bootstrap_servers, "t", PARTITIONS)
        loads = all_loads(cluster.bootstrap_servers, "t", PARTITIONS, history, per_s=50, log_directory=tmp_path)
        watermarks = Watermarks(cluster.bootstrap_servers, "t", PARTITIONS)
        with loading(loads):
            watermarks.start()
            try:
                for node in cluster.nodes.values():
                    await going_on(loads)
                    await asyncio.to_thread(node.broker.stop)
                    node.broker.code = None
                    node.broker.start()
                    await asyncio.to_thread(node.broker.wait_ready)
                async with asyncio.timeout(TIMEOUT_S):
                    while versions(server, cluster.bucket)[-1] < METADATA_VERSION:
                        await asyncio.sleep(0.5)
                await going_on(loads)
            finally:
                watermarks.stop()
        print(f"metadata versions {sorted(set(versions(server, cluster.bucket)))}")
        assert [f"{load.name}: {error}" for load in loads for error in load.errors] + watermarks.problems == []
        check(history, await asyncio.to_thread(read_topic, cluster.bootstrap_servers, "t", PARTITIONS))
        assert history.acknowledged_count == history.sent_count > 0
        for node in cluster.nodes.values():
            assert not node.broker.has_ended(), node.broker.log_tail()


def versions(server: S3Server, bucket: str) -> list[int]:
    """Of each entry of the metadata log, in its order."""
    return [entry.metadata_version for entry in read_log(server, bucket, PREFIX)]
