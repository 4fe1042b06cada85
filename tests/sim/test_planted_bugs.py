"""What the simulation of one node finds: each of these bugs is planted into the broker, and must be found within its seeds.

Every one of them is a mistake that somebody could make, and that no single step shows: it takes a crash, a fault or a
race at the right moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import Pool
from typing import Any

import pytest

import broker.background
import broker.retention
import controller.state
import controller.tables
import s3stream.compaction_source
import s3stream.object_reader
import s3stream.second_upload
import wal.recovery
from broker.producer_state import ProducerStates
from broker.receive import ReceiveBudget
from broker.server import Server
from controller.log import Floor, MetadataLog
from controller.node_metadata import NodeMetadata
from controller.tables import IdSet
from s3stream.block_cache import BlockCache
from s3stream.cached_blocks import CachedBlocks
from s3stream.collector import Collector
from s3stream.log_cache import BlockState, CacheBlock
from s3stream.metadata import ObjectId
from s3stream.object_reader import ObjectReader
from s3stream.second_upload import SecondUploads
from s3stream.storage import Storage
from s3stream.upload import Uploader
from tests.sim.planting import Plant, is_found_among
from tests.sim.scenario import draw
from tests.sim.simulation import simulate
from wal.file_wal import FileWal
from wal.recovery import FrameScan
from wal.slot import SlotKind
from wal.slot_log import SlotLog

SEEDS = 600
"""Where few seeds can find a bug, the others are not tried."""


def acknowledged_before_durable(patch: pytest.MonkeyPatch) -> None:
    append = Storage.append

    def early(self: Storage, stream: Any, record_count: int, max_timestamp_ms: int, on_done: Any) -> int:
        if on_done is not None:
            asyncio.get_running_loop().call_soon(on_done, None)
        return append(self, stream, record_count, max_timestamp_ms, None)

    patch.setattr(Storage, "append", early)


def high_watermark_before_durable(patch: pytest.MonkeyPatch) -> None:
    append = Storage.append

    def early(self: Storage, stream: Any, *arguments: Any) -> int:
        base_offset = append(self, stream, *arguments)
        stream.confirmed_offset = stream.next_offset
        return base_offset

    patch.setattr(Storage, "append", early)


def wal_trimmed_before_commit(patch: pytest.MonkeyPatch) -> None:
    seal = Storage.seal

    def early(self: Storage) -> None:
        end = self._blocks.open.wal_end_offset
        seal(self)
        self._want_trim(min(end, self._wal.durable_offset))

    patch.setattr(Storage, "seal", early)


def ring_reused_before_trim_is_durable(patch: pytest.MonkeyPatch) -> None:
    trim = FileWal.trim

    async def early(self: FileWal, offset: int) -> None:
        self._ring_limit = max(self._ring_limit, wal.recovery.floor_block(offset) + self.capacity_bytes)
        await trim(self, offset)

    patch.setattr(FileWal, "trim", early)


def wal_epoch_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FrameScan, "_epoch_fits", lambda self, frame: True)


def payload_crc_skipped_in_recovery(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wal.recovery, "payload_is_intact", lambda *arguments: True)


def hole_ignored_in_recovery(patch: pytest.MonkeyPatch) -> None:
    step = FrameScan.step

    def over_holes(self: FrameScan, buffer: memoryview, buffer_offset: int) -> Any:
        found = step(self, buffer, buffer_offset)
        if not isinstance(found, wal.recovery.Hole):
            return found
        for offset in range(found.offset + 8, min(buffer_offset + len(buffer), found.offset + 100_000), 8):
            frame = wal.recovery.read_header(buffer, offset - buffer_offset, self._seed)
            if frame is not None and frame.log_offset == offset and self._epoch_fits(frame):
                self.next_offset = offset - frame.padding_before
                return step(self, buffer, buffer_offset)
        return found

    patch.setattr(FrameScan, "step", over_holes)


def recovered_frames_not_synced(patch: pytest.MonkeyPatch) -> None:
    from tests.sim.disk import SimDisk

    patch.setattr(SimDisk, "sync", lambda self, on_done: self._loop.call_soon(on_done, None))


def block_crc_skipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(s3stream.object_reader, "check_block", lambda *arguments: None)


def block_crc_skipped_by_compaction(patch: pytest.MonkeyPatch) -> None:
    """What was read wrong is written with a CRC that makes it right."""
    patch.setattr(s3stream.compaction_source, "check_block", lambda *arguments: None)


def memory_reused_before_commit(patch: pytest.MonkeyPatch) -> None:
    evict = CachedBlocks.evict_oldest

    def early(self: CachedBlocks) -> bool:
        if self._sealed and self._sealed[0].state is BlockState.SEALED:
            block = self._sealed.popleft()
            for tail, part in block.parts.values():
                tail.evict(part)
            self._arena.release_to(block.end_position)
            return True
        return evict(self)

    patch.setattr(CachedBlocks, "evict_oldest", early)


def committed_out_of_order(patch: pytest.MonkeyPatch) -> None:
    submit = Uploader.submit

    def eager(self: Uploader, block: Any) -> None:
        self._last = None
        submit(self, block)

    patch.setattr(Uploader, "submit", eager)


def duplicates_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProducerStates, "check", lambda *arguments: None)


def producer_state_lost_in_state_blocks(patch: pytest.MonkeyPatch) -> None:
    snapshot = ProducerStates.snapshot
    patch.setattr(ProducerStates, "snapshot", lambda self: snapshot(ProducerStates()))


def references_ignored_by_collection(patch: pytest.MonkeyPatch) -> None:
    async def everything(self: NodeMetadata, object_ids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        return object_ids

    patch.setattr(NodeMetadata, "is_referenced", lambda *arguments: False)
    patch.setattr(NodeMetadata, "expire_objects", everything)


# ---- merges from memory


def memory_reused_under_a_second_upload(patch: pytest.MonkeyPatch) -> None:
    """And what is in it by then is put with a CRC that makes it right."""
    pin, unpin = CacheBlock.pin, CacheBlock.unpin

    def pin_for_others(self: CacheBlock, holder: Any) -> None:
        if not isinstance(holder, SecondUploads):
            pin(self, holder)

    def unpin_for_others(self: CacheBlock, holder: Any) -> None:
        if not isinstance(holder, SecondUploads):
            unpin(self, holder)

    async def unchecked(self: Any) -> None:
        return

    patch.setattr(CacheBlock, "pin", pin_for_others)
    patch.setattr(CacheBlock, "unpin", unpin_for_others)
    patch.setattr(s3stream.second_upload._Rejoined, "check", unchecked)


def oldest_state_put_by_a_second_upload(patch: pytest.MonkeyPatch) -> None:
    """The state of a stream as of the first part that is merged, not of the last."""

    def oldest(self: Any) -> bytes | None:
        states = [self.all_parts[held, self.stream_id].state for held, _ in self.planned.pieces]
        return next((state for state in states if state is not None), None)

    patch.setattr(s3stream.second_upload._Rejoined, "state", property(oldest))


# ---- brokers that stand still, and others that take their place


def fence_word_not_read(patch: pytest.MonkeyPatch) -> None:
    init = FileWal.__init__

    def blind(self: FileWal, **arguments: Any) -> None:
        init(self, **{**arguments, "fenced_epoch": lambda: -1})

    patch.setattr(FileWal, "__init__", blind)


def slot_of_another_writer_counted(patch: pytest.MonkeyPatch) -> None:
    occupy = SlotLog.occupy

    async def ours(self: SlotLog, header: Any, frames: Any = ()) -> bool:
        return await occupy(self, header, frames) or header.kind is SlotKind.BATCH

    patch.setattr(SlotLog, "occupy", ours)


def superseded_node_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Storage, "supersede", lambda *arguments: None)
    patch.setattr(broker.background, "NodeFenced", KeyError)  # so that each end of its work is reported as a mistake


def missing_object_called_damage_at_once(patch: pytest.MonkeyPatch) -> None:
    init = ObjectReader.__init__

    def alone(self: ObjectReader, **arguments: Any) -> None:
        init(self, **{**arguments, "catch_up": None})

    patch.setattr(ObjectReader, "__init__", alone)


# ---- controllers that fight for the office


def leader_not_looked_up_after_the_entry(patch: pytest.MonkeyPatch) -> None:
    async def always(self: MetadataLog, claim: Any) -> bool:
        return True

    patch.setattr(MetadataLog, "still_leads", always)


def floor_not_read_after_the_entries(patch: pytest.MonkeyPatch) -> None:
    read = MetadataLog.read

    async def hasty(self: MetadataLog, index: int, read_ahead: int = 1) -> Any:
        async def none() -> Floor:
            return Floor(index=0, snapshot_index=-1)

        self.read_floor = none  # type: ignore[method-assign]
        try:
            return await read(self, index, read_ahead)
        finally:
            del self.read_floor

    patch.setattr(MetadataLog, "read", hasty)


# ---- PUTs that land late, or twice


def objects_that_come_again_ignored(patch: pytest.MonkeyPatch) -> None:
    delete = Collector._delete_orphans

    async def once(self: Collector, object_ids: list[ObjectId]) -> int:
        gone = self._metadata._port.image.state.tables.gone  # type: ignore[attr-defined]
        return await delete(self, [object_id for object_id in object_ids if object_id not in gone])

    patch.setattr(Collector, "_delete_orphans", once)


def expired_ids_committed(patch: pytest.MonkeyPatch) -> None:
    class Nothing(IdSet):
        def __contains__(self, value: int) -> bool:
            return False

    patch.setattr(controller.tables, "IdSet", Nothing)
    patch.setattr(controller.state, "IdSet", Nothing)


# ---- clocks, and memory


def retention_by_a_wrong_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(broker.retention, "MAX_CLOCK_DIFFERENCE_MS", 1 << 50)


def reads_take_any_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockCache, "_make_room", lambda *arguments, **options: True)


def receive_budget_ignored(patch: pytest.MonkeyPatch) -> None:
    def grant(self: ReceiveBudget, size: int, taker: object) -> bool:
        self._free_bytes -= size
        return True

    patch.setattr(ReceiveBudget, "take", grant)


def send_budget_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Server, "response_allowance_bytes", property(lambda self: 1 << 30))
    patch.setattr(Server, "may_copy", lambda self, size: True)
    patch.setattr(Server, "holds_too_much", property(lambda self: False))


PLANTS: Mapping[Plant, int] = {
    acknowledged_before_durable: 1,
    high_watermark_before_durable: 1,
    wal_trimmed_before_commit: 1,
    ring_reused_before_trim_is_durable: 1,
    wal_epoch_ignored: 1,
    payload_crc_skipped_in_recovery: 1,
    hole_ignored_in_recovery: 1,
    recovered_frames_not_synced: 1,
    block_crc_skipped: 1,
    block_crc_skipped_by_compaction: 1,
    memory_reused_before_commit: 1,
    committed_out_of_order: 1,
    duplicates_not_checked: 1,
    producer_state_lost_in_state_blocks: 1,
    references_ignored_by_collection: 1,
    memory_reused_under_a_second_upload: 585,
    oldest_state_put_by_a_second_upload: 148,
    fence_word_not_read: 1,
    slot_of_another_writer_counted: 1,
    superseded_node_goes_on: 1,
    missing_object_called_damage_at_once: 1,
    leader_not_looked_up_after_the_entry: 1,
    floor_not_read_after_the_entries: 1,
    objects_that_come_again_ignored: 1,
    expired_ids_committed: 1,
    retention_by_a_wrong_clock: 1,
    reads_take_any_memory: 1,
    receive_budget_ignored: 1,
    send_budget_ignored: 1,
}
"""And the seed to try first."""


def seeds_for(plant: Plant) -> Iterator[int]:
    """Those of the seeds that can find a bug."""
    for seed in range(1, SEEDS + 1):
        scenario = draw(seed)
        # Only frames that fill blocks can follow those of another epoch, and clocks must be wrong, and something go by age.
        if plant is wal_epoch_ignored and not scenario.block_sized:
            continue
        if plant is retention_by_a_wrong_clock and not (scenario.clock_errors and scenario.retention):
            continue
        yield seed


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, workers: Pool) -> None:
    assert is_found_among(plant, simulate, PLANTS[plant], seeds_for(plant), workers)
