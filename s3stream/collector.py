"""Deletes what nothing refers to any more: expire, then delete, then forget.

Always true:
- An object is deleted only after its id was expired: from then on no commit can refer to it (I8). The metadata refuses
  to expire what is referenced, and its answer, not our question, says what is deleted.
- Between the un-reference and the deletion lies a grace period, in which reads that began before come to their end; and the
  restore window, in which an operator may take the metadata back to where the object was referenced. Their end is told by
  the slower one of two clocks, this machine's, which stamped the un-reference, and the store's. A stamp of the future is believed by
  neither: then the wait begins when it is seen.
- A crash anywhere is made up for by the next round: what is expired and not forgotten is deleted (again).
- Orphans, put but never committed (their uploader died, or its commit was refused), are found by listing the bucket, and
  treated as unreferenced once they are older than any upload is retried. Their age is by the store's own clock. No point of
  the past references them, so they do not wait for the restore window.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from s3stream.config import CollectionSettings
from s3stream.errors import MetadataUnavailable
from s3stream.metadata import ObjectId
from s3stream.objectstore import ObjectStore, ObjectStoreError
from s3stream.paths import Paths

__all__ = ["CollectionMetadata", "Collector"]

_log = logging.getLogger("tidelog.collection")

_END_OF_TIME_MS = 1 << 63
"""Later than any time that a clock has told."""


class CollectionMetadata(Protocol):
    """What collection needs of the metadata log. Its coroutines raise MetadataUnavailable."""

    def unreferenced_before(self, time_ms: int) -> Sequence[ObjectId]:
        """Objects that have been unreferenced since before a time, and are not yet expired."""

    def expired_objects(self) -> Sequence[ObjectId]:
        """Objects that were expired and not yet reported as deleted."""

    def is_referenced(self, object_id: ObjectId) -> bool:
        """True while a stream needs the object."""

    async def expire_objects(self, object_ids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        """Make ids unusable for ever; returns those that may be deleted (not: referenced ones)."""

    async def forget_objects(self, object_ids: Sequence[ObjectId]) -> None:
        """Report expired objects as deleted from the store."""


class Collector:
    """Deletes in the background, or step by step."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        paths: Paths,
        metadata: CollectionMetadata,
        settings: CollectionSettings,
        now_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._paths = paths
        self._metadata = metadata
        self._settings = settings
        self._now_ms = now_ms
        self._rng = rng
        self._seen_ahead_ms: dict[ObjectId, int] = {}
        """What was un-referenced at a time that is still to come, and since when that is known here, by the store's clock."""
        self.deleted_objects = 0
        self.orphans = 0
        """Of the deleted ones."""

    async def run(self) -> None:
        """Collect until cancelled."""
        loop = asyncio.get_running_loop()
        # Orphans are looked for soon after a start: a crash is what makes them.
        next_scan = loop.time() + self._settings.interval_ms / 1000
        while True:
            await asyncio.sleep(self._settings.interval_ms / 1000 * (0.5 + self._rng.random()))
            try:
                await self.collect()
                if loop.time() >= next_scan:
                    await self.collect_orphans()
                    next_scan = loop.time() + self._settings.orphan_scan_interval_ms / 1000
            except (ObjectStoreError, MetadataUnavailable) as error:
                _log.warning("collection put off: %(error)s", {"error": error})

    async def collect(self) -> int:
        """Delete what was expired earlier and what has been unreferenced for long enough; returns how many."""
        deleted = 0
        for batch in self._batches(self._metadata.expired_objects()):
            deleted += await self._delete(batch)
        for batch in self._batches(await self._due()):
            deleted += await self._delete(await self._metadata.expire_objects(batch))
        return deleted

    async def _due(self) -> Sequence[ObjectId]:
        """What has been unreferenced for long enough. The store is asked for its time only where it matters."""
        kept_ms = self._settings.kept_ms
        due = self._metadata.unreferenced_before(self._now_ms() - kept_ms)
        if due and self._settings.restore_window_ms:
            now_ms = min(self._now_ms(), await self._store.now_ms())
            due = self._metadata.unreferenced_before(now_ms - kept_ms)
        return due

    async def collect_orphans(self) -> int:
        """Delete objects that were never committed, and abort uploads never completed; returns how many objects."""
        now_ms = await self._store.now_ms()
        in_care = self._in_care(now_ms)
        oldest_ms = now_ms - self._settings.orphan_age_ms
        deleted = 0
        batch: list[ObjectId] = []
        async for found in self._store.list(self._paths.data_prefix):
            object_id = self._paths.object_id(found.key)
            if object_id is None or found.last_modified_ms >= oldest_ms or self._metadata.is_referenced(object_id):
                continue
            if object_id in in_care:
                continue
            batch.append(object_id)
            if len(batch) == self._settings.batch_size:
                deleted += await self._delete_orphans(batch)
                batch = []
        deleted += await self._delete_orphans(batch)
        # At last, since it takes rights of its own.
        await self._store.abort_stale_multiparts(self._paths.data_prefix, oldest_ms)
        return deleted

    def _in_care(self, now_ms: int) -> set[ObjectId]:
        """What is merely unreferenced: `collect` deletes it when its time has come.

        A clock that ran ahead, and was put right, stamped a time to come. It may be years away, and tells nothing but that the un-reference
        was before it was seen here: so the wait begins there, by the store's clock, and then it is an orphan.
        """
        unreferenced = set(self._metadata.unreferenced_before(_END_OF_TIME_MS))
        ahead = unreferenced.difference(self._metadata.unreferenced_before(now_ms + 1))
        self._seen_ahead_ms = {object_id: self._seen_ahead_ms.get(object_id, now_ms) for object_id in ahead}
        kept_ms = self._settings.kept_ms
        waited = {object_id for object_id, seen_ms in self._seen_ahead_ms.items() if seen_ms + kept_ms < now_ms}
        return unreferenced - waited

    async def _delete_orphans(self, object_ids: Sequence[ObjectId]) -> int:
        """What was un-referenced since the scan began has its grace period."""
        in_grace = set(self._metadata.unreferenced_before(_END_OF_TIME_MS)).difference(self._seen_ahead_ms)
        orphans = [object_id for object_id in object_ids if object_id not in in_grace]
        deleted = await self._delete(await self._metadata.expire_objects(orphans)) if orphans else 0
        self.orphans += deleted
        return deleted

    async def _delete(self, expired: Sequence[ObjectId]) -> int:
        """Delete objects whose ids are expired."""
        if not expired:
            return 0
        await self._store.delete_many([self._paths.data_object(object_id) for object_id in expired])
        await self._metadata.forget_objects(expired)
        self.deleted_objects += len(expired)
        return len(expired)

    def _batches(self, object_ids: Sequence[ObjectId]) -> list[Sequence[ObjectId]]:
        size = self._settings.batch_size
        return [object_ids[begin : begin + size] for begin in range(0, len(object_ids), size)]
