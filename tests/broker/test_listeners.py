"""Listeners: bound and advertised addresses, IPv6, several of them, ports that are taken."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from broker import listening
from broker.addresses import Listener
from broker.config import InvalidSettings
from broker.node import Node
from protocol.messages.api_versions import ApiVersionsRequest
from protocol.messages.metadata import MetadataRequest
from tests.broker.conftest import StartNode
from tests.broker.wire import Wire, eventually


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


async def advertised(bootstrap_servers: str) -> str:
    async with await Wire.connect(bootstrap_servers) as wire:
        (broker,) = (await wire.call("Metadata", 9, MetadataRequest(topics=None))).brokers
        return f"{broker.host}:{broker.port}"


async def test_each_listener_advertises_its_own_address(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is not known here: it may be known where clients are. It is named in the log."""
    known = socket.getaddrinfo

    def look_up(host: str, *more: Any, **options: Any) -> Any:
        if host == "kafka.example.com":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with start_node(
        listeners="INTERNAL://127.0.0.1:0,EXTERNAL://localhost:0",
        advertised_listeners="EXTERNAL://kafka.example.com:4000",
    ) as node:
        internal, external = node.listeners
        assert internal.port != external.port
        assert await advertised(f"127.0.0.1:{internal.port}") == f"127.0.0.1:{internal.port}"
        assert await advertised(f"127.0.0.1:{external.port}") == "kafka.example.com:4000"
        assert node.bootstrap_servers == f"127.0.0.1:{internal.port}"
        told = "others are told a name that is not known here: kafka.example.com ("
        await eventually(lambda: told in caplog.text, "it is named")
    assert caplog.text.count("not known here") == 1


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_ipv6(start_node: StartNode) -> None:
    async with start_node(listeners="PLAINTEXT://[::1]:0") as node:
        assert node.bootstrap_servers.startswith("[::1]:")
        assert await advertised(node.bootstrap_servers) == node.bootstrap_servers.replace("[::1]", "::1")


@pytest.mark.skipif(
    not has_ipv6() or len({item[0] for item in socket.getaddrinfo("localhost", 0)}) < 2,
    reason="localhost has no IPv6 address on this machine",
)
async def test_localhost_is_both_families_on_one_port(start_node: StartNode) -> None:
    async with start_node(listeners="PLAINTEXT://localhost:0") as node:
        (listener,) = node.listeners
        for host in ("127.0.0.1", "[::1]"):
            assert await advertised(f"{host}:{listener.port}") == f"localhost:{listener.port}"


async def test_a_taken_port_is_refused_with_advice(start_node: StartNode, node: Node) -> None:
    taken = node.listeners[0].port
    with pytest.raises(InvalidSettings, match=rf"cannot listen on PLAINTEXT://127\.0\.0\.1:{taken}.*choose another"):
        async with start_node(
            listeners=f"PLAINTEXT://127.0.0.1:{taken}", wal_uri="null://", object_store_uri="mem://", node_id=2
        ):
            pass
    # The one that has it goes on.
    async with await Wire.connect(node.bootstrap_servers) as wire:
        assert (await wire.call("ApiVersions", 0, ApiVersionsRequest())).error_code == 0


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_every_interface_means_both_families_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    asked: list[tuple[int, tuple[str, int]]] = []

    def taken(family: int, address: tuple[str, int], *, dual_stack: bool = False) -> socket.socket:
        asked.append((family, address))
        raise OSError(errno.EADDRINUSE, "in use")

    # Not bound for real: tests listen on the loopback interface only.
    monkeypatch.setattr(listening, "_bound", taken)
    with pytest.raises(OSError, match="in use"):
        await listening.bind(loop, Listener(name="PLAINTEXT", host="", port=9092))
    assert asked == [(socket.AF_INET6, ("::", 9092))], "half of the clients would meet another program"


async def test_several_nodes_in_one_process(start_node: StartNode) -> None:
    async with (
        start_node(wal_uri="null://", object_store_uri="mem://") as one,
        start_node(wal_uri="null://", object_store_uri="mem://") as two,
        await Wire.connect(one.bootstrap_servers) as first,
        await Wire.connect(two.bootstrap_servers) as second,
    ):
        await first.create_topic("only-here")
        assert (await second.call("Metadata", 9, MetadataRequest(topics=None))).topics == []
