"""Logs of other nodes: found by their identity only, stopped for good, and read while their writer still has them open (I1, I4)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3stream.memory import Bucket, MemoryObjectStore
from s3stream.wal_objects import StoreForWal
from tests.wal.driving import Listener, append, append_durably, recover, turns
from wal.arena import Arena
from wal.config import FileWalConfig, NullWalConfig, ObjectWalConfig, parse_wal_uri
from wal.directory import fence, read_fence
from wal.errors import WalFenced, WalFencedByRecoverer, WalUnreachable
from wal.file_wal import FileWal
from wal.foreign import ForeignWal, WalPlace, find_foreign, place_of
from wal.log import RecoveredRun
from wal.object_wal import ObjectWal
from wal.objects import WalObjects
from wal.open import open_wal

HOST = "this machine"
RNG = random.Random(5)
BUCKET = ObjectWalConfig(store_uri="s3://bucket/prefix?region=r", batch_interval_ms=0, hedge_ms=0)


async def own(path: Path) -> FileWal:
    """The log of node 1, as that opens it."""
    wal = await open_wal(
        f"file://{path}?capacity=1MiB", arena=Arena(1 << 20), cluster_id="tide", node_id=1, rng=random.Random(1)
    )
    assert isinstance(wal, FileWal)
    await recover(wal)
    return wal


async def opened_in(bucket: Bucket) -> ObjectWal:
    return await ObjectWal.open(
        arena=Arena(1 << 20),
        objects=StoreForWal(MemoryObjectStore(bucket)),
        cluster_id="tide",
        node_id=1,
        config=BUCKET,
        rng=RNG,
    )


async def own_in(bucket: Bucket) -> ObjectWal:
    wal = await opened_in(bucket)
    await recover(wal)
    return wal


async def found(
    wal_id: str,
    uri: str,
    *,
    wal_epoch: int = 0,
    host: str = HOST,
    directories: Sequence[Path] = (),
    bucket: Bucket | None = None,
) -> ForeignWal:
    async def open_objects(config: ObjectWalConfig) -> WalObjects:
        assert bucket is not None
        return StoreForWal(MemoryObjectStore(bucket))

    return await find_foreign(
        WalPlace(wal_id=wal_id, node_id=1, wal_epoch=wal_epoch, uri=uri, host=host),
        host=HOST,
        directories=directories,
        open_objects=open_objects,
        rng=RNG,
    )


async def payloads(foreign: ForeignWal) -> list[bytes]:
    return [
        bytes(finding.buffer[position : position + size])
        async for finding in foreign.findings()
        if isinstance(finding, RecoveredRun)
        for columns in finding.streams.values()
        for position, size in zip(columns.positions, columns.sizes, strict=True)
    ]


def test_what_a_registration_tells_is_where_others_find_it() -> None:
    assert place_of(parse_wal_uri("file:///srv/wal?capacity=1GiB"), HOST) == ("file:///srv/wal", HOST)
    bucket = parse_wal_uri("s3://bucket/prefix?batch_interval_ms=5&region=r&capacity=8MiB")
    assert place_of(bucket, HOST) == ("s3://bucket/prefix?region=r", "")
    assert place_of(parse_wal_uri("objects+file:///srv/bucket"), HOST) == ("objects+file:///srv/bucket", "")
    assert place_of(NullWalConfig(), HOST) == ("", "")
    assert isinstance(parse_wal_uri("file:///srv/wal"), FileWalConfig)


async def test_a_log_is_read_while_its_writer_has_it_open_and_the_writer_is_stopped(tmp_path: Path) -> None:
    """As a paused process does: it holds the lock for as long as it is there."""
    wal = await own(tmp_path)
    told = Listener().listen(wal)
    end = await append_durably(wal, b"acknowledged")

    foreign = await found(wal.wal_id, tmp_path.as_uri())
    await foreign.fence()
    assert await payloads(foreign) == [b"acknowledged"]

    append(wal, b"too late")
    await turns()
    while not told.failures:
        await turns()
    assert told.durable == [end]
    await wal.close()
    await foreign.close()


async def test_a_fenced_log_gives_nothing_up(tmp_path: Path) -> None:
    """I1, I6: its writer wakes up, and hears that what it had uploaded was not committed."""
    wal = await own(tmp_path)
    Listener().listen(wal)
    end = await append_durably(wal, b"acknowledged")
    foreign = await found(wal.wal_id, tmp_path.as_uri())
    await foreign.fence()
    with pytest.raises(WalFenced, match="somebody else recovers it"):
        await wal.trim(end)
    await wal.close()
    assert await payloads(foreign) == [b"acknowledged"]


async def test_its_node_starts_again_after_it_was_fenced_however_often(tmp_path: Path) -> None:
    wal = await own(tmp_path)
    for number in range(3):
        await append_durably(wal, b"%d" % number)
        await wal.close()
        for _ in range(number):  # more often than it was opened: nobody came to use these epochs
            fence(tmp_path)
        wal = await own(tmp_path)
        assert wal.wal_epoch > (read_fence(tmp_path) or 0)
    await append_durably(wal, b"goes on")
    await wal.close()
    foreign = await found(wal.wal_id, tmp_path.as_uri())
    await foreign.fence()
    assert await payloads(foreign) == [b"0", b"1", b"2", b"goes on"]


async def test_a_fence_is_seen_by_a_node_that_is_just_starting(tmp_path: Path) -> None:
    """Also where the epoch that its header has was fenced before: it has registered, and stands still before it has opened its log."""
    await (await own(tmp_path)).close()
    fence(tmp_path)
    starting = await open_wal(
        f"file://{tmp_path}?capacity=1MiB", arena=Arena(1 << 20), cluster_id="tide", node_id=1, rng=random.Random(1)
    )
    fence(tmp_path)
    with pytest.raises(WalFencedByRecoverer):
        await recover(starting)
    await starting.close()


async def test_a_fence_in_a_bucket_is_seen_by_a_node_that_is_just_starting() -> None:
    """That has nothing to do with a second process like it, so it may start again."""
    bucket = Bucket()
    wal = await own_in(bucket)
    await append_durably(wal, b"before")
    await wal.close()
    for times in (1, 2):
        starting = await opened_in(bucket)
        foreign = await found(wal.wal_id, place_of(BUCKET, HOST)[0], host="", bucket=bucket)
        for _ in range(times):
            await foreign.fence()
        assert await payloads(foreign) == [b"before"]
        with pytest.raises(WalFencedByRecoverer, match="was taken for dead"):
            await recover(starting)
        await foreign.close()
        await starting.close()
    wal = await own_in(bucket)
    foreign = await found(wal.wal_id, place_of(BUCKET, HOST)[0], host="", bucket=bucket)
    await foreign.fence()
    told = Listener().listen(wal)
    append(wal, b"too late")
    while not told.failures:
        await turns()
    assert isinstance(told.failures[0], WalFencedByRecoverer), "it was running, and may start again as well"
    await foreign.close()
    await wal.close()


async def test_only_the_log_itself_counts_wherever_it_is_found(tmp_path: Path) -> None:
    wal = await own(tmp_path / "node1")
    await append_durably(wal, b"here")
    await wal.close()
    uri = (tmp_path / "node1").as_uri()
    with pytest.raises(WalUnreachable, match=f"is another \\({wal.wal_id}, of node 1\\)"):
        await found("0" * 32, uri)
    with pytest.raises(WalUnreachable, match="there is no WAL in"):
        await found(wal.wal_id, (tmp_path / "nothing").as_uri())
    with pytest.raises(WalUnreachable, match="on another machine"):
        await found(wal.wal_id, uri, host="another machine")
    with pytest.raises(WalUnreachable, match="an older copy"):
        await found(wal.wal_id, uri, wal_epoch=wal.wal_epoch + 1)
    with pytest.raises(WalUnreachable, match="nobody but node 1 itself"):
        await found(wal.wal_id, "")
    (tmp_path / "node1" / "wal").write_bytes(bytes(8192))
    with pytest.raises(WalUnreachable, match="neither copy"):
        await found(wal.wal_id, uri)


@pytest.mark.parametrize("below", ["", "volume"], ids=["the volume itself", "a directory on it"])
async def test_a_volume_is_found_where_the_operator_mounted_it(tmp_path: Path, below: str) -> None:
    path = tmp_path / "mnt" / below
    wal = await own(path)
    await append_durably(wal, b"on a volume")
    await wal.close()
    (tmp_path / "mnt" / "others").mkdir()
    directories = [tmp_path / "missing", tmp_path / "mnt"]
    foreign = await found(wal.wal_id, "file:///var/lib/wal", host="another machine", directories=directories)
    assert foreign.place == str(path)
    await foreign.fence()
    assert await payloads(foreign) == [b"on a volume"]
    with pytest.raises(WalUnreachable, match="missing cannot be read"):
        await found("0" * 32, "file:///var/lib/wal", host="another machine", directories=directories)


async def test_what_several_machines_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = await own(tmp_path)
    await wal.close()
    monkeypatch.setattr("wal.foreign._file_system", lambda path: "nfs4")
    with pytest.raises(WalUnreachable, match="nobody can be kept from writing there"):
        await found(wal.wal_id, tmp_path.as_uri())


async def test_a_log_in_a_bucket() -> None:
    bucket = Bucket()
    wal = await own_in(bucket)
    told = Listener().listen(wal)
    for number in range(3):
        await append_durably(wal, b"%d" % number)
    uri = place_of(BUCKET, HOST)[0]
    foreign = await found(wal.wal_id, uri, host="", bucket=bucket)
    await foreign.fence()
    assert await payloads(foreign) == [b"0", b"1", b"2"]
    append(wal, b"too late")
    while not told.failures:
        await turns()
    await foreign.fence()  # once more, as another recoverer does
    assert await payloads(foreign) == [b"0", b"1", b"2"]
    await wal.close()
    await foreign.close()
    with pytest.raises(WalUnreachable, match="names another"):
        await found("0" * 32, uri, host="", bucket=bucket)
    wal = await own_in(bucket)
    await append_durably(wal, b"goes on")
    await wal.close()


async def test_a_damaged_log_in_a_bucket_is_fenced_all_the_same() -> None:
    bucket = Bucket()
    wal = await own_in(bucket)
    told = Listener().listen(wal)
    for number in range(3):
        await append_durably(wal, b"%d" % number)
    key = next(key for key in sorted(bucket.objects) if key.startswith("wal/log/") and key.endswith("2"))
    await MemoryObjectStore(bucket).delete_many([key])
    foreign = await found(wal.wal_id, place_of(BUCKET, HOST)[0], host="", bucket=bucket)
    await foreign.fence()
    assert set(await payloads(foreign)) == {b"0", b"2"}, "some of it twice"
    append(wal, b"too late")
    while not told.failures:
        await turns()
    await wal.close()
    await foreign.close()
