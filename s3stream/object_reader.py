"""Reads what only objects hold: catch-up fetches, state blocks at open, look-ups by time.

Always true:
- Every block is checked against its CRC when it arrives, before anyone sees a byte of it (I7); one that does not match
  is read once more, since the network may be at fault, and then is `ObjectCorrupt`.
- A block is fetched by one request at a time, whoever wants it; a reader that goes away does not disturb the others.
- Memory for blocks is bounded by the block cache; no read waits for memory while it holds blocks itself, nor for ever.
- An object that is gone was compacted or trimmed away: the metadata is asked again. Only if it still refers to the
  object is that a loss of data.
- One that the store has and does not give (Archived) is treated likewise, until it is restored.
- What cannot be trusted is remembered in `damage`, with its offsets. What comes before it, and after it, is read; nothing is
  ever skipped: a read at a damaged offset is an error, until the object is restored or the log start raised past it.
- GETs of catch-up reads wait for their turn (`catch_up_budget.py`); those that a partition is loaded with do not.
- Read-ahead (`read_ahead.py`) never waits for memory, and asks for nothing while the rate holds others back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from s3stream.block_cache import Block, BlockCache, BlockKey, BlockMemory
from s3stream.catch_up_budget import CatchUpBudget, Share
from s3stream.config import ReadSettings
from s3stream.damage import Damage, DamagedRange
from s3stream.errors import NoMemory, ObjectCorrupt, StorageError
from s3stream.metadata import ObjectId, ObjectRange, StreamId, StreamMetadata
from s3stream.object_format import (
    FOOTER_SIZE_BYTES,
    BlockKind,
    IndexEntry,
    ObjectIndex,
    check_block,
    parse_footer,
)
from s3stream.objectstore import Archived, Buffer, NotFound, ObjectStore, ObjectStoreError, Unavailable
from s3stream.paths import Paths
from s3stream.payload import PayloadFormat
from s3stream.read_ahead import ReadSequence, ReadSequences

__all__ = ["ObjectReader"]

_T = TypeVar("_T")

_RESOLVE_ATTEMPTS = 5
"""How often one read may find that compaction was faster, before the caller is asked to try again."""
_LARGEST_READ_SHARE = 8
"""One read gets at most this fraction of the memory for blocks, whatever it asks for."""
_LONGEST_TURN_S = 0.5
"""… and with a rate, at most what that gives in this time: memory for it is taken while it waits for its turns."""
_GET_S = 0.04
"""… and a GET gets what it gives in this time, or one block: small ones cost more processor time, large ones come in bursts, which
producers feel."""
_CLOSED = "the reader is closed"


class _ObjectGone(Exception):
    """The store has no such object, or keeps it where it cannot be read."""

    def __init__(self, object_id: ObjectId, archived: Archived | None = None) -> None:
        super().__init__(f"object {object_id}")
        self.object_id = object_id
        self.archived = archived


@contextmanager
def _from_store(object_id: ObjectId) -> Iterator[None]:
    try:
        yield
    except NotFound:
        raise _ObjectGone(object_id) from None
    except Archived as error:
        raise _ObjectGone(object_id, error) from None


class _Wanted(NamedTuple):
    object_id: ObjectId
    entry: IndexEntry

    @property
    def key(self) -> BlockKey:
        return self.object_id, self.entry.position


class ObjectReader:
    """Reads streams from objects. Every method raises `ObjectCorrupt`, `Unavailable` or `NoMemory` where it cannot be had."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        paths: Paths,
        metadata: StreamMetadata,
        payload_format: PayloadFormat,
        settings: ReadSettings,
        catch_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Open a reader.

        Args:
            catch_up: brings `metadata` up to the end of the metadata log; needed where it follows another node's.
        """
        self._store = store
        self._paths = paths
        self._metadata = metadata
        self._payload_format = payload_format
        self._settings = settings
        self._catch_up = catch_up
        self.cache = BlockCache(settings.memory_bytes)
        self.damage = Damage(metadata)
        """What reads found damaged, and have not found sound since."""
        self.budget = CatchUpBudget(max_requests=settings.max_requests)
        """Of GETs for catch-up reads."""
        self._indexes: OrderedDict[ObjectId, ObjectIndex] = OrderedDict()
        self._index_bytes = 0
        self._indexes_under_way: dict[ObjectId, asyncio.Task[ObjectIndex]] = {}
        self._blocks_under_way: dict[BlockKey, asyncio.Future[Block]] = {}
        self._sequences = ReadSequences(settings)
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closed = False
        self.cached_blocks = 0
        """Blocks wanted by reads that were there, or on their way, since start."""
        self.joined_blocks = 0
        """Of them, those that were on their way, for another reader or ahead of this one."""
        self.missed_blocks = 0
        """Blocks wanted by reads that had to be asked for."""
        self.merged_blocks = 0
        """Blocks that came in the GET of a neighbour."""
        self.read_ahead_blocks = 0
        """Blocks that were asked for ahead of their readers."""

    @property
    def index_cache_bytes(self) -> int:
        """What the indexes that are kept take."""
        return self._index_bytes

    async def read(
        self,
        stream_id: StreamId,
        offset: int,
        end_offset: int,
        max_bytes: int,
        *,
        wait_for_memory: bool = True,
        paced: bool = True,
    ) -> list[Buffer]:
        """Whole payloads from the first that ends past `offset`, below `end_offset`; at least one where there is any.

        Each buffer holds one or more payloads of one block. Together they have at most `max_bytes`, unless the first
        payload is larger. Empty where no object holds the offset (any more).

        Whoever holds what an earlier read gave must not wait for memory: `NoMemory` is raised at once then. A read that is not
        `paced` takes no part in the budget of catch-up reads: partitions are loaded so, which must not wait for consumers.
        """
        return await self._resolved(
            stream_id, lambda: self._read(stream_id, offset, end_offset, max_bytes, wait_for_memory, paced)
        )

    async def read_state(self, stream_id: StreamId) -> tuple[int, bytes] | None:
        """The newest state block and the (exclusive) end offset that it accounts for.

        Where that one is damaged, the newest of those before it that is not, and None where there is none: what follows, or all
        of it, is to be replayed.
        """
        return await self._resolved(stream_id, lambda: self._read_state(stream_id))

    async def payload_for_timestamp(
        self, stream_id: StreamId, timestamp_ms: int, start_offset: int, end_offset: int
    ) -> Buffer | None:
        """The first payload in [start_offset, end_offset) whose largest timestamp is at or past `timestamp_ms`."""
        return await self._resolved(
            stream_id, lambda: self._payload_for_timestamp(stream_id, timestamp_ms, start_offset, end_offset)
        )

    async def close(self) -> None:
        """Give up what is under way."""
        self._closed = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cache.clear()
        self._indexes.clear()
        self._sequences.clear()

    async def _resolved(self, stream_id: StreamId, attempt: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Read; where an object is gone, look again where its data is now."""
        for _ in range(_RESOLVE_ATTEMPTS):
            if self._closed:
                raise Unavailable(_CLOSED)
            try:
                return await attempt()
            except _ObjectGone as gone:
                self._forget_object(gone.object_id)
                if self._catch_up is not None:
                    await self._catch_up()
                self._check_unreferenced(stream_id, gone)
        raise Unavailable(f"stream {stream_id}: objects are replaced faster than they can be read; try again")

    def _check_unreferenced(self, stream_id: StreamId, gone: _ObjectGone) -> None:
        object_id = gone.object_id
        newest_state = self._metadata.newest_state(stream_id)
        for found in (*self._metadata.ranges(stream_id), *([newest_state] if newest_state else [])):
            if found.object_id == object_id:
                why = f"is missing from the store ({self._paths.data_object(object_id)})"
                if gone.archived is not None:
                    why = f"cannot be read ({gone.archived})"
                error = ObjectCorrupt(
                    f"object {object_id} {why}, and holds stream {stream_id},"
                    f" offsets {found.range.base_offset} to {found.range.end_offset} (exclusive)"
                )
                self.damage.object_lost(object_id, error, found)
                raise error

    async def _read(
        self, stream_id: StreamId, offset: int, end_offset: int, max_bytes: int, wait_for_memory: bool, paced: bool
    ) -> list[Buffer]:
        max_bytes = min(max_bytes, self.cache.capacity_bytes // _LARGEST_READ_SHARE)
        sequence = self._sequences.at(stream_id, offset)
        share = sequence.share if paced else None
        size = max_bytes
        if paced and self.budget.rate_bytes_per_s is not None:
            size = min(size, int(self.budget.rate_bytes_per_s * _LONGEST_TURN_S))
        wanted = await self._plan(stream_id, offset, end_offset, size, paced=paced)
        if not wanted:
            return []
        result: list[Buffer] = []
        size = 0
        next_offset = offset
        for block in await self._fetch(wanted, share, wait_for_memory=wait_for_memory):
            part = block.slice(self._payload_format, next_offset, end_offset, max_bytes - size, at_least_one=not result)
            if part is None:
                break
            self.cache.mark_read(block, next_offset)
            data, next_offset = part
            result.append(data)
            size += len(data)
            if next_offset < block.entry.end_offset:
                break
        if next_offset > offset:
            sequence = self._sequences.moved(sequence, stream_id, offset, next_offset, size)
            if paced and sequence.wants_more(self._settings) and not self.budget.is_throttled:
                sequence.busy = True
                self._own(self._read_ahead(sequence, stream_id, end_offset))
        return result

    async def _plan(
        self, stream_id: StreamId, offset: int, end_offset: int, size: int, *, paced: bool
    ) -> list[_Wanted]:
        """Blocks that hold `size` bytes from `offset` on. Holds no memory, so it may wait for indexes."""
        wanted: list[_Wanted] = []
        total = 0
        at = offset
        while at < end_offset:
            located = self._metadata.locate(stream_id, at)
            if not located or located[0].range.base_offset > at:
                break  # the end; or trimmed meanwhile
            for found in located:
                try:
                    index = await self._index(found, paced=paced)
                except (_ObjectGone, StorageError, ObjectStoreError):
                    if wanted:
                        return wanted  # what comes before it can be read; the next read is told
                    raise
                entries = index.data_entries(stream_id, at)
                first = next(entries, None)
                if first is None and found.range.record_count and at == found.range.base_offset:
                    if wanted:
                        return wanted
                    raise self._absent(found)
                for entry in _and_then(first, entries):
                    if entry.base_offset >= end_offset or (wanted and total >= size):
                        return wanted
                    # How much of the first block lies before the offset is known only when it is here.
                    total += entry.size_bytes if wanted or offset <= entry.base_offset else 0
                    wanted.append(_Wanted(found.object_id, entry))
                at = found.range.end_offset
        return wanted

    async def _fetch(
        self, wanted: Sequence[_Wanted], share: Share | None, *, wait_for_memory: bool = True
    ) -> list[Block]:
        """Get blocks from the cache, from requests under way, or by new requests, for which `share` gets its turns."""
        reserved = 0
        while True:
            # Held from here on: making room, for us or for others, may evict what is there now.
            found = [self._blocks_under_way.get(item.key) or self.cache.get(item.key) for item in wanted]
            missing = [item for item, block in zip(wanted, found, strict=True) if block is None]
            cost = _size(missing)
            if reserved >= cost:
                self.cache.release(reserved - cost)
                break
            if not reserved and self.cache.try_reserve(cost):
                break
            found.clear()  # nobody waits for memory while holding blocks
            if reserved and len(wanted) > 1:
                wanted = wanted[:1]  # some were evicted meanwhile; one block is progress enough
                continue
            self.cache.release(reserved)
            reserved = cost
            await self._wait_for_memory(cost, self._settings.memory_wait_ms if wait_for_memory else 0)
            if self._closed:
                self.cache.release(cost)
                raise Unavailable(_CLOSED)
        self.missed_blocks += len(missing)
        self.cached_blocks += len(wanted) - len(missing)
        self.joined_blocks += sum(isinstance(block, asyncio.Future) for block in found)
        self._start(missing, share, None)
        blocks = [block or self._blocks_under_way[item.key] for item, block in zip(wanted, found, strict=True)]
        found.clear()
        waiting = [block for block in blocks if isinstance(block, asyncio.Future)]
        if waiting:
            await asyncio.wait(waiting)  # unlike await, leaves them alone when this reader is cancelled
        result: list[Block] = []
        try:
            for block in blocks:
                if isinstance(block, asyncio.Future):
                    if result and block.exception() is not None:
                        break  # what comes before it can be read; the next read is told
                    block = block.result()
                result.append(block)
            return result
        finally:
            # A future's exception refers to this frame: without the cycle, blocks are freed at once.
            del block
            blocks.clear()
            waiting.clear()

    async def _wait_for_memory(self, size: int, wait_ms: int) -> None:
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self.cache.reserve(size)
        except TimeoutError:
            raise NoMemory(
                f"no memory for {size} bytes within {wait_ms} ms: responses that are being sent"
                f" hold {self.cache.used_bytes - self.cache.cached_bytes} of {self.cache.capacity_bytes} bytes"
            ) from None

    @property
    def _get_size_bytes(self) -> int:
        """Most that neighbours together may have in one GET."""
        rate = self.budget.rate_bytes_per_s
        most = self._settings.max_get_size_bytes
        return most if rate is None else min(most, int(rate * _GET_S))

    def _missing(self, wanted: Sequence[_Wanted]) -> list[_Wanted]:
        return [item for item in wanted if item.key not in self.cache and item.key not in self._blocks_under_way]

    def _start(self, missing: Sequence[_Wanted], share: Share | None, on_unused: Callable[[], None] | None) -> None:
        """Request blocks for which memory is reserved, neighbours together."""
        loop = asyncio.get_running_loop()
        for run in _runs(missing, self._get_size_bytes):
            futures = [loop.create_future() for _ in run]
            for item, future in zip(run, futures, strict=True):
                self._blocks_under_way[item.key] = future
            self.merged_blocks += len(run) - 1
            self._own(self._read_run(run, futures, share, on_unused))

    async def _read_run(
        self,
        run: list[_Wanted],
        futures: list[asyncio.Future[Block]],
        share: Share | None,
        on_unused: Callable[[], None] | None,
    ) -> None:
        reserved = _size(run)
        try:
            memories = [BlockMemory(item.entry.size_bytes) for item in run]
            await self._get_run(run, memories, share)
            for item, future in zip(run, futures, strict=True):
                memory = memories.pop(0)  # two who hold it would keep it from being freed
                try:
                    data = await self._checked(item, memory)
                except (ObjectCorrupt, _ObjectGone) as error:
                    self._fail(item, future, error)  # its neighbours may be sound
                    continue
                if data is not memory:
                    memory[:] = data
                block = self.cache.add(item.object_id, item.entry, memory, on_unused)
                del memory, data
                reserved -= item.entry.size_bytes  # counted with the block from now on
                del self._blocks_under_way[item.key]
                future.set_result(block)
                await asyncio.sleep(0)  # a GET's blocks at once would hold the event loop up for milliseconds
        except BaseException as error:
            for item, future in zip(run, futures, strict=True):
                if not future.done():
                    self._fail(item, future, error if isinstance(error, Exception) else Unavailable(_CLOSED))
            if not isinstance(error, Exception):
                raise
        finally:
            futures.clear()  # their exceptions refer to this frame: see _fetch
            self.cache.release(reserved)

    def _fail(self, item: _Wanted, future: asyncio.Future[Block], error: Exception) -> None:
        del self._blocks_under_way[item.key]
        future.set_exception(error)
        future.exception()  # all who waited for it may have gone away

    async def _checked(self, item: _Wanted, data: Buffer) -> Buffer:
        """A block that was read, or read anew, and is what was written."""
        try:
            check_block(item.object_id, item.entry, data)
        except ObjectCorrupt:
            end = item.entry.position + item.entry.size_bytes
            data = await self._get_range(item.object_id, item.entry.position, end)
            try:
                check_block(item.object_id, item.entry, data)
            except ObjectCorrupt as error:
                self.damage.range_lost(_damaged(item), error)
                raise
        if self.damage:
            self.damage.range_sound(_damaged(item))
        return data

    def _absent(self, found: ObjectRange, what: str = "") -> ObjectCorrupt:
        """An intact index that does not have what was committed."""
        part = found.range
        error = ObjectCorrupt(
            f"object {found.object_id} should hold {what}stream {part.stream_id}, offsets {part.base_offset}"
            f" to {part.end_offset} (exclusive), and does not"
        )
        self.damage.object_lost(found.object_id, error, found)
        return error

    async def _get_run(self, run: Sequence[_Wanted], memories: Sequence[bytearray], share: Share | None) -> None:
        """Read blocks that follow each other, each into memory of its own, when it is the reader's turn."""
        object_id = run[0].object_id
        if share is not None:
            await self.budget.turn(share, _size(run))
        try:
            with _from_store(object_id):
                await self._store.get_range_into(
                    self._paths.data_object(object_id),
                    run[0].entry.position,
                    [memoryview(memory) for memory in memories],
                )
        finally:
            if share is not None:
                self.budget.done()

    async def _get_range(self, object_id: ObjectId, start: int, end: int) -> bytes | bytearray:
        with _from_store(object_id):
            return await self._store.get_range(self._paths.data_object(object_id), start, end)

    async def _index(self, found: ObjectRange, *, paced: bool) -> ObjectIndex:
        object_id = found.object_id
        index = self._indexes.get(object_id)
        if index is None:
            task = self._indexes_under_way.get(object_id)
            if task is None:
                task = self._own(self._read_index(object_id))
                self._indexes_under_way[object_id] = task
                if paced:
                    self.budget.charge(min(self._settings.tail_size_bytes, found.size_bytes))
                task.add_done_callback(self._index_read)
            await asyncio.wait([task])  # unlike await, leaves it alone when this reader is cancelled
            if task.cancelled():
                raise Unavailable(_CLOSED)
            try:
                index = task.result()
            except ObjectCorrupt as error:
                self.damage.object_lost(object_id, error, found)
                raise
        else:
            self._indexes.move_to_end(object_id)
        if index.footer.object_size_bytes != found.size_bytes:
            other = ObjectCorrupt(
                f"object {object_id} has {index.footer.object_size_bytes} bytes, {found.size_bytes} were committed"
            )
            self.damage.object_lost(object_id, other, found)
            raise other
        if self.damage:
            self.damage.object_sound(object_id)
        return index

    def _index_read(self, task: asyncio.Task[ObjectIndex]) -> None:
        for object_id in [key for key, value in self._indexes_under_way.items() if value is task]:
            del self._indexes_under_way[object_id]
        if not task.cancelled():
            task.exception()  # all who waited for it may have gone away

    async def _read_index(self, object_id: ObjectId) -> ObjectIndex:
        try:
            index = await self._read_index_once(object_id)
        except ObjectCorrupt:
            index = await self._read_index_once(object_id)
        self._indexes[object_id] = index
        self._index_bytes += index.size_bytes
        while self._index_bytes > self._settings.index_cache_bytes and len(self._indexes) > 1:
            _, oldest = self._indexes.popitem(last=False)
            self._index_bytes -= oldest.size_bytes
        return index

    async def _read_index_once(self, object_id: ObjectId) -> ObjectIndex:
        with _from_store(object_id):
            tail, object_size = await self._store.get_tail(
                self._paths.data_object(object_id), self._settings.tail_size_bytes
            )
        footer = parse_footer(tail, object_size, object_id)
        at = len(tail) - FOOTER_SIZE_BYTES - footer.index_size_bytes
        if at >= 0:
            raw = tail[at : at + footer.index_size_bytes]
        else:
            end = footer.index_position + footer.index_size_bytes
            raw = bytes(await self._get_range(object_id, footer.index_position, end))
        return ObjectIndex(footer, raw)

    async def _read_state(self, stream_id: StreamId) -> tuple[int, bytes] | None:
        newest = self._metadata.newest_state(stream_id)
        if newest is None:
            return None
        older = [
            found
            for found in reversed(self._metadata.ranges(stream_id))
            if found.range.has_state and found.object_id != newest.object_id
        ]
        for found in (newest, *older):
            try:
                return await self._read_state_in(found)
            except ObjectCorrupt:
                continue  # it is remembered, and told
            except _ObjectGone as gone:
                await self._look_again(stream_id, gone)
        return None

    async def _look_again(self, stream_id: StreamId, gone: _ObjectGone) -> None:
        """Raises `gone` unless the object is still needed: then it is a loss, which is remembered."""
        self._forget_object(gone.object_id)
        if self._catch_up is not None:
            await self._catch_up()
        try:
            self._check_unreferenced(stream_id, gone)
        except ObjectCorrupt:
            return
        raise gone

    async def _read_state_in(self, found: ObjectRange) -> tuple[int, bytes]:
        stream_id = found.range.stream_id
        entry = (await self._index(found, paced=False)).state_entry(stream_id)
        if entry is None:
            raise self._absent(found, "a state of ")
        item = _Wanted(found.object_id, entry)
        data = await self._get_range(item.object_id, entry.position, entry.position + entry.size_bytes)
        return entry.end_offset, bytes(await self._checked(item, data))

    async def _payload_for_timestamp(
        self, stream_id: StreamId, timestamp_ms: int, start_offset: int, end_offset: int
    ) -> Buffer | None:
        for found in self._metadata.ranges(stream_id):
            if found.range.max_timestamp_ms < timestamp_ms or found.range.end_offset <= start_offset:
                continue
            for entry in (await self._index(found, paced=True)).data_entries(stream_id, start_offset):
                if entry.base_offset >= end_offset:
                    return None
                if entry.max_timestamp_ms < timestamp_ms:
                    continue
                (block,) = await self._fetch([_Wanted(found.object_id, entry)], Share())
                self.cache.mark_read(block, entry.base_offset)
                payload = block.first_payload(
                    self._payload_format,
                    lambda bounds: (
                        bounds.max_timestamp_ms >= timestamp_ms and start_offset < bounds.end_offset <= end_offset
                    ),
                )
                if payload is not None:
                    return payload
        return None

    async def _read_ahead(self, sequence: ReadSequence, stream_id: StreamId, end_offset: int) -> None:
        try:
            at = max(sequence.offset, sequence.ahead_offset)
            size = sequence.window_bytes - sequence.ahead_bytes
            wanted = await self._plan(stream_id, at, end_offset, size, paced=True)
            missing = self._missing(wanted)
            runs = list(_runs(missing, self._get_size_bytes))
            if len(runs) > 1 and _size(runs[-1]) < self._get_size_bytes // 2:
                rest = runs.pop()  # better with its neighbours, the next time
                del missing[-len(rest) :]
                del wanted[wanted.index(rest[0]) :]
            if missing and not self.cache.try_reserve(_size(missing), ahead=True):
                sequence.shrink()
                return
            self.read_ahead_blocks += len(missing)
            self._start(missing, sequence.share, sequence.shrink)
            if wanted:
                sequence.ahead_offset = wanted[-1].entry.end_offset
                sequence.ahead_bytes += _size(wanted)
        except (_ObjectGone, StorageError, ObjectStoreError):
            sequence.shrink()  # the reader itself will come there and be told
        finally:
            sequence.busy = False

    def _forget_object(self, object_id: ObjectId) -> None:
        index = self._indexes.pop(object_id, None)
        if index is not None:
            self._index_bytes -= index.size_bytes
        self.cache.drop_object(object_id)

    def _own(self, coroutine: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task


def _runs(wanted: Sequence[_Wanted], max_size_bytes: int) -> Iterator[list[_Wanted]]:
    """Group neighbours in the same object into requests of at most that size."""
    run: list[_Wanted] = []
    end = size = 0
    for item in wanted:
        adjacent = run and item.object_id == run[-1].object_id and item.entry.position == end
        if run and (not adjacent or size + item.entry.size_bytes > max_size_bytes):
            yield run
            run, size = [], 0
        run.append(item)
        end = item.entry.position + item.entry.size_bytes
        size += item.entry.size_bytes
    if run:
        yield run


def _size(wanted: Sequence[_Wanted]) -> int:
    return sum(item.entry.size_bytes for item in wanted)


def _damaged(item: _Wanted) -> DamagedRange:
    entry = item.entry
    return DamagedRange(
        stream_id=entry.stream_id,
        object_id=item.object_id,
        base_offset=entry.base_offset,
        end_offset=entry.end_offset,
        is_state=entry.kind == BlockKind.STATE,
    )


def _and_then(first: IndexEntry | None, rest: Iterator[IndexEntry]) -> Iterator[IndexEntry]:
    if first is not None:
        yield first
        yield from rest
