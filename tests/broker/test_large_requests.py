"""Turns of large requests, and what is under way, without sockets (I13, I14)."""

from __future__ import annotations

import asyncio
import time

from broker.large_requests import FREE_BYTES, LARGE_BYTES, LargeRequests
from tests.broker.wire import eventually


class Client:
    """A connection whose requests are noted when they start."""

    def __init__(self, requests: LargeRequests, started: list[str], name: str, size: int) -> None:
        self.requests = requests
        self.started = started
        self.name = name
        self.size = size

    def resume(self) -> None:
        if self.requests.may_start(self, self.size):
            self.requests.begin(self, self.size)
            self.started.append(self.name)


class Clients:
    def __init__(self, budget_bytes: int) -> None:
        self.requests = LargeRequests(asyncio.get_running_loop(), budget_bytes)
        self.started: list[str] = []

    def start(self, name: str, size: int) -> Client:
        client = Client(self.requests, self.started, name, size)
        client.resume()
        return client


async def test_large_requests_take_turns_and_small_ones_go_in_between() -> None:
    clients = Clients(100 * LARGE_BYTES)
    for name in ("a", "b", "c"):
        clients.start(name, LARGE_BYTES)
    clients.start("small", LARGE_BYTES - 1)
    assert clients.started == ["a", "small"]
    await eventually(lambda: "c" in clients.started, "the other turns")
    assert clients.started == ["a", "small", "b", "c"]
    assert clients.requests.waiting_count == 0


async def test_others_have_as_much_time_as_a_large_request_took() -> None:
    clients = Clients(100 * LARGE_BYTES)
    loop = asyncio.get_running_loop()
    clients.start("a", LARGE_BYTES)
    clients.start("b", LARGE_BYTES)
    time.sleep(0.05)  # noqa: ASYNC251 -- it is decoded and answered meanwhile
    served_at = loop.time()
    await eventually(lambda: "b" in clients.started, "the second turn")
    assert loop.time() - served_at >= 0.05


async def test_what_is_under_way_is_bounded_and_nobody_starves() -> None:
    clients = Clients(budget_bytes=10_000)
    first = clients.start("first", 9_000)
    second = clients.start("second", 2_000)
    clients.start("third", 1_500)  # behind the second, which it must not overtake for ever
    clients.start("tiny", FREE_BYTES)
    assert clients.started == ["first", "tiny"]
    assert clients.requests.waits(second)
    clients.requests.end(first)
    await asyncio.sleep(0)
    assert clients.started == ["first", "tiny", "second", "third"]
    assert clients.requests.charged_bytes == 3_500


async def test_one_alone_may_exceed_the_budget() -> None:
    clients = Clients(budget_bytes=10)
    first = clients.start("first", 50_000)
    second = clients.start("second", 50_000)
    assert clients.started == ["first"]
    clients.requests.forget(first)  # its connection is gone
    await asyncio.sleep(0)
    assert clients.started == ["first", "second"]
    clients.requests.end(second)
    assert clients.requests.charged_bytes == 0


async def test_who_waits_first_and_goes_away_holds_nobody_up() -> None:
    clients = Clients(budget_bytes=10_000)
    clients.start("first", 8_000)
    second = clients.start("second", 5_000)
    clients.start("third", 1_500)
    assert clients.started == ["first"]
    clients.requests.forget(second)
    await asyncio.sleep(0)
    assert clients.started == ["first", "third"]
