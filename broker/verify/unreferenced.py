"""What lies in the bucket and is not referenced: how long, and whether the collector should have taken it by now.

The promise (I8) holds while a broker runs. An idle one leaves no trace of running, so what can be said for sure is: from the
last registration of any node to the newest entry of the metadata log the cluster was alive. Only what outlived its bound
within that time is a finding.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from broker.inspect.bucket import Bucket
from broker.verify.findings import Finding, Kind, MultipartRow, UncheckedRow, UnreferencedRow
from controller.replica import Replica
from controller.tables import Tables
from s3stream.config import CollectionSettings
from s3stream.metadata import ObjectId
from s3stream.objectstore import ObjectSummary

__all__ = ["find_unreferenced"]

_SLACK: Final = 3
"""Rounds of the collector that may pass: it waits up to one and a half intervals, and an outage costs one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """When the cluster was surely alive, and how long it may leave things lying."""

    alive_from_ms: int
    alive_until_ms: int
    settings: CollectionSettings

    def is_overdue(self, since_ms: int, *, orphan: bool) -> bool:
        """Whether something that is unreferenced since a time should be gone."""
        settings = self.settings
        bound_ms = settings.kept_ms + _SLACK * settings.interval_ms
        if orphan:
            bound_ms = settings.orphan_age_ms + _SLACK * (settings.orphan_scan_interval_ms + settings.interval_ms)
        return self.alive_until_ms - max(since_ms, self.alive_from_ms) > bound_ms


async def find_unreferenced(
    bucket: Bucket, replica: Replica, settings: CollectionSettings, *, newest_at_ms: int
) -> AsyncIterator[UnreferencedRow | MultipartRow | Finding | UncheckedRow]:
    """List what nothing refers to.

    Args:
        replica: The metadata; brought up to date before anything is called overdue.
        newest_at_ms: When the newest entry of the metadata log was written.

    Raises:
        ControllerError, ObjectStoreError: it cannot be told.
    """
    now_ms = await bucket.store.now_ms()
    tables = replica.image.state.tables
    bounds = _Bounds(
        alive_from_ms=max((node.registered_at_ms for node in tables.nodes.values()), default=newest_at_ms),
        alive_until_ms=newest_at_ms,
        settings=settings,
    )
    async for summary in bucket.store.list(bucket.paths.data_prefix):
        object_id = bucket.paths.object_id(summary.key)
        if object_id is None:
            yield UncheckedRow(message=f"{summary.key} is not the key of a data object: who put it there?")
            continue
        tables = replica.image.state.tables  # may have been replaced by a snapshot meanwhile
        if object_id in tables.objects:
            continue
        status, since_ms, orphan = _status(tables, object_id, summary)
        yield UnreferencedRow(
            object_id=object_id,
            key=summary.key,
            status=status,
            size_bytes=summary.size_bytes,
            age_ms=max(0, now_ms - since_ms),
        )
        if bounds.is_overdue(since_ms, orphan=orphan):
            await replica.catch_up()
            if object_id not in replica.image.state.tables.objects and await _is_there(bucket, summary.key):
                yield Finding(
                    what=Kind.NOT_COLLECTED,
                    problem=f"it is {status} for longer than the collector takes, and still there",
                    key=summary.key,
                    object_id=object_id,
                )
    async for upload in bucket.store.list_multiparts(bucket.paths.data_prefix):
        yield MultipartRow(key=upload.key, age_ms=max(0, now_ms - upload.begun_ms))
        if bounds.is_overdue(upload.begun_ms, orphan=True):
            yield Finding(
                what=Kind.NOT_COLLECTED, problem="an upload was begun, never completed and not aborted", key=upload.key
            )


def _status(tables: Tables, object_id: ObjectId, summary: ObjectSummary) -> tuple[str, int, bool]:
    """Status, since when, and whether it is found by the rare listing only."""
    if (gone := tables.unreferenced.get(object_id)) is not None:
        return "unreferenced", gone.unreferenced_at_ms, False
    if object_id in tables.expired:
        return "expired, not deleted yet", summary.last_modified_ms, True
    if object_id in tables.gone:
        return "put again after it was expired and deleted", summary.last_modified_ms, True
    return "not committed (yet)", summary.last_modified_ms, True


async def _is_there(bucket: Bucket, key: str) -> bool:
    return any([summary.key == key async for summary in bucket.store.list(key)])
