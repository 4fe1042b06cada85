"""The storage engine over a real file WAL, again and again on what outlives it, for tests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from s3stream.config import MIB, StorageSettings
from s3stream.errors import StorageError
from s3stream.instrumented import InstrumentedObjectStore
from s3stream.memory import Bucket, MemoryObjectStore
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    NewObject,
    ObjectId,
    ObjectRange,
    OpenedStream,
    SkipReason,
    StreamId,
)
from s3stream.object_reader import ObjectReader
from s3stream.paths import Paths
from s3stream.storage import Storage
from s3stream.stream import Stream
from tests.s3stream.doubles import PlainPayloads, payload
from tests.stores.process import PROCESSES
from wal.arena import Arena
from wal.open import open_wal

ONE, TWO = StreamId(1), StreamId(2)

everywhere = pytest.mark.parametrize("durable", ["memory", *PROCESSES], indirect=True)
"""What holds without any faults is held on real stores as well; the others have theirs in memory, where faults are made in it."""


class Metadata:
    """The metadata port in a dictionary, with the commit rules of the real one. Outlives the engines of a test."""

    def __init__(self) -> None:
        self.starts: dict[StreamId, int] = {ONE: 0, TWO: 0}
        self.ends: dict[StreamId, int] = {ONE: 0, TWO: 0}
        self.epochs: dict[StreamId, int] = {ONE: 0, TWO: 0}
        self.objects: dict[ObjectId, NewObject] = {}
        self.closed: dict[StreamId, int] = {}
        self.least_epochs: dict[StreamId, int] = {}
        self.created = {ONE, TWO}
        self._next_id = 0

    def was_created(self, stream_id: StreamId) -> bool:
        return stream_id in self.created

    def create(self, stream_ids: Sequence[StreamId]) -> None:
        self.created.update(stream_ids)
        for known in (self.starts, self.ends, self.epochs):
            known.update(dict.fromkeys(stream_ids, 0))

    def delete(self, stream_id: StreamId) -> None:
        for known in (self.starts, self.ends, self.epochs):
            del known[stream_id]

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        self._next_id += count
        return [ObjectId(number) for number in range(self._next_id - count, self._next_id)]

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        skipped: dict[StreamId, SkipReason] = {}
        for item in commit.objects:
            for found in item.ranges:
                if found.stream_id not in self.ends:
                    skipped[found.stream_id] = SkipReason.DELETED
                elif found.leader_epoch != self.epochs[found.stream_id]:
                    skipped[found.stream_id] = SkipReason.FENCED
                elif found.base_offset != self.ends[found.stream_id]:
                    skipped[found.stream_id] = SkipReason.NOT_CONTIGUOUS
                else:
                    self.ends[found.stream_id] = found.end_offset
            self.objects[item.object_id] = item
        return CommitResult(skipped=skipped)

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> Sequence[OpenedStream]:
        opened = []
        for stream_id in stream_ids:
            if stream_id in self.ends:
                self.epochs[stream_id] += 1
                opened.append(
                    OpenedStream(
                        stream_id=stream_id,
                        leader_epoch=self.epochs[stream_id],
                        log_start_offset=self.starts[stream_id],
                        committed_end_offset=self.ends[stream_id],
                        least_leader_epoch=self.least_epochs.get(stream_id, 0),
                    )
                )
        return opened

    async def close_streams(self, end_offsets: Mapping[StreamId, int], leader_epochs: Mapping[StreamId, int]) -> None:
        assert leader_epochs == {
            stream_id: self.epochs[stream_id] for stream_id in end_offsets if stream_id in self.ends
        }
        self.closed.update(end_offsets)

    async def trim_streams(self, log_start_offsets: Mapping[StreamId, int]) -> None:
        for stream_id, offset in log_start_offsets.items():
            assert offset <= self.ends[stream_id], "trimmed past what is committed"
        self.starts.update(log_start_offsets)

    def locate(self, stream_id: StreamId, offset: int, *, limit: int = 16) -> Sequence[ObjectRange]:
        return [found for found in self.ranges(stream_id) if found.range.end_offset > offset][:limit]

    def ranges(self, stream_id: StreamId) -> Sequence[ObjectRange]:
        if stream_id not in self.ends:
            return []
        return sorted(
            (
                ObjectRange(object_id=item.object_id, size_bytes=item.size_bytes, range=found)
                for item in self.objects.values()
                for found in item.ranges
                if found.stream_id == stream_id
            ),
            key=lambda found: found.range.base_offset,
        )

    def newest_state(self, stream_id: StreamId) -> ObjectRange | None:
        return next((found for found in reversed(self.ranges(stream_id)) if found.range.has_state), None)

    def live_objects(self) -> Sequence[NewObject]:
        return list(self.objects.values())

    def committed_end_offset(self, stream_id: StreamId) -> int | None:
        return self.ends.get(stream_id)


class Durable:
    """What outlives an engine: the WAL's directory, the bucket, the metadata. `engine` starts one incarnation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bucket = Bucket()
        self.metadata = Metadata()
        self.store: Any = MemoryObjectStore(self.bucket)
        self.failures: list[BaseException] = []
        self.wal_capacity = "4MiB"
        self.arena_bytes = 8 * MIB
        self.upload_interval_ms = 60_000
        self.stream_ids = [ONE, TWO]

    @asynccontextmanager
    async def engine(self, *, close: bool = True) -> AsyncIterator[tuple[Storage, dict[StreamId, Stream]]]:
        """One incarnation; with close=False it ends as a crash does, without upload."""
        settings = StorageSettings(
            arena_bytes=self.arena_bytes,
            upload_interval_ms=self.upload_interval_ms,
            upload_size_bytes=1 * MIB,
            stream_object_min_bytes=512 << 10,
        )
        arena = Arena(self.arena_bytes)
        wal = await open_wal(
            f"file://{self.path}?capacity={self.wal_capacity}",
            arena=arena,
            cluster_id="test",
            node_id=0,
            rng=random.Random(1),
        )
        paths = Paths("p")
        reader = ObjectReader(
            store=self.store,
            paths=paths,
            metadata=self.metadata,
            payload_format=PlainPayloads(),
            settings=settings.read,
        )
        storage = Storage(
            wal=wal,
            arena=arena,
            metadata=self.metadata,
            store=self.store,
            paths=paths,
            reader=reader,
            payload_format=PlainPayloads(),
            settings=settings,
            rng=random.Random(2),
            on_failed=self.failures.append,
        )
        try:
            streams = await storage.start(self.stream_ids)
            storage.run()
            yield storage, streams
        finally:
            outage, self.store.outage = self.store.outage, self.store.outage or not close
            await storage.close(timeout_s=20 if close else 0)
            self.store.outage = outage


class RealStore(InstrumentedObjectStore):
    """A bucket with the switch that the store in memory has."""

    @property
    def outage(self) -> bool:
        return self.failing

    @outage.setter
    def outage(self, value: bool) -> None:
        self.failing = value


def put(
    storage: Storage,
    stream: Stream,
    size: int = 100,
    *,
    count: int = 1,
    timestamp_ms: int = 0,
    on_done: Callable[[StorageError | None], None] | None = None,
) -> bytes | None:
    """Append one payload; None where there is no room."""
    view = storage.reserve(size)
    if view is None:
        return None
    made = payload(stream.next_offset, count=count, size=size, timestamp_ms=timestamp_ms).data
    view[:] = made
    storage.append(stream, count, timestamp_ms, on_done)
    return bytes(made)


async def put_durably(storage: Storage, stream: Stream, size: int = 100, **how: int) -> bytes:
    """Append one payload and wait for its acknowledgement, and for room before that."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_done(error: StorageError | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    while (sent := put(storage, stream, size, on_done=on_done, **how)) is None:
        await storage.room()
    await done
    return sent


async def contents(stream: Stream, offset: int = 0) -> list[bytes]:
    """Everything from an offset on."""
    return [
        bytes(buffer[position : position + PlainPayloads().bounds(buffer, position).size_bytes])
        async for buffer, positions in stream.replay(offset)
        for position in positions
    ]
