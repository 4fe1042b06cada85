"""What recovery takes for a torn tail, and what for a loss: the difference is proof."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.wal.driving import append, append_durably, frames_of, open_file_wal, recover, started, turns
from tests.wal.memory_disk import MemoryDisk
from wal.errors import WalCorrupt, WalUnavailable
from wal.frame import FRAME_HEADER_SIZE_BYTES, crc_seed, frame_size, pack_frame
from wal.header import RING_START_BYTES, choose_header, pack_header, slot_position
from wal.log import RecoveredRun
from wal.recovery import AcceptedFrame, FrameScan, Hole

BLOCK = 4096


async def filled(*payloads: bytes, capacity_bytes: int = 64 << 10) -> tuple[MemoryDisk, list[int]]:
    """A disk after `kill -9`, each payload durable by a write of its own; and where the frames end."""
    disk = MemoryDisk.formatted(capacity_bytes=capacity_bytes)
    wal, _, _ = await started(disk)
    ends = [await append_durably(wal, payload) for payload in payloads]
    return disk.kill(), ends


async def payloads_on(disk: MemoryDisk) -> list[bytes]:
    return [frame.payload for frame in await recover(await open_file_wal(disk))]


def stamp(disk: MemoryDisk, *, offset: int, payload: bytes, wal_epoch: int, confirmed: int, padding: int = 0) -> None:
    """Put a frame of our own on the disk, as some incarnation might have left it."""
    buffer = memoryview(bytearray(frame_size(len(payload))))
    buffer[FRAME_HEADER_SIZE_BYTES : FRAME_HEADER_SIZE_BYTES + len(payload)] = payload
    seed = crc_seed(header_of(disk).wal_id)
    pack_frame(
        buffer,
        0,
        buffer[FRAME_HEADER_SIZE_BYTES:][: len(payload)],
        seed,
        offset,
        confirmed,
        wal_epoch,
        padding,
        1,
        1,
        0,
        1,
    )
    disk.damage(RING_START_BYTES + offset, bytes(buffer))


def header_of(disk: MemoryDisk):
    return choose_header(bytes(disk.content[:RING_START_BYTES]))


def at(offset: int) -> int:
    """Where a log offset of the first lap lies on the disk."""
    return RING_START_BYTES + offset


# -- a torn tail is normal


async def test_an_empty_log_recovers_to_nothing() -> None:
    assert await payloads_on(MemoryDisk.formatted()) == []


async def test_everything_that_was_durable_comes_back() -> None:
    disk, _ = await filled(b"a", b"b" * 5000, b"c")
    assert await payloads_on(disk) == [b"a", b"b" * 5000, b"c"]


@pytest.mark.parametrize("sectors", range(0, 24, 3))
async def test_a_torn_last_write_is_left_out(sectors: int) -> None:
    disk, _ = await filled(b"acknowledged")
    wal, _, _ = await started(disk)
    disk.hold = True
    append(wal, b"torn" * 3000)
    await turns()
    (write,) = disk.in_flight
    after = disk.kill()
    disk_as_torn = MemoryDisk(bytes(disk.content))
    disk_as_torn.damage(write.position, write.as_queued[: sectors * 512])
    del after

    found = await payloads_on(disk_as_torn)

    assert found == [b"acknowledged"] if sectors * 512 < len(b"torn" * 3000) else [b"acknowledged", b"torn" * 3000]


async def test_the_whole_frames_at_the_front_of_a_torn_write_count() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    disk.hold = True
    for number in range(6):
        append(wal, bytes([number]) * 1000)
    await turns()
    (write,) = disk.in_flight
    torn = MemoryDisk(bytes(disk.content))
    torn.damage(write.position, write.as_queued[:BLOCK])

    assert await payloads_on(torn) == [bytes([number]) * 1000 for number in range(3)]


async def test_appending_goes_on_behind_the_recovered_end() -> None:
    disk, ends = await filled(b"a", b"b")
    wal, frames, _ = await started(disk)
    assert len(frames) == 2
    assert wal.end_offset == wal.durable_offset == ends[-1]

    await append_durably(wal, b"c")

    assert await payloads_on(disk.power_loss()) == [b"a", b"b", b"c"]


async def test_every_opening_gets_an_epoch_of_its_own() -> None:
    disk = MemoryDisk.formatted()
    for epoch in range(1, 4):
        wal, _, _ = await started(disk)
        assert wal.wal_epoch == epoch
        disk = disk.kill()


async def test_what_was_read_back_is_made_durable_before_it_counts() -> None:
    """After kill -9 the last write may lie in a cache. Once it was recovered, a power loss must not take it."""
    for seed in range(40):
        disk = MemoryDisk.formatted(rng=random.Random(seed))
        wal, _, _ = await started(disk)
        disk.hold = True
        append(wal, b"in the cache")
        await turns()
        disk = disk.kill()
        wal, frames, _ = await started(disk)
        assert disk.syncs == 2

        assert await payloads_on(disk.power_loss()) == [frame.payload for frame in frames]


async def test_the_epoch_that_was_read_is_durable_before_it_is_told() -> None:
    """After kill -9 the newest header may lie in a cache. A node registers with its epoch, so it must not go back."""
    for seed in range(40):
        disk = MemoryDisk.formatted(rng=random.Random(seed))
        wal = await open_file_wal(disk)
        disk.hold = True
        recovery = asyncio.ensure_future(recover(wal))
        await turns()
        assert disk.in_flight, "the header with the next epoch"
        recovery.cancel()
        disk = disk.kill()
        told = (await open_file_wal(disk)).wal_epoch

        assert (await open_file_wal(disk.power_loss())).wal_epoch == told


# -- proof of loss is an error


@pytest.mark.parametrize("where", [0, 20, FRAME_HEADER_SIZE_BYTES, FRAME_HEADER_SIZE_BYTES + 4])
async def test_a_flipped_bit_in_acknowledged_data_is_corruption(where: int) -> None:
    disk, _ = await filled(b"first", b"second", b"third")
    disk.flip(at(BLOCK + where))

    with pytest.raises(
        WalCorrupt, match=r"missing from log offset 72 on.*the frame at 8192 was written when \d+ was durable"
    ):
        await payloads_on(disk)


async def test_a_hole_in_acknowledged_data_is_corruption() -> None:
    disk, _ = await filled(*[bytes([number]) * 5000 for number in range(6)])
    disk.damage(at(8192), bytes(8192))

    with pytest.raises(WalCorrupt, match="missing from log offset 5064 on"):
        await payloads_on(disk)


async def test_a_hole_at_the_very_start_is_corruption() -> None:
    disk, _ = await filled(b"first", b"second")
    disk.damage(at(0), bytes(BLOCK))

    with pytest.raises(WalCorrupt, match="missing from log offset 0 on"):
        await payloads_on(disk)


async def test_the_very_next_write_proves_the_one_before_it() -> None:
    """Its frames were laid out while that one was in flight, when less was durable than when they were written."""
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    disk.hold = True
    end = append(wal, b"first")
    await turns()
    append(wal, b"second")
    disk.complete()
    disk.complete()
    disk = disk.kill()
    disk.flip(at(20))

    with pytest.raises(WalCorrupt, match=f"the frame at 4096 was written when {end} was durable"):
        await payloads_on(disk)


async def test_frames_before_the_loss_are_yielded_first() -> None:
    disk, _ = await filled(b"first", b"second", b"third")
    disk.flip(at(BLOCK))
    wal = await open_file_wal(disk)
    seen = []
    with pytest.raises(WalCorrupt):  # noqa: PT012 (what came before the error is the point)
        async for run in wal.recover():
            seen.extend(frame.payload for frame in frames_of(run))
    assert seen == [b"first"]


async def test_sectors_that_turned_to_zero_do_not_pass_for_padding() -> None:
    """Two frames in one block; the second one's sectors read as zeros, as padding would."""
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    append(wal, b"a" * 448)
    append(wal, b"b" * 448)
    await turns()
    await append_durably(wal, b"c")
    disk = disk.kill()
    disk.damage(at(512), bytes(512))

    with pytest.raises(WalCorrupt, match="missing from log offset 512 on"):
        await payloads_on(disk)


async def test_unacknowledged_sectors_that_turned_to_zero_end_the_log() -> None:
    """The same in a write that never completed: not a loss, but what lies behind the hole does not count."""
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    disk.hold = True
    for payload in (b"a" * 448, b"b" * 3520, b"c" * 100):
        append(wal, payload)
    await turns()
    (write,) = disk.in_flight
    torn = MemoryDisk(bytes(disk.content))
    torn.damage(write.position, write.as_queued)
    torn.damage(write.position + 512, bytes(BLOCK - 512))

    assert await payloads_on(torn) == [b"a" * 448]


async def test_the_header_proves_the_loss_of_what_was_confirmed_at_a_trim() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    first = await append_durably(wal, b"first")
    last = await append_durably(wal, b"last")
    await wal.trim(first)
    disk = disk.kill()
    disk.flip(at(BLOCK + 10))

    with pytest.raises(WalCorrupt, match=f"header says that the log was durable up to {last}"):
        await payloads_on(disk)


async def test_the_header_proves_the_loss_after_an_orderly_close() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    await append_durably(wal, b"only")
    await wal.close()
    disk.flip(at(66))

    with pytest.raises(WalCorrupt, match="header says"):
        await payloads_on(disk.kill())


async def test_a_header_older_than_the_log_is_corruption() -> None:
    """Both newer copies were damaged, or the headers of an old snapshot were put over a newer ring."""
    old = bytes((await filled())[0].content[:RING_START_BYTES])
    disk, _ = await filled(b"a")
    wal, _, _ = await started(disk)
    await append_durably(wal, b"b")
    disk = disk.kill()
    disk.damage(0, old)

    with pytest.raises(WalCorrupt, match="the header is older than the log"):
        await payloads_on(disk)


async def test_the_epoch_survives_the_damage_of_one_header_copy() -> None:
    disk, _ = await filled(b"a")
    disk.damage(slot_position(header_of(disk).generation), bytes(BLOCK))

    assert await payloads_on(disk) == [b"a"]


async def test_the_limit_a_damaged_last_write_with_nothing_behind_it_cannot_be_told_from_a_torn_one() -> None:
    disk, _ = await filled(b"first", b"last")
    disk.flip(at(BLOCK + 66))

    assert await payloads_on(disk) == [b"first"]


# -- what was given up stays given up


async def test_frames_of_a_torn_write_are_not_resurrected_by_later_ones() -> None:
    """Its first block is lost, its second is whole: exactly where the next but one write of the next epoch goes."""
    disk, ends = await filled(b"a")
    wal, _, _ = await started(disk)
    disk.hold = True
    append(wal, b"p" * (BLOCK - FRAME_HEADER_SIZE_BYTES))
    append(wal, b"stale")
    await turns()
    (write,) = disk.in_flight
    torn = MemoryDisk(bytes(disk.content))
    torn.damage(write.position + BLOCK, write.as_queued[BLOCK:])
    wal, frames, _ = await started(torn)
    assert [frame.payload for frame in frames] == [b"a"]
    assert await append_durably(wal, b"n" * (BLOCK - FRAME_HEADER_SIZE_BYTES)) == 2 * BLOCK

    # The stale frame continues the new one in every respect but its epoch.
    assert await payloads_on(torn.kill()) == [b"a", b"n" * (BLOCK - FRAME_HEADER_SIZE_BYTES)]
    assert ends == [72]


async def test_the_log_goes_on_behind_a_torn_frame_that_a_recovery_gave_up() -> None:
    """Its header arrived, its body did not; found by power cuts at random."""
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    disk.hold = True
    append(wal, b"whole")
    append(wal, b"torn" * 2000)
    await turns()
    (write,) = disk.in_flight
    torn = MemoryDisk(bytes(disk.content))
    torn.damage(write.position, write.as_queued[:BLOCK])
    wal, frames, _ = await started(torn)
    assert [frame.payload for frame in frames] == [b"whole"]
    await append_durably(wal, b"of the next epoch")
    torn = torn.kill()
    await started(torn)  # moves the start of the epoch past the torn frame

    assert await payloads_on(torn.kill()) == [b"whole", b"of the next epoch"]


async def test_a_write_that_appears_after_a_recovery_has_given_it_up_does_not_count() -> None:
    """A block that could not be read comes back: the header knows where its epoch ended."""
    disk, _ = await filled(b"a", b"b")
    hidden = bytes(disk.content[at(BLOCK) : at(2 * BLOCK)])
    disk.damage(at(BLOCK), bytes(BLOCK))
    assert await payloads_on(disk) == [b"a"]
    disk = disk.kill()
    disk.damage(at(BLOCK), hidden)

    assert await payloads_on(disk) == [b"a"]


async def test_a_given_up_frame_proves_nothing_later() -> None:
    disk, _ = await filled(b"a")
    epoch = header_of(disk).wal_epoch
    disk = disk.kill()
    wal, _, _ = await started(disk)
    await append_durably(wal, b"b")
    disk = disk.kill()
    stamp(disk, offset=4 * BLOCK, payload=b"ghost", wal_epoch=epoch, confirmed=4 * BLOCK)

    assert await payloads_on(disk) == [b"a", b"b"]


async def test_an_epoch_never_goes_back_along_the_log() -> None:
    disk, _ = await filled(b"a")
    wal, _, _ = await started(disk)
    end = await append_durably(wal, b"b")
    disk = disk.kill()
    stamp(disk, offset=2 * BLOCK, payload=b"of epoch one", wal_epoch=1, confirmed=0, padding=2 * BLOCK - end)

    assert await payloads_on(disk) == [b"a", b"b"]


async def test_an_older_lap_is_not_taken_for_the_present_one() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=16 << 10)
    wal, _, _ = await started(disk)
    for number in range(9):
        end = await append_durably(wal, b"lap %d" % number)
        await wal.trim(end)
    await append_durably(wal, b"kept")

    assert await payloads_on(disk.kill()) == [b"kept"]


async def test_a_frame_in_the_wrong_place_is_no_frame() -> None:
    """A misdirected write: everything about the frame is right except where it lies."""
    disk, _ = await filled(b"a", b"b")
    disk.damage(at(2 * BLOCK), bytes(disk.content[at(BLOCK) : at(2 * BLOCK)]))

    assert await payloads_on(disk) == [b"a", b"b"]


async def test_frames_of_a_log_that_lay_here_before_do_not_count() -> None:
    disk, _ = await filled(b"a", b"b")
    fresh = MemoryDisk.formatted(wal_id="f" * 32)
    wal, _, _ = await started(fresh)
    await append_durably(wal, b"new")
    fresh = fresh.kill()
    fresh.damage(at(BLOCK), bytes(disk.content[at(BLOCK) : at(2 * BLOCK)]))

    assert await payloads_on(fresh) == [b"new"]


# -- many frames at a time


def one_by_one(scan: FrameScan, buffer: memoryview) -> tuple[list[int], Hole]:
    """Where the frames start that `step` accepts, and the hole behind them."""
    offsets = []
    while isinstance(found := scan.step(buffer, 0), AcceptedFrame):
        offsets.append(found.offset)
    assert isinstance(found, Hole)
    return offsets, found


def in_runs(scan: FrameScan, buffer: memoryview, max_bytes: int) -> tuple[list[int], Hole]:
    """The same, of what `run` accepts."""
    offsets = []
    while isinstance(found := scan.run(buffer, 0, max_bytes), RecoveredRun):
        assert found.end_offset - found.offset < max_bytes + 12_000, "a run ends with the frame that fills it"
        offsets.extend(frame.offset for frame in frames_of(found))
    assert isinstance(found, Hole)
    return offsets, found


async def test_a_run_accepts_exactly_what_is_accepted_frame_by_frame() -> None:
    """Whatever is damaged: it looks at one CRC and a few fields, and leaves the rest to the careful step."""
    damaged = 0
    for seed in range(150):
        rng = random.Random(seed)
        disk = MemoryDisk.formatted(capacity_bytes=2 << 20)
        for _ in range(rng.randrange(1, 4)):  # epochs
            wal, _, _ = await started(disk, arena_bytes=2 << 20)
            for _ in range(rng.randrange(1, 8)):  # writes
                for _ in range(rng.randrange(1, 30)):
                    payload = rng.randbytes(rng.choice([0, 100, 100, 100, 101, 700, 6000]))
                    append(wal, payload, stream_id=rng.randrange(3))
                await turns()
            disk = disk.kill()
        end = wal.end_offset
        for _ in range(rng.randrange(3)):
            disk.flip(at(rng.randrange(end)))
        scans = [FrameScan(header_of(disk), crc_seed(header_of(disk).wal_id)) for _ in range(2)]
        buffer = memoryview(disk.content)[RING_START_BYTES:]

        expected = one_by_one(scans[0], buffer)

        assert in_runs(scans[1], buffer, rng.choice([1, 500, 5000, 1 << 20])) == expected, f"seed {seed}"
        damaged += expected[1].offset < end
    assert damaged > 50, "the test did something"


async def test_a_run_says_what_is_of_which_stream() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    for number in range(4):
        append(wal, bytes([number]) * 10, stream_id=number % 2, base_offset=number, record_count=1)
    await turns()
    wal = await open_file_wal(disk.kill())

    async for run in wal.recover():  # one
        assert list(run.streams) == [0, 1]
        assert run.streams[1].base_offsets == [1, 3]
        assert run.streams[1].end_offsets == [2, 4]
        assert [bytes(run.buffer[at : at + 10]) for at in run.streams[1].positions] == [b"\x01" * 10, b"\x03" * 10]


# -- reading


@pytest.mark.parametrize("lead_bytes", [0, BLOCK, 16 * BLOCK])
async def test_recovery_reads_on_across_its_buffer_and_the_end_of_the_ring(
    lead_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wal.ring_reader.RECOVERY_READ_BYTES", 2 * BLOCK)
    monkeypatch.setattr("wal.ring_reader.LEAD_BYTES", lead_bytes)
    rng = random.Random(3)
    disk = MemoryDisk.formatted(capacity_bytes=128 << 10)
    wal, _, _ = await started(disk)
    kept: list[tuple[int, bytes]] = []
    while wal.end_offset < 200 << 10:
        payload = rng.randbytes(rng.choice([0, 10, 4000, 9000, 20000]))
        if wal.end_offset - wal.trim_offset > 80 << 10:
            await wal.trim(kept[len(kept) // 2][0])
            kept = [(end, payload) for end, payload in kept if end > wal.trim_offset]
            wal._arena.release_to(wal._arena.head)
        kept.append((await append_durably(wal, payload), payload))

    assert await payloads_on(disk.kill()) == [payload for _, payload in kept]


async def test_after_an_orderly_close_only_the_log_itself_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryDisk.formatted(capacity_bytes=1 << 20)
    wal, _, _ = await started(disk)
    await append_durably(wal, b"a")
    await wal.close()
    disk = disk.kill()
    reads: list[int] = []
    read = disk.read
    monkeypatch.setattr(disk, "read", lambda p, into, done: (reads.append(len(into)), read(p, into, done)))

    assert await payloads_on(disk) == [b"a"]
    assert sum(reads) == RING_START_BYTES + BLOCK


@pytest.mark.parametrize("where", ["header", "ring"])
async def test_a_disk_that_cannot_be_read_is_said_and_nothing_is_changed(where: str) -> None:
    disk, _ = await filled(b"a")
    before = bytes(disk.content)
    disk.fail_read = lambda position: (position < RING_START_BYTES) == (where == "header")

    with pytest.raises(WalUnavailable, match=r"Input/output error.*repair it and start again"):
        await payloads_on(disk)

    assert disk.content == before
    disk.fail_read = lambda position: False
    assert await payloads_on(disk) == [b"a"]


async def test_a_log_is_recovered_once_and_before_it_is_appended_to() -> None:
    wal = await open_file_wal(MemoryDisk.formatted())
    with pytest.raises(AssertionError, match="recover the WAL before the first append"):
        wal.reserve(1)
    await recover(wal)
    with pytest.raises(AssertionError, match="recovered once"):
        await recover(wal)
    await wal.close()


async def test_a_new_header_generation_follows_the_newest() -> None:
    disk, _ = await filled(b"a")
    generation = header_of(disk).generation
    wal, _, _ = await started(disk)
    assert header_of(disk).generation == generation + 2
    await wal.close()
    assert header_of(disk).generation == generation + 3
    assert pack_header(header_of(disk)) in bytes(disk.content[:RING_START_BYTES])
