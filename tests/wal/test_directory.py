"""A WAL in a real directory: made whole, locked, refused where it is not ours, with advice where it cannot be had."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from tests.wal.driving import Listener, append, append_durably, recover
from wal.arena import Arena
from wal.directory import WalDirectory, fence
from wal.errors import (
    WalCorrupt,
    WalFenced,
    WalFencedByRecoverer,
    WalLocked,
    WalMismatch,
    WalUnavailable,
    WalUnsupportedFormat,
)
from wal.file_wal import FileWal
from wal.header import HEADER_SLOT_COUNT, RING_START_BYTES, choose_header
from wal.open import open_wal

MIB = 1 << 20


async def opened(path: Path, *, capacity: str = "1MiB", cluster_id: str = "tide", node_id: int = 1) -> FileWal:
    wal = await open_wal(
        f"file://{path}?capacity={capacity}",
        arena=Arena(MIB),
        cluster_id=cluster_id,
        node_id=node_id,
        rng=random.Random(1),
    )
    assert isinstance(wal, FileWal)
    return wal


def fence_from_another_process(path: Path) -> int:
    program = "import sys; from pathlib import Path; from wal.directory import fence; print(fence(Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def fill(path: Path) -> None:
    """Take all the room that is left on a small file system."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 (the loop ends no other way)


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small file system of its own: (kind, size in MiB, further mount options)."""
    kind, size_mib, options = request.param
    place = tmp_path / "mount"
    place.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m{options}", "tmpfs", str(place)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"mkfs.ext4: {made.stderr.strip()}")
        command = ["mount", "-o", f"loop{options}", str(image), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs root and {kind}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


async def test_a_directory_is_made_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "wal"
    wal = await opened(path)
    assert await recover(wal) == []
    assert len(wal.wal_id) == 32
    assert (wal.cluster_id, wal.capacity_bytes) == ("tide", MIB)
    await wal.close()
    assert (path / "wal").stat().st_size == RING_START_BYTES + MIB
    assert (path / "wal").stat().st_blocks * 512 >= MIB, "its space is set aside"


async def test_a_log_keeps_its_identity_and_its_frames(tmp_path: Path) -> None:
    wal = await opened(tmp_path)
    await recover(wal)
    wal_id = wal.wal_id
    await append_durably(wal, b"kept")
    await wal.close()

    wal = await opened(tmp_path)

    assert wal.wal_id == wal_id
    assert [frame.payload for frame in await recover(wal)] == [b"kept"]
    await wal.close()


async def test_a_making_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "wal.new").write_bytes(b"half a header")
    wal = await opened(tmp_path)
    assert await recover(wal) == []
    await wal.close()
    assert not (tmp_path / "wal.new").exists()


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    wal = await opened(tmp_path)
    with pytest.raises(WalLocked, match="stop that one"):
        await opened(tmp_path)
    await wal.close()
    await (await opened(tmp_path)).close()


def test_the_lock_goes_with_a_process_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from wal.directory import WalDirectory\n"
        "d = WalDirectory(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(WalLocked):
            WalDirectory(tmp_path)
        other.kill()
        other.wait()
    WalDirectory(tmp_path).close()


async def test_another_nodes_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    before = (tmp_path / "wal").read_bytes()

    with pytest.raises(WalMismatch, match="belongs to node 1, this is node 2"):
        await opened(tmp_path, node_id=2)
    with pytest.raises(WalMismatch, match="belongs to cluster 'tide', this node to 'other'"):
        await opened(tmp_path, cluster_id="other")
    with pytest.raises(WalMismatch, match="set capacity=1048576"):
        await opened(tmp_path, capacity="2MiB")

    assert (tmp_path / "wal").read_bytes() == before
    await (await opened(tmp_path)).close()


async def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    with (tmp_path / "wal").open("r+b") as file:
        for slot in range(HEADER_SLOT_COUNT):
            file.seek(slot * 4096)
            block = bytearray(file.read(4096))
            struct.pack_into("<I", block, 8, 99)
            struct.pack_into("<I", block, 1024, crc32c(bytes(block[:1024])))
            file.seek(slot * 4096)
            file.write(block)

    with pytest.raises(WalUnsupportedFormat, match="format version 99"):
        await opened(tmp_path)


async def test_a_file_without_an_intact_header_is_never_formatted_anew(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    with (tmp_path / "wal").open("r+b") as file:
        file.write(bytes(RING_START_BYTES))

    with pytest.raises(WalCorrupt, match=f"{tmp_path}: neither copy"):
        await opened(tmp_path)


async def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    os.truncate(tmp_path / "wal", MIB)

    with pytest.raises(WalCorrupt, match="cut short"):
        await opened(tmp_path)


@pytest.mark.parametrize("mounted", [("tmpfs", 4, ""), ("ext4", 8, "")], indirect=True, ids=["tmpfs", "ext4"])
async def test_too_small_a_disk_is_noticed_when_the_log_is_made(mounted: Path) -> None:
    with pytest.raises(WalUnavailable, match=r"needs 67117056 bytes: make room, or set a smaller capacity"):
        await opened(mounted / "wal", capacity="64MiB")
    assert [entry.name for entry in (mounted / "wal").iterdir() if entry.name.startswith("wal")] == []

    wal = await opened(mounted / "wal", capacity="1MiB")
    await recover(wal)
    await append_durably(wal, b"fits")
    await wal.close()


@pytest.mark.parametrize("mounted", [("tmpfs", 4, ",ro")], indirect=True, ids=["tmpfs"])
async def test_a_read_only_disk_is_said_to_be_one(mounted: Path) -> None:
    with pytest.raises(WalUnavailable, match="read-only: mount it writable"):
        await opened(mounted / "wal")


@pytest.mark.parametrize("mounted", [("tmpfs", 8, ""), ("ext4", 8, "")], indirect=True, ids=["tmpfs", "ext4"])
async def test_a_disk_that_fills_up_does_not_stop_what_was_set_aside(mounted: Path) -> None:
    """The log's space is its own: others filling the disk do not fail its writes."""
    wal = await opened(mounted / "wal")
    await recover(wal)
    told = Listener().listen(wal)
    fill(mounted / "others")

    for _ in range(3):
        while wal.durable_offset - wal.trim_offset < MIB // 2:
            await append_durably(wal, bytes(100_000))
            wal._arena.release_to(wal._arena.head)
        await wal.trim(wal.durable_offset)

    assert told.failures == []
    await wal.close()


@pytest.mark.parametrize("mounted", [("tmpfs", 2, ""), ("ext4", 8, "")], indirect=True, ids=["tmpfs", "ext4"])
async def test_a_write_that_finds_the_disk_full_fences_the_log(mounted: Path) -> None:
    """Somebody punched holes into the file: its space is not its own any more."""
    wal = await opened(mounted / "wal", capacity="1MiB")
    await recover(wal)
    assert wal._format_task is not None
    await wal._format_task
    await wal.close()
    size = (mounted / "wal" / "wal").stat().st_size
    os.truncate(mounted / "wal" / "wal", RING_START_BYTES)
    os.truncate(mounted / "wal" / "wal", size)
    fill(mounted / "others")

    wal = await opened(mounted / "wal", capacity="1MiB")
    await recover(wal)
    told = Listener().listen(wal)
    append(wal, bytes(100_000))
    await wal.close()

    assert told.durable == []
    (failure,) = told.failures
    assert isinstance(failure, WalFenced)
    assert "No space left" in str(failure)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_without_permission_is_said_to_be_one(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    with pytest.raises(WalUnavailable, match="change the owner"):
        await opened(tmp_path / "wal")


async def test_a_file_in_place_of_the_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "wal").write_text("")
    with pytest.raises(WalUnavailable, match="choose another directory"):
        await opened(tmp_path / "wal")


async def test_a_fence_from_another_process_stops_the_acknowledgements(tmp_path: Path) -> None:
    wal = await opened(tmp_path)
    await recover(wal)
    told = Listener().listen(wal)
    end = await append_durably(wal, b"before")
    assert fence_from_another_process(tmp_path) == wal.wal_epoch

    append(wal, b"after")
    await wal.close()

    assert told.durable == [end]
    assert [type(failure) for failure in told.failures] == [WalFencedByRecoverer]


async def test_the_next_incarnation_is_not_fenced(tmp_path: Path) -> None:
    wal = await opened(tmp_path)
    await recover(wal)
    await wal.close()
    fence(tmp_path)

    wal = await opened(tmp_path)
    await recover(wal)
    told = Listener().listen(wal)
    end = await append_durably(wal, b"fine")
    assert told.durable == [end]
    await wal.close()


async def test_a_new_log_does_not_inherit_the_fence_of_the_one_before(tmp_path: Path) -> None:
    for _ in range(2):
        wal = await opened(tmp_path)
        await recover(wal)
        await wal.close()
    assert fence(tmp_path) == 2
    os.remove(tmp_path / "wal")

    wal = await opened(tmp_path)
    await recover(wal)
    assert await append_durably(wal, b"fine") > 0
    await wal.close()


async def test_formatting_goes_through_the_whole_ring_in_the_background(tmp_path: Path) -> None:
    wal = await opened(tmp_path, capacity="4MiB")
    await recover(wal)
    assert wal._format_task is not None
    await append_durably(wal, b"meanwhile")
    await wal._format_task
    await wal.close()

    assert choose_header((tmp_path / "wal").read_bytes()[:RING_START_BYTES]).formatted_bytes == 4 * MIB
    wal = await opened(tmp_path, capacity="4MiB")
    assert [frame.payload for frame in await recover(wal)] == [b"meanwhile"]
    assert wal._format_task is None
    await wal.close()
