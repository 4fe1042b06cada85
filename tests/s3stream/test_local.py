"""What only the local directory store promises: durability, other processes, keys that stay inside."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from s3stream.local import LocalObjectStore
from s3stream.objectstore import AccessDenied, PreconditionFailed, Unavailable


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    opened = LocalObjectStore(tmp_path / "objects")
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", ".locks/00", ".tmp/x", "a\0b", "x" * 256, "a/" * 600],
)
async def test_no_key_leads_out_of_the_directory(store: LocalObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        await store.put(key, [b"x"])
    with pytest.raises(ValueError, match="key"):
        await store.get(key)


async def test_an_object_survives_a_new_start(tmp_path: Path) -> None:
    first = LocalObjectStore(tmp_path)
    etag = await first.put("a/key", [b"content"])
    await first.close()

    second = LocalObjectStore(tmp_path)
    assert (await second.get("a/key")).etag == etag
    await second.put_if_match("a/key", [b"changed"], etag)
    await second.close()


async def test_every_step_is_synced_before_it_counts(store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for name in ("fsync", "link", "rename"):
        real = getattr(os, name)

        def recorded(*arguments: object, name: str = name, real: object = real) -> object:
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else ""
            steps.append("fsync directory" if os.path.isdir(target) else name)
            return real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(os, name, recorded)

    await store.put_if_absent("folder/one", [b"x"])
    assert steps == ["fsync", "fsync directory", "link", "fsync directory"]
    steps.clear()
    await store.put("folder/one", [b"y"])
    assert steps == ["fsync", "rename", "fsync directory"]


async def test_what_a_crash_left_behind_is_invisible_and_removed_by_age(
    store: LocalObjectStore, tmp_path: Path
) -> None:
    leftover = tmp_path / "objects/.tmp/data%2Fkey~0123"
    leftover.write_bytes(b"half an obj")

    assert [summary async for summary in store.list("")] == []
    assert [upload.key async for upload in store.list_multiparts("data/")] == ["data/key"]
    assert [upload async for upload in store.list_multiparts("other/")] == []
    assert await store.abort_stale_multiparts("data/", 1000) == 0
    assert await store.abort_stale_multiparts("other/", await store.now_ms() + 1) == 0
    assert await store.abort_stale_multiparts("data/", await store.now_ms() + 1) == 1
    assert not leftover.exists()


def _count(root: str, times: int) -> None:
    async def run() -> None:
        store = LocalObjectStore(Path(root))
        for _ in range(times):
            while True:
                current = await store.get("counter")
                try:
                    await store.put_if_match("counter", [b"%d" % (int(current.data) + 1)], current.etag)
                except PreconditionFailed:
                    continue
                break
        await store.close()

    asyncio.run(run())


async def test_processes_that_compare_and_swap_lose_no_count(store: LocalObjectStore, tmp_path: Path) -> None:
    await store.put("counter", [b"0"])
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(str(tmp_path / "objects"), 25)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)
        assert process.exitcode == 0

    assert (await store.get("counter")).data == b"75"


async def test_a_killed_process_leaves_no_lock(store: LocalObjectStore, tmp_path: Path) -> None:
    etag = await store.put("key", [b"one"])
    holder = subprocess.Popen(  # noqa: ASYNC220 (started, not waited for)
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from s3stream.local import LocalObjectStore\n"
            "with LocalObjectStore(Path(sys.argv[1]))._locked('key'):\n"
            "    print('locked', flush=True); time.sleep(60)",
            str(tmp_path / "objects"),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert await asyncio.to_thread(holder.stdout.readline) == b"locked\n"

    waiting = asyncio.create_task(store.put_if_match("key", [b"two"], etag))
    _, still_waiting = await asyncio.wait([waiting], timeout=0.05)
    assert still_waiting
    holder.kill()
    await asyncio.to_thread(holder.wait)
    holder.stdout.close()

    await waiting
    assert (await store.get("key")).data == b"two"


async def test_a_cancelled_put_ends_only_when_its_thread_has_let_go(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    writing = asyncio.Event()
    real_fsync = os.fsync
    finished: list[bool] = []

    def slow_fsync(descriptor: int) -> None:
        loop.call_soon_threadsafe(writing.set)
        real_fsync(descriptor)
        finished.append(True)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    task = asyncio.create_task(store.put("key", [bytearray(8 << 20)]))
    await writing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished


async def test_a_directory_that_cannot_be_used_says_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AccessDenied, match="owner and its mount options"):
        LocalObjectStore(tmp_path / "file")


async def test_after_close_it_is_unavailable(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.get("key")
