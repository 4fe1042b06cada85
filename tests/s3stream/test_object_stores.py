"""What every object store promises, run on each implementation, and for S3 on each server that is to be had here.

Moto's server checks If-None-Match and If-Match alone, not against each other at the same moment: races between clients
are left out for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from s3stream.local import LocalObjectStore
from s3stream.memory import MemoryObjectStore
from s3stream.objectstore import (
    LEAST_COPY_BYTES,
    Buffer,
    CopyUnconfirmed,
    NotFound,
    ObjectStore,
    PreconditionFailed,
    StoredRange,
    WriteConflict,
)
from tests.stores.fixtures import S3_SERVERS
from tests.stores.s3_server import S3Server
from wal.checksum import crc32c

T = TypeVar("T")


@pytest.fixture(params=["local", "memory", *S3_SERVERS])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def store(kind: str, s3_server_named: Callable[[str], S3Server], tmp_path: Path) -> AsyncIterator[ObjectStore]:
    opened: ObjectStore
    if kind in S3_SERVERS:
        server = s3_server_named(kind)
        opened = server.open(server.new_bucket())
    else:
        opened = LocalObjectStore(tmp_path / "objects") if kind == "local" else MemoryObjectStore()
    yield opened
    await opened.close()


async def list_keys(store: ObjectStore, prefix: str, start_after: str = "") -> list[str]:
    return [summary.key async for summary in store.list(prefix, start_after=start_after)]


async def in_a_race(calls: Sequence[Coroutine[Any, Any, T]], kind: str) -> list[T]:
    """Run calls at the same time, one after the other on moto (see above)."""
    if kind == "moto":
        return [await call for call in calls]
    return list(await asyncio.gather(*calls))


async def test_an_object_reads_back_whole_in_ranges_and_from_its_tail(store: ObjectStore) -> None:
    etag = await store.put("a/b/object", [b"0123", memoryview(bytearray(b"45678")), b"", b"9"])

    stored = await store.get("a/b/object")
    assert (stored.data, stored.etag) == (b"0123456789", etag)
    assert await store.get_range("a/b/object", 2, 5) == b"234"
    assert await store.get_range("a/b/object", 8, 20) == b"89"
    assert await store.get_range("a/b/object", 30, 40) == b""
    assert await store.get_range("a/b/object", 4, 4) == b""
    parts = [memoryview(bytearray(size)) for size in (3, 0, 1, 2)]
    assert await store.get_range_into("a/b/object", 2, parts) == 6
    assert [bytes(part) for part in parts] == [b"234", b"", b"5", b"67"]
    assert await store.get_range_into("a/b/object", 8, parts) == 2  # it is shorter
    assert bytes(parts[0][:2]) == b"89"
    assert await store.get_range_into("a/b/object", 30, parts) == 0
    assert await store.get_range_into("a/b/object", 4, []) == 0
    assert await store.get_tail("a/b/object", 3) == (b"789", 10)
    assert await store.get_tail("a/b/object", 100) == (b"0123456789", 10)


async def read_stream(store: ObjectStore, key: str, start: int, end: int, *, buffer_bytes: int = 64 << 10) -> bytes:
    async with aclosing(store.get_stream(key, start, end, buffer_bytes=buffer_bytes)) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def test_a_stream_is_a_range_piece_by_piece(store: ObjectStore) -> None:
    content = random.Random(2).randbytes(1_000_000)
    await store.put("key", [content])

    assert await read_stream(store, "key", 1000, 900_000) == content[1000:900_000]
    assert await read_stream(store, "key", 999_990, 2_000_000) == content[-10:]  # it is shorter
    assert await read_stream(store, "key", 1_000_000, 1_000_001) == b""
    assert await read_stream(store, "key", 5, 5) == b""
    with pytest.raises(NotFound):
        await read_stream(store, "none", 0, 10)
    with pytest.raises(ValueError, match="no byte range"):
        await read_stream(store, "key", 5, 4)


async def test_many_streams_are_under_way_at_a_time_and_wait_for_their_readers(store: ObjectStore) -> None:
    """More than there are connections for other requests, which go on."""
    content = random.Random(3).randbytes(300_000)
    await store.put("key", [content])
    streams = [store.get_stream("key", number, 300_000, buffer_bytes=64 << 10) for number in range(48)]
    found = [bytearray(await anext(stream)) for stream in streams]
    assert await store.get_range("key", 0, 10) == content[:10]
    for number, stream in enumerate(streams[:40]):
        async for piece in stream:
            found[number] += piece
        assert found[number] == content[number:]
    for stream in streams:
        await stream.aclose()


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put("empty", [])

    assert (await store.get("empty")).data == b""
    assert await store.get_range("empty", 0, 10) == b""
    assert await store.get_tail("empty", 10) == (b"", 0)


async def test_put_replaces(store: ObjectStore) -> None:
    first = await store.put("key", [b"a longer first version"])
    second = await store.put("key", [b"second"])

    assert first != second
    assert (await store.get("key")).data == b"second"


async def test_what_does_not_exist_is_not_found(store: ObjectStore) -> None:
    await store.put("folder/other", [b"x"])
    for key in ("folder/none", "folder", "folder/other/below"):
        with pytest.raises(NotFound):
            await store.get(key)
        with pytest.raises(NotFound):
            await store.get_range(key, 0, 1)
        with pytest.raises(NotFound):
            await store.get_range_into(key, 0, [memoryview(bytearray(1))])
        with pytest.raises(NotFound):
            await store.get_tail(key, 1)


async def test_put_if_absent_lets_one_caller_win(store: ObjectStore, kind: str) -> None:
    async def attempt(number: int) -> int | None:
        try:
            await store.put_if_absent("slot", [b"from %d" % number])
        except (PreconditionFailed, WriteConflict):
            return None
        return number

    results = await in_a_race([attempt(number) for number in range(8)], kind)
    winners = [number for number in results if number is not None]

    assert len(winners) == 1
    assert (await store.get("slot")).data == b"from %d" % winners[0]
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("slot", [b"too late"])
    await store.delete_many(["slot"])
    await store.put_if_absent("slot", [b"free again"])


async def test_every_slot_has_one_winner_however_many_are_fought_for(store: ObjectStore, kind: str) -> None:
    """What the log in the bucket and its fences rest on: a store that lets two win now and then would pass a single race."""
    if kind == "moto":
        pytest.skip("moto does not check requests of the same moment against each other")

    async def attempt(slot: int, number: int) -> tuple[int, int] | None:
        while True:
            try:
                await store.put_if_absent(f"slots/{slot}", [b"from %d" % number])
            except PreconditionFailed:
                return None
            except WriteConflict:
                continue
            return slot, number

    calls = [attempt(slot, number) for slot in range(50) for number in range(6)]
    random.Random(1).shuffle(calls)
    winners = sorted(filter(None, await asyncio.gather(*calls)))

    assert [slot for slot, _ in winners] == list(range(50))
    for slot, number in winners:
        assert (await store.get(f"slots/{slot}")).data == b"from %d" % number


async def test_put_if_match_compares_and_swaps(store: ObjectStore) -> None:
    first = await store.put_if_absent("object", [b"one"])
    second = await store.put_if_match("object", [b"two"], first)

    with pytest.raises(PreconditionFailed):
        await store.put_if_match("object", [b"three"], first)
    assert await store.get("object") == await store.get("object")
    assert ((await store.get("object")).data, (await store.get("object")).etag) == (b"two", second)
    with pytest.raises(PreconditionFailed):
        await store.put_if_match("never written", [b"three"], first)
    with pytest.raises(NotFound):
        await store.get("never written")


async def test_counting_by_compare_and_swap_loses_no_count(store: ObjectStore, kind: str) -> None:
    await store.put_if_absent("counter", [b"0"])

    async def count() -> None:
        for _ in range(5):
            while True:
                current = await store.get("counter")
                try:
                    await store.put_if_match("counter", [b"%d" % (int(current.data) + 1)], current.etag)
                except (PreconditionFailed, WriteConflict):
                    continue
                break

    await in_a_race([count() for _ in range(4)], kind)

    assert (await store.get("counter")).data == b"20"


async def test_listing_is_in_key_order(store: ObjectStore) -> None:
    keys = ["a", "b-", "b/1", "b/10", "b/2", "b/c/d", "b/c-", "b0", "c/x/y/z", "d"]
    for number, key in enumerate(random.Random(1).sample(keys, len(keys))):
        await store.put(key, [b"x" * number])

    in_order = sorted(keys)
    assert await list_keys(store, "") == in_order
    for prefix in ("b", "b/", "b/1", "b/c", "b/c/", "c/x/y/z", "c/x/y/z/", "none", "none/at/all"):
        assert await list_keys(store, prefix) == [key for key in in_order if key.startswith(prefix)]
    for start_after in [*keys, "b/", "b/c", "b/c/a", "b/z", "zz"]:
        for prefix in ("", "b", "b/"):
            assert await list_keys(store, prefix, start_after) == [
                key for key in in_order if key.startswith(prefix) and key > start_after
            ]


async def test_listing_goes_on_past_one_page(store: ObjectStore, kind: str) -> None:
    # A thousand requests to moto take seconds; test_s3.py lists with smaller pages.
    count = 20 if kind == "moto" else 1003
    keys = [f"many/{number:04d}" for number in range(count)]
    await asyncio.gather(*(store.put(key, [b"x"]) for key in keys))

    assert await list_keys(store, "many/") == keys


async def test_a_listing_tells_size_and_age_by_the_stores_clock(store: ObjectStore) -> None:
    before_ms = await store.now_ms()
    await store.put("object", [b"12345"])
    after_ms = await store.now_ms()

    (summary,) = [summary async for summary in store.list("object")]

    assert summary.size_bytes == 5
    assert before_ms - 1000 <= summary.last_modified_ms <= after_ms + 1000  # S3 tells whole seconds


async def test_deleting_twice_is_deleting(store: ObjectStore) -> None:
    for number in range(5):
        await store.put(f"data/{number}", [b"x"])

    await store.delete_many(["data/1", "data/3", "data/none", "no/folder"])
    await store.delete_many(["data/1"])
    await store.delete_many([])

    assert await list_keys(store, "data/") == ["data/0", "data/2", "data/4"]


async def some_parts(*parts: Buffer) -> AsyncIterator[Buffer]:
    for part in parts:
        yield part


CONFIRMING = ("minio", "seaweedfs")
"""Stores that tell the CRC of what was written to them. Moto takes it and says nothing."""


async def test_multipart_writes_a_large_object(store: ObjectStore, kind: str) -> None:
    parts = [bytes([number]) * (3 << 20) for number in range(6)]

    written = await store.put_multipart("large", some_parts(*parts))

    stored = await store.get("large")
    assert (stored.data, stored.etag) == (b"".join(parts), written.etag)
    assert written.is_confirmed == (kind in CONFIRMING)
    assert await store.abort_stale_multiparts("", await store.now_ms() + 10_000) == 0


LARGE = LEAST_COPY_BYTES + 1000


async def copied_parts(*parts: Buffer | StoredRange) -> AsyncIterator[Buffer | StoredRange]:
    for part in parts:
        yield part


def range_of(key: str, data: bytes, start: int, end: int, *, confirmed: bool = False) -> StoredRange:
    return StoredRange(key=key, start=start, end=end, crc32c=crc32c(data[start:end]) if confirmed else None)


async def test_ranges_of_other_objects_become_parts(store: ObjectStore, kind: str) -> None:
    rng = random.Random(1)
    first, second, between = rng.randbytes(3 * LARGE), rng.randbytes(LARGE), rng.randbytes(LARGE)
    await store.put("first", [first])
    await store.put("second", [second])
    confirmed = kind in ("local", "memory", "seaweedfs")
    parts = [
        range_of("first", first, 1000, 1000 + LARGE, confirmed=confirmed),
        between[:100],
        between[100:],
        range_of("first", first, 1000 + LARGE, 3 * LARGE, confirmed=confirmed),
        range_of("second", second, 0, LARGE, confirmed=confirmed),
        b"tail",
    ]
    if not confirmed:  # the others do not tell CRCs of copies, which is learnt from the first one
        with pytest.raises(CopyUnconfirmed):
            await store.put_composed("learnt", copied_parts(range_of("second", second, 0, LARGE, confirmed=True)))
        assert await list_keys(store, "learnt") == []
    await store.put_composed("new", copied_parts(*parts))
    await store.delete_many(["first", "second"])
    assert (await store.get("new")).data == first[1000 : 1000 + LARGE] + between + first[
        1000 + LARGE :
    ] + second + b"tail"
    assert [found async for found in store.list_multiparts("")] == []


async def test_a_copy_that_is_not_what_it_should_be_leaves_nothing(store: ObjectStore) -> None:
    await store.put("source", [bytes(LARGE)])
    with pytest.raises(CopyUnconfirmed):
        await store.put_composed(
            "new", copied_parts(b"x" * LARGE, StoredRange(key="source", start=0, end=LARGE, crc32c=12345))
        )
    with pytest.raises(NotFound):
        await store.put_composed("new", copied_parts(StoredRange(key="gone", start=0, end=LARGE, crc32c=None)))
    assert await list_keys(store, "") == ["source"]
    assert [found async for found in store.list_multiparts("")] == []


async def test_uploads_that_a_crash_left_behind_are_found_below_their_prefix_and_aborted(s3_server: S3Server) -> None:
    """I8: others may be under way in the same bucket, and are left alone."""
    bucket = s3_server.new_bucket()
    for key in ("mine/data/a", "mine/data/b", "mine", "other/c"):
        s3_server.client.create_multipart_upload(Bucket=bucket, Key=key)
    store = s3_server.open(bucket)
    late = await store.now_ms() + 10_000

    assert [found.key async for found in store.list_multiparts("mine/data/")] == ["mine/data/a", "mine/data/b"]
    assert await store.abort_stale_multiparts("mine/data/", 0) == 0
    assert await store.abort_stale_multiparts("mine/data/", late) == 2
    assert sorted([found.key async for found in store.list_multiparts("")]) == ["mine", "other/c"]
    await store.close()


async def test_in_a_versioned_bucket_a_deleted_key_is_free_again(s3_server: S3Server) -> None:
    """What was deleted stays there as an older version, under a marker that says so."""
    bucket = s3_server.new_bucket()
    s3_server.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    store = s3_server.open(bucket)
    first = await store.put_if_absent("slot", [b"first"])
    await store.delete_many(["slot"])

    with pytest.raises(NotFound):
        await store.get("slot")
    assert await list_keys(store, "") == []
    with pytest.raises(PreconditionFailed):
        await store.put_if_match("slot", [b"of the past"], first)
    second = await store.put_if_absent("slot", [b"second"])
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("slot", [b"third"])
    await store.put_if_match("slot", [b"fourth"], second)
    assert (await store.get("slot")).data == b"fourth"
    await store.close()


async def test_multipart_of_little_writes_it_too(store: ObjectStore, kind: str) -> None:
    written = await store.put_multipart("little", some_parts(b"a", memoryview(b"bc"), b""))
    assert written.is_confirmed == (kind in CONFIRMING)
    await store.put_multipart("nothing", some_parts())

    assert (await store.get("little")).data == b"abc"
    assert (await store.get("nothing")).data == b""


async def test_a_multipart_that_fails_leaves_nothing(store: ObjectStore) -> None:
    async def fail_midway() -> AsyncIterator[Buffer]:
        yield b"x" * (9 << 20)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        await store.put_multipart("broken", fail_midway())

    assert await list_keys(store, "") == []
    assert await store.abort_stale_multiparts("", await store.now_ms() + 10_000) == 0


async def test_the_stores_clock_does_not_go_back(store: ObjectStore) -> None:
    first = await store.now_ms()
    assert await store.now_ms() >= first


async def test_closing_twice_is_closing(store: ObjectStore) -> None:
    await store.put("key", [b"x"])
    await store.close()
    await store.close()
