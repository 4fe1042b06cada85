"""Grafana's dashboards: what they ask for exists, and Prometheus answers each of their questions about a broker that was used."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer

from broker.exposition.table import SECTIONS
from deploy.generate.dashboards import DASHBOARDS, dashboard_json
from tests.crash.process import BrokerProcess, free_port, killed_at_last
from tests.deploy.tools import DEPLOY, installed

FILES = DEPLOY / "helm" / "tidelog" / "files" / "dashboards"
METRICS = {described.name: described for _, section in SECTIONS for described in section}
TIMEOUT_S = 60.0

OF_OTHERS = {"up", "job", "instance", "le"}
OF_THE_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"}


def dashboard(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / f"{name}.json").read_text())
    return found


def expressions(name: str) -> list[str]:
    return [target["expr"] for panel in dashboard(name)["panels"] for target in panel.get("targets", ())]


@pytest.fixture(params=DASHBOARDS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_the_files_are_what_the_table_says(name: str) -> None:
    assert (FILES / f"{name}.json").read_text() == dashboard_json(name), "run `make docs`"


def test_grafana_finds_panels_apart_and_sources_by_name(name: str) -> None:
    found = dashboard(name)
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
            assert panel["title"]
    variables = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == variables, "each variable is used, and no other"


def test_what_they_ask_for_exists(name: str) -> None:
    """Metrics, and the labels that are selected, summed over and named in legends."""
    assert expressions(name)
    for panel in dashboard(name)["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            series = set(re.findall(r"\b((?:tidelog|process)_\w+|up)\{", expression))
            assert series, expression
            labels: set[str] = {"le"}
            for one in series:
                metric = METRICS.get(one) or METRICS.get(re.sub(r"_(bucket|sum|count)$", "", one))
                assert metric is not None or one in OF_THE_PROCESS | OF_OTHERS, f"there is no {one}"
                labels |= set(metric.labels) if metric is not None else set()
            labels |= OF_OTHERS
            named = set(re.findall(r"(\w+)=~?\"", expression))
            named |= {
                word.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for word in group.split(",")
            }
            named |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= labels, f"{named - labels}: no label of {series}"


def test_every_metric_has_its_place_or_a_reason() -> None:
    """What nobody looks at is not worth counting; what is only for a look at one node is read from its own page."""
    shown = " ".join(expression for name in DASHBOARDS for expression in expressions(name))
    unseen = {name for name in METRICS if f"{name}{{" not in shown and f"{name}_" not in shown}
    assert len(unseen) < len(METRICS) / 2, unseen


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has scraped a broker which was written to and read from."""
    program = installed("prometheus", "prometheus")
    directory: Path = tmp_path_factory.mktemp("prometheus")
    metrics_port, port = free_port(), free_port()
    broker = BrokerProcess(
        directory / "broker",
        {
            "metrics.listeners": f"HTTP://127.0.0.1:{metrics_port}",
            "object.store.uri": (directory / "objects").as_uri(),
            "wal.uri": f"{(directory / 'wal').as_uri()}?capacity=64MiB",
            "memory.bytes": 128 << 20,
            "upload.interval.ms": 200,
            "group.initial.rebalance.delay.ms": 0,
        },
    )
    config = directory / "prometheus.yaml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [
                    {"job_name": "tidelog", "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}]}
                ],
            }
        )
    )
    with killed_at_last(broker), (directory / "prometheus.log").open("wb") as log:
        broker.start()
        broker.wait_ready()
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            use(broker.bootstrap_servers)
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + TIMEOUT_S
            while not answer(url, "rate(tidelog_received_bytes_total[1m]) > 0 and on () tidelog_consumer_groups > 0"):
                assert process.poll() is None, (directory / "prometheus.log").read_text()
                assert time.monotonic() < deadline, "nothing was scraped"
                use(broker.bootstrap_servers)
                time.sleep(0.5)
            yield url
        finally:
            process.kill()
            process.wait()


def use(bootstrap: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for number in range(100):
        producer.produce("numbers", str(number))
    assert producer.flush(TIMEOUT_S) == 0
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "readers", "auto.offset.reset": "earliest"})
    consumer.subscribe(["numbers"])
    assert consumer.consume(10, timeout=TIMEOUT_S)
    consumer.close()


def answer(url: str, expression: str) -> list[Any]:
    """The series that an expression gives now; [] also while Prometheus does not answer yet."""
    query = urllib.parse.urlencode({"query": expression})
    with contextlib.suppress(ConnectionError), contextlib.closing(_open(f"{url}/api/v1/query?{query}")) as response:
        told = json.loads(response.read())
        assert told["status"] == "success", f"{expression}: {told}"
        result: list[Any] = told["data"]["result"]
        return result
    return []


def _open(url: str) -> Any:
    try:
        return urllib.request.urlopen(url, timeout=30)
    except urllib.error.HTTPError as error:
        return error
    except urllib.error.URLError as error:
        raise ConnectionError(str(error)) from error


ONLY_SOMETIMES = re.compile(
    r"_errors_total|closed_total|hedged|damaged|log_lines|scalar|object_store_billed.*request=\"get\"|offset_commit|block_cache|lost_wal",
    re.IGNORECASE,
)
"""Series that are not there before something happened that need not happen in a test."""


@pytest.mark.slow
def test_prometheus_answers_each_question(prometheus: str, name: str) -> None:
    empty = []
    for expression in expressions(name):
        asked = (
            expression.replace("$__rate_interval", "1m")
            .replace("$job", ".*")
            .replace("$instance", ".*")
            .replace("$group", ".*")
        )
        if not answer(prometheus, asked) and not ONLY_SOMETIMES.search(asked):
            empty.append(asked)
    assert not empty
