"""The fault model of the memory store, one fault after the other."""

from __future__ import annotations

import asyncio
import random

import pytest

from s3stream.memory import Bucket, DeadClient, Fault, Faults, MemoryObjectStore
from s3stream.objectstore import NotFound, ObjectStoreError, PreconditionFailed, Unavailable, WriteConflict


def failing_once(fault: Fault) -> MemoryObjectStore:
    """A store whose first request goes wrong."""
    store = MemoryObjectStore(faults=Faults(delay_ms=20))
    pending = [fault]

    async def hook(operation: str, key: str) -> Fault | None:
        return pending.pop() if pending else None

    store.hook = hook
    return store


async def test_a_refused_write_did_not_happen() -> None:
    store = failing_once(Fault.REFUSED)
    with pytest.raises(Unavailable):
        await store.put("key", [b"x"])
    with pytest.raises(NotFound):
        await store.get("key")


async def test_a_write_whose_reply_is_lost_did_happen() -> None:
    store = failing_once(Fault.LOST_REPLY)
    with pytest.raises(Unavailable):
        await store.put_if_absent("key", [b"x"])
    assert (await store.get("key")).data == b"x"


async def test_a_delayed_write_happens_later_if_its_condition_still_holds() -> None:
    for meanwhile, expected in ((None, b"delayed"), (b"faster", b"faster")):
        store = failing_once(Fault.DELAYED)
        with pytest.raises(Unavailable):
            await store.put_if_absent("key", [b"delayed"])
        with pytest.raises(NotFound):
            await store.get("key")
        if meanwhile:
            await store.put_if_absent("key", [meanwhile])
        await asyncio.sleep(0.03)
        assert (await store.get("key")).data == expected


async def test_a_delayed_deletion_takes_what_it_was_sent_for() -> None:
    store = failing_once(Fault.DELAYED)
    keys = ["named"]
    with pytest.raises(Unavailable):
        await store.delete_many(keys)
    for key in ("named", "later"):
        await store.put(key, [b"x"])
    keys.append("later")
    await asyncio.sleep(0.03)
    assert [found.key async for found in store.list("")] == ["later"]


async def test_an_echo_of_a_write_makes_its_object_again_after_the_deletion() -> None:
    store = failing_once(Fault.ECHO)
    await store.put_if_absent("key", [b"first"])
    await store.delete_many(["key"])
    await asyncio.sleep(0.03)
    assert (await store.get("key")).data == b"first"


async def test_an_echo_is_bound_by_its_condition() -> None:
    store = failing_once(Fault.ECHO)
    await store.put_if_absent("key", [b"first"])
    tag = (await store.get("key")).etag
    await store.put_if_match("key", [b"second"], tag)
    await asyncio.sleep(0.03)
    assert (await store.get("key")).data == b"second"


async def test_a_repeated_conditional_write_fails_on_its_own_first_attempt() -> None:
    store = failing_once(Fault.REPEATED)
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("key", [b"mine"])
    assert (await store.get("key")).data == b"mine"


async def test_a_conflict_writes_nothing() -> None:
    store = failing_once(Fault.CONFLICT)
    with pytest.raises(WriteConflict):
        await store.put_if_absent("key", [b"x"])
    with pytest.raises(NotFound):
        await store.get("key")


async def test_a_flipped_bit_is_not_in_the_store() -> None:
    store = MemoryObjectStore(faults=Faults(flipped=1.0))
    await store.put("key", [bytes(100)])
    read = await store.get_range("key", 0, 100)
    assert sum(bin(byte).count("1") for byte in read) == 1
    assert (await store.get("key")).data == bytes(100)


async def test_nothing_works_during_an_outage() -> None:
    store = MemoryObjectStore()
    await store.put("key", [b"x"])
    store.outage = True
    with pytest.raises(Unavailable):
        await store.get("key")
    with pytest.raises(Unavailable):
        await store.put("key", [b"y"])
    store.outage = False
    assert (await store.get("key")).data == b"x"


async def test_a_dead_process_gets_no_answer_and_the_bucket_outlives_it() -> None:
    bucket = Bucket()
    dying = MemoryObjectStore(bucket, faults=Faults(latency_ms=1))
    await dying.put("before", [b"x"])
    puts = [asyncio.create_task(dying.put(f"during/{number}", [b"x"])) for number in range(40)]
    await asyncio.sleep(0)
    dying.die()
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert {type(result) for result in results} == {DeadClient}
    with pytest.raises(DeadClient):
        await dying.get("before")

    successor = MemoryObjectStore(bucket)
    assert (await successor.get("before")).data == b"x"
    arrived = [summary.key async for summary in successor.list("during/")]
    assert 0 < len(arrived) < 40


async def test_one_seed_gives_one_history() -> None:
    async def history(seed: int) -> tuple[list[str], list[str]]:
        faults = Faults(
            latency_ms=0.2, refused=0.1, lost_reply=0.1, delayed=0.1, repeated=0.1, conflict=0.1, delay_ms=1
        )
        store = MemoryObjectStore(rng=random.Random(seed), faults=faults)
        outcomes = []
        for number in range(60):
            try:
                await store.put_if_absent(f"key/{number}", [b"x"])
            except ObjectStoreError as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("ok")
        await asyncio.sleep(0.01)
        return outcomes, list(store.bucket.keys)

    first = await history(7)
    assert first == await history(7)
    assert first != await history(8)
    assert set(first[0]) == {"ok", "Unavailable", "PreconditionFailed", "WriteConflict"}


async def test_requests_and_bytes_are_counted() -> None:
    store = MemoryObjectStore()
    await store.put("key", [b"12345"])
    await store.get("key")
    await store.get_range("key", 0, 2)
    assert store.requests == {"put": 1, "get": 1, "get_range": 1}
    assert (store.bytes_written, store.bytes_read) == (5, 7)


async def test_a_stale_multipart_of_a_dead_process_is_aborted_by_age() -> None:
    bucket = Bucket()
    dying = MemoryObjectStore(bucket, now_ms=lambda: 1000)

    async def parts():  # type: ignore[no-untyped-def]
        yield b"x"
        dying.die()
        yield b"y"

    with pytest.raises(DeadClient):
        await dying.put_multipart("data/large", parts())

    successor = MemoryObjectStore(bucket)
    assert [(upload.key, upload.begun_ms) async for upload in successor.list_multiparts("")] == [("data/large", 1000)]
    assert await successor.abort_stale_multiparts("data/", 1000) == 0
    assert await successor.abort_stale_multiparts("other/", 1001) == 0
    assert await successor.abort_stale_multiparts("data/", 1001) == 1
