"""Checks one object: that it is there, whole, intact, and holds what the metadata says.

Always true: the first thing that is wrong ends the look where the rest follows from it (a footer that is damaged hides
the index), and does not where it does not (one damaged block says nothing of the next).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from broker.inspect.index import Tail, read_footer, read_index, read_tail
from broker.verify.batches import data_block_problem, state_block_problem
from broker.verify.findings import Finding, Kind
from controller.records import ObjectCommitted, Range
from s3stream.errors import ForeignObject, ObjectCorrupt
from s3stream.metadata import ObjectId, StreamId
from s3stream.object_format import BlockKind, IndexEntry, ObjectIndex, check_block
from s3stream.objectstore import NotFound, ObjectStore, Unavailable
from s3stream.paths import Paths
from wal.checksum import combine_crc32c

__all__ = ["Checked", "ObjectGone", "check_object"]

READ_BYTES: Final = 4 << 20
"""Blocks read at a time, of each object under check (more only for one larger block)."""


_ATTEMPTS: Final = 3
"""To read an object that vanishes while it is read; once is what collection may do."""


class ObjectGone(Exception):
    """It vanished while it was read: collected meanwhile, or lost."""


@dataclass(slots=True)
class Checked:
    """What came of one object."""

    object_id: ObjectId
    findings: list[Finding] = field(default_factory=list)
    blocks: int = 0
    batches: int = 0
    read_bytes: int = 0


class _Check:
    """One object under check."""

    def __init__(
        self, store: ObjectStore, paths: Paths, entry: ObjectCommitted, log_starts: dict[StreamId, int]
    ) -> None:
        self._store = store
        self._entry = entry
        self._key = paths.data_object(entry.object_id)
        self._log_starts = log_starts
        self.result = Checked(entry.object_id)

    async def run(self, *, bodies: bool) -> None:
        try:
            tail = await read_tail(self._store, self._key)
        except NotFound:
            self._missing()
            return
        self.result.read_bytes += len(tail.data)
        index = await self._index(tail)
        if index is None:
            return
        self._body_crc(index)
        for value in self._entry.ranges:
            self._range(index, value)
        if bodies:
            for run in _runs(index):
                await self._blocks(run)

    def _add(self, what: Kind, problem: str, value: Range | IndexEntry | None = None) -> None:
        self.result.findings.append(
            Finding(
                what=what,
                problem=problem,
                key=self._key,
                object_id=self._entry.object_id,
                stream_id=None if value is None else value.stream_id,
                base_offset=None if value is None else value.base_offset,
                end_offset=None if value is None else value.end_offset,
            )
        )

    def _said(self, error: ObjectCorrupt) -> str:
        return str(error).removeprefix(f"object {self._entry.object_id}: ")

    def _missing(self) -> None:
        """One finding for each range that cannot be read."""
        for value in self._entry.ranges:
            self._add(Kind.OBJECT_MISSING, "the metadata refers to it, and it is not in the store", value)

    async def _index(self, tail: Tail) -> ObjectIndex | None:
        object_id, committed = self._entry.object_id, self._entry.size_bytes
        try:
            footer = read_footer(tail, object_id)
        except ForeignObject as error:
            self._add(Kind.OBJECT_FOREIGN, self._said(error))
            return None
        except ObjectCorrupt as error:
            if tail.object_size_bytes != committed:
                self._add(
                    Kind.OBJECT_SIZE,
                    f"it has {tail.object_size_bytes} bytes, {committed} were committed, and it does not end with a footer",
                )
            else:
                self._add(Kind.OBJECT_FOOTER, self._said(error))
            return None
        if footer.object_size_bytes != committed:
            self._add(Kind.OBJECT_SIZE, f"it has {footer.object_size_bytes} bytes, {committed} were committed")
            return None
        try:
            return await read_index(self._store, self._key, tail, footer)
        except ObjectCorrupt as error:
            self._add(Kind.OBJECT_INDEX, self._said(error))
            return None

    def _body_crc(self, index: ObjectIndex) -> None:
        """The CRCs of the blocks together must be that of everything before the index."""
        body = 0
        for entry in index.entries():
            body = combine_crc32c(body, entry.crc32c, entry.size_bytes)
        if body != index.footer.body_crc32c:
            self._add(
                Kind.OBJECT_BODY,
                f"its blocks together have CRC {body:08x} by the index, and {index.footer.body_crc32c:08x} by the footer",
            )

    def _range(self, index: ObjectIndex, value: Range) -> None:
        """What the index lists of one stream is what was committed."""
        entries = list(index.data_entries(value.stream_id))
        problem = _range_problem(entries, value, self._log_starts.get(value.stream_id))
        if problem is not None:
            self._add(Kind.OBJECT_RANGES, problem, value)
        state = index.state_entry(value.stream_id)
        if value.has_state and state is None:
            self._add(Kind.OBJECT_RANGES, "a state block was committed with it, and the index lists none", value)
        elif state is not None and state.end_offset > value.end_offset:
            self._add(Kind.OBJECT_RANGES, f"its state block is as of {state.end_offset}, past its end", value)

    async def _blocks(self, run: list[IndexEntry]) -> None:
        start = run[0].position
        try:
            data = memoryview(await self._store.get_range(self._key, start, run[-1].position + run[-1].size_bytes))
        except NotFound:
            raise ObjectGone from None
        self.result.read_bytes += len(data)
        for entry in run:
            at = entry.position - start
            block = data[at : at + entry.size_bytes]
            self.result.blocks += 1
            try:
                check_block(self._entry.object_id, entry, block)
            except ObjectCorrupt:
                end = entry.position + entry.size_bytes
                self._add(Kind.OBJECT_BLOCK, f"bytes {entry.position} to {end} do not match their CRC", entry)
                continue
            if entry.kind == BlockKind.STATE:
                problem = state_block_problem(entry, bytes(block))
                if problem is not None:
                    self._add(Kind.STATE, problem, entry)
            else:
                problem, batches = data_block_problem(entry, block)
                self.result.batches += batches
                if problem is not None:
                    self._add(Kind.BATCHES, problem, entry)


async def check_object(
    store: ObjectStore, paths: Paths, entry: ObjectCommitted, log_starts: dict[StreamId, int], *, bodies: bool
) -> Checked:
    """Check a referenced object.

    Args:
        log_starts: Of its streams: compaction leaves out what retention has passed.
        bodies: Read the blocks too.

    Raises:
        ObjectStoreError: the store does not answer.
        UnsupportedObjectFormat: a newer version wrote it.
    """
    for _ in range(_ATTEMPTS):
        check = _Check(store, paths, entry, log_starts)
        try:
            await check.run(bodies=bodies)
        except ObjectGone:
            continue  # it is told as missing, or was put back
        return check.result
    raise Unavailable(f"it comes and goes: {_ATTEMPTS} times its end could be read, and then not the rest")


def _range_problem(entries: list[IndexEntry], value: Range, log_start_offset: int | None) -> str | None:
    records = sum(entry.record_count for entry in entries)
    size_bytes = sum(entry.size_bytes for entry in entries)
    max_timestamp_ms = max((entry.max_timestamp_ms for entry in entries), default=-1)
    found = (records, size_bytes, max_timestamp_ms)
    told = (value.record_count, value.size_bytes, value.max_timestamp_ms)
    if found != told:
        return (
            f"its index lists {found[0]} records in {found[1]} bytes with largest timestamp {found[2]}, committed were "
            f"{told[0]}, {told[1]} and {told[2]}"
        )
    if not entries:
        return None
    if entries[0].base_offset < value.base_offset or entries[-1].end_offset > value.end_offset:
        return f"its index lists offsets from {entries[0].base_offset} to {entries[-1].end_offset}"
    if any(entry.leader_epoch > value.leader_epoch for entry in entries):
        return f"its index lists blocks of a leader epoch above {value.leader_epoch}, under which they were committed"
    dense = all(entry.record_count == entry.end_offset - entry.base_offset for entry in entries)
    if log_start_offset is None:
        return None  # a deleted topic's: what retention had passed before is not known any more
    passed = max(value.base_offset, log_start_offset)
    if dense and entries[0].base_offset > passed:
        return f"its index lists nothing below {entries[0].base_offset}, though the log starts at {passed}"
    return None


def _runs(index: ObjectIndex) -> Iterator[list[IndexEntry]]:
    """Neighbouring blocks that are read together."""
    run: list[IndexEntry] = []
    size_bytes = 0
    for entry in index.entries():
        if run and size_bytes + entry.size_bytes > READ_BYTES:
            yield run
            run, size_bytes = [], 0
        run.append(entry)
        size_bytes += entry.size_bytes
    if run:
        yield run
