"""The compose file: read by what Docker's compose reads it with, held against broker and image, and its services run as they say."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from broker.addresses import parse_listeners
from broker.config import BrokerSettings, settings_from
from tests.cluster.brokers import TIMEOUT_S, values_in
from tests.crash.process import free_port
from tests.deploy.tools import DEPLOY, built, run
from tests.stores.fixtures import built as built_store
from tests.stores.process import MinIO

COMPOSE = DEPLOY / "compose"
BROKERS = ("tidelog1", "tidelog2", "tidelog3")

Project = dict[str, Any]


@pytest.fixture(scope="module")
def project() -> Project:
    """What compose makes of the file, with nothing in the environment."""
    found: Project = json.loads(run(built("compose") / "compose", COMPOSE / "compose.yaml"))
    return found


def settings_of(service: Mapping[str, Any]) -> BrokerSettings:
    return settings_from(environment=service["environment"])


def ports_of(text: str) -> set[int]:
    return {listener.port for listener in parse_listeners(text)}


def test_brokers_have_settings_that_make_a_cluster(project: Project) -> None:
    found = {name: settings_of(project["services"][name]) for name in BROKERS}
    assert sorted(settings.node_id for settings in found.values()) == [1, 2, 3]
    assert len({settings.object_store_uri for settings in found.values()}) == 1
    assert len({settings.broker_rack for settings in found.values()}) == 3, "consumers may say client.rack=zone2"
    for name, settings in found.items():
        advertised = {listener.name: listener for listener in parse_listeners(settings.advertised_listeners)}
        (peers,) = parse_listeners(settings.controller_listeners)
        assert (advertised["CONTROLLER"].host, advertised["CONTROLLER"].port) == (name, peers.port)
        assert advertised["PLAINTEXT"].host == name
        published = {int(port["published"]): port["target"] for port in project["services"][name]["ports"]}
        listeners = {listener.name: listener.port for listener in parse_listeners(settings.listeners)}
        assert published == {advertised["HOST"].port: listeners["HOST"]}, (
            "clients on the host are told what is published"
        )


def test_everything_is_published_to_this_machine_only(project: Project) -> None:
    for name, service in project["services"].items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name


def test_an_orderly_stop_has_the_time_that_it_may_take(project: Project) -> None:
    for name in BROKERS:
        service = project["services"][name]
        assert service["stop_grace_period"] == "40s"
        assert 2 * settings_of(service).shutdown_timeout_ms <= 30_000, "giving partitions away, and uploading"


def test_images_are_pinned_and_what_is_mounted_is_there(project: Project) -> None:
    for name, service in project["services"].items():
        if name not in BROKERS:
            assert re.search(r":v?[A-Z.]*\d[\w.-]+$", service["image"]), service["image"]
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), f"{name}: {volume['source']}"
                assert volume["read_only"], name
            else:
                assert volume["source"] in project["volumes"]


def test_each_broker_keeps_its_wal_in_a_volume_of_its_own(project: Project) -> None:
    volumes = set()
    for name in BROKERS:
        (volume,) = project["services"][name]["volumes"]
        assert settings_of(project["services"][name]).wal_uri.startswith(f"file://{volume['target']}/")
        volumes.add(volume["source"])
    assert len(volumes) == len(BROKERS)


def test_prometheus_asks_the_brokers_and_grafana_asks_prometheus(project: Project) -> None:
    scraped = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())
    (job,) = scraped["scrape_configs"]
    (targets,) = job["static_configs"]
    ports = {name: ports_of(settings_of(project["services"][name]).metrics_listeners) for name in BROKERS}
    assert set(targets["targets"]) == {f"{name}:{port}" for name, found in ports.items() for port in found}
    mounted = {volume["target"]: volume["source"] for volume in project["services"]["prometheus"]["volumes"]}
    assert set(scraped["rule_files"]) <= set(mounted)
    (source,) = yaml.safe_load((COMPOSE / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {port["target"] for port in project["services"]["prometheus"]["ports"]} == {9090}
    (provider,) = yaml.safe_load((COMPOSE / "grafana/dashboards/tidelog.yaml").read_text())["providers"]
    folder = {volume["target"]: volume["source"] for volume in project["services"]["grafana"]["volumes"]}
    dashboards = list(Path(folder[provider["options"]["path"]]).glob("*.json"))
    assert {path.stem for path in dashboards} == {"broker", "storage", "cluster", "groups"}


# ---- run: the services' own programs and settings, with loopback ports for their names


class Places:
    """Where services of the project are on this machine: a free port for each that they name."""

    def __init__(self) -> None:
        self._ports: dict[tuple[str, int], int] = {}

    def port(self, service: str, port: int) -> int:
        return self._ports.setdefault((service, port), free_port())

    def translated(self, service: str, text: str, published: Mapping[int, int], services: list[str]) -> str:
        """A setting with the ports of this machine."""
        text = re.sub(r"://:(\d+)", lambda found: f"://127.0.0.1:{self.port(service, int(found[1]))}", text)
        names = "|".join(services)
        text = re.sub(rf"\b({names}):(\d+)", lambda found: f"127.0.0.1:{self.port(found[1], int(found[2]))}", text)
        return re.sub(
            r"\blocalhost:(\d+)", lambda found: f"127.0.0.1:{self.port(service, published[int(found[1])])}", text
        )


@contextlib.contextmanager
def process(
    command: list[str], environment: Mapping[str, str], directory: Path, name: str
) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / f"{name}.log").open("wb") as log:
        one = subprocess.Popen(
            command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield one
    finally:
        one.kill()
        one.wait()


def wait_answered(url: str, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer:\n{log.read_text(errors='replace')}")


@pytest.mark.slow
@pytest.mark.parametrize("wal", ["volume", "bucket"])
def test_the_services_serve_together_as_they_are_told(wal: str, tmp_path: Path) -> None:
    minio = built_store(MinIO(tmp_path / "unused"))
    bucket = "s3://tidelog/cluster?endpoint=http://minio:9000&path_style=true&region=us-east-1&batch_interval_ms=20"
    told = {"PATH": os.environ["PATH"], **({"TIDELOG_WAL_URI": bucket} if wal == "bucket" else {})}
    project = json.loads(
        subprocess.run(
            [built("compose") / "compose", COMPOSE / "compose.yaml"], env=told, check=True, capture_output=True
        ).stdout
    )
    services = project["services"]
    places = Places()
    with contextlib.ExitStack() as stack:
        data = tmp_path / "data"
        shell, option, script = services["minio"]["entrypoint"]
        script = script.replace("/data", str(data)).replace(":9000", f"127.0.0.1:{places.port('minio', 9000)}")
        program = Path(__file__).parents[2] / "build" / "stores" / minio.name
        search = {
            "PATH": f"{program}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "MINIO_UPDATE": "off",
            "MINIO_BROWSER": "off",
        }
        stack.enter_context(
            process([shell, option, script], {**search, **services["minio"]["environment"]}, tmp_path, "minio")
        )
        running: dict[str, subprocess.Popen[bytes]] = {}
        for name in BROKERS:
            published = {int(port["published"]): port["target"] for port in services[name]["ports"]}
            environment = {
                variable: places.translated(name, value, published, list(services))
                for variable, value in services[name]["environment"].items()
            }
            environment["TIDELOG_WAL_URI"] = environment["TIDELOG_WAL_URI"].replace(
                "/var/lib/tidelog", f"{tmp_path}/{name}"
            )
            environment["TIDELOG_MEMORY_BYTES"] = "128MiB"
            running[name] = stack.enter_context(
                process(
                    [sys.executable, "-m", "broker", "serve"],
                    {"PATH": os.environ["PATH"], "PYTHONPATH": str(DEPLOY.parent), **environment},
                    tmp_path,
                    name,
                )
            )
        for name in BROKERS:
            wait_answered(f"http://127.0.0.1:{places.port(name, 9404)}/readyz", tmp_path / f"{name}.log")
        bootstrap = ",".join(f"127.0.0.1:{places.port(name, 19092)}" for name in BROKERS)
        errors: list[object] = []
        producer = Producer({"bootstrap.servers": bootstrap})
        for number in range(300):
            producer.produce(
                "numbers", str(number), partition=number % 3, on_delivery=lambda error, _: errors.append(error)
            )
        assert producer.flush(TIMEOUT_S) == 0
        assert errors == [None] * 300
        told_brokers = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=TIMEOUT_S).brokers
        assert {broker.port for broker in told_brokers.values()} == {places.port(name, 19092) for name in BROKERS}
        running["tidelog1"].send_signal(signal.SIGTERM)
        assert running["tidelog1"].wait(TIMEOUT_S) == 0, (tmp_path / "tidelog1.log").read_text()
        found = values_in(bootstrap, "numbers", 3)
        assert found == {index: list(range(index, 300, 3)) for index in range(3)}
