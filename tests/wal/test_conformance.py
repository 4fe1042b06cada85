"""What every write-ahead log does, whatever it is made of. A new kind is one more entry in `KINDS`."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from s3stream.memory import Bucket, MemoryObjectStore
from s3stream.open import open_object_store
from s3stream.wal_objects import StoreForWal
from tests.stores.s3_server import S3Server
from tests.wal.driving import Listener, append, append_durably, recover
from wal.arena import Arena
from wal.config import ObjectWalConfig
from wal.errors import PayloadTooLarge
from wal.log import WriteAheadLog
from wal.objects import WalObjects
from wal.open import open_wal

Reopen = Callable[[], Awaitable[WriteAheadLog]]

KINDS = {
    "file": "file://{directory}?capacity=1MiB",
    "objects in a directory": "objects+file://{directory}?capacity=1MiB&batch_size=64KiB&batch_interval_ms=1",
    "objects in memory": "objects+mem://?capacity=1MiB&batch_size=64KiB&batch_interval_ms=0",
    "objects in minio": "{bucket}&capacity=1MiB&batch_size=64KiB&batch_interval_ms=0",
    "objects in seaweedfs": "{bucket}&capacity=1MiB&batch_size=64KiB&batch_interval_ms=0",
}
KINDS_THAT_KEEP_NOTHING = {"null": "null://"}

MIB = 1 << 20


@pytest.fixture(params=KINDS | KINDS_THAT_KEEP_NOTHING)
def reopen(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    s3_server_named: Callable[[str], S3Server],
    monkeypatch: pytest.MonkeyPatch,
) -> Reopen:
    """Opens the same log again and again, as one process after another would."""
    template = (KINDS | KINDS_THAT_KEEP_NOTHING)[request.param]
    places = {"directory": str(tmp_path)}
    if "{bucket}" in template:
        server = s3_server_named(request.param.split()[-1])
        places["bucket"] = server.uri(server.new_bucket())
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
    uri = template.format(**places)
    rng = random.Random(1)
    bucket = Bucket()

    async def open_objects(config: ObjectWalConfig) -> WalObjects:
        if config.store_uri.startswith("mem:"):
            return StoreForWal(MemoryObjectStore(bucket))
        return StoreForWal(open_object_store(config.store_uri, rng=rng).store)

    async def opened() -> WriteAheadLog:
        return await open_wal(uri, arena=Arena(MIB), cluster_id="tide", node_id=1, rng=rng, open_objects=open_objects)

    return opened


keeps = pytest.mark.parametrize("reopen", KINDS, indirect=True)


async def test_a_new_log_is_empty(reopen: Reopen) -> None:
    wal = await reopen()
    assert await recover(wal) == []
    assert (wal.trim_offset, wal.durable_offset, wal.end_offset) == (0, 0, 0)
    assert (len(wal.wal_id), wal.cluster_id) == (32, "tide")
    await wal.close()


async def test_durable_offsets_arrive_in_order_and_reach_the_end(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    told = Listener().listen(wal)
    ends = []
    for number in range(50):
        ends.append(append(wal, bytes(number)))
        if number % 7 == 0:
            await asyncio.sleep(0)
    assert ends == sorted(set(ends)), "offsets only grow"
    assert wal.end_offset == ends[-1]

    await wal.close()

    assert told.durable == sorted(set(told.durable))
    assert set(told.durable) <= set(ends), "durable offsets are ends of frames"
    assert told.durable[-1] == wal.durable_offset == ends[-1]
    assert told.failures == []


async def test_nothing_is_durable_within_the_turn_that_appended_it(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    told = Listener().listen(wal)
    append(wal, b"x")
    assert told.durable == []
    assert wal.durable_offset == 0
    await wal.close()


async def test_a_payload_is_laid_out_in_the_arena(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    view = wal.reserve(5)
    assert view is not None
    assert len(view) == 5
    view[:] = b"hello"
    position = wal.reserved_position
    wal.append(stream_id=1, leader_epoch=1, base_offset=0, record_count=1)
    await wal.close()
    assert bytes(view) == b"hello"
    assert position >= 0


async def test_a_cancelled_reservation_appends_nothing(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    assert wal.reserve(100) is not None
    wal.cancel()
    assert wal.end_offset == 0
    assert await append_durably(wal, b"x") > 0
    await wal.close()


async def test_there_is_one_reservation_at_a_time(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    wal.reserve(1)
    with pytest.raises(AssertionError):
        wal.reserve(1)
    wal.cancel()
    with pytest.raises(AssertionError):
        wal.cancel()
    with pytest.raises(AssertionError):
        wal.append(stream_id=1, leader_epoch=1, base_offset=0, record_count=1)
    await wal.close()


async def test_a_full_arena_says_so(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    taken = 0
    while wal.reserve(50_000) is not None:
        wal.append(stream_id=1, leader_epoch=1, base_offset=0, record_count=1)
        taken += 1
        assert taken < 100, "bounded"
    assert taken > 10
    await wal.close()


async def test_a_payload_that_never_fits_is_an_error(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    with pytest.raises(PayloadTooLarge):
        wal.reserve(MIB)
    await wal.close()


async def test_a_trim_moves_the_start(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    first = await append_durably(wal, b"first")
    await append_durably(wal, b"second")
    await wal.trim(first)
    assert wal.trim_offset == first
    await wal.trim(0)
    assert wal.trim_offset == first, "it never goes back"
    with pytest.raises(ValueError, match="cannot trim"):
        await wal.trim(wal.end_offset + 8)
    await wal.close()


async def test_closing_twice_is_closing_once(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    append(wal, b"x")
    await asyncio.gather(wal.close(), wal.close())
    await wal.close()
    assert wal.durable_offset == wal.end_offset


@keeps
async def test_what_was_appended_is_recovered_in_order_with_all_it_carries(reopen: Reopen) -> None:
    rng = random.Random(4)
    wal = await reopen()
    await recover(wal)
    appended = []
    for number in range(200):
        payload = rng.randbytes(rng.choice([0, 1, 7, 100, 3000]))
        fields = {
            "stream_id": rng.randrange(2**40),
            "leader_epoch": rng.randrange(2**20),
            "base_offset": rng.randrange(2**50),
            "record_count": rng.randrange(1000),
        }
        appended.append((append(wal, payload, **fields), *fields.values(), payload))
        if number % 10 == 0:
            await asyncio.sleep(0.001)
    wal_id = wal.wal_id
    await wal.close()

    wal = await reopen()

    assert wal.wal_id == wal_id
    frames = await recover(wal)
    assert [
        (f.end_offset, f.stream_id, f.leader_epoch, f.base_offset, f.record_count, f.payload) for f in frames
    ] == appended
    assert all(before.end_offset <= after.offset for before, after in itertools.pairwise(frames))
    assert wal.durable_offset == wal.end_offset == frames[-1].end_offset
    await wal.close()


@keeps
async def test_what_was_trimmed_does_not_come_back(reopen: Reopen) -> None:
    wal = await reopen()
    await recover(wal)
    ends = [await append_durably(wal, b"%d" % number) for number in range(5)]
    await wal.trim(ends[2])
    await wal.close()

    wal = await reopen()
    assert wal.trim_offset == ends[2]
    assert [frame.payload for frame in await recover(wal)] == [b"3", b"4"]
    await wal.trim(wal.durable_offset)
    await wal.close()

    wal = await reopen()
    assert await recover(wal) == []
    assert wal.trim_offset == wal.end_offset == ends[-1], "log offsets are never reused"
    await wal.close()


@keeps
async def test_a_log_far_longer_than_its_capacity(reopen: Reopen) -> None:
    arena = None
    for life in range(3):
        wal = await reopen()
        assert len(await recover(wal)) == (1 if life else 0)
        arena = wal._arena  # type: ignore[attr-defined]
        for _ in range(60):
            end = await append_durably(wal, bytes(100_000))
            arena.release_to(arena.head)
            if end - wal.trim_offset > wal.capacity_bytes // 2:
                await wal.trim(end)
        await wal.trim(end)
        await append_durably(wal, b"last")
        await wal.close()
    assert end > 15 * MIB
