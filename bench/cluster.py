"""Several brokers on one directory for objects: processes of their own with default settings but for their memory, on loopback."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient

from bench.broker import Broker, free_port, running_broker

__all__ = ["TIMEOUT_S", "Node", "all_of", "leaders", "running_node", "running_nodes"]

TIMEOUT_S = 60.0
_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One broker, and where its figures and settings are."""

    broker: Broker
    metrics_port: int
    config: Path

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all labels but those given."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            lines = response.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.partition("{")[0].partition(" ")[0] == name and all(each in line for each in wanted)
        )


@contextlib.contextmanager
def running_node(work_dir: Path, node_id: int) -> Iterator[Node]:
    """One of several that share a directory: its own is kept, so that it may be started again."""
    directory = work_dir / f"node{node_id}"
    controller_port, metrics_port = free_port(), free_port()
    settings: dict[str, object] = {
        "node.id": node_id,
        "object.store.uri": f"file://{work_dir}/objects",
        "controller.listeners": f"CONTROLLER://127.0.0.1:{controller_port}",
        "metrics.listeners": f"HTTP://127.0.0.1:{metrics_port}",
        "memory.bytes": _MEMORY_BYTES,
    }
    with running_broker(directory, settings) as broker:
        yield Node(broker=broker, metrics_port=metrics_port, config=directory / "tidelog.toml")


@contextlib.contextmanager
def running_nodes(work_dir: Path, count: int) -> Iterator[dict[int, Node]]:
    """So many of them, by node id from 1 on."""
    with contextlib.ExitStack() as stack:
        yield {node_id: stack.enter_context(running_node(work_dir, node_id)) for node_id in range(1, count + 1)}


def all_of(nodes: Mapping[int, Node]) -> str:
    return ",".join(node.broker.bootstrap for node in nodes.values())


def leaders(nodes: Mapping[int, Node], topic: str) -> dict[int, int]:
    """Who leads each partition, as clients are told."""
    told = AdminClient({"bootstrap.servers": all_of(nodes)}).list_topics(topic, timeout=TIMEOUT_S)
    return {index: partition.leader for index, partition in told.topics[topic].partitions.items()}
