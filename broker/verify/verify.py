"""The whole check: metadata first, then every referenced object, then what is not referenced."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from broker.inspect.bucket import Bucket, stream_name
from broker.inspect.rows import Row
from broker.verify.findings import ADVICE, Finding, MultipartRow, SummaryRow, UncheckedRow, UnreferencedRow
from broker.verify.metadata import MetadataCheck
from broker.verify.objects import Checked, check_object
from broker.verify.unreferenced import find_unreferenced
from broker.verify.wals import check_wals, find_offline
from controller.errors import ControllerError
from controller.records import ObjectCommitted
from controller.replica import Replica
from s3stream.config import CollectionSettings
from s3stream.errors import UnsupportedObjectFormat
from s3stream.metadata import ObjectId, StreamId
from s3stream.objectstore import ObjectStoreError
from wal.config import ObjectWalConfig

__all__ = ["DEFAULT_PARALLEL", "Progress", "Verification"]

DEFAULT_PARALLEL: Final = 8
"""Objects checked at a time, each with up to two reads of 4 MiB in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it is."""

    objects: int
    of_objects: int
    read_bytes: int
    findings: int


@dataclass(slots=True, kw_only=True)
class Verification:
    """One run; `rows` gives what it finds, the summary last."""

    bucket: Bucket
    settings: CollectionSettings
    """The brokers', for how long an unreferenced object may stay."""
    wal: ObjectWalConfig | None = None
    """Where the nodes' WALs are, if that is a bucket."""
    quick: bool = False
    parallel: int = DEFAULT_PARALLEL
    on_progress: Callable[[Progress], None] = lambda progress: None
    findings: int = 0
    unchecked: int = 0
    _counted: Checked = field(default_factory=lambda: Checked(ObjectId(0)))
    _objects: int = 0
    _of_objects: int = 0
    _unreferenced: int = 0
    _unreferenced_bytes: int = 0
    _unfinished: int = 0

    async def rows(self) -> AsyncIterator[Row]:
        """Check everything.

        Raises:
            UnsupportedMetadata: a newer version wrote the metadata.
            ObjectStoreError: the store does not answer.
        """
        metadata = MetadataCheck(self.bucket)
        at_ms = await self.bucket.store.now_ms()
        async for found in metadata.run():
            yield self._told(found, None)
        replica = metadata.replica
        if replica is not None:
            for offline in find_offline(replica.image):
                yield self._told(offline, replica)
            if self.wal is not None:
                async for of_wal in check_wals(self.wal, replica.image):
                    yield self._told(of_wal, replica)
            async for finding in self._check_objects(replica):
                yield self._told(finding, replica)
            try:
                async for row in find_unreferenced(
                    self.bucket, replica, self.settings, newest_at_ms=metadata.newest_at_ms
                ):
                    yield self._told(row, replica)
            except (ControllerError, ObjectStoreError) as error:
                yield self._told(UncheckedRow(message=f"unreferenced objects: {error}"), None)
        tables = None if replica is None else replica.image.state.tables
        yield SummaryRow(
            uri=self.bucket.store.uri,
            cluster_id=metadata.cluster_id,
            next_index=0 if replica is None else replica.next_index,
            at_ms=at_ms,
            quick=self.quick,
            entries=metadata.entries,
            snapshots=metadata.snapshots,
            replayed_from=metadata.replayed_from,
            compared_snapshots=metadata.compared_snapshots,
            partitions=0 if tables is None else len(tables.streams),
            objects=self._objects,
            blocks=self._counted.blocks,
            batches=self._counted.batches,
            read_bytes=self._counted.read_bytes,
            unreferenced_objects=self._unreferenced,
            unreferenced_bytes=self._unreferenced_bytes,
            unfinished_uploads=self._unfinished,
            unchecked=self.unchecked,
            findings=self.findings,
        )

    def _told(self, row: Row, replica: Replica | None) -> Row:
        """Count a row, and complete a finding."""
        match row:
            case Finding():
                self.findings += 1
                partition = row.partition
                if partition is None and row.stream_id is not None and replica is not None:
                    partition = stream_name(replica.image, row.stream_id) or None
                return msgspec.structs.replace(row, partition=partition, advice=row.advice or ADVICE[row.what])
            case UncheckedRow():
                self.unchecked += 1
            case UnreferencedRow():
                self._unreferenced += 1
                self._unreferenced_bytes += row.size_bytes
            case MultipartRow():
                self._unfinished += 1
        return row

    async def _check_objects(self, replica: Replica) -> AsyncIterator[Finding | UncheckedRow]:
        entries = [entry for _, entry in sorted(replica.image.state.tables.objects.items())]
        self._of_objects = len(entries)
        async for entry, checked in self._in_parallel(replica, entries):
            self._objects += 1
            if isinstance(checked, UncheckedRow):
                yield checked
            else:
                self._counted.blocks += checked.blocks
                self._counted.batches += checked.batches
                self._counted.read_bytes += checked.read_bytes
                for finding in await self._confirmed(replica, entry, checked):
                    yield finding
            self.on_progress(
                Progress(
                    objects=self._objects,
                    of_objects=self._of_objects,
                    read_bytes=self._counted.read_bytes,
                    findings=self.findings,
                )
            )

    async def _in_parallel(
        self, replica: Replica, entries: Iterable[ObjectCommitted]
    ) -> AsyncIterator[tuple[ObjectCommitted, Checked | UncheckedRow]]:
        """Check objects, so many at a time; results in their order."""
        under_way: deque[tuple[ObjectCommitted, asyncio.Task[Checked | UncheckedRow]]] = deque()
        try:
            for entry in entries:
                if len(under_way) >= self.parallel:
                    first, task = under_way.popleft()
                    yield first, await task
                under_way.append((entry, asyncio.get_running_loop().create_task(self._check(replica, entry))))
            while under_way:
                first, task = under_way.popleft()
                yield first, await task
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    async def _check(self, replica: Replica, entry: ObjectCommitted) -> Checked | UncheckedRow:
        try:
            return await check_object(
                self.bucket.store, self.bucket.paths, entry, _log_starts(replica, entry), bodies=not self.quick
            )
        except (UnsupportedObjectFormat, ObjectStoreError) as error:
            return UncheckedRow(message=f"object {entry.object_id}: {error}")

    async def _confirmed(
        self, replica: Replica, entry: ObjectCommitted, checked: Checked
    ) -> list[Finding] | list[UncheckedRow]:
        """Findings that hold against the metadata as it is by now: what nothing refers to any more may be gone."""
        if not checked.findings:
            return []
        try:
            await replica.catch_up()
        except (ControllerError, ObjectStoreError) as error:
            return [UncheckedRow(message=f"object {entry.object_id}, whether it is still referenced: {error}")]
        tables = replica.image.state.tables
        if entry.object_id not in tables.objects:
            return []
        live = {value.stream_id for value in tables.live_ranges(entry)}
        return [each for each in checked.findings if each.stream_id is None or each.stream_id in live]


def _log_starts(replica: Replica, entry: ObjectCommitted) -> dict[StreamId, int]:
    streams = replica.image.state.tables.streams
    return {
        value.stream_id: streams[value.stream_id].log_start_offset
        for value in entry.ranges
        if value.stream_id in streams
    }
