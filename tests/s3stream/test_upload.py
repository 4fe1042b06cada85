"""Uploads of the storage engine: in order whatever fails or is late, and within their bound of memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from s3stream import upload
from s3stream.errors import StreamClosed
from s3stream.memory import Fault
from tests.s3stream.durable import ONE, TWO, Durable, contents, everywhere, put, put_durably


async def test_lost_replies_of_puts_and_commits_change_nothing(durable: Durable) -> None:
    lose = iter([Fault.LOST_REPLY, Fault.REFUSED, None, Fault.LOST_REPLY] * 3)

    async def hook(operation: str, key: str) -> Fault | None:
        return next(lose, None) if operation == "put" else None

    durable.store.hook = hook
    async with durable.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 100_000) for _ in range(60)]
    durable.store.hook = None
    async with durable.engine() as (storage, streams):
        assert await contents(streams[ONE]) == sent


async def test_commits_stay_in_order_when_puts_finish_out_of_order(durable: Durable) -> None:
    delays = iter([0.2, 0.0] * 50)

    async def hook(operation: str, key: str) -> None:
        if operation == "put":
            await asyncio.sleep(next(delays))

    durable.store.hook = hook
    async with durable.engine() as (storage, streams):
        sent = [await put_durably(storage, streams[ONE], 100_000) for _ in range(60)]
        assert await contents(streams[ONE]) == sent
    ends = [item.ranges[0].end_offset for item in durable.metadata.objects.values()]
    assert ends == sorted(ends)


@everywhere
async def test_a_deleted_stream_does_not_hold_up_the_others(durable: Durable) -> None:
    async with durable.engine() as (storage, streams):
        await put_durably(storage, streams[ONE])
        sent = [await put_durably(storage, streams[TWO])]
        del durable.metadata.ends[ONE]
        await storage.flush(TWO, 1)
        assert isinstance(streams[ONE].closed, StreamClosed)
        sent.append(await put_durably(storage, streams[TWO]))
        with pytest.raises(StreamClosed):
            put(storage, streams[ONE])
        sent.append(await put_durably(storage, streams[TWO]))
        assert await contents(streams[TWO]) == sent


async def test_copies_of_small_payloads_are_bounded_while_they_are_put(
    durable: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_object = durable.store.put
    take = upload._CopyBudget.take
    held: list[tuple[int, int]] = []
    """In all, and by who came last."""

    async def slowly(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0.02)  # so that PUTs would be under way together
        return await put_object(*arguments, **named)

    async def noting(budget: upload._CopyBudget, size: int) -> None:
        await take(budget, size)
        held.append((budget._held_bytes, size))

    monkeypatch.setattr(durable.store, "put", slowly)
    monkeypatch.setattr(upload._CopyBudget, "take", noting)
    async with durable.engine() as (storage, streams):
        storage._upload_size_bytes = 64 << 10
        storage.uploads.copies = upload._CopyBudget(100 << 10)
        for _ in range(400):
            await put_durably(storage, streams[ONE], 1000)
        storage.seal()
        await storage.uploads.drain()
        assert len(held) > 3
        assert all(0 < in_all <= max(100 << 10, size) for in_all, size in held), "no second block beyond the bound"
        held.clear()
        for _ in range(20):
            await put_durably(storage, streams[ONE], 40_000)
        storage.seal()
        await storage.uploads.drain()
        assert {size for _, size in held} == {0}, "large payloads are not copied"
