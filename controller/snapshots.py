"""Takes snapshots of the metadata beside further commits, and deletes the entries that none needs any more.

Always true: one at a time, by the node that leads. The floor is raised before entries are deleted, and only past what leads to no point of
the restore window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.config import ControllerSettings
from controller.log import Floor, MetadataLog
from controller.replica import Replica
from controller.snapshot import capture
from wal import crashpoint

__all__ = ["Snapshots"]


class Snapshots:
    """Of one controller."""

    def __init__(
        self,
        log: MetadataLog,
        replica: Replica,
        *,
        settings: ControllerSettings,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._log = log
        self._replica = replica
        self._settings = settings
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether one is being taken."""
        return self._task is not None

    def consider(self) -> None:
        """Take one if enough was written since the last one."""
        replica = self._replica
        due = replica.entries_since_snapshot >= self._settings.snapshot_interval_entries or (
            replica.bytes_since_snapshot >= max(self._settings.snapshot_interval_bytes, replica.snapshot_size_bytes)
        )
        if due and self._task is None:
            self._task = asyncio.create_task(self._take(), name="metadata-snapshot")

    async def _take(self) -> None:
        replica = self._replica
        try:
            taken = capture(replica.image.state, replica.next_index - 1)
            replica.entries_since_snapshot = replica.bytes_since_snapshot = 0
            replica.snapshot_size_bytes = await self._log.put_snapshot(taken)
            crashpoint.reach("metadata.snapshot")
            base, window_ms = taken.index, self._settings.restore_window_ms
            if window_ms:
                base = await self._log.restore_base(window_ms)
            first = min(base + 1, taken.index + 1 - self._settings.retained_entries)
            floor = Floor(index=max(first, 0), snapshot_index=taken.index)
            await self._log.delete_below(await self._log.raise_floor(floor), base=base)
        except Exception as error:
            self._on_failure(error)
        finally:
            self._task = None

    async def close(self) -> None:
        """Give up the one under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
