"""Two controllers on one bucket: what a leader writes that lost its office counts for nothing, and everybody gets everything done."""

from __future__ import annotations

import asyncio

import pytest

from controller.controller import Controller, TopicSpec
from controller.entry import EntryHeader, decode_entry, encode_entry
from controller.errors import MetadataCorrupt
from controller.image import Topic
from controller.records import (
    METADATA_VERSION,
    ClusterFormatted,
    LeaderChanged,
    Record,
    StreamsClosed,
    encode_records,
)
from controller.snapshot import digest
from s3stream.errors import MetadataUnavailable, NodeFenced
from s3stream.memory import Fault
from s3stream.metadata import StreamId
from tests.controller.world import PATHS, World, run, upload, with_topic


def test_a_leader_that_slept_commits_nothing_until_it_has_caught_up() -> None:
    async def scenario(world: World) -> None:
        sleeper = await world.start()
        metadata, (stream,) = await with_topic(sleeper)
        await upload(metadata, stream, 0, 10)
        other = await world.start()
        await other.register_node(1, "wal-1")  # the same node, in a new process
        with pytest.raises(NodeFenced, match="registered again"):
            await upload(metadata, stream, 10, 20)
        assert digest(sleeper.image.state) == digest(other.image.state)
        assert other.is_leader
        assert not sleeper.is_leader

    run(scenario)


def test_a_leader_that_slept_does_not_answer_from_memory() -> None:
    async def scenario(world: World) -> None:
        sleeper = await world.start()
        await with_topic(sleeper)
        topic = sleeper.image.topic("orders")
        assert topic is not None
        await (await world.start()).delete_topics([topic.topic_id])
        again = await sleeper.create_topics([TopicSpec(name="orders", partition_count=1)])
        assert isinstance(again["orders"], Topic), "it does not exist any more"

    run(scenario)


def test_an_entry_that_got_in_before_the_office_was_lost_is_answered_as_done() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        await with_topic(controller)
        other = await world.start()

        async def lose_the_office(operation: str, key: str) -> Fault | None:
            if key == PATHS.leader:
                world.stores[0].hook = None
                await other.register_node(2, "wal-2")
            return None

        world.stores[0].hook = lose_the_office
        (made,) = (await controller.create_topics([TopicSpec(name="just in time", partition_count=1)])).values()
        assert isinstance(made, Topic)
        assert other.image.topic("just in time") is not None
        assert controller.image.node(2) is not None

    run(scenario)


def test_a_leader_that_slept_past_the_floor_finds_its_slot_free_and_is_not_believed() -> None:
    async def scenario(world: World) -> None:
        sleeper = await world.start()
        await with_topic(sleeper)
        slot = sleeper.applied_index + 1
        other = await world.start(snapshot_interval_entries=10, retained_entries=0)
        registration = await other.register_node(2, "wal-2")
        metadata = other.bind(2, registration.node_epoch)
        for _ in range(50):
            await metadata.allocate_producer_ids(1)
            await asyncio.sleep(0.01)
        assert PATHS.log_entry(slot) not in world.bucket.objects
        late = TopicSpec(name="late", partition_count=1)
        with pytest.raises(MetadataUnavailable, match="another controller took over"):
            await sleeper.create_topics([late])
        assert PATHS.log_entry(slot) in world.bucket.objects, "written, and not believed"
        assert sleeper.image.topic("late") is None
        assert isinstance((await sleeper.create_topics([late]))["late"], Topic)
        await other.refresh()
        assert digest(other.image.state) == digest(sleeper.image.state)
        assert digest((await world.start()).image.state) == digest(sleeper.image.state)

    run(scenario)


def test_an_entry_of_an_older_controller_epoch_is_ignored_by_everybody() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        await with_topic(controller)
        other = await world.start()
        await other.register_node(2, "wal-2")
        before = digest(other.image.state)
        header = EntryHeader(index=other.applied_index + 1, controller_epoch=1, nonce=b"z" * 16)
        late = encode_entry(header, encode_records([StreamsClosed(stream_ids=(StreamId(1),))]))
        world.bucket.write(PATHS.log_entry(header.index), b"".join(late), 0)
        await controller.refresh()
        assert controller.applied_index == header.index
        assert digest(controller.image.state) == before
        await other.register_node(3, "wal-3")  # meets the stranger in its slot, and goes past it
        assert digest((await world.start()).image.state) == digest(other.image.state)

    run(scenario)


def test_a_log_that_lost_its_end_is_refused_and_left_as_it_is() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, (stream,) = await with_topic(controller)
        await upload(metadata, stream, 0, 10)
        await controller.close()
        newest = controller.applied_index
        whole = dict(world.bucket.objects)
        world.bucket.delete([PATHS.log_entry(newest)])
        with pytest.raises(MetadataCorrupt, match=f"{PATHS.log_entry(newest)} is missing, and {PATHS.leader} says"):
            await world.start()
        world.bucket.delete([PATHS.log_entry(newest - 1)])
        left = dict(world.bucket.objects)
        with pytest.raises(MetadataCorrupt, match=f"the 2 entries from {PATHS.log_entry(newest - 1)} on are missing"):
            await world.start()
        assert world.bucket.objects == left
        for index in (newest - 1, newest):
            world.bucket.write(PATHS.log_entry(index), whole[PATHS.log_entry(index)].data, 0)
        assert digest((await world.start()).image.state) == digest(controller.image.state)

    run(scenario)


def test_nobody_takes_office_over_a_log_that_lost_its_end() -> None:
    async def scenario(world: World) -> None:
        controller, follower = await world.start(), await world.start()
        await with_topic(controller)
        await controller.close()
        world.bucket.delete([PATHS.log_entry(controller.applied_index)])
        left = dict(world.bucket.objects)
        with pytest.raises(MetadataUnavailable, match=r"is missing, and .* says that the log went on to there"):
            await follower.register_node(2, "wal-2")
        assert world.bucket.objects == left

    run(scenario)


def test_an_epoch_that_never_took_office_is_refused() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        await with_topic(controller)
        header = EntryHeader(index=controller.applied_index + 1, controller_epoch=9, nonce=b"z" * 16)
        body = encode_records([StreamsClosed(stream_ids=(StreamId(1),))])
        world.bucket.write(PATHS.log_entry(header.index), b"".join(encode_entry(header, body)), 0)
        with pytest.raises(MetadataCorrupt, match="never took office"):
            await world.start()

    run(scenario)


def test_a_cluster_of_the_version_before_is_written_as_that_version_until_a_newer_one_is_in_force() -> None:
    """So that nodes can be upgraded one by one: those of the version before refuse what says that it is newer."""

    async def scenario(world: World) -> None:
        formatted: list[Record] = [
            LeaderChanged(controller_epoch=1, leader=""),
            ClusterFormatted(cluster_id="old", metadata_version=3),
        ]
        header = EntryHeader(index=0, controller_epoch=1, nonce=b"z" * 16, metadata_version=3)
        world.bucket.write(PATHS.log_entry(0), b"".join(encode_entry(header, encode_records(formatted))), 0)
        controller = await world.start(cluster_id="old")
        await with_topic(controller)
        await controller.raise_metadata_version(METADATA_VERSION)
        await controller.raise_metadata_version(METADATA_VERSION)
        await controller.register_node(2, "wal-2", lease_ms=3_000)
        versions = [
            decode_entry(world.bucket.objects[PATHS.log_entry(index)].data, index, where="here").header.metadata_version
            for index in range(controller.applied_index + 1)
        ]
        assert versions == [3] * (len(versions) - 2) + [METADATA_VERSION] * 2
        assert (await world.start()).image.metadata_version == METADATA_VERSION

    run(scenario)


def test_two_controllers_that_both_write_get_everything_done() -> None:
    async def scenario(world: World) -> None:
        async def work(controller: Controller, node_id: int) -> list[range]:
            registration = await controller.register_node(node_id, f"wal-{node_id}")
            metadata = controller.bind(node_id, registration.node_epoch)
            return [await metadata.allocate_producer_ids(10) for _ in range(20)]

        a, b = await world.start(), await world.start()
        blocks = [block for found in await asyncio.gather(work(a, 1), work(b, 2)) for block in found]
        ids = [producer_id for block in blocks for producer_id in block]
        assert len(set(ids)) == len(ids) == 400
        await a.refresh()
        await b.refresh()
        assert digest(a.image.state) == digest(b.image.state)

    run(scenario)
