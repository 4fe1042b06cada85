"""This broker's controller among those of the other brokers: the address where they reach it, and what only the leader does.

Always true: without `controller.listeners` a broker is alone, and nothing here runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from broker.addresses import Listener, parse_listeners
from broker.allotment import allot
from broker.config import ALLOTTED, BrokerSettings, InvalidSettings
from broker.listening import advertised_listeners, bind
from controller.allotment import AllotNode
from controller.controller import Controller
from controller.node_metadata import NodeMetadata
from controller.nodes import HEALTH_SINCE, NodeRegistration
from controller.pulse import Pulse
from controller.tables import NodeStatus
from controller.tcp import PeerServer, PeerTraffic, TcpPeers
from s3stream.errors import MetadataUnavailable, NodeFenced

__all__ = ["ControllerEndpoint", "leave_cluster", "while_leading"]

log = logging.getLogger("tidelog.node")

BEAT_INTERVAL_S = 0.2
"""How often the event loop shows to the thread that shows life to others that it moves."""

LEAVE_TIMEOUT_S = 1.0
"""How long a stop waits until others are told."""


class ControllerEndpoint:
    """Where other brokers reach this one's controller. Bound first, since the leader object tells the address."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._sockets: list[socket.socket] = []
        self.address = ""
        """`host:port` as others are told; empty: this broker is alone."""
        self.traffic = PeerTraffic()

    async def bind(self, settings: BrokerSettings) -> None:
        """Bind what the settings name.

        Raises:
            InvalidSettings: the address cannot be bound.
        """
        bound: list[Listener] = []
        for listener in parse_listeners(settings.controller_listeners, what="controller.listeners"):
            try:
                sockets = await bind(asyncio.get_running_loop(), listener)
            except OSError as error:
                raise InvalidSettings(f"controller.listeners: {listener} cannot be bound: {error}") from error
            for one in sockets:
                self._stack.callback(one.close)
            self._sockets.extend(sockets)
            bound.append(Listener(name=listener.name, host=listener.host, port=sockets[0].getsockname()[1]))
        if bound:
            told = advertised_listeners(settings, tuple(bound))[bound[0].name]
            self.address = f"[{told.host}]:{told.port}" if ":" in told.host else f"{told.host}:{told.port}"

    async def serve(self, controller: Controller) -> None:
        """Answer others from now on."""
        if self.address:
            server = PeerServer(controller.membership, cluster_id=controller.cluster_id, traffic=self.traffic)
            self._stack.push_async_callback(server.close)
            await server.serve(self._sockets)

    async def be_given_an_id(self, controller: Controller, command: AllotNode, rng: random.Random) -> NodeRegistration:
        """Have an id given to this node, which has none. To be served before: it may find itself in office. Raises what `allot` does."""
        peers = TcpPeers(cluster_id=controller.cluster_id, node_id=ALLOTTED, traffic=self.traffic)
        try:
            return await allot(controller, peers, command, rng)
        finally:
            await peers.close()

    async def join(self, controller: Controller, node_id: int) -> None:
        """Work with others from now on, which are answered already."""
        if not self.address:
            return
        peers = TcpPeers(cluster_id=controller.cluster_id, node_id=node_id, traffic=self.traffic)
        self._stack.push_async_callback(peers.close)
        controller.join(peers, node_id=node_id)
        pulse = Pulse(
            cluster_id=controller.cluster_id,
            node_id=node_id,
            interval_ms=controller.settings.heartbeat_interval_ms,
        )
        pulse.start()
        beating = asyncio.create_task(_beat(pulse, controller), name="signs of life")

        async def silence() -> None:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await asyncio.to_thread(pulse.close)

        self._stack.push_async_callback(silence)


async def _beat(pulse: Pulse, controller: Controller) -> None:
    """Tell the thread that shows life that this event loop moves, and who is where."""
    while True:
        leader = controller.leader_address
        nodes = controller.image.nodes.values()
        others = [
            node.controller_address
            for node in nodes
            if node.status is not NodeStatus.DEAD and node.controller_address not in ("", controller.address)
        ]
        pulse.beat(leads=controller.is_leader, addresses=[leader, *others] if leader else others)
        await asyncio.sleep(BEAT_INTERVAL_S)


async def leave_cluster(controller: Controller, metadata: NodeMetadata) -> None:
    """Tell others that nothing more comes from this node, which has closed all that it had: they need not find out."""
    if controller.is_alone or controller.image.metadata_version < HEALTH_SINCE:
        return
    try:
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            await metadata.leave_cluster()
    except (MetadataUnavailable, NodeFenced, TimeoutError) as error:
        log.info("others find out by themselves that this node stopped: %(error)s", {"error": error or "no answer"})


async def while_leading(controller: Controller, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do work that one broker of the cluster is to do, whenever it is this one."""
    if controller.is_alone:
        await work()
        return
    while True:
        await controller.until_in_office()
        task = asyncio.create_task(work())
        leaving = asyncio.create_task(controller.until_led_elsewhere())
        try:
            await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return
        finally:
            for one in (task, leaving):
                one.cancel()
            await asyncio.gather(task, leaving, return_exceptions=True)
