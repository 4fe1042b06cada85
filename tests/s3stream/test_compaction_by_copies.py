"""Compaction of large objects: the store copies what need not be rewritten, and damage goes no further for it.

Payloads of 512 KiB, four streams of which are in nobody's way: small enough for a test, large enough for S3's parts.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from s3stream.compactor import Compactor
from s3stream.config import CompactionSettings, ReadSettings
from s3stream.local import LocalObjectStore
from s3stream.memory import MemoryObjectStore
from s3stream.metadata import StreamId
from s3stream.object_format import verify_object
from s3stream.object_reader import ObjectReader
from s3stream.objectstore import Buffer, CopyUnconfirmed, CopyUnsupported, ObjectStore, StoredRange
from tests.s3stream.doubles import PATHS, DictMetadata, PlainPayloads, offsets_of, payloads, upload
from tests.stores.fixtures import S3_SERVERS
from tests.stores.s3_server import S3Server

KIB, MIB = 1 << 10, 1 << 20
BLOCK_BYTES = 512 * KIB
INDEX_BYTES = 16 * KIB
"""What is read of an object that is copied."""
SETTINGS = CompactionSettings(
    fan_in=3,
    max_fan_in=4,
    object_size_bytes=16 * MIB,
    stream_object_max_bytes=4096 * MIB,
    memory_bytes=8 * MIB,
    rate_bytes_per_s=1 << 40,
)


class World:
    """A store, its metadata and a compactor."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.metadata = DictMetadata()
        self.metadata.create(1, 2)
        self.compactor = Compactor(
            store=store,
            paths=PATHS,
            metadata=self.metadata,
            settings=SETTINGS,
            block_size_bytes=BLOCK_BYTES,
            rng=random.Random(0),
        )

    async def fill(self, *counts: int, stream: int = 1, states: bool = False) -> None:
        """Upload objects of so many blocks."""
        for count in counts:
            at = self.metadata.committed_end_offset(StreamId(stream)) or 0
            await upload(
                self.store,
                self.metadata,
                {stream: payloads(at, at + count, size=BLOCK_BYTES)},
                states={stream: b"state at %d" % (at + count)} if states else {},
                block_size_bytes=BLOCK_BYTES,
            )

    async def settle(self) -> None:
        while await self.compactor.run_once():
            pass

    async def check(self, stream: int = 1) -> None:
        """Everything is readable, and every byte of every object as it should be."""
        reader = ObjectReader(
            store=self.store, paths=PATHS, metadata=self.metadata, payload_format=PlainPayloads(), settings=ReadSettings()
        )  # fmt: skip
        end = self.metadata.committed_end_offset(StreamId(stream)) or 0
        start = offset = self.metadata.log_start_offset(StreamId(stream)) or 0
        found: list[int] = []
        while offset < end:
            found += offsets_of(await reader.read(StreamId(stream), offset, end, 8 * MIB))
            offset = found[-1] + 1
        await reader.close()
        assert [each for each in found if each >= start] == [*range(start, end)]
        for live in self.metadata.live_objects():
            verify_object((await self.store.get(PATHS.data_object(live.object_id))).data, live.object_id)


@pytest.fixture(params=["local", "memory", *S3_SERVERS])
async def world(
    request: pytest.FixtureRequest, s3_server_named: Callable[[str], S3Server], tmp_path: Path
) -> AsyncIterator[World]:
    store: ObjectStore
    if request.param in S3_SERVERS:
        server = s3_server_named(request.param)
        store = server.open(server.new_bucket())
    else:
        store = LocalObjectStore(tmp_path / "objects") if request.param == "local" else MemoryObjectStore()
    yield World(store)
    await store.close()


async def test_every_store_is_made_use_of_as_far_as_it_goes(world: World) -> None:
    await world.fill(20, 18, 22, states=True)
    await world.settle()
    (merged,) = world.metadata.live_objects()
    assert world.compactor.copied_bytes == 60 * BLOCK_BYTES
    assert world.compactor.written_bytes == merged.size_bytes - world.compactor.copied_bytes
    await world.check()


async def test_little_ones_between_large_ones_are_joined_with_as_much_as_a_part_needs() -> None:
    world = World(MemoryObjectStore())
    await world.fill(20, 1, 1, 24, 24)
    sources = world.metadata.live_objects()
    await world.settle()
    (merged,) = world.metadata.live_objects()
    # Both small ones, and eight blocks of what follows: with ten blocks they make a part that S3 takes.
    assert world.compactor.copied_bytes == (20 + 16 + 24) * BLOCK_BYTES
    assert 10 * BLOCK_BYTES <= world.compactor.read_bytes <= 10 * BLOCK_BYTES + len(sources) * INDEX_BYTES
    assert {value.object_id for value in sources} == set(world.metadata.unreferenced)
    assert merged.ranges[0].record_count == 70
    await world.check()


async def test_states_between_large_ranges_cost_no_rewriting() -> None:
    world = World(MemoryObjectStore())
    for at in (0, 12, 24):
        await upload(
            world.store,
            world.metadata,
            {stream: payloads(at, at + 12, size=BLOCK_BYTES) for stream in (1, 2)},
            states=dict.fromkeys((1, 2), b"state at %d" % (at + 12)),
            block_size_bytes=BLOCK_BYTES,
        )
    await world.settle()
    assert world.compactor.copied_bytes == 2 * 36 * BLOCK_BYTES
    assert len(world.metadata.live_objects()) == 2, "one a stream"
    for stream in (1, 2):
        await world.check(stream)


async def test_what_retention_passed_is_not_copied() -> None:
    world = World(MemoryObjectStore())
    await world.fill(20, 20)
    await world.metadata.trim_streams({StreamId(1): 3})
    await world.fill(20)
    await world.settle()
    assert world.compactor.copied_bytes == 57 * BLOCK_BYTES
    await world.check()


async def test_damage_in_what_would_be_copied_is_found_out_and_left_where_it_is() -> None:
    store = MemoryObjectStore()
    world = World(store)
    await world.fill(20, 20, 20, 20)
    damaged = world.metadata.live_objects()[1].object_id
    store.bucket.flip_bit(PATHS.data_object(damaged), 8 * 5_000_000)
    await world.settle()
    assert damaged in {live.object_id for live in world.metadata.live_objects()}
    assert world.compactor.damaged_objects == 1
    await world.fill(20, 20, 20)  # and the store's copies are trusted again
    read_bytes = world.compactor.read_bytes
    await world.settle()
    assert world.compactor.read_bytes < read_bytes + BLOCK_BYTES, "indexes"
    assert world.compactor.copied_bytes > 60 * BLOCK_BYTES


class Unconfirming(MemoryObjectStore):
    """Copies, and tells no CRC."""

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> str:
        async def looked_at() -> AsyncIterator[Buffer | StoredRange]:
            async for part in parts:
                if isinstance(part, StoredRange) and part.crc32c is not None:
                    raise CopyUnconfirmed("no CRC")
                yield part

        return await super().put_composed(key, looked_at())


async def test_a_store_that_tells_no_crc_copies_what_was_read_and_checked() -> None:
    store = Unconfirming()
    world = World(store)
    await world.fill(20, 20, 20)
    damaged = world.metadata.live_objects()[1].object_id
    store.bucket.flip_bit(PATHS.data_object(damaged), 8 * 5_000_000)
    await world.settle()
    assert damaged in {live.object_id for live in world.metadata.live_objects()}
    await world.fill(20, 20, 20)
    await world.settle()
    assert world.compactor.copied_bytes == 80 * BLOCK_BYTES  # the third one and those that came since
    assert world.compactor.read_bytes >= 80 * BLOCK_BYTES


class WithoutCopies(MemoryObjectStore):
    """Does not have UploadPartCopy."""

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> str:
        raise CopyUnsupported("not implemented")


async def test_without_copies_everything_is_rewritten() -> None:
    world = World(WithoutCopies())
    await world.fill(20, 20, 20)
    await world.settle()
    assert len(world.metadata.live_objects()) == 1
    assert world.compactor.copied_bytes == 0
    assert world.compactor.written_bytes > 60 * BLOCK_BYTES
    await world.check()
