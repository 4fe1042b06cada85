"""docs/compatibility.md tells of the versions that are pinned here and of the APIs that the broker serves."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.interop.compat import DOCUMENT, api_table

ROOT = Path(__file__).resolve().parents[2]
INTEROP = ROOT / "tests" / "interop"
AGAIN = "run `make compat`, which writes docs/compatibility.md again (`make compat ARGS=apis` renews its APIs only)"


def listed_versions() -> dict[str, str]:
    """Version by client, as the document lists them."""
    found = re.search(r"\| client \| version \|\n\|---\|---\|\n((?:\|.*\n)+)", DOCUMENT.read_text())
    assert found is not None
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]
    return {name: version.split()[0] for name, version in rows}


def pinned_versions() -> dict[str, str]:
    """Version by client, from the files that pin them."""
    pom = (INTEROP / "java" / "pom.xml").read_text()
    modules = dict(re.findall(r"^\t(\S+) v(\S+)$", (INTEROP / "go" / "go.mod").read_text(), re.MULTILINE))
    lock = json.loads((INTEROP / "javascript" / "package-lock.json").read_text())["packages"]
    project = (ROOT / "pyproject.toml").read_text()
    [kafka] = re.findall("<kafka.version>(.*)</kafka.version>", pom)
    return {
        "kafka-clients (Java)": kafka,
        "franz-go": "v" + modules["github.com/twmb/franz-go"],
        "sarama": "v" + modules["github.com/IBM/sarama"],
        **{name: lock[f"node_modules/{name}"]["version"] for name in ("kafkajs", "@platformatic/kafka")},
        **dict(re.findall(r'"(confluent-kafka|aiokafka|kafka-python)==([\d.]+)"', project)),
    }


def test_the_document_is_of_the_pinned_versions() -> None:
    pinned = pinned_versions()
    assert len(pinned) == 8
    listed = listed_versions()
    del listed["kcat"]  # it comes from the system's packages
    assert listed == pinned, AGAIN


def test_the_document_lists_the_apis_that_are_served() -> None:
    assert api_table() in DOCUMENT.read_text(), AGAIN


def test_the_quick_start_names_the_pinned_versions() -> None:
    text = (ROOT / "docs" / "quickstart.md").read_text()
    pinned = pinned_versions()
    assert f"org.apache.kafka:kafka-clients:{pinned['kafka-clients (Java)']}" in text
    assert f"go get github.com/twmb/franz-go@{pinned['franz-go']}" in text
    assert f"npm install kafkajs@{pinned['kafkajs']}" in text


def test_no_client_failed() -> None:
    assert "✗ (" not in DOCUMENT.read_text()


def test_the_lock_file_names_no_registry() -> None:
    """Where packages come from is for the user's npm to say."""
    lock = json.loads((INTEROP / "javascript" / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
