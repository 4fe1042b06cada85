"""Zeros are kept as their length, everything else as it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from bench.hollow import HollowObjectStore
from s3stream.objectstore import Buffer, CopyUnconfirmed, NotFound, PreconditionFailed, StoredRange
from tests.sim.loop import VirtualLoop
from wal.checksum import crc32c


@pytest.mark.parametrize("seed", range(5))
def test_what_is_read_is_what_was_written(seed: int) -> None:
    rng = random.Random(seed)
    parts = [rng.choice([bytes, rng.randbytes])(rng.choice([0, 1, 511, 512, 100_000])) for _ in range(20)]
    whole = b"".join(parts)

    async def body() -> None:
        store = HollowObjectStore()
        await store.put("a", parts)
        assert (await store.get("a")).data == whole
        for _ in range(50):
            start, end = sorted(rng.randrange(len(whole)) for _ in range(2))
            assert await store.get_range("a", start, end) == whole[start:end]
        assert await store.get_tail("a", 1000) == (whole[-1000:], len(whole))
        assert await store.get_tail("a", 10 * len(whole)) == (whole, len(whole))

        async def composed(crc: int | None) -> AsyncIterator[Buffer | StoredRange]:
            yield b"before"
            yield StoredRange(key="a", start=10, end=len(whole) - 10, crc32c=crc)

        await store.put_composed("b", composed(crc32c(whole[10:-10])))
        assert (await store.get("b")).data == b"before" + whole[10:-10]
        with pytest.raises(CopyUnconfirmed):
            await store.put_composed("b", composed(0))

    with closing(VirtualLoop()) as loop:
        loop.run_until_complete(body())


def test_conditions_hold_and_time_passes() -> None:
    async def body() -> None:
        store = HollowObjectStore(latency_s=1.0, bytes_per_s=100)
        began = asyncio.get_running_loop().time()
        etag = await store.put_if_absent("a", [bytes(200)])
        assert asyncio.get_running_loop().time() - began == pytest.approx(3.0)
        with pytest.raises(PreconditionFailed):
            await store.put_if_absent("a", [b""])
        await store.put_if_match("a", [b"x"], etag)
        with pytest.raises(PreconditionFailed):
            await store.put_if_match("a", [b"x"], etag)
        assert [found.key async for found in store.list("")] == ["a"]
        await store.delete_many(["a"])
        with pytest.raises(NotFound):
            await store.get("a")

    with closing(VirtualLoop()) as loop:
        loop.run_until_complete(body())
