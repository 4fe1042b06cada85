"""Alert rules: those of the operations guide, as Prometheus takes them; and rules that fire when they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from deploy.generate.alerts import CRITICAL, DESCRIPTIONS, alerts, alerts_yaml
from tests.broker.test_operations import ALERTS
from tests.deploy.tools import DEPLOY, installed, run

RULES = DEPLOY / "helm" / "tidelog" / "files" / "alerts.yaml"


@pytest.fixture(scope="module")
def promtool() -> str:
    return installed("promtool", "prometheus")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_the_file_is_what_the_guide_says() -> None:
    assert RULES.read_text() == alerts_yaml(), "run `make docs`"


def test_each_alert_of_the_guide_is_a_rule_that_leads_back_to_it() -> None:
    found = rules()
    assert [rule["alert"] for rule in found] == ALERTS
    for rule in found:
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"].endswith(".")
    assert {alert.name for alert in alerts()} >= CRITICAL
    assert 0 < sum(rule["labels"]["severity"] == "critical" for rule in found) < len(found)


def test_prometheus_takes_them(promtool: str) -> None:
    assert f"{len(rules())} rules found" in run(promtool, "check", "rules", RULES)


class Case(NamedTuple):
    """An alert's series: with these values it fires, with those it does not. Values are promtool's: 0+5x10 is 0, 5, 10 … 50."""

    alert: str
    fires: dict[str, str]
    rests: dict[str, str]
    at: str
    """When both are looked at."""
    labels: dict[str, str] = {}  # noqa: RUF012
    """Of the alert that fires, besides its name and severity."""
    description: str = ""
    """What it says then besides its summary."""


ONE = 'instance="one:9404",job="tidelog"'
ON = {"instance": "one:9404", "job": "tidelog"}
BY_INSTANCE = {"instance": "one:9404"}


def gauge(name: str, fires: str, rests: str, more: str = "") -> tuple[dict[str, str], dict[str, str]]:
    series = f"{name}{{{ONE}{more}}}"
    return {series: fires}, {series: rests}


def slow(name: str, within_s: str, more: str = "") -> tuple[dict[str, str], dict[str, str]]:
    """Requests of which all, or none, take longer than the bound of a bucket."""
    bucket = f"{name}_bucket{{{ONE}{more},le="
    fast, slower, every = (f'{bucket}"{bound}"}}' for bound in (within_s, float(within_s) * 2, "+Inf"))
    return (
        {fast: "0x60", slower: "0+10x60", every: "0+10x60"},
        {fast: "0+10x60", slower: "0+10x60", every: "0+10x60"},
    )


REPORTED, UNREPORTED = "5d1f", "77aa"


def advice(node_id: int, wal_id: str) -> str:
    """What can be done about a WAL, the last of it by a command."""
    return (
        f"Start node {node_id} with its WAL, or attach the WAL's volume to a broker (wal.recovery.directories). Where neither can be: "
        f"tidelog wal abandon {wal_id} -c SETTINGS prints what of each partition would be given up, and gives it up with --yes."
    )


CASES = [
    Case("TidelogDown", *gauge("up", "1 0x9", "1 0 1x8"), at="3m", labels=ON),
    Case("TidelogFenced", *gauge("tidelog_wal_fenced", "0 1x9", "0x9"), at="2m", labels=ON),
    Case("TidelogUploadsStalled", *gauge("tidelog_wal_unuploaded_age_seconds", "0+60x9", "6x9"), at="5m", labels=ON),
    Case(
        "TidelogLogFilling",
        {f"tidelog_wal_used_bytes{{{ONE}}}": "80x9", f"tidelog_wal_capacity_bytes{{{ONE}}}": "100x9"},
        {
            f"tidelog_wal_used_bytes{{{ONE}}}": "50x9",
            f"tidelog_wal_capacity_bytes{{{ONE}}}": "100x9",
            f"tidelog_wal_unuploaded_bytes{{{ONE}}}": "60x9",
            f'tidelog_buffer_limit_bytes{{{ONE},pool="arena"}}': "100x9",
            f'tidelog_buffer_limit_bytes{{{ONE},pool="read"}}': "10x9",
        },
        at="5m",
        labels=ON,
    ),
    Case(
        "TidelogLogFilling",
        {
            f"tidelog_wal_unuploaded_bytes{{{ONE}}}": "80x9",
            f'tidelog_buffer_limit_bytes{{{ONE},pool="arena"}}': "100x9",
        },
        {},
        at="5m",
        labels=ON,
    ),
    Case(
        "TidelogProducersHeldBack",
        *gauge("tidelog_produce_stalled_seconds_total", "0+6x30", "0+1x30"),
        at="15m",
        labels=ON,
    ),
    Case(
        "TidelogObjectStoreErrors",
        {f'tidelog_object_store_request_errors_total{{{ONE},operation="put",error="Unavailable"}}': "0+1x30"},
        {f'tidelog_object_store_request_errors_total{{{ONE},operation="get",error="NotFound"}}': "0+9x30"},
        at="15m",
        labels={**BY_INSTANCE, "operation": "put", "error": "Unavailable"},
    ),
    Case(
        "TidelogObjectStoreSlow",
        *slow("tidelog_object_store_request_duration_seconds", "5", ',operation="put"'),
        at="40m",
        labels={**BY_INSTANCE, "operation": "put"},
    ),
    Case(
        "TidelogWalSlow",
        *slow("tidelog_wal_commit_duration_seconds", "0.05", ',kind="disk"'),
        at="30m",
        labels={**BY_INSTANCE, "kind": "disk"},
    ),
    # What is slow for a disk is normal for a PUT.
    Case(
        "TidelogWalSlow",
        slow("tidelog_wal_commit_duration_seconds", "0.5", ',kind="bucket"')[0],
        slow("tidelog_wal_commit_duration_seconds", "0.25", ',kind="bucket"')[0],
        at="30m",
        labels={**BY_INSTANCE, "kind": "bucket"},
    ),
    Case(
        "TidelogProduceSlow",
        *slow("tidelog_request_duration_seconds", "0.5", ',api="Produce"'),
        at="30m",
        labels=BY_INSTANCE,
    ),
    Case(
        "TidelogServerErrors",
        {f'tidelog_request_errors_total{{{ONE},api="Fetch",error="KAFKA_STORAGE_ERROR"}}': "0+1x30"},
        {f'tidelog_request_errors_total{{{ONE},api="Fetch",error="OFFSET_OUT_OF_RANGE"}}': "0+9x30"},
        at="15m",
        labels={**BY_INSTANCE, "api": "Fetch", "error": "KAFKA_STORAGE_ERROR"},
    ),
    Case(
        "TidelogDamage",
        *gauge("tidelog_damaged_ranges", "1x9", "0x9", ',source="object"'),
        at="1m",
        labels=BY_INSTANCE,
    ),
    Case(
        "TidelogPartitionsOffline",
        *gauge("tidelog_offline_partitions", "2x9", "0x9", ',reason="damage"'),
        at="5m",
        labels={**ON, "reason": "damage"},
        description="2 partitions take no records. Records or states of them are damaged or missing: tidelog verify -c SETTINGS names what, and where.",
    ),
    Case(
        "TidelogPartitionsOffline",
        {
            f'tidelog_offline_partitions{{{ONE},reason="dead_node"}}': "3x9",
            f'tidelog_lost_wal_reported_records{{{ONE},node="2",wal_id="{REPORTED}"}}': "1748x9",
            f'tidelog_lost_wal_reported_bytes{{{ONE},node="2",wal_id="{REPORTED}"}}': "245043x9",
            f'tidelog_lost_wal_reported_records{{{ONE},node="3",wal_id="{UNREPORTED}"}}': "NaN NaN NaN NaN NaN NaN NaN",
            f'tidelog_lost_wal_reported_bytes{{{ONE},node="3",wal_id="{UNREPORTED}"}}': "NaN NaN NaN NaN NaN NaN NaN",
        },
        {},
        at="5m",
        labels={**ON, "reason": "dead_node"},
        description=f"3 partitions take no records. Node 2 is dead, and no broker has recovered its WAL {REPORTED}. "
        f"By its last report that alone held 1748 records (239.3kiB), perhaps more at its end. {advice(2, REPORTED)} "
        f"Node 3 is dead, and no broker has recovered its WAL {UNREPORTED}. How much that alone holds is not known. {advice(3, UNREPORTED)} ",
    ),
    Case(
        "TidelogControllerAbsent",
        {f"tidelog_nodes{{{ONE}}}": "3x9", f"tidelog_controller_leader{{{ONE}}}": "0x9"},
        {f"tidelog_nodes{{{ONE}}}": "1x9", f"tidelog_controller_leader{{{ONE}}}": "0x9"},
        at="5m",
        labels={"job": "tidelog"},
    ),
    Case(
        "TidelogFaults",
        *gauge("tidelog_connections_closed_total", "0 0 1x20", "0x20", ',cause="fault"'),
        at="5m",
        labels={**ON, "cause": "fault"},
    ),
    Case(
        "TidelogClientsClosed",
        *gauge("tidelog_connections_closed_total", "0+90x30", "0+30x30", ',cause="request"'),
        at="15m",
        labels={**BY_INSTANCE, "cause": "request"},
    ),
    Case(
        "TidelogConnectionsWait",
        *gauge("tidelog_connections_held_back", "1x20", "0x20", ',reason="send_budget"'),
        at="10m",
        labels={**ON, "reason": "send_budget"},
    ),
    Case(
        "TidelogMemoryHigh",
        {f"process_resident_memory_bytes{{{ONE}}}": "11x20", f"tidelog_memory_limit_bytes{{{ONE}}}": "10x20"},
        {f"process_resident_memory_bytes{{{ONE}}}": "9x20", f"tidelog_memory_limit_bytes{{{ONE}}}": "10x20"},
        at="10m",
        labels=ON,
    ),
    Case("TidelogEventLoopLag", *slow("tidelog_event_loop_lag_seconds", "0.25"), at="30m", labels=BY_INSTANCE),
    Case(
        "TidelogConsumerLag",
        *gauge("tidelog_consumer_lag_seconds", "400x30", "200x30", ',group="g",topic="t"'),
        at="20m",
        labels={**ON, "group": "g", "topic": "t"},
    ),
    Case("TidelogPartitionsNotLoaded", *gauge("tidelog_partitions_loading", "3x30", "0x30"), at="20m", labels=ON),
    Case(
        "TidelogDeletionStalled",
        *gauge("tidelog_objects", "2000x200", "10x200", ',state="expired"'),
        at="150m",
        labels={**ON, "state": "expired"},
    ),
    Case(
        "TidelogCompactionDiscarded",
        *gauge("tidelog_compaction_jobs_total", "0+1x60", "0 1x60", ',result="discarded"'),
        at="50m",
        labels={**ON, "result": "discarded"},
    ),
    Case(
        "TidelogCompactionRestarts",
        *gauge("tidelog_compaction_process_restarts_total", "0+1x20", "0 1x20"),
        at="15m",
        labels=ON,
    ),
    Case(
        "TidelogSnapshotsStalled",
        *gauge("tidelog_metadata_unsnapshotted_bytes", "300000000x30", "1000x30"),
        at="20m",
        labels=ON,
    ),
    Case(
        "TidelogFilesNearLimit",
        {f"process_open_fds{{{ONE}}}": "900x20", f"process_max_fds{{{ONE}}}": "1000x20"},
        {f"process_open_fds{{{ONE}}}": "90x20", f"process_max_fds{{{ONE}}}": "1000x20"},
        at="10m",
        labels=ON,
    ),
    Case(
        "TidelogLogSuppressed",
        *gauge("tidelog_log_suppressed_lines_total", "0+60x60", "0x60"),
        at="50m",
        labels=ON,
    ),
]


def promtool_test(case: Case, series: dict[str, str], *, fires: bool) -> dict[str, Any]:
    (alert,) = (alert for alert in alerts() if alert.name == case.alert)
    expected = {
        "exp_labels": {**case.labels, "severity": alert.severity},
        "exp_annotations": {
            "summary": alert.meaning,
            "runbook_url": alert.runbook,
            **({"description": case.description} if case.description else {}),
        },
    }
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": case.at, "alertname": case.alert, "exp_alerts": [expected] if fires else []},
        ],
    }


def test_they_fire_when_they_should_and_not_before(promtool: str, tmp_path: Path) -> None:
    tests = [promtool_test(case, case.fires, fires=True) for case in CASES]
    tests += [promtool_test(case, case.rests, fires=False) for case in CASES if case.rests]
    file = tmp_path / "alerts_test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    run(promtool, "test", "rules", file)


def test_what_somebody_is_called_for_is_tested() -> None:
    assert {case.alert for case in CASES} >= CRITICAL
    assert {case.alert for case in CASES if case.description} == DESCRIPTIONS.keys()
