"""`python -m deploy.generate`: writes the alert rules and the dashboards anew, for `make docs`."""

from __future__ import annotations

from pathlib import Path

from deploy.generate.alerts import alerts_yaml
from deploy.generate.dashboards import DASHBOARDS, dashboard_json

FILES = Path(__file__).parents[1] / "helm" / "tidelog" / "files"

if __name__ == "__main__":
    (FILES / "alerts.yaml").write_text(alerts_yaml())
    for name in DASHBOARDS:
        (FILES / "dashboards" / f"{name}.json").write_text(dashboard_json(name))
