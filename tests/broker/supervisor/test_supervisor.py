"""`--nodes N` as its user meets it: real processes, killed, stopped and started again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.cluster.brokers import values_in

pytestmark = pytest.mark.crash

WITHIN_S = 90.0
SMALL = ("--set", "memory.bytes=384MiB", "--set", "group.initial.rebalance.delay.ms=0")


@dataclass(frozen=True)
class Row:
    """A node in the table that is printed."""

    node_id: int
    pid: int
    listener: str
    wal: str

    @property
    def address(self) -> str:
        return self.listener.rpartition("//")[2]


class Supervised:
    """The command, and what it prints."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._log_path = directory / "stderr"
        self._log = self._log_path.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "broker", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """The table."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.match(r"  (\d+) +(\d+) +(\S+) +\S+ +\S+ +(\S+)$", line)
            if found is not None:
                self._rows.append(Row(int(found[1]), int(found[2]), found[3], found[4]))
            if line.startswith("  kcat -b") and line.rstrip().endswith("-L"):
                return self._rows
        raise AssertionError(f"it ended with {self.process.wait()}:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def end(self) -> None:
        """Leave no process behind, whatever happens."""
        for pid in (self.process.pid, *(row.pid for row in self._rows)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Starts the command."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Supervised:
            supervised = Supervised(tmp_path, *arguments)
            stack.callback(supervised.end)
            return supervised

        yield start


def waited_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def sent(servers: str, first: int, last: int) -> None:
    """Send numbers to the six partitions of `t`; all are acknowledged."""
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
    for number in range(first, last):
        producer.produce("t", b"%d" % number, partition=number % 6, on_delivery=delivered)
    assert producer.flush(WITHIN_S) == 0
    assert failed == []


def leaders(servers: str) -> list[int]:
    """Of the partitions of `t`, as clients are told; each as often as it leads one."""
    told = AdminClient({"bootstrap.servers": servers}).list_topics("t", timeout=WITHIN_S)
    return sorted(partition.leader for partition in told.topics["t"].partitions.values())


def expected(last: int) -> dict[int, list[int]]:
    return {partition: list(range(partition, last, 6)) for partition in range(6)}


def test_nodes_serve_are_started_again_and_stop_together(started: Callable[..., Supervised], tmp_path: Path) -> None:
    command = ("dev", "--data", str(tmp_path / "data"), "--port", "0", "--nodes", "3", *SMALL)
    running = started(*command)
    rows = running.rows()
    assert [row.node_id for row in rows] == [1, 2, 3]
    assert rows[1].wal == (tmp_path / "data" / "wal" / "node-2").as_uri()
    servers = ",".join(row.address for row in rows)
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic("t", num_partitions=6)])["t"].result(WITHIN_S)
    told = admin.list_topics("t", timeout=WITHIN_S)
    assert sorted(told.brokers) == [1, 2, 3]
    assert sorted(partition.leader for partition in told.topics["t"].partitions.values()) == [1, 1, 2, 2, 3, 3]
    sent(servers, 0, 600)

    os.kill(rows[1].pid, signal.SIGKILL)
    sent(servers, 600, 1_200)
    waited_for(lambda: "a node serves again" in running.log, "it is started again")
    assert 'cause="killed by SIGKILL" node=2' in running.log
    again = re.search(r'event="a node serves again" node=2 pid=(\d+) listeners=(\S+)', running.log)
    assert again is not None
    assert again[2] == rows[1].listener, "its clients know that address"

    waited_for(lambda: leaders(servers) == [1, 1, 2, 2, 3, 3], "what others took over meanwhile comes back")
    before = len(running.log)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(WITHIN_S) == 0, running.log
    assert running.process.stdout is not None
    assert "tidelog: stopped" in running.process.stdout.read()
    assert not any(is_running(pid) for pid in (rows[0].pid, int(again[1]), rows[2].pid))
    assert "partitions are moved" not in running.log[before:], "there is nobody to hand over to when all stop"
    assert "closed before everything was uploaded" not in running.log

    running = started(*command)
    servers = ",".join(row.address for row in running.rows())
    assert values_in(servers, "t", 6) == expected(1_200)
    assert leaders(servers) == [1, 1, 2, 2, 3, 3]

    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(WITHIN_S) == 0, running.log
    (alone,) = started(*command[: -len(SMALL) - 1], "1", *SMALL).rows()
    assert values_in(alone.address, "t", 6) == expected(1_200), "what the others had closed is served by who is left"


def test_a_node_that_is_told_to_stop_alone_hands_over_and_comes_back(
    started: Callable[..., Supervised], tmp_path: Path
) -> None:
    running = started("dev", "--data", str(tmp_path / "data"), "--port", "0", "--nodes", "2", *SMALL)
    rows = running.rows()
    servers = ",".join(row.address for row in rows)
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic("t", num_partitions=6)])["t"].result(WITHIN_S)
    sent(servers, 0, 60)
    os.kill(rows[0].pid, signal.SIGTERM)
    waited_for(lambda: "a node serves again" in running.log, "it is started again")
    assert 'cause="stopped in order" node=1' in running.log
    assert "partitions are moved" in running.log
    assert values_in(servers, "t", 6) == expected(60)


def test_nodes_end_with_their_supervisor(started: Callable[..., Supervised], tmp_path: Path) -> None:
    command = ("dev", "--data", str(tmp_path / "data"), "--port", "0", "--nodes", "2", *SMALL)
    running = started(*command)
    rows = running.rows()
    running.process.kill()
    waited_for(lambda: not any(is_running(row.pid) for row in rows), "they stop, since nobody keeps them")
    assert [row.node_id for row in started(*command).rows()] == [1, 2]


def test_a_second_signal_ends_it_at_once(started: Callable[..., Supervised], tmp_path: Path) -> None:
    running = started("dev", "--data", str(tmp_path / "data"), "--port", "0", "--nodes", "2", *SMALL)
    rows = running.rows()
    os.kill(rows[0].pid, signal.SIGSTOP)  # it will not stop by itself
    running.process.send_signal(signal.SIGINT)
    waited_for(lambda: not is_running(rows[1].pid), "the other one stops")
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(WITHIN_S) == 1
    assert not is_running(rows[0].pid)


def test_all_are_stopped_where_one_cannot_start(started: Callable[..., Supervised], tmp_path: Path) -> None:
    (tmp_path / "data" / "wal").mkdir(parents=True)
    (tmp_path / "data" / "wal" / "node-2").write_text("no directory")
    running = started("dev", "--data", str(tmp_path / "data"), "--port", "0", "--nodes", "2", *SMALL)
    assert running.process.wait(WITHIN_S) == 1
    assert "tidelog: node 2: " in running.log, "its own words"
    assert "tidelog: node 2 did not come up (status 1): all nodes are stopped" in running.log
    assert "Traceback" not in running.log


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "broker", "serve", "--nodes", "3", "--set", "memory.bytes=100MiB"],
        capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tidelog: memory.bytes = 104857600 is for all nodes together, and too little for 3")
