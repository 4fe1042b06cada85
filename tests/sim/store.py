"""One process's way to the simulated bucket.

The faults are those of `s3stream.memory`. What is added here:
- A request is the world's once it was sent: when its process is killed it takes effect or not, and nobody hears of it.
- The dead send nothing.
- Held against the caller, in `problems`: memory that changed while a PUT of it was under way.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from crc32c import crc32c as checksum

from s3stream.memory import MemoryObjectStore
from s3stream.objectstore import Buffer, MultipartSummary, ObjectSummary, StoredObject, StoredRange, WrittenObject
from tests.sim.loop import Process, VirtualLoop

__all__ = ["ProcessStore"]

T = TypeVar("T")


class ProcessStore:
    """An `ObjectStore` that belongs to a process and dies with it."""

    def __init__(self, inner: MemoryObjectStore, process: Process, loop: VirtualLoop, problems: list[str]) -> None:
        self._inner = inner
        self._process = process
        self._loop = loop
        self._problems = problems
        process.on_death(inner.die)

    @property
    def uri(self) -> str:
        return self._inner.uri

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        before = _checksum(parts)
        if crc32c is not None and crc32c != before:
            self._problems.append(f"PUT {key}: the CRC given does not match the bytes given")
        try:
            return await self._outside(self._inner.put(key, parts, crc32c=crc32c))
        finally:
            if self._process.alive and _checksum(parts) != before:
                self._problems.append(f"memory changed under the PUT of {key}")

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        return await self._outside(self._inner.put_if_absent(key, parts))

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        return await self._outside(self._inner.put_if_match(key, parts, etag))

    async def get(self, key: str) -> StoredObject:
        return await self._outside(self._inner.get(key))

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        return await self._outside(self._inner.get_range(key, start, end))

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        return await self._outside(self._inner.get_range_into(key, start, parts))

    async def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        async def everything() -> list[Buffer]:
            return [piece async for piece in self._inner.get_stream(key, start, end, buffer_bytes=buffer_bytes)]

        for piece in await self._outside(everything()):
            self._process.check()
            yield piece

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        return await self._outside(self._inner.get_tail(key, size))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        async def everything() -> list[ObjectSummary]:
            return [summary async for summary in self._inner.list(prefix, start_after=start_after)]

        for summary in await self._outside(everything()):
            yield summary

    async def delete_many(self, keys: Sequence[str]) -> None:
        await self._outside(self._inner.delete_many(keys))

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        chunks = [bytes(part) async for part in parts]

        async def again() -> AsyncIterator[Buffer]:
            for chunk in chunks:
                yield chunk

        return await self._outside(self._inner.put_multipart(key, again()))

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        chunks = [part if isinstance(part, StoredRange) else bytes(part) async for part in parts]

        async def again() -> AsyncIterator[Buffer | StoredRange]:
            for chunk in chunks:
                yield chunk

        return await self._outside(self._inner.put_composed(key, again()))

    async def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        async def everything() -> list[MultipartSummary]:
            return [summary async for summary in self._inner.list_multiparts(prefix)]

        for summary in await self._outside(everything()):
            yield summary

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        return await self._outside(self._inner.abort_stale_multiparts(prefix, older_than_ms))

    async def now_ms(self) -> int:
        return await self._outside(self._inner.now_ms())

    async def close(self) -> None:
        self._process.check()

    async def _outside(self, request: Coroutine[Any, Any, T]) -> T:
        if not self._process.alive:
            request.close()
        self._process.check()
        return await self._loop.spawn_outside(request)


def _checksum(parts: Sequence[Buffer]) -> int:
    value = 0
    for part in parts:
        value = checksum(part, value)
    return value
