"""A store that does not keep its promises is refused at start, and told apart from one that cannot be reached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from s3stream.local import LocalObjectStore
from s3stream.memory import Fault, MemoryObjectStore
from s3stream.objectstore import (
    AccessDenied,
    Buffer,
    ObjectSummary,
    PreconditionFailed,
    Unavailable,
)
from s3stream.paths import Paths
from s3stream.probe import UnsuitableObjectStore, probe
from tests.stores.s3_server import S3Server

PATHS = Paths("cluster")


class IgnoresIfNoneMatch(MemoryObjectStore):
    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        return await self.put(key, parts)


class IgnoresIfMatch(MemoryObjectStore):
    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        await self.get(key)
        return await self.put(key, parts)


class CreatesWithIfMatch(MemoryObjectStore):
    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        if key not in self.bucket.objects:
            return await self.put(key, parts)
        return await super().put_if_match(key, parts, etag)


class RefusesIfMatch(MemoryObjectStore):
    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        raise PreconditionFailed(key)


class RefusesButWrites(MemoryObjectStore):
    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        existed = key in self.bucket.objects
        etag = await self.put(key, parts)
        if existed:
            raise PreconditionFailed(key)
        return etag


class IgnoresRanges(MemoryObjectStore):
    async def get_range(self, key: str, start: int, end: int) -> bytes:
        return (await self.get(key)).data


class ListsLate(MemoryObjectStore):
    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        for nothing in ():
            yield nothing


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (IgnoresIfNoneMatch(), "ignores If-None-Match: without conditional writes two nodes can destroy"),
        (IgnoresIfMatch(), "ignores If-Match: without"),
        (CreatesWithIfMatch(), "ignores If-Match where there is no object"),
        (RefusesIfMatch(), "refuses a write whose If-Match holds"),
        (RefusesButWrites(), "refuses a write whose If-None-Match fails, but does it"),
        (IgnoresRanges(), "does not read the ranges"),
        (ListsLate(), "does not list what was just written"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_broken_promises_are_named(store: MemoryObjectStore, expected: str) -> None:
    with pytest.raises(UnsuitableObjectStore, match=expected):
        await probe(store, PATHS, "nonce")
    assert store.bucket.keys == []


async def test_good_stores_pass_and_are_left_clean(tmp_path: Path) -> None:
    memory = MemoryObjectStore()
    await probe(memory, PATHS, "nonce")
    assert memory.bucket.keys == []
    local = LocalObjectStore(tmp_path)
    await probe(local, PATHS, "nonce")
    assert [found async for found in local.list("")] == []
    await local.close()


async def test_every_s3_server_that_is_to_be_had_here_passes(s3_server: S3Server) -> None:
    store = s3_server.open(s3_server.new_bucket())
    await probe(store, PATHS, "nonce")
    assert [found async for found in store.list("")] == []
    await store.close()


async def test_a_store_that_cannot_be_reached_is_not_unsuitable() -> None:
    store = MemoryObjectStore()
    store.outage = True
    with pytest.raises(Unavailable):
        await probe(store, PATHS, "nonce")


async def test_missing_permissions_say_what_is_needed() -> None:
    store = MemoryObjectStore()

    async def hook(operation: str, key: str) -> Fault | None:
        if operation == "put_if_match":
            raise AccessDenied("403")
        return None

    store.hook = hook
    with pytest.raises(AccessDenied, match="put, get, list and delete under 'cluster' must be allowed"):
        await probe(store, PATHS, "nonce")
    assert not store.bucket.keys, "nothing is left behind, however often it is started"


async def test_a_missing_bucket_says_so(s3_server: S3Server) -> None:
    store = s3_server.open("no-such-bucket")
    with pytest.raises(AccessDenied, match="create the bucket, or correct the URI"):
        await probe(store, PATHS, "nonce")
    await store.close()
