"""Turns of catch-up reads: bounded in number and rate, and fair between readers, whatever each of them asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from s3stream.catch_up_budget import CatchUpBudget, Share
from tests.sim.loop import VirtualLoop

MIB = 1 << 20


class Readers:
    """Ask for turns, and remember who had them, when, and how much of it."""

    def __init__(self, budget: CatchUpBudget, *, get_s: float = 0.0) -> None:
        self.budget = budget
        self.get_s = get_s
        self.served: list[tuple[str, int]] = []
        self.at_s: list[float] = []
        self.under_way = 0
        self.most_under_way = 0

    async def get(self, name: str, share: Share, size: int) -> None:
        await self.budget.turn(share, size)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.served.append((name, size))
        self.at_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.get_s)
        self.under_way -= 1
        self.budget.done()

    async def catch_up(self, name: str, sizes: list[int]) -> None:
        """One GET after another, as a consumer without read-ahead does."""
        share = Share()
        for size in sizes:
            await self.get(name, share, size)

    def bytes_of(self, name: str, first: int) -> int:
        return sum(size for who, size in self.served[:first] if who == name)


def simulated(scenario: Coroutine[Any, Any, None]) -> None:
    """In virtual time: rates are exact, and nothing takes long."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(scenario)
    finally:
        loop.close()


def test_no_more_requests_are_under_way_than_allowed() -> None:
    async def scenario() -> None:
        readers = Readers(CatchUpBudget(max_requests=3), get_s=0.05)
        await asyncio.gather(*(readers.catch_up(str(number), [MIB] * 5) for number in range(10)))
        assert readers.most_under_way == 3
        assert len(readers.served) == 50
        assert (readers.budget.requests_under_way, readers.budget.waiting_count) == (0, 0)
        assert readers.budget.throttled_s == 0

    simulated(scenario())


def test_bytes_come_at_the_rate() -> None:
    async def scenario() -> None:
        budget = CatchUpBudget(max_requests=16)
        budget.limit(10 * MIB)
        readers = Readers(budget)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(readers.catch_up(str(number), [MIB] * 10) for number in range(10)))
        took_s = asyncio.get_running_loop().time() - began
        assert took_s == pytest.approx(
            10 - 0.1 - 0.1, abs=0.01
        )  # a moment ahead; and the last one need not be paid for
        assert budget.throttled_s == pytest.approx(took_s, abs=0.01)
        # Not in bursts either: in no second more than a second's worth, and a moment's.
        for first, at in enumerate(readers.at_s):
            assert sum(at <= other < at + 1 for other in readers.at_s[first:]) <= 12

    simulated(scenario())


def test_one_that_asks_for_everything_at_once_does_not_hold_up_the_others() -> None:
    async def scenario() -> None:
        budget = CatchUpBudget(max_requests=1)
        readers = Readers(budget, get_s=0.1)
        greedy = Share()
        flood = [asyncio.create_task(readers.get("greedy", greedy, 4 * MIB)) for _ in range(100)]
        await asyncio.sleep(0.35)
        late = asyncio.create_task(readers.catch_up("late", [MIB]))
        await late
        assert len(readers.served) <= 6  # it waited for the one under way, and for one turn of the other
        await asyncio.gather(*flood)

    simulated(scenario())


def test_shares_are_fair_in_bytes_not_in_requests() -> None:
    async def scenario() -> None:
        readers = Readers(CatchUpBudget(max_requests=1), get_s=0.01)
        small = [asyncio.create_task(readers.get("small", one, MIB)) for one in [Share()] for _ in range(200)]
        large = [asyncio.create_task(readers.get("large", one, 4 * MIB)) for one in [Share()] for _ in range(50)]
        await asyncio.gather(*small, *large)
        for first in (50, 100, 150, 200):
            difference = readers.bytes_of("small", first) - readers.bytes_of("large", first)
            assert abs(difference) <= 5 * MIB  # one GET of each

    simulated(scenario())


def test_who_jumps_about_gets_no_more_than_who_reads_in_sequence() -> None:
    async def scenario() -> None:
        readers = Readers(CatchUpBudget(max_requests=1), get_s=0.01)

        async def jump() -> None:  # a new reader to the line each time
            for _ in range(40):
                await readers.catch_up("jumps", [MIB])

        sequential = [asyncio.create_task(readers.catch_up(str(number), [MIB] * 40)) for number in range(4)]
        await asyncio.gather(jump(), *sequential)
        assert readers.bytes_of("jumps", 100) <= 22 * MIB  # of 100, for one in five

    simulated(scenario())


def test_an_idle_reader_saves_nothing_up() -> None:
    async def scenario() -> None:
        readers = Readers(CatchUpBudget(max_requests=1), get_s=0.01)
        idle = Share()
        await readers.get("idle", idle, MIB)
        await readers.catch_up("busy", [MIB] * 50)
        again = [asyncio.create_task(readers.get("idle", idle, MIB)) for _ in range(20)]
        others = [asyncio.create_task(readers.get("other", one, MIB)) for one in [Share()] for _ in range(20)]
        await asyncio.gather(*again, *others)
        since = readers.served[51:71]
        assert abs(since.count(("idle", MIB)) - since.count(("other", MIB))) <= 2

    simulated(scenario())


def test_who_goes_away_leaves_its_turn_to_others() -> None:
    async def scenario() -> None:
        budget = CatchUpBudget(max_requests=1)
        await budget.turn(Share(), MIB)
        waiting = [asyncio.create_task(budget.turn(Share(), MIB)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # in line
        budget.done()  # the second has its turn, and …
        waiting[1].cancel()  # … goes away in the same moment
        await asyncio.wait_for(waiting[2], 1)
        budget.done()
        assert (budget.requests_under_way, budget.waiting_count) == (0, 0)
        for task in waiting[:2]:
            with pytest.raises(asyncio.CancelledError):
                await task

    simulated(scenario())


def test_a_new_rate_holds_at_once_for_those_who_wait() -> None:
    async def scenario() -> None:
        budget = CatchUpBudget(max_requests=16)
        budget.limit(1)
        await budget.turn(Share(), MIB)
        waiting = asyncio.create_task(budget.turn(Share(), MIB))
        await asyncio.sleep(1)
        assert not waiting.done()
        assert budget.is_throttled
        budget.limit(None)
        await asyncio.wait_for(waiting, 1)
        assert budget.throttled_s == pytest.approx(1)

    simulated(scenario())


def test_what_was_read_without_a_turn_is_paid_for_by_the_next() -> None:
    async def scenario() -> None:
        budget = CatchUpBudget(max_requests=16)
        budget.limit(MIB)
        budget.charge(2 * MIB)
        began = asyncio.get_running_loop().time()
        await budget.turn(Share(), MIB)
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.9)

    simulated(scenario())
