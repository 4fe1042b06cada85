"""The metadata log's objects: one entry a slot, ambiguous writes settled, floor and snapshots in races."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import msgspec
import pytest

from controller.config import ControllerSettings
from controller.entry import EntryHeader
from controller.errors import MetadataCorrupt, UnsupportedMetadata, WrongCluster
from controller.log import Behind, Entries, Floor, MetadataLog
from controller.records import StreamsClosed, encode_records
from controller.snapshot import capture, digest
from s3stream.memory import Bucket, Fault, MemoryObjectStore
from s3stream.objectstore import AccessDenied
from s3stream.paths import Paths
from tests.controller.machine import ready

PATHS = Paths("here")
BODY = encode_records([StreamsClosed(stream_ids=(1,))])


class Bench:
    """A bucket, a store with faults on demand, and a log on it."""

    def __init__(self, bucket: Bucket | None = None) -> None:
        self.store = MemoryObjectStore(bucket)
        self.log = MetadataLog(
            store=self.store,
            paths=PATHS,
            settings=ControllerSettings(retry_backoff_ms=1, entry_min_age_ms=0),
            rng=random.Random(1),
        )
        self.faults: list[Fault | None] = []
        """For the next conditional writes."""
        self.store.hook = self._hook

    async def _hook(self, operation: str, key: str) -> Fault | None:
        return self.faults.pop(0) if operation.startswith("put_if") and self.faults else None

    def header(self, index: int, nonce: bytes = b"n" * 16, controller_epoch: int = 1) -> EntryHeader:
        return EntryHeader(index=index, controller_epoch=controller_epoch, nonce=nonce)

    async def fill(self, *indexes: int) -> None:
        for index in indexes:
            assert await self.log.append(self.header(index), BODY)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    assert not bench.faults, "every fault was met"


# ---- entries


async def test_a_slot_holds_one_entry(bench: Bench) -> None:
    assert await bench.log.append(bench.header(0, b"a" * 16), BODY)
    assert not await bench.log.append(bench.header(0, b"b" * 16), BODY)
    read = await bench.log.read(0)
    assert isinstance(read, Entries)
    assert [entry.header.nonce for entry in read.entries] == [b"a" * 16]


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.REPEATED, Fault.REFUSED, Fault.CONFLICT])
async def test_a_write_whose_outcome_was_open_turns_out_to_be_ours(bench: Bench, fault: Fault) -> None:
    bench.faults = [fault, fault]
    if fault is Fault.REPEATED:
        bench.faults = [fault]
    assert await bench.log.append(bench.header(0), BODY)
    read = await bench.log.read(0)
    assert isinstance(read, Entries)
    assert len(read.entries) == 1


async def test_a_write_whose_outcome_was_open_turns_out_to_be_anothers(bench: Bench) -> None:
    await Bench(bench.store.bucket).fill(0)
    bench.faults = [Fault.REFUSED, Fault.LOST_REPLY]
    assert not await bench.log.append(bench.header(0, b"late" * 4), BODY)
    bench.faults = []


async def test_entries_are_read_ahead_up_to_the_tail(bench: Bench) -> None:
    await bench.fill(*range(5))
    read = await bench.log.read(1, read_ahead=2)
    assert isinstance(read, Entries)
    assert ([entry.header.index for entry in read.entries], read.at_tail) == ([1, 2], False)
    read = await bench.log.read(3, read_ahead=1000)
    assert isinstance(read, Entries)
    assert ([entry.header.index for entry in read.entries], read.at_tail) == ([3, 4], True)
    assert bench.store.requests["get"] < 50, "read-ahead is bounded"


async def test_a_hole_in_the_log_is_not_taken_for_its_tail(bench: Bench) -> None:
    await bench.fill(0, 1, 2)
    bench.store.bucket.delete([PATHS.log_entry(1)])
    with pytest.raises(MetadataCorrupt, match="is missing, later entries exist"):
        await bench.log.read(0, read_ahead=4)


async def test_an_entry_that_appears_while_it_is_read_around_is_no_hole(bench: Bench) -> None:
    other = Bench(bench.store.bucket)
    await bench.fill(0)

    async def write_behind_the_reader(operation: str, key: str) -> Fault | None:
        if key == PATHS.log_entry(2):
            await other.fill(1, 2)
        return None

    bench.store.hook = write_behind_the_reader
    read = await bench.log.read(0, read_ahead=3)
    assert isinstance(read, Entries)
    assert not read.at_tail or len(read.entries) == 3


async def test_damage_names_the_key(bench: Bench) -> None:
    await bench.fill(0)
    bench.store.bucket.flip_bit(PATHS.log_entry(0), 350)
    with pytest.raises(MetadataCorrupt, match=r"here/metadata/log/0{20} is damaged"):
        await bench.log.read(0)


# ---- floor and snapshots


async def test_below_the_floor_neither_a_404_nor_an_entry_counts(bench: Bench) -> None:
    await bench.fill(*range(10))
    await bench.log.raise_floor(Floor(index=6, snapshot_index=8))
    assert await bench.log.delete_below(Floor(index=6, snapshot_index=8)) == 6
    assert await bench.log.read(3) == Behind(snapshot_index=8)
    # A leader that slept finds the slot free. What it writes there does not count.
    await bench.fill(3)
    assert await bench.log.read(3) == Behind(snapshot_index=8)
    read = await bench.log.read(6, read_ahead=8)
    assert isinstance(read, Entries)
    assert len(read.entries) == 4


async def test_what_is_deleted_while_it_is_read_is_not_taken_for_the_tail(bench: Bench) -> None:
    other = Bench(bench.store.bucket)
    await bench.fill(*range(10))
    raised = False

    async def delete_before_the_reader(operation: str, key: str) -> Fault | None:
        nonlocal raised
        if key == PATHS.log_entry(3) and not raised:
            raised = True
            floor = Floor(index=6, snapshot_index=8)
            await other.log.raise_floor(floor)
            await other.log.delete_below(floor)
        return None

    bench.store.hook = delete_before_the_reader
    assert await bench.log.read(3) == Behind(snapshot_index=8)


async def test_the_floor_is_never_lowered(bench: Bench) -> None:
    await bench.log.raise_floor(Floor(index=6, snapshot_index=8))
    await bench.log.raise_floor(Floor(index=2, snapshot_index=4))
    assert await bench.log.read_floor() == Floor(index=6, snapshot_index=8)
    await bench.log.raise_floor(Floor(index=5, snapshot_index=9))
    assert await bench.log.read_floor() == Floor(index=6, snapshot_index=9)
    bench.faults = [Fault.LOST_REPLY, Fault.REPEATED]
    await bench.log.raise_floor(Floor(index=7, snapshot_index=10))
    await bench.log.raise_floor(Floor(index=8, snapshot_index=11))
    assert await bench.log.read_floor() == Floor(index=8, snapshot_index=11)


async def test_entries_that_the_floor_of_another_controller_promises_stay(bench: Bench) -> None:
    """It had the newer snapshot and kept more of the log: for a longer restore window, or by another clock."""
    await bench.fill(*range(10))
    await bench.log.raise_floor(Floor(index=3, snapshot_index=8))
    durable = await bench.log.raise_floor(Floor(index=6, snapshot_index=7))
    assert durable == Floor(index=3, snapshot_index=8)
    await bench.log.delete_below(durable)
    read = await bench.log.read(3, 10)
    assert isinstance(read, Entries)
    assert [entry.header.index for entry in read.entries] == [3, 4, 5, 6, 7, 8, 9]


async def test_a_snapshot_comes_back_and_only_the_newest_two_stay(bench: Bench) -> None:
    machine, _ = ready()
    for index in (3, 5, 7):
        await bench.log.put_snapshot(capture(machine.state, index))
    loaded = await bench.log.load_snapshot(7)
    assert loaded is not None
    state, size_bytes = loaded
    assert digest(state) == digest(machine.state)
    assert size_bytes == len(bench.store.bucket.objects[PATHS.snapshot(7)].data)
    await bench.log.delete_below(Floor(index=0, snapshot_index=7))
    assert await bench.log.load_snapshot(3) is None
    assert await bench.log.load_snapshot(5) is not None


async def test_what_leads_to_any_point_of_the_restore_window_stays(bench: Bench) -> None:
    now_ms = 0
    bench.store._now_ms = lambda: now_ms
    machine = ready()[0]
    for index in range(10):
        now_ms = index * 100
        await bench.fill(index)
        if index in (2, 4, 6, 8):
            await bench.log.put_snapshot(capture(machine.state, index))
    now_ms = 1_000
    assert [await bench.log.restore_base(window_ms) for window_ms in (10_000, 801, 800, 500, 1)] == [-1, -1, 2, 4, 8]

    floor = Floor(index=5, snapshot_index=8)
    await bench.log.raise_floor(floor)
    assert await bench.log.delete_below(floor, base=4) == 6, "entries 0 to 4, and the snapshot before that of entry 4"
    assert [await bench.log.load_snapshot(index) is not None for index in (2, 4, 6, 8)] == [False, True, True, True]
    read = await bench.log.read(5, 10)
    assert isinstance(read, Entries)
    assert [entry.header.index for entry in read.entries] == [5, 6, 7, 8, 9]


async def test_a_snapshot_belongs_to_its_index(bench: Bench) -> None:
    machine, _ = ready()
    await bench.log.put_snapshot(capture(machine.state, 7))
    bench.store.bucket.write(PATHS.snapshot(9), bench.store.bucket.read(PATHS.snapshot(7)).data, 0)
    with pytest.raises(MetadataCorrupt, match="is the snapshot as of entry 7"):
        await bench.log.load_snapshot(9)


# ---- leader object


async def test_each_office_has_a_higher_controller_epoch_and_ends_the_one_before(bench: Bench) -> None:
    other = Bench(bench.store.bucket)
    first = await bench.log.take_office("host-a:9092", newer_than=0, next_index=0)
    assert await bench.log.still_leads(first)
    second = await other.log.take_office("host-b:9092", newer_than=0, next_index=0)
    assert second.controller_epoch == first.controller_epoch + 1
    assert not await bench.log.still_leads(first)
    assert await bench.log.still_leads(second)
    assert msgspec.json.decode(bench.store.bucket.read(PATHS.leader).data)["leader"] == "host-b:9092"


async def test_an_office_is_taken_only_from_whom_it_is_to_be_taken_from(bench: Bench) -> None:
    assert await bench.log.take_office("a", newer_than=0, next_index=0, may_replace=lambda holder: holder is None)
    former = await bench.log.read_leader()
    assert await bench.log.take_office("b", newer_than=1, next_index=0, may_replace=lambda holder: holder == former)
    assert (
        await bench.log.take_office("c", newer_than=1, next_index=0, may_replace=lambda holder: holder == former)
        is None
    )
    now = await bench.log.read_leader()
    assert now is not None
    assert now.leader == "b"


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.REPEATED, Fault.REFUSED, Fault.CONFLICT])
async def test_an_office_whose_taking_got_no_answer_is_found_to_be_ours(bench: Bench, fault: Fault) -> None:
    bench.faults = [fault]
    claim = await bench.log.take_office("a", newer_than=0, next_index=0)
    assert claim.controller_epoch == 1
    assert await bench.log.still_leads(claim)
    bench.faults = [fault]
    assert (await bench.log.take_office("a", newer_than=0, next_index=0)).controller_epoch == 2


async def test_a_lost_leader_object_does_not_bring_old_epochs_back(bench: Bench) -> None:
    await bench.log.take_office("a", newer_than=0, next_index=0)
    bench.store.bucket.delete([PATHS.leader])
    assert (await bench.log.take_office("a", newer_than=41, next_index=0)).controller_epoch == 42


# ---- cluster marker


async def test_a_bucket_is_given_one_cluster_id(bench: Bench) -> None:
    bench.faults = [Fault.LOST_REPLY]
    assert await bench.log.ensure_cluster("", "random-1", 0) == "random-1"
    assert await bench.log.ensure_cluster("", "random-2", 0) == "random-1"
    assert await bench.log.ensure_cluster("random-1", "random-2", 0) == "random-1"
    with pytest.raises(
        WrongCluster, match=r"mem:// with prefix 'here' belongs to cluster random-1.*set cluster.id to random-1"
    ):
        await bench.log.ensure_cluster("mine", "random-2", 0)


async def test_a_new_bucket_takes_the_configured_cluster_id(bench: Bench) -> None:
    assert await bench.log.ensure_cluster("mine", "random", 0) == "mine"


async def test_a_bucket_of_a_newer_version_is_refused(bench: Bench) -> None:
    marker = {"format": 2, "cluster_id": "x", "created_at_ms": 0}
    bench.store.bucket.write(PATHS.cluster, msgspec.json.encode(marker), 0)
    with pytest.raises(UnsupportedMetadata, match="format 2, newer than 1: upgrade this node"):
        await bench.log.ensure_cluster("", "random", 0)


# ---- patience


async def test_wrong_credentials_are_told_at_the_start_and_borne_later(bench: Bench) -> None:
    refusals = 1

    async def refuse(operation: str, key: str) -> Fault | None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise AccessDenied("expired token")
        return None

    bench.store.hook = refuse
    with pytest.raises(AccessDenied):
        await bench.log.read_floor()
    bench.log.bears_refusal = True
    refusals = 3
    assert await bench.log.read_floor() == Floor(index=0, snapshot_index=-1)
