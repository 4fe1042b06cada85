"""How the worker keeps up with the metadata, and speaks to the broker: in one process, over a real socket pair."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from broker.compaction.wire import (
    Commit,
    Committed,
    Ids,
    IdsWanted,
    LinkBroken,
    LinkEnded,
    Refused,
    Told,
    encode,
    read_from_broker,
    read_from_worker,
)
from broker.compaction.worker import Follower, Link, LinkedMetadata
from controller.config import ControllerSettings
from controller.controller import Controller, TopicSpec
from controller.image import Applied
from controller.log import MetadataLog
from controller.records import encode_records
from controller.replica import Replica
from s3stream.errors import MetadataUnavailable, SourcesChanged
from s3stream.memory import MemoryObjectStore
from s3stream.metadata import CommitObjects, NewObject, ObjectId, StreamId, StreamRange
from tests.s3stream.doubles import PATHS

COMMIT = CommitObjects(
    objects=(
        NewObject(
            object_id=ObjectId(7),
            size_bytes=900,
            ranges=(
                StreamRange(
                    stream_id=StreamId(1),
                    leader_epoch=2,
                    base_offset=10,
                    end_offset=30,
                    record_count=20,
                    size_bytes=800,
                    max_timestamp_ms=-1,
                    has_state=True,
                ),
            ),
        ),
    ),
    sources=(ObjectId(3), ObjectId(4)),
)


class World:
    """A controller, and a follower in the same bucket that is told what the controller applies, unless `deaf`."""

    def __init__(self, store: MemoryObjectStore, controller: Controller) -> None:
        self.store = store
        self.controller = controller
        self.replica = Replica(
            MetadataLog(store=store, paths=PATHS, settings=ControllerSettings(), rng=random.Random(2))
        )
        self.follower = Follower(self.replica)
        self.following = asyncio.create_task(self.follower.run())
        self.deaf = False
        controller.subscribe(self._tell)

    def _tell(self, applied: Applied) -> None:
        if not self.deaf:
            told = Told(
                index=applied.index,
                controller_epoch=self.controller.image.controller_epoch,
                records=encode_records(applied.records),
            )
            self.follower.tell(told)

    async def create(self, *names: str) -> None:
        for name in names:
            await self.controller.create_topics([TopicSpec(name=name, partition_count=1)])

    async def followed(self) -> list[str]:
        await self.follower.reached(self.controller.applied_index)
        return list(self.replica.image.topic_names())


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    store = MemoryObjectStore()
    controller = await Controller.start(
        store=store, paths=PATHS, settings=ControllerSettings(), now_ms=lambda: 0, rng=random.Random(1)
    )
    await controller.register_node(1, "ab" * 16)
    made = World(store, controller)
    await made.create("a")
    try:
        yield made
    finally:
        made.following.cancel()
        await asyncio.gather(made.following, return_exceptions=True)
        await controller.close()


async def test_who_looks_finds_what_was_not_told() -> None:
    async with world() as made:
        assert await made.followed() == ["a"]
        made.deaf = True
        await made.create("b")
        assert list(made.replica.image.topic_names()) == ["a"]
        await asyncio.gather(made.follower.look(), made.follower.look())
        assert list(made.replica.image.topic_names()) == ["a", "b"]


async def test_what_is_told_costs_no_request() -> None:
    async with world() as made:
        assert await made.followed() == ["a"]
        before = made.store.requests["get"]
        await made.create("b", "c")
        leader_reads = made.store.requests["get"] - before  # the controller's own
        assert await made.followed() == ["a", "b", "c"]
        assert made.store.requests["get"] - before == leader_reads


async def test_what_was_not_told_is_read_in_the_bucket() -> None:
    async with world() as made:
        await made.followed()
        made.deaf = True
        await made.create("b", "c")
        made.deaf = False
        await made.create("d")  # told, with a gap before it
        assert await made.followed() == ["a", "b", "c", "d"]
        made.deaf = True
        await made.create("e")  # only a commit's answer will tell that there is more
        assert await made.followed() == ["a", "b", "c", "d", "e"]


async def test_news_of_an_entry_that_is_not_there_ends_it() -> None:
    async with world() as made:
        await made.followed()
        made.follower.tell(Told(index=made.controller.applied_index + 2, controller_epoch=1, records=b""))
        with pytest.raises(LinkBroken, match="was told, and is not there"):
            await made.following


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[LinkedMetadata, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A worker's metadata, and the broker's end of its link."""
    async with world() as made:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        far_reader, far_writer = await asyncio.open_unix_connection(sock=theirs)
        link = Link(far_reader, far_writer, made.follower)
        running = asyncio.create_task(link.run())
        yield LinkedMetadata(made.replica, made.follower, link), reader, writer
        writer.close()
        with pytest.raises(LinkEnded):
            await running
        far_writer.close()


async def test_ids_and_commits_are_asked_for() -> None:
    async with linked() as (metadata, reader, writer):
        ids = asyncio.create_task(metadata.new_object_ids(2))
        assert await read_from_worker(reader) == IdsWanted(count=2)
        writer.write(encode(Ids(object_ids=(ObjectId(7), ObjectId(9)))))
        assert await ids == (7, 9)

        commit = asyncio.create_task(metadata.commit_objects(COMMIT))
        assert await read_from_worker(reader) == Commit(commit=COMMIT)
        writer.write(encode(Committed(index=0)))
        assert (await commit).skipped == {}


@pytest.mark.parametrize("error", [SourcesChanged, MetadataUnavailable])
async def test_a_refusal_comes_as_the_error_that_it_is(error: type[Exception]) -> None:
    async with linked() as (metadata, reader, writer):
        commit = asyncio.create_task(metadata.commit_objects(COMMIT))
        await read_from_worker(reader)
        writer.write(encode(Refused(error=error.__name__, message="because")))
        with pytest.raises(error, match="because"):
            await commit


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", LinkEnded),
        (b"\x00\x00", LinkEnded),
        (b"\x00\x00\x00\x05ab", LinkEnded),
        (b"\xff\xff\xff\xff", LinkBroken),
        (b"\x00\x00\x00\x01\xc1", LinkBroken),
        (encode(IdsWanted(count=1)), LinkBroken),  # of the other direction
        (encode(Told(index=1, controller_epoch=1, records=b""))[:4] + msgspec.msgpack.encode({"type": "Told"}), LinkBroken),
    ],
)  # fmt: skip
async def test_what_is_no_message_breaks_the_link(data: bytes, error: type[Exception]) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    with pytest.raises(error):
        await read_from_broker(reader)
