"""The operations guide speaks of metrics, labels and settings that exist, and says of each alert what it means and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.config import SETTINGS
from broker.exposition.described import Described
from broker.exposition.table import SECTIONS

GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()

METRICS = {described.name: described for _, section in SECTIONS for described in section}

ALERT = re.compile(
    r"^### (?P<name>\w+)\n\n```promql\n(?P<expression>.*?)```\n\n"
    r"(?:At once|For \d+ (?:minutes?|hours?))\. \*\*Meaning\.\*\*\s(?:(?!^### ).)*?\*\*Action\.\*\*\s",
    re.MULTILINE | re.DOTALL,
)

ALERTS = [found["name"] for found in ALERT.finditer(GUIDE)]

SERIES = re.compile(r"\b(tidelog_(?!az=)[a-z_]+[a-z])(?:\{(.*?)\})?")


def described(series: str) -> Described:
    """The metric that a series belongs to."""
    for name in (series, re.sub(r"_(bucket|sum|count)$", "", series)):
        if name in METRICS:
            found = METRICS[name]
            assert (name == series) != (found.kind == "histogram"), f"{series}: {found.kind}"
            return found
    raise AssertionError(f"the guide speaks of {series}, which does not exist")


def test_every_series_exists_and_has_the_labels() -> None:
    found = SERIES.findall(GUIDE)
    assert len(found) > 40
    for series, selectors in found:
        for label in re.findall(r"(\w+)=", selectors):
            assert label in described(series).labels, f"{series} has no label {label}"
        described(series)


@pytest.mark.parametrize("word", ["sum by", "sum without", "ignoring"])
def test_labels_that_are_summed_over_exist(word: str) -> None:
    labels = {label for described in METRICS.values() for label in described.labels} | {"le", "instance", "job"}
    for listed in re.findall(rf"{word} ?\(([^)]*)\)", GUIDE):
        assert {name.strip() for name in listed.split(",")} <= labels


def test_every_alert_has_an_expression_a_meaning_and_an_action() -> None:
    titles = re.findall(r"^### (Tidelog\w+)$", GUIDE, re.MULTILINE)
    assert titles == ALERTS
    assert len(set(ALERTS)) == len(ALERTS) >= 20
    for mentioned in re.findall(r"\bTidelog[A-Z]\w+", GUIDE):
        assert mentioned in ALERTS, f"{mentioned} is spoken of and not there"


def test_brackets_are_balanced() -> None:
    for found in ALERT.finditer(GUIDE):
        expression = re.sub(r'"[^"]*"', "", found["expression"])
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), found["name"]


def test_settings_are_called_as_they_are() -> None:
    names = set(re.findall(r"`([a-z]+(?:\.[a-z]+)+)`", GUIDE)) - {"node.id"}
    assert names
    assert names <= set(SETTINGS), names - set(SETTINGS)


def test_events_are_called_as_they_are() -> None:
    """What the guide tells to search the log for is what the code logs."""
    root = Path(__file__).parents[2]
    code = "".join(
        path.read_text() for package in ("broker", "controller", "s3stream") for path in (root / package).rglob("*.py")
    )
    events = re.findall(r"[Ee]vent `([^`]+)`", GUIDE.replace("\n", " "))
    assert len(events) > 5
    for event in events:
        assert f'"{event}' in code, event
