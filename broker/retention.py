"""Retention: raises log start offsets past records that are too old or too many (`cleanup.policy` with `delete`).

Always true:
- What goes is decided by whole ranges of objects, as Kafka decides by whole segments: a range goes when its newest record
  is too old, or when what follows it alone reaches the size to be kept. So a little more is kept than was asked, never less.
- Records without a timestamp have no age. The tail that is not in objects yet is always kept.
- A partition whose state is being rebuilt keeps everything: that state comes from its records.
- Nothing goes by age while this machine's clock and the object store's differ by minutes: one of them is wrong, and what
  retention deletes does not come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from broker.errors import KafkaError
from broker.partition import Partition
from s3stream.errors import StorageError
from s3stream.metadata import ObjectRange, StreamMetadata
from s3stream.objectstore import ObjectStoreError

__all__ = ["MAX_CLOCK_DIFFERENCE_MS", "Retention", "retained_from"]

log = logging.getLogger("tidelog.retention")

MAX_CLOCK_DIFFERENCE_MS = 300_000
"""Clocks of machines in order differ by milliseconds; S3 itself refuses requests from fifteen minutes on."""

_LOOKS_AT_A_TIME = 50
"""Partitions looked at before other work gets its turn."""

_LOOKS_AT_INTERVAL_S = 1.0
"""How soon a shorter `log.retention.check.interval.ms` is noticed."""

_TRIMS_AT_A_TIME = 100
"""They become one entry in the metadata log."""


def retained_from(
    ranges: Sequence[ObjectRange], *, retention_ms: int, retention_bytes: int, now_ms: int | None
) -> int | None:
    """The offset from which records are kept, None where everything is.

    Args:
        ranges: All of a stream's, in order.
        retention_ms: -1 keeps records of any age.
        retention_bytes: -1 keeps any amount.
        now_ms: None where the clock is not to be trusted: nothing goes by age.
    """
    excess_bytes = sum(found.range.size_bytes for found in ranges) - retention_bytes
    kept_from: int | None = None
    for found in ranges:
        newest_ms = found.range.max_timestamp_ms
        too_old = retention_ms >= 0 and now_ms is not None and 0 <= newest_ms < now_ms - retention_ms
        excess_bytes -= found.range.size_bytes
        too_many = retention_bytes >= 0 and excess_bytes >= 0
        if not too_old and not too_many:
            break
        kept_from = found.range.end_offset
    return kept_from


class Retention:
    """Applies retention to the partitions of a node."""

    def __init__(
        self,
        *,
        partitions: Callable[[], Iterable[Partition]],
        metadata: StreamMetadata,
        store_now_ms: Callable[[], Awaitable[int]],
        now_ms: Callable[[], int],
        interval_ms: Callable[[], int],
    ) -> None:
        self._partitions = partitions
        self._metadata = metadata
        self._store_now_ms = store_now_ms
        self._now_ms = now_ms
        self._interval_ms = interval_ms
        self.raised_log_starts = 0
        """Since start."""

    async def run(self) -> None:
        """Apply it until cancelled."""
        while True:
            await self._sleep()
            try:
                await self.apply()
            except ObjectStoreError as error:
                log.warning("retention put off: %(error)s", {"error": error})

    async def _sleep(self) -> None:
        """Until the interval is over; it may become shorter meanwhile."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            left_s = began + self._interval_ms() / 1000 - loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, _LOOKS_AT_INTERVAL_S))

    async def apply(self) -> int:
        """Look at every partition once; returns how many log starts were raised.

        Raises:
            ObjectStoreError: the store does not tell its time.
        """
        asked_ms = self._now_ms()
        store_ms = await self._store_now_ms()
        # An answer that took long, or that found this process asleep, says no more than that its time lies between.
        difference_ms = max(asked_ms - store_ms, store_ms - self._now_ms())
        now_ms: int | None = asked_ms
        if difference_ms > MAX_CLOCK_DIFFERENCE_MS:
            log.error(
                "nothing goes by age, since the clocks here and in the object store differ: by %(difference_s)d s; %(advice)s",
                {"difference_s": difference_ms // 1000, "advice": "set this machine's clock, or the store's"},
            )
            now_ms = None
        due: list[tuple[Partition, int]] = []
        for at, partition in enumerate(self._partitions()):
            if at % _LOOKS_AT_A_TIME == _LOOKS_AT_A_TIME - 1:
                await asyncio.sleep(0)
            config, stream = partition.config, partition.stream
            if (
                not config.delete
                or not partition.loaded
                or stream.closed is not None
                or (config.retention_ms < 0 and config.retention_bytes < 0)
            ):
                continue
            ranges = self._metadata.locate(stream.stream_id, stream.log_start_offset, limit=1)
            if config.retention_bytes >= 0 or _may_go(ranges, config.retention_ms, now_ms):
                ranges = self._metadata.ranges(stream.stream_id)
            offset = retained_from(
                ranges,
                retention_ms=config.retention_ms,
                retention_bytes=config.retention_bytes,
                now_ms=now_ms,
            )
            if offset is not None and offset > stream.log_start_offset:
                due.append((partition, offset))
        raised = 0
        for at in range(0, len(due), _TRIMS_AT_A_TIME):
            part = due[at : at + _TRIMS_AT_A_TIME]
            raised += sum(await asyncio.gather(*(_trim(partition, offset) for partition, offset in part)))
        self.raised_log_starts += raised
        return raised


def _may_go(first: Sequence[ObjectRange], retention_ms: int, now_ms: int | None) -> bool:
    """Whether the oldest range is too old, and so all of them worth looking at."""
    return retained_from(first, retention_ms=retention_ms, retention_bytes=-1, now_ms=now_ms) is not None


async def _trim(partition: Partition, offset: int) -> bool:
    """Raise one log start; False where that is not possible now, which is no reason to leave out the others."""
    try:
        await partition.trim(offset)
    except (ObjectStoreError, StorageError, KafkaError) as error:
        log.warning("retention put off: %(error)s (%(partition)s)", {"partition": partition, "error": error})
        return False
    log.info(
        "retention raised a log start: %(partition)s now starts at offset %(log_start_offset)d",
        {"partition": partition, "log_start_offset": partition.stream.log_start_offset},
    )
    return True
