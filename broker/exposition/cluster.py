"""Figures of the metadata, of damage, and of the process."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

from broker.damage import MAX_NAMED_RANGES, NamedRange
from broker.exposition.described import Described, Parts, Sample, by_value, counter, gauge, histogram, labelled
from broker.logs import FIGURES
from controller.losses import known_loss
from controller.lost_wals import lost_wals, streams_of_dead
from controller.records import Unuploaded
from controller.tables import NodeStatus
from wal.histogram import Histogram

__all__ = ["SECTIONS"]


def _objects(parts: Parts) -> Mapping[str, float | Histogram]:
    tables = parts.controller.image.state.tables
    return {
        "referenced": len(tables.objects),
        "unreferenced": len(tables.unreferenced),
        "expired": len(tables.expired),
    }


def _offline(parts: Parts) -> Mapping[str, float | Histogram]:
    controller = parts.controller
    return {
        "damage": parts.partitions.offline_count,
        "dead_node": streams_of_dead(controller.image.state.tables) if controller.is_leader else 0,
    }


def _reported(value_of: Callable[[Unuploaded], float], parts: Parts) -> Iterable[Sample]:
    """Of each dead node whose WAL partitions wait for; told by the node that leads."""
    if not parts.controller.is_leader:
        return []
    tables = parts.controller.image.state.tables
    losses = [(wal, known_loss(tables, wal.wal_id)) for wal in lost_wals(tables)]
    return [
        ((str(wal.node_id), wal.wal_id), math.nan if loss is None or loss.held is None else value_of(loss.held))
        for wal, loss in losses
    ]


def _statuses(parts: Parts) -> Mapping[str, float | Histogram]:
    counts = dict.fromkeys((status.name.lower() for status in NodeStatus), 0)
    for node_id in parts.controller.image.state.tables.nodes:
        counts[parts.controller.image.node_status(node_id).name.lower()] += 1
    return counts


def _looks(parts: Parts) -> Mapping[str, float | Histogram]:
    return {} if parts.lookout is None else {str(found): count for found, count in parts.lookout.found.items()}


def _unreferenced_bytes(parts: Parts) -> float:
    return sum(value.size_bytes for value in parts.controller.image.state.tables.unreferenced.values())


def _damaged(offset_of: Callable[[NamedRange], float], parts: Parts) -> Iterable[Sample]:
    return [
        ((found.topic, str(found.partition), found.place), offset_of(found))
        for found in islice(parts.damage.ranges(), MAX_NAMED_RANGES)
    ]


def _product_version() -> str:
    try:
        return version("tidelog")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


SECTIONS: tuple[tuple[str, tuple[Described, ...]], ...] = (
    (
        "Metadata",
        (
            counter(
                "tidelog_metadata_applied_entries_total",
                "Entries of the metadata log up to the last one applied here.",
                lambda parts: parts.controller.applied_index + 1,
            ),
            gauge(
                "tidelog_metadata_snapshot_size_bytes",
                "Size of the newest snapshot of the metadata that this node loaded or wrote; 0 before the first.",
                lambda parts: parts.controller.snapshot_size_bytes,
            ),
            gauge(
                "tidelog_metadata_unsnapshotted_bytes",
                "Metadata log entries since then.",
                lambda parts: parts.controller.bytes_since_snapshot,
            ),
            gauge(
                "tidelog_controller_leader",
                "1 while this node's controller holds the office, as far as it knows; an idle one does not need it.",
                lambda parts: parts.controller.is_leader,
            ),
            gauge(
                "tidelog_nodes",
                "Nodes that are registered.",
                lambda parts: len(parts.controller.image.state.tables.nodes),
            ),
            gauge(
                "tidelog_nodes_living",
                "Nodes that this one hears from while it leads; 1 elsewhere, and where there are no others.",
                lambda parts: parts.controller.membership.living_count,
            ),
            labelled(
                "gauge",
                "tidelog_registered_nodes",
                "status",
                "Registered nodes by what the metadata say of them: alive, suspect (not heard from: they get no lease), dead (taken for dead, or "
                "stopped in order).",
                by_value(_statuses),
            ),
            counter(
                "tidelog_node_suspicions_total",
                "How often this node, while it led, suspected another that it did not hear from.",
                lambda parts: parts.controller.membership.suspicions,
            ),
            counter(
                "tidelog_node_deaths_total",
                "Nodes that this node, while it led, took for dead.",
                lambda parts: parts.controller.membership.deaths,
            ),
            gauge(
                "tidelog_lease_remaining_seconds",
                "For how long this node may answer readers and groups without another look at the bucket; 0: it does not. Infinite where it is "
                "alone, and needs no lease.",
                lambda parts: float("inf") if parts.lease is None else parts.lease.remaining_s,
            ),
            counter(
                "tidelog_lease_lapses_total",
                "How often this node was without a lease after it had one.",
                lambda parts: 0 if parts.lease is None else parts.lease.lapses,
            ),
            labelled(
                "counter",
                "tidelog_lease_looks_total",
                "found",
                "Looks that a thread had at the bucket for the lease, since the event loop was late: tail (the lease holds on), concern (an entry that "
                "may end it, which the event loop is to see), failure (no answer in time). None while the event loop renews the lease itself.",
                by_value(_looks),
            ),
            counter(
                "tidelog_partition_reassignments_total",
                "Partitions that this node, while it led, had moved to other nodes: from one that stopped, or to make counts even.",
                lambda parts: parts.controller.membership.moves,
            ),
            counter(
                "tidelog_partitions_given_total",
                "Partitions that this node gave to others.",
                lambda parts: parts.handover.moved,
            ),
            counter(
                "tidelog_awaited_partitions_total",
                "Times that a request waited for a partition that was about to be served here.",
                lambda parts: parts.arrivals.waited,
            ),
            labelled(
                "counter",
                "tidelog_peer_bytes_total",
                "direction",
                "Bytes that this node sent to others, and received from them, over the connections of controllers: commands and entries of the "
                "metadata log. Nothing else goes between nodes, least of all records.",
                by_value(
                    lambda parts: {
                        "sent": parts.peer_traffic.sent_bytes,
                        "received": parts.peer_traffic.received_bytes,
                    }
                ),
            ),
            gauge(
                "tidelog_topics",
                "Topics of the cluster.",
                lambda parts: len(parts.topics.by_id),
            ),
            gauge(
                "tidelog_streams",
                "Streams (partitions) of the cluster.",
                lambda parts: parts.controller.image.partition_count,
            ),
            labelled(
                "gauge",
                "tidelog_objects",
                "state",
                "Data objects in the metadata: referenced, unreferenced (kept for their grace period and the restore window), "
                "expired (about to be deleted).",
                by_value(_objects),
            ),
            gauge(
                "tidelog_unreferenced_bytes",
                "Size of the unreferenced data objects: what waits for its deletion.",
                _unreferenced_bytes,
            ),
            gauge("tidelog_partitions", "Partitions open on this node.", lambda parts: len(parts.partitions)),
            gauge(
                "tidelog_partitions_loading",
                "Of them, those whose state is not rebuilt yet: they are read, and not written.",
                lambda parts: parts.partitions.loading_count,
            ),
            labelled(
                "gauge",
                "tidelog_offline_partitions",
                "reason",
                "Partitions that take no records: damage (of those of this node; producers are answered KAFKA_STORAGE_ERROR), dead_node (of the whole "
                "cluster, told by the node that leads: their node is dead, and nobody has recovered its WAL yet; clients find no leader).",
                by_value(_offline),
            ),
            labelled(
                "gauge",
                "tidelog_lost_wal_reported_records",
                ("node", "wal_id"),
                "Records that a dead node last reported to hold in its WAL alone, while partitions wait for that WAL; told by the node that leads. So "
                "many, or more, are lost where it is given up, but for those that came into objects after the report. NaN: no report is known.",
                partial(_reported, lambda held: held.record_count),
            ),
            labelled(
                "gauge",
                "tidelog_lost_wal_reported_bytes",
                ("node", "wal_id"),
                "Their size.",
                partial(_reported, lambda held: held.size_bytes),
            ),
            counter(
                "tidelog_recovered_wals_total",
                "WALs of dead nodes that this node recovered.",
                lambda parts: parts.failover.recovered_wals,
            ),
            counter(
                "tidelog_recovered_partitions_total",
                "Partitions that were open on them, and go on.",
                lambda parts: parts.failover.recovered_partitions,
            ),
        ),
    ),
    (
        "Damage",
        (
            labelled(
                "gauge",
                "tidelog_damaged_ranges",
                "source",
                "Ranges of offsets that this node found damaged or missing, and that were neither restored nor given up since: records in"
                " objects (object), states of partitions in objects (state), records in a WAL that was set aside (wal).",
                by_value(lambda parts: dict(parts.damage.counts())),
            ),
            labelled(
                "gauge",
                "tidelog_damaged_range_first_offset",
                ("topic", "partition", "place"),
                f"First offset of each damaged range of records; the first {MAX_NAMED_RANGES} ranges only.",
                partial(_damaged, lambda found: found.first_offset),
            ),
            labelled(
                "gauge",
                "tidelog_damaged_range_last_offset",
                ("topic", "partition", "place"),
                "Last offset of each, inclusive; infinite where nobody can tell how many records a damaged WAL held.",
                partial(_damaged, lambda found: found.last_offset),
            ),
        ),
    ),
    (
        "The process",
        (
            histogram(
                "tidelog_event_loop_lag_seconds",
                "How much later than planned the event loop came to a timer, four times a second.",
                lambda parts: parts.event_loop.lag,
            ),
            labelled(
                "counter",
                "tidelog_log_lines_total",
                "level",
                "Lines written to the process's log, by level; where the process writes its own (tidelog serve, tidelog dev).",
                by_value(lambda parts: dict(FIGURES.lines)),
            ),
            counter(
                "tidelog_log_suppressed_lines_total",
                "Lines left out because the same event was written too often.",
                lambda parts: FIGURES.suppressed_lines,
            ),
            labelled(
                "gauge",
                "tidelog_build_info",
                ("version", "python"),
                "Always 1; the labels say what runs.",
                lambda parts: (((_product_version(), sys.version.split()[0]), 1),),
            ),
        ),
    ),
)
