"""The controller as its users see it: commands, replies, trouble, and what the bucket is asked for."""

from __future__ import annotations

import asyncio
import random

import pytest

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.entry import EntryHeader, encode_entry
from controller.errors import NodeRefused, TopicExists, UnknownTopic, UnsupportedMetadata, WrongCluster
from controller.image import Applied, Topic
from controller.records import (
    TopicCreated,
)
from controller.snapshot import digest
from s3stream.errors import MetadataUnavailable
from s3stream.memory import Fault, MemoryObjectStore
from s3stream.metadata import CommitObjects, SkipReason, StreamId, StreamMetadata
from tests.controller.machine import T0_MS, new_object, stream_range
from tests.controller.world import PATHS, World, run, upload, with_topic

# ---- replies and image


def test_a_node_from_its_registration_to_its_reads() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, (stream,) = await with_topic(controller)
        port: StreamMetadata = metadata
        objects = [await upload(metadata, stream, base, base + 10, has_state=base == 0) for base in (0, 10, 20)]
        assert [each.object_id for each in port.locate(stream, 15)] == objects[1:]
        assert [each.object_id for each in port.locate(stream, 0, limit=1)] == objects[:1]
        assert not port.locate(stream, 30)
        assert not port.locate(StreamId(99), 0)
        assert [each.range.base_offset for each in port.ranges(stream)] == [0, 10, 20]
        assert port.committed_end_offset(stream) == 30
        assert port.committed_end_offset(StreamId(99)) is None

        await port.trim_streams({stream: 10})
        state = port.newest_state(stream)
        assert state is not None
        assert (state.object_id, state.range.end_offset) == (objects[0], 10)
        await upload(metadata, stream, 30, 40, has_state=True)
        assert [each.object_id for each in port.live_objects()][:2] == objects[1:]
        assert metadata.unreferenced_before(T0_MS) == []
        assert metadata.unreferenced_before(T0_MS + 1) == [objects[0]]
        assert list(await metadata.expire_objects([objects[0], objects[1]])) == [objects[0]]
        assert metadata.expired_objects() == [objects[0]]
        await metadata.forget_objects([objects[0]])
        assert metadata.expired_objects() == []

        await port.close_streams({stream: 40}, {stream: 0})
        topic = controller.image.topic("orders")
        assert topic is not None
        assert not topic.partitions[0].is_open
        (opened,) = await port.open_streams([stream])
        assert (opened.leader_epoch, opened.log_start_offset, opened.committed_end_offset) == (1, 10, 40)

    run(scenario)


def test_the_image_shows_topics_and_nodes() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start(cluster_id="mine")
        await with_topic(controller, partitions=2)
        image = controller.image
        topic = image.topic("orders")
        assert topic is not None
        assert image.topic_by_id(topic.topic_id) is topic
        assert len(topic.topic_id) == 16
        assert [(p.index, p.leader, p.leader_epoch, p.is_open) for p in topic.partitions] == [
            (0, 1, 0, True),
            (1, 1, 0, True),
        ]
        assert image.partition_of(topic.partitions[1].stream_id) == (topic.topic_id, 1)
        assert image.streams_led_by(1) == [p.stream_id for p in topic.partitions]
        assert image.nodes[1].address == "localhost:9092"
        assert image.node(2) is None
        assert (image.cluster_id, controller.cluster_id, image.partition_count) == ("mine", "mine", 2)
        await controller.configure_topic(topic.topic_id, {"retention.ms": "5"})
        assert topic.configs == {}, "a value that was handed out does not change"
        assert [(each.name, dict(each.configs)) for each in image.topics()] == [("orders", {"retention.ms": "5"})]

    run(scenario)


def test_a_deleted_topic_is_created_again_with_another_id() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, (stream,) = await with_topic(controller)
        before = controller.image.topic("orders")
        assert before is not None
        again = await controller.create_topics([TopicSpec(name="orders", partition_count=1)])
        assert isinstance(again["orders"], TopicExists)
        assert await controller.delete_topics([before.topic_id]) == {before.topic_id: None}
        assert isinstance((await controller.delete_topics([before.topic_id]))[before.topic_id], UnknownTopic)
        assert controller.image.topic("orders") is None
        (after,) = (await controller.create_topics([TopicSpec(name="orders", partition_count=1)])).values()
        assert isinstance(after, Topic)
        assert after.topic_id != before.topic_id
        (object_id,) = await metadata.new_object_ids(1)
        commit = CommitObjects(objects=(new_object(object_id, stream_range(stream, 0, 10)),))
        assert (await metadata.commit_objects(commit)).skipped == {stream: SkipReason.DELETED}

    run(scenario)


def test_subscribers_hear_of_a_change_before_the_reply_goes_out() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        heard: list[Applied] = []
        unsubscribe = controller.subscribe(heard.append)
        await with_topic(controller)
        topic = controller.image.topic("orders")
        assert topic is not None
        assert [type(record) for applied in heard for record in applied.records].count(TopicCreated) == 1
        assert heard[-1].topic_ids == {topic.topic_id}
        assert [applied.index for applied in heard] == list(range(len(heard)))
        unsubscribe()
        count = len(heard)
        await controller.delete_topics([topic.topic_id])
        assert len(heard) == count

    run(scenario)


# ---- what the bucket is asked for


def test_an_idle_controller_asks_for_nothing_until_it_leaves_its_office() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        await with_topic(controller)
        requests = sum(world.stores[0].requests.values())
        await asyncio.sleep(86_400)
        assert controller.is_leader
        assert sum(world.stores[0].requests.values()) == requests
        await controller.close()
        assert sum(world.stores[0].requests.values()) == requests + 2

    run(scenario)


def test_reading_alone_takes_no_office() -> None:
    async def scenario(world: World) -> None:
        await with_topic(await world.start())
        writes = world.bucket.writes
        reader = await world.start()
        assert reader.image.topic_names() == ["orders"]
        assert not reader.is_leader
        assert world.bucket.writes == writes

    run(scenario)


def test_commands_that_arrive_together_become_one_entry() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, streams = await with_topic(controller, partitions=100)
        ids = await metadata.new_object_ids(100)
        entries = controller.applied_index
        commits = [
            metadata.commit_objects(CommitObjects(objects=(new_object(object_id, stream_range(stream, 0, 10)),)))
            for object_id, stream in zip(ids, streams, strict=True)
        ]
        await asyncio.gather(*commits)
        assert controller.applied_index - entries == 1
        assert {metadata.committed_end_offset(stream) for stream in streams} == {10}

    run(scenario)


def test_commands_of_one_entry_see_each_other() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        await controller.register_node(1, "wal-1")
        entries = controller.applied_index
        spec = TopicSpec(name="orders", partition_count=1)
        first, second = await asyncio.gather(controller.create_topics([spec]), controller.create_topics([spec]))
        assert isinstance(first["orders"], Topic)
        assert isinstance(second["orders"], TopicExists)
        assert controller.applied_index - entries == 1

    run(scenario)


def test_object_ids_cost_an_entry_per_block() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start(object_id_block_size=10)
        metadata, _ = await with_topic(controller)
        entries = controller.applied_index
        blocks = await asyncio.gather(*(metadata.new_object_ids(1) for _ in range(20)), metadata.new_object_ids(35))
        ids = [object_id for block in blocks for object_id in block]
        assert len(set(ids)) == len(ids) == 55
        assert controller.applied_index - entries == 3

    run(scenario)


def test_large_commands_are_spread_over_entries() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start(max_entry_bytes=1_000)
        await controller.register_node(1, "wal-1")
        entries = controller.applied_index
        specs = [TopicSpec(name=f"t{number}", partition_count=500) for number in range(6)]
        await asyncio.gather(*(controller.create_topics([spec]) for spec in specs))
        assert controller.applied_index - entries == 3

    run(scenario)


def test_a_restart_reads_everything_back() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, (stream,) = await with_topic(controller)
        for base in range(0, 300, 10):
            await upload(metadata, stream, base, base + 10)
        await controller.close()
        again = await world.start()
        assert digest(again.image.state) == digest(controller.image.state)
        assert again.applied_index == controller.applied_index

    run(scenario)


# ---- trouble


def test_commands_wait_for_an_outage_to_end_or_fail_after_a_while() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start(command_timeout_ms=10_000)
        metadata, (stream,) = await with_topic(controller)
        world.stores[0].outage = True
        waiting = asyncio.create_task(upload(metadata, stream, 0, 10))
        await asyncio.sleep(5)
        world.stores[0].outage = False
        await waiting
        world.stores[0].outage = True
        with pytest.raises(MetadataUnavailable, match="no answer within 10000 ms: the bucket answers Unavailable"):
            await upload(metadata, stream, 10, 20)
        world.stores[0].outage = False
        await asyncio.sleep(5)
        assert metadata.committed_end_offset(stream) == 20, "the outcome was open: it came through later"
        assert digest((await world.start()).image.state) == digest(controller.image.state)

    run(scenario)


def test_a_bucket_that_does_not_answer_fails_the_start() -> None:
    async def scenario(world: World) -> None:
        store = MemoryObjectStore(world.bucket)
        store.outage = True
        with pytest.raises(MetadataUnavailable, match="start got no answer within 120000 ms"):
            await Controller.start(
                store=store, paths=PATHS, settings=ControllerSettings(), now_ms=lambda: 0, rng=random.Random(1)
            )

    run(scenario)


def test_the_queue_is_bounded() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start(max_pending_commands=5, command_timeout_ms=1_000)
        metadata, _ = await with_topic(controller)
        world.stores[0].outage = True
        outcomes = await asyncio.gather(*(metadata.allocate_producer_ids(1) for _ in range(20)), return_exceptions=True)
        assert sum("commands wait already" in str(outcome) for outcome in outcomes) == 15
        world.stores[0].outage = False
        await asyncio.sleep(10)
        assert await metadata.allocate_producer_ids(1)

    run(scenario)


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.REPEATED, Fault.CONFLICT, Fault.DELAYED])
def test_an_entry_whose_write_got_no_answer_counts_once(fault: Fault) -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, _ = await with_topic(controller)
        faults = [fault]

        async def once(operation: str, key: str) -> Fault | None:
            return faults.pop() if operation == "put_if_absent" and faults else None

        world.stores[0].hook = once
        assert [await metadata.allocate_producer_ids(10) for _ in range(3)] == [range(10), range(10, 20), range(20, 30)]
        await asyncio.sleep(60)
        assert not faults
        assert digest((await world.start()).image.state) == digest(controller.image.state)

    run(scenario)


def test_an_error_of_one_command_is_its_own() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, (stream,) = await with_topic(controller)
        outcomes = await asyncio.gather(
            metadata.allocate_producer_ids(1),
            controller.register_node(1, "another-disk"),
            metadata.commit_objects(CommitObjects(objects=(new_object(777_777, stream_range(stream, 0, 10)),))),
            metadata.allocate_producer_ids(1),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [range, NodeRefused, AssertionError, range]
        assert controller.failure is None

    run(scenario)


def test_a_change_that_would_break_an_invariant_is_refused_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, (stream,) = await with_topic(controller)
        before = digest(controller.image.state)
        monkeypatch.setattr("controller.objects._why_stale", lambda *_: None)  # a planted defect
        (object_id,) = await metadata.new_object_ids(1)
        hole = CommitObjects(objects=(new_object(object_id, stream_range(stream, 5, 10)),))
        outcomes = await asyncio.gather(
            metadata.allocate_producer_ids(1), metadata.commit_objects(hole), metadata.allocate_producer_ids(1),
            return_exceptions=True,
        )  # fmt: skip
        assert outcomes[0] == range(1)
        assert outcomes[2] == range(1, 2)
        assert "ranges_are_contiguous" in str(outcomes[1])
        assert digest(controller.image.state) != before
        assert metadata.ranges(stream) == []
        await upload(metadata, stream, 0, 10)

    run(scenario)


def test_metadata_of_a_newer_version_stops_the_controller() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, _ = await with_topic(controller)
        key = PATHS.log_entry(controller.applied_index + 1)
        newer = bytearray(b"".join(encode_entry(EntryHeader(index=0, controller_epoch=1, nonce=b"z" * 16), b"")))
        newer[4] = 2
        world.bucket.write(key, bytes(newer), 0)
        with pytest.raises(MetadataUnavailable, match="stopped"):
            await metadata.allocate_producer_ids(1)
        assert isinstance(controller.failure, UnsupportedMetadata)
        assert world.failures == [controller.failure]
        with pytest.raises(MetadataUnavailable, match="upgrade this node"):
            await metadata.allocate_producer_ids(1)
        with pytest.raises(UnsupportedMetadata, match=key):
            await world.start()

    run(scenario)


def test_a_bucket_of_another_cluster_is_refused() -> None:
    async def scenario(world: World) -> None:
        await world.start(cluster_id="mine")
        with pytest.raises(WrongCluster, match="belongs to cluster mine"):
            await world.start(cluster_id="other")
        assert (await world.start()).cluster_id == "mine"

    run(scenario)


def test_close_finishes_what_waits_and_refuses_what_comes_later() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, _ = await with_topic(controller)
        last = asyncio.create_task(metadata.allocate_producer_ids(1))
        await asyncio.sleep(0)
        await controller.close()
        assert await last == range(1)
        with pytest.raises(MetadataUnavailable, match="closed"):
            await metadata.allocate_producer_ids(1)
        await controller.close()

    run(scenario)


def test_close_does_not_wait_for_ever_for_a_bucket_that_is_away() -> None:
    async def scenario(world: World) -> None:
        controller = await world.start()
        metadata, _ = await with_topic(controller)
        world.stores[0].outage = True
        last = asyncio.create_task(metadata.allocate_producer_ids(1))
        await asyncio.sleep(1)
        begun_s = asyncio.get_running_loop().time()
        await controller.close()
        assert asyncio.get_running_loop().time() - begun_s < 3
        with pytest.raises(MetadataUnavailable, match="whether this took effect is open"):
            await last

    run(scenario)


def test_settings_are_validated_as_a_whole() -> None:
    with pytest.raises(ValueError, match="max_partitions is 0"):
        ControllerSettings(max_partitions=0)
    with pytest.raises(ValueError, match="retained_entries is -1"):
        ControllerSettings(retained_entries=-1)
    with pytest.raises(ValueError, match="must not exceed"):
        ControllerSettings(retry_backoff_ms=5_000)
