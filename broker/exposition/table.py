"""Every metric that a broker exports: its name, what it means, and where its value is read.

Always true:
- Nothing is counted here. Values are read from plain attributes of the parts when somebody asks; that is the only cost of most of them.
- Reading happens on the event loop that changes the values, in one go: the figures of one scrape belong together. What comes out are
  values of prometheus_client, which another thread may turn into text.
- Names follow Prometheus's conventions: `tidelog_` first, base units, `_total` for what only grows. Labels have few values: topics
  are capped (`metrics.max.topics`), everything else is bounded by this code.
- `docs/metrics.md` is written from this table (`python -m broker.exposition`), and a test compares them.
"""

from __future__ import annotations

from broker.exposition import clients, cluster, storage
from broker.exposition.described import Described

__all__ = ["SECTIONS", "as_markdown"]

SECTIONS: tuple[tuple[str, tuple[Described, ...]], ...] = (*clients.SECTIONS, *storage.SECTIONS, *cluster.SECTIONS)
"""Every metric, in the order of the documentation."""

_INTRODUCTION = """\
# Metrics

Written by `make docs` from the tables in `broker/exposition/`: change that.

`metrics.listeners` says where `/metrics` is served; [operations](operations.md) tells what to watch and what to do. Besides what is
below, there are the usual figures of a process and of Python: `process_resident_memory_bytes`, `process_cpu_seconds_total`,
`process_open_fds`, `process_max_fds`, `process_start_time_seconds`, `process_virtual_memory_bytes`, `python_gc_collections_total`,
`python_gc_objects_collected_total`, `python_gc_objects_uncollectable_total`.

- All counters begin at 0 with the process, but for `tidelog_metadata_applied_entries_total`, which is a position in the metadata log.
- A histogram has `_bucket`, `_sum` and `_count`; the count is what to take rates of.
- Series come into being when something first happens: an error that never occurred has none.
- The first `metrics.max.topics` topics have series of their own, and lose them when they are deleted. A topic that came when there
  was no place is counted as `(other)` until the next start.
- Before the broker serves, during recovery, there are only the figures of process and Python.
"""


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = [_INTRODUCTION]
    for title, section in SECTIONS:
        lines += [f"## {title}", "", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        for described in section:
            labels = ", ".join(f"`{label}`" for label in described.labels)
            lines.append(f"| `{described.name}` | {described.kind} | {labels} | {described.help} |")
        lines.append("")
    return "\n".join(lines)
