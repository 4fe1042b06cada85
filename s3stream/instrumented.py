"""A store around a store: counts what goes through it, and fails or slows it down at a switch (for tests and demos).

Always true:
- Counters count requests as the engine sees them, not the retries inside the store.
- With `failing` set, nothing reaches the inner store: the caller sees `Unavailable`, as in an outage.
- With `delay_ms` set, every request waits that long first; with `bytes_per_s`, also for its bytes' share.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing

from s3stream.objectstore import (
    Buffer,
    MultipartSummary,
    ObjectStore,
    ObjectStoreError,
    ObjectSummary,
    StoredObject,
    StoredRange,
    Unavailable,
    WrittenObject,
)
from wal.histogram import Histogram

__all__ = ["InstrumentedObjectStore"]


class InstrumentedObjectStore:
    """An `ObjectStore` that delegates."""

    def __init__(self, inner: ObjectStore, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take the store to delegate to. `clock` gives seconds, for `durations` only."""
        self.inner = inner
        self.clock = clock
        self.failing = False
        self.delay_ms = 0
        self.bytes_per_s: int | None = None
        self.requests: Counter[str] = Counter()
        """Requests by operation."""
        self.failures: Counter[tuple[str, str]] = Counter()
        """Requests that raised, by operation and name of the error."""
        self.durations: dict[str, Histogram] = {}
        """Seconds that requests took, by operation, retries and failures included."""
        self.transferred_bytes: Counter[str] = Counter()
        """Object bytes written or read, by operation."""

    def add(
        self,
        operation: str,
        *,
        count: int,
        transferred_bytes: int,
        failures: Mapping[str, int],
        duration_counts: Sequence[int],
        duration_total_s: float,
    ) -> None:
        """Count requests that another process made on this node's behalf; `failures` are by name of the error."""
        self.requests[operation] += count
        self.transferred_bytes[operation] += transferred_bytes
        for name, failed in failures.items():
            self.failures[operation, name] += failed
        durations = self.durations.setdefault(operation, Histogram())
        durations.total += duration_total_s
        for number, size in enumerate(duration_counts):
            durations.counts[number] += size

    @property
    def bytes_written(self) -> int:
        """By all operations together."""
        return sum(size for operation, size in self.transferred_bytes.items() if operation.startswith("put"))

    @property
    def bytes_read(self) -> int:
        """By all operations together."""
        return sum(size for operation, size in self.transferred_bytes.items() if operation.startswith("get"))

    @property
    def uri(self) -> str:
        """That of the inner store."""
        return self.inner.uri

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        """See ObjectStore."""
        async with _Request(self, "put", written=_size(parts)):
            return await self.inner.put(key, parts, crc32c=crc32c)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        """See ObjectStore."""
        async with _Request(self, "put_if_absent", written=_size(parts)):
            return await self.inner.put_if_absent(key, parts)

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        """See ObjectStore."""
        async with _Request(self, "put_if_match", written=_size(parts)):
            return await self.inner.put_if_match(key, parts, etag)

    async def get(self, key: str) -> StoredObject:
        """See ObjectStore."""
        async with _Request(self, "get") as request:
            found = await self.inner.get(key)
            await request.moved(len(found.data))
            return found

    async def get_range(self, key: str, start: int, end: int) -> bytes | bytearray:
        """See ObjectStore."""
        async with _Request(self, "get_range") as request:
            data = await self.inner.get_range(key, start, end)
            await request.moved(len(data))
            return data

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        """See ObjectStore. Counts as `get_range`."""
        async with _Request(self, "get_range") as request:
            size = await self.inner.get_range_into(key, start, parts)
            await request.moved(size)
            return size

    async def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        """See ObjectStore. Its duration is that until the first piece."""
        async with aclosing(self.inner.get_stream(key, start, end, buffer_bytes=buffer_bytes)) as pieces:
            async with _Request(self, "get_stream") as request:
                first = await anext(pieces, b"")
                await request.moved(len(first))
            if first:
                yield first
            try:
                async for piece in pieces:
                    await request.moved(len(piece))
                    yield piece
            except ObjectStoreError as error:
                self.failures["get_stream", type(error).__name__] += 1
                raise

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        async with _Request(self, "get_tail") as request:
            data, whole_size = await self.inner.get_tail(key, size)
            await request.moved(len(data))
            return data, whole_size

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        """See ObjectStore. Counts as one request, however many pages it takes."""
        async with _Request(self, "list"):
            async for summary in self.inner.list(prefix, start_after=start_after):
                yield summary

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        async with _Request(self, "delete_many"):
            await self.inner.delete_many(keys)

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        """See ObjectStore. Counts as one request."""

        async def counted() -> AsyncIterator[Buffer]:
            async for part in parts:
                await request.moved(len(part))
                yield part

        async with _Request(self, "put_multipart") as request:
            return await self.inner.put_multipart(key, counted())

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        """See ObjectStore. Counts as one request; what the store copies is counted as `copy`, it does not come by here."""

        async def counted() -> AsyncIterator[Buffer | StoredRange]:
            async for part in parts:
                if isinstance(part, StoredRange):
                    self.transferred_bytes["copy"] += len(part)
                else:
                    await request.moved(len(part))
                yield part

        async with _Request(self, "put_composed") as request:
            return await self.inner.put_composed(key, counted())

    async def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        """See ObjectStore. Counts as one request."""
        async with _Request(self, "list_multiparts"):
            async for summary in self.inner.list_multiparts(prefix):
                yield summary

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        """See ObjectStore."""
        async with _Request(self, "abort_stale_multiparts"):
            return await self.inner.abort_stale_multiparts(prefix, older_than_ms)

    async def now_ms(self) -> int:
        """See ObjectStore."""
        async with _Request(self, "now_ms"):
            return await self.inner.now_ms()

    async def close(self) -> None:
        """See ObjectStore."""
        await self.inner.close()


class _Request:
    """One request: counted, and delayed or refused as the store's switches say."""

    def __init__(self, store: InstrumentedObjectStore, operation: str, *, written: int = 0) -> None:
        self._store = store
        self._operation = operation
        self._written = written
        self._began = 0.0

    async def __aenter__(self) -> _Request:
        store = self._store
        store.requests[self._operation] += 1
        self._began = store.clock()
        if store.delay_ms:
            await asyncio.sleep(store.delay_ms / 1000)
        if store.failing:
            failure = Unavailable(f"{self._operation}: switched off")
            self._note(type(failure))
            raise failure
        await self.moved(self._written)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._note(kind)

    def _note(self, kind: type[BaseException] | None) -> None:
        store, operation = self._store, self._operation
        durations = store.durations.get(operation)
        if durations is None:
            durations = store.durations[operation] = Histogram()
        durations.observe(store.clock() - self._began)
        if kind is not None:
            store.failures[operation, kind.__name__] += 1

    async def moved(self, size: int) -> None:
        """So many bytes of an object are about to be written, or were read."""
        if size:
            self._store.transferred_bytes[self._operation] += size
        if self._store.bytes_per_s is not None and size:
            await asyncio.sleep(size / self._store.bytes_per_s)


def _size(parts: Sequence[Buffer]) -> int:
    return sum(map(len, parts))
