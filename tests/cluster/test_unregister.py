"""Kafka's own tool has a broker forgotten that is gone."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.cluster.brokers import TIMEOUT_S, all_of, create_topic, running_brokers
from tests.interop.clients.driver import Java, java_command
from tests.interop.conftest import installed

pytestmark = pytest.mark.crash


def test_kafkas_own_tool_unregisters_a_broker(tmp_path: Path) -> None:
    with running_brokers(tmp_path, 2) as brokers:
        installed(Java(all_of(brokers)))
        servers = brokers[1].bootstrap_servers
        create_topic(brokers, "t", 4)
        admin = AdminClient({"bootstrap.servers": servers})

        def unregister(node_id: int) -> tuple[int, str]:
            command = [*java_command(), "org.apache.kafka.tools.ClusterTool", "unregister"]
            command += ["--bootstrap-server", servers, "--id", str(node_id)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            return done.returncode, done.stdout + done.stderr

        deadline = time.monotonic() + TIMEOUT_S
        while "is the one that was asked" in (outcome := unregister(2))[1]:  # the tool asks any of them
            assert time.monotonic() < deadline, outcome[1]
        status, told = outcome
        assert status != 0
        assert "runs, as far as the cluster knows" in told
        brokers[2].stop()
        deadline = time.monotonic() + TIMEOUT_S
        while (outcome := unregister(2))[0] != 0:
            assert time.monotonic() < deadline, outcome[1]
        assert "no longer registered" in outcome[1]
        assert list(admin.list_topics(timeout=TIMEOUT_S).brokers) == [1]
