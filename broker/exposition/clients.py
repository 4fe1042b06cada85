"""Figures of what clients do: requests, topics, groups, connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from broker.exposition.described import Described, Parts, Sample, by_value, counter, gauge, histogram, labelled
from broker.group_lag import Lag
from broker.metrics import OTHER, TopicTraffic
from protocol.apis import API
from protocol.errors import ErrorCode
from wal.histogram import Histogram

__all__ = ["SECTIONS"]


def _api_name(api_key: int) -> str:
    return API[api_key].name if api_key in API else str(api_key)


_ERROR_NAMES = {int(code): code.name for code in ErrorCode}


def _error_name(code: int) -> str:
    return _ERROR_NAMES.get(code, str(code))


def _request_durations(parts: Parts) -> Iterable[Sample]:
    return [((_api_name(key),), found.duration) for key, found in sorted(parts.metrics.apis.items())]


def _request_errors(parts: Parts) -> Iterable[Sample]:
    return [
        ((_api_name(key), _error_name(code)), count)
        for key, found in sorted(parts.metrics.apis.items())
        for code, count in sorted(found.errors.items())
    ]


def _topics(value: Callable[[TopicTraffic], int], parts: Parts) -> Iterable[Sample]:
    metrics = parts.metrics
    yield from (((name,), value(traffic)) for name, traffic in metrics.topics.items())
    yield (OTHER,), value(metrics.other_topics)


def _held_back(parts: Parts) -> Mapping[str, float | Histogram]:
    server = parts.server
    return {
        "large_requests": server.large_requests.waiting_count,
        "log_full": server.waiting_for_room_count,
        "receive_budget": server.budget.waiting_count,
        "send_budget": server.waiting_to_send_count,
    }


def _lags(value: Callable[[Lag], float], parts: Parts) -> Iterable[Sample]:
    return [(key, value(lag)) for key, lag in parts.group_lag.lags.items()]


SECTIONS: tuple[tuple[str, tuple[Described, ...]], ...] = (
    (
        "Requests",
        (
            labelled(
                "histogram",
                "tidelog_request_duration_seconds",
                "api",
                "Time from a request's arrival to its answer, by Kafka API; its count is the number of requests. Without the time"
                " that a Fetch waits for data; with the time that Produce waits for the log, and a group's members for each other.",
                _request_durations,
            ),
            labelled(
                "counter",
                "tidelog_request_errors_total",
                ("api", "error"),
                "Error codes answered, by Kafka API and Kafka's name of the error. An answer may have several, one a partition."
                " Many are part of normal life, such as UNKNOWN_TOPIC_OR_PARTITION before a topic is created.",
                _request_errors,
            ),
            histogram(
                "tidelog_fetch_wait_seconds",
                "Time that fetches waited for data, or for their time-out (long poll).",
                lambda parts: parts.metrics.fetch_waits,
            ),
            gauge(
                "tidelog_fetches_waiting",
                "Fetches that wait for data, or for objects to be read.",
                lambda parts: parts.waiting_fetches.fetch_count,
            ),
            counter(
                "tidelog_fetches_delayed_total",
                "Fetches that could not be answered at once.",
                lambda parts: parts.metrics.fetches_delayed,
            ),
            counter(
                "tidelog_fetches_late_total",
                "Fetches that were answered after remote.fetch.max.wait.ms, before all that they wanted of objects was there.",
                lambda parts: parts.metrics.fetches_late,
            ),
            labelled(
                "counter",
                "tidelog_fetch_reads_total",
                "source",
                "Reads of single partitions by fetches: from the log cache (log_cache), or from what objects hold (objects).",
                by_value(
                    lambda parts: {
                        "log_cache": parts.metrics.fetch_reads_cached,
                        "objects": parts.metrics.fetch_reads_cold,
                    }
                ),
            ),
            labelled(
                "counter",
                "tidelog_fetched_bytes_total",
                "zone",
                "Bytes of record batches sent to consumers, by where they are: in this broker's zone (own), in another, whose traffic a cloud"
                " bills (other), or nobody says (unknown): broker.rack, client.rack or tidelog_az=… in the client id is not set.",
                by_value(lambda parts: dict(parts.metrics.fetched_bytes)),
            ),
            labelled(
                "counter",
                "tidelog_produced_bytes_total",
                "zone",
                "Bytes of record batches taken from producers, likewise; they say where they are by tidelog_az=… in the client id alone, as Kafka has no"
                " word for it.",
                by_value(lambda parts: {where: found.bytes_in for where, found in parts.metrics.produced.items()}),
            ),
            labelled(
                "counter",
                "tidelog_fetch_redirects_total",
                "to",
                "Partitions of fetches whose consumer was told to read elsewhere: from a broker of its own zone (zone), or, at the end of what"
                " objects hold, from the leader again (leader).",
                by_value(lambda parts: dict(parts.metrics.fetch_redirects)),
            ),
            gauge("tidelog_fetch_sessions", "Incremental fetch sessions.", lambda parts: len(parts.fetch_sessions)),
            gauge(
                "tidelog_fetch_session_partitions",
                "Partitions of all fetch sessions together.",
                lambda parts: parts.fetch_sessions.partition_count,
            ),
        ),
    ),
    (
        "Topics",
        (
            labelled(
                "counter",
                "tidelog_received_bytes_total",
                "topic",
                "Bytes of record batches appended, by topic. Topics beyond metrics.max.topics are summed as (other).",
                partial(_topics, lambda traffic: traffic.bytes_in),
            ),
            labelled(
                "counter",
                "tidelog_received_records_total",
                "topic",
                "Records appended, by topic.",
                partial(_topics, lambda traffic: traffic.records_in),
            ),
            labelled(
                "counter",
                "tidelog_sent_bytes_total",
                "topic",
                "Bytes of record batches sent to consumers, by topic.",
                partial(_topics, lambda traffic: traffic.bytes_out),
            ),
        ),
    ),
    (
        "Consumer groups",
        (
            labelled(
                "gauge",
                "tidelog_consumer_lag_records",
                ("group", "topic"),
                "Records behind a group's committed offsets, all partitions of a topic together, as of the last quarter of a minute. Pairs"
                " beyond metrics.max.groups, in the order of their names, are summed as (other).",
                partial(_lags, lambda lag: lag.records),
            ),
            labelled(
                "gauge",
                "tidelog_consumer_lag_seconds",
                ("group", "topic"),
                "Age of the first record that the group has not committed, by its producer's timestamp, in the partition that is furthest"
                " behind. Exact to a batch for recent records; for those that only objects hold, to the time that one object's records of the"
                " partition span. 0 where records carry no time.",
                partial(_lags, lambda lag: lag.seconds),
            ),
            labelled(
                "gauge",
                "tidelog_consumer_groups",
                "state",
                "Groups that this node coordinates, by Kafka's name of their state.",
                by_value(lambda parts: dict(parts.group_lag.group_counts)),
            ),
            labelled(
                "gauge",
                "tidelog_offsets_partitions",
                "state",
                "Partitions of __consumer_offsets that this node leads: ready, loading, or unreadable (their groups are not served).",
                by_value(lambda parts: dict(parts.groups.place_counts)),
            ),
            gauge(
                "tidelog_consumer_members",
                "Members of all groups together.",
                lambda parts: parts.group_lag.member_count,
            ),
        ),
    ),
    (
        "Connections and back-pressure",
        (
            gauge("tidelog_connections", "Connections that are open.", lambda parts: parts.server.connection_count),
            counter(
                "tidelog_connections_opened_total",
                "Connections accepted.",
                lambda parts: parts.metrics.connections_opened,
            ),
            labelled(
                "counter",
                "tidelog_connections_closed_total",
                "cause",
                "Connections that the broker ended: request (bad or unsupported), limit (max.connections), idle, stuck (took nothing of"
                " its response), slow (held memory that was needed), memory (held receive or send budget), fault (a mistake of the"
                " broker's).",
                by_value(lambda parts: parts.metrics.connections_closed),
            ),
            labelled(
                "gauge",
                "tidelog_connections_held_back",
                "reason",
                "Connections whose requests wait: log_full (WAL or arena), receive_budget (memory for requests that arrive), send_budget"
                " (for responses that were not taken), large_requests (those take turns).",
                by_value(_held_back),
            ),
            counter(
                "tidelog_produce_stalls_total",
                "Times that producers began to be held back because the log was full.",
                lambda parts: parts.metrics.produce_stalls,
            ),
            counter(
                "tidelog_produce_stalled_seconds_total",
                "Time in which producers were held back because the log was full.",
                lambda parts: parts.server.produce_stalled_s,
            ),
        ),
    ),
)
