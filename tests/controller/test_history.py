"""What can be reached of the past, at what time it was, and what became of it since."""

from __future__ import annotations

import random

import pytest

from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.errors import MetadataCorrupt, PastUnreachable
from controller.history import History, Point, compare, read_history
from controller.image import Topic
from controller.log import Floor, MetadataLog
from controller.restoration import LastSeen
from controller.snapshot import capture, digest
from s3stream.memory import Bucket, MemoryObjectStore
from s3stream.paths import Paths
from tests.controller.machine import T0_MS
from tests.controller.world import upload

PATHS = Paths("here")
SETTINGS = ControllerSettings(object_id_block_size=1_000, entry_min_age_ms=0)


class Past:
    """A bucket whose clock the test turns, and a controller that writes history into it."""

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.now_ms = T0_MS
        self.store = MemoryObjectStore(self.bucket, now_ms=lambda: self.now_ms)
        self.log = MetadataLog(store=self.store, paths=PATHS, settings=SETTINGS, rng=random.Random(1))

    async def start(self) -> Controller:
        return await Controller.start(
            store=self.store, paths=PATHS, settings=SETTINGS, now_ms=lambda: self.now_ms, rng=random.Random(2)
        )

    async def history(self) -> History:
        return await read_history(self.store, PATHS, self.log)


async def with_history() -> tuple[Past, Controller]:
    """Registration, a topic, its opening, ids, three uploads and its deletion, a second each."""
    past = Past()
    controller = await past.start()
    metadata = controller.bind(1, (await controller.register_node(1, "wal-1")).node_epoch)
    past.now_ms += 1_000
    made = (await controller.create_topics([TopicSpec(name="t", partition_count=1)]))["t"]
    assert isinstance(made, Topic)
    stream_id = made.partitions[0].stream_id
    past.now_ms += 1_000
    await metadata.open_streams([stream_id])
    for base in (0, 10, 20):
        past.now_ms += 1_000
        await upload(metadata, stream_id, base, base + 10)
    past.now_ms += 1_000
    await controller.delete_topics([made.topic_id])
    return past, controller


async def test_a_point_is_an_entry_and_its_time_is_that_of_the_store() -> None:
    past, controller = await with_history()
    history = await past.history()
    assert history.snapshots == [-1]
    assert [point.index for point in history.points] == list(range(controller.applied_index + 1))
    last = history.points[-1]
    assert last == Point(index=controller.applied_index, at_ms=past.now_ms)
    assert history.at_time(last.at_ms) == history.at_time(last.at_ms + 99) == last
    before = history.at_time(last.at_ms - 1)
    assert (before.index, before.at_ms) == (last.index - 1, last.at_ms - 1_000)
    assert (history.after(before), history.after(last)) == (last, None)
    assert history.at_index(before.index) == before
    await controller.close()


async def test_entries_are_no_older_than_those_before_them_whatever_the_clock_did() -> None:
    past, controller = await with_history()
    latest_ms = past.now_ms
    past.now_ms -= 3_600_000
    await controller.create_topics([TopicSpec(name="later", partition_count=1)])
    assert (await past.history()).points[-1] == Point(index=controller.applied_index, at_ms=latest_ms)
    await controller.close()


async def test_the_state_of_then_and_what_became_of_it() -> None:
    past, controller = await with_history()
    history = await past.history()
    point = history.at_time(past.now_ms - 1_500)  # two of three uploads
    found = await compare(past.log, history, point.index)
    (stream,) = found.then.tables.streams.values()
    assert (stream.committed_end_offset, len(stream.ranges)) == (20, 2)
    assert digest(found.now) == digest(controller.image.state)
    assert found.next_index == controller.applied_index + 1
    assert found.last_seen == {stream.stream_id: LastSeen(leader_epoch=0, committed_end_offset=30, was_open=True)}
    assert [(event.index, event.what) for event in found.events] == [(controller.applied_index, "topic t was deleted")]
    await controller.close()


async def test_from_a_snapshot_on_where_the_beginning_is_gone() -> None:
    past, controller = await with_history()
    history = await past.history()
    expected = await compare(past.log, history, 4)
    for index in (3, 6):
        found = await compare(past.log, history, index)
        await past.log.put_snapshot(capture(found.then, index))
    floor = Floor(index=4, snapshot_index=6)
    await past.log.raise_floor(floor)
    await past.log.delete_below(floor, base=3)

    history = await past.history()
    assert history.snapshots == [3, 6]
    assert [point.index for point in history.points] == list(range(3, controller.applied_index + 1))
    for index in (3, 4, 5, 6, 7):
        found = await compare(past.log, history, index)
        assert digest(found.now) == digest(controller.image.state)
        if index == 4:
            assert digest(found.then) == digest(expected.then)
    with pytest.raises(
        PastUnreachable, match="entry 2 cannot be restored: the history that is kept goes from entry 3 to"
    ):
        history.at_index(2)
    with pytest.raises(
        PastUnreachable, match=r"the history that is kept begins with entry 3 of 2023-11-14T22:13:2\d.000Z"
    ):
        history.at_time(T0_MS)
    await controller.close()


async def test_what_is_deleted_while_it_is_read_is_told() -> None:
    past, controller = await with_history()
    history = await past.history()
    found = await compare(past.log, history, 6)
    await past.log.put_snapshot(capture(found.then, 6))
    await past.log.raise_floor(Floor(index=7, snapshot_index=6))
    with pytest.raises(PastUnreachable, match="what leads to entry 2 was deleted just now: take a later point"):
        await compare(past.log, history, 2)
    await controller.close()


async def test_a_hole_in_the_log_is_no_history() -> None:
    past, controller = await with_history()
    past.bucket.delete([PATHS.log_entry(2)])
    with pytest.raises(MetadataCorrupt, match="is missing, later entries exist"):
        await past.history()
    await controller.close()


async def test_an_empty_bucket_has_none() -> None:
    with pytest.raises(PastUnreachable, match="no cluster lives in"):
        await Past().history()
