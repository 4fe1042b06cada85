"""Grafana's dashboards: one for brokers, storage, the cluster and consumer groups each.

A panel is a line of a table here; JSON is made of it, so that places, ids and units need no care. Grafana imports the files as they are, and
its provisioning and its sidecar take them from a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["DASHBOARDS", "Panel", "dashboard_json"]


class Panel(NamedTuple):
    """A graph."""

    title: str
    unit: str
    """Of Grafana's: s, Bps, short …"""
    queries: Mapping[str, str]
    """Expressions by their legend."""
    about: str = ""
    stacked: bool = False


class Row(NamedTuple):
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


WHERE = 'job=~"$job",instance=~"$instance"'
PER = "[$__rate_interval]"


def _rate(metric: str, by: str = "instance", more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{WHERE}{more}}}{PER}))"


def _gauge(metric: str, more: str = "") -> str:
    return f"{metric}{{{WHERE}{more}}}"


def _sum(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) ({_gauge(metric, more)})"


def _quantile(q: float, metric: str, by: str = "instance", more: str = "") -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{WHERE}{more}}}{PER})))"


def _quantiles(metric: str, by: str = "instance", more: str = "") -> dict[str, str]:
    legend = " ".join(f"{{{{{name.strip()}}}}}" for name in by.split(","))
    return {f"p99 {legend}": _quantile(0.99, metric, by, more), f"p50 {legend}": _quantile(0.5, metric, by, more)}


def _of_lost_wals(metric: str) -> str:
    return f"max by (node, wal_id) ({_gauge(metric)})"


_I = "{{instance}}"

DASHBOARDS: Mapping[str, tuple[str, Sequence[Row]]] = {
    "broker": (
        "Tidelog: brokers",
        (
            Row(
                "Traffic",
                (
                    Panel(
                        "Bytes in", "Bps", {"{{topic}}": _rate("tidelog_received_bytes_total", "topic")}, stacked=True
                    ),
                    Panel("Bytes out", "Bps", {"{{topic}}": _rate("tidelog_sent_bytes_total", "topic")}, stacked=True),
                    Panel(
                        "Records in",
                        "short",
                        {"{{topic}}": _rate("tidelog_received_records_total", "topic")},
                        stacked=True,
                    ),
                    Panel(
                        "Bytes in and out by broker",
                        "Bps",
                        {
                            f"in {_I}": _rate("tidelog_received_bytes_total"),
                            f"out {_I}": _rate("tidelog_sent_bytes_total"),
                        },
                    ),
                ),
            ),
            Row(
                "Requests",
                (
                    Panel(
                        "Requests a second",
                        "reqps",
                        {"{{api}}": _rate("tidelog_request_duration_seconds_count", "api")},
                        stacked=True,
                    ),
                    Panel(
                        "Produce: time to the acknowledgement",
                        "s",
                        _quantiles("tidelog_request_duration_seconds", more=',api="Produce"'),
                    ),
                    Panel(
                        "Fetch: time without waiting for data",
                        "s",
                        _quantiles("tidelog_request_duration_seconds", more=',api="Fetch"'),
                    ),
                    Panel(
                        "99 of 100 requests take at most",
                        "s",
                        {"{{api}}": _quantile(0.99, "tidelog_request_duration_seconds", "api")},
                    ),
                    Panel(
                        "Error codes answered",
                        "short",
                        {"{{api}} {{error}}": _rate("tidelog_request_errors_total", "api, error")},
                        "Many are part of normal life, such as UNKNOWN_TOPIC_OR_PARTITION before a topic is created.",
                    ),
                    Panel(
                        "Fetches",
                        "short",
                        {
                            f"waiting {_I}": _gauge("tidelog_fetches_waiting"),
                            f"delayed a second {_I}": _rate("tidelog_fetches_delayed_total"),
                            f"late a second {_I}": _rate("tidelog_fetches_late_total"),
                        },
                    ),
                ),
            ),
            Row(
                "Connections and back-pressure",
                (
                    Panel("Connections", "short", {_I: _gauge("tidelog_connections")}),
                    Panel(
                        "Connections closed by the broker",
                        "short",
                        {"{{cause}}": _rate("tidelog_connections_closed_total", "cause")},
                    ),
                    Panel(
                        "Connections held back",
                        "short",
                        {"{{reason}}": _sum("tidelog_connections_held_back", "reason")},
                        "Their requests wait for room in the log, or for memory.",
                    ),
                    Panel(
                        "Time in which producers were held back",
                        "percentunit",
                        {_I: f"rate(tidelog_produce_stalled_seconds_total{{{WHERE}}}{PER})"},
                    ),
                ),
            ),
            Row(
                "The process",
                (
                    Panel("Event loop lag", "s", _quantiles("tidelog_event_loop_lag_seconds")),
                    Panel(
                        "Cores used",
                        "short",
                        {
                            _I: f"rate(process_cpu_seconds_total{{{WHERE}}}{PER})",
                            f"compaction {_I}": f"rate(tidelog_compaction_process_cpu_seconds_total{{{WHERE}}}{PER})",
                        },
                    ),
                    Panel(
                        "Memory against its bound",
                        "percentunit",
                        {_I: f"{_gauge('process_resident_memory_bytes')} / {_gauge('tidelog_memory_limit_bytes')}"},
                    ),
                    Panel(
                        "Pools against their bounds",
                        "percentunit",
                        {
                            f"{{{{pool}}}} {_I}": f"{_gauge('tidelog_buffer_used_bytes')} / {_gauge('tidelog_buffer_limit_bytes')}"
                        },
                        "A full arena and full caches are normal.",
                    ),
                    Panel(
                        "Lines of the log",
                        "short",
                        {
                            "{{level}}": _rate("tidelog_log_lines_total", "level", ',level=~"warning|error"'),
                            "suppressed": f"sum(rate(tidelog_log_suppressed_lines_total{{{WHERE}}}{PER}))",
                        },
                    ),
                    Panel(
                        "Open files against the limit",
                        "percentunit",
                        {_I: f"{_gauge('process_open_fds')} / {_gauge('process_max_fds')}"},
                    ),
                ),
            ),
        ),
    ),
    "storage": (
        "Tidelog: storage",
        (
            Row(
                "Write-ahead log",
                (
                    Panel(
                        "Acknowledged, and in no object yet",
                        "bytes",
                        {_I: _gauge("tidelog_wal_unuploaded_bytes")},
                        "What the loss of the WAL would cost now.",
                    ),
                    Panel("Age of the oldest of it", "s", {_I: _gauge("tidelog_wal_unuploaded_age_seconds")}),
                    Panel("Time of a write", "s", _quantiles("tidelog_wal_commit_duration_seconds", "instance, kind")),
                    Panel(
                        "WAL in use",
                        "percentunit",
                        {_I: f"{_gauge('tidelog_wal_used_bytes')} / {_gauge('tidelog_wal_capacity_bytes')}"},
                    ),
                    Panel(
                        "Batches in a write",
                        "short",
                        {
                            _I: f"{_rate('tidelog_wal_commit_batches_sum')} / {_rate('tidelog_wal_commit_batches_count')}"
                        },
                        "Group commit: more under load.",
                    ),
                    Panel("Second PUTs of a WAL in a bucket", "short", {_I: _rate("tidelog_wal_hedged_puts_total")}),
                ),
            ),
            Row(
                "Uploads",
                (
                    Panel("Uploaded", "Bps", {_I: _rate("tidelog_upload_bytes_total")}),
                    Panel("Time of the PUTs of a block", "s", _quantiles("tidelog_upload_put_duration_seconds")),
                    Panel(
                        "Time of its commit to the metadata", "s", _quantiles("tidelog_upload_commit_duration_seconds")
                    ),
                    Panel("Tried again", "short", {_I: _rate("tidelog_upload_retries_total")}),
                ),
            ),
            Row(
                "Object store",
                (
                    Panel(
                        "Requests",
                        "reqps",
                        {"{{operation}}": _rate("tidelog_object_store_request_duration_seconds_count", "operation")},
                    ),
                    Panel(
                        "99 of 100 requests take at most",
                        "s",
                        {
                            "{{operation}}": _quantile(
                                0.99, "tidelog_object_store_request_duration_seconds", "operation"
                            )
                        },
                    ),
                    Panel(
                        "Errors",
                        "short",
                        {
                            "{{operation}} {{error}}": _rate(
                                "tidelog_object_store_request_errors_total", "operation, error"
                            )
                        },
                        "NotFound, PreconditionFailed and WriteConflict are answers.",
                    ),
                    Panel(
                        "Bytes",
                        "Bps",
                        {"{{operation}}": _rate("tidelog_object_store_transferred_bytes_total", "operation")},
                    ),
                    Panel(
                        "Requests as they are billed",
                        "reqps",
                        {
                            "{{purpose}} {{request}}": _rate(
                                "tidelog_object_store_billed_requests_total", "purpose, request"
                            )
                        },
                    ),
                    Panel(
                        "Dollars a month for requests, at S3's list prices",
                        "currencyUSD",
                        {
                            "{{purpose}}": f"2592000 * ({_rate('tidelog_object_store_billed_requests_total', 'purpose', ',request=~' + chr(34) + 'put|list' + chr(34))} * 5e-6"
                            f" + ({_rate('tidelog_object_store_billed_requests_total', 'purpose', ',request=' + chr(34) + 'get' + chr(34))} * 4e-7 or 0 * {_rate('tidelog_object_store_billed_requests_total', 'purpose')}))"
                        },
                        "At the rate of just now: docs/operations.md tells what it costs.",
                        stacked=True,
                    ),
                ),
            ),
            Row(
                "Reads",
                (
                    Panel("Reads of partitions", "short", {"{{source}}": _rate("tidelog_fetch_reads_total", "source")}),
                    Panel(
                        "Hits of the block cache",
                        "percentunit",
                        {
                            _I: f"{_rate('tidelog_block_cache_lookups_total', more=',result=' + chr(34) + 'hit' + chr(34))} / {_rate('tidelog_block_cache_lookups_total')}"
                        },
                    ),
                    Panel(
                        "GETs of consumers that catch up",
                        "short",
                        {
                            f"under way {_I}": _gauge("tidelog_catch_up_requests"),
                            f"waiting {_I}": _gauge("tidelog_catch_up_requests_waiting"),
                        },
                    ),
                    Panel(
                        "Time in which the rate held them back",
                        "percentunit",
                        {_I: f"rate(tidelog_catch_up_throttled_seconds_total{{{WHERE}}}{PER})"},
                    ),
                ),
            ),
            Row(
                "Compaction and deletion",
                (
                    Panel(
                        "Compaction",
                        "Bps",
                        {
                            "read": f"sum(rate(tidelog_compaction_read_bytes_total{{{WHERE}}}{PER}))",
                            "written": f"sum(rate(tidelog_compaction_written_bytes_total{{{WHERE}}}{PER}))",
                            "copied by the store": f"sum(rate(tidelog_compaction_copied_bytes_total{{{WHERE}}}{PER}))",
                        },
                    ),
                    Panel("Jobs", "short", {"{{result}}": _rate("tidelog_compaction_jobs_total", "result")}),
                    Panel("Objects", "short", {"{{state}}": f"max by (state) ({_gauge('tidelog_objects')})"}),
                    Panel(
                        "Waiting for its deletion",
                        "bytes",
                        {"unreferenced": f"max({_gauge('tidelog_unreferenced_bytes')})"},
                        "Kept for the restore window (metadata.restore.window.ms).",
                    ),
                    Panel("Damaged ranges", "short", {f"{{{{source}}}} {_I}": _gauge("tidelog_damaged_ranges")}),
                ),
            ),
        ),
    ),
    "cluster": (
        "Tidelog: cluster",
        (
            Row(
                "Brokers",
                (
                    Panel(
                        "Brokers",
                        "short",
                        {
                            "registered": f"max({_gauge('tidelog_nodes')})",
                            "{{status}}": f"max by (status) ({_gauge('tidelog_registered_nodes')})",
                            "heard of by the leader": f"max({_gauge('tidelog_nodes_living')})",
                            "scraped": f"sum({_gauge('up')})",
                        },
                    ),
                    Panel(
                        "Controllers that hold the office",
                        "short",
                        {_I: _gauge("tidelog_controller_leader")},
                        "One at a time; the metadata log says which.",
                    ),
                    Panel("Partitions", "short", {_I: _gauge("tidelog_partitions")}, stacked=True),
                    Panel(
                        "Partitions that take no records",
                        "short",
                        {
                            f"offline, {{{{reason}}}} {_I}": _gauge("tidelog_offline_partitions"),
                            f"loading {_I}": _gauge("tidelog_partitions_loading"),
                        },
                    ),
                    Panel("Bytes in", "Bps", {_I: _rate("tidelog_received_bytes_total")}, stacked=True),
                    Panel("Bytes out", "Bps", {_I: _rate("tidelog_sent_bytes_total")}, stacked=True),
                ),
            ),
            Row(
                "Failures",
                (
                    Panel(
                        "Brokers suspected, and taken for dead",
                        "short",
                        {
                            "suspected": f"sum(increase(tidelog_node_suspicions_total{{{WHERE}}}{PER}))",
                            "taken for dead": f"sum(increase(tidelog_node_deaths_total{{{WHERE}}}{PER}))",
                        },
                    ),
                    Panel(
                        "Left of the lease",
                        "s",
                        {_I: _gauge("tidelog_lease_remaining_seconds")},
                        "Without one a broker answers neither readers nor groups. Infinite where a broker is alone.",
                    ),
                    Panel(
                        "Recovered of dead brokers",
                        "short",
                        {
                            f"WALs {_I}": f"increase(tidelog_recovered_wals_total{{{WHERE}}}{PER})",
                            f"partitions {_I}": f"increase(tidelog_recovered_partitions_total{{{WHERE}}}{PER})",
                        },
                    ),
                    Panel(
                        "Between brokers",
                        "Bps",
                        {f"{{{{direction}}}} {_I}": _rate("tidelog_peer_bytes_total", "instance, direction")},
                    ),
                    Panel(
                        "Records that only lost WALs held",
                        "short",
                        {"node {{node}}, WAL {{wal_id}}": _of_lost_wals("tidelog_lost_wal_reported_records")},
                        "By the last report of their brokers, which are dead: so much or more is lost where a WAL is given up. Named without a value: "
                        "no report is known.",
                    ),
                    Panel(
                        "Bytes that only lost WALs held",
                        "bytes",
                        {"node {{node}}, WAL {{wal_id}}": _of_lost_wals("tidelog_lost_wal_reported_bytes")},
                        "tidelog wal abandon, with that WAL's id, prints what of each partition would be given up.",
                    ),
                ),
            ),
            Row(
                "Zones",
                (
                    Panel(
                        "Sent to consumers",
                        "Bps",
                        {"zone {{zone}}": _rate("tidelog_fetched_bytes_total", "zone")},
                        "In the broker's own zone, in another, or unknown.",
                        stacked=True,
                    ),
                    Panel(
                        "Taken from producers",
                        "Bps",
                        {"zone {{zone}}": _rate("tidelog_produced_bytes_total", "zone")},
                        "Likewise.",
                        stacked=True,
                    ),
                    Panel(
                        "Consumers sent to their zone, and back to the leader",
                        "short",
                        {"{{to}}": _rate("tidelog_fetch_redirects_total", "to")},
                    ),
                ),
            ),
            Row(
                "Moves",
                (
                    Panel(
                        "Partitions that the leader moves",
                        "short",
                        {_I: _rate("tidelog_partition_reassignments_total")},
                    ),
                    Panel("Partitions given to others", "short", {_I: _rate("tidelog_partitions_given_total")}),
                ),
            ),
            Row(
                "Metadata",
                (
                    Panel(
                        "Entries applied a second",
                        "short",
                        {_I: f"rate(tidelog_metadata_applied_entries_total{{{WHERE}}}{PER})"},
                    ),
                    Panel(
                        "Entries behind the newest",
                        "short",
                        {
                            _I: f"scalar(max({_gauge('tidelog_metadata_applied_entries_total')})) - {_gauge('tidelog_metadata_applied_entries_total')}"
                        },
                    ),
                    Panel(
                        "Size",
                        "bytes",
                        {
                            f"snapshot {_I}": _gauge("tidelog_metadata_snapshot_size_bytes"),
                            f"since then {_I}": _gauge("tidelog_metadata_unsnapshotted_bytes"),
                        },
                    ),
                    Panel(
                        "Topics and partitions",
                        "short",
                        {
                            "topics": f"max({_gauge('tidelog_topics')})",
                            "partitions": f"max({_gauge('tidelog_streams')})",
                        },
                    ),
                ),
            ),
            Row(
                "Versions",
                (
                    Panel(
                        "Brokers by version",
                        "short",
                        {
                            "{{version}} on Python {{python}}": f"count by (version, python) ({_gauge('tidelog_build_info')})"
                        },
                        stacked=True,
                    ),
                ),
            ),
        ),
    ),
    "groups": (
        "Tidelog: consumer groups",
        (
            Row(
                "Lag",
                (
                    Panel(
                        "Behind, in seconds",
                        "s",
                        {
                            "{{group}} {{topic}}": f"max by (group, topic) ({_gauge('tidelog_consumer_lag_seconds', ',group=~' + chr(34) + '$group' + chr(34))})"
                        },
                        "Age of the first record that is not committed.",
                    ),
                    Panel(
                        "Behind, in records",
                        "short",
                        {
                            "{{group}} {{topic}}": _sum(
                                "tidelog_consumer_lag_records", "group, topic", ',group=~"$group"'
                            )
                        },
                    ),
                ),
            ),
            Row(
                "Groups",
                (
                    Panel(
                        "Groups by state",
                        "short",
                        {"{{state}}": _sum("tidelog_consumer_groups", "state")},
                        stacked=True,
                    ),
                    Panel("Members", "short", {_I: _gauge("tidelog_consumer_members")}, stacked=True),
                    Panel(
                        "Partitions of __consumer_offsets",
                        "short",
                        {"{{state}}": _sum("tidelog_offsets_partitions", "state")},
                        stacked=True,
                    ),
                    Panel(
                        "Memory of groups",
                        "percentunit",
                        {
                            _I: f"{_gauge('tidelog_buffer_used_bytes', ',pool=' + chr(34) + 'groups' + chr(34))} / {_gauge('tidelog_buffer_limit_bytes', ',pool=' + chr(34) + 'groups' + chr(34))}"
                        },
                    ),
                ),
            ),
            Row(
                "Requests of groups",
                (
                    Panel(
                        "Requests",
                        "reqps",
                        {
                            "{{api}}": _rate(
                                "tidelog_request_duration_seconds_count",
                                "api",
                                ',api=~"JoinGroup|SyncGroup|Heartbeat|LeaveGroup|OffsetCommit|OffsetFetch|FindCoordinator"',
                            )
                        },
                    ),
                    Panel(
                        "99 of 100 commits take at most",
                        "s",
                        {_I: _quantile(0.99, "tidelog_request_duration_seconds", more=',api="OffsetCommit"')},
                    ),
                ),
            ),
        ),
    ),
}

_HEIGHT = 8
_WIDTH = 12


def dashboard_json(name: str) -> str:
    """A dashboard as Grafana imports it."""
    title, rows = DASHBOARDS[name]
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append(
            {
                "type": "row",
                "id": len(panels) + 1,
                "title": row.title,
                "collapsed": False,
                "gridPos": _at(0, y, 24, 1),
                "panels": [],
            }
        )
        y += 1
        for number, panel in enumerate(row.panels):
            x = _WIDTH * (number % 2)
            panels.append(_graph(panel, len(panels) + 1, _at(x, y, _WIDTH, _HEIGHT)))
            if x or number == len(row.panels) - 1:
                y += _HEIGHT
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        _variable("job", "label_values(tidelog_build_info, job)", "Cluster (job)"),
        _variable("instance", 'label_values(tidelog_build_info{job=~"$job"}, instance)', "Broker"),
    ]
    if name == "groups":
        variables.append(_variable("group", 'label_values(tidelog_consumer_lag_records{job=~"$job"}, group)', "Group"))
    dashboard = {
        "uid": f"tidelog-{name}",
        "title": title,
        "tags": ["tidelog"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "links": [
            {
                "type": "dashboards",
                "tags": ["tidelog"],
                "title": "Tidelog",
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "annotations": {"list": []},
        "panels": panels,
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _variable(name: str, query: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _graph(panel: Panel, panel_id: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "id": panel_id,
        "title": panel.title,
        "description": panel.about,
        "gridPos": place,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {
                    "drawStyle": "line",
                    "fillOpacity": 20 if panel.stacked else 0,
                    "showPoints": "never",
                    "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                },
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "expr": expression,
                "legendFormat": legend,
                "editorMode": "code",
                "range": True,
            }
            for number, (legend, expression) in enumerate(panel.queries.items())
        ],
    }
