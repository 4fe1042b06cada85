"""Receive buffers, without sockets."""

from __future__ import annotations

import random

import pytest

from broker.receive import SCRATCH_BYTES, STASH_BYTES, UNCHARGED_BYTES, ReceiveBudget, ReceiveBuffer


def make(budget_bytes: int = 1 << 30, scratch: memoryview | None = None) -> ReceiveBuffer:
    return ReceiveBuffer(
        memoryview(bytearray(SCRATCH_BYTES)) if scratch is None else scratch, ReceiveBudget(budget_bytes)
    )


def feed(buffer: ReceiveBuffer, data: bytes) -> int:
    """What one read does; returns how much it took."""
    place = buffer.writable()
    assert len(place) > 0
    size = min(len(place), len(data))
    place[:size] = data[:size]
    buffer.end += size
    return size


def take_frames(buffer: ReceiveBuffer) -> tuple[list[bytes], bool]:
    """What a connection does after a read: take whole frames, then settle."""
    frames = []
    need = 0
    while buffer.end - buffer.start >= 4:
        size = int.from_bytes(buffer.view[buffer.start : buffer.start + 4], "big")
        need = size + 4
        if buffer.end - buffer.start < need:
            break
        frames.append(bytes(buffer.view[buffer.start + 4 : buffer.start + need]))
        buffer.start += need
        buffer.consumed(need)
        need = 0
    return frames, buffer.settle(need)


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


@pytest.mark.parametrize("seed", range(20))
def test_frames_of_all_sizes_arrive_whole_however_they_are_cut(seed: int) -> None:
    rng = random.Random(seed)
    scratch = memoryview(bytearray(SCRATCH_BYTES))
    connections = [make(scratch=scratch) for _ in range(3)]
    sent: list[list[bytes]] = []
    streams: list[bytes] = []
    for _ in connections:
        frames = [rng.randbytes(rng.choice([0, 1, 100, 5_000, 300_000, 1_000_000])) for _ in range(8)]
        sent.append(frames)
        streams.append(framed(*frames))
    got: list[list[bytes]] = [[] for _ in connections]
    while any(streams):
        # They share the scratch buffer: whoever reads next overwrites it.
        at = rng.choice([index for index, rest in enumerate(streams) if rest])
        size = feed(connections[at], streams[at][: rng.choice([1, 3, 4096, 200_000, 2_000_000])])
        streams[at] = streams[at][size:]
        frames, room = take_frames(connections[at])
        assert room
        got[at].extend(frames)
    assert got == sent


def test_idle_and_small_connections_have_no_memory_of_their_own() -> None:
    buffer = make()
    feed(buffer, framed(b"a" * 1000, b"b" * 1000))
    take_frames(buffer)
    assert buffer.capacity_bytes == 0


def test_memory_grows_with_what_arrives_not_with_what_is_announced() -> None:
    buffer = make()
    feed(buffer, (100 << 20).to_bytes(4, "big") + b"x")
    assert take_frames(buffer) == ([], True)
    assert buffer.capacity_bytes <= STASH_BYTES


def test_large_requests_keep_their_buffer_and_small_ones_give_it_back() -> None:
    buffer = make()
    stream = framed(*[b"x" * 1_000_000] * 3)
    while stream:
        stream = stream[feed(buffer, stream) :]
        take_frames(buffer)
    assert 1_000_000 <= buffer.capacity_bytes <= 2_100_000
    for _ in range(100):
        feed(buffer, framed(b"small"))
        take_frames(buffer)
    assert buffer.capacity_bytes == 0
    assert buffer._budget.free_bytes == 1 << 30


def test_large_requests_are_not_moved() -> None:
    buffer = make()
    stream = framed(*[b"x" * 1_000_000] * 6)
    while stream:
        stream = stream[feed(buffer, stream) :]
        take_frames(buffer)
        # Once the buffer has its size, every request begins at the front.
        assert buffer.start == 0 or buffer.end == buffer.start


class Taker:
    """Stands for a connection that waits."""

    def __init__(self, budget: ReceiveBudget) -> None:
        self.budget = budget
        self.called = 0

    def __call__(self) -> None:
        self.called += 1


def test_the_budget_bounds_growth_and_lets_one_overdraw() -> None:
    budget = ReceiveBudget(100)
    first, second, third = Taker(budget), Taker(budget), Taker(budget)
    assert budget.take(80, first)
    assert budget.take(50, second), "somebody must always get on"
    assert not budget.take(10, third)
    budget.wait(third)
    assert budget.contended
    assert not budget.take(10, first)
    assert budget.take(10, second), "the one who overdraws may finish"
    budget.give(60, second)
    assert third.called == 1
    assert budget.take(10, third)
    assert budget.free_bytes == 10


def test_a_connection_that_is_gone_is_not_called() -> None:
    budget = ReceiveBudget(10)
    holder, waiting = Taker(budget), Taker(budget)
    budget.take(20, holder)
    budget.wait(waiting)
    budget.forget(waiting)
    budget.give(20, holder)
    assert waiting.called == 0


def test_a_buffer_that_may_not_grow_says_so_and_goes_on_later() -> None:
    scratch = memoryview(bytearray(SCRATCH_BYTES))
    budget = ReceiveBudget(500_000)
    greedy, patient = ReceiveBuffer(scratch, budget), ReceiveBuffer(scratch, budget)

    def fill(buffer: ReceiveBuffer, stream: bytes) -> bytes:
        while stream:
            stream = stream[feed(buffer, stream) :]
            if not take_frames(buffer)[1]:
                break
        return stream

    assert not fill(greedy, framed(b"x" * 3_000_000)[:2_500_000]), "the first may overdraw"
    rest = fill(patient, framed(b"y" * 1_000_000))
    assert rest
    resumed = []
    budget.wait(lambda: resumed.append(patient.settle(1_000_004)))
    greedy.release()
    assert resumed == [True]
    frames = []
    while rest:
        rest = rest[feed(patient, rest) :]
        frames += take_frames(patient)[0]
    assert frames == [b"y" * 1_000_000]


def test_left_overs_of_many_connections_stay_within_the_budget() -> None:
    """Each sends as much as it can before a request that may not start: none of it escapes the bound (I13)."""
    scratch = memoryview(bytearray(SCRATCH_BYTES))
    budget = ReceiveBudget(1 << 20)
    connections = [ReceiveBuffer(scratch, budget) for _ in range(200)]
    stream = framed(*[b"x" * 1000] * 1000)
    for buffer in connections:
        feed(buffer, stream)
        buffer.settle(1004)  # it is busy: nothing starts
    held = sum(buffer.capacity_bytes for buffer in connections)
    assert held <= (1 << 20) + len(connections) * UNCHARGED_BYTES
    assert budget.free_bytes >= 0
    for buffer in connections:
        buffer.release()
    assert budget.free_bytes == 1 << 20


def test_small_requests_are_served_while_the_budget_is_spent() -> None:
    budget = ReceiveBudget(1 << 20)
    budget.take(1 << 20, "another")
    buffer = ReceiveBuffer(memoryview(bytearray(SCRATCH_BYTES)), budget)
    stream = framed(b"a" * 1000, b"b" * 3000, b"c" * 500)
    got = []
    while stream:
        stream = stream[feed(buffer, stream) :]
        frames, room = take_frames(buffer)
        assert room
        got += frames
    assert got == [b"a" * 1000, b"b" * 3000, b"c" * 500]
    assert budget.free_bytes == 0


def test_those_who_wait_are_asked_in_order_and_only_until_one_finds_nothing() -> None:
    budget = ReceiveBudget(100)
    budget.take(100, "holder")
    budget.take(50, "greedy")
    asked: list[str] = []

    def wait(name: str, size: int) -> None:
        def ask() -> None:
            asked.append(name)
            if not budget.take(size, name):
                budget.wait(ask)

        budget.wait(ask)

    for name, size in [("first", 20), ("second", 30), ("third", 10), ("fourth", 10)]:
        wait(name, size)
    budget.give(60, "holder")  # 10 are free, and "greedy" overdraws still
    assert asked == ["first"]
    budget.give(35, "holder")
    assert asked == ["first", "first", "second"]
    budget.give(50, "greedy")
    assert asked == ["first", "first", "second", "second", "third", "fourth"]
