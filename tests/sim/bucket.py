"""The bucket as the world sees it: what is written and deleted is held against the metadata log at that very moment.

Whoever wrote, and whether he still had a right to: the log in the bucket is the truth, and is followed here entry by entry, by the rule
that every node follows.

- An entry is written behind the one before it, or is litter below the floor (I9). It breaks no invariant of the metadata (I2, I3, I4, I5, I8).
- Objects are committed under the leader epoch that their streams have, so by nobody who was deposed (I4).
- What an entry refers to is there (I8), when it is written and until nothing refers to it any more.
- No object is deleted that is referenced, or that a commit may still refer to, because its id was not expired (I8).
- No entry is deleted that the floor promises, and not the snapshot that it names (I9).
- A replica that has applied as many entries is in the same state (I9): see `check_replica`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from controller import records
from controller.controller import Controller
from controller.entry import decode_entry
from controller.log import Floor
from controller.records import LeaderChanged
from controller.snapshot import digest
from controller.state import State
from s3stream.memory import Bucket
from s3stream.metadata import ObjectId
from s3stream.paths import Paths

__all__ = ["WatchedBucket"]


class WatchedBucket(Bucket):
    """See the module."""

    def __init__(self, paths: Paths, problems: list[str]) -> None:
        super().__init__()
        self.state = State()
        """What the log says."""
        self.next_index = 0
        """Index of the first entry that is not written."""
        self.litter = 0
        """Writes that came too late: entries below the floor, objects that were deleted."""
        self.counts: Counter[str] = Counter()
        """Records that count, by kind."""
        self.on_dead: Callable[[records.NodeDead], None] = lambda record: None
        """Called when a node is dead from now on."""
        self._floor = Floor(index=0, snapshot_index=-1)
        self._paths = paths
        self._problems = problems
        self._deleted: set[ObjectId] = set()
        self._broken = False

    def write(self, key: str, data: bytes, now_ms: int, *, absent: bool = False, etag: str | None = None) -> str:
        """Write if the condition holds, then look at what that means."""
        written = super().write(key, data, now_ms, absent=absent, etag=etag)
        paths = self._paths
        if (index := paths.log_index(key)) is not None:
            self._entry_written(index, data, key)
        elif key == paths.floor:
            floor = msgspec.json.decode(data, type=Floor)
            if floor.index < self._floor.index or floor.snapshot_index < self._floor.snapshot_index:
                self._problem(f"the floor went back from {self._floor} to {floor} (I9)")
            if paths.snapshot(floor.snapshot_index) not in self.objects:
                self._problem(f"the floor names snapshot {floor.snapshot_index}, which is not there (I9)")
            self._floor = floor
        elif (object_id := paths.object_id(key)) is not None and object_id in self._deleted:
            self.litter += 1
        return written

    def delete(self, keys: Iterable[str]) -> None:
        """Delete what exists of these, unless it is needed: then that is a problem."""
        keys = list(keys)
        for key in keys:
            if key in self.objects:
                self._about_to_delete(key)
        super().delete(keys)

    def check_replica(self, name: str, controller: Controller) -> None:
        """A replica that is up to date must be in the state that the log means (I9)."""
        if controller.applied_index >= self.next_index:
            self._problem(f"{name} applied entry {controller.applied_index}, which nobody wrote (I9)")
        elif controller.applied_index == self.next_index - 1 and digest(controller.image.state) != digest(self.state):
            self._problem(f"{name} is in another state as of entry {controller.applied_index} (I9)")

    def _entry_written(self, index: int, data: bytes, key: str) -> None:
        if index < self._floor.index:
            self.litter += 1
            return
        if index != self.next_index:
            self._problem(f"entry {index} was written where {self.next_index} is next (I9)")
            return
        self.next_index += 1
        entry = decode_entry(data, index, where=key)
        epoch = entry.header.controller_epoch
        first = entry.records[0] if entry.records else None
        if epoch > self.state.tables.controller_epoch and not isinstance(first, LeaderChanged):
            self._problem(f"entry {index} is of controller epoch {epoch}, which never took office (I9)")
        if epoch < self.state.tables.controller_epoch or self._broken:
            return
        for record in entry.records:
            if isinstance(record, records.ObjectCommitted):
                self._check_committer(index, record)
            try:
                self.state.check_and_apply(record)
            except Exception as error:  # a broken invariant, or an entry that cannot be applied
                self._broken = True  # the state is of no more use
                self._problem(f"entry {index}: {error!r}")
                return
            self.counts[type(record).__name__] += 1
            if isinstance(record, records.NodeDead):
                self.on_dead(record)
            for object_id in _referenced_by(record):
                if object_id in self.state.tables.objects and self._paths.data_object(object_id) not in self.objects:
                    self._problem(f"entry {index} refers to object {object_id}, which is not there (I8)")

    def _check_committer(self, index: int, record: records.ObjectCommitted) -> None:
        for value in record.ranges:
            stream = self.state.tables.streams.get(value.stream_id)
            if stream is not None and stream.leader_epoch != value.leader_epoch:
                self._problem(
                    f"entry {index} commits offsets {value.base_offset} to {value.end_offset} of stream {value.stream_id} under leader "
                    f"epoch {value.leader_epoch}, and {stream.leader_epoch} is the present one (I4)"
                )

    def _about_to_delete(self, key: str) -> None:
        paths, tables = self._paths, self.state.tables
        if (object_id := paths.object_id(key)) is not None:
            if object_id in tables.objects:
                self._problem(f"object {object_id} was deleted, and is referenced (I8)")
            elif object_id not in tables.gone:
                self._problem(f"object {object_id} was deleted, and may still be committed (I8)")
            self._deleted.add(object_id)
        elif (index := paths.log_index(key)) is not None:
            if index >= self._floor.index:
                self._problem(f"entry {index} was deleted, and the floor is {self._floor.index} (I9)")
        elif (index := paths.snapshot_index(key)) is not None and index == self._floor.snapshot_index:
            self._problem(f"snapshot {index} was deleted, and the floor names it (I9)")

    def _problem(self, what: str) -> None:
        self._problems.append(f"bucket: {what}")


def _referenced_by(record: object) -> Iterable[ObjectId]:
    """The objects that a record makes referenced."""
    match record:
        case records.ObjectCommitted():
            return (record.object_id,)
        case records.ObjectsCompacted():
            return tuple(new.object_id for new in record.objects)
        case _:
            return ()
