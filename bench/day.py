"""What a bucket is billed for after a day, by the planner of compaction alone: `python -m bench.day`.

`bench.cost` lives through a load; this only asks what would be merged, and counts requests and bytes of that. So a day takes seconds.

Always true:
- The planner is the real one, with a broker's default settings; all partitions are alike, and have the same rate.
- Of very many partitions only some are looked at: as many as share an object after their first merge. What all share (uploads, their entries
  in the metadata log, reads of uploads) is counted by their part of it.
- States, snapshots and collection are left out: some one per cent of bytes and requests.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from broker.config import BrokerSettings
from broker.shares import storage_settings
from s3stream.compaction import choose_sources, growth, plan_outputs, rewrites
from s3stream.config import StorageSettings
from s3stream.metadata import NewObject, ObjectId, StreamId, StreamRange
from s3stream.objectstore import LEAST_COPY_BYTES
from s3stream.splicing import MAX_COPY_BYTES

__all__ = ["Day", "Load", "day_of"]

_GB = 1e9
_DOLLARS_PER_PUT = 0.005 / 1000
_DOLLARS_PER_GET = 0.0004 / 1000
_READ_SHARE = 0.75
"""Of compaction's memory: for what it reads."""
_ARENA_SHARE = 0.7
_BEFORE_SHARE = 0.9
_MOST_RANGES = 10_000
"""As in `s3stream.second_upload`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A steady rate of many partitions that are alike."""

    partitions: int
    partition_bytes_per_s: float
    looked_at: int
    """Of the partitions."""
    upload_interval_s: float = 5.0
    hours: float = 24
    uploads_between_looks: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What it came to, of the partitions that are looked at."""

    load: Load
    produced_bytes: int
    puts: float
    gets: float
    sent_bytes: int
    most_ranges: int
    """Of a partition that wait to be merged, or are too large for that."""

    def per_gb(self, count: float) -> float:
        """Of what there is so much of."""
        return count / (self.produced_bytes / _GB)

    @property
    def dollars_an_hour(self) -> float:
        """Of requests, for all partitions."""
        share = self.load.partitions / self.load.looked_at
        return (self.puts * _DOLLARS_PER_PUT + self.gets * _DOLLARS_PER_GET) * share / self.load.hours


class _Model:
    def __init__(self, load: Load, settings: StorageSettings) -> None:
        self._load = load
        self._storage = settings
        self._share = load.looked_at / load.partitions
        self._settings = replace(
            settings.compaction, max_waiting_ranges=int(settings.compaction.max_waiting_ranges * self._share)
        )
        self._objects: dict[ObjectId, NewObject] = {}
        self._uploads: set[ObjectId] = set()
        """Of the objects: not merged yet, and shared by all partitions."""
        self._row: list[ObjectId] = []
        """Of them, those that are still in memory."""
        self._next_id = 0
        self._end_offset = 0
        self.puts = self.gets = 0.0
        self.sent_bytes = 0

    def upload(self, size_bytes: int) -> None:
        """One object, with so much of each partition."""
        offset, self._end_offset = self._end_offset, self._end_offset + 1
        ranges = [_range(number, offset, offset + 1, size_bytes) for number in range(self._load.looked_at)]
        object_id = self._add(ranges, size_bytes * self._load.partitions)
        self._uploads.add(object_id)
        self._row.append(object_id)
        self._commit(self._share)
        self.puts += self._share
        self.sent_bytes += size_bytes * self._load.looked_at
        self._upload_again(size_bytes)

    def compact(self) -> None:
        """All jobs that there are."""
        while sources := choose_sources(list(self._objects.values()), self._settings, whole=self._objects):
            buffer_bytes = int(self._settings.memory_bytes * _READ_SHARE) // len(sources)
            plan = plan_outputs(
                sources, log_start_offset_of=lambda _: 0, newest_state_of=lambda _: None, settings=self._settings
            )
            read: set[ObjectId] = set()
            for output in plan.outputs:
                copies = written = 0
                for planned in output.ranges:
                    for object_id, piece in planned.pieces:
                        if piece.size_bytes >= LEAST_COPY_BYTES:
                            copies += math.ceil(piece.size_bytes / MAX_COPY_BYTES)
                        else:
                            written += piece.size_bytes
                            read.add(object_id)
                self.sent_bytes += written
                # Copies are parts; what lies behind the last one is a part, and beginning and completion are requests.
                self.puts += copies + 3 if copies else _parts(written, self._storage)
                ranges = [
                    replace(
                        planned.pieces[0][1], end_offset=planned.pieces[-1][1].end_offset, size_bytes=planned.size_bytes
                    )
                    for planned in output.ranges
                ]
                self._add(ranges, sum(value.size_bytes for value in ranges))
            of_uploads = all(each.object_id in self._uploads for each in sources)
            self._commit(self._share if of_uploads else 1.0)
            for each in sources:
                requests = 1 if each.size_bytes <= buffer_bytes or each.object_id not in read else 2
                self.gets += requests * (self._share if each.object_id in self._uploads else 1.0)
                self._remove(each.object_id)
            self._row = [object_id for object_id in self._row if object_id in self._objects]

    def most_ranges(self) -> int:
        """Of any partition."""
        return max(Counter(value.stream_id for each in self._objects.values() for value in each.ranges).values())

    def _upload_again(self, size_bytes: int) -> None:
        """See `s3stream.second_upload`."""
        count = len(self._row)
        partitions = self._load.partitions
        wanted = max(min(growth(size_bytes, self._settings), self._settings.max_fan_in), self._settings.fan_in)
        is_due = (
            count * size_bytes * partitions >= self._storage.arena_bytes * _ARENA_SHARE
            or (count + 1) * partitions > _MOST_RANGES
            or count >= _BEFORE_SHARE * wanted
        )
        if not is_due:
            return
        row, self._row = self._row, []
        merged_bytes = size_bytes * count
        spares = 1 + rewrites(merged_bytes, self._settings) <= rewrites(size_bytes, self._settings)
        if not spares or count < _BEFORE_SHARE * self._settings.fan_in:
            return
        first, last = (self._objects[row[number]].ranges[0] for number in (0, -1))
        for object_id in row:
            self._remove(object_id)
        per_object = max(1, self._storage.upload_size_bytes // merged_bytes)
        for begin in range(0, self._load.looked_at, per_object):
            numbers = range(begin, min(begin + per_object, self._load.looked_at))
            ranges = [_range(number, first.base_offset, last.end_offset, merged_bytes) for number in numbers]
            self._add(ranges, sum(value.size_bytes for value in ranges))
            self.puts += 1
            self.sent_bytes += merged_bytes * len(ranges)
        self._commit(self._share)

    def _commit(self, share: float) -> None:
        """An entry of the metadata log, and a look whether it counts."""
        self.puts += share
        self.gets += share

    def _add(self, ranges: list[StreamRange], size_bytes: int) -> ObjectId:
        self._next_id += 1
        object_id = ObjectId(self._next_id)
        self._objects[object_id] = NewObject(object_id=object_id, size_bytes=size_bytes, ranges=tuple(ranges))
        return object_id

    def _remove(self, object_id: ObjectId) -> None:
        del self._objects[object_id]
        self._uploads.discard(object_id)


def day_of(load: Load, settings: StorageSettings) -> Day:
    """Count what a load comes to."""
    model = _Model(load, settings)
    bytes_per_s = load.partitions * load.partition_bytes_per_s
    upload_bytes = min(bytes_per_s * load.upload_interval_s, settings.upload_size_bytes)
    size_bytes = int(upload_bytes / load.partitions)
    uploads = int(load.hours * 3600 * bytes_per_s / upload_bytes)
    most_ranges = 0
    for number in range(1, uploads + 1):
        model.upload(size_bytes)
        if number % load.uploads_between_looks == 0:
            most_ranges = max(most_ranges, model.most_ranges())
            model.compact()
    return Day(
        load=load,
        produced_bytes=uploads * size_bytes * load.looked_at,
        puts=model.puts,
        gets=model.gets,
        sent_bytes=model.sent_bytes,
        most_ranges=most_ranges,
    )


def _range(number: int, base_offset: int, end_offset: int, size_bytes: int) -> StreamRange:
    return StreamRange(
        stream_id=StreamId(number),
        leader_epoch=1,
        base_offset=base_offset,
        end_offset=end_offset,
        record_count=1,
        size_bytes=size_bytes,
        max_timestamp_ms=0,
        has_state=False,
    )


def _parts(size_bytes: int, settings: StorageSettings) -> int:
    """Requests of a multipart upload, of one that fits in a part one."""
    part_bytes = settings.object_store.multipart_part_size_bytes
    return 1 if size_bytes <= part_bytes else math.ceil(size_bytes / part_bytes) + 2


_LOADS = (
    Load(partitions=10, partition_bytes_per_s=10e6, looked_at=10, hours=2, uploads_between_looks=20),
    Load(partitions=100, partition_bytes_per_s=100e3, looked_at=20, uploads_between_looks=13),
    Load(partitions=1000, partition_bytes_per_s=10e3, looked_at=12, uploads_between_looks=25),
    Load(partitions=10_000, partition_bytes_per_s=1024, looked_at=600, uploads_between_looks=32),
    Load(partitions=40, partition_bytes_per_s=75e3, looked_at=40),
    Load(partitions=40, partition_bytes_per_s=10e3, looked_at=40),
    Load(partitions=40, partition_bytes_per_s=10e3, looked_at=40, upload_interval_s=60),
    Load(partitions=100, partition_bytes_per_s=4e3, looked_at=100),
)


def main() -> None:
    """Print a line for each load."""
    settings = storage_settings(BrokerSettings())
    print(
        "| partitions | KB/s each | upload each, s | hours | PUT | GET | bytes up | dollars an hour | ranges of a partition |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for load in _LOADS:
        day = day_of(load, settings)
        print(
            f"| {load.partitions:,} | {load.partition_bytes_per_s / 1000:,g} | {load.upload_interval_s:g} | {load.hours:g}"
            f" | {day.per_gb(day.puts):,.0f} | {day.per_gb(day.gets):,.0f} | {day.sent_bytes / day.produced_bytes:.2f}"
            f" | {day.dollars_an_hour:.4f} | {day.most_ranges} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
