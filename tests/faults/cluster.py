"""Three brokers in processes of their own on MinIO, every link between them, their clients and the store led through a network that fails.

Each broker has three links: *clients* (what clients are told is its address), *controller* (what other brokers are told), and *store* (its way to
the bucket).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from controller.config import ControllerSettings
from controller.log import LeaderObject, MetadataLog
from s3stream.paths import Paths
from tests.crash.process import BrokerProcess, free_port
from tests.faults.network import Link, Network, running_network
from tests.stores.s3_server import S3Server

__all__ = ["PREFIX", "Cluster", "FaultyNode", "running_cluster"]

PREFIX = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultyNode:
    """A broker and its links."""

    node_id: int
    broker: BrokerProcess
    clients: Link
    controller: Link
    store: Link

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.broker.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.broker.pid, signal.SIGCONT)

    @property
    def controller_address(self) -> str:
        """As the leader object names it."""
        return f"127.0.0.1:{self.controller.port}"


class Cluster:
    """Nodes by id, from 1 on."""

    def __init__(self, nodes: Sequence[FaultyNode], *, network: Network, server: S3Server, bucket: str) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        self.network = network
        self.server = server
        self.bucket = bucket

    @property
    def bootstrap_servers(self) -> str:
        """Through the network."""
        return ",".join(f"127.0.0.1:{node.clients.port}" for node in self.nodes.values())

    @property
    def past_the_network(self) -> str:
        """The same brokers; but what they tell of each other leads through the network."""
        return ",".join(node.broker.bootstrap_servers for node in self.nodes.values())

    async def leader(self) -> int:
        """The node that the leader object in the bucket names; 0: none, or one that is gone."""
        found = await self.leader_object()
        for node_id, node in self.nodes.items():
            if found is not None and found.leader == node.controller_address:
                return node_id
        return 0

    async def leader_object(self) -> LeaderObject | None:
        """As it lies in the bucket, read past the network."""
        store = self.server.open(self.bucket)
        try:
            log = MetadataLog(store=store, paths=Paths(PREFIX), settings=ControllerSettings(), rng=random.Random(0))
            return await log.read_leader()
        finally:
            await store.close()

    def isolate_controller(self, node_id: int) -> None:
        """Cut a node off from the controllers of all others, both ways. Store and clients it reaches as ever."""
        for node in self.nodes.values():
            if node.node_id == node_id:
                node.controller.is_cut = True
            else:
                node.controller.cut_nodes |= {node_id}


@contextlib.contextmanager
def running_cluster(
    directory: Path,
    server: S3Server,
    *,
    wals_in_bucket: Sequence[int] = (),
    count: int = 3,
    code: Path | None = None,
    **settings: object,
) -> Iterator[Cluster]:
    """A cluster that serves.

    Args:
        wals_in_bucket: Nodes that keep no WAL on their disk.
        code: Another version of the packages, to begin with.
    """
    bucket = server.new_bucket()
    with running_network() as network, contextlib.ExitStack() as stack:
        nodes: list[FaultyNode] = []
        for node_id in range(1, count + 1):
            own = directory / f"node{node_id}"
            port, controller_port = free_port(), free_port()
            clients = network.link(f"clients of {node_id}", port)
            controller = network.link(f"controller of {node_id}", controller_port, among_nodes=True)
            store = network.link(f"store of {node_id}", int(server.endpoint_url.rpartition(":")[2]))
            uri = replace(server, endpoint_url=f"http://127.0.0.1:{store.port}").uri(bucket, PREFIX)
            file_wal = f"{(own / 'wal').as_uri()}?capacity=64MiB"
            broker = BrokerProcess(
                own,
                {
                    "node.id": node_id,
                    "controller.listeners": f"CONTROLLER://127.0.0.1:{controller_port}",
                    "advertised.listeners": f"PLAINTEXT://127.0.0.1:{clients.port},CONTROLLER://127.0.0.1:{controller.port}",
                    "object.store.uri": uri,
                    "wal.uri": f"{uri}&batch_interval_ms=20" if node_id in wals_in_bucket else file_wal,
                    "memory.bytes": 128 << 20,
                    "upload.interval.ms": 1_000,
                    "group.initial.rebalance.delay.ms": 0,
                    **settings,
                },
                environment=server.environment,
                port=port,
            )
            broker.code = code
            nodes.append(
                FaultyNode(node_id=node_id, broker=broker, clients=clients, controller=controller, store=store)
            )
            stack.callback(_ended, broker)
            broker.start()
        for node in nodes:
            node.broker.wait_ready()
        yield Cluster(nodes, network=network, server=server, bucket=bucket)


def _ended(broker: BrokerProcess) -> None:
    if broker.running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(broker.pid, signal.SIGCONT)
        broker.kill()
