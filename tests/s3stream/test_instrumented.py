"""Counting, failing and slowing down at a switch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from s3stream.instrumented import InstrumentedObjectStore
from s3stream.memory import MemoryObjectStore
from s3stream.objectstore import Buffer, NotFound, Unavailable


async def some_parts() -> AsyncIterator[Buffer]:
    yield b"12345"
    yield b"678"


async def test_everything_is_passed_on_and_counted() -> None:
    inner = MemoryObjectStore()
    store = InstrumentedObjectStore(inner)

    etag = await store.put_if_absent("a", [b"one"])
    await store.put_if_match("a", [b"four"], etag)
    await store.put("b", [b"xy", b"z"])
    await store.put_multipart("c", some_parts())
    assert (await store.get("a")).data == b"four"
    assert await store.get_range("a", 1, 3) == b"ou"
    assert await store.get_tail("c", 2) == (b"78", 8)
    assert [bytes(piece) async for piece in store.get_stream("c", 1, 8, buffer_bytes=4)] == [b"2345", b"678"]
    assert [found.key async for found in store.list("", start_after="a")] == ["b", "c"]
    with pytest.raises(NotFound):
        await store.get("none")
    await store.delete_many(["a", "b"])
    assert [upload async for upload in store.list_multiparts("")] == []
    await store.abort_stale_multiparts("", 0)
    assert await store.now_ms() >= 0

    assert store.uri == inner.uri
    assert inner.bucket.keys == ["c"]
    assert store.requests == {
        "put_if_absent": 1, "put_if_match": 1, "put": 1, "put_multipart": 1, "get": 2, "get_range": 1, "get_tail": 1,
        "get_stream": 1, "list": 1, "delete_many": 1, "list_multiparts": 1, "abort_stale_multiparts": 1, "now_ms": 1,
    }  # fmt: skip
    assert store.failures == {("get", "NotFound"): 1}
    assert {operation: durations.count for operation, durations in store.durations.items()} == store.requests
    assert (store.bytes_written, store.bytes_read) == (3 + 4 + 3 + 8, 4 + 2 + 2 + 7)
    await store.close()


async def test_while_it_fails_nothing_gets_through() -> None:
    inner = MemoryObjectStore()
    store = InstrumentedObjectStore(inner)
    store.failing = True
    with pytest.raises(Unavailable, match="switched off"):
        await store.put("a", [b"x"])
    with pytest.raises(Unavailable, match="switched off"):
        async for _ in store.list(""):
            pass
    assert not inner.requests
    store.failing = False
    await store.put("a", [b"x"])
    assert store.failures == {("put", "Unavailable"): 1, ("list", "Unavailable"): 1}


async def test_it_can_be_slowed_down() -> None:
    store = InstrumentedObjectStore(MemoryObjectStore())
    loop = asyncio.get_running_loop()
    store.delay_ms = 20
    begun = loop.time()
    await store.put("a", [b"x"])
    assert loop.time() - begun >= 0.02
    store.delay_ms, store.bytes_per_s = 0, 1000
    begun = loop.time()
    await store.put("a", [bytes(30)])
    assert loop.time() - begun >= 0.03
