"""A store that only looks: reads pass, nothing that would write does, and not even a directory is made."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from s3stream.local import LocalObjectStore
from s3stream.objectstore import AccessDenied
from s3stream.open import open_object_store


def everything_in(directory: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*"))


async def test_what_is_there_can_be_read_and_nothing_is_touched(tmp_path: Path) -> None:
    writer = LocalObjectStore(tmp_path / "objects")
    await writer.put("data/00/1", [b"0123456789"])
    await writer.close()
    before = everything_in(tmp_path)
    store, _ = open_object_store((tmp_path / "objects").as_uri(), rng=random.Random(0), read_only=True)

    assert (await store.get("data/00/1")).data == b"0123456789"
    assert await store.get_range("data/00/1", 2, 4) == b"23"
    assert await store.get_tail("data/00/1", 3) == (b"789", 10)
    assert [summary.key async for summary in store.list("data/")] == ["data/00/1"]
    assert [summary.key async for summary in store.list_multiparts("data/")] == []
    (summary,) = [summary async for summary in store.list("data/")]
    assert 0 <= await store.now_ms() - summary.last_modified_ms < 600_000

    async def parts() -> AsyncIterator[bytes]:
        yield b"x"

    for write in (
        store.put("a", [b"x"]),
        store.put_if_absent("a", [b"x"]),
        store.put_if_match("data/00/1", [b"x"], "tag"),
        store.delete_many(["data/00/1"]),
        store.put_multipart("a", parts()),
        store.abort_stale_multiparts("data/", 1 << 60),
    ):
        with pytest.raises(AccessDenied, match="read only"):
            await write
    await store.close()
    assert everything_in(tmp_path) == before


async def test_a_directory_that_is_missing_is_told_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="no directory"):
        open_object_store((tmp_path / "objects").as_uri(), rng=random.Random(0), read_only=True)
    assert not (tmp_path / "objects").exists()
