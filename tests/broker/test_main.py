"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker import __main__ as command_line
from broker import origin
from broker.config import SETTINGS
from broker.origin import ForeignPackage, check_packages
from tests.crash.process import free_port


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("serve", "dev", "config", "TIDELOG_NUM_PARTITIONS", "tidelog serve -c broker.toml"):
        assert part in text


def test_settings_are_listed_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["config"]) == 0
    listed = capsys.readouterr().out
    assert (
        "num.partitions = 1  (int; a whole number from 1 to 100000; partitions; dynamic)\n    Partitions of" in listed
    )
    assert command_line.main(["config", "--json"]) == 0
    by_name = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert by_name["num.partitions"] == {
        "name": "num.partitions",
        "environment": "TIDELOG_NUM_PARTITIONS",
        "section": "Topics",
        "type": "int",
        "default": 1,
        "unit": "partitions",
        "least": 1,
        "most": 100000,
        "choices": None,
        "dynamic": True,
        "meaning": SETTINGS["num.partitions"].doc,
    }
    assert by_name.keys() == SETTINGS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--set", "num.partitons=3"], "unknown setting num.partitons: did you mean num.partitions?"),
        (["serve", "--set", "num.partitions"], "NAME=VALUE"),
        (["serve", "-c", "/does/not/exist.toml"], "cannot read /does/not/exist.toml"),
        (["serve", "--set", "wal.uri=ftp://x"], "ftp"),
        (["serve", "--set", "object.store.uri=ftp://x"], "ftp"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # by default everything is below ./data
    assert (
        command_line.main(
            [*arguments, "--set", "listeners=PLAINTEXT://127.0.0.1:0"] if "-c" not in arguments else arguments
        )
        == 1
    )
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("tidelog: ")
    assert message in error[0]


def test_packages_from_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    monkeypatch.setattr(origin, "PACKAGES", ("broker", "json"))
    with pytest.raises(ForeignPackage, match="virtual environment of its own"):
        check_packages()


def test_dev_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "broker",
            "dev",
            "--data",
            str(tmp_path / "data"),
            "--port",
            "0",
            "--set",
            "memory.bytes=128MiB",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        assert lines[0].startswith("Tidelog serves Kafka on PLAINTEXT://localhost:")
        port = lines[0].rstrip().rpartition(":")[2]
        assert (tmp_path / "data" / "wal").as_uri() in lines[1]
        assert (tmp_path / "data" / "objects").as_uri() in lines[2]
        assert all(f"localhost:{port}" in line for line in lines[5:])

        second = run("dev", "--data", str(tmp_path / "data"), "--port", "0")
        assert second.returncode == 1
        assert second.stderr.startswith("tidelog: ")
        assert "Traceback" not in second.stderr

        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert "stopped" in process.stdout.read()


_FENCED_ONCE = """
import sys
from pathlib import Path
from broker.__main__ import main
from wal.directory import fence
from wal.file_wal import FileWal

begin = FileWal._begin

async def fenced(self, end_offset):
    FileWal._begin = begin
    fence(Path(sys.argv[3], "wal"))
    await begin(self, end_offset)

FileWal._begin = fenced
sys.exit(main(sys.argv[1:]))
"""
_ID_TAKEN_ONCE = """
import sys
from broker.__main__ import main
from controller import state
from controller.errors import NodeIdTaken
from controller.nodes import RegisterNode, register_node

def taken(tables, command):
    state._HANDLERS[RegisterNode] = register_node
    raise NodeIdTaken("node id 1001 is another's now")

state._HANDLERS[RegisterNode] = taken
sys.exit(main(sys.argv[1:]))
"""


_DEAD_ONCE = """
import sys
from broker.__main__ import main
from s3stream.errors import TakenForDead
from s3stream.storage import Storage

start = Storage.start

async def dead(self, stream_ids):
    Storage.start = start
    raise TakenForDead("node 1 is taken for dead")

Storage.start = dead
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("overtaken", "reason"),
    [
        (_FENCED_ONCE, "WAL "),
        (_ID_TAKEN_ONCE, "node id 1001 is another's now"),
        (_DEAD_ONCE, "node 1 is taken for dead"),
    ],
)
def test_a_broker_that_is_overtaken_while_it_starts_begins_anew(overtaken: str, reason: str, tmp_path: Path) -> None:
    """It was taken for dead, and came back at the moment at which another one began to recover its WAL, or was given its id."""
    with subprocess.Popen(
        [sys.executable, "-c", overtaken, "dev", "--data", str(tmp_path / "data"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("Tidelog serves Kafka on PLAINTEXT://localhost:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert f"tidelog: starting again: {reason}" in process.stderr.read()


def test_a_start_that_waits_for_its_bucket_can_be_stopped(tmp_path: Path) -> None:
    nobody = free_port()
    bucket = f"s3://bucket/cluster?region=us-east-1&path_style=true&endpoint=http://127.0.0.1:{nobody}"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "broker", "dev", "--data", str(tmp_path / "data"), "--port", "0"),
            *("--set", f"object.store.uri={bucket}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
    ) as process:
        assert process.stderr is not None
        assert "does not answer" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.stderr.read()
