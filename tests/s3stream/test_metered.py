"""Counting requests and bytes as a bucket's bill does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import pytest

from s3stream.memory import MemoryObjectStore
from s3stream.metered import MeteredObjectStore, Purpose, Usage, Used
from s3stream.objectstore import Buffer, NotFound, PreconditionFailed


def metered(usage: Usage, purpose: Purpose = Purpose.UPLOAD, part_size_bytes: int = 10) -> MeteredObjectStore:
    return MeteredObjectStore(MemoryObjectStore(), usage=usage, purpose=purpose, part_size_bytes=part_size_bytes)


async def pieces(sizes: Iterable[int]) -> AsyncIterator[Buffer]:
    for size in sizes:
        yield bytes(size)


async def test_writes_count_with_their_bytes_and_reads_with_theirs() -> None:
    usage = Usage()
    store = metered(usage)

    await store.put("a", [b"123", b"45"])
    etag = await store.put_if_absent("b", [b"12"])
    await store.put_if_match("b", [b"123"], etag)
    assert usage.total() == Used(puts=3, sent_bytes=10)

    await store.get("a")
    await store.get_range("a", 1, 3)
    await store.get_tail("a", 4)
    await store.now_ms()
    assert usage.total() == Used(puts=3, sent_bytes=10, gets=4, received_bytes=5 + 2 + 4)
    pieces = store.get_stream("a", 0, 4, buffer_bytes=3)
    assert await anext(pieces) == b"123"
    assert await anext(pieces) == b"4"
    await pieces.aclose()
    assert usage.total() == Used(puts=3, sent_bytes=10, gets=5, received_bytes=5 + 2 + 4 + 4)
    await store.close()


async def test_what_is_refused_is_billed_too() -> None:
    usage = Usage()
    store = metered(usage, Purpose.METADATA)
    await store.put_if_absent("a", [b"1"])
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("a", [b"1"])
    with pytest.raises(NotFound):
        await store.get("none")
    assert usage.of(Purpose.METADATA) == Used(puts=2, sent_bytes=2, gets=1)


@pytest.mark.parametrize(
    ("sizes", "puts"),
    [
        ([], 1),
        ([4, 5], 1),
        ([4, 6], 3),  # begin, a part, complete
        ([4, 7], 4),
        ([35], 6),
        ([1] * 20, 4),
    ],
)
async def test_a_multipart_upload_is_its_parts_and_two_more(sizes: list[int], puts: int) -> None:
    usage = Usage()
    store = metered(usage, Purpose.COMPACTION)
    await store.put_multipart("a", pieces(sizes))
    assert usage.total(Purpose.COMPACTION) == Used(puts=puts, sent_bytes=sum(sizes))
    assert (await store.get_tail("a", 1))[1] == sum(sizes)


async def test_listings_count_by_page_and_deletions_by_batch() -> None:
    usage = Usage()
    store = metered(usage, Purpose.COLLECTION)
    keys = [f"{number:04}" for number in range(2001)]
    for key in keys:
        await store.put(key, [b""])
    assert [found.key async for found in store.list("", start_after="0000")] == keys[1:]  # two full pages
    assert [upload async for upload in store.list_multiparts("")] == []
    assert await store.abort_stale_multiparts("", 0) == 0
    assert usage.total().lists == 2 + 1 + 1
    await store.delete_many(keys)
    await store.delete_many([])
    assert usage.total().deletes == 3


async def test_purposes_share_one_account() -> None:
    usage = Usage()
    inner = MemoryObjectStore()
    uploads, reads = (
        MeteredObjectStore(inner, usage=usage, purpose=purpose, part_size_bytes=10)
        for purpose in (Purpose.UPLOAD, Purpose.READ)
    )
    assert uploads.uri == inner.uri
    await uploads.put("a", [b"12"])
    before = usage.copy()
    await reads.get("a")
    assert usage.since(before).total() == Used(gets=1, received_bytes=2)
    assert usage.total(Purpose.UPLOAD) == Used(puts=1, sent_bytes=2)

    everywhere = Usage()
    held = everywhere.of(Purpose.READ)
    everywhere.add(usage)
    everywhere.add(usage)
    assert everywhere.total() == Used(puts=2, sent_bytes=4, gets=2, received_bytes=4)
    assert held == Used(gets=2, received_bytes=4)
