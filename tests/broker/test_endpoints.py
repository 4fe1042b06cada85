"""Clients are sent to brokers that they can reach, by the listener that they came in by, and not to dead ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from broker.addresses import parse_listeners
from broker.endpoints import brokers_on, endpoint_of
from controller.image import Image
from controller.nodes import RegisterNode
from tests.controller.machine import T0_MS, Machine


def test_an_endpoint_is_that_of_the_listener_and_of_nobody_who_is_dead() -> None:
    machine = Machine()
    for node_id in (1, 2, 3):
        address = f"INSIDE://10.0.0.{node_id}:9092"
        if node_id != 3:
            address += f",OUTSIDE://kafka{node_id}.example.org:19092"
        machine.do(RegisterNode(node_id=node_id, wal_id=f"w{node_id}", address=address, lease_ms=3_000, at_ms=T0_MS))
    inside, outside = parse_listeners("INSIDE://:9092,OUTSIDE://:19092")
    broker: Any = SimpleNamespace(
        controller=SimpleNamespace(image=Image(machine.state)),
        settings=SimpleNamespace(node_id=1),
        advertised={
            each.name: each for each in parse_listeners("INSIDE://10.0.0.1:9092,OUTSIDE://kafka1.example.org:19092")
        },
    )
    assert [(node.node_id, str(address)) for node, address in brokers_on(broker, outside)] == [
        (1, "OUTSIDE://kafka1.example.org:19092"),
        (2, "OUTSIDE://kafka2.example.org:19092"),
    ]
    found = endpoint_of(broker, inside, 3)
    assert found is not None
    assert str(found[1]) == "INSIDE://10.0.0.3:9092"
    assert endpoint_of(broker, outside, 3) is None, "it cannot be reached from there"
    assert endpoint_of(broker, inside, 4) is None
    machine.suspect(3)
    assert endpoint_of(broker, inside, 3) is not None
    machine.declare_dead(3)
    assert endpoint_of(broker, inside, 3) is None
