"""/metrics, /healthz and /readyz of a node, as a scraper and an orchestrator see them."""

from __future__ import annotations

import asyncio
import http.client
import time
from typing import Any

import pytest

from broker import monitoring
from broker.addresses import Listener
from broker.config import BrokerSettings, InvalidSettings
from broker.monitoring import Monitoring
from broker.node import Node
from s3stream.errors import StorageFenced
from tests.broker.conftest import StartNode
from tests.broker.scraping import get, get_blocking

HTTP = "HTTP://127.0.0.1:0"


async def test_a_node_in_order_is_alive_and_ready(start_node: StartNode) -> None:
    async with start_node(metrics_listeners=HTTP) as node:
        assert await get(node, "/healthz") == (200, "text/plain; charset=utf-8", "alive\n")
        assert (await get(node, "/readyz"))[0] == 200
        status, content_type, body = await get(node, "/metrics")
        assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "\ntidelog_wal_fenced 0.0\n" in body
        assert (await get(node, "/elsewhere"))[0] == 404
        assert (await get(node, "/"))[2].split() == ["/metrics", "/healthz", "/readyz"]


async def test_without_the_setting_nothing_listens(node: Node) -> None:
    assert node.metrics_listeners == ()


async def test_an_address_that_is_taken_is_refused_with_advice(start_node: StartNode) -> None:
    async with start_node(metrics_listeners=HTTP) as node:
        taken = node.metrics_listeners[0].port
        other = Node(BrokerSettings(object_store_uri="mem://x", metrics_listeners=f"HTTP://127.0.0.1:{taken}"))
        with pytest.raises(InvalidSettings, match=r"choose another in metrics\.listeners"):
            await other.__aenter__()


@pytest.mark.parametrize("text", ["localhost:9404", "PLAINTEXT://localhost:9404", "HTTP://localhost"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match=r"metrics\.listeners"):
        BrokerSettings(metrics_listeners=text)


async def test_a_node_that_lost_its_log_is_alive_and_not_ready(start_node: StartNode) -> None:
    async with start_node(metrics_listeners=HTTP) as node:
        node.running.storage.failed = StorageFenced("planted: the disk failed")
        assert await get(node, "/readyz") == (503, "text/plain; charset=utf-8", "planted: the disk failed\n")
        assert (await get(node, "/healthz"))[0] == 200
        assert "\ntidelog_wal_fenced 1.0\n" in (await get(node, "/metrics"))[2]
        node.running.storage.failed = None


async def test_partitions_that_load_are_waited_for(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start_node(metrics_listeners=HTTP) as node:
        monkeypatch.setattr(type(node.running.broker.partitions), "loading_count", 3)
        status, _, body = await get(node, "/readyz")
        assert (status, body) == (503, "the state of 3 partitions is not rebuilt yet\n")


async def test_before_a_node_serves_it_is_alive_and_says_what_it_does() -> None:
    early = Monitoring(time.perf_counter)
    (bound,) = await early.listen((Listener(name="HTTP", host="127.0.0.1", port=0),))
    try:
        assert (await get(bound.port, "/healthz"))[0] == 200
        assert await get(bound.port, "/readyz") == (503, "text/plain; charset=utf-8", "starting: recovering\n")
        status, _, body = await get(bound.port, "/metrics")
        assert status == 200
        assert "process_resident_memory_bytes" in body
        assert "tidelog_" not in body
    finally:
        await early.close()


async def test_a_loop_that_is_stuck_is_noticed(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe answers while the broker's loop does not turn: that is what it is for."""
    monkeypatch.setattr(monitoring, "STUCK_AFTER_S", 0.2)
    monkeypatch.setattr(monitoring, "READ_TIMEOUT_S", 0.1)
    async with start_node(metrics_listeners=HTTP) as node:
        port = node.metrics_listeners[0].port
        # Blocks the loop: the requests below come from this very thread, and are answered by the other one.
        deadline = time.monotonic() + 30
        while get_blocking(port, "/healthz")[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.05)  # noqa: ASYNC251 - it is this loop that must not turn
        status, _, body = get_blocking(port, "/healthz")
        assert status == 503
        assert "event loop has not turned" in body
        assert get_blocking(port, "/readyz")[0] == 503
        assert get_blocking(port, "/metrics")[0] == 503
        await asyncio.sleep(0.6)
        assert (await get(node, "/healthz"))[0] == 200


async def test_many_who_ask_are_given_the_same_page(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "FRESH_S", 3600)
    async with start_node(metrics_listeners=HTTP) as node:
        pages = await asyncio.gather(*(get(node, "/metrics") for _ in range(5)))
        assert len(set(pages)) == 1


async def test_an_open_connection_does_not_hold_up_the_stop(start_node: StartNode) -> None:
    async with start_node(metrics_listeners=HTTP) as node:
        idle: Any = http.client.HTTPConnection("127.0.0.1", node.metrics_listeners[0].port)
        await asyncio.to_thread(idle.connect)
    idle.close()
