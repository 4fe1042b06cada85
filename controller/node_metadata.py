"""The metadata as one node's storage engine uses it: `s3stream.metadata.StreamMetadata`, bound to a registration.

Always true: every change carries the node epoch, so a superseded registration raises `NodeFenced` and changes nothing;
reads show the committed image.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from controller.commands import Command
from controller.image import Image
from controller.objects import AllocateObjectIds, AllocateProducerIds, Commit, ExpireObjects, ForgetObjects
from controller.streams import CloseStreams, OpenStreams, TrimStreams
from controller.tables import StreamState
from s3stream.metadata import (
    CommitObjects,
    CommitResult,
    NewObject,
    ObjectId,
    ObjectRange,
    OpenedStream,
    StreamId,
)

__all__ = ["CommandPort", "NodeMetadata"]

R = TypeVar("R")


class CommandPort(Protocol):
    """Where commands go: the controller, here or elsewhere."""

    @property
    def image(self) -> Image:
        """The committed image on this node."""

    def now_ms(self) -> int:
        """Wall-clock time, ms since the epoch."""

    async def submit(self, command: Command[R]) -> R:
        """Have a command decided and committed, and the image brought up to it. Raises its errors."""


class NodeMetadata:
    """Implements `StreamMetadata`; also what the collector and producer id allocation need."""

    def __init__(self, port: CommandPort, *, node_id: int, node_epoch: int, object_id_block_size: int) -> None:
        self._port = port
        self.node_id = node_id
        self.node_epoch = node_epoch
        self._object_id_block_size = object_id_block_size
        self._object_ids = range(0)
        self._allocation = asyncio.Lock()

    # ---- changes

    async def new_object_ids(self, count: int) -> Sequence[ObjectId]:
        """Ids never given out before; taken from the log in blocks, so that most calls cost nothing."""
        ids: list[ObjectId] = []
        async with self._allocation:
            while len(ids) < count:
                if not self._object_ids:
                    self._object_ids = await self._port.submit(
                        AllocateObjectIds(
                            node_id=self.node_id,
                            node_epoch=self.node_epoch,
                            count=max(self._object_id_block_size, count - len(ids)),
                        )
                    )
                taken = self._object_ids[: count - len(ids)]
                self._object_ids = self._object_ids[len(taken) :]
                ids.extend(map(ObjectId, taken))
        return ids

    async def allocate_producer_ids(self, count: int = 1_000) -> range:
        """A block of producer ids (KIP-730)."""
        return await self._port.submit(
            AllocateProducerIds(node_id=self.node_id, node_epoch=self.node_epoch, count=count)
        )

    async def commit_objects(self, commit: CommitObjects) -> CommitResult:
        """Reference new objects. Idempotent by object id. Raises ObjectExpired, SourcesChanged."""
        return await self._port.submit(
            Commit(node_id=self.node_id, node_epoch=self.node_epoch, commit=commit, at_ms=self._port.now_ms())
        )

    async def open_streams(self, stream_ids: Sequence[StreamId]) -> Sequence[OpenedStream]:
        """Open streams on this node's WAL; deleted ones, and those that another node holds, are left out of the answer."""
        if not stream_ids:
            return ()
        return await self._port.submit(
            OpenStreams(node_id=self.node_id, node_epoch=self.node_epoch, stream_ids=tuple(stream_ids))
        )

    async def close_streams(self, end_offsets: Mapping[StreamId, int]) -> None:
        """Close streams, all committed up to the given ends (else StreamNotDrained); those held no more are left alone."""
        if end_offsets:
            await self._port.submit(
                CloseStreams(node_id=self.node_id, node_epoch=self.node_epoch, end_offsets=dict(end_offsets))
            )

    async def trim_streams(self, log_start_offsets: Mapping[StreamId, int]) -> None:
        """Raise log start offsets, each at most to the committed end: trim again after the next upload for more."""
        if log_start_offsets:
            await self._port.submit(
                TrimStreams(
                    node_id=self.node_id,
                    node_epoch=self.node_epoch,
                    log_start_offsets=dict(log_start_offsets),
                    at_ms=self._port.now_ms(),
                )
            )

    async def expire_objects(self, object_ids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        """Make ids unusable for ever; returns those whose objects may now be deleted (referenced ones are left out)."""
        return await self._port.submit(ExpireObjects(object_ids=tuple(object_ids))) if object_ids else ()

    async def forget_objects(self, object_ids: Sequence[ObjectId]) -> None:
        """Report expired objects as deleted from the store."""
        if object_ids:
            await self._port.submit(ForgetObjects(object_ids=tuple(object_ids)))

    # ---- reads

    def locate(self, stream_id: StreamId, offset: int, *, limit: int = 16) -> Sequence[ObjectRange]:
        """Committed ranges from the one that holds `offset` on. Empty at or past the committed end."""
        stream = self._stream(stream_id)
        if stream is None:
            return ()
        first = stream.index_of(offset)
        return self._located(stream, first, first + limit)

    def ranges(self, stream_id: StreamId) -> Sequence[ObjectRange]:
        """All committed ranges of a stream, in offset order."""
        stream = self._stream(stream_id)
        return () if stream is None else self._located(stream, 0, len(stream.ranges))

    def newest_state(self, stream_id: StreamId) -> ObjectRange | None:
        """The last range with a state block, even where retention has since passed its data."""
        stream = self._stream(stream_id)
        if stream is None or stream.newest_state is None:
            return None
        object_id, value = stream.newest_state
        size_bytes = self._port.image.state.tables.objects[object_id].size_bytes
        return ObjectRange(object_id=object_id, size_bytes=size_bytes, range=value.value())

    def live_objects(self) -> Sequence[NewObject]:
        """Every referenced object with the ranges that streams still need, by object id."""
        tables = self._port.image.state.tables
        return [
            NewObject(
                object_id=object_id,
                size_bytes=entry.size_bytes,
                ranges=tuple(value.value() for value in tables.live_ranges(entry)),
            )
            for object_id, entry in sorted(tables.objects.items())
        ]

    def committed_end_offset(self, stream_id: StreamId) -> int | None:
        """Exclusive end of what objects hold; None for an unknown or deleted stream."""
        stream = self._stream(stream_id)
        return None if stream is None else stream.committed_end_offset

    def log_start_offset(self, stream_id: StreamId) -> int | None:
        """First offset that may be read; None for an unknown or deleted stream."""
        stream = self._stream(stream_id)
        return None if stream is None else stream.log_start_offset

    def is_referenced(self, object_id: ObjectId) -> bool:
        """True while a stream needs the object: it must not be deleted (I8)."""
        return object_id in self._port.image.state.tables.objects

    def unreferenced_before(self, time_ms: int) -> Sequence[ObjectId]:
        """Objects that have been unreferenced since before a time, and are not yet expired."""
        found = self._port.image.state.tables.unreferenced.items()
        return sorted(object_id for object_id, value in found if value.unreferenced_at_ms < time_ms)

    def expired_objects(self) -> Sequence[ObjectId]:
        """Objects that were expired and not yet reported as deleted."""
        return list(self._port.image.state.tables.expired)

    def _stream(self, stream_id: StreamId) -> StreamState | None:
        return self._port.image.state.tables.streams.get(stream_id)

    def _located(self, stream: StreamState, first: int, last: int) -> list[ObjectRange]:
        objects = self._port.image.state.tables.objects
        return [
            ObjectRange(object_id=object_id, size_bytes=objects[object_id].size_bytes, range=value.value())
            for object_id, value in zip(stream.object_ids[first:last], stream.ranges[first:last], strict=True)
        ]
