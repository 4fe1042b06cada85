"""The file WAL over a disk that completes writes when the test says so."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.wal.driving import append, append_durably, open_file_wal, started, turns
from tests.wal.memory_disk import MemoryDisk
from wal.errors import PayloadTooLarge, WalCorrupt, WalFenced, WalMismatch
from wal.frame import FRAME_HEADER_SIZE_BYTES, frame_size
from wal.header import RING_START_BYTES, choose_header

KIB = 1024


async def test_appending_acknowledges_what_is_durable_and_not_before() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    disk.hold = True

    end = append(wal, b"first")
    await turns()

    assert len(disk.in_flight) == 1
    assert told.durable == []
    assert (wal.durable_offset, wal.end_offset) == (0, end)

    disk.complete()

    assert told.durable == [end]
    assert wal.durable_offset == end
    disk.let_go()
    await wal.close()


async def test_what_arrives_during_a_write_goes_out_as_one_write_behind_it() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    disk.hold = True
    first = append(wal, b"first")
    await turns()
    ends = [append(wal, b"later %d" % number) for number in range(10)]
    await turns()
    assert len(disk.in_flight) == 1, "one write at a time"

    disk.complete()

    assert len(disk.in_flight) == 1
    disk.complete()
    assert told.durable == [first, ends[-1]]
    assert [position for position, _ in disk.written[-2:]] == [RING_START_BYTES, RING_START_BYTES + 4096]
    disk.let_go()
    await wal.close()


async def test_frames_come_back_with_everything_that_was_said_of_them() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    await append_durably(wal, b"one", stream_id=1, leader_epoch=2, base_offset=3, record_count=4)
    await append_durably(wal, b"", stream_id=-5, leader_epoch=6, base_offset=2**40, record_count=0)
    await wal.close()

    _, frames, _ = await started(disk_again(disk))

    assert [(f.stream_id, f.leader_epoch, f.base_offset, f.record_count, f.payload) for f in frames] == [
        (1, 2, 3, 4, b"one"),
        (-5, 6, 2**40, 0, b""),
    ]
    assert [f.offset for f in frames] == [0, 4096], "each had a write of its own"


async def test_a_block_is_written_once_until_it_is_trimmed() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    for number in range(8):
        await append_durably(wal, bytes(100 * number))
    ring = [(p, p + len(data)) for p, data in disk.written if p >= RING_START_BYTES]

    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ring))
    await wal.close()


async def test_the_payload_is_written_from_where_it_was_laid_out() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    view = wal.reserve(3)
    assert view is not None
    position = wal.reserved_position
    view[:] = b"abc"
    wal.append(stream_id=1, leader_epoch=1, base_offset=0, record_count=1)
    await turns()

    assert bytes(wal._arena.view[position : position + 3]) == b"abc"
    assert disk.ring(FRAME_HEADER_SIZE_BYTES, 3) == b"abc"
    await wal.close()


async def test_a_cancelled_reservation_leaves_no_trace() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    arena = wal._arena
    head = arena.head
    assert wal.reserve(500) is not None
    wal.cancel()
    assert arena.head == head
    await turns()
    assert not [p for p, _ in disk.written if p >= RING_START_BYTES]

    end = append(wal, b"a")
    assert wal.reserve(500) is not None
    wal.cancel()
    assert append(wal, b"b") == end + frame_size(1)
    await turns()
    assert told.durable == [end + frame_size(1)]
    await wal.close()
    _, frames, _ = await started(disk_again(disk))
    assert [frame.payload for frame in frames] == [b"a", b"b"]


async def test_a_reservation_that_ends_an_extent_can_be_cancelled() -> None:
    """The arena's ring ends, so the open extent is closed; then there is nothing behind it after all."""
    disk = MemoryDisk.formatted(capacity_bytes=256 * KIB)
    wal, _, _ = await started(disk, arena_bytes=64 * KIB)
    arena = wal._arena
    disk.hold = True
    for _ in range(4):
        append(wal, bytes(10 * KIB))
        await turns()
        disk.complete()
    arena.release_to(arena.head)
    append(wal, b"x" * 10 * KIB)
    head_in_extent = arena.head
    assert wal.reserve(11 * KIB) is not None
    assert arena.head % arena.size_bytes < head_in_extent, "it went to the ring's start"
    wal.cancel()

    end = append(wal, b"y" * KIB)
    await turns()
    disk.let_go()
    await turns()

    assert wal.durable_offset == end
    disk.let_go()
    await wal.close()
    _, frames, _ = await started(disk_again(disk))
    assert [frame.payload[:1] for frame in frames[-2:]] == [b"x", b"y"]


async def test_a_full_log_takes_more_after_a_trim() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=64 * KIB)
    wal, _, _ = await started(disk, arena_bytes=256 * KIB)
    ends = [await append_durably(wal, bytes(7 * KIB)) for _ in range(8)]

    assert wal.reserve(7 * KIB) is None
    await wal.trim(ends[2])

    assert wal.trim_offset == ends[2]
    for _ in range(2):
        await append_durably(wal, b"behind the wrap".ljust(7 * KIB))
    assert wal.reserve(7 * KIB) is None, "the block that the trim offset lies in still counts"
    await wal.close()
    wal, frames, _ = await started(disk_again(disk))
    assert len(frames) == 7
    assert frames[-1].payload.rstrip() == b"behind the wrap"
    await wal.close()


async def test_a_full_arena_takes_more_after_a_release() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=1024 * KIB)
    wal, _, _ = await started(disk, arena_bytes=64 * KIB)
    for _ in range(8):
        await append_durably(wal, bytes(7 * KIB))

    assert wal.reserve(7 * KIB) is None
    wal._arena.release_to(8 * KIB)
    assert await append_durably(wal, bytes(7 * KIB)) == 8 * 8 * KIB + frame_size(7 * KIB)
    await wal.close()


async def test_padding_never_reaches_memory_that_is_still_in_use() -> None:
    """What is released need not end at a block boundary; a write does."""
    disk = MemoryDisk.formatted(capacity_bytes=1024 * KIB)
    wal, _, _ = await started(disk, arena_bytes=128 * KIB)
    arena = wal._arena
    for _ in range(16):
        await append_durably(wal, bytes(7 * KIB))
        assert arena.head % 4096 == 0, "the padding under a write belongs to somebody too"

    arena.release_to(13_000)
    assert wal.reserve(12_700) is None, "the frame would fit, its padding would not"
    arena.release_to(16 * KIB)
    assert wal.reserve(12_700) is not None
    wal.cancel()
    await wal.close()


async def test_room_is_reused_only_after_the_trim_is_durable() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=64 * KIB)
    wal, _, _ = await started(disk)
    ends = [await append_durably(wal, bytes(7 * KIB)) for _ in range(8)]
    disk.hold = True

    trimming = asyncio.ensure_future(wal.trim(ends[-1]))
    await turns()

    assert wal.reserve(7 * KIB) is None
    assert not trimming.done()
    disk.complete()
    await trimming
    assert choose_header(bytes(disk.content[:RING_START_BYTES])).trim_offset == ends[-1]
    assert wal.reserve(7 * KIB) is not None
    wal.cancel()
    disk.let_go()
    await wal.close()


async def test_trims_that_come_together_share_header_writes() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    ends = [await append_durably(wal, bytes(100)) for _ in range(6)]
    disk.hold = True
    before = len(disk.written)
    trims = [asyncio.ensure_future(wal.trim(end)) for end in ends]
    await turns()
    disk.complete()
    await turns()
    assert [trim.done() for trim in trims] == [True] + [False] * 5

    disk.complete()
    await asyncio.gather(*trims)

    assert len(disk.written) == before + 2
    assert wal.trim_offset == ends[-1]
    disk.let_go()
    await wal.close()


async def test_a_cancelled_trim_does_no_harm() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    end = await append_durably(wal, bytes(100))
    disk.hold = True
    trimming = asyncio.ensure_future(wal.trim(end))
    await turns()
    trimming.cancel()
    await turns()
    last = append(wal, b"more")
    await turns()
    disk.let_go()

    assert wal.trim_offset == end
    assert wal.durable_offset == last
    assert told.failures == []
    disk.let_go()
    await wal.close()


async def test_only_what_is_durable_can_be_trimmed() -> None:
    disk = MemoryDisk.formatted()
    wal, _, _ = await started(disk)
    disk.hold = True
    end = append(wal, b"not yet")

    with pytest.raises(ValueError, match="only 0 is durable"):
        await wal.trim(end)
    await turns()
    disk.let_go()
    await wal.close()


async def test_a_write_across_the_end_of_the_ring_counts_when_both_parts_are_durable() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=64 * KIB)
    wal, _, told = await started(disk)
    for _ in range(7):
        end = await append_durably(wal, bytes(7 * KIB))
    await wal.trim(end)
    disk.hold = True

    last = append(wal, bytes(range(256)) * 40)
    await turns()
    assert [(w.position, len(w.data)) for w in disk.in_flight] == [
        (RING_START_BYTES + 56 * KIB, 8 * KIB),
        (RING_START_BYTES, 4 * KIB),
    ]
    disk.complete(disk.in_flight[1])
    assert told.durable[-1] == end
    disk.complete()
    assert told.durable[-1] == last
    disk.let_go()

    _, frames, _ = await started(disk.power_loss())
    assert [frame.payload for frame in frames] == [bytes(range(256)) * 40]


async def test_many_laps_keep_every_frame() -> None:
    rng = random.Random(5)
    disk = MemoryDisk.formatted(capacity_bytes=64 * KIB)
    kept: list[tuple[int, bytes]] = []
    for _ in range(6):
        wal, frames, _ = await started(disk, arena_bytes=64 * KIB)
        assert [frame.payload for frame in frames] == [payload for end, payload in kept if end > wal.trim_offset]
        for _ in range(60):
            payload = rng.randbytes(rng.choice([0, 1, 50, 1000, 4032, 9000]))
            while wal.reserve(len(payload)) is None:
                await turns(3)
                wal._arena.release_to(wal._arena.head)
                await wal.trim(rng.choice([end for end, _ in kept if end <= wal.durable_offset][-3:]))
            wal.cancel()
            kept.append((append(wal, payload), payload))
            if rng.random() < 0.3:
                await turns(rng.randrange(4))
        await wal.close()
        disk = disk_again(disk)


async def test_a_failed_write_fences_the_log_once_and_for_all() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    disk.hold = True
    append(wal, b"lost")
    await turns()
    append(wal, b"behind it")
    disk.fail(error=OSError(5, "Input/output error"))
    await turns()

    assert [type(failure) for failure in told.failures] == [WalFenced]
    assert "repair the disk, then restart" in str(told.failures[0])
    assert told.durable == []
    assert disk.in_flight == [], "nothing is retried, nothing follows"
    with pytest.raises(WalFenced):
        wal.reserve(1)
    disk.let_go()
    await wal.close()
    assert len(told.failures) == 1


async def test_a_failed_trim_fences_the_log() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    end = await append_durably(wal, b"a")
    disk.hold = True
    trims = [asyncio.ensure_future(wal.trim(end)) for _ in range(2)]
    await turns()
    disk.fail()

    for trim in trims:
        with pytest.raises(WalFenced):
            await trim
    assert wal.trim_offset == 0
    assert len(told.failures) == 1
    with pytest.raises(WalFenced):
        await wal.trim(end)
    disk.let_go()
    await wal.close()


async def test_a_write_that_completes_after_the_failure_is_not_acknowledged() -> None:
    """A write is in flight when a header write fails: what it carries may be durable, but nobody is told."""
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    end = await append_durably(wal, b"a")
    disk.hold = True
    append(wal, b"in flight")
    await turns()
    trimming = asyncio.ensure_future(wal.trim(end))
    await turns()
    disk.fail(disk.in_flight[1])
    disk.complete()

    assert told.durable == [end]
    with pytest.raises(WalFenced):
        await trimming
    disk.let_go()
    await wal.close()


async def test_a_close_whose_last_header_fails_still_closes() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    end = await append_durably(wal, b"a")
    disk.hold = True
    closing = asyncio.ensure_future(wal.close())
    await turns()
    disk.fail()
    await closing

    assert disk.closed
    assert len(told.failures) == 1
    _, frames, _ = await started(disk_again(disk))
    assert [frame.end_offset for frame in frames] == [end]


async def test_a_payload_that_can_never_fit_is_an_error_of_its_own() -> None:
    wal, _, _ = await started(MemoryDisk.formatted(capacity_bytes=64 * KIB), arena_bytes=1024 * KIB)
    assert wal.max_payload_bytes < 32 * KIB
    with pytest.raises(PayloadTooLarge, match="raise its capacity"):
        wal.reserve(wal.max_payload_bytes + 1)
    assert wal.reserve(wal.max_payload_bytes) is not None
    wal.cancel()
    await wal.close()


async def test_the_largest_payloads_follow_each_other_for_ever() -> None:
    disk = MemoryDisk.formatted(capacity_bytes=64 * KIB)
    wal, _, _ = await started(disk, arena_bytes=128 * KIB)
    for _ in range(20):
        end = await append_durably(wal, bytes(wal.max_payload_bytes))
        await wal.trim(end)
        wal._arena.release_to(wal._arena.head)
    await wal.close()


async def test_a_group_write_stays_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wal.file_wal.GROUP_WRITE_LIMIT_BYTES", 16 * KIB)
    disk = MemoryDisk.formatted(capacity_bytes=256 * KIB)
    wal, _, told = await started(disk)
    disk.hold = True
    end = [append(wal, bytes(3 * KIB)) for _ in range(20)][-1]
    await turns()
    sizes = []
    while disk.in_flight:
        sizes.append(len(disk.in_flight[0].data))
        disk.complete()

    assert max(sizes) == 16 * KIB
    assert told.durable[-1] == end
    assert len(told.durable) == len(sizes) == 4
    disk.let_go()
    await wal.close()


async def test_one_payload_may_be_larger_than_a_group_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wal.file_wal.GROUP_WRITE_LIMIT_BYTES", 8 * KIB)
    disk = MemoryDisk.formatted(capacity_bytes=256 * KIB)
    wal, _, _ = await started(disk)
    append(wal, b"small")
    await append_durably(wal, bytes(20 * KIB))
    await append_durably(wal, b"small")

    assert [len(data) for position, data in disk.written if position >= RING_START_BYTES] == [4096, 24 * KIB, 4096]
    await wal.close()


async def test_closing_writes_what_was_appended_and_marks_the_log_closed() -> None:
    disk = MemoryDisk.formatted()
    wal, _, told = await started(disk)
    end = append(wal, b"last words")

    await wal.close()
    await wal.close()

    assert told.durable == [end]
    assert disk.closed
    header = choose_header(bytes(disk.content[:RING_START_BYTES]))
    assert (header.closed, header.confirmed_offset) == (True, end)


async def test_closing_before_recovery_leaves_the_log_as_it_is() -> None:
    disk = MemoryDisk.formatted()
    before = bytes(disk.content)
    wal = await open_file_wal(disk)

    await wal.close()

    assert disk.content == before


@pytest.mark.parametrize(
    ("identity", "advice"),
    [
        ({"cluster_id": "other"}, "belongs to cluster 'tide'.*directory of its own"),
        ({"node_id": 2}, "belongs to node 1, this is node 2.*node.id = 1"),
    ],
)
async def test_the_log_of_another_node_or_cluster_is_refused(identity: dict[str, object], advice: str) -> None:
    with pytest.raises(WalMismatch, match=advice):
        await open_file_wal(MemoryDisk.formatted(), **identity)  # type: ignore[arg-type]


async def test_a_file_that_was_cut_short_is_corrupt() -> None:
    disk = MemoryDisk.formatted()
    with pytest.raises(WalCorrupt, match="cut short"):
        await open_file_wal(MemoryDisk(bytes(disk.content[:-4096])))


def disk_again(disk: MemoryDisk) -> MemoryDisk:
    """The disk that the next process finds after an orderly end."""
    return disk.kill()
