"""A source of a compaction: its index, and its blocks, read front to back.

Always true:
- Every block is checked against its CRC; one that does not match, an index that cannot be trusted, records that were committed and
  are not here, or an object that the store has put into an archive are `DamagedSource`.
- Of a small object the whole is read at once. Of others the index is, in one request as a rule, since what was committed tells
  how large it may be; then comes one request for all that is needed and lies together (see `sequential`), however long its reader takes.
- What is kept in memory is the index, and about `buffer_bytes`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from s3stream.errors import ObjectCorrupt, UnsupportedObjectFormat
from s3stream.metadata import NewObject, ObjectId, StreamId, StreamRange
from s3stream.object_format import (
    FOOTER_SIZE_BYTES,
    INDEX_ENTRY_SIZE_BYTES,
    IndexEntry,
    ObjectIndex,
    check_block,
    parse_footer,
)
from s3stream.objectstore import LEAST_COPY_BYTES, Archived, Buffer, ObjectStore
from s3stream.sequential import SKIPPED_BYTES, SequentialReader

__all__ = ["CompactionSource", "DamagedSource", "tail_size_bytes"]

_LEAST_TAIL_BYTES: Final = 16 << 10
_MOST_TAIL_BYTES: Final = 4 << 20
_KEPT_TAIL_BYTES: Final = 4 << 10
"""What lies before the index and is read with it: in an object of one stream its state."""


class DamagedSource(Exception):
    """A source cannot be trusted; the cause says why."""

    def __init__(self, object_id: ObjectId) -> None:
        super().__init__(f"object {object_id}")
        self.object_id = object_id


def tail_size_bytes(source: NewObject, block_size_bytes: int) -> int:
    """How much of an object's end has its index, as far as what was committed tells: two neighbouring blocks have more than
    `block_size_bytes` together, and each stream may have a state."""
    blocks = sum(2 + 2 * value.size_bytes // block_size_bytes for value in source.ranges)
    size = FOOTER_SIZE_BYTES + blocks * INDEX_ENTRY_SIZE_BYTES + _KEPT_TAIL_BYTES
    return min(max(size, _LEAST_TAIL_BYTES), _MOST_TAIL_BYTES)


class CompactionSource:
    """Made by `open`; closed by whoever opened it."""

    def __init__(self, object_id: ObjectId, index: ObjectIndex, reader: SequentialReader, held: bytes) -> None:
        """Take the parts; `held` is what is here of the bytes before the index."""
        self.object_id = object_id
        self._index = index
        self._reader = reader
        end = index.footer.index_position
        self._held_from = index.block_start(end - len(held))
        self._held = memoryview(held)[len(held) - (end - self._held_from) :]
        self._runs: list[tuple[int, int]] = []
        """Of bytes that are needed next, without large gaps; ascending."""
        self._goes_on_until = 0
        """What is needed later begins behind them, and ends here; 0: nothing is known."""
        self._last_stream_id = StreamId(-1)
        self._has_large = False

    @classmethod
    async def open(
        cls,
        store: ObjectStore,
        key: str,
        source: NewObject,
        *,
        buffer_bytes: int,
        block_size_bytes: int,
        on_received: Callable[[int], Awaitable[None]],
    ) -> CompactionSource:
        """Read the index.

        Args:
            block_size_bytes: at which blocks are usually cut.

        Raises:
            NotFound: it is gone.
            DamagedSource: it cannot be used.
        """
        object_id = source.object_id
        is_small = source.size_bytes <= buffer_bytes
        wanted = source.size_bytes if is_small else tail_size_bytes(source, block_size_bytes)
        try:
            tail, object_size = await store.get_tail(key, max(wanted, FOOTER_SIZE_BYTES))
        except Archived as error:
            raise DamagedSource(object_id) from error
        await on_received(len(tail))
        try:
            footer = parse_footer(tail, object_size, object_id)
            at = len(tail) - FOOTER_SIZE_BYTES - footer.index_size_bytes
            if at >= 0:
                raw, held = tail[at : at + footer.index_size_bytes], tail[:at]
            else:
                end = footer.index_position + footer.index_size_bytes
                raw, held = bytes(await store.get_range(key, footer.index_position, end)), b""
                await on_received(len(raw))
            index = ObjectIndex(footer, raw)
        except (ObjectCorrupt, UnsupportedObjectFormat) as error:
            raise DamagedSource(object_id) from error
        reader = SequentialReader(store, key, buffer_bytes=buffer_bytes, on_received=on_received)
        return cls(object_id, index, reader, held if is_small else held[-_KEPT_TAIL_BYTES:])

    async def close(self) -> None:
        """Read no more."""
        await self._reader.close()

    def entries(self, piece: StreamRange, needed_offset: int) -> list[IndexEntry]:
        """The data blocks of a range that are still needed."""
        entries = list(self._index.data_entries(piece.stream_id))
        held = sum(entry.record_count for entry in entries)
        outside = entries and not (
            piece.base_offset <= entries[0].base_offset and entries[-1].end_offset <= piece.end_offset
        )
        if held != piece.record_count or outside:
            raise DamagedSource(self.object_id) from ObjectCorrupt(
                f"object {self.object_id} does not hold what was committed: stream {piece.stream_id}, offsets"
                f" {piece.base_offset} to {piece.end_offset} (exclusive), {piece.record_count} records, but {held}"
            )
        return [entry for entry in entries if entry.end_offset > needed_offset]

    def state_entry(self, stream_id: StreamId) -> IndexEntry:
        """The state block that the metadata says is here."""
        entry = self._index.state_entry(stream_id)
        if entry is None:
            raise DamagedSource(self.object_id) from ObjectCorrupt(
                f"object {self.object_id} does not hold the state of stream {stream_id} that was committed"
            )
        return entry

    def will_give(self, piece: StreamRange) -> None:
        """Something of this range is needed, sooner or later."""
        self._last_stream_id = max(self._last_stream_id, piece.stream_id)
        self._has_large = self._has_large or piece.size_bytes >= LEAST_COPY_BYTES

    def expect(self, entries: Iterable[IndexEntry], *, is_copied_from: bool) -> None:
        """These blocks are read next, in this order.

        Args:
            is_copied_from: large ranges are copied by the store, and not read.
        """
        runs: list[tuple[int, int]] = []
        for entry in entries:
            end = entry.position + entry.size_bytes
            if runs and 0 <= entry.position - runs[-1][1] <= SKIPPED_BYTES:
                runs[-1] = runs[-1][0], end
            else:
                runs.append((entry.position, end))
        self._runs = sorted(runs)
        goes_on = not (is_copied_from and self._has_large)
        self._goes_on_until = self._index.end_position(self._last_stream_id) if goes_on else 0

    async def read(self, entry: IndexEntry) -> Buffer:
        """A block, checked."""
        start, end = entry.position, entry.position + entry.size_bytes
        if start >= self._held_from:
            block: Buffer = self._held[start - self._held_from : end - self._held_from]
        else:
            block = await self._reader.read(start, end, until=min(self._until(start), max(end, self._held_from)))
        try:
            check_block(self.object_id, entry, block)
        except ObjectCorrupt as error:
            await self._reader.close()  # what was received is not looked at again
            raise DamagedSource(self.object_id) from error
        return block

    def _until(self, position: int) -> int:
        number = bisect_right(self._runs, position, key=lambda run: run[0])
        end = self._runs[number - 1][1] if number else position
        return max(end, self._goes_on_until) if number == len(self._runs) else end
