"""Prometheus's alert rules, made of docs/operations.md: what it says of an alert is what fires, and where the alert leads to.

Always true: each alert of the guide is a rule, under its name, with its expression and its time; there are no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["CRITICAL", "DESCRIPTIONS", "Alert", "alerts", "alerts_yaml"]

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

_OFFLINE = """\
{{ $value }} partitions take no records. {{ if eq $labels.reason "dead_node" }}\
{{ $of := printf "job=%q,instance=%q" $labels.job $labels.instance }}\
{{ range query (printf "tidelog_lost_wal_reported_records{%s}" $of) | sortByLabel "node" }}\
{{ $wal := .Labels.wal_id }}\
Node {{ .Labels.node }} is dead, and no broker has recovered its WAL {{ $wal }}. \
{{ if eq (printf "%f" .Value) "NaN" }}How much that alone holds is not known.{{ else }}\
By its last report that alone held {{ printf "%.0f" .Value }} records\
{{ range query (printf "tidelog_lost_wal_reported_bytes{%s,wal_id=%q}" $of $wal) }} ({{ humanize1024 .Value }}B){{ end }}, perhaps more at its end.\
{{ end }} Start node {{ .Labels.node }} with its WAL, or attach the WAL's volume to a broker (wal.recovery.directories). \
Where neither can be: tidelog wal abandon {{ $wal }} -c SETTINGS prints what of each partition would be given up, and gives it up with --yes. \
{{ end }}{{ else }}Records or states of them are damaged or missing: tidelog verify -c SETTINGS names what, and where.{{ end }}"""

DESCRIPTIONS: Mapping[str, str] = {"TidelogPartitionsOffline": _OFFLINE}
"""What an alert says besides its summary where that takes figures: as Prometheus's templates, which may ask for other series."""

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
    def description(self) -> str:
        """With figures, as a template; empty where the summary says all."""
        return DESCRIPTIONS.get(self.name, "")

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
            f"        expr: {_quoted(alert.expression)}",
            *([f"        for: {alert.for_s // 60}m"] if alert.for_s else []),
            f"        labels: {{severity: {alert.severity}}}",
            "        annotations:",
            f"          summary: {_quoted(alert.meaning)}",
            *([f"          description: {_quoted(alert.description)}"] if alert.description else []),
            f"          runbook_url: {alert.runbook}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
