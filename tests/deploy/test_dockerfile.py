"""The Dockerfile: its form by hadolint, its steps carried out in a Debian root, and what comes of them run as a container would be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from broker.config import settings_from
from tests.deploy.container import running
from tests.deploy.dockerfile import Image, build, in_context, parse
from tests.deploy.tools import DEPLOY, ROOT, beside_python, built, run

DOCKERFILE = DEPLOY / "Dockerfile"
BASE = "debian:12.11-slim"  # bookworm is Debian 12


def instructions(name: str) -> list[str]:
    return [found.text for stage in parse(DOCKERFILE.read_text()) for found in stage.instructions if found.name == name]


def test_hadolint_finds_nothing() -> None:
    assert run(beside_python("hadolint"), "--no-color", DOCKERFILE) == ""


def test_the_base_is_pinned_and_the_one_that_is_tested() -> None:
    assert {stage.base for stage in parse(DOCKERFILE.read_text())} == {BASE}
    assert "SUITE=bookworm" in (Path(__file__).parent / "build-tool").read_text()


def test_every_package_is_copied_and_nothing_else() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    copied = {words.split()[-1].removeprefix("./") for words in instructions("COPY")}
    assert set(packages) <= copied
    for kept in (*packages, "broker/handlers/fetch.py", "deploy/constraints.txt"):
        assert in_context(ROOT, ROOT / kept), kept
    for left_out in (
        ".git",
        "data",
        "build",
        "tests",
        ".venv",
        "deploy/helm",
        "broker/__pycache__",
        "broker/groups/__pycache__/a.pyc",
    ):
        assert not in_context(ROOT, ROOT / left_out), left_out


def test_constraints_pin_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = dict(
        line.split("==") for line in (DEPLOY / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    for text in (*project["project"]["dependencies"], *project["build-system"]["requires"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name]), (
            f"constraints.txt has {pinned[wanted.name]}, wanted is {text}"
        )


def test_settings_of_the_image_are_settings_of_the_broker() -> None:
    settings = settings_from(file=DEPLOY / "tidelog.toml", environment={})
    (probed,) = re.findall(r"http://127\.0\.0\.1:(\d+)/healthz", *instructions("HEALTHCHECK"))
    assert settings.metrics_listeners.endswith(f":{probed}")
    assert set(instructions("EXPOSE")[0].split()) == {"9092", "9093", probed}
    assert settings.listeners.endswith(":9092")
    (volume,) = instructions("VOLUME")
    for uri in (settings.object_store_uri, settings.wal_uri):
        assert uri.startswith(f"file://{volume}/")
    assert not any("TIDELOG_" in text for text in instructions("ENV")), "it would win over a file that somebody mounts"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory where that can be had: packages are synced to a disk file by file."""
    if os.geteuid() != 0:
        pytest.skip("steps are carried out as root, in a chroot")
    directory = tmp_path_factory.mktemp("image")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "none", directory]).returncode == 0
    yield directory
    if mounted:
        run("umount", "--lazy", directory)
    else:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def image(work: Path) -> Image:
    """What the Dockerfile makes."""
    return build(DOCKERFILE, ROOT, {BASE: built("debian") / "root.tar"}, work)


def size_mb(path: Path) -> int:
    return int(run("du", "--summarize", "--apparent-size", "--block-size=1000000", path).split()[0])


@pytest.mark.slow
def test_it_is_small(image: Image) -> None:
    added = size_mb(image.root) - (built("debian") / "root.tar").stat().st_size // 1_000_000
    assert added < 150, "MB on top of the base: what runs, and nothing that builds"
    assert not list(image.root.glob("opt/tidelog/bin/pip*"))
    assert not (image.root / "src").exists()


@pytest.mark.slow
def test_it_is_no_particular_machine(image: Image) -> None:
    """Brokers tell by an id of the machine whether they share its disks (`broker/host.py`): all containers would be one machine."""
    machine_id = image.root / "etc" / "machine-id"
    assert not machine_id.exists() or not machine_id.read_text().strip()


CLIENT = """
from confluent_kafka import Consumer, Producer, TopicPartition
told = []
producer = Producer({"bootstrap.servers": "127.0.0.1:9092"})
for number in range(100):
    producer.produce("numbers", str(number), on_delivery=lambda error, message: told.append(error))
assert producer.flush(60) == 0
assert told == [None] * 100, told
consumer = Consumer({"bootstrap.servers": "127.0.0.1:9092", "group.id": "all"})
consumer.assign([TopicPartition("numbers", 0, 0)])
got = []
while len(got) < 100:
    for message in consumer.consume(100, timeout=30):
        assert message.error() is None, message.error()
        got.append(int(message.value()))
assert got == list(range(100))
consumer.close()
"""


@pytest.mark.slow
def test_it_serves_without_rights_on_a_read_only_root_and_stops_in_order(image: Image, tmp_path: Path) -> None:
    assert image.user.split(":")[0] not in ("0", "root")
    with running(image, tmp_path, {"TIDELOG_ADVERTISED_LISTENERS": "PLAINTEXT://127.0.0.1:9092"}) as container:
        container.wait_healthy()
        status = Path(f"/proc/{container.pid}/status").read_text()
        assert re.search(r"^Uid:\s+10001\s+10001\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), "no capability is left"
        assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE), "it is process 1, without an init"
        assert container.inside("touch", "/opt/tidelog/here").returncode != 0
        client: subprocess.CompletedProcess[str] = container.beside(sys.executable, "-c", CLIENT)
        assert client.returncode == 0, client.stderr + container.log()
        assert container.stop() == 0, container.log()
        assert "tidelog: stopped" in container.log()
