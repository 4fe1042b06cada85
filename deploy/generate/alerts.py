"""Prometheus's alert rules, made of docs/operations.md: what it says of an alert is what fires, and where the alert leads to.

Always true: each alert of the guide is a rule, under its name, with its expression and its time; there are no others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["CRITICAL", "Alert", "alerts", "alerts_yaml"]

GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"

CRITICAL = frozenset(
    {
        "TidelogDown",
        "TidelogFenced",
        "TidelogUploadsStalled",
        "TidelogLogFilling",
        "TidelogProducersHeldBack",
        "TidelogServerErrors",
        "TidelogDamage",
        "TidelogPartitionsOffline",
        "TidelogControllerAbsent",
    }
)
"""Data is in danger, or clients are not served: somebody is to be called. All others can wait for the morning."""

_ALERT = re.compile(
    r"^### (?P<name>Tidelog\w+)\n\n```promql\n(?P<expression>.*?)\n```\n\n"
    r"(?P<for>At once|For \d+ (?:minutes?|hours?))\. \*\*Meaning\.\*\*\s(?P<meaning>.*?)\s\*\*Action\.\*\*",
    re.MULTILINE | re.DOTALL,
)


class Alert(NamedTuple):
    """One alert of the guide."""

    name: str
    expression: str
    for_s: int
    meaning: str
    """Its first sentence, as text."""

    @property
    def severity(self) -> str:
        return "critical" if self.name in CRITICAL else "warning"

    @property
    def runbook(self) -> str:
        return f"docs/operations.md#{self.name.lower()}"


def alerts() -> list[Alert]:
    """All alerts, in the guide's order."""
    return [
        Alert(found["name"], " ".join(found["expression"].split()), _seconds(found["for"]), _sentence(found["meaning"]))
        for found in _ALERT.finditer(GUIDE.read_text())
    ]


def _seconds(text: str) -> int:
    if text == "At once":
        return 0
    _, number, unit = text.split()
    return int(number) * (3600 if unit.startswith("hour") else 60)


def _sentence(text: str) -> str:
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(text.split())).replace("`", "")
    return re.split(r"(?<=[.:]) (?=[A-Z`])", words)[0].rstrip(":.") + "."


def alerts_yaml() -> str:
    """A rule file; strings are quoted as JSON has them, which YAML reads as well."""
    lines = [
        "# Written by `make docs` from docs/operations.md: change that.",
        "groups:",
        "  - name: tidelog",
        "    rules:",
    ]
    for alert in alerts():
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.expression)}",
            *([f"        for: {alert.for_s // 60}m"] if alert.for_s else []),
            f"        labels: {{severity: {alert.severity}}}",
            "        annotations:",
            f"          summary: {json.dumps(alert.meaning, ensure_ascii=False)}",
            f"          runbook_url: {alert.runbook}",
        ]
    return "\n".join(lines) + "\n"
