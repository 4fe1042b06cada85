"""Brokers that come and go under load: `python -m bench joins`.

Always true:
- Two brokers run all the time. A third one joins, takes its share of the partitions, and is stopped by SIGTERM, several times in turn: the first time it is new, then
  it comes back with its WAL. All have default settings but for their memory, and one local directory for objects.
- Clients are librdkafka's with default settings: an idempotent producer of 50 MB/s in records of 10 KB, and a group of one member that reads all of it. An error
  that one of them is told of ends the run.
- The pause of a partition is the longest time from when a record was due to its acknowledgement, or to its delivery; of a join from the start of the process to
  when the broker has its share, of a stop from the signal to a second after the end of the process.
- When a broker takes records, and gives some, is read from its own figures, which it makes anew each half second.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.broker import BrokerFailed
from bench.cluster import TIMEOUT_S, Node, all_of, leaders, running_node, running_nodes
from bench.latencies import RATE_BYTES, Load, Reader, clients, print_spread

__all__ = ["run"]

_TOPIC = "few"
_PARTITIONS = 12
_ROUNDS = 6
_STAY = 2
"""Brokers that run all the time."""
_JOINS = _STAY + 1
"""The node id of the one that comes and goes."""
_WARM_UP_S = 5.0
_STAYS_S = 4.0
"""With its share, before it is stopped."""
_AFTER_S = 1.0
_POLL_S = 0.05


class _Figures:
    """Of all rounds."""

    def __init__(self) -> None:
        self.receives_s: list[float] = []
        self.sends_s: list[float] = []
        self.shares_s: list[float] = []
        self.joining_produce_s: list[float] = []
        self.joining_consume_s: list[float] = []
        self.stops_s: list[float] = []
        self.unuploaded_bytes: list[float] = []
        self.stopping_produce_s: list[float] = []
        self.stopping_consume_s: list[float] = []

    def tell(self) -> None:
        print(
            f"{RATE_BYTES // 1_000_000} MB/s into {_PARTITIONS} partitions of two brokers; a third one joined and was stopped {_ROUNDS} times:"
        )
        print_spread("  it takes records, after the start of its process", self.receives_s)
        print_spread("  it gives records to a consumer", self.sends_s)
        print_spread("  it has its share of the partitions", self.shares_s)
        print_spread("  pause of each partition that came to it: its producer", self.joining_produce_s)
        print_spread("  its consumer", self.joining_consume_s)
        print_spread("  a stop takes, from SIGTERM to the end of the process", self.stops_s)
        print_spread("  pause of each partition that it led: its producer", self.stopping_produce_s)
        print_spread("  its consumer", self.stopping_consume_s)
        print(
            f"  not uploaded when it was told to stop: {max(self.unuploaded_bytes) / 1e6:.0f} MB at most; no error surfaced",
            flush=True,
        )


def run(work_dir: Path) -> None:
    """Prints how long it takes, and what clients notice."""
    found = _Figures()
    with running_nodes(work_dir, _STAY) as nodes:
        nodes[1].broker.create_topic(_TOPIC, _PARTITIONS)
        with clients(all_of(nodes), _TOPIC, _PARTITIONS) as (load, reader):
            time.sleep(_WARM_UP_S)
            for _ in range(_ROUNDS):
                _come_and_go(work_dir, nodes, load, reader, found)
    found.tell()


def _come_and_go(work_dir: Path, nodes: Mapping[int, Node], load: Load, reader: Reader, found: _Figures) -> None:
    began_s = time.perf_counter()
    with running_node(work_dir, _JOINS) as node:
        found.receives_s.append(_until(lambda: node.metric("tidelog_received_bytes_total", topic=_TOPIC)) - began_s)
        found.sends_s.append(_until(lambda: node.metric("tidelog_sent_bytes_total", topic=_TOPIC)) - began_s)
        found.shares_s.append(_until(lambda: len(_own(nodes)) >= _PARTITIONS // (len(nodes) + 1)) - began_s)
        time.sleep(_STAYS_S)
        own = _own(nodes)
        found.unuploaded_bytes.append(node.metric("tidelog_wal_unuploaded_bytes"))
        stopped_s = time.perf_counter()
        node.broker.process.send_signal(signal.SIGTERM)
        if node.broker.process.wait(TIMEOUT_S):
            raise BrokerFailed(f"the broker did not end in order:\n{node.broker.log_path.read_text()}")
        ended_s = time.perf_counter()
    found.stops_s.append(ended_s - stopped_s)
    time.sleep(_AFTER_S)
    for index in own:
        found.joining_produce_s.append(load.longest((_TOPIC, index), began_s, stopped_s - 1.0))
        found.joining_consume_s.append(reader.longest(index, began_s, stopped_s - 1.0))
        found.stopping_produce_s.append(load.longest((_TOPIC, index), stopped_s - 0.2, ended_s + _AFTER_S))
        found.stopping_consume_s.append(reader.longest(index, stopped_s - 0.2, ended_s + _AFTER_S))


def _own(nodes: Mapping[int, Node]) -> list[int]:
    """Partitions of the one that comes and goes."""
    return [index for index, leader in leaders(nodes, _TOPIC).items() if leader == _JOINS]


def _until(condition: Callable[[], object]) -> float:
    """When it came about."""
    deadline_s = time.perf_counter() + TIMEOUT_S
    while not condition():
        if time.perf_counter() > deadline_s:
            raise BrokerFailed("a broker that joined got nothing")
        time.sleep(_POLL_S)
    return time.perf_counter()
