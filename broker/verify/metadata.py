"""Checks the metadata: its objects are there and intact, and log and snapshots make one state, which breaks no invariant.

Always true:
- The log is replayed from as far back as the bucket allows, by the rule that every node applies, up to its end.
- A snapshot that the replay passes must stand for the same state, hash for hash (I9). One that lies before all entries
  that are left can only be decoded; the replay begins with it.
- Entries that vanish while they are read were deleted below a raised floor, or are lost: the floor, read afterwards, tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from broker.inspect.bucket import Bucket, stream_name
from broker.verify.findings import Finding, Kind, UncheckedRow
from controller.entry import Entry, decode_entry
from controller.errors import MetadataCorrupt
from controller.image import Image
from controller.invariants import violations
from controller.log import Floor
from controller.replica import Replica
from controller.snapshot import digest
from controller.state import State
from s3stream.objectstore import NotFound

__all__ = ["MetadataCheck"]

_READ_AHEAD: Final = 32
"""Entries asked for at once."""
_MAX_RESTARTS: Final = 10
"""How often the log may be cut off under a replay before we give up: it takes minutes of it each time."""


class _CutOff(Exception):
    """The floor was raised past the entry that is next."""


@dataclass(slots=True)
class MetadataCheck:
    """One pass over the metadata; what it counts and comes to is here afterwards."""

    bucket: Bucket
    replica: Replica | None = None
    """The state at the log's end; None where the log does not lead there."""
    cluster_id: str = ""
    entries: int = 0
    snapshots: int = 0
    compared_snapshots: int = 0
    replayed_from: int = -1
    newest_at_ms: int = -1
    """When the newest entry was written: the last sign of life."""
    _digests: dict[int, str] = field(default_factory=dict)

    async def run(self) -> AsyncIterator[Finding | UncheckedRow]:
        """Check, telling findings as they come.

        Raises:
            UnsupportedMetadata: a newer version wrote it.
            ObjectStoreError: the store does not answer.
        """
        async for finding in self._marker_and_leader():
            yield finding
        for _ in range(_MAX_RESTARTS):
            try:
                floor = await self.bucket.log.read_floor()
            except MetadataCorrupt as error:
                yield Finding(what=Kind.FLOOR, problem=error.problem, key=self.bucket.paths.floor)
                return
            findings: list[Finding] = []
            try:
                await self._replay(floor, findings)
            except _CutOff:
                continue  # what was found belongs to a log that is gone
            for finding in findings:
                yield finding
            break
        else:
            yield UncheckedRow(message="snapshots are taken faster than the metadata log can be read: try again")
            return
        if self.replica is None:
            yield UncheckedRow(message="data objects: the metadata does not tell (any more) which there must be")
            return
        tables = self.replica.image.state.tables
        if self.cluster_id and tables.cluster_id != self.cluster_id:
            yield Finding(
                what=Kind.CLUSTER_MARKER,
                problem=f"it names cluster {self.cluster_id}, the metadata log is that of {tables.cluster_id}",
                key=self.bucket.paths.cluster,
            )
        async for finding in self._leader(tables.controller_epoch):
            yield finding

    async def _marker_and_leader(self) -> AsyncIterator[Finding]:
        paths = self.bucket.paths
        try:
            marker = await self.bucket.log.read_marker()
            if marker is None:
                yield Finding(what=Kind.CLUSTER_MARKER, problem="it is not there", key=paths.cluster)
            else:
                self.cluster_id = marker.cluster_id
        except MetadataCorrupt as error:
            yield Finding(what=Kind.CLUSTER_MARKER, problem=error.problem, key=paths.cluster)

    async def _leader(self, controller_epoch: int) -> AsyncIterator[Finding]:
        key = self.bucket.paths.leader
        try:
            leader = await self.bucket.log.read_leader()
        except MetadataCorrupt as error:
            yield Finding(what=Kind.LEADER, problem=error.problem, key=key)
            return
        if leader is None:
            yield Finding(what=Kind.LEADER, problem="it is not there, and the log has entries", key=key)
        elif self.replica is not None and await self._ends_before(self.replica, leader.next_index):
            first = self.replica.next_index
            yield Finding(
                what=Kind.LOG_ENTRY_MISSING,
                problem=f"entries {first} to {leader.next_index - 1} are not there, and the leader object says that they were",
                key=self.bucket.paths.log_entry(first),
            )
        elif leader.controller_epoch < controller_epoch:
            yield Finding(
                what=Kind.LEADER,
                problem=f"it has controller epoch {leader.controller_epoch}, the log has entries of {controller_epoch}",
                key=key,
            )

    async def _ends_before(self, replica: Replica, next_index: int) -> bool:
        if replica.next_index < next_index:
            await replica.catch_up()  # a broker writes on
        return replica.next_index < next_index

    # ---- log and snapshots

    async def _replay(self, floor: Floor, findings: list[Finding]) -> None:
        self.replica, self.entries, self.snapshots, self.compared_snapshots = None, 0, 0, 0
        self._digests = {}
        base = await self._read_snapshots(floor, findings)
        if base is None:
            return
        replica = Replica(self.bucket.log)
        if base[0] >= 0:
            replica.show(base[1], base[0])
        self.replayed_from = base[0]
        if await self._apply_all(replica, findings):
            self.replica = replica
            findings += _invariants(replica.image, f"as of entry {replica.next_index - 1}")

    async def _read_snapshots(self, floor: Floor, findings: list[Finding]) -> tuple[int, State] | None:
        """Decode every snapshot; the state that the replay begins with is the oldest that the log goes on from."""
        base: tuple[int, State] | None = (-1, State()) if floor.index == 0 else None
        listed = []
        async for summary in self.bucket.store.list(self.bucket.paths.snapshot_prefix):
            index = self.bucket.paths.snapshot_index(summary.key)
            if index is not None:
                listed.append(index)
        for index in listed:
            key = self.bucket.paths.snapshot(index)
            try:
                loaded = await self.bucket.log.load_snapshot(index)
            except MetadataCorrupt as error:
                findings.append(Finding(what=Kind.SNAPSHOT_DAMAGED, problem=error.problem, key=key))
                continue
            if loaded is None:
                if index >= floor.snapshot_index:
                    await self._refuse_cut(floor)
                continue  # an old one, deleted meanwhile
            state = loaded[0]
            self.snapshots += 1
            self._digests[index] = digest(state)
            if base is None and index >= floor.index - 1:
                base = (index, state)
        if floor.snapshot_index >= 0 and floor.snapshot_index not in listed:
            await self._refuse_cut(floor)
            findings.append(
                Finding(
                    what=Kind.SNAPSHOT_DAMAGED,
                    problem="the floor names it, and it is not there",
                    key=self.bucket.paths.snapshot(floor.snapshot_index),
                )
            )
        return base

    async def _refuse_cut(self, floor: Floor) -> None:
        """Begin again where the floor is another one by now."""
        if await self.bucket.log.read_floor() != floor:
            raise _CutOff

    async def _apply_all(self, replica: Replica, findings: list[Finding]) -> bool:
        """Apply what follows, up to the end of the log; tells whether it was reached."""
        whole = True
        async for index, found in self._entries(replica.next_index):
            key = self.bucket.paths.log_entry(index)
            if found is None:
                findings.append(_missing(key, index))
                whole = False
            elif isinstance(found, MetadataCorrupt):
                findings.append(Finding(what=Kind.LOG_ENTRY_DAMAGED, problem=found.problem, key=key))
                whole = False
            elif whole:
                self.entries += 1
                try:
                    replica.apply(found)
                except (MetadataCorrupt, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
                    findings.append(
                        Finding(
                            what=Kind.REPLAY,
                            problem=f"it cannot be applied to what the entries before it make: {error!r}",
                            key=key,
                        )
                    )
                    whole = False
                else:
                    self._compare(replica, index, findings)
        return whole

    def _compare(self, replica: Replica, index: int, findings: list[Finding]) -> None:
        expected = self._digests.get(index)
        if expected is None:
            return
        if digest(replica.image.state) == expected:
            self.compared_snapshots += 1
            return
        findings.append(
            Finding(
                what=Kind.REPLAY,
                problem=f"the log, replayed up to entry {index}, makes another state than this snapshot holds",
                key=self.bucket.paths.snapshot(index),
            )
        )

    async def _entries(self, index: int) -> AsyncIterator[tuple[int, Entry | MetadataCorrupt | None]]:
        """Entries in sequence up to the last one; None for one that is missing before it."""
        while True:
            wanted = range(index, index + _READ_AHEAD)
            found = await asyncio.gather(*(self._entry(each) for each in wanted))
            last = wanted[-1] if None not in found else await self._last_index(index)
            for each, entry in zip(wanted, found, strict=True):
                if last is None or each > last:
                    return
                # One that was being written when we asked is there by now.
                entry = entry if entry is not None else await self._entry(each)
                if each == index or entry is None:
                    await self._refuse_raised(each)
                yield each, entry
            index = wanted.stop

    async def _refuse_raised(self, index: int) -> None:
        """What was read at an index counts only if the floor, read afterwards, is at or below it."""
        if (await self.bucket.log.read_floor()).index > index:
            raise _CutOff

    async def _entry(self, index: int) -> Entry | MetadataCorrupt | None:
        key = self.bucket.paths.log_entry(index)
        try:
            return decode_entry((await self.bucket.store.get(key)).data, index, where=key)
        except NotFound:
            return None
        except MetadataCorrupt as error:
            return error

    async def _last_index(self, index: int) -> int | None:
        """The last entry in the bucket from an index on."""
        last = None
        async for summary in self.bucket.store.list(
            self.bucket.paths.log_prefix, start_after=self.bucket.paths.log_entry(max(index - 1, 0))
        ):
            found = self.bucket.paths.log_index(summary.key)
            if found is not None and found >= index:
                last = found
                self.newest_at_ms = max(self.newest_at_ms, summary.last_modified_ms)
        return last


def _missing(key: str, index: int) -> Finding:
    return Finding(what=Kind.LOG_ENTRY_MISSING, problem=f"entry {index} is not there, later ones are", key=key)


def _invariants(image: Image, when: str) -> list[Finding]:
    """What the state breaks."""
    found = []
    for each in violations(image.state.tables):
        stream = None if each.stream_id is None else image.state.tables.streams[each.stream_id]
        found.append(
            Finding(
                what=Kind.METADATA_INVARIANT,
                problem=f"{each.predicate} is broken {when}: {'' if stream is None else 'the stream '}{each.message}",
                stream_id=each.stream_id,
                partition=None if each.stream_id is None else stream_name(image, each.stream_id) or None,
                base_offset=None if stream is None else stream.log_start_offset,
                end_offset=None if stream is None else stream.committed_end_offset,
            )
        )
    return found
