"""What the simulation of a cluster finds: each of these bugs is planted into one of its mechanisms, and must be found within its seeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from multiprocessing.pool import Pool
from typing import Any

import pytest

import controller.commands
import controller.nodes
import controller.objects
import controller.streams
import wal.foreign
from broker.partition import Partition
from controller.detection import Judged, Verdict, Watch
from controller.lease import Lease
from controller.node_metadata import NodeMetadata
from controller.tables import NodeStatus, Tables
from s3stream.metadata import OpenedStream, StreamId
from s3stream.stream import Stream
from tests.sim.cluster import simulate_cluster
from tests.sim.planting import Plant, is_found_among
from wal.aside import SalvagedWal
from wal.slot import SlotKind
from wal.slot_log import SlotLog

SEEDS = 300


# ---- fences, and what is read behind them


def fence_of_a_disk_skipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wal.foreign, "fence", lambda path: 0)


def fence_of_a_bucket_skipped(patch: pytest.MonkeyPatch) -> None:
    """Whoever ends a log in the bucket, its own node or a recoverer, believes to have taken the slot."""
    occupy = SlotLog.occupy

    async def imagined(self: SlotLog, header: Any, frames: Any = ()) -> bool:
        return header.kind is SlotKind.FENCE or await occupy(self, header, frames)

    patch.setattr(SlotLog, "occupy", imagined)

    async def always(self: SlotLog, fence: Any) -> bool:
        return True

    patch.setattr(SlotLog, "_ends_the_log", always)


def recovery_ends_at_the_first_gap_and_says_nothing(patch: pytest.MonkeyPatch) -> None:
    """What comes behind the first run of a WAL is taken for nothing."""
    recover = SalvagedWal.recover

    async def first_run(self: SalvagedWal) -> AsyncIterator[Any]:
        async for run in recover(self):
            yield run
            break
        self._assessment.end()

    patch.setattr(SalvagedWal, "recover", first_run)


# ---- claims, commits and closes


def opened_before_the_recovery_is_committed(patch: pytest.MonkeyPatch) -> None:
    """The streams are closed, so that others open them, and then put into objects."""
    recover_wal = NodeMetadata.recover_wal

    async def closed_at_once(self: NodeMetadata, wal_id: str) -> Sequence[OpenedStream]:
        claimed = await recover_wal(self, wal_id)
        await self.close_streams(
            {opened.stream_id: opened.committed_end_offset for opened in claimed},
            {opened.stream_id: opened.leader_epoch for opened in claimed},
        )
        return claimed

    patch.setattr(NodeMetadata, "recover_wal", closed_at_once)


def claims_ignored(patch: pytest.MonkeyPatch) -> None:
    """A WAL is recovered by who likes to, without having its streams granted: its former owner can commit meanwhile."""

    async def unclaimed(self: NodeMetadata, wal_id: str) -> Sequence[OpenedStream]:
        tables = self._port.image.state.tables
        return [controller.streams._opened(stream) for stream in tables.streams.values() if stream.wal_id == wal_id]

    patch.setattr(NodeMetadata, "recover_wal", unclaimed)


def commands_of_the_dead_obeyed(patch: pytest.MonkeyPatch) -> None:
    def without_health(tables: Tables, node_id: int, node_epoch: int) -> str:
        return tables.nodes[node_id].wal_id

    for module in (controller.commands, controller.streams, controller.objects, controller.nodes):
        if hasattr(module, "check_node"):
            patch.setattr(module, "check_node", without_health)


def closes_obeyed_that_come_again(patch: pytest.MonkeyPatch) -> None:
    """A close names no leader epochs. So that a few hundred seeds are enough, each comes twice, as where its answer is lost."""
    close_streams = NodeMetadata.close_streams

    async def twice(self: NodeMetadata, end_offsets: Mapping[StreamId, int], leader_epochs: object) -> None:
        await close_streams(self, end_offsets, {})
        await asyncio.sleep(1.0)
        await close_streams(self, end_offsets, {})

    patch.setattr(NodeMetadata, "close_streams", twice)


def opens_obeyed_that_come_again(patch: pytest.MonkeyPatch) -> None:
    """Some commands come late in any simulation of several nodes; these open anew what their sender writes to."""
    patch.setattr(controller.streams, "_opened_from", lambda stream, *_: controller.streams._opened(stream))


# ---- leases and deaths


def answers_after_the_end_of_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "serves", property(lambda self: self._until_s > 0))


def lease_taken_without_a_look(patch: pytest.MonkeyPatch) -> None:
    async def unread(self: Lease, began_s: float) -> float:
        return began_s

    patch.setattr(Lease, "_read_to_tail", unread)


def dead_as_soon_as_suspected(patch: pytest.MonkeyPatch) -> None:
    judge = Watch.judge

    def hasty(self: Watch, nodes: Any, now_s: float) -> Iterator[Judged]:
        nodes = list(nodes)
        yield from judge(self, nodes, now_s)
        for node in nodes:
            if node.status is NodeStatus.SUSPECT and not self._lives(node.node_id, now_s):
                yield Judged(Verdict.DEAD, node.node_id, node.node_epoch)

    patch.setattr(Watch, "judge", hasty)


def nobody_is_taken_for_dead(patch: pytest.MonkeyPatch) -> None:
    """Partitions of who is away are led by nobody."""
    judge = Watch.judge
    patch.setattr(
        Watch,
        "judge",
        lambda self, nodes, now_s: (
            judged for judged in judge(self, nodes, now_s) if judged.verdict is not Verdict.DEAD
        ),
    )


# ---- moves


def records_taken_while_a_partition_leaves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "leave", lambda self: setattr(self, "leaving", True))


def readers_answered_once_a_close_is_sent(patch: pytest.MonkeyPatch) -> None:
    """A close may be committed before its answer is here: others have written since, and the end known here is no end any more.

    So that a few hundred seeds are enough, answers take a while. That alone does no harm.
    """
    close_streams = NodeMetadata.close_streams

    async def answered_late(self: NodeMetadata, *arguments: Any) -> None:
        await close_streams(self, *arguments)
        await asyncio.sleep(2.0)

    patch.setattr(NodeMetadata, "close_streams", answered_late)
    patch.setattr(Stream, "withhold", lambda self, reason: None)


PLANTS: Mapping[Plant, int] = {
    fence_of_a_disk_skipped: 248,
    fence_of_a_bucket_skipped: 1,
    recovery_ends_at_the_first_gap_and_says_nothing: 1,
    opened_before_the_recovery_is_committed: 1,
    claims_ignored: 1,
    closes_obeyed_that_come_again: 1,
    opens_obeyed_that_come_again: 11,
    commands_of_the_dead_obeyed: 1,
    answers_after_the_end_of_the_lease: 1,
    lease_taken_without_a_look: 7,
    dead_as_soon_as_suspected: 1,
    nobody_is_taken_for_dead: 5,
    records_taken_while_a_partition_leaves: 13,
    readers_answered_once_a_close_is_sent: 10,
}
"""And the seed to try first."""


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, workers: Pool) -> None:
    assert is_found_among(plant, simulate_cluster, PLANTS[plant], range(1, SEEDS + 1), workers)
