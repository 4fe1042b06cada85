"""Agreement in a bucket, whatever happens to replies."""

from __future__ import annotations

import asyncio
import random

import pytest

from s3stream.cas import CasObject, Outcome, RetryPolicy, occupy
from s3stream.memory import Bucket, Fault, Faults, MemoryObjectStore
from s3stream.objectstore import Unavailable

QUICK = RetryPolicy(first_delay_ms=1, max_delay_ms=4, deadline_ms=2000)


def body(writer: int, number: int = 0) -> tuple[bytes, bytes]:
    """A body and the nonce in it."""
    nonce = random.Random(writer * 1000 + number).randbytes(16)
    return b"writer %d/%d " % (writer, number) + nonce, nonce


async def take(store: MemoryObjectStore, key: str, writer: int, retry: RetryPolicy = QUICK) -> Outcome:
    data, nonce = body(writer)
    return await occupy(store, key, data, nonce, rng=random.Random(writer), retry=retry)


def failing_once(fault: Fault) -> MemoryObjectStore:
    store = MemoryObjectStore(faults=Faults(delay_ms=10))
    pending = [fault]

    async def hook(operation: str, key: str) -> Fault | None:
        return pending.pop() if pending else None

    store.hook = hook
    return store


async def test_a_slot_is_taken_once() -> None:
    store = MemoryObjectStore()
    first, second = await take(store, "slot", 1), await take(store, "slot", 2)
    assert first.mine
    assert not second.mine
    assert (second.data, second.etag) == (body(1)[0], first.etag)


@pytest.mark.parametrize("fault", list(Fault))
async def test_one_fault_of_any_kind_does_not_hide_that_the_slot_is_mine(fault: Fault) -> None:
    assert (await take(failing_once(fault), "slot", 1)).mine


@pytest.mark.parametrize("fault", list(Fault))
async def test_one_fault_of_any_kind_does_not_make_anothers_slot_mine(fault: Fault) -> None:
    store = failing_once(fault)
    await MemoryObjectStore(store.bucket).put("slot", [body(2)[0]])
    outcome = await take(store, "slot", 1)
    assert (outcome.mine, outcome.data) == (False, body(2)[0])


async def test_an_outage_leaves_it_open() -> None:
    store = MemoryObjectStore()
    store.outage = True
    with pytest.raises(Unavailable, match="no answer within 20 ms"):
        await take(store, "slot", 1, RetryPolicy(first_delay_ms=1, max_delay_ms=4, deadline_ms=20))
    store.outage = False
    assert (await take(store, "slot", 1)).mine


async def test_a_body_without_its_nonce_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="must contain a nonce"):
        await occupy(MemoryObjectStore(), "slot", b"body", b"0123456789", rng=random.Random())


@pytest.mark.parametrize("seed", range(20))
async def test_each_slot_has_one_owner_and_each_loser_knows_it(seed: int) -> None:
    bucket = Bucket()
    faults = Faults(
        latency_ms=0.3, refused=0.1, lost_reply=0.15, delayed=0.1, repeated=0.15, conflict=0.1, delay_ms=3
    )  # fmt: skip

    async def write(writer: int) -> list[bool]:
        store = MemoryObjectStore(bucket, rng=random.Random(seed * 10 + writer), faults=faults)
        return [(await take(store, f"slot/{slot}", writer)).mine for slot in range(6)]

    results = await asyncio.gather(*(write(writer) for writer in range(4)))
    await asyncio.sleep(0.005)  # delayed writes arrive, and change nothing
    for slot in range(6):
        (owner,) = [writer for writer in range(4) if results[writer][slot]]
        assert bucket.objects[f"slot/{slot}"].data == body(owner)[0]


async def test_swap_replaces_what_was_read() -> None:
    store = MemoryObjectStore()
    cas = CasObject(store, "leader", rng=random.Random(0), retry=QUICK)
    assert await cas.read() is None
    first = await cas.swap(body(1)[0], None, body(1)[1])
    assert first.mine
    assert not (await cas.swap(body(2)[0], None, body(2)[1])).mine
    second = await cas.swap(body(3)[0], first.etag, body(3)[1])
    assert second.mine
    stale = await cas.swap(body(4)[0], first.etag, body(4)[1])
    assert (stale.mine, stale.data, stale.etag) == (False, body(3)[0], second.etag)
    found = await cas.read()
    assert found is not None
    assert found.data == body(3)[0]


@pytest.mark.parametrize("seed", range(10))
async def test_a_chain_of_swaps_loses_none(seed: int) -> None:
    """Every swap that is told to be mine is in the history of the object; each follows what its writer had read."""
    bucket = Bucket()
    faults = Faults(latency_ms=0.2, refused=0.1, lost_reply=0.15, repeated=0.15, conflict=0.1)
    successor_of: dict[bytes | None, list[bytes]] = {}

    async def write(writer: int) -> None:
        store = MemoryObjectStore(bucket, rng=random.Random(seed * 10 + writer), faults=faults)
        cas = CasObject(store, "leader", rng=random.Random(writer), retry=QUICK)
        for number in range(8):
            found = await cas.read()
            data, nonce = body(writer, number)
            if (await cas.swap(data, found.etag if found else None, nonce)).mine:
                successor_of.setdefault(found.data if found else None, []).append(data)

    await asyncio.gather(*(write(writer) for writer in range(3)))
    assert all(len(successors) == 1 for successors in successor_of.values())
    assert len(successor_of) >= 8


async def test_reading_waits_out_a_short_outage() -> None:
    store = MemoryObjectStore()
    await store.put("leader", [b"x"])
    store.outage = True
    asyncio.get_running_loop().call_later(0.01, lambda: setattr(store, "outage", False))
    found = await CasObject(store, "leader", rng=random.Random(0), retry=QUICK).read()
    assert found is not None
