"""Hands the figures of one broker to prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.exposition.described import Described, Parts, Sample
from broker.exposition.table import SECTIONS
from wal.histogram import Histogram

__all__ = ["BrokerCollector"]


class BrokerCollector(Collector):
    """Reads all metrics of one broker; what prometheus_client calls a custom collector."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """Read everything, on the event loop of the broker."""
        for _, section in SECTIONS:
            for described in section:
                yield _family(described, described.read(self._parts))


def _family(described: Described, samples: Iterable[Sample]) -> Metric:
    name, text, labels = described.name, described.help, described.labels
    if described.kind == "histogram":
        histograms = HistogramMetricFamily(name, text, labels=labels)
        for values, found in samples:
            assert isinstance(found, Histogram)
            histograms.add_metric(values, _buckets(found), found.total)
        return histograms
    family = (CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for values, number in samples:
        assert not isinstance(number, Histogram)
        family.add_metric(values, number)
    return family


def _buckets(found: Histogram) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(_bound, found.bounds), "+Inf"), found.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _bound(value: float) -> str:
    return repr(float(value))
