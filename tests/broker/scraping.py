"""A scraper and an orchestrator's probe, for tests: what a node says over HTTP, read by a parser that is not ours."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from broker.node import Node

__all__ = ["Page", "get", "get_blocking", "scrape"]


async def get(node: Node | int, path: str) -> tuple[int, str, str]:
    """Status, content type and body, fetched by a thread: the node's loop is ours."""
    port = node if isinstance(node, int) else node.metrics_listeners[0].port
    return await asyncio.to_thread(get_blocking, port, path)


def get_blocking(port: int, path: str) -> tuple[int, str, str]:
    """The same from this thread."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


class Page:
    """A page of /metrics. `page(name, label=value)` is the value of a series, 0 where it is not there."""

    def __init__(self, text: str) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.types: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in self.values, "a series comes once"
                self.values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self.values.get((name, tuple(sorted(labels.items()))), 0.0)


async def scrape(node: Node) -> Page:
    """The figures of a node."""
    status, _, body = await get(node, "/metrics")
    assert status == 200
    return Page(body)
