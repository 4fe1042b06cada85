"""Where clients find brokers: by the listener that they came in by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.addresses import Listener, parse_listeners
from controller.tables import NodeStatus

if TYPE_CHECKING:
    from broker.broker import Broker
    from controller.image import Node

__all__ = ["address_of", "brokers_on", "endpoint_of"]


def address_of(broker: Broker, listener: Listener, node: Node) -> Listener | None:
    """Where a client finds a broker, on the listener that it came in by; None: not from where it is."""
    if node.node_id == broker.settings.node_id:
        return broker.advertised[listener.name]
    return {found.name: found for found in parse_listeners(node.address)}.get(listener.name)


def brokers_on(broker: Broker, listener: Listener, *, with_dead: bool = False) -> list[tuple[Node, Listener]]:
    """The brokers that a client which came in by a listener can reach, each with its address there; dead ones only where they are wanted."""
    found: list[tuple[Node, Listener]] = []
    for node in broker.controller.image.nodes.values():
        if node.status is NodeStatus.DEAD and not with_dead and node.node_id != broker.settings.node_id:
            continue
        address = address_of(broker, listener, node)
        if address is not None:
            found.append((node, address))
    return found


def endpoint_of(broker: Broker, listener: Listener, node_id: int) -> tuple[Node, Listener] | None:
    """A broker and its address, where it is registered, lives, and a client can reach it."""
    node = broker.controller.image.node(node_id)
    address = None if node is None or node.status is NodeStatus.DEAD else address_of(broker, listener, node)
    return None if node is None or address is None else (node, address)
